//! Points in time as RFC 3339 text.
//!
//! A leaf: it does not know what time it is.

use std::time::{Duration, UNIX_EPOCH};

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can write.
const LAST: u64 = 253_402_300_799;

/// Seconds since the Unix epoch as RFC 3339 text in UTC. Times before the epoch or after the year
/// 9999, which a certificate or a damaged record may contain, become the nearest time that can be
/// written.
#[must_use]
pub fn rfc3339(unix: impl TryInto<u64>) -> String {
    // Only a negative number does not fit.
    let unix = unix.try_into().unwrap_or_default();
    let time = UNIX_EPOCH + Duration::from_secs(unix.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Seconds in a day of UTC.
pub const DAY: u64 = 24 * 60 * 60;

/// A day in UTC, in days since the Unix epoch, as RFC 3339 text: `2026-01-01`.
#[must_use]
pub fn date(day: u32) -> String {
    let mut text = rfc3339(u64::from(day) * DAY);
    text.truncate("9999-12-31".len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_without_a_time() {
        assert_eq!((date(0), date(20_454)), ("1970-01-01".to_owned(), "2026-01-01".to_owned()));
        assert_eq!(date(u32::MAX), "9999-12-31");
    }

    #[test]
    fn times_are_limited_to_what_rfc_3339_can_write() {
        assert_eq!(rfc3339(1_767_225_600_u64), "2026-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_767_225_600_i64), "2026-01-01T00:00:00Z");
        for late in [LAST, LAST + 1, u64::MAX] {
            assert_eq!(rfc3339(late), "9999-12-31T23:59:59Z");
        }
        for early in [0, -1, i64::MIN] {
            assert_eq!(rfc3339(early), "1970-01-01T00:00:00Z");
        }
    }
}
