//! The members of requests: read once into typed values, with the limits of AWS KMS.
//!
//! Members that are not known are ignored, as AWS does. Errors never repeat a value.

use base64_simd::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::json::{Encoded, Text};
use crate::keychain::message::Plaintext;

use super::context::Context;
use super::error::{Code, Error};

#[cfg(test)]
mod tests;

/// The longest `Plaintext` of Encrypt, in bytes.
pub(super) const MAX_PLAINTEXT: usize = 4096;
/// The longest `CiphertextBlob`, in bytes.
pub(super) const MAX_BLOB: usize = 6144;
/// The longest data key and the most random bytes.
pub(super) const MAX_BYTES: usize = 1024;
/// The one algorithm of symmetric keys.
pub(super) const SYMMETRIC: &str = "SYMMETRIC_DEFAULT";

/// The members of Encrypt.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Encrypt<'a> {
    #[serde(borrow)]
    key_id: Option<Text<'a>>,
    #[serde(borrow)]
    plaintext: Option<Encoded<'a>>,
    #[serde(borrow, default)]
    pub(super) encryption_context: Context<'a>,
    #[serde(borrow)]
    encryption_algorithm: Option<Text<'a>>,
    dry_run: Option<bool>,
}

/// The members of Decrypt.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Decrypt<'a> {
    #[serde(borrow)]
    key_id: Option<Text<'a>>,
    #[serde(borrow)]
    ciphertext_blob: Option<Encoded<'a>>,
    #[serde(borrow, default)]
    pub(super) encryption_context: Context<'a>,
    #[serde(borrow)]
    encryption_algorithm: Option<Text<'a>>,
    recipient: Option<IgnoredAny>,
    dry_run: Option<bool>,
}

/// The members of GenerateDataKey and GenerateDataKeyWithoutPlaintext.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GenerateDataKey<'a> {
    #[serde(borrow)]
    key_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) encryption_context: Context<'a>,
    number_of_bytes: Option<u64>,
    #[serde(borrow)]
    key_spec: Option<Text<'a>>,
    recipient: Option<IgnoredAny>,
    dry_run: Option<bool>,
}

/// The members of ReEncrypt.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ReEncrypt<'a> {
    #[serde(borrow)]
    ciphertext_blob: Option<Encoded<'a>>,
    #[serde(borrow)]
    source_key_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) source_encryption_context: Context<'a>,
    #[serde(borrow)]
    source_encryption_algorithm: Option<Text<'a>>,
    #[serde(borrow)]
    destination_key_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) destination_encryption_context: Context<'a>,
    #[serde(borrow)]
    destination_encryption_algorithm: Option<Text<'a>>,
    dry_run: Option<bool>,
}

/// The members of GenerateRandom.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GenerateRandom {
    number_of_bytes: Option<u64>,
    recipient: Option<IgnoredAny>,
    custom_key_store_id: Option<IgnoredAny>,
}

/// The members of operations that look at keys, and of those that are not served.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Look<'a> {
    #[serde(borrow)]
    key_id: Option<Text<'a>>,
    #[serde(borrow)]
    target_key_id: Option<Text<'a>>,
    #[serde(borrow)]
    alias_name: Option<Text<'a>>,
    #[serde(borrow)]
    marker: Option<Text<'a>>,
    limit: Option<u64>,
    #[serde(borrow)]
    policy_name: Option<Text<'a>>,
}

/// Reads the members of a body. An empty body has none.
///
/// # Errors
/// SerializationException.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    let body = if body.is_empty() { b"{}" } else { body };
    let first = body.trim_ascii_start().first();
    // serde would take an array for the members in their order.
    if first == Some(&b'[') {
        return Err(Error::new(Code::Serialization, "the body must be a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = match error.is_data() {
            true => {
                format!("a member has a value of the wrong type at line {line}, column {column}")
            }
            false => format!("the body is not JSON: see line {line}, column {column}"),
        };
        Error::new(Code::Serialization, message)
    })
}

