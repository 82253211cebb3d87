//! Every way to fail: the class and the text of the error, and the number of calls.

use std::time::Instant;

use reqwest::Method;

use super::*;
use crate::root::contract::repeated_in_pieces;
use crate::root::echo::LEFT_OUT;

/// The status of HTTP, Azure's code, its inner code and the message; then the class, a part of the
/// text and the number of calls.
type Row =
    (u16, &'static str, &'static str, &'static str, fn(String) -> Error, &'static str, usize);

/// What an error for a bad argument may repeat.
const PLANTED: &str = "planted-value";

const TABLE: [Row; 10] = [
    (429, "Throttled", "", "Too many", Error::Away, "throttled", 3),
    (500, "InternalServerError", "", PLANTED, Error::Away, "internal error", 3),
    (503, "ServiceUnavailable", "", "", Error::Away, "internal error", 3),
    (408, "RequestTimeout", "", "", Error::Away, "internal error", 3),
    (401, "Unauthorized", "", PLANTED, Error::Away, "renew the credentials", 2),
    (
        403,
        "Forbidden",
        "ForbiddenByRbac",
        "Caller is not authorized to perform action on resource.",
        Error::Denied,
        "rapKey with this key, to this identity, and its network; Azure says: Caller is not auth",
        1,
    ),
    (
        403,
        "Forbidden",
        "KeyDisabled",
        "Operation wrapKey is not allowed on a disabled key.",
        Error::Denied,
        "is disabled: enable it",
        1,
    ),
    (
        403,
        "Forbidden",
        "",
        "Operation unwrapKey is not allowed on an expired key.",
        Error::Denied,
        "is expired or not valid yet",
        1,
    ),
    (409, "Conflict", "", "The key is being deleted.", Error::Denied, "recover the key", 1),
    (405, "MethodNotAllowed", "", PLANTED, Error::Denied, "check algorithm", 1),
];

/// The error of an unwrap of bytes that could be a wrap.
async fn not_opened(root: &Root) -> Error {
    let (chain, kek) = (chain("orders"), kek());
    let algorithm = WrapAlgorithm::RsaOaep256;
    let wrapped = Wrapped { algorithm, version: [1; 16], sealed: &[7; 256] }.to_bytes();
    match root.unwrap(context(&chain, &kek), &wrapped).await {
        Err(error) => error,
        Ok(_) => panic!("it must not open"),
    }
}

/// A response to `wrapkey` and `unwrapkey`.
fn answered(status: u16, code: &str, inner: &str, message: &str) -> Value {
    let mut error = json!({"code": code, "message": message});
    if !inner.is_empty() {
        error["innererror"] = json!({"code": inner});
    }
    json!({"kind": "status", "path": "wrapkey", "status": status, "body": {"error": error}})
}

#[tokio::test]
async fn each_status_has_its_class_and_its_advice_and_retries_are_bounded() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    for (status, code, inner, message, class, advice, calls) in TABLE {
        let root = root(&fake, &key_id);
        fake.fails(json!([answered(status, code, inner, message)])).await;
        for verb in ["wrapkey", "unwrapkey"] {
            let error =
                if verb == "wrapkey" { refused(&root).await } else { not_opened(&root).await };
            let text = error.to_string();
            assert_eq!(error.outcome(), class(String::new()).outcome(), "{text}");
            let name = if inner.is_empty() { code } else { inner };
            assert!(text.contains(advice) && text.contains(name), "{name}: {text}");
            assert!(!text.contains(PLANTED), "{text}");
            assert_eq!(fake.uses().await, vec![verb; calls], "{name}");
        }
    }
}

#[tokio::test]
async fn errors_contain_no_secret_that_a_server_repeats() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let root = root(&fake, &key_id);
    let (chain, kek) = (chain("orders"), kek());
    works(&root).await.unwrap();
    let token = root.tokens.get(&root.client, Duration::from_secs(14)).await.unwrap();
    let token = token.header().to_str().unwrap().to_owned();
    let token = token.strip_prefix("Bearer ").unwrap();
    let base64 = URL_SAFE_NO_PAD.encode_to_string(kek.expose());
    for secret in [&*base64, &repeated_in_pieces(&kek), token] {
        let message = format!("what is {secret}");
        for response in [
            answered(403, "Forbidden", "", &message),
            answered(404, "KeyNotFound", "", &message),
            answered(403, secret, "", ""),
            answered(403, "Forbidden", secret, ""),
        ] {
            fake.fails(json!([response])).await;
            let error = root.wrap(context(&chain, &kek), &kek).await.unwrap_err().to_string();
            assert!(error.contains(LEFT_OUT) && !error.contains(secret), "{error}");
        }
    }
}

