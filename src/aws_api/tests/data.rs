//! The operations on data, served from chains.

use super::*;
use crate::store::inline;

const CONTEXT: &str = "EncryptionContext";

#[tokio::test]
async fn what_is_encrypted_decrypts_with_the_key_under_each_of_its_names() {
    let server = Setup::new().start().await;
    let alias_arn = ORDERS.replace("key/1234abcd-12ab-34cd-56ef-1234567890ab", "alias/orders");
    let id = "1234abcd-12ab-34cd-56ef-1234567890ab";
    let plain = format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/plain");
    let plain_alias = plain.replace(":key/", ":alias/");
    for (arn, names) in [
        (ORDERS, [ORDERS, id, "alias/orders", &alias_arn]),
        (&plain, [&plain, "plain", "alias/plain", &plain_alias]),
    ] {
        for name in names {
            let body = json!({"KeyId": name, "Plaintext": base64("hello"), CONTEXT: {"a": "b"}});
            let made = server.ok("Encrypt", body).await;
            assert_eq!(
                (&made["KeyId"], &made["EncryptionAlgorithm"]),
                (&json!(arn), &json!("SYMMETRIC_DEFAULT"))
            );
            let blob = &made["CiphertextBlob"];
            assert!(blob.as_str().unwrap().starts_with("kmspr"), "{blob}");
            // Decrypt takes every name of the key, and none.
            for name in names.map(|name| json!(name)).into_iter().chain([Value::Null]) {
                let body = json!({"KeyId": name, "CiphertextBlob": blob, CONTEXT: {"a": "b"}});
                let opened = server.ok("Decrypt", body).await;
                assert_eq!(
                    (bytes(&opened["Plaintext"]), &opened["KeyId"]),
                    (b"hello".to_vec(), &json!(arn))
                );
            }
        }
    }
    assert_eq!(server.kms.count(), 0);
    assert_eq!(
        server.metric(
            r#"kms_proxy_operations_total{chain="orders",operation="encrypt",outcome="ok"}"#
        ),
        4
    );
}

#[tokio::test]
async fn responses_have_the_form_of_aws() {
    let server = Setup::new().start().await;
    let call =
        json!({"KeyId": "plain", "Plaintext": base64("hello"), "New": [1], "GrantTokens": ["t"]});
    let request = server.request("Encrypt", &call).set("x-request-id", "req-7");
    for (request, status) in [
        (request.clone(), 200),
        (server.request("Encrypt", &json!({})).set("x-request-id", "req-7"), 400),
    ] {
        let answer = server.send(request).await;
        assert_eq!(answer.status, status);
        let headers = &answer.headers;
        assert_eq!(headers["content-type"], "application/x-amz-json-1.1");
        assert_eq!(
            (&headers["x-amzn-requestid"], &headers["cache-control"]),
            (&headers["x-request-id"], &HeaderValue::from_static("no-store"))
        );
        assert_eq!(headers["x-amzn-requestid"], "req-7");
        assert!(headers.contains_key("date"), "SDKs correct their clocks by it: {headers:?}");
    }
    // The other API is at its own paths.
    let document = server.client.get(format!("{}/openapi.json", server.url)).send().await.unwrap();
    assert_eq!(document.status(), 200);
    let root = server.client.get(format!("{}/", server.url)).send().await.unwrap();
    assert_eq!((root.status().as_u16(), root.url().path()), (200, "/status"), "it is led there");
}

#[tokio::test]
async fn a_data_key_has_the_size_that_was_asked_for_and_decrypts() {
    let server = Setup::new().start().await;
    for (members, len) in [
        (json!({"KeySpec": "AES_128"}), 16),
        (json!({"KeySpec": "AES_256"}), 32),
        (json!({"NumberOfBytes": 1}), 1),
        (json!({"NumberOfBytes": 1024}), 1024),
    ] {
        for operation in ["GenerateDataKey", "GenerateDataKeyWithoutPlaintext"] {
            let mut body = members.clone();
            body["KeyId"] = json!("alias/orders");
            body[CONTEXT] = json!({"table": "orders"});
            let made = server.ok(operation, body).await;
            assert_eq!(made["KeyId"], ORDERS);
            let body =
                json!({"CiphertextBlob": made["CiphertextBlob"], CONTEXT: {"table": "orders"}});
            let opened = server.ok("Decrypt", body).await;
            assert_eq!(bytes(&opened["Plaintext"]).len(), len);
            match operation {
                "GenerateDataKey" => assert_eq!(made["Plaintext"], opened["Plaintext"]),
                _ => assert!(made.get("Plaintext").is_none(), "{made}"),
            }
        }
    }
    let random = server.ok("GenerateRandom", json!({"NumberOfBytes": 1024})).await;
    assert_eq!(bytes(&random["Plaintext"]).len(), 1024);
    let count = r#"kms_proxy_operations_total{chain="orders",operation="datakey",outcome="ok"}"#;
    assert_eq!(server.metric(count), 8);
}

