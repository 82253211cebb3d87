//! The encryption context of AWS KMS as the AAD of an envelope. `docs/format.md` specifies it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::envelope::MAX_AAD_LEN;
use crate::json::Text;

/// What every AAD of an encryption context starts with.
const PREFIX: &[u8] = b"kms-proxy aws context v1";

/// An encryption context: pairs of text, sorted by the bytes of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Context<'a>(BTreeMap<Cow<'a, str>, Cow<'a, str>>);

/// The context is longer than an AAD can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the encryption context is longer than 64 KiB")]
pub struct TooLong;

/// The AAD of the encryption context with these pairs. Of two pairs with one key, the last counts.
///
/// # Errors
/// [`TooLong`] for a key or value of more than 65,535 bytes, and an AAD of more than 64 KiB.
pub fn context_aad<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<u8>, TooLong> {
    let pairs = pairs.into_iter().map(|(key, value)| (key.into(), value.into()));
    Context(pairs.collect()).to_aad()
}

impl Context<'_> {
    /// The AAD. Two contexts have the same one only if they are equal.
    ///
    /// # Errors
    /// [`TooLong`] for a key or value of more than 65,535 bytes, and an AAD of more than 64 KiB.
    pub(super) fn to_aad(&self) -> Result<Vec<u8>, TooLong> {
        let texts = || self.0.iter().flat_map(|(key, value)| [key.as_bytes(), value.as_bytes()]);
        let len = texts().fold(PREFIX.len(), |len, text| len.saturating_add(2 + text.len()));
        if len > MAX_AAD_LEN {
            return Err(TooLong);
        }
        let mut aad = Vec::with_capacity(len);
        aad.extend_from_slice(PREFIX);
        for text in texts() {
            let len = u16::try_from(text.len()).map_err(|_| TooLong)?;
            aad.extend_from_slice(&len.to_be_bytes());
            aad.extend_from_slice(text);
        }
        Ok(aad)
    }

    /// The pairs, for a call of KMS.
    pub(super) fn pairs(&self) -> &BTreeMap<Cow<'_, str>, Cow<'_, str>> {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Context<'a> {
    /// A missing context, `null` and `{}` are equal.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = Option::<BTreeMap<Text<'a>, Text<'a>>>::deserialize(deserializer)?;
        let pairs = pairs.unwrap_or_default().into_iter();
        Ok(Self(pairs.map(|(Text(key), Text(value))| (key, value)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context(json: &str) -> Context<'_> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_aad_is_the_prefix_and_the_sorted_pairs_with_their_lengths() {
        let aad = context(r#"{"b":"","a":"row 7","\u00e4":"x"}"#).to_aad().unwrap();
        let pairs = b"\0\x01a\0\x05row 7\0\x01b\0\0\0\x02\xc3\xa4\0\x01x";
        assert_eq!(aad, [&b"kms-proxy aws context v1"[..], pairs].concat());
    }

    #[test]
    fn the_aad_of_pairs_is_that_of_the_object_with_them() {
        let aad = context(r#"{"b":"","a":"row 7"}"#).to_aad();
        assert_eq!(context_aad([("a", "row 7"), ("b", "")]), aad);
        assert_eq!(context_aad([("b", ""), ("a", "x"), ("a", "row 7")]), aad);
        assert_eq!(context_aad([]), Context::default().to_aad());
    }

    #[test]
    fn a_missing_and_an_empty_context_are_equal() {
        for json in ["null", "{}"] {
            assert_eq!(context(json), Context::default());
        }
        assert_eq!(Context::default().to_aad().unwrap(), PREFIX);
    }

    #[test]
    fn what_is_not_text_is_no_context() {
        for json in [r#"{"a":1}"#, r#"{"a":null}"#, "[]", r#""a""#, r#"{"a":{}}"#] {
            assert!(serde_json::from_str::<Context<'_>>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_context_that_no_aad_can_hold_is_refused() {
        let room = MAX_AAD_LEN - PREFIX.len() - 5;
        for (len, fits) in [(room, true), (room + 1, false), (65_535, false), (65_536, false)] {
            let json = format!(r#"{{"a":"{}"}}"#, "x".repeat(len));
            assert_eq!(context(&json).to_aad().is_ok(), fits, "{len}");
        }
    }

    fn pairs() -> impl Strategy<Value = BTreeMap<String, String>> {
        // Bytes that could be taken for lengths, and few letters, so that contexts nearly coincide.
        let text =
            proptest::collection::vec(prop_oneof![Just('\0'), Just('\x01'), Just('a')], 0..4);
        let text = text.prop_map(|chars| chars.into_iter().collect::<String>());
        proptest::collection::btree_map(text.clone(), text, 0..4)
    }

    proptest! {
        #[test]
        fn the_encoding_is_injective(one in pairs(), other in pairs()) {
            let aad = |pairs: &BTreeMap<String, String>| {
                context(&serde_json::to_string(pairs).unwrap()).to_aad().unwrap()
            };
            prop_assert_eq!(aad(&one) == aad(&other), one == other);
        }

        #[test]
        fn the_order_of_the_pairs_does_not_matter(given in pairs()) {
            let pair = |(key, value): (&String, &String)| {
                let [key, value] = [key, value].map(|text| serde_json::to_string(text).unwrap());
                format!("{key}:{value}")
            };
            let forward: Vec<_> = given.iter().map(pair).collect();
            let backward: Vec<_> = given.iter().rev().map(pair).collect();
            let [forward, backward] =
                [forward, backward].map(|pairs| format!("{{{}}}", pairs.join(",")));
            prop_assert_eq!(context(&forward).to_aad(), context(&backward).to_aad());
        }
    }
}
