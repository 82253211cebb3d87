//! When the next rotation of a chain is expected: a pure function of its limits and of its pace.

use crate::timestamp::rfc3339;

use super::Forecast;

/// How a primary KEK approaches its limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Uses that are reserved.
    pub reserved: u64,
    /// Uses that start a rotation.
    pub rotate_after_uses: u64,
    /// New reserved uses a second, by all replicas.
    pub uses_per_second: f64,
    /// Seconds since the promotion.
    pub age: u64,
    /// The age that starts a rotation, in seconds.
    pub rotate_after_age: u64,
}

/// When the primary reaches one of its limits, if the traffic stays as it is. `now` is in seconds
/// since the Unix epoch.
#[must_use]
pub fn forecast(pace: &Pace, now: u64) -> Forecast {
    let by_age = pace.rotate_after_age.saturating_sub(pace.age);
    let left = pace.rotate_after_uses.saturating_sub(pace.reserved);
    let by_uses = match left {
        0 => Some(0),
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a forecast need not be exact, and the cast saturates"
        )]
        left if pace.uses_per_second > 0.0 => Some((left as f64 / pace.uses_per_second) as u64),
        _ => None,
    };
    let (in_seconds, reason) = match by_uses {
        Some(by_uses) if by_uses <= by_age => (by_uses, "uses"),
        _ => (by_age, "age"),
    };
    let at = rfc3339(now.saturating_add(in_seconds));
    Forecast { at, in_seconds, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_767_225_600;

    #[test]
    fn the_limit_that_is_reached_first_decides() {
        let pace = Pace {
            reserved: 1_000,
            rotate_after_uses: 2_000,
            uses_per_second: 0.0,
            age: 60,
            rotate_after_age: 86_400,
        };
        let expected = |pace: Pace| {
            let Forecast { at, in_seconds, reason } = forecast(&pace, NOW);
            assert_eq!(at, rfc3339(NOW + in_seconds));
            (in_seconds, reason)
        };
        assert_eq!(expected(pace), (86_340, "age".to_owned()));
        assert_eq!(expected(Pace { uses_per_second: 10.0, ..pace }), (100, "uses".to_owned()));
        assert_eq!(expected(Pace { uses_per_second: 0.001, ..pace }), (86_340, "age".to_owned()));
        assert_eq!(expected(Pace { reserved: 2_000, ..pace }), (0, "uses".to_owned()));
        assert_eq!(expected(Pace { age: 90_000, ..pace }), (0, "age".to_owned()));
        // A rate of nearly nothing is a time that RFC 3339 can still write.
        let slow = Pace { uses_per_second: f64::MIN_POSITIVE, rotate_after_age: u64::MAX, ..pace };
        assert_eq!(forecast(&slow, NOW).reason, "age");
    }
}
