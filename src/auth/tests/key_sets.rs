//! JWKS as issuers write them, and which of their keys verify a token.

use super::*;

#[tokio::test]
async fn numbers_with_leading_zeros_or_without_them_are_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks.json");
    let mut keys: Vec<_> = [Algorithm::RS256, Algorithm::PS384, Algorithm::ES384]
        .map(|algorithm| Key::new(&format!("{algorithm:?}"), algorithm))
        .into();
    // A coordinate that starts with a zero, which some issuers leave out.
    keys.push(loop {
        let key = Key::new("short", Algorithm::ES256);
        if BASE64.decode_to_vec(key.public()["x"].as_str().unwrap()).unwrap()[0] == 0 {
            break key;
        }
    });
    let changed = |key: &Key, change: fn(Vec<u8>) -> Vec<u8>| {
        let mut jwk = key.public();
        for name in ["n", "e", "x", "y"] {
            if let Some(text) = jwk[name].as_str() {
                let number = change(BASE64.decode_to_vec(text).unwrap());
                jwk[name] = BASE64.encode_to_string(number).into();
            }
        }
        jwk
    };
    for change in [
        (|number| [&[0][..], &*number].concat()) as fn(Vec<u8>) -> Vec<u8>,
        |number| [&[0; 3][..], &*number].concat(),
        |number| number.into_iter().skip_while(|&byte| byte == 0).collect(),
    ] {
        let jwks: Vec<_> = keys.iter().map(|key| changed(key, change)).collect();
        std::fs::write(&file, json!({ "keys": jwks }).to_string()).unwrap();
        let world = world(clients(&jwt_client("a", "me", &file))).await;
        for key in &keys {
            let token = key.sign(&claims_at(NOW, ISSUER, "kms", "me"));
            assert_eq!(world.token(&token).await.unwrap(), "a", "{}", key.id);
        }
    }
}

#[test]
fn each_key_that_is_not_used_is_named_with_the_reason() {
    let (rsa, ec) = (Key::new("r", Algorithm::RS256), Key::new("e", Algorithm::ES256));
    let ed = Key::new("d", Algorithm::EdDSA);
    let changed = |key: &Key, name: &str, value: Value| {
        let mut jwk = key.public();
        jwk[name] = value;
        jwk
    };
    let number = |bytes: &[u8]| json!(BASE64.encode_to_string(bytes));
    let padded = format!("{}=", rsa.public()["n"].as_str().unwrap());
    let cases = [
        (changed(&rsa, "n", json!(padded)), "its `n` must be base64url without padding, but has"),
        (changed(&rsa, "n", json!("a/b+")), "its `n` must be base64url without padding"),
        (changed(&rsa, "n", number(&[0xff; 128])), "its RSA modulus has 1024 bits, and must have"),
        (changed(&rsa, "n", number(&[0x7f; 256])), "its RSA modulus has 2047 bits"),
        (changed(&rsa, "n", number(&[0xff; 1025])), "its RSA modulus has 8200 bits"),
        (changed(&rsa, "n", Value::Null), "it has no `n`"),
        (changed(&rsa, "e", json!("AA")), "its RSA exponent `e` can't be used"),
        (changed(&rsa, "e", json!("AQ")), "its RSA exponent `e` can't be used"),
        (changed(&rsa, "kid", json!(7)), "its `kid` is not a string"),
        (changed(&rsa, "use", json!("jwt-svid")), "its `use` is \"jwt-svid\", and only \"sig\""),
        (changed(&rsa, "alg", json!("RSA-OAEP")), "its `alg` is \"RSA-OAEP\", which is not"),
        (changed(&rsa, "kty", Value::Null), "it has no `kty`"),
        (changed(&ec, "crv", json!("P-521")), "the curve \"P-521\" is not supported"),
        (changed(&ec, "crv", Value::Null), "it has no `crv`"),
        (changed(&ec, "x", number(&[1; 33])), "its `x` is too long for its curve"),
        (changed(&ed, "x", number(&[1; 31])), "its `x` does not have 32 bytes"),
        (json!({"kty": "oct", "k": "c2VjcmV0", "kid": "s"}), "a shared secret does not prove"),
        (json!({"kty": "new\nline"}), "the key type \"new\\nline\" is not supported"),
        (json!([1]), "it is not a JSON object"),
    ];
    let mut keys: Vec<_> = cases.iter().map(|(jwk, _)| jwk.clone()).collect();
    keys.push(ec.public());
    let parse = |json: Value| jwks::KeySet::parse(json.to_string().as_bytes());
    let set = parse(json!({ "keys": keys })).unwrap();
    assert_eq!((set.len(), set.skipped().len()), (1, cases.len()));
    for (skipped, (_, why)) in set.skipped().iter().zip(&cases) {
        assert!(skipped.contains(&format!(": {why}")), "{skipped}\nexpected: {why}");
        assert!(!skipped.contains('\n') && !skipped.contains("c2VjcmV0"));
    }
    assert!(set.skipped()[0].starts_with("key 1 with kid \"r\": "), "{}", set.skipped()[0]);
    assert!(set.skipped()[8].starts_with("key 9 with kid 7: "), "{}", set.skipped()[8]);

    // Without a usable key, the error contains the same reasons.
    let error = parse(json!({ "keys": [cases[9].0, cases[2].0] })).err().unwrap();
    assert!(error.contains("jwt-svid") && error.contains("1024 bits"), "{error}");
    let many: Vec<_> = (0..7).map(|_| cases[9].0.clone()).collect();
    assert!(parse(json!({ "keys": many })).err().unwrap().ends_with("; and 2 more"));
    // The items of an array are not the members of an object.
    assert!(parse(json!([[ec.public()]])).is_err());
    let error = jwks::KeySet::parse(format!("\u{feff}{}", jwks(&[&ec])).as_bytes()).err().unwrap();
    assert!(error.contains("byte order mark"), "{error}");
}

