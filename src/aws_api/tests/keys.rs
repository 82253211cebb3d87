//! The operations that read keys.

use super::*;

#[tokio::test]
async fn a_key_is_described_as_kms_does() {
    let server = Setup::new().start().await;
    server.ok("Encrypt", json!({"KeyId": "alias/orders", "Plaintext": base64("x")})).await;
    let created_at = server.clock.unix_now();
    server.clock.advance(Duration::from_secs(10));
    for name in ["alias/orders", ORDERS] {
        let key = server.ok("DescribeKey", json!({"KeyId": name})).await["KeyMetadata"].take();
        let expected = json!({
            "AWSAccountId": ACCOUNT,
            "KeyId": "1234abcd-12ab-34cd-56ef-1234567890ab",
            "Arn": ORDERS,
            "CreationDate": created_at,
            "Enabled": true,
            "Description": "the chain orders of kms-proxy",
            "KeyUsage": "ENCRYPT_DECRYPT",
            "KeyState": "Enabled",
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
            "KeySpec": "SYMMETRIC_DEFAULT",
            "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
            "MultiRegion": false,
        });
        assert_eq!(key, expected);
    }
    // Without the store, and without a KEK, the date is missing.
    server.store.set_down(true);
    for name in ["alias/orders", "plain"] {
        let key = server.ok("DescribeKey", json!({"KeyId": name})).await["KeyMetadata"].take();
        assert!(key["Enabled"] == true && key.get("CreationDate").is_none(), "{key}");
    }
    server.store.set_down(false);
    assert_eq!(server.error("DescribeKey", json!({"KeyId": "none"})).await, "NotFoundException");
}

#[tokio::test]
async fn keys_and_aliases_are_listed_in_pages() {
    let server = Setup::new().start().await;
    let own = |chain: &str| format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/{chain}");
    let (mut arns, mut marker) = (Vec::new(), Value::Null);
    loop {
        let page = server.ok("ListKeys", json!({"Limit": 1, "Marker": marker})).await;
        let [key] = &page["Keys"].as_array().unwrap()[..] else { panic!("{page}") };
        let arn = key["KeyArn"].as_str().unwrap().to_owned();
        assert!(arn.ends_with(&format!("key/{}", key["KeyId"].as_str().unwrap())));
        arns.push(arn);
        assert_eq!(page["Truncated"] == true, page.get("NextMarker").is_some(), "{page}");
        match page.get("NextMarker") {
            Some(next) => marker = next.clone(),
            None => break,
        }
    }
    assert_eq!(arns, [ORDERS, &own("default"), BILLS, &own("plain")]);
    let aliases = |page: &Value| -> Vec<String> {
        let aliases = page["Aliases"].as_array().unwrap().iter();
        aliases.map(|alias| alias["AliasName"].as_str().unwrap().to_owned()).collect()
    };
    let all = server.ok("ListAliases", json!({})).await;
    assert_eq!(aliases(&all), ["alias/default", "alias/orders", "alias/plain"]);
    let alias = json!({
        "AliasName": "alias/orders",
        "AliasArn": format!("arn:aws:kms:{REGION}:{ACCOUNT}:alias/orders"),
        "TargetKeyId": "1234abcd-12ab-34cd-56ef-1234567890ab",
    });
    assert_eq!(all["Aliases"][1], alias);
    for (name, expected) in
        [(ORDERS, &["alias/orders"][..]), (BILLS, &[]), ("plain", &["alias/plain"])]
    {
        let of_key = server.ok("ListAliases", json!({"KeyId": name})).await;
        assert_eq!(aliases(&of_key), expected, "{name}");
    }
    for (operation, body, code) in [
        ("ListKeys", json!({"Limit": 1001}), "ValidationException"),
        ("ListKeys", json!({"Marker": "x"}), "InvalidMarkerException"),
        ("ListAliases", json!({"Limit": 101}), "ValidationException"),
        ("ListAliases", json!({"KeyId": "none"}), "NotFoundException"),
    ] {
        assert_eq!(server.error(operation, body.clone()).await, code, "{operation} {body}");
    }
}

#[tokio::test]
async fn rotations_are_listed_and_made() {
    let server = Setup::new().start().await;
    let key = json!({"KeyId": "alias/orders"});
    let status = server.ok("GetKeyRotationStatus", key.clone()).await;
    let expected = json!({"KeyId": ORDERS, "KeyRotationEnabled": true, "RotationPeriodInDays": 90});
    assert_eq!(status, expected, "there is no KEK yet");
    let body = json!({"KeyId": ORDERS, "Plaintext": base64("hello")});
    let old = server.ok("Encrypt", body).await["CiphertextBlob"].take();
    assert_eq!(server.ok("ListKeyRotations", key.clone()).await["Rotations"], json!([]));
    for _ in 0..2 {
        assert_eq!(server.ok("RotateKeyOnDemand", key.clone()).await, json!({"KeyId": ORDERS}));
    }
    let status = server.ok("GetKeyRotationStatus", key.clone()).await;
    assert_eq!(status["NextRotationDate"], server.clock.unix_now() + 90 * 86_400, "{status}");
    let first = server.ok("ListKeyRotations", json!({"KeyId": ORDERS, "Limit": 1})).await;
    assert_eq!(
        (&first["Truncated"], &first["Rotations"][0]["KeyId"]),
        (&json!(true), &json!(ORDERS))
    );
    let body = json!({"KeyId": ORDERS, "Marker": first["NextMarker"]});
    let rest = server.ok("ListKeyRotations", body).await;
    assert_eq!(
        (&rest["Truncated"], rest["Rotations"].as_array().unwrap().len()),
        (&json!(false), 1)
    );
    server.ok("Decrypt", json!({"CiphertextBlob": old})).await;
}

#[tokio::test]
async fn tags_grants_and_policies_are_those_of_a_new_key() {
    let server = Setup::new().start().await;
    let key = json!({"KeyId": "alias/orders"});
    for (operation, expected) in [
        ("ListResourceTags", json!({"Tags": [], "Truncated": false})),
        ("ListGrants", json!({"Grants": [], "Truncated": false})),
        ("ListKeyPolicies", json!({"PolicyNames": ["default"], "Truncated": false})),
    ] {
        assert_eq!(server.ok(operation, key.clone()).await, expected);
        let error = server.error(operation, json!({"KeyId": "none"})).await;
        assert_eq!(error, "NotFoundException");
    }
    for name in [Value::Null, json!("default")] {
        let body = json!({"KeyId": "alias/orders", "PolicyName": name});
        let policy = server.ok("GetKeyPolicy", body).await;
        let policy: Value = serde_json::from_str(policy["Policy"].as_str().unwrap()).unwrap();
        assert_eq!(
            policy["Statement"][0]["Principal"]["AWS"],
            format!("arn:aws:iam::{ACCOUNT}:root")
        );
    }
    let body = json!({"KeyId": "alias/orders", "PolicyName": "other"});
    assert_eq!(server.error("GetKeyPolicy", body).await, "NotFoundException");
}
