//! Ciphertexts and keys of the real KMS: which calls are forwarded, for which callers, and which
//! results are cached.

use super::kms::{Failure, blob};
use super::*;

const ALL: &str = "{ chains = ['*'], operations = ['encrypt', 'decrypt', 'datakey', 'read', \
    'manage', 'rotate'] }";
const ON_ORDERS: &str = "{ chains = ['orders'], operations = ['decrypt', 'encrypt'] }";
const ON_BILLS: &str = "{ chains = ['bills'], operations = ['decrypt'] }";
const ENCRYPT_ONLY: &str =
    "{ chains = ['*'], operations = ['encrypt', 'datakey', 'read', 'manage', 'rotate'] }";

fn old(key: &str) -> Value {
    let context = json!({"a": "b"});
    json!({"CiphertextBlob": blob(key, &context, b"old"), "EncryptionContext": context})
}

fn with(mut body: Value, member: &str, value: &str) -> Value {
    body[member] = json!(value);
    body
}

fn forwarded(server: &Server, outcome: &str) -> u64 {
    let labels = format!("operation=\"Decrypt\",outcome=\"{outcome}\"");
    server.metric(&format!("kms_proxy_forwarded_calls_total{{{labels}}}"))
}

#[tokio::test]
async fn an_old_ciphertext_of_a_mapped_key_costs_one_call_and_a_new_one_none() {
    let server = Setup::new().start().await;
    for (index, key_id) in [None, Some(ORDERS), Some("alias/orders")].into_iter().enumerate() {
        let body = key_id.map_or(old(ORDERS), |key_id| with(old(ORDERS), "KeyId", key_id));
        let opened = server.ok("Decrypt", body).await;
        assert_eq!(
            (bytes(&opened["Plaintext"]), &opened["KeyId"]),
            (b"old".to_vec(), &json!(ORDERS))
        );
        assert_eq!(server.kms.count(), index + 1);
    }
    let (operation, sent) = &server.kms.calls()[2];
    let expected = with(old(ORDERS), "KeyId", ORDERS);
    assert_eq!((&**operation, sent), ("Decrypt", &expected), "KMS checks key and context");
    assert_eq!(forwarded(&server, "ok"), 3);
    // A migration is one call, and the result belongs to the chain.
    let body = json!({
        "CiphertextBlob": old(ORDERS)["CiphertextBlob"], "SourceEncryptionContext": {"a": "b"},
        "DestinationKeyId": "alias/orders", "DestinationEncryptionContext": {"c": "d"},
    });
    let moved = server.ok("ReEncrypt", body).await;
    assert_eq!((&moved["SourceKeyId"], &moved["KeyId"]), (&json!(ORDERS), &json!(ORDERS)));
    assert_eq!(server.kms.count(), 4);
    let body = json!({"CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": {"c": "d"}});
    assert_eq!(bytes(&server.ok("Decrypt", body).await["Plaintext"]), b"old");
    assert_eq!(server.kms.count(), 4);
}

#[tokio::test]
async fn a_wrong_context_and_a_damaged_ciphertext_fail_as_at_kms() {
    let server = Setup::new().set("forward_cache = '1h'").start().await;
    server.ok("Decrypt", old(ORDERS)).await;
    let mut body = old(ORDERS);
    body["EncryptionContext"] = json!({});
    assert_eq!(server.error("Decrypt", body).await, "InvalidCiphertextException");
    let mut damaged = bytes(&old(ORDERS)["CiphertextBlob"]);
    damaged.pop();
    let body = json!({"CiphertextBlob": base64(damaged)});
    assert_eq!(server.error("Decrypt", body).await, "InvalidCiphertextException");
    let body = with(old(ORDERS), "KeyId", BILLS);
    assert_eq!(server.error("Decrypt", body).await, "IncorrectKeyException");
    // A chain that takes no key's place has never made a ciphertext of KMS.
    let calls = server.kms.count();
    let body = with(old(ORDERS), "KeyId", "plain");
    assert_eq!(server.error("Decrypt", body).await, "InvalidCiphertextException");
    assert_eq!(server.kms.count(), calls);
    assert_eq!(forwarded(&server, "invalid"), 2);
}

