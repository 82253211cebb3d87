//! Counts with singular and plural nouns.

/// `1 KEK`, `2 KEKs`.
pub(super) fn count(number: impl TryInto<u64>, noun: &str) -> String {
    // A number that does not fit needs the plural.
    let number = number.try_into().unwrap_or(u64::MAX);
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_singular() {
        let said: Vec<_> = [0_usize, 1, 2].map(|number| count(number, "KEK")).into();
        assert_eq!(said, ["0 KEKs", "1 KEK", "2 KEKs"]);
    }
}
