//! The charts of the status page: inline SVG without a style or a script. It knows numbers only.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::status::count;

/// The height of a sparkline in its own units.
const HEIGHT: u64 = 20;

/// The points of a sparkline: the minutes of an hour.
const POINTS: usize = 60;

/// A bar: `used` of `all`, with a mark at `mark`.
pub(super) fn bar(used: u64, mark: u64, all: u64, label: &str) -> Markup {
    let (part, class) = (percent(used, all), if used < mark { "used" } else { "over" });
    html! {
        svg.bar viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label=(label) {
            rect.all width="100" height="8" {}
            rect.(class) width=(part) height="8" {}
            path.at d={ "M" (percent(mark, all)) " 0v8" } {}
        }
    }
}

/// The counts of the last hour, the latest last, as a line with the name `what`. Minutes before the
/// first one are 0.
pub(super) fn sparkline(minutes: &[u64], what: &str) -> Markup {
    let most = minutes.iter().copied().max().unwrap_or_default();
    let width = POINTS - 1;
    let before = POINTS.saturating_sub(minutes.len());
    let at = |x: usize| {
        let point = x.checked_sub(before).and_then(|index| minutes.get(index));
        HEIGHT - scaled(point.copied().unwrap_or_default(), most.max(1), HEIGHT)
    };
    let mut path = String::new();
    for x in 0..POINTS {
        // Points within a level part are left out.
        let is_level = x > 0 && x < width && at(x - 1) == at(x) && at(x) == at(x + 1);
        if !is_level {
            _ = write!(path, "{}{x},{}", if x > 0 { " " } else { "" }, at(x));
        }
    }
    html! {
        svg.line viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" role="img"
            aria-label={ (what) " a minute in the last hour, at most " (count(most)) } {
            path.area d={ "M0," (HEIGHT) " L" (path) " V" (HEIGHT) "Z" } {}
            polyline points=(path) {}
        }
        p.axis {
            span { "1 h ago" } " "
            span { (what) " a minute, at most " (count(most)) } " "
            span { "now" }
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
        assert!(text.contains(r#"class="used" width="5" height="8""#), "{text}");
        assert!(text.contains("M50 0v8"), "{text}");
        assert!(bar(50, 50, 100, "x").into_string().contains(r#"class="over""#));
        assert!(text.contains("a&lt;b"), "{text}");
        assert_eq!(percent(1, 3), "33.3");
        assert_eq!(percent(7, 0), "0");
        assert_eq!(percent(u64::MAX, u64::MAX), "100");
        for (minutes, points) in [
            (&[][..], "0,20 59,20"),
            (&[0; 60], "0,20 59,20"),
            (&[7], "0,20 58,20 59,0"),
            (&[0, 10, 5], "0,20 57,20 58,0 59,10"),
            (&[3; 60], "0,0 59,0"),
        ] {
            let text = sparkline(minutes, "x").into_string();
            assert!(text.contains(&format!("points=\"{points}\"")), "{minutes:?}: {text}");
            assert!(text.contains(r#"viewBox="0 0 59 20""#), "{text}");
        }
        let text = sparkline(&[0, 1_000], "a<b").into_string();
        assert!(text.contains("a&lt;b a minute in the last hour, at most 1,000"), "{text}");
    }
}