/// The role of kms-proxy can decrypt more than a caller may.
#[tokio::test]
async fn kms_proxy_is_no_confused_deputy() {
    for mode in ["keys", "all"] {
        for cache in ["0s", "1h"] {
            let setup = Setup::new()
                .set(&format!("forward = '{mode}'\nforward_cache = '{cache}'"))
                .access_key("KPALL", ALL)
                .access_key("KPORDERS", ON_ORDERS)
                .access_key("KPBILLS", ON_BILLS)
                .access_key("KPENCRYPT", ENCRYPT_ONLY);
            let server = setup.start().await;
            let (denied, unknown) = ("AccessDeniedException", "NotFoundException");
            let unmapped = if mode == "all" { "" } else { denied };
            let named = if mode == "all" { "" } else { unknown };
            // Twice: with a cold cache, and with a warm one.
            for round in 0..2 {
                for (client, key, key_id, code) in [
                    ("KPALL", ORDERS, None, ""),
                    ("KPALL", ORDERS, Some(ORDERS), ""),
                    ("KPALL", BILLS, None, ""),
                    ("KPALL", UNMAPPED, None, unmapped),
                    ("KPALL", UNMAPPED, Some(UNMAPPED), named),
                    ("KPORDERS", ORDERS, None, ""),
                    ("KPORDERS", ORDERS, Some(ORDERS), ""),
                    ("KPORDERS", BILLS, None, denied),
                    ("KPORDERS", BILLS, Some(BILLS), denied),
                    ("KPORDERS", UNMAPPED, None, denied),
                    ("KPORDERS", UNMAPPED, Some(UNMAPPED), denied),
                    // The blob of another key, with the name of an own key.
                    ("KPORDERS", BILLS, Some(ORDERS), "IncorrectKeyException"),
                    ("KPORDERS", UNMAPPED, Some(ORDERS), "IncorrectKeyException"),
                    ("KPBILLS", ORDERS, None, denied),
                    ("KPBILLS", ORDERS, Some(ORDERS), denied),
                    ("KPBILLS", BILLS, None, ""),
                    ("KPENCRYPT", ORDERS, None, denied),
                    ("KPENCRYPT", ORDERS, Some(ORDERS), denied),
                    ("KPENCRYPT", UNMAPPED, None, denied),
                ] {
                    let body = key_id.map_or(old(key), |key_id| with(old(key), "KeyId", key_id));
                    let what =
                        format!("{client} {key} as {key_id:?}, {mode}, cache {cache}, {round}");
                    let answer = server.call_as(client, "Decrypt", body).await;
                    if code == "IncorrectKeyException" && answer.code() == denied {
                        // If the cache has the plaintext, its key is known, and not theirs: that is
                        // checked first.
                        assert!(cache == "1h", "{what}");
                    } else {
                        assert_eq!(answer.code(), code, "{what}: {answer:?}");
                    }
                    // An error of KMS about a key that is not configured is not passed on.
                    assert!(
                        answer.status == 200
                            || key_id == Some(UNMAPPED)
                            || !answer.message().contains(UNMAPPED),
                        "{what}: {answer:?}"
                    );
                    assert!(
                        answer.status == 200 || !answer.body.to_string().contains(&base64("old")),
                        "{what}"
                    );
                    // To move it away is to decrypt it.
                    let mut body = json!({
                        "CiphertextBlob": old(key)["CiphertextBlob"],
                        "SourceEncryptionContext": {"a": "b"}, "DestinationKeyId": ORDERS,
                    });
                    if let Some(key_id) = key_id {
                        body["SourceKeyId"] = json!(key_id);
                    }
                    let moved = server.call_as(client, "ReEncrypt", body).await;
                    assert_eq!(
                        moved.status == 200,
                        answer.status == 200 && client != "KPBILLS",
                        "{what}: {moved:?}"
                    );
                }
            }
            // Who may decrypt with no chain causes no call at all.
            let calls = server.kms.count();
            server.call_as("KPENCRYPT", "Decrypt", old(BILLS)).await;
            assert_eq!(server.kms.count(), calls);
        }
    }
}

