//! The target of JSON bodies: the calls on data accept exactly the objects that they describe.

#![allow(clippy::indexing_slicing, reason = "a failure is the result")]

use serde::Deserialize;
use serde_json::Value;

use crate::fuzzing::{members, only};
use crate::json::{Encoded, Text};

use super::body;
use super::data_call::DataCall;
use super::decrypt::DecryptRequest;
use super::encrypt::EncryptRequest;
use super::rewrap::RewrapRequest;

/// The type of a member.
#[derive(Clone, Copy)]
enum Member {
    Text,
    TextOrNull,
    Flag,
}

use Member::{Flag, Text as Required, TextOrNull};

/// A body of any of these calls.
pub fn data_call(json: &[u8]) {
    same::<EncryptRequest<'_>>(
        json,
        &[("plaintext", Required), ("aad", TextOrNull), ("chain", TextOrNull)],
    );
    same::<DecryptRequest<'_>>(
        json,
        &[
            ("ciphertext", Required),
            ("aad", TextOrNull),
            ("chain", TextOrNull),
            ("stream_key", Flag),
        ],
    );
    same::<RewrapRequest<'_>>(
        json,
        &[("ciphertext", Required), ("chain", TextOrNull), ("inline", Flag)],
    );
    texts(json);
}

/// Compares what is read with a reader of JSON that knows no types.
fn same<'a, T: DataCall + Deserialize<'a>>(json: &'a [u8], known: &[(&str, Member)]) {
    let parsed = body::parse::<T>(json);
    let Some(members) = members(json) else {
        // Strings of base64 may have what JSON forbids: they are refused when they are decoded.
        let lossy = String::from_utf8_lossy(json);
        let is_forbidden = |c: char| c.is_control() || matches!(c, '\u{fffd}' | '\\');
        assert!(parsed.is_err() || lossy.contains(is_forbidden));
        return;
    };
    let is_known = |(name, value): &(String, Value)| {
        let member = known.iter().find(|(known, _)| known == name);
        only(&members, name).is_some()
            && member.is_some_and(|(_, member)| match member {
                Required => value.is_string(),
                TextOrNull => value.is_string() || value.is_null(),
                Flag => value.is_boolean(),
            })
    };
    let is_whole = known.iter().all(|(name, member)| {
        !matches!(member, Required) || only(&members, name).is_some_and(Value::is_string)
    });
    assert_eq!(parsed.is_ok(), is_whole && members.iter().all(is_known));
    if let Ok(call) = parsed {
        assert_eq!(call.chain(), only(&members, "chain").and_then(Value::as_str));
    }
}

/// Strings are what JSON says, with and without escapes.
fn texts(json: &[u8]) {
    let Ok(text) = serde_json::from_slice::<String>(json) else { return };
    let encoded: Result<Encoded<'_>, _> = serde_json::from_slice(json);
    assert!(encoded.is_ok_and(|encoded| encoded.as_bytes() == text.as_bytes()));
    let read: Result<Text<'_>, _> = serde_json::from_slice(json);
    assert!(read.is_ok_and(|read| read.as_str() == text));
    let mut written = Vec::new();
    crate::json::Object::start(&mut written, 0).text("text", &text).end();
    let written = members(&written);
    assert_eq!(written, Some(vec![("text".to_owned(), Value::String(text))]));
}
