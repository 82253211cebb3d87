//! The frame of the status pages: the head with the one style block, tables and times.
//!
//! It knows nothing of what the pages show.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The style block. The content security policy names its hash.
pub(super) const STYLE: &str = include_str!("style.css");

/// The seconds after which a browser loads the page again.
pub(super) const REFRESH: u64 = 10;

/// The whole page: `body` between the head and the end.
pub(super) fn document(title: &str, refreshes: bool, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if refreshes { meta http-equiv="refresh" content=(REFRESH); }
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    }
}

/// A table, whose rows are blocks on a small screen: then each cell has the title of its column.
/// The first cell of a row names the row. Its region can be scrolled, also with the keyboard.
pub(super) fn table(
    label: &str,
    header: &[&str],
    rows: impl Iterator<Item = Vec<Markup>>,
) -> Markup {
    let row = |cells: Vec<Markup>| {
        let mut cells = header.iter().zip(cells);
        html! {
            tr {
                @if let Some((_, name)) = cells.next() { th scope="row" { (name) } }
                @for (title, cell) in cells { td data-title=(title) { (cell) } }
            }
        }
    };
    html! {
        div.wide tabindex="0" role="region" aria-label=(label) {
            table {
                thead { tr { @for title in header { th scope="col" { (title) } } } }
                tbody { @for cells in rows { (row(cells)) } }
            }
        }
    }
}

/// A time, as RFC 3339 with a space for the `T`, which HTML takes too.
pub(super) fn time(rfc3339: &str) -> Markup {
    html! { time { (rfc3339.replacen('T', " ", 1)) } }
}

/// A text as a sentence: it may have its full stop already.
pub(super) fn sentence(text: &str) -> Markup {
    html! { (text.trim_end_matches('.')) "." }
}