#[tokio::test]
async fn every_key_that_fits_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks.json");
    let keys = ["one", "two", "two"].map(|id| Key::new(id, Algorithm::RS256));
    let stranger = Key::new("two", Algorithm::RS256);
    std::fs::write(&file, jwks(&keys.each_ref())).unwrap();
    let world = world(clients(&jwt_client("a", "me", &file))).await;
    let claims = claims_at(NOW, ISSUER, "kms", "me");
    let without = json!({"alg": "RS256"});
    for key in &keys {
        assert_eq!(world.token(&key.sign_as(&without, &claims)).await.unwrap(), "a");
        assert_eq!(world.token(&key.sign(&claims)).await.unwrap(), "a", "an id that two have");
    }
    let other = keys[0].sign_as(&json!({"alg": "RS256", "kid": "two"}), &claims);
    assert_eq!(world.token(&other).await, Err(Refusal::Signature));
    assert_eq!(world.token(&stranger.sign_as(&without, &claims)).await, Err(Refusal::Signature));
    assert_eq!(world.token(&stranger.sign(&claims)).await, Err(Refusal::Signature));
}

#[tokio::test]
async fn a_token_without_a_key_id_may_be_of_a_key_that_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "the-way-in\n").unwrap();
    let (old, new) = (Key::new("old", Algorithm::ES256), Key::new("new", Algorithm::ES256));
    let web = web(jwks(&[&old]));
    let config = clients(&format!(
        "[[client]]\nname = 'a'\nallow = [{{ chains = ['*'], operations = ['read'] }}]\n\
         jwt = {{ issuer = '{ISSUER}', audience = 'kms', subject = 'me', jwks_url = '{}', \
         jwks_token_file = '{}' }}\n",
        web.url,
        token_file.display()
    ));
    let world = world(config).await;
    let without =
        |key: &Key| key.sign_as(&json!({"alg": "ES256"}), &claims_at(NOW, ISSUER, "kms", "me"));
    web.says.store(Arc::new(jwks(&[&new])));
    assert!(world.token(&without(&old)).await.is_ok());
    world.clock.advance(Duration::from_secs(6));
    assert!(world.token(&without(&new)).await.is_ok(), "the caller waits for the keys");
    assert_eq!(web.asked.load(Ordering::SeqCst), 2);
}