impl Encrypt<'_> {
    pub(super) fn key_id(&self) -> Result<&str, Error> {
        check_algorithm(self.encryption_algorithm.as_ref())?;
        required_key("keyId", self.key_id.as_ref())
    }

    /// The plaintext, decoded straight into the buffer that is sealed in place.
    pub(super) fn plaintext(&self) -> Result<Plaintext, Error> {
        let text = self.plaintext.as_ref().ok_or_else(|| missing("plaintext"))?;
        let text = text.as_bytes();
        let len = STANDARD.decoded_length(text).map_err(|_| not_base64("plaintext"))?;
        check_len("plaintext", len, MAX_PLAINTEXT)?;
        Plaintext::appended(len, |buffer| STANDARD.decode_append(text, buffer))
            .map_err(|_| not_base64("plaintext"))
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run == Some(true)
    }
}

impl Decrypt<'_> {
    /// The key that the caller names, if they name one.
    pub(super) fn key_id(&self) -> Result<Option<&str>, Error> {
        refuse_recipient(self.recipient.as_ref())?;
        check_algorithm(self.encryption_algorithm.as_ref())?;
        optional_key("keyId", self.key_id.as_ref())
    }

    pub(super) fn blob(&self) -> Result<Vec<u8>, Error> {
        blob(self.ciphertext_blob.as_ref())
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run == Some(true)
    }
}

impl GenerateDataKey<'_> {
    pub(super) fn key_id(&self) -> Result<&str, Error> {
        refuse_recipient(self.recipient.as_ref())?;
        required_key("keyId", self.key_id.as_ref())
    }

    /// The size of the data key in bytes.
    pub(super) fn bytes(&self) -> Result<usize, Error> {
        match (self.number_of_bytes, self.key_spec.as_ref().map(|spec| &*spec.0)) {
            (Some(bytes), None) => number_of_bytes(bytes),
            (None, Some("AES_128")) => Ok(16),
            (None, Some("AES_256")) => Ok(32),
            (None, Some(_)) => Err(Error::constraint(
                "keySpec",
                "Member must satisfy enum value set: [AES_256, AES_128]",
            )),
            _ => {
                let message = "Please specify either number of bytes or key spec.";
                Err(Error::new(Code::Validation, message))
            }
        }
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run == Some(true)
    }
}

impl ReEncrypt<'_> {
    pub(super) fn source_key_id(&self) -> Result<Option<&str>, Error> {
        check_algorithm(self.source_encryption_algorithm.as_ref())?;
        optional_key("sourceKeyId", self.source_key_id.as_ref())
    }

    pub(super) fn destination_key_id(&self) -> Result<&str, Error> {
        check_algorithm(self.destination_encryption_algorithm.as_ref())?;
        required_key("destinationKeyId", self.destination_key_id.as_ref())
    }

    pub(super) fn blob(&self) -> Result<Vec<u8>, Error> {
        blob(self.ciphertext_blob.as_ref())
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run == Some(true)
    }
}

impl GenerateRandom {
    pub(super) fn bytes(&self) -> Result<usize, Error> {
        refuse_recipient(self.recipient.as_ref())?;
        if self.custom_key_store_id.is_some() {
            let message = "kms-proxy has no custom key stores";
            return Err(Error::new(Code::UnsupportedOperation, message));
        }
        number_of_bytes(self.number_of_bytes.ok_or_else(|| missing("numberOfBytes"))?)
    }
}

