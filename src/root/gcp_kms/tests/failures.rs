//! Every way to fail: the class and the text of the error, and the number of calls.

use std::time::Instant;

use super::*;
use crate::root::contract::repeated_in_pieces;
use crate::root::echo::LEFT_OUT;

/// The status of HTTP and of Google, the message; then the class, a part of the text and the number
/// of calls.
type Row = (u16, &'static str, &'static str, fn(String) -> Error, &'static str, usize);

/// What an error for a bad argument may repeat.
const PLANTED: &str = "planted-value";

const TABLE: [Row; 13] = [
    (429, "RESOURCE_EXHAUSTED", "Quota exceeded", Error::Away, "throttled", 3),
    (500, "INTERNAL", "Internal error encountered.", Error::Away, "internal error", 3),
    (503, "UNAVAILABLE", "The service is currently unavailable.", Error::Away, "internal error", 3),
    (504, "DEADLINE_EXCEEDED", "", Error::Away, "internal error", 3),
    (409, "ABORTED", "", Error::Away, "internal error", 3),
    (401, "UNAUTHENTICATED", PLANTED, Error::Away, "renew the credentials", 2),
    (
        403,
        "PERMISSION_DENIED",
        "Permission denied on resource 'projects/p' (or it may not exist).",
        Error::Denied,
        "crypt on this key, to this service account; Google says: Permission denied on resource",
        1,
    ),
    (
        403,
        "PERMISSION_DENIED",
        "Cloud Key Management Service (KMS) API has not been used in project 1 before",
        Error::Denied,
        "has not been used in project 1",
        1,
    ),
    (404, "NOT_FOUND", "CryptoKey projects/p not found.", Error::Denied, "check key_id", 1),
    (
        400,
        "FAILED_PRECONDITION",
        "projects/p/cryptoKeyVersions/1 is not enabled, current state is: DISABLED.",
        Error::Denied,
        "is disabled: enable it",
        1,
    ),
    (
        400,
        "FAILED_PRECONDITION",
        "projects/p/cryptoKeyVersions/1 is not enabled, current state is: DESTROY_SCHEDULED.",
        Error::Denied,
        "restore it",
        1,
    ),
    (400, "FAILED_PRECONDITION", "projects/p has purpose SIGN.", Error::Denied, "of a kind", 1),
    (400, "INVALID_ARGUMENT", PLANTED, Error::Denied, "rejects the call as invalid", 1),
];

/// The error of an unwrap of bytes that could be a wrap.
async fn not_opened(root: &Root) -> Error {
    let (chain, kek) = (chain("orders"), kek());
    let wrapped = Wrapped { version: 1, ciphertext: &[7; 100] }.to_bytes();
    match root.unwrap(context(&chain, &kek), &wrapped).await {
        Err(error) => error,
        Ok(_) => panic!("it must not open"),
    }
}

#[tokio::test]
async fn each_status_has_its_class_and_its_advice_and_retries_are_bounded() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    for (status, name, message, class, advice, calls) in TABLE {
        let root = root(&fake, &key_id);
        let error = json!({"code": status, "message": message, "status": name});
        let body = json!({"error": error});
        let fault = json!({"kind": "status", "path": "crypt", "status": status, "body": body});
        fake.fails(json!([fault])).await;
        for verb in ["encrypt", "decrypt"] {
            let error =
                if verb == "encrypt" { refused(&root).await } else { not_opened(&root).await };
            let text = error.to_string();
            assert_eq!(error.outcome(), class(String::new()).outcome(), "{text}");
            assert!(text.contains(advice) && text.contains(name), "{name}: {text}");
            assert!(!text.contains(PLANTED), "{text}");
            assert_eq!(fake.uses().await, vec![verb; calls], "{name}");
        }
    }
}