#[tokio::test]
async fn a_missing_key_a_missing_version_and_a_damaged_wrap_are_told_apart() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let root_of_one = root(&fake, &key_id);
    let Error::Wrong(detail) = not_opened(&root_of_one).await else { panic!("another class") };
    assert!(detail.contains(&"01".repeat(16)), "{detail}");
    let missing = root(&fake, &key_id.replace("/one", "/missing"));
    for error in [refused(&missing).await, not_opened(&missing).await] {
        let Error::Denied(detail) = error else { panic!("{error}") };
        assert!(detail.contains("KeyNotFound: there is no such key: check key_id"), "{detail}");
    }
    fake.fails(json!([answered(400, "BadParameter", "", PLANTED)])).await;
    let error = refused(&root_of_one).await.to_string();
    assert!(error.contains("BadParameter: Azure rejects the call as invalid"), "{error}");
    let Error::Wrong(detail) = not_opened(&root_of_one).await else { panic!("another class") };
    assert!(detail.contains("it is damaged") && !detail.contains(PLANTED), "{detail}");
    fake.works().await;
    // A deleted key can be recovered.
    let (chain, kek) = (chain("orders"), kek());
    let deleted = root(&fake, &fake.azure_key("deleted", "RSA").await);
    let wrapped = deleted.wrap(context(&chain, &kek), &kek).await.unwrap();
    fake.microsoft(Method::DELETE, "/keys/deleted", json!({})).await;
    for error in [
        refused(&deleted).await,
        deleted.unwrap(context(&chain, &kek), &wrapped).await.err().unwrap(),
    ] {
        let Error::Denied(detail) = error else { panic!("{error}") };
        assert!(detail.contains("or recover the key if it was deleted"), "{detail}");
    }
    // RSA with an AES key.
    let aes = root(&fake, &fake.azure_key("aes", "oct-HSM").await);
    let Error::Denied(detail) = refused(&aes).await else { panic!("another class") };
    assert!(detail.contains("check algorithm"), "{detail}");
}

#[tokio::test]
async fn a_server_that_asks_for_a_pause_gets_no_call_until_it_is_over() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let root = root(&fake, &key_id);
    let throttled = |after: u32| {
        let mut fault = answered(429, "Throttled", "", "");
        fault["headers"] = json!({"Retry-After": after.to_string()});
        fault["count"] = json!(1);
        json!([fault])
    };
    // A short pause is waited for.
    fake.fails(throttled(1)).await;
    let start = Instant::now();
    works(&root).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(fake.uses().await, ["wrapkey", "wrapkey", "unwrapkey"]);
    // A long one ends the call, and others before they are made.
    fake.fails(throttled(20)).await;
    for _ in 0..3 {
        let error = refused(&root).await;
        assert!(matches!(&error, Error::Away(text) if text.contains("throttled")), "{error}");
    }
    assert_eq!(fake.uses().await, ["wrapkey"]);
}

/// Azure has no checksums. The hash of the context, and the id of the KEK, which the caller
/// compares, show that a response was damaged.
#[tokio::test]
async fn what_is_damaged_on_the_way_never_opens_as_the_kek() {
    let fake = Fake::azure();
    let root = root(&fake, &fake.azure_key("one", "RSA").await);
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let intact = root.wrap(here, &kek).await.unwrap();
    for (verb, kind) in [
        ("wrapkey", "flip"),
        ("wrapkey", "flip-request"),
        ("unwrapkey", "flip"),
        ("unwrapkey", "flip-request"),
    ] {
        let path = format!("/{verb}");
        fake.fails(json!([{"kind": kind, "path": path, "field": "value", "count": 1}])).await;
        let wrapped =
            if verb == "wrapkey" { root.wrap(here, &kek).await.unwrap() } else { intact.clone() };
        match root.unwrap(here, &wrapped).await {
            Ok(opened) => assert!(opened != kek, "{verb} {kind}: no bit was flipped"),
            Err(error) => assert!(matches!(error, Error::Wrong(_)), "{verb} {kind}: {error}"),
        }
        fake.works().await;
    }
    assert!(root.unwrap(here, &intact).await.unwrap() == kek);
}

