//! Every way to fail: the class and the text of the error, and the number of calls.

use super::kms::{Front, Way};
use super::*;
use crate::root::contract::repeated_in_pieces;
use crate::root::echo::LEFT_OUT;

/// The code, status and message of KMS; then the class, a part of the text and the number of
/// calls.
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
async fn each_code_has_its_class_and_its_advice_and_retries_are_bounded() {
    let front = Front::start(None).await;
    for (code, status, message, class, advice, calls) in TABLE {
        // Each client has a budget of retries, which earlier rows would spend.
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
async fn errors_contain_no_secret_that_a_server_repeats() {
    let front = Front::start(None).await;
    let root = root(&front, "alias/main").await;
    let (chain, kek) = (chain("orders"), kek());
    let base64 = base64_simd::STANDARD.encode_to_string(kek.expose());
    for secret in [&*base64, &repeated_in_pieces(&kek)] {
        for (status, code, message) in [
            (400, "AccessDeniedException", format!("what is {secret}")),
            (400, "NotFoundException", format!("what is {secret}")),
            // The SDK takes what follows a colon.
            (400, &*secret.replace(':', ""), String::new()),
        ] {
            let text = json!({"__type": code, "message": message}).to_string();
            front.set(Way::Text(status, text));
            let error = root.wrap(context(&chain, &kek), &kek).await.unwrap_err().to_string();
            assert!(error.contains(LEFT_OUT) && !error.contains(secret), "{error}");
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
        assert_eq!(front.take().len(), 2, "no call is retried");
    }
}

#[tokio::test]
async fn a_server_that_does_not_respond_is_away_after_the_timeout() {
    let timeout = Duration::from_secs(1);
    let error_of = async |root: &Root| {
        // A call without a time-out would never end.
        let error = tokio::time::timeout(PATIENCE, refused(root)).await.expect("it ends");
        assert!(matches!(error, Error::Away(_)), "{error}");
        error.to_string()
    };
    // Each attempt has its own time-out.
    let front = Front::start(None).await;
    front.set(Way::Hang);
    error_of(&with_timeout(&front, "alias/main", timeout).await).await;
    assert!(front.take().len() <= 3);
    // The whole operation has one too, which includes the body of the response.
    let front = Front::start(None).await;
    for way in [Way::Hang, Way::Stall] {
        front.set(way.clone());
        let root = with_timeout(&front, "alias/main", timeout).await;
        change_timeouts(&root, attempts_wait).await;
        let error = error_of(&root).await;
        assert!(error.contains("did not respond in time"), "{way:?}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_kms_is_away() {
    let front = Front::start(None).await;
    for (way, said, calls) in [
        (Way::Close, "can't be reached", 3),
        (Way::Text(200, "<html>".to_owned()), "is not AWS KMS", 1),
        (Way::Text(200, "{}".to_owned()), "is not AWS KMS", 1),
        (Way::Text(403, "<html>".to_owned()), "HTTP status 403 is not AWS KMS", 1),
        (Way::Text(502, "<html>".to_owned()), "HTTP status 502 is not AWS KMS", 3),
    ] {
        let root = root(&front, "alias/main").await;
        front.set(way.clone());
        let error = refused(&root).await;
        assert!(matches!(error, Error::Away(_)), "{way:?}: {error}");
        assert!(error.to_string().contains(said), "{way:?}: {error}");
        assert!((1..=calls).contains(&front.take().len()), "{way:?}");
    }
    let root = root(&front, "alias/main").await;
    drop(front);
    let error = refused(&root).await;
    assert!(matches!(&error, Error::Away(text) if text.contains("can't be reached")), "{error}");
}