#[tokio::test]
async fn what_was_refused_is_not_kept_for_others() {
    let setup = Setup::new().set("forward_cache = '1h'");
    let server =
        setup.access_key("KPORDERS", ON_ORDERS).access_key("KPBILLS", ON_BILLS).start().await;
    let denied = "AccessDeniedException";
    assert_eq!(server.call_as("KPORDERS", "Decrypt", old(BILLS)).await.code(), denied);
    assert_eq!(server.call_as("KPBILLS", "Decrypt", old(BILLS)).await.code(), "");
    assert_eq!(server.kms.count(), 2, "the first was not kept");
    assert_eq!(server.call_as("KPBILLS", "Decrypt", old(BILLS)).await.code(), "");
    assert_eq!(server.call_as("KPORDERS", "Decrypt", old(BILLS)).await.code(), denied);
    assert_eq!(server.kms.count(), 2, "the second was");
}

#[tokio::test]
async fn a_kept_plaintext_costs_no_call_until_kms_refuses_the_key() {
    let server = Setup::new().set("forward_cache = '1h'").start().await;
    for _ in 0..3 {
        server.ok("Decrypt", old(ORDERS)).await;
        server.ok("Decrypt", with(old(ORDERS), "KeyId", "alias/orders")).await;
        server.ok("Decrypt", old(BILLS)).await;
    }
    assert_eq!(server.kms.count(), 2);
    // With KMS away, what is kept is still served.
    server.kms.fail(Some(Failure::Away));
    server.ok("Decrypt", old(ORDERS)).await;
    // A ciphertext that is not kept shows that the key is disabled.
    server.kms.fail(Some(Failure::Error("DisabledException", format!("{ORDERS} is disabled."))));
    let other = json!({"CiphertextBlob": blob(ORDERS, &json!({}), b"other")});
    assert_eq!(server.error("Decrypt", other).await, "DisabledException");
    assert_eq!(server.error("Decrypt", old(ORDERS)).await, "DisabledException");
    server.kms.fail(None);
    let calls = server.kms.count();
    server.ok("Decrypt", old(BILLS)).await;
    assert_eq!(server.kms.count(), calls, "that of another key is still kept");
    server.ok("Decrypt", old(ORDERS)).await;
    assert_eq!(server.kms.count(), calls + 1);
}

#[tokio::test]
async fn identical_concurrent_calls_share_one() {
    let server = Arc::new(Setup::new().start().await);
    server.kms.open(false);
    let calls: Vec<_> = (0..20)
        .map(|index| {
            let server = Arc::clone(&server);
            let body = if index < 19 { old(ORDERS) } else { old(BILLS) };
            tokio::spawn(async move { server.ok("Decrypt", body).await })
        })
        .collect();
    server.until_waiting(20).await;
    server.kms.open(true);
    for call in calls {
        assert_eq!(bytes(&call.await.unwrap()["Plaintext"]), b"old");
    }
    assert_eq!(server.kms.count(), 2);
}

/// The caller that began it disconnects, and KMS may have billed the call.
#[tokio::test]
async fn a_shared_call_continues_when_the_caller_that_began_it_leaves() {
    let server = Arc::new(Setup::new().start().await);
    server.kms.open(false);
    let decrypt = || {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.ok("Decrypt", old(ORDERS)).await })
    };
    let first = decrypt();
    server.until_waiting(1).await;
    let second = decrypt();
    server.until_waiting(2).await;
    first.abort();
    while server.api.forwarder.waiting() == 2 {
        tokio::task::yield_now().await;
    }
    server.kms.open(true);
    assert_eq!(bytes(&second.await.unwrap()["Plaintext"]), b"old");
    assert_eq!(server.kms.count(), 1);
    assert_eq!((forwarded(&server, "ok"), forwarded(&server, "abandoned")), (1, 0));
}

