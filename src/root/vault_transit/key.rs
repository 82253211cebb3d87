//! A key in a transit engine: the paths and bodies of its API, and what its refusals mean.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::root::Error;

use super::client::Answer;
use super::config::{Config, trimmed};
use super::wrapped::Wrapped;

/// The mount and the name of a key.
pub(super) struct Key {
    mount: String,
    name: String,
}

impl Key {
    pub(super) fn new(config: &Config) -> Self {
        Self { mount: trimmed(&config.mount), name: config.key.clone() }
    }

    /// The path of `operation`.
    pub(super) fn path(&self, operation: &str) -> String {
        format!("{}/{operation}/{}", self.mount, self.name)
    }

    /// What a refused decrypt means for the wrap, or for the key.
    pub(super) fn unopened(&self, answer: &Answer, wrapped: Wrapped<'_>) -> Error {
        let Some(reasons) = answer.reasons().filter(|_| answer.status.as_u16() == 400) else {
            return self.refused(answer);
        };
        let version = wrapped.version;
        if reasons.tell("disallowed by policy") {
            return Error::Wrong(format!(
                "version {version} of the key is below its min_decryption_version"
            ));
        }
        if reasons.tell("version is too new") {
            return Error::Wrong(format!("the key has no version {version}"));
        }
        if reasons.tell("invalid ciphertext") || reasons.tell("message authentication failed") {
            return Error::Wrong(
                "the key is another one, or the wrap is damaged or was made for another KEK"
                    .to_owned(),
            );
        }
        self.refused(answer)
    }

    /// What a refusal that is not about a wrap means for the key.
    pub(super) fn refused(&self, answer: &Answer) -> Error {
        let status = answer.status.as_u16();
        let Some(reasons) = answer.reasons() else {
            return Error::Away(format!("another server answers there with {status}"));
        };
        Error::Denied(if reasons.tell("no handler for route") || reasons.tell("unsupported path") {
            format!("there is no transit engine at {}", self.mount)
        } else if (status == 404 && reasons.is_empty())
            || reasons.tell("encryption key not found")
            || reasons.tell("soft deleted")
        {
            self.is_gone()
        } else if reasons.tell("for key derivation") {
            self.is_derived()
        } else if reasons.tell("non-AEAD") || reasons.tell("not supported") {
            format!("the key {} is not an AEAD key; create one of type aes256-gcm96", self.name)
        } else {
            format!("it answers {status}: {reasons}")
        })
    }

    pub(super) fn is_gone(&self) -> String {
        format!("the transit engine at {} has no key {}", self.mount, self.name)
    }

    pub(super) fn is_derived(&self) -> String {
        format!("the key {} was made for key derivation; make one without", self.name)
    }
}

#[derive(Serialize)]
pub(super) struct Plaintext<'a> {
    pub(super) plaintext: &'a str,
    pub(super) associated_data: &'a str,
}

#[derive(Serialize)]
pub(super) struct Ciphertext<'a> {
    pub(super) ciphertext: &'a str,
    pub(super) associated_data: &'a str,
}

#[derive(Deserialize)]
pub(super) struct Data<T> {
    pub(super) data: T,
}

#[derive(Deserialize)]
pub(super) struct Encrypted<'a> {
    #[serde(borrow)]
    pub(super) ciphertext: Cow<'a, str>,
}

/// The text borrows from the response's buffer, which is wiped: base64 needs no escapes.
#[derive(Deserialize)]
pub(super) struct Decrypted<'a> {
    pub(super) plaintext: &'a str,
}

/// The attributes of a key.
#[derive(Deserialize)]
pub(super) struct Description {
    pub(super) latest_version: u32,
    #[serde(default)]
    pub(super) derived: bool,
    #[serde(default)]
    pub(super) soft_deleted: bool,
}
