//! Maps the errors of Cloud KMS to the few errors that a caller can act on.
//!
//! A message of Cloud KMS is passed on only for statuses whose messages contain names and no
//! values: for an invalid argument it may repeat the argument, which may be a KEK. A server that is
//! not Cloud KMS may do so for any status, so each text passes `Response::line` as well.

use std::borrow::Cow;

use serde::Deserialize;

use crate::root::Error;
use crate::root::cloud::attempts::{Failure, Retry};
use crate::root::cloud::http::Response;

/// An error as APIs of Google return it.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    error: Details<'a>,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(borrow, default)]
    status: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
}

/// Which call failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Encrypt,
    Decrypt,
}

/// What a response that is not a success means.
pub(super) fn of(call: Call, response: &Response) -> Failure {
    let Some(Body { error }) = response.read::<Body<'_>>() else {
        return not_kms_but(response.status);
    };
    let (status, message) = (&*error.status, &*error.message);
    let told = if message.is_empty() {
        String::new()
    } else {
        format!("; Google says: {}", response.line(message))
    };
    let code = if status.is_empty() { response.status.to_string() } else { response.line(status) };
    let error = match (status, response.status) {
        ("UNAUTHENTICATED", _) | (_, 401) => {
            Error::Away(format!("{code}: Google does not accept the token: renew the credentials"))
        }
        ("RESOURCE_EXHAUSTED", _) | (_, 429) => {
            let detail = format!("{code}: throttled: the project's quota of Cloud KMS is used up");
            let retry = response.retry_after().map_or(Retry::Soon, Retry::After);
            return Failure { error: Error::Away(detail), retry };
        }
        ("PERMISSION_DENIED", _) | (_, 403) => Error::Denied(format!(
            "{code}: allow {} on this key, to this service account{told}",
            match call {
                Call::Encrypt => "cloudkms.cryptoKeyVersions.useToEncrypt",
                Call::Decrypt => "cloudkms.cryptoKeyVersions.useToDecrypt",
            }
        )),
        ("NOT_FOUND", _) | (_, 404) => {
            Error::Denied(format!("{code}: there is no such key: check key_id{told}"))
        }
        ("FAILED_PRECONDITION", _) => Error::Denied(format!(
            "{code}: {}{told}",
            if message.contains("DISABLED") {
                "the version of the key is disabled: enable it"
            } else if message.contains("DESTROY") {
                "the version of the key is destroyed, or will be: restore it if it is only \
                 scheduled for destruction"
            } else {
                "the key is in a state, or of a kind, that does not allow this"
            }
        )),
        ("INVALID_ARGUMENT", _) if message.to_ascii_lowercase().contains("checksum") => {
            return damaged();
        }
        ("INVALID_ARGUMENT", _) if call == Call::Decrypt && is_about_ciphertext(message) => {
            Error::Wrong("it is damaged, or was made by another key or for another KEK".to_owned())
        }
        (_, 408 | 500..) | ("ABORTED" | "CANCELLED", _) => {
            let detail = format!("{code}: Cloud KMS has an internal error; the call is retried");
            let retry = response.retry_after().map_or(Retry::Soon, Retry::After);
            return Failure { error: Error::Away(detail), retry };
        }
        _ => Error::Denied(format!(
            "{code}: Cloud KMS rejects the call as invalid: check key_id, and that the key is for \
             encryption and decryption"
        )),
    };
    Failure::never(error)
}

/// What crossed the network is not what was sent.
pub(super) fn damaged() -> Failure {
    Failure::soon(
        "the checksum of what Cloud KMS received or sent does not match: a network device \
         changes the traffic"
            .to_owned(),
    )
}

/// A response without the fields that Cloud KMS always returns.
pub(super) fn not_kms() -> Failure {
    not_kms_but(200)
}

fn not_kms_but(status: u16) -> Failure {
    let detail = format!(
        "the server that answered with HTTP status {status} is not Cloud KMS: check the endpoint, \
         and any proxies"
    );
    // The pages of load balancers during an outage.
    if status >= 500 || status == 429 {
        return Failure::soon(detail);
    }
    Failure::never(Error::Away(detail))
}

fn is_about_ciphertext(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("decryption failed") || message.contains("ciphertext")
}
