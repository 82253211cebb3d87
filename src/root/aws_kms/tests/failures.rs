//! Every way to fail: its class, what it says, and how often it is tried.

use std::time::Instant;

use super::kms::{Front, Way};
use super::*;

/// Code, HTTP status, KMS's words; then class, what an operator must read, and calls made.
type Row = (&'static str, u16, &'static str, fn(String) -> Error, &'static str, usize);

const TOKEN: &str = "x-amz-security-token:IQoJb3JpZ2lu";

const TABLE: [Row; 22] = [
    ("ThrottlingException", 400, "Rate exceeded", Error::Away, "throttled", 3),
    ("LimitExceededException", 400, "", Error::Away, "throttled", 3),
    ("RequestLimitExceeded", 400, "", Error::Away, "throttled", 3),
    ("KMSInternalException", 500, "", Error::Away, "internal error", 3),
    ("DependencyTimeoutException", 503, "", Error::Away, "internal error", 3),
    ("KeyUnavailableException", 500, "", Error::Away, "internal error", 3),
    ("InternalFailure", 500, "", Error::Away, "internal error", 3),
    ("ServiceUnavailableException", 503, "", Error::Away, "internal error", 3),
    ("ExpiredTokenException", 400, TOKEN, Error::Away, "have expired: renew", 1),
    ("UnrecognizedClientException", 400, TOKEN, Error::Away, "does not know these", 1),
    ("InvalidClientTokenId", 403, TOKEN, Error::Away, "does not know these", 1),
    ("InvalidSignatureException", 400, TOKEN, Error::Away, "secret access key does not", 1),
    (
        "SignatureDoesNotMatch",
        403,
        "Signature expired: 1 is earlier than 2",
        Error::Away,
        "clock",
        1,
    ),
    ("RequestExpired", 400, TOKEN, Error::Away, "clock", 1),
    (
        "AccessDeniedException",
        400,
        "User x may not kms:Encrypt",
        Error::Denied,
        "User x may not",
        1,
    ),
    (
        "DisabledException",
        400,
        "arn:y is disabled.",
        Error::Denied,
        "enable it; AWS says: arn:y",
        1,
    ),
    (
        "KMSInvalidStateException",
        400,
        "arn:y is pending deletion.",
        Error::Denied,
        "cancel that",
        1,
    ),
    (
        "NotFoundException",
        400,
        "Key 'y' does not exist",
        Error::Denied,
        "check key_id and region",
        1,
    ),
    ("InvalidKeyUsageException", 400, "", Error::Denied, "must be symmetric", 1),
    ("ValidationException", 400, "Value 'z' at 'keyId'", Error::Denied, "check key_id", 1),
    ("UnknownOperationException", 400, "", Error::Denied, "refuses the call", 1),
    ("ServiceQuotaExceededException", 429, "", Error::Away, "internal error", 1),
];

#[tokio::test]
async fn each_code_has_its_class_and_says_what_to_do_and_retries_are_bounded() {
    let front = Front::start(None).await;
    for (code, status, message, class, advice, calls) in TABLE {
        // A client has a budget of retries, which the rows before would spend.
        let root = root(&front, "alias/main").await;
        front.set(Way::Error(status, code, message));
        for target in ["Encrypt", "Decrypt"] {
            let error =
                if target == "Encrypt" { refused(&root).await } else { not_opened(&root).await };
            let text = error.to_string();
            assert_eq!(error.outcome(), class(String::new()).outcome(), "{text}");
            assert!(text.contains(advice) && text.contains(code), "{code}: {text}");
            assert!(text.contains("(request request-7)") && !text.contains(TOKEN), "{text}");
            let made = front.take();
            assert_eq!(made.len(), calls, "{code}");
            assert!(made.iter().all(|call| call.target.ends_with(target)), "{made:?}");
        }
    }
}

#[tokio::test]
async fn a_wrap_that_kms_does_not_open_is_wrong_and_the_same_code_for_a_new_kek_is_a_refusal() {
    let front = Front::start(None).await;
    let root = root(&front, "alias/main").await;
    for (code, message) in [
        ("InvalidCiphertextException", ""),
        ("IncorrectKeyException", "The key ID in the request does not identify a CMK"),
        ("ValidationException", "1 validation error: Value at 'ciphertextBlob' is too long"),
    ] {
        front.set(Way::Error(400, code, message));
        assert!(matches!(not_opened(&root).await, Error::Wrong(text) if text.contains(code)));
        assert!(matches!(refused(&root).await, Error::Denied(text) if text.contains(code)));
        assert_eq!(front.take().len(), 2, "none is tried again");
    }
}

#[tokio::test]
async fn no_answer_and_no_sense_are_away_within_the_deadline() {
    let front = Front::start(None).await;
    let timeout = Duration::from_secs(1);
    for (way, said, calls) in [
        (Way::Hang, "", 3),
        (Way::Stall, "did not respond in time", 1),
        (Way::Close, "can't be reached", 3),
        (Way::Text(200, "<html>".to_owned()), "is not AWS KMS", 1),
        (Way::Text(200, "{}".to_owned()), "is not AWS KMS", 1),
        (Way::Text(403, "<html>".to_owned()), "HTTP status 403 is not AWS KMS", 1),
        (Way::Text(502, "<html>".to_owned()), "HTTP status 502 is not AWS KMS", 3),
    ] {
        let root = with_timeout(&front, "alias/main", timeout).await;
        front.set(way.clone());
        let start = Instant::now();
        let error = refused(&root).await;
        // It is bounded by a second; the rest is for a machine that is busy.
        assert!(start.elapsed() < Duration::from_secs(10), "{way:?}");
        assert!(matches!(error, Error::Away(_)), "{way:?}: {error}");
        assert!(error.to_string().contains(said), "{way:?}: {error}");
        assert!((1..=calls).contains(&front.take().len()), "{way:?}");
    }
    let root = with_timeout(&front, "alias/main", timeout).await;
    drop(front);
    let error = refused(&root).await;
    assert!(matches!(&error, Error::Away(text) if text.contains("can't be reached")), "{error}");
}
