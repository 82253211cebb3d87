//! Every error that a caller can get, by the name that SDKs decide by.

use super::*;
use crate::service::Change;

#[tokio::test]
async fn bad_calls_have_the_errors_of_kms_and_never_repeat_a_value() {
    let server = Setup::new().start().await;
    let body = json!({"KeyId": "plain", "Plaintext": base64("hello")});
    let blob = server.ok("Encrypt", body).await["CiphertextBlob"].take();
    let encrypt = |more: Value| {
        let mut body = json!({"KeyId": "plain", "Plaintext": base64("hello")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("Encrypt", body)
    };
    let long = "x".repeat(65_536);
    for ((operation, body), code) in [
        (encrypt(json!({"KeyId": null})), "ValidationException"),
        (encrypt(json!({"KeyId": ""})), "ValidationException"),
        (encrypt(json!({"KeyId": "hunter2"})), "NotFoundException"),
        (encrypt(json!({"KeyId": "alias/HUNTER2"})), "NotFoundException"),
        (encrypt(json!({"KeyId": UNMAPPED})), "NotFoundException"),
        (
            encrypt(json!({"KeyId": ORDERS.replace("eu-central-1", "us-east-1")})),
            "NotFoundException",
        ),
        (encrypt(json!({"KeyId": 7})), "SerializationException"),
        (encrypt(json!({"Plaintext": "hunter2!"})), "SerializationException"),
        (encrypt(json!({"Plaintext": ""})), "ValidationException"),
        (encrypt(json!({"Plaintext": base64([0; 4097])})), "ValidationException"),
        (encrypt(json!({"EncryptionContext": {"a": long}})), "ValidationException"),
        (encrypt(json!({"EncryptionContext": {"hunter2": 1}})), "SerializationException"),
        (encrypt(json!({"EncryptionAlgorithm": "RSAES_OAEP_SHA_1"})), "InvalidKeyUsageException"),
        (("Encrypt", json!([])), "SerializationException"),
        (("Encrypt", json!("hunter2")), "SerializationException"),
        (("Decrypt", json!({})), "ValidationException"),
        (("Decrypt", json!({"CiphertextBlob": base64("hunter2")})), "InvalidCiphertextException"),
        (("Decrypt", json!({"CiphertextBlob": base64([0; 6145])})), "ValidationException"),
        (
            ("Decrypt", json!({"CiphertextBlob": blob, "KeyId": "alias/orders"})),
            "IncorrectKeyException",
        ),
        (("Decrypt", json!({"CiphertextBlob": blob, "KeyId": "none"})), "NotFoundException"),
        (
            ("Decrypt", json!({"CiphertextBlob": blob, "Recipient": {}})),
            "UnsupportedOperationException",
        ),
        (("GenerateDataKey", json!({"KeyId": "plain"})), "ValidationException"),
        (
            ("GenerateDataKey", json!({"KeyId": "plain", "NumberOfBytes": 1025})),
            "ValidationException",
        ),
        (
            ("GenerateDataKey", json!({"KeyId": "plain", "KeySpec": "AES_512"})),
            "ValidationException",
        ),
        (("GenerateRandom", json!({})), "ValidationException"),
        (
            ("GenerateRandom", json!({"NumberOfBytes": 7, "CustomKeyStoreId": "a"})),
            "UnsupportedOperationException",
        ),
        (("ReEncrypt", json!({"CiphertextBlob": blob})), "ValidationException"),
        (
            ("ReEncrypt", json!({"CiphertextBlob": blob, "DestinationKeyId": UNMAPPED})),
            "NotFoundException",
        ),
        (("RotateKeyOnDemand", json!({"KeyId": "none"})), "NotFoundException"),
        (("CreateKey", json!({})), "UnsupportedOperationException"),
        (("Sign", json!({"KeyId": "alias/orders"})), "UnsupportedOperationException"),
        (("Sign", json!({"KeyId": UNMAPPED})), "NotFoundException"),
        (("Hunter2", json!({})), "UnknownOperationException"),
    ] {
        let answer = server.call(operation, body.clone()).await;
        assert_eq!(answer.code(), code, "{operation} {body:.100}");
        assert_eq!(answer.status, 400);
        assert!(
            !answer.message().is_empty()
                && !answer.body.to_string().to_lowercase().contains("hunter2"),
            "{answer:?}"
        );
    }
    // What kms-proxy has not made may be a ciphertext of KMS.
    let operations: Vec<_> = server.kms.calls().into_iter().map(|(name, _)| name).collect();
    assert_eq!(operations, ["Decrypt"]);
    // The blob of this caller still opens.
    server.ok("Decrypt", json!({"CiphertextBlob": blob})).await;
}

#[tokio::test]
async fn requests_that_are_not_calls_of_kms_are_refused() {
    let server = Setup::new().start().await;
    let good = server.request("ListKeys", &json!({}));
    for (request, code) in [
        (good.clone().set("content-type", "application/json"), "SerializationException"),
        (good.clone().set("x-amz-target", "Trent.ListKeys"), "UnknownOperationException"),
        (good.clone().set("x-amz-target", ""), "UnknownOperationException"),
        (Request { body: "{".to_owned(), ..good.clone() }, "SerializationException"),
        (Request { body: " ".repeat(300_000), ..good.clone() }, "ValidationException"),
        // The gate refuses these, in the form of this API.
        (good.clone().set("origin", "https://evil.example"), "AccessDeniedException"),
        (good.clone().set("host", "evil.example"), "AccessDeniedException"),
    ] {
        let answer = server.send(request.clone()).await;
        assert_eq!(answer.code(), code, "{:?}", request.headers);
        assert!(answer.headers.contains_key("x-amzn-requestid"));
    }
    // The path may have more slashes, and the query may be empty, as at AWS.
    for path in ["//", "///", "/?", "//?"] {
        let request = Request { path: path.to_owned(), ..good.clone() };
        let answer = server.send(request).await;
        assert_eq!(answer.code(), "", "{path}");
        assert_eq!(answer.headers["content-type"], "application/x-amz-json-1.1", "{path}");
    }
    for path in ["/a", "//a", "/v1"] {
        let request = Request { path: path.to_owned(), ..good.clone() };
        let answer = server.send(request).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
    }
    // A charset may follow the media type.
    let request = good.set("content-type", "application/x-amz-json-1.1; charset=utf-8");
    assert_eq!(server.send(request).await.code(), "");
}

#[tokio::test]
async fn unsupported_operations_name_what_to_call_instead() {
    let server = Setup::new().start().await;
    for (operation, body, instead) in [
        ("CreateKey", json!({}), "PUT /v1/chains/NAME"),
        ("DisableKey", json!({"KeyId": "alias/orders"}), "/disable"),
        ("EnableKey", json!({"KeyId": "alias/orders"}), "/enable"),
        ("ScheduleKeyDeletion", json!({"KeyId": ORDERS}), "/destroy"),
        ("CreateGrant", json!({"KeyId": ORDERS}), "[[client]] allow"),
        ("PutKeyPolicy", json!({"KeyId": "plain"}), "[[client]] allow"),
        ("CreateAlias", json!({"TargetKeyId": ORDERS, "AliasName": "alias/x"}), "[[aws_api.key]]"),
        ("GenerateMac", json!({"KeyId": ORDERS}), "no such operation"),
    ] {
        let answer = server.call(operation, body).await;
        assert_eq!(answer.code(), "UnsupportedOperationException", "{operation}");
        let message = answer.message();
        assert!(message.contains(operation) && message.contains(instead), "{message}");
    }
}

#[tokio::test]
async fn what_an_operator_or_an_outage_causes_has_the_errors_that_sdks_expect() {
    let server = Setup::new().start().await;
    let encrypt = |chain: &str| json!({"KeyId": chain, "Plaintext": base64("hello")});
    let old = server.ok("Encrypt", encrypt("plain")).await["CiphertextBlob"].take();
    let rotated = server.service.rotate(Some("plain")).await.unwrap();
    let disabled = rotated.previous.unwrap();
    server.service.change_kek("plain", disabled, Change::Disable).await.unwrap();
    let body = json!({"CiphertextBlob": old});
    assert_eq!(server.error("Decrypt", body).await, "DisabledException");

    // The chain has no KEK yet, and none can be made.
    server.root.away.store(true, std::sync::atomic::Ordering::SeqCst);
    let answer = server.call("Encrypt", encrypt("alias/orders")).await;
    assert_eq!((answer.status, &*answer.code()), (503, "DependencyTimeoutException"));
    server.root.away.store(false, std::sync::atomic::Ordering::SeqCst);

    server.store.set_down(true);
    let answer = server.call("RotateKeyOnDemand", json!({"KeyId": "plain"})).await;
    assert_eq!((answer.status, &*answer.code()), (503, "DependencyTimeoutException"));
    server.store.set_down(false);
    // KMS replaces a key ten times in all; a chain ten times a minute.
    let mut codes = Vec::new();
    for _ in 0..12 {
        codes.push(server.error("RotateKeyOnDemand", json!({"KeyId": "plain"})).await);
    }
    assert_eq!(codes.last().unwrap(), "ThrottlingException", "{codes:?}");
}

#[tokio::test]
async fn each_failure_is_counted_once() {
    let server = Setup::new().start().await;
    let count = |outcome: &str, chain: &str| {
        let labels = format!("chain=\"{chain}\",operation=\"decrypt\",outcome=\"{outcome}\"");
        server.metric(&format!("kms_proxy_operations_total{{{labels}}}"))
    };
    let body = json!({"KeyId": "plain", "Plaintext": base64("hello")});
    let blob = server.ok("Encrypt", body).await["CiphertextBlob"].take();
    server.error("Decrypt", json!({"CiphertextBlob": blob, "EncryptionContext": {"a": "b"}})).await;
    assert_eq!((count("invalid_ciphertext", "plain"), count("invalid_ciphertext", "")), (1, 0));
    server.error("Decrypt", json!({"CiphertextBlob": base64("x")})).await;
    assert_eq!((count("invalid_ciphertext", "plain"), count("invalid_ciphertext", "")), (1, 1));
    server.error("Decrypt", json!({})).await;
    assert_eq!(count("invalid_request", ""), 1);
    server.error("Decrypt", json!({"CiphertextBlob": blob, "DryRun": true})).await;
    assert_eq!((count("ok", "plain"), count("invalid_request", "")), (1, 1));
}
