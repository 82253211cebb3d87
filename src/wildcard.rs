//! Patterns in which `*` matches any characters, including none.
//!
//! A leaf: it does not know what the names are.

/// Whether `text` matches `pattern`. Linear in practice for any input: each piece is searched once.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        match left.find(piece) {
            Some(at) => left = left.get(at + piece.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_nothing_else_is_special() {
        for (pattern, good, bad) in [
            ("orders", &["orders"][..], &["orders-1", "order", "Orders", "", "xorders"][..]),
            ("orders-*", &["orders-", "orders-eu", "orders-*"], &["orders", "xorders-1", ""]),
            ("*", &["a", "", "not a name"], &[]),
            ("*-eu", &["orders-eu", "-eu"], &["orders-us", "eu", "orders-eu-1"]),
            ("a*b*c", &["abc", "axbxc", "abbc", "abcbc"], &["ac", "acb", "ab", "xabc", "abcx"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("a.b", &["a.b"], &["axb"]),
            ("**a**", &["a", "xay"], &["", "b"]),
        ] {
            for name in good {
                assert!(matches(pattern, name), "{pattern} {name}");
            }
            for name in bad {
                assert!(!matches(pattern, name), "{pattern} {name}");
            }
        }
    }
}
