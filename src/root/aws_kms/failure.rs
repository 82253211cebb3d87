//! Maps the SDK's errors and KMS's codes to the few errors that a caller can act on.
//!
//! Codes are compared as text, since the SDK models only some of them. Messages of KMS are passed
//! on only for codes whose messages are known to contain no secret: for a bad signature, KMS
//! repeats the session token. A server that is not KMS may repeat one for any code, so each text
//! passes `Secrets::line` as well.

use std::error::Error as StdError;

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::operation::decrypt::DecryptError;
use aws_sdk_kms::operation::encrypt::EncryptError;

use crate::error_chain;

use super::super::Error;
use super::super::echo::{self, Secrets};

/// Why Encrypt failed. It never fails for a wrap. No text repeats one of `sent`.
pub(super) fn of_wrap(error: &SdkError<EncryptError, HttpResponse>, sent: &Secrets) -> Error {
    match of(error, sent) {
        Error::Wrong(detail) => Error::Denied(detail),
        other => other,
    }
}

/// Why Decrypt failed. No text repeats one of `sent`.
pub(super) fn of_unwrap(error: &SdkError<DecryptError, HttpResponse>, sent: &Secrets) -> Error {
    of(error, sent)
}

/// There is no region, so there is no endpoint to call.
pub(super) fn no_region() -> Error {
    Error::Away(
        "no region is known: set the root's region, or AWS_REGION, or make key_id an ARN"
            .to_owned(),
    )
}

/// A response without the fields that KMS always returns.
pub(super) fn not_kms() -> Error {
    not_kms_but(200)
}

fn of<E>(error: &SdkError<E, HttpResponse>, sent: &Secrets) -> Error
where
    E: StdError + ProvideErrorMetadata + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let (code, message) = (answer.err().code(), answer.err().message());
            answered(code, message, answer.raw().status().as_u16(), error.request_id(), sent)
        }
        SdkError::TimeoutError(_) => Error::Away(
            "AWS KMS, or the source of the credentials, did not respond in time; timeout bounds \
                both"
                .to_owned(),
        ),
        // The SDK gets credentials as part of connecting; only errors of the connection itself have
        // a kind.
        SdkError::DispatchFailure(failure)
            if failure.is_other() && failure.as_other().is_none() =>
        {
            Error::Away(format!(
                "no credentials for AWS KMS: {}; give them in the environment (AWS_*), a profile, \
                 or a role of the machine",
                chain(error, sent)
            ))
        }
        SdkError::ResponseError(response) => not_kms_but(response.raw().status().as_u16()),
        _ => Error::Away(format!("AWS KMS can't be reached: {}", chain(error, sent))),
    }
}

/// What a code means.
fn answered(
    code: Option<&str>,
    message: Option<&str>,
    status: u16,
    request_id: Option<&str>,
    sent: &Secrets,
) -> Error {
    let line = |text: &str| sent.line(text);
    let Some(code) = code.filter(|code| !code.is_empty()) else {
        return not_kms_but(status);
    };
    let (class, advice, tells) = meaning(code, message.unwrap_or_default(), status);
    let request = request_id.map(|id| format!(" (request {})", line(id))).unwrap_or_default();
    let words = match message.filter(|message| tells && !message.is_empty()) {
        Some(message) => format!("; AWS says: {}", line(message)),
        None => String::new(),
    };
    // Some codes are as long as a KEK in base64.
    let is_code = code.ends_with("Exception") && !sent.are_in(code);
    let code = if is_code { echo::line(code) } else { line(code) };
    class(format!("{code}{request}: {advice}{words}"))
}

/// The kind of error, what to do, and whether the message of KMS may be passed on.
fn meaning(code: &str, message: &str, status: u16) -> (fn(String) -> Error, &'static str, bool) {
    let is_clock = || message.contains("expired") || message.contains("not yet current");
    match code {
        "ThrottlingException"
        | "Throttling"
        | "LimitExceededException"
        | "LimitExceeded"
        | "RequestLimitExceeded"
        | "TooManyRequestsException" => {
            (Error::Away, "throttled: the account's quota in this region is used up", false)
        }
        "KMSInternalException" | "DependencyTimeoutException" | "KeyUnavailableException" => {
            (Error::Away, "AWS KMS has an internal error; the call is retried", false)
        }
        "RequestExpired" | "RequestExpiredException" | "RequestTimeTooSkewed" => {
            (Error::Away, CLOCK, false)
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" if is_clock() => {
            (Error::Away, CLOCK, false)
        }
        "InvalidSignatureException"
        | "InvalidSignature"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException" => {
            (Error::Away, "the secret access key does not match the access key id", false)
        }
        "ExpiredTokenException" | "ExpiredToken" => {
            (Error::Away, "the credentials have expired: renew them at their source", false)
        }
        "UnrecognizedClientException"
        | "UnrecognizedClient"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" => {
            (Error::Away, "AWS does not know these credentials: replace them", false)
        }
        "AccessDeniedException" | "AccessDenied" | "NotAuthorizedException" => {
            (Error::Denied, "allow kms:Encrypt and kms:Decrypt with this key, to this role", true)
        }
        "DisabledException" => (Error::Denied, "the key is disabled: enable it", true),
        "KMSInvalidStateException" => (
            Error::Denied,
            "the key is in a state that does not allow this: if it is pending deletion, cancel \
                that and enable it",
            true,
        ),
        "NotFoundException" => {
            (Error::Denied, "there is no such key in this region: check key_id and region", true)
        }
        "InvalidKeyUsageException" => {
            (Error::Denied, "the key must be symmetric and allow encrypting and decrypting", true)
        }
        "InvalidCiphertextException" => {
            (Error::Wrong, "it is damaged or was made for another KEK", false)
        }
        "IncorrectKeyException" => {
            (Error::Wrong, "it was made by another key: was the alias moved?", false)
        }
        "ValidationException" if message.to_ascii_lowercase().contains("ciphertextblob") => {
            (Error::Wrong, "AWS KMS can't read it", false)
        }
        "ValidationException" => {
            (Error::Denied, "AWS KMS rejects the call as invalid: check key_id", false)
        }
        _ if status >= 500 || status == 429 => {
            (Error::Away, "AWS KMS has an internal error; the call is retried", false)
        }
        _ => (Error::Denied, "AWS KMS refuses the call", false),
    }
}

const CLOCK: &str = "this machine's clock is wrong: set it by NTP";

fn not_kms_but(status: u16) -> Error {
    Error::Away(format!(
        "the server that answered with HTTP status {status} is not AWS KMS: check the endpoint, \
            and any proxies"
    ))
}

/// The SDK's error with its causes. The stderr of a credentials process is left out, since it could
/// contain anything, and `/readyz` is public.
fn chain(error: &(dyn StdError + 'static), sent: &Secrets) -> String {
    let texts = error_chain::causes(error).map(ToString::to_string);
    let mut texts: Vec<_> = texts.filter(|text| text != "other").collect();
    texts.dedup();
    let text = texts.join(": ");
    let text = text.split(". Stderr:").next().unwrap_or_default();
    if text.is_empty() { sent.line(&error.to_string()) } else { sent.line(text) }
}
