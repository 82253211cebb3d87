//! Numbers of things, as people say them.

/// `1 KEK`, `2 KEKs`.
pub(super) fn count(number: impl TryInto<u64>, noun: &str) -> String {
    // What does not fit is more than one.
    let number = number.try_into().unwrap_or(u64::MAX);
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_one_thing_and_all_other_numbers_are_things() {
        let said: Vec<_> = [0_usize, 1, 2].map(|number| count(number, "KEK")).into();
        assert_eq!(said, ["0 KEKs", "1 KEK", "2 KEKs"]);
    }
}