#[tokio::test]
async fn concurrent_calls_are_bounded_and_those_that_find_no_place_fail_immediately() {
    let server = Setup::new().start().await;
    server.kms.open(false);
    let decrypt = |number: usize| {
        let (api, key) = (Arc::clone(&server.api), ORDERS.to_owned());
        tokio::spawn(async move {
            let context = context::Context::default();
            let blob = bytes(&json!(blob(&key, &json!({}), number.to_string().as_bytes())));
            let digest = api.forwarder.digest(&blob, &context);
            let opened = api.forwarder.decrypt(&blob, &context, None, &digest).await;
            opened.map(|fresh| fresh.opened.plaintext().to_vec()).map_err(|error| error.code)
        })
    };
    let calls: Vec<_> = (0..forward::MAX_WAITING).map(decrypt).collect();
    server.until_waiting(calls.len()).await;
    while server.kms.count() < forward::MAX_CALLS {
        tokio::task::yield_now().await;
    }
    assert_eq!(decrypt(calls.len()).await.unwrap(), Err(Code::DependencyTimeout));
    assert_eq!(server.kms.count(), forward::MAX_CALLS, "the others wait");
    server.kms.open(true);
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), Ok(number.to_string().into_bytes()));
    }
    assert_eq!(server.kms.count(), forward::MAX_WAITING);
}