#[tokio::test]
async fn errors_contain_no_secret_that_a_server_repeats() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let root = root(&fake, &key_id);
    let (chain, kek) = (chain("orders"), kek());
    works(&root).await.unwrap();
    let token = root.tokens.get(&root.client, Duration::from_secs(14)).await.unwrap();
    let token = token.header().to_str().unwrap().to_owned();
    let token = token.strip_prefix("Bearer ").unwrap();
    let (base64, pieces) = (STANDARD.encode_to_string(kek.expose()), repeated_in_pieces(&kek));
    for secret in [&*base64, &pieces, token] {
        for (code, status, name) in
            [(403, "PERMISSION_DENIED", ""), (404, "NOT_FOUND", ""), (403, "", secret)]
        {
            let message = if name.is_empty() { format!("what is {secret}") } else { String::new() };
            let status = if name.is_empty() { status } else { name };
            let body = json!({"error": {"code": code, "message": message, "status": status}});
            let fault = json!({"kind": "status", "path": "crypt", "status": code, "body": body});
            fake.fails(json!([fault])).await;
            let error = root.wrap(context(&chain, &kek), &kek).await.unwrap_err().to_string();
            assert!(error.contains(LEFT_OUT) && !error.contains(secret), "{error}");
        }
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_pause_gets_no_call_until_it_is_over() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let root = root(&fake, &key_id);
    let throttled = |count: u32, after: u32| {
        let error = json!({"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"});
        json!([{"kind": "status", "path": "crypt", "status": 429, "body": {"error": error},
            "headers": {"Retry-After": after.to_string()}, "count": count}])
    };
    // A short pause is waited for.
    fake.fails(throttled(1, 1)).await;
    let start = Instant::now();
    works(&root).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(fake.uses().await, ["encrypt", "encrypt", "decrypt"]);
    // A long one ends the call, and others before they are made.
    fake.fails(throttled(1, 20)).await;
    for _ in 0..3 {
        let error = refused(&root).await;
        assert!(matches!(&error, Error::Away(text) if text.contains("throttled")), "{error}");
    }
    assert_eq!(fake.uses().await, ["encrypt"]);
}

