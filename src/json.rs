//! JSON of calls on data: strings that are borrowed from a body, and small objects that are written
//! into one buffer.
//!
//! A leaf: it knows no call. Its errors never quote a value.

use std::borrow::Cow;
use std::fmt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

mod object;

pub(crate) use object::Object;

/// A string that is borrowed from the JSON unless it has escapes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A base64 string that is not decoded yet. UTF-8 is not checked, since base64 is ASCII.
pub(crate) struct Encoded<'a>(Cow<'a, [u8]>);

impl Encoded<'_> {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Encoded<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// JSON has no bytes: they come from a string.
        struct Bytes;

        impl<'de> Visitor<'de> for Bytes {
            type Value = Encoded<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(Encoded(Cow::Borrowed(bytes)))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(Encoded(Cow::Owned(bytes.to_vec())))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}
