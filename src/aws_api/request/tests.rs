//! The members that requests may have, and the limits of each.

use super::*;

fn code<T>(result: Result<T, Error>) -> &'static str {
    result.err().map_or("ok", |error| error.code.as_str())
}

fn encrypt(body: &str) -> Result<usize, Error> {
    let request: Encrypt<'_> = parse(body.as_bytes())?;
    request.key_id()?;
    Ok(request.plaintext()?.as_slice().len())
}

fn base64(len: usize) -> String {
    STANDARD.encode_to_string(vec![b'x'; len])
}

#[test]
fn bodies_that_are_not_json_or_have_other_types_are_serialization_exceptions() {
    for body in [
        "{",
        "[]",
        "1",
        "null",
        r#"["a","aGVsbG8=",{},null,null]"#,
        r#" ["a","aGVsbG8=",{},null,null]"#,
        "\u{feff}{}",
        r#"{"KeyId":1}"#,
        r#"{"KeyId":"a","Plaintext":[1]}"#,
        r#"{"KeyId":"a","Plaintext":"aA"}"#,
        r#"{"KeyId":"a","Plaintext":"a b="}"#,
        r#"{"KeyId":"a","Plaintext":"aGVsbG8=","EncryptionContext":{"a":1}}"#,
        r#"{"KeyId":"a","Plaintext":"aGVsbG8=","DryRun":"yes"}"#,
    ] {
        assert_eq!(code(encrypt(body)), "SerializationException", "{body}");
    }
}

#[test]
fn members_that_are_not_known_are_ignored_and_null_is_a_missing_member() {
    let body = r#"{"KeyId":"a","Plaintext":"aGVsbG8=","New":{"a":[1]},"GrantTokens":["t"],
        "EncryptionContext":null,"EncryptionAlgorithm":null,"DryRun":null}"#;
    assert_eq!(encrypt(body).unwrap(), 5);
    for body in ["", "{}", r#"{"KeyId":null,"Plaintext":"aGVsbG8="}"#, r#"{"KeyId":"a"}"#] {
        let error = encrypt(body).unwrap_err();
        assert_eq!(error.code, Code::Validation, "{body}");
        assert!(error.message.contains("Member must not be null"), "{error:?}");
    }
}

#[test]
fn the_limits_are_those_of_kms() {
    for (len, expected) in
        [(0, "ValidationException"), (1, "ok"), (4096, "ok"), (4097, "ValidationException")]
    {
        let body = format!(r#"{{"KeyId":"a","Plaintext":"{}"}}"#, base64(len));
        assert_eq!(code(encrypt(&body)), expected, "{len} bytes of plaintext");
    }
    for (len, expected) in [(0, "ValidationException"), (6144, "ok"), (6145, "ValidationException")]
    {
        let body = format!(r#"{{"CiphertextBlob":"{}"}}"#, base64(len));
        let request: Decrypt<'_> = parse(body.as_bytes()).unwrap();
        assert_eq!(code(request.blob()), expected, "{len} bytes of blob");
    }
    for (len, expected) in [(0, "ValidationException"), (2048, "ok"), (2049, "ValidationException")]
    {
        let body = format!(r#"{{"KeyId":"{}","CiphertextBlob":"aa=="}}"#, "a".repeat(len));
        let request: Decrypt<'_> = parse(body.as_bytes()).unwrap();
        assert_eq!(code(request.key_id()), expected, "{len} bytes of KeyId");
    }
    for (members, expected) in [
        (r#""NumberOfBytes":0"#, "ValidationException"),
        (r#""NumberOfBytes":1"#, "ok"),
        (r#""NumberOfBytes":1024"#, "ok"),
        (r#""NumberOfBytes":1025"#, "ValidationException"),
        (r#""KeySpec":"AES_128""#, "ok"),
        (r#""KeySpec":"AES_192""#, "ValidationException"),
        (r#""KeySpec":"AES_256","NumberOfBytes":32"#, "ValidationException"),
        (r#""DryRun":false"#, "ValidationException"),
    ] {
        let body = format!("{{\"KeyId\":\"a\",{members}}}");
        let request: GenerateDataKey<'_> = parse(body.as_bytes()).unwrap();
        assert_eq!(code(request.bytes()), expected, "{members}");
    }
    for (members, expected) in [
        (r#""Limit":0"#, "ValidationException"),
        (r#""Limit":1000"#, "ok"),
        (r#""Limit":1001"#, "ValidationException"),
        (r#""Marker":"""#, "ValidationException"),
    ] {
        let body = format!("{{{members}}}");
        let look: Look<'_> = parse(body.as_bytes()).unwrap();
        let checked = look.limit(100, 1000).and_then(|_| look.marker().map(|_| ()));
        assert_eq!(code(checked), expected, "{members}");
    }
}

#[test]
fn what_only_asymmetric_keys_and_enclaves_have_is_refused() {
    let body = r#"{"KeyId":"a","CiphertextBlob":"aa==","EncryptionAlgorithm":"RSAES_OAEP_SHA_1"}"#;
    let request: Decrypt<'_> = parse(body.as_bytes()).unwrap();
    assert_eq!(code(request.key_id()), "InvalidKeyUsageException");
    let body = r#"{"CiphertextBlob":"aa==","Recipient":{"AttestationDocument":"aa=="}}"#;
    let request: Decrypt<'_> = parse(body.as_bytes()).unwrap();
    assert_eq!(code(request.key_id()), "UnsupportedOperationException");
}