#[tokio::test]
async fn what_is_damaged_on_the_way_is_noticed_and_sent_again() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let root = root(&fake, &key_id);
    let faults = [
        ("encrypt", json!({"kind": "flip-request", "field": "plaintext"})),
        ("encrypt", json!({"kind": "flip-request", "field": "additionalAuthenticatedData"})),
        ("encrypt", json!({"kind": "flip", "field": "ciphertext"})),
        ("encrypt", json!({"kind": "set", "fields": {"ciphertextCrc32c": "1"}})),
        ("encrypt", json!({"kind": "set", "fields": {"ciphertextCrc32c": null}})),
        ("encrypt", json!({"kind": "set", "fields": {"verifiedPlaintextCrc32c": false}})),
        (
            "encrypt",
            json!({"kind": "set", "fields": {"verifiedAdditionalAuthenticatedDataCrc32c": false}}),
        ),
        ("decrypt", json!({"kind": "flip-request", "field": "ciphertext"})),
        ("decrypt", json!({"kind": "flip-request", "field": "additionalAuthenticatedData"})),
        ("decrypt", json!({"kind": "flip", "field": "plaintext"})),
        ("decrypt", json!({"kind": "set", "fields": {"plaintextCrc32c": "1"}})),
        ("decrypt", json!({"kind": "set", "fields": {"plaintextCrc32c": null}})),
    ];
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let wrapped = root.wrap(here, &kek).await.unwrap();
    fake.take().await;
    for (verb, mut fault) in faults {
        // Once: the second attempt succeeds.
        fault["path"] = json!(format!(":{verb}"));
        let mut once = fault.clone();
        once["count"] = json!(1);
        fake.fails(json!([once])).await;
        let call = async || match verb {
            "encrypt" => root.wrap(here, &kek).await.map(drop),
            _ => root.unwrap(here, &wrapped).await.map(|opened| assert!(opened == kek)),
        };
        call().await.unwrap();
        assert_eq!(fake.uses().await, [verb, verb], "{fault}");
        // Always: it is not for the caller to solve.
        fake.fails(json!([fault])).await;
        let error = call().await.unwrap_err();
        assert!(matches!(&error, Error::Away(text) if text.contains("checksum")), "{error}");
        assert_eq!(fake.uses().await.len(), 3, "{fault}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_respond_is_away_in_time() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let timeout = Duration::from_secs(1);
    let quick = Config { timeout, ..config(&fake, &key_id) };
    for (kind, path) in [("hang", ":encrypt"), ("stall", ":encrypt"), ("hang", "/token")] {
        let root = with(&fake, &quick);
        fake.fails(json!([{"kind": kind, "path": path}])).await;
        let start = Instant::now();
        let error = refused(&root).await.to_string();
        assert!(error.contains("no answer in") && error.contains("is away"), "{kind}: {error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{kind}");
        assert!(fake.take().await.len() <= 4, "{kind}");
    }
    // A slow server is waited for.
    let root = root(&fake, &key_id);
    fake.fails(json!([{"kind": "slow", "path": ":encrypt", "seconds": 1}])).await;
    works(&root).await.unwrap();
    assert_eq!(fake.uses().await, ["encrypt", "decrypt"]);
}

#[tokio::test]
async fn a_server_that_is_not_cloud_kms_is_away() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let status = |status: u16, body: &str| {
        let fault = json!({"kind": "status", "path": ":encrypt", "status": status, "body": body});
        json!([fault])
    };
    for (fault, said, calls) in [
        (json!([{"kind": "reset", "path": ":encrypt"}]), "can't be reached", 3),
        (status(200, "<html>"), "is not Cloud KMS", 1),
        (status(200, "{}"), "is not Cloud KMS", 1),
        (status(404, "<html>"), "HTTP status 404 is not Cloud KMS", 1),
        (status(302, ""), "HTTP status 302 is not Cloud KMS", 1),
        (status(502, "<html>"), "HTTP status 502 is not Cloud KMS", 3),
        (status(200, &"x".repeat(100_000)), "too long", 1),
    ] {
        let root = root(&fake, &key_id);
        fake.fails(fault.clone()).await;
        let error = refused(&root).await;
        assert!(matches!(&error, Error::Away(text) if text.contains(said)), "{fault}: {error}");
        assert_eq!(fake.uses().await.len(), calls, "{fault}");
    }
    // A ciphertext that fits in no record.
    let root = root(&fake, &key_id);
    let fields = |bytes: &[u8]| {
        let ciphertext = STANDARD.encode_to_string(bytes);
        let sum = crc32c::of(bytes).to_string();
        let fields = json!({"ciphertext": ciphertext, "ciphertextCrc32c": sum});
        json!([{"kind": "set", "path": ":encrypt", "fields": fields}])
    };
    for bytes in [&[][..], &[7; 1020]] {
        fake.fails(fields(bytes)).await;
        let error = refused(&root).await;
        assert!(matches!(&error, Error::Away(text) if text.contains("not Cloud KMS")), "{error}");
    }
    drop(fake);
    let error = refused(&root).await.to_string();
    assert!(error.contains("can't be reached") && error.contains("is away"), "{error}");
}

#[tokio::test]
async fn a_key_that_can_not_be_used_is_denied() {
    let fake = Fake::gcp();
    let signs = fake.google_key_for("signs", "ASYMMETRIC_SIGN").await;
    let missing = signs.replace("signs", "missing");
    let one = fake.google_key("one").await;
    fake.google_state(&one, 1, "DISABLED").await;
    for (key_id, said) in [
        (&signs, "of a kind, that does not allow this"),
        (&missing, "there is no such key"),
        (&one, "is disabled: enable it"),
    ] {
        let error = refused(&root(&fake, key_id)).await;
        assert!(matches!(&error, Error::Denied(text) if text.contains(said)), "{error}");
    }
}
