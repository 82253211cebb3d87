//! What a failed call of KMS means to a caller.
//!
//! Messages of KMS name the role of kms-proxy, so callers read our own.

use serde::Deserialize;

use crate::root;

use super::{Code, Error};

/// Why KMS did not decrypt.
pub(super) struct Refusal {
    pub(super) error: Error,
    /// Whether KMS refuses the key, whatever the ciphertext.
    pub(super) is_of_key: bool,
    /// The ARN of the key, where KMS names it.
    pub(super) key: Option<String>,
}

#[derive(Default, Deserialize)]
struct Body {
    #[serde(rename = "__type", default)]
    code: String,
    #[serde(alias = "Message", default)]
    message: String,
}

impl Body {
    fn parse(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    /// The code without the namespace that some servers put before it.
    fn code(&self) -> &str {
        self.code.rsplit('#').next().unwrap_or_default()
    }
}

/// The error of a Decrypt that KMS refused.
pub(super) fn read(body: &[u8]) -> Refusal {
    let body = Body::parse(body);
    let key = |message: &'static str, code| Refusal {
        error: Error::new(code, message),
        is_of_key: true,
        key: key_in(&body.message),
    };
    let other = |error| Refusal { error, is_of_key: false, key: None };
    match body.code() {
        "InvalidCiphertextException" | "ValidationException" => other(Error::invalid_ciphertext()),
        "IncorrectKeyException" => other(Error::incorrect_key()),
        "DisabledException" => key("the key of AWS KMS is disabled", Code::Disabled),
        "KMSInvalidStateException" => {
            key("the state of the key of AWS KMS does not allow this", Code::InvalidState)
        }
        "NotFoundException" => key("AWS KMS does not have the key", Code::NotFound),
        "AccessDeniedException" | "AccessDenied" => {
            key("kms-proxy is not allowed to decrypt with this key of AWS KMS", Code::AccessDenied)
        }
        "InvalidKeyUsageException" => {
            key("the key of AWS KMS is not one for encryption", Code::InvalidKeyUsage)
        }
        "KeyUnavailableException" | "KMSInternalException" => {
            other(Error::new(Code::KeyUnavailable, "AWS KMS failed"))
        }
        code if is_throttled(code) => {
            other(Error::new(Code::Throttling, "AWS KMS throttles the calls of kms-proxy"))
        }
        code => other(unusable(code)),
    }
}

/// The label of a call that KMS refused.
pub(super) fn outcome(body: &[u8]) -> &'static str {
    match Body::parse(body).code() {
        "InvalidCiphertextException" | "IncorrectKeyException" | "ValidationException" => "invalid",
        "KeyUnavailableException" | "KMSInternalException" | "DependencyTimeoutException" | "" => {
            "unavailable"
        }
        code if is_throttled(code) => "throttled",
        _ => "denied",
    }
}

/// The error of any call that KMS refused because of who kms-proxy is: a caller must not take it
/// for a refusal of its own credentials.
pub(super) fn of_credentials(body: &[u8]) -> Option<Error> {
    match Body::parse(body).code() {
        "AccessDeniedException" | "AccessDenied" => {
            let message = "kms-proxy is not allowed to make this call of AWS KMS";
            Some(Error::new(Code::AccessDenied, message))
        }
        "" => Some(unusable("")),
        code if is_of_credentials(code) => Some(unusable(code)),
        _ => None,
    }
}

/// KMS did not respond.
pub(super) fn away(error: root::Error) -> Refusal {
    tracing::warn!(%error, "a call could not be forwarded to AWS KMS");
    let error = Error::new(Code::DependencyTimeout, "kms-proxy cannot reach AWS KMS");
    Refusal { error, is_of_key: false, key: None }
}

/// What responded is not KMS.
pub(super) fn unreadable() -> Refusal {
    Refusal { error: unusable(""), is_of_key: false, key: None }
}

fn unusable(code: &str) -> Error {
    tracing::error!(code, "AWS KMS refused a forwarded call in a way that no caller can change");
    Error::new(Code::DependencyTimeout, "kms-proxy cannot use AWS KMS; its log says why")
}

fn is_throttled(code: &str) -> bool {
    const CODES: [&str; 4] =
        ["Throttling", "LimitExceeded", "RequestLimitExceeded", "TooManyRequests"];
    CODES.contains(&code.strip_suffix("Exception").unwrap_or(code))
}

fn is_of_credentials(code: &str) -> bool {
    const CODES: [&str; 9] = [
        "UnrecognizedClient",
        "InvalidClientTokenId",
        "InvalidSignature",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "ExpiredToken",
        "RequestExpired",
        "NotAuthorized",
    ];
    CODES.contains(&code.strip_suffix("Exception").unwrap_or(code))
}

/// The first ARN of a key in a message.
fn key_in(message: &str) -> Option<String> {
    let words = message.split(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | ','));
    let mut arns = words.filter(|word| word.starts_with("arn:") && word.contains(":key/"));
    arns.next().map(|arn| arn.trim_end_matches(['.', ';']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str, message: &str) -> Vec<u8> {
        serde_json::to_vec(&serde_json::json!({ "__type": code, "message": message })).unwrap()
    }

    #[test]
    fn a_refused_key_differs_from_a_refused_ciphertext() {
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/a";
        let disabled = read(&refused("com.amazonaws.kms#DisabledException", &format!("{arn} is.")));
        assert!(disabled.is_of_key && disabled.error.code == Code::Disabled);
        assert_eq!(disabled.key.as_deref(), Some(arn));
        let denied = format!("User: arn:aws:sts::1:assumed-role/r may not: kms:Decrypt on {arn}.");
        let denied = read(&refused("AccessDeniedException", &denied));
        assert_eq!((denied.key.as_deref(), denied.error.code), (Some(arn), Code::AccessDenied));
        assert!(!denied.error.message.contains("assumed-role"));
        for code in ["InvalidCiphertextException", "IncorrectKeyException", "ThrottlingException"] {
            assert!(!read(&refused(code, "")).is_of_key, "{code}");
        }
    }

    #[test]
    fn callers_never_take_our_credentials_for_theirs() {
        for code in ["UnrecognizedClientException", "InvalidSignatureException", "ExpiredToken"] {
            let body = refused(code, "");
            for error in [read(&body).error, of_credentials(&body).unwrap()] {
                assert_eq!(error.code, Code::DependencyTimeout, "{code}");
            }
            assert_eq!(outcome(&body), "denied");
        }
        assert_eq!(of_credentials(&refused("NotFoundException", "")), None);
    }
}
