//! `--range`: a part of a plaintext, as it is written on a command line.

/// The bytes from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteRange {
    pub(super) start: u64,
    /// Not set: to the end of the plaintext.
    end: Option<u64>,
}

impl ByteRange {
    /// The number of its bytes within a plaintext of `len` bytes; `None` if it starts behind the
    /// end.
    pub(super) fn len_within(self, len: u64) -> Option<u64> {
        // An empty range at the end is within the plaintext.
        (self.start <= len).then(|| self.end.unwrap_or(len).min(len).saturating_sub(self.start))
    }
}

const EXPECTED: &str = "must be START-END or START-, such as 1G-2G; END is not included";

/// Reads `1G-2G` or `1G-`: sizes with the suffix `K`, `M`, `G`, `T` or `P`, in powers of 1024.
pub(super) fn parse(text: &str) -> Result<ByteRange, &'static str> {
    let (start, end) = text.split_once('-').ok_or(EXPECTED)?;
    let start = size(start).ok_or(EXPECTED)?;
    let end = if end.is_empty() { None } else { Some(size(end).ok_or(EXPECTED)?) };
    if end.is_some_and(|end| end < start) {
        return Err("END is before START");
    }
    Ok(ByteRange { start, end })
}

fn size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = match unit.strip_suffix("iB").filter(|unit| !unit.is_empty()).unwrap_or(unit) {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        "P" => 1 << 50,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        for (text, start, end) in [
            ("0-0", 0, Some(0)),
            ("7-", 7, None),
            ("1K-1M", 1 << 10, Some(1 << 20)),
            ("1G-2G", 1 << 30, Some(2 << 30)),
            ("1KiB-3TiB", 1 << 10, Some(3 << 40)),
            ("4P-", 4 << 50, None),
        ] {
            assert_eq!(parse(text), Ok(ByteRange { start, end }), "{text}");
        }
        for bad in [
            "", "-", "-1G", "1G", "1-2-3", "1g-2g", "1iB-", "1.5G-", "+1-", "1KB-", "16384P-", "a-",
        ] {
            assert_eq!(parse(bad), Err(EXPECTED), "{bad}");
        }
        assert_eq!(parse("2-1"), Err("END is before START"));
    }

    #[test]
    fn a_range_is_cut_at_the_end_of_the_plaintext() {
        for (text, len, expected) in [
            ("0-", 10, Some(10)),
            ("3-", 10, Some(7)),
            ("3-5", 10, Some(2)),
            ("3-50", 10, Some(7)),
            ("3-3", 10, Some(0)),
            ("10-", 10, Some(0)),
            ("10-20", 10, Some(0)),
            ("11-", 10, None),
            ("11-20", 10, None),
            ("0-", 0, Some(0)),
        ] {
            assert_eq!(parse(text).unwrap().len_within(len), expected, "{text} of {len}");
        }
    }
}
