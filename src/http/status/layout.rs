//! The frame of the status pages: the head with the one style block, and tables.
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
                @if refreshes { meta http-equiv="refresh" content=(REFRESH); }
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    }
}

/// A table that can be scrolled on a small screen.
pub(super) fn table(
    label: &str,
    header: &[&str],
    rows: impl Iterator<Item = Vec<Markup>>,
) -> Markup {
    html! {
        div.wide tabindex="0" role="region" aria-label=(label) {
            table {
                thead { tr { @for title in header { th scope="col" { (title) } } } }
                tbody { @for row in rows { tr { @for cell in row { td { (cell) } } } } }
            }
        }
    }
}