#[tokio::test]
async fn a_ciphertext_opens_with_its_own_encryption_context_alone() {
    let server = Setup::new().start().await;
    for (context, same, others) in [
        (
            json!({"a": "1", "b": "2"}),
            vec![json!({"b": "2", "a": "1"})],
            vec![json!({"a": "1"}), json!({"a": "2", "b": "1"}), json!({}), Value::Null],
        ),
        (json!({}), vec![Value::Null], vec![json!({"": ""})]),
        (Value::Null, vec![json!({})], vec![json!({"a": "1"})]),
    ] {
        let body = json!({"KeyId": "plain", "Plaintext": base64("hello"), CONTEXT: context});
        let blob = server.ok("Encrypt", body).await["CiphertextBlob"].take();
        for context in same.into_iter().chain([context]) {
            server.ok("Decrypt", json!({"CiphertextBlob": blob, CONTEXT: context})).await;
        }
        for other in others {
            let body = json!({"CiphertextBlob": blob, CONTEXT: other});
            assert_eq!(
                server.error("Decrypt", body).await,
                "InvalidCiphertextException",
                "{other}"
            );
        }
    }
    // The AAD of /v1/decrypt is the context, as docs/format.md specifies it.
    let body = json!({"KeyId": "plain", "Plaintext": base64("hello"), CONTEXT: {"a": "b"}});
    let blob = bytes(&server.ok("Encrypt", body).await["CiphertextBlob"]);
    let envelope = format!("kp:{}", base64(&blob[blob::MAGIC.len() + 2 + "plain".len()..]));
    let aad = base64(b"kms-proxy aws context v1\0\x01a\0\x01b");
    let body = json!({"chain": "plain", "ciphertext": envelope, "aad": aad});
    let opened = server.client.post(format!("{}/v1/decrypt", server.url)).json(&body);
    let opened: Value = opened.send().await.unwrap().json().await.unwrap();
    assert_eq!(opened["plaintext"], base64("hello"));
}

#[tokio::test]
async fn re_encrypt_moves_a_ciphertext_to_another_key_and_context() {
    let server = Setup::new().start().await;
    let body = json!({"KeyId": "plain", "Plaintext": base64("hello"), CONTEXT: {"a": "b"}});
    let blob = server.ok("Encrypt", body).await["CiphertextBlob"].take();
    let plain = format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/plain");
    for source in [Value::Null, json!("alias/plain")] {
        let body = json!({
            "CiphertextBlob": blob, "SourceKeyId": source, "SourceEncryptionContext": {"a": "b"},
            "DestinationKeyId": "alias/orders", "DestinationEncryptionContext": {"c": "d"},
        });
        let moved = server.ok("ReEncrypt", body).await;
        assert_eq!((&moved["SourceKeyId"], &moved["KeyId"]), (&json!(plain), &json!(ORDERS)));
        assert!(moved.get("Plaintext").is_none());
        let body = json!({"CiphertextBlob": moved["CiphertextBlob"], CONTEXT: {"c": "d"}});
        let opened = server.ok("Decrypt", body).await;
        assert_eq!(
            (bytes(&opened["Plaintext"]), &opened["KeyId"]),
            (b"hello".to_vec(), &json!(ORDERS))
        );
    }
    for (member, value) in
        [("SourceKeyId", json!("alias/orders")), ("SourceEncryptionContext", json!({}))]
    {
        let mut body = json!({
            "CiphertextBlob": blob, "SourceEncryptionContext": {"a": "b"},
            "DestinationKeyId": "plain",
        });
        body[member] = value;
        let expected = if member == "SourceKeyId" {
            "IncorrectKeyException"
        } else {
            "InvalidCiphertextException"
        };
        assert_eq!(server.error("ReEncrypt", body).await, expected);
    }
}

#[tokio::test]
async fn a_dry_run_says_whether_the_call_would_succeed() {
    let server = Setup::new().start().await;
    let body = json!({"KeyId": "plain", "Plaintext": base64("hello")});
    let blob = server.ok("Encrypt", body).await["CiphertextBlob"].take();
    for (operation, mut body) in [
        ("Encrypt", json!({"KeyId": "plain", "Plaintext": base64("hello")})),
        ("Decrypt", json!({"CiphertextBlob": blob})),
        ("GenerateDataKey", json!({"KeyId": "plain", "KeySpec": "AES_256"})),
        ("GenerateDataKeyWithoutPlaintext", json!({"KeyId": "plain", "KeySpec": "AES_256"})),
        ("ReEncrypt", json!({"CiphertextBlob": blob, "DestinationKeyId": "plain"})),
    ] {
        body["DryRun"] = json!(true);
        assert_eq!(server.error(operation, body.clone()).await, "DryRunOperationException");
        let member = if operation == "ReEncrypt" { "DestinationKeyId" } else { "KeyId" };
        body[member] = json!("none");
        assert_eq!(server.error(operation, body).await, "NotFoundException");
    }
}

