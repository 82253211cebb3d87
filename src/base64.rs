//! Bytes as standard base64 in JSON, for `#[serde(with = "base64")]`.
//!
//! A leaf: it does not know what the bytes mean.

use std::borrow::Cow;

use base64_simd::STANDARD;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode_to_string(bytes))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    // The error does not quote the text.
    STANDARD
        .decode_to_vec(text.as_bytes())
        .map_err(|_| D::Error::custom("the bytes must be standard base64"))
}
