//! How people write quantities in a configuration: durations as `90d` or `1h 30m`, sizes as `4MiB`.
//!
//! A leaf, for `#[serde(with = "...")]` and for flags.

use std::time::Duration;

/// Durations, as `humantime` reads them: `10s`, `90d`, `1h 30m`.
pub mod duration {
    use super::Duration;
    use serde::{Deserialize, Deserializer, de::Error};

    /// Reads a duration.
    ///
    /// # Errors
    /// When it is no text, or no duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|_| D::Error::custom("a duration is written like 10s, 5m, 24h or 90d"))
    }
}

/// Sizes in bytes: a number, or one with `KiB`, `MiB` or `GiB` behind it.
pub mod size {
    use serde::{Deserialize, Deserializer, de::Error};

    /// Reads a size.
    ///
    /// # Errors
    /// When it is no size, or more than this machine can address.
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
        size.ok_or_else(|| D::Error::custom("a size is written like 4096, 64KiB or 4MiB"))
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

#[cfg(test)]
mod tests {
    use super::size::parse;

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