#[tokio::test]
async fn a_server_that_does_not_respond_is_away_in_time() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let quick = Config { timeout: Duration::from_secs(1), ..config(&key_id) };
    for (kind, path) in
        [("hang", "wrapkey"), ("stall", "wrapkey"), ("hang", "/msi/token"), ("hang", "/keys")]
    {
        let root = with(&fake, &quick);
        fake.fails(json!([{"kind": kind, "path": path}])).await;
        let start = Instant::now();
        let error = refused(&root).await.to_string();
        assert!(error.contains("no answer in") && error.contains("is away"), "{kind}: {error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{kind}");
        assert!(fake.take().await.len() <= 5, "{kind}");
    }
    // A slow server is waited for.
    let root = root(&fake, &key_id);
    fake.fails(json!([{"kind": "slow", "path": "/wrapkey", "seconds": 1}])).await;
    works(&root).await.unwrap();
    assert_eq!(fake.uses().await, ["wrapkey", "unwrapkey"]);
}

#[tokio::test]
async fn a_server_that_is_not_azure_is_away() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let status = |path: &str, status: u16, body: &str| {
        let fault = json!({"kind": "status", "path": path, "status": status, "body": body});
        json!([fault])
    };
    let long = "x".repeat(100_000);
    for (fault, said, calls) in [
        (json!([{"kind": "reset", "path": "wrapkey"}]), "can't be reached", 3),
        (status("wrapkey", 200, "<html>"), "is not Azure Key Vault", 1),
        (status("wrapkey", 200, "{}"), "is not Azure Key Vault", 1),
        (status("wrapkey", 404, "<html>"), "HTTP status 404 is not Azure", 1),
        (status("wrapkey", 302, ""), "HTTP status 302 is not Azure", 1),
        (status("wrapkey", 502, "<html>"), "HTTP status 502 is not Azure", 3),
        (status("wrapkey", 200, &long), "too long", 1),
        // No token is asked for, and none is sent, before the server has named what it is for.
        (status("/keys", 200, "{}"), "HTTP status 200 is not Azure", 0),
        (status("/keys", 401, "{}"), "HTTP status 401 is not Azure", 0),
        (status("/keys", 502, "<html>"), "HTTP status 502 is not Azure", 0),
    ] {
        let root = root(&fake, &key_id);
        fake.fails(fault.clone()).await;
        let error = refused(&root).await;
        assert!(matches!(&error, Error::Away(text) if text.contains(said)), "{said}: {error}");
        assert_eq!(fake.uses().await.len(), calls, "{said}");
    }
    // A wrap that fits in no record.
    let root = root(&fake, &key_id);
    for bytes in [&[][..], &[7; 1020]] {
        let fields = json!({"value": URL_SAFE_NO_PAD.encode_to_string(bytes)});
        fake.fails(json!([{"kind": "set", "path": "/wrapkey", "fields": fields}])).await;
        let error = refused(&root).await;
        assert!(matches!(&error, Error::Away(text) if text.contains("not Azure")), "{error}");
    }
    drop(fake);
    let error = refused(&root).await.to_string();
    assert!(error.contains("can't be reached") && error.contains("is away"), "{error}");
}

#[tokio::test]
async fn a_challenge_for_another_service_gets_no_token() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let challenge = "Bearer authorization=\"https://login.test/t\", resource=\"vault\"";
    let mut fault = json!({"kind": "status", "path": "/keys", "status": 401});
    fault["headers"] = json!({"WWW-Authenticate": challenge});
    fake.fails(json!([fault])).await;
    let error = refused(&root(&fake, &key_id)).await;
    let Error::Denied(detail) = error else { panic!("{error}") };
    assert!(detail.contains("asks for tokens that are not for its own domain"), "{detail}");
    let calls = fake.take().await;
    assert_eq!(calls.len(), 1, "{calls:?}");
    // Azure may refuse a caller before it asks for a token.
    let message = "Public network access is disabled.";
    let mut fault = answered(403, "Forbidden", "ForbiddenByConnection", message);
    fault["path"] = json!("/keys");
    fake.fails(json!([fault])).await;
    let error = refused(&root(&fake, &key_id)).await;
    let Error::Denied(detail) = error else { panic!("{error}") };
    assert!(detail.contains("ForbiddenByConnection") && detail.contains(message), "{detail}");
}
