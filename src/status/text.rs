//! Numbers and times as people read them. A leaf.

use std::fmt::Write as _;

/// A whole number with a comma after each third digit.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in its two largest units: `3 d 4 h`, `5 min`, `12 s`.
#[must_use]
pub fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 5] =
        [(365 * 86_400, "y"), (86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut text = String::new();
    let mut rest = seconds;
    let largest = UNITS.iter().position(|&(size, _)| seconds >= size).unwrap_or(UNITS.len() - 1);
    for (size, unit) in UNITS.into_iter().skip(largest).take(2) {
        let number = rest / size;
        rest %= size;
        // An hour and no minute is an hour.
        if number > 0 || text.is_empty() {
            let space = if text.is_empty() { "" } else { " " };
            _ = write!(text, "{space}{number} {unit}");
        }
    }
    text
}

/// When a KEK was last used in one way: on `day`; or not since the day from which on this is known,
/// and never if the KEK was made later.
#[must_use]
pub fn last_used(day: Option<&str>, known_since: Option<&str>, created_at: &str) -> String {
    match (day, known_since) {
        (Some(day), _) => day.to_owned(),
        (None, Some(since)) if created_at.get(..since.len()).is_some_and(|made| made > since) => {
            "never".to_owned()
        }
        (None, Some(since)) => format!("none since {since}"),
        (None, None) => "not known".to_owned(),
    }
}

/// A rate: with one digit after the point below 10.
#[must_use]
pub fn rate(per_second: f64) -> String {
    if per_second < 0.05 {
        return if per_second > 0.0 { "below 0.1" } else { "0" }.to_owned();
    }
    if per_second < 9.95 {
        return format!("{per_second:.1}");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let whole = per_second.round() as u64;
    count(whole)
}

/// An amount of money in two digits after the point; one that they don't show is below the least.
#[must_use]
pub fn money(amount: f64, currency: &str) -> String {
    if amount > 0.0 && amount < 0.005 {
        return format!("below {currency} 0.01");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let cents = (amount * 100.0).round() as u64;
    format!("{currency} {}.{:02}", count(cents / 100), cents % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_that_is_not_known_is_not_called_never() {
        let made = "2026-11-30T08:00:00Z";
        for (day, since, text) in [
            (Some("2026-12-01"), Some("2026-11-01"), "2026-12-01"),
            (Some("2026-12-01"), None, "2026-12-01"),
            (None, Some("2026-11-29"), "never"),
            (None, Some("2026-11-30"), "none since 2026-11-30"),
            (None, Some("2026-12-01"), "none since 2026-12-01"),
            (None, None, "not known"),
        ] {
            assert_eq!(last_used(day, since, made), text, "{day:?} {since:?}");
        }
        assert_eq!(last_used(None, Some("2026-11-29"), ""), "none since 2026-11-29");
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (2_097_152, "2,097,152"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(count(number), text);
        }
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3_600, "1 h"),
            (3_601, "1 h"),
            (93_784, "1 d 2 h"),
            (7_776_000, "90 d"),
            (400 * 86_400, "1 y 35 d"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
        for (number, text) in
            [(0.0, "0"), (0.01, "below 0.1"), (0.05, "0.1"), (9.94, "9.9"), (1_234.5, "1,235")]
        {
            assert_eq!(rate(number), text, "{number}");
        }
        assert_eq!(money(1_234.567, "USD"), "USD 1,234.57");
        assert_eq!(money(0.0, "EUR"), "EUR 0.00");
        assert_eq!(money(0.00002, "EUR"), "below EUR 0.01");
        assert_eq!(money(0.005, "EUR"), "EUR 0.01");
    }
}