/// The call began before the refusal, and a caller joined it after the refusal.
#[tokio::test]
async fn a_response_that_is_older_than_a_refusal_of_its_key_is_not_kept() {
    let server = Arc::new(Setup::new().set("forward_cache = '1h'").start().await);
    server.kms.hold(&old(ORDERS)["CiphertextBlob"]);
    let decrypt = |server: &Arc<Server>| {
        let server = Arc::clone(server);
        tokio::spawn(async move { server.ok("Decrypt", old(ORDERS)).await })
    };
    let first = decrypt(&server);
    server.until_waiting(1).await;
    server.kms.fail(Some(Failure::Error("DisabledException", format!("{ORDERS} is disabled."))));
    let other = json!({"CiphertextBlob": blob(ORDERS, &json!({}), b"other")});
    assert_eq!(server.error("Decrypt", other).await, "DisabledException");
    server.kms.fail(None);
    let second = decrypt(&server);
    server.until_waiting(2).await;
    server.kms.open(true);
    for call in [first, second] {
        assert_eq!(bytes(&call.await.unwrap()["Plaintext"]), b"old");
    }
    assert_eq!(server.kms.count(), 2, "both got the response of the one call");
    for _ in 0..2 {
        server.ok("Decrypt", old(ORDERS)).await;
    }
    assert_eq!(server.kms.count(), 3, "only the response after the refusal is kept");
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_is_counted() {
    let server = Setup::new().start().await;
    server.kms.open(false);
    let body = old(ORDERS);
    let call = server.call("Decrypt", body);
    let waiting = async {
        server.until_waiting(1).await;
        while server.kms.count() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = call => panic!("{answer:?}"),
        () = waiting => {}
    }
    // The connection ends with the call.
    server.until_waiting(0).await;
    while forwarded(&server, "abandoned") == 0 {
        tokio::task::yield_now().await;
    }
    server.kms.open(true);
    server.ok("Decrypt", old(ORDERS)).await;
    assert_eq!((forwarded(&server, "ok"), forwarded(&server, "abandoned")), (1, 1));
}

#[tokio::test]
async fn errors_of_kms_are_those_of_its_keys_and_never_of_our_credentials() {
    let server = Setup::new().start().await;
    let role = "User: arn:aws:sts::111122223333:assumed-role/kms-proxy is not authorized";
    for (failure, status, code, outcome) in [
        (Failure::Error("DisabledException", String::new()), 400, "DisabledException", "denied"),
        (
            Failure::Error("KMSInvalidStateException", String::new()),
            400,
            "KMSInvalidStateException",
            "denied",
        ),
        (Failure::Error("NotFoundException", String::new()), 400, "NotFoundException", "denied"),
        (
            Failure::Error("AccessDeniedException", role.to_owned()),
            400,
            "AccessDeniedException",
            "denied",
        ),
        (
            Failure::Error("ThrottlingException", String::new()),
            400,
            "ThrottlingException",
            "throttled",
        ),
        (
            Failure::Error("KMSInternalException", String::new()),
            500,
            "KeyUnavailableException",
            "unavailable",
        ),
        (
            Failure::Error("UnrecognizedClientException", String::new()),
            503,
            "DependencyTimeoutException",
            "denied",
        ),
        (
            Failure::Error("ExpiredTokenException", String::new()),
            503,
            "DependencyTimeoutException",
            "denied",
        ),
        (Failure::Text(502, "<html>"), 503, "DependencyTimeoutException", "unavailable"),
        (Failure::Text(200, "{}"), 503, "DependencyTimeoutException", "ok"),
        (Failure::Away, 503, "DependencyTimeoutException", "unavailable"),
    ] {
        let before = forwarded(&server, outcome);
        server.kms.fail(Some(failure));
        let answer = server.call("Decrypt", old(ORDERS)).await;
        assert_eq!((answer.status, &*answer.code()), (status, code));
        assert!(!answer.message().contains("assumed-role"), "{answer:?}");
        assert_eq!(forwarded(&server, outcome), before + 1, "{code}");
    }
    // With KMS away, all but old ciphertexts works.
    let body = json!({"KeyId": "alias/orders", "Plaintext": base64("hello")});
    let blob = server.ok("Encrypt", body).await["CiphertextBlob"].take();
    server.ok("Decrypt", json!({"CiphertextBlob": blob})).await;
    server.ok("DescribeKey", json!({"KeyId": "alias/orders"})).await;
}

#[tokio::test]
async fn other_keys_and_operations_are_forwarded_on_request_alone() {
    let calls = [
        ("Encrypt", json!({"KeyId": UNMAPPED, "Plaintext": base64("hello")})),
        ("Decrypt", with(old(UNMAPPED), "KeyId", UNMAPPED)),
        ("GenerateDataKey", json!({"KeyId": UNMAPPED, "KeySpec": "AES_256"})),
        ("GenerateDataKeyWithoutPlaintext", json!({"KeyId": UNMAPPED, "KeySpec": "AES_256"})),
        (
            "ReEncrypt",
            json!({
                "CiphertextBlob": old(UNMAPPED)["CiphertextBlob"], "DestinationKeyId": UNMAPPED,
            }),
        ),
        ("DescribeKey", json!({"KeyId": "alias/elsewhere"})),
        ("DescribeKey", json!({"KeyId": "1234abcd-12ab-34cd-56ef-00000000ffff"})),
        ("ListAliases", json!({"KeyId": UNMAPPED})),
        ("RotateKeyOnDemand", json!({"KeyId": UNMAPPED})),
        ("Sign", json!({"KeyId": UNMAPPED})),
        ("CreateKey", json!({})),
    ];
    for mode in ["none", "keys", "all"] {
        let setup = Setup::new().set(&format!("forward = '{mode}'")).access_key("KPALL", ALL);
        let server = setup.access_key("KPORDERS", ON_ORDERS).start().await;
        for (operation, body) in &calls {
            let before = server.kms.count();
            let answer = server.call_as("KPALL", operation, body.clone()).await;
            let expected = match (mode, *operation) {
                ("all", _) => "",
                (_, "CreateKey") => "UnsupportedOperationException",
                _ => "NotFoundException",
            };
            assert_eq!(answer.code(), expected, "{operation} {body} with {mode}");
            assert_eq!(server.kms.count(), before + usize::from(mode == "all"), "{operation}");
            if mode == "all" && *operation != "Decrypt" {
                assert_eq!(answer.body, json!({"Done": operation}), "{operation}");
                assert_eq!(
                    server.kms.calls().last().unwrap(),
                    &((*operation).to_owned(), body.clone())
                );
            }
            // It takes the permission for every chain.
            if mode == "all" {
                let calls = server.kms.count();
                let answer = server.call_as("KPORDERS", operation, body.clone()).await;
                assert_eq!(answer.code(), "AccessDeniedException", "{operation} {body}");
                assert_eq!(server.kms.count(), calls);
            }
        }
        // Whatever is forwarded, chains are served here.
        let body = json!({"KeyId": "plain", "Plaintext": base64("hello")});
        assert_eq!(server.call_as("KPALL", "Encrypt", body).await.code(), "");
        let sign = server.call_as("KPALL", "Sign", json!({"KeyId": ORDERS})).await;
        assert_eq!(sign.code(), "UnsupportedOperationException");
    }
}

/// The names of mapped keys and of chains are set in the configuration: at KMS they could only be
/// given to other keys.
#[tokio::test]
async fn an_alias_that_is_configured_is_neither_made_nor_moved_nor_deleted_at_kms() {
    let setup = Setup::new().set("forward = 'all'").access_key("KPALL", ALL);
    let server = setup.access_key("KPORDERS", ON_ORDERS).start().await;
    for alias in ["alias/orders", "alias/plain"] {
        for (operation, body) in [
            ("DeleteAlias", json!({"AliasName": alias})),
            ("UpdateAlias", json!({"AliasName": alias, "TargetKeyId": UNMAPPED})),
            ("CreateAlias", json!({"AliasName": alias, "TargetKeyId": UNMAPPED})),
            ("CreateAlias", json!({"AliasName": "alias/new", "TargetKeyId": ORDERS})),
            ("UpdateAlias", json!({"AliasName": "alias/new", "TargetKeyId": "plain"})),
        ] {
            let answer = server.call_as("KPALL", operation, body.clone()).await;
            assert_eq!(answer.code(), "UnsupportedOperationException", "{operation} {body}");
            assert!(answer.message().contains("[[aws_api.key]]"), "{answer:?}");
            let code = server.call_as("KPORDERS", operation, body.clone()).await.code();
            assert_eq!(code, "AccessDeniedException", "{operation} {body}");
        }
    }
    assert_eq!(server.kms.count(), 0);
    let body = json!({"AliasName": "alias/new", "TargetKeyId": UNMAPPED});
    assert_eq!(server.call_as("KPALL", "CreateAlias", body).await.code(), "");
    assert_eq!(server.kms.count(), 1);
}

#[tokio::test]
async fn nothing_is_forwarded_where_that_is_turned_off() {
    let server = Setup::new().set("forward = 'none'").start().await;
    for body in [old(ORDERS), with(old(ORDERS), "KeyId", ORDERS), old(UNMAPPED)] {
        assert_eq!(server.error("Decrypt", body).await, "InvalidCiphertextException");
    }
    assert_eq!(server.kms.count(), 0);
}

#[tokio::test]
async fn an_error_of_a_forwarded_call_is_that_of_kms_unless_it_is_of_our_credentials() {
    let server = Setup::new().set("forward = 'all'").start().await;
    let body = json!({"KeyId": UNMAPPED});
    for (failure, status, code) in [
        (
            Failure::Error("InvalidGrantTokenException", "of KMS".to_owned()),
            400,
            "com.amazonaws.kms#InvalidGrantTokenException",
        ),
        (
            Failure::Error("ExpiredTokenException", "of KMS".to_owned()),
            503,
            "DependencyTimeoutException",
        ),
        (
            Failure::Error("AccessDeniedException", "of KMS".to_owned()),
            400,
            "AccessDeniedException",
        ),
        (Failure::Text(502, "<html>"), 503, "DependencyTimeoutException"),
        (Failure::Away, 503, "DependencyTimeoutException"),
    ] {
        server.kms.fail(Some(failure));
        let answer = server.call("Sign", body.clone()).await;
        assert_eq!((answer.status, &*answer.code()), (status, code));
        assert_eq!(answer.message() == "of KMS", code.contains('#'), "{answer:?}");
    }
    let count = r#"kms_proxy_forwarded_calls_total{operation="Sign",outcome="denied"}"#;
    assert_eq!(server.metric(count), 3);
}
