//! Describes why text is not standard base64: a reason and a position, never a character, since the
//! text may be a secret.

/// Why `text` is not standard base64 with padding. Positions count characters from 1.
pub(super) fn fault(text: &[u8]) -> String {
    let end = text.iter().position(|&byte| byte == b'=').unwrap_or(text.len());
    let (data, padding) = text.split_at(end);
    if let Some(at) = data.iter().position(|&byte| !is_standard(byte)) {
        return describe(data.get(at).copied().unwrap_or_default(), at + 1);
    }
    if let Some(at) = padding.iter().position(|&byte| byte != b'=') {
        return match padding.get(at).copied() {
            Some(byte) if !is_standard(byte) => describe(byte, end + at + 1),
            _ => format!("padding (=) is at position {}, before the end", end + 1),
        };
    }
    match (data.len() % 4, padding.len()) {
        (1, _) => format!("{} characters before the padding: it is cut off", data.len()),
        (2 | 3, 0) => "the padding (=) at its end is missing".to_owned(),
        (2, 2) | (3, 1) | (0, 0) => {
            "the bits after the last byte are not zero: it is cut off or was changed".to_owned()
        }
        _ => "there is the wrong number of padding characters (=) at its end".to_owned(),
    }
}

fn is_standard(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')
}

/// What is wrong with a byte that the alphabet does not have.
fn describe(byte: u8, position: usize) -> String {
    match byte {
        b'\r' | b'\n' => format!("there is a line break at position {position}"),
        b' ' | b'\t' => format!("there is white space at position {position}"),
        b'-' | b'_' => format!(
            "position {position} has a character of the URL-safe alphabet; use the standard one, \
             with + and /"
        ),
        _ => format!("position {position} has a character that base64 does not have"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_its_reason_and_its_place() {
        for (text, reason) in [
            ("aGVsbG8", "the padding (=) at its end is missing"),
            ("aGVsbA", "the padding (=) at its end is missing"),
            ("aGVsbG8==", "the wrong number of padding characters"),
            ("aGVsbA=", "the wrong number of padding characters"),
            ("aGVs=", "the wrong number of padding characters"),
            ("aGVs====", "the wrong number of padding characters"),
            ("=", "the wrong number of padding characters"),
            ("a", "1 characters before the padding: it is cut off"),
            ("aGVsb===", "5 characters before the padding: it is cut off"),
            ("aGVsbG9=", "the bits after the last byte are not zero"),
            ("aGVsbB==", "the bits after the last byte are not zero"),
            ("-GVsbG8=", "position 1 has a character of the URL-safe alphabet"),
            ("aGVsbG_=", "position 7 has a character of the URL-safe alphabet"),
            ("aGVs\nbG8=", "a line break at position 5"),
            ("aGVs\r\nbG8=\r\n", "a line break at position 5"),
            ("aGVsbG8=\n", "a line break at position 9"),
            ("aGVsbG8= ", "white space at position 9"),
            ("\taGVsbG8=", "white space at position 1"),
            ("aGVsbG8=aGVsbG8=", "padding (=) is at position 8, before the end"),
            ("kp:AQ==", "position 3 has a character that base64 does not have"),
            ("aGVsb\u{e9}8=", "position 6 has a character that base64 does not have"),
        ] {
            assert!(base64_simd::STANDARD.decode_to_vec(text).is_err(), "{text}");
            let fault = fault(text.as_bytes());
            assert!(fault.contains(reason), "{text:?}: {fault}");
        }
    }
}
