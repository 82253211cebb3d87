//! The charts of the status page: inline SVG without a style or a script. It knows numbers only.

use std::fmt::Write as _;

use maud::{Markup, html};

/// The height of a sparkline in its own units.
const HEIGHT: u64 = 20;

/// A bar: `used` of `all`, with a mark at `mark`.
pub(super) fn bar(used: u64, mark: u64, all: u64, label: &str) -> Markup {
    let (used, mark) = (percent(used, all), percent(mark, all));
    html! {
        svg.bar viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label=(label) {
            rect.all width="100" height="8" {}
            rect.used width=(used) height="8" {}
            path.at d={ "M" (mark) " 0v8" } {}
        }
    }
}

/// A line through `points`, from the oldest to the latest, over the whole width.
pub(super) fn sparkline(points: &[u64], label: &str) -> Markup {
    let most = points.iter().copied().max().unwrap_or_default().max(1);
    let mut path = String::new();
    for (x, point) in points.iter().enumerate() {
        let space = if x > 0 { " " } else { "" };
        let y = HEIGHT - scaled(*point, most, HEIGHT);
        _ = write!(path, "{space}{x},{y}");
    }
    let width = points.len().max(2) - 1;
    html! {
        svg.line viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" role="img"
            aria-label=(label) {
            polyline points=(path) {}
        }
    }
}

/// `part` of `whole` in percent, in one digit after the point and at most 100.
fn percent(part: u64, whole: u64) -> String {
    let tenths = scaled(part.min(whole), whole.max(1), 1_000);
    if tenths.is_multiple_of(10) {
        (tenths / 10).to_string()
    } else {
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}

/// `part` of `whole` on a scale to `most`.
fn scaled(part: u64, whole: u64, most: u64) -> u64 {
    let scaled = u128::from(part) * u128::from(most) / u128::from(whole);
    u64::try_from(scaled).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_fits_its_box() {
        let text = bar(5, 50, 100, "a<b").into_string();
        assert!(text.contains(r#"width="5" height="8""#) && text.contains("M50 0v8"), "{text}");
        assert!(text.contains("a&lt;b"), "{text}");
        assert_eq!(percent(1, 3), "33.3");
        assert_eq!(percent(7, 0), "0");
        assert_eq!(percent(u64::MAX, u64::MAX), "100");
        let text = sparkline(&[0, 10, 5], "x").into_string();
        assert!(text.contains(r#"points="0,20 1,0 2,10""#), "{text}");
        assert!(text.contains(r#"viewBox="0 0 2 20""#), "{text}");
        for few in [&[][..], &[7]] {
            assert!(sparkline(few, "x").into_string().contains("viewBox=\"0 0 1 20\""));
        }
    }
}