impl Look<'_> {
    pub(super) fn key_id(&self) -> Result<&str, Error> {
        required_key("keyId", self.key_id.as_ref())
    }

    /// The key that the caller names, if they name one.
    pub(super) fn optional_key_id(&self) -> Result<Option<&str>, Error> {
        optional_key("keyId", self.key_id.as_ref())
    }

    /// Every key and alias that the caller names.
    pub(super) fn names(&self) -> Result<Vec<&str>, Error> {
        let names = [
            ("keyId", &self.key_id),
            ("targetKeyId", &self.target_key_id),
            ("aliasName", &self.alias_name),
        ];
        let names = names.map(|(member, name)| optional_key(member, name.as_ref()).transpose());
        names.into_iter().flatten().collect()
    }

    pub(super) fn marker(&self) -> Result<Option<&str>, Error> {
        let marker = self.marker.as_ref().map(|marker| &*marker.0);
        match marker.map(str::len) {
            Some(0) | Some(1025..) => {
                Err(Error::constraint("marker", "Member must have length between 1 and 1024"))
            }
            _ => Ok(marker),
        }
    }

    /// How many items to return: at most `most`, and by default `default`.
    pub(super) fn limit(&self, default: usize, most: usize) -> Result<usize, Error> {
        let Some(limit) = self.limit else { return Ok(default) };
        usize::try_from(limit).ok().filter(|limit| (1..=most).contains(limit)).ok_or_else(|| {
            Error::constraint("limit", &format!("Member must have value between 1 and {most}"))
        })
    }

    pub(super) fn policy_name(&self) -> Option<&str> {
        self.policy_name.as_ref().map(|name| &*name.0)
    }
}

fn required_key<'a>(member: &'static str, key: Option<&'a Text<'_>>) -> Result<&'a str, Error> {
    optional_key(member, key)?.ok_or_else(|| missing(member))
}

fn optional_key<'a>(
    member: &'static str,
    key: Option<&'a Text<'_>>,
) -> Result<Option<&'a str>, Error> {
    let key = key.map(|key| &*key.0);
    match key.map(str::len) {
        Some(0) | Some(2049..) => {
            Err(Error::constraint(member, "Member must have length between 1 and 2048"))
        }
        _ => Ok(key),
    }
}

fn blob(text: Option<&Encoded<'_>>) -> Result<Vec<u8>, Error> {
    let text = text.ok_or_else(|| missing("ciphertextBlob"))?.as_bytes();
    let len = STANDARD.decoded_length(text).map_err(|_| not_base64("ciphertextBlob"))?;
    check_len("ciphertextBlob", len, MAX_BLOB)?;
    STANDARD.decode_to_vec(text).map_err(|_| not_base64("ciphertextBlob"))
}

fn number_of_bytes(bytes: u64) -> Result<usize, Error> {
    usize::try_from(bytes).ok().filter(|bytes| (1..=MAX_BYTES).contains(bytes)).ok_or_else(|| {
        Error::constraint("numberOfBytes", "Member must have value between 1 and 1024")
    })
}

fn check_len(member: &'static str, len: usize, most: usize) -> Result<(), Error> {
    match len {
        0 => Err(Error::constraint(member, "Member must have length greater than or equal to 1")),
        len if len > most => Err(Error::constraint(
            member,
            &format!("Member must have length less than or equal to {most}"),
        )),
        _ => Ok(()),
    }
}

fn check_algorithm(algorithm: Option<&Text<'_>>) -> Result<(), Error> {
    if algorithm.is_none_or(|algorithm| algorithm.0 == SYMMETRIC) {
        return Ok(());
    }
    let message = "a key of kms-proxy is symmetric: EncryptionAlgorithm must be SYMMETRIC_DEFAULT";
    Err(Error::new(Code::InvalidKeyUsage, message))
}

fn refuse_recipient(recipient: Option<&IgnoredAny>) -> Result<(), Error> {
    let message = "kms-proxy encrypts no response for a Nitro enclave: Recipient is not supported";
    recipient.map_or(Ok(()), |_| Err(Error::new(Code::UnsupportedOperation, message)))
}

fn missing(member: &'static str) -> Error {
    let message = format!(
        "1 validation error detected: Value null at '{member}' failed to satisfy constraint: \
         Member must not be null"
    );
    Error::new(Code::Validation, message)
}

fn not_base64(member: &'static str) -> Error {
    Error::new(Code::Serialization, format!("{member} must be base64"))
}
