//! The target of requests in the form of AWS KMS: members are what JSON says, each of them once;
//! blobs, ARNs and operations are read as they are written.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure is the result")]

use base64_simd::STANDARD;
use serde_json::Value;

use crate::fuzzing::{members, only};

use super::arn::Arn;
use super::blob::{self, Blob};
use super::operation::{Operation, Served};
use super::request::{
    Decrypt, Encrypt, GenerateDataKey, GenerateRandom, Look, MAX_BLOB, MAX_BYTES, MAX_PLAINTEXT,
    ReEncrypt, parse,
};

/// A body of any operation, a blob, an ARN, or a target.
pub fn aws_request(bytes: &[u8]) {
    if let Blob::Own { chain, envelope } = Blob::parse(bytes) {
        assert_eq!(blob::write(&chain, envelope), bytes);
    }
    if let Ok(text) = str::from_utf8(bytes) {
        names(text);
    }
    let members = members(bytes);
    if let Ok(encrypt) = parse::<Encrypt<'_>>(bytes) {
        text(members.as_deref(), "KeyId", encrypt.key_id().ok());
        let plaintext = encrypt.plaintext();
        if let (Some(members), Ok(_)) = (&members, plaintext) {
            let plaintext =
                STANDARD.decode_to_vec(only(members, "Plaintext").unwrap().as_str().unwrap());
            assert!((1..=MAX_PLAINTEXT).contains(&plaintext.unwrap().len()));
        }
        context(members.as_deref(), &encrypt.encryption_context);
    }
    if let Ok(decrypt) = parse::<Decrypt<'_>>(bytes) {
        text(members.as_deref(), "KeyId", decrypt.key_id().ok().flatten());
        bytes_of(members.as_deref(), decrypt.blob().ok());
        context(members.as_deref(), &decrypt.encryption_context);
        assert!(members.is_none() || !decrypt.is_dry_run() || is_true(members.as_deref()));
    }
    if let Ok(again) = parse::<ReEncrypt<'_>>(bytes) {
        text(members.as_deref(), "SourceKeyId", again.source_key_id().ok().flatten());
        text(members.as_deref(), "DestinationKeyId", again.destination_key_id().ok());
        bytes_of(members.as_deref(), again.blob().ok());
    }
    if let Ok(key) = parse::<GenerateDataKey<'_>>(bytes) {
        text(members.as_deref(), "KeyId", key.key_id().ok());
        assert!(key.bytes().map_or(1, |len| len) - 1 < MAX_BYTES);
    }
    if let Ok(random) = parse::<GenerateRandom>(bytes) {
        assert!(random.bytes().map_or(1, |len| len) - 1 < MAX_BYTES);
    }
    if let Ok(look) = parse::<Look<'_>>(bytes) {
        text(members.as_deref(), "KeyId", look.key_id().ok());
        text(members.as_deref(), "Marker", look.marker().ok().flatten());
        assert!((1..=1000).contains(&look.limit(100, 1000).unwrap_or(1)));
        assert!(look.names().map_or(0, |names| names.len()) <= 3);
    }
}

fn names(text: &str) {
    if let Some(arn) = Arn::parse(text) {
        assert_eq!(arn.as_str(), text);
        assert!(text.contains(&format!(":kms:{}:", arn.region())));
        assert!(arn.key().is_none_or(|key| text.ends_with(&format!(":key/{key}"))));
    }
    let named = text.strip_prefix("TrentService.");
    match Operation::of_target(text) {
        Some(Operation::Served(served)) => assert_eq!(Some(served.name()), named),
        Some(Operation::Other(other)) => assert_eq!(Some(other.name), named),
        None => assert!(Served::ALL.iter().all(|served| named != Some(served.name()))),
    }
}

/// A member that was read is the one in the body, which has it once.
fn text(members: Option<&[(String, Value)]>, name: &str, read: Option<&str>) {
    let (Some(members), Some(read)) = (members, read) else { return };
    assert_eq!(only(members, name).and_then(Value::as_str), Some(read));
}

fn bytes_of(members: Option<&[(String, Value)]>, read: Option<Vec<u8>>) {
    let (Some(members), Some(read)) = (members, read) else { return };
    let text = only(members, "CiphertextBlob").and_then(Value::as_str);
    assert_eq!(text, Some(&*STANDARD.encode_to_string(&read)));
    assert!((1..=MAX_BLOB).contains(&read.len()));
}

fn context(members: Option<&[(String, Value)]>, read: &super::context::Context<'_>) {
    let Some(members) = members else { return };
    let given = only(members, "EncryptionContext").and_then(Value::as_object);
    let pairs = read.pairs();
    assert_eq!(given.map_or(0, serde_json::Map::len), pairs.len());
    for (name, value) in pairs {
        assert_eq!(given.unwrap()[&**name], **value);
    }
}

fn is_true(members: Option<&[(String, Value)]>) -> bool {
    members.and_then(|members| only(members, "DryRun")) == Some(&Value::Bool(true))
}