#[tokio::test]
async fn a_blob_with_any_byte_changed_or_missing_fails_as_at_kms() {
    let server = Setup::new().start().await;
    let settings = ChainSettings { inline: Some(true), ..ChainSettings::default() };
    server.service.put_chain("bills", settings).await.unwrap();
    // Only a root that has opened a KEK of another process calls an inline KEK forged.
    let named = root::Named { name: "main".into(), root: Arc::clone(&server.root) as _ };
    let config = service::Config::default();
    let (store, clock) = (Arc::new(inline::Store::new()), Arc::clone(&server.clock));
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let other = KeyService::start(config, store, vec![named], clock, metrics).await.unwrap();
    let foreign = other.encrypt(None, b"hello"[..].into(), b"").await.unwrap().envelope;
    server.service.decrypt(None, foreign.as_slice().to_vec(), b"").await.unwrap();
    let context = json!({"a": "b"});
    for (operation, body) in [
        ("Encrypt", json!({"KeyId": "alias/orders", "Plaintext": base64("hello")})),
        ("GenerateDataKey", json!({"KeyId": "plain", "KeySpec": "AES_256"})),
        // The blob contains the wrapped KEK.
        ("Encrypt", json!({"KeyId": BILLS, "Plaintext": base64("hello")})),
    ] {
        let mut body = body;
        body[CONTEXT] = context.clone();
        let blob = bytes(&server.ok(operation, body).await["CiphertextBlob"]);
        let calls = server.kms.count();
        let mut damaged: Vec<_> = (0..blob.len())
            .flat_map(|index| {
                [1 << (index % 8), 0xff].map(|mask| {
                    let mut blob = blob.clone();
                    blob[index] ^= mask;
                    blob
                })
            })
            .collect();
        damaged.extend((1..blob.len()).map(|len| blob[..len].to_vec()));
        damaged.push([&blob[..], b"x"].concat());
        for damaged in &damaged {
            let body = json!({"CiphertextBlob": base64(damaged), CONTEXT: context});
            let code = server.error("Decrypt", body).await;
            assert_eq!(code, "InvalidCiphertextException", "{damaged:x?}");
            // One wrap that does not open is allowed per second.
            server.clock.advance(Duration::from_secs(1));
        }
        // KMS receives none that is still recognised: all but those whose magic is damaged.
        let unrecognised = damaged.iter().filter(|blob| !blob.starts_with(&blob::MAGIC)).count();
        assert_eq!(server.kms.count() - calls, unrecognised);
        server.ok("Decrypt", json!({"CiphertextBlob": base64(blob), CONTEXT: context})).await;
    }
}

#[tokio::test]
async fn the_longest_plaintext_has_a_blob_that_decrypts() {
    let server = Setup::new().start().await;
    let body = json!({"KeyId": "alias/orders", "Plaintext": base64([7; 4096])});
    let made = server.ok("Encrypt", body).await;
    assert!(bytes(&made["CiphertextBlob"]).len() <= 6144);
    let opened = server.ok("Decrypt", json!({"CiphertextBlob": made["CiphertextBlob"]})).await;
    assert_eq!(bytes(&opened["Plaintext"]), [7; 4096]);
}

#[tokio::test]
async fn the_blobs_of_an_inline_chain_open_after_the_store_is_lost() {
    let server = Setup::new().start().await;
    let inline = ChainSettings { inline: Some(true), ..ChainSettings::default() };
    server.service.put_chain("orders", inline).await.unwrap();
    let body = json!({"KeyId": "alias/orders", "Plaintext": base64([7; 4096])});
    let made = server.ok("Encrypt", body).await;
    assert!(bytes(&made["CiphertextBlob"]).len() <= 6144);
    let body = json!({"KeyId": "alias/orders", "KeySpec": "AES_256"});
    let key = server.ok("GenerateDataKey", body).await;

    // Another service, which shares nothing with it but the root.
    let fresh = Setup::new().start().await;
    for (blob, plaintext) in [(&made, base64([7; 4096])), (&key, key["Plaintext"].to_string())] {
        let opened = fresh.ok("Decrypt", json!({"CiphertextBlob": blob["CiphertextBlob"]})).await;
        assert_eq!(opened["Plaintext"], plaintext.trim_matches('"'));
    }
}
