//! Human-readable quantities in a configuration: durations as `90d` or `1h 30m`, sizes as `4MiB`.
//!
//! A leaf, for `#[serde(with = "...")]` and for flags.

use std::time::Duration;

/// Durations, as `humantime` reads them: `10s`, `90d`, `1h 30m`.
pub mod duration {
    use super::Duration;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes a duration as [`format()`] does.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(*duration))
    }

    /// Reads a duration.
    ///
    /// # Errors
    /// When it is not text, or not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        String::deserialize(deserializer)
            .ok()
            .and_then(|text| humantime::parse_duration(&text).ok())
            .ok_or_else(|| D::Error::custom("a duration must be like 10s, 5m, 24h or 90d"))
    }

    /// `duration` in the largest unit that divides it: `90d`, `36h`, `10s`.
    #[must_use]
    pub fn format(duration: Duration) -> String {
        let nanos = duration.as_nanos();
        let (unit, size) = UNITS
            .into_iter()
            .find(|(_, size)| nanos.is_multiple_of(*size) && nanos > 0)
            .unwrap_or(("s", SECOND));
        format!("{}{unit}", nanos / size)
    }

    /// `duration` in whole milliseconds, or in seconds with one digit from one second on: for texts
    /// about a time that was measured or computed.
    #[must_use]
    pub fn rounded(duration: Duration) -> String {
        let millis = duration.as_millis();
        if millis < 1_000 {
            return format!("{millis}ms");
        }
        match (millis / 1_000, millis % 1_000 / 100) {
            (seconds, 0) => format!("{seconds}s"),
            (seconds, tenths) => format!("{seconds}.{tenths}s"),
        }
    }

    const SECOND: u128 = 1_000_000_000;

    /// Units and their nanoseconds, the largest first; the last one divides everything.
    const UNITS: [(&str, u128); 7] = [
        ("d", 86_400 * SECOND),
        ("h", 3_600 * SECOND),
        ("m", 60 * SECOND),
        ("s", SECOND),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];
}

/// Sizes in bytes: a number, optionally with the suffix `KiB`, `MiB` or `GiB`.
pub mod size {
    use serde::{Deserialize, Deserializer, de::Error};

    /// Reads a size.
    ///
    /// # Errors
    /// When it is not a size, or more than this machine can address.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Size {
            Bytes(usize),
            Text(String),
        }
        let size = match Size::deserialize(deserializer) {
            Ok(Size::Bytes(bytes)) => Some(bytes),
            Ok(Size::Text(text)) => parse(&text),
            Err(_) => None,
        };
        size.ok_or_else(|| D::Error::custom("a size must be like 4096, 64KiB or 4MiB"))
    }

    /// Reads a size that may be left out.
    ///
    /// # Errors
    /// When it is not a size, or more than this machine can address.
    pub fn deserialize_some<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<usize>, D::Error> {
        deserialize(deserializer).map(Some)
    }

    /// The bytes that `text` means.
    #[must_use]
    pub fn parse(text: &str) -> Option<usize> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits)?;
        let factor = match unit.trim_start() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.parse::<usize>().ok()?.checked_mul(factor)
    }
}

/// Lists of words, also as one comma-separated text: this is how lists in tables with a `kind` come
/// from the environment.
pub mod list {
    use serde::{Deserialize, Deserializer};

    /// Reads a list.
    ///
    /// # Errors
    /// When it is neither a list of texts nor text.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<String>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a list of texts")]
        enum List {
            Words(Vec<String>),
            Text(String),
        }
        Ok(match List::deserialize(deserializer)? {
            List::Words(words) => words,
            List::Text(text) => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                words.map(str::to_owned).collect()
            }
        })
    }
}

/// Whole numbers in tables with a `kind`: from the environment they come as text.
pub mod number {
    use serde::{Deserialize, Deserializer, de::Error};

    /// Reads a number, or the text of one.
    ///
    /// # Errors
    /// When it is not a number from 0 to 2^32 - 1.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Number {
            Number(u32),
            Text(String),
        }
        let number = match Number::deserialize(deserializer) {
            Ok(Number::Number(number)) => Some(number),
            Ok(Number::Text(text)) => text.trim().parse().ok(),
            Err(_) => None,
        };
        number.ok_or_else(|| D::Error::custom("expected a whole number"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::duration;
    use super::size::parse;

    #[test]
    fn durations_are_written_as_they_are_read() {
        for (seconds, text) in
            [(0, "0s"), (10, "10s"), (90, "90s"), (300, "5m"), (129_600, "36h"), (7_776_000, "90d")]
        {
            assert_eq!(duration::format(Duration::from_secs(seconds)), text);
            assert_eq!(humantime::parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        let odd = Duration::from_nanos(1_500_000_001);
        assert_eq!(humantime::parse_duration(&duration::format(odd)), Ok(odd));
    }

    #[test]
    fn measured_durations_are_rounded() {
        for (nanos, text) in [
            (873_974_421, "873ms"),
            (200_000_000, "200ms"),
            (999, "0ms"),
            (1_000_000_000, "1s"),
            (4_199_999_999, "4.1s"),
            (90_050_000_000, "90s"),
        ] {
            assert_eq!(duration::rounded(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn sizes_are_whole_numbers_with_a_binary_unit() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64KiB", 65_536), ("4 MiB", 4 << 20), ("1GiB", 1 << 30)]
        {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for bad in ["", "MiB", "4MB", "4mib", "-1", "1.5MiB", "99999999999GiB"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
