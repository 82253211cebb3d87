//! The target of JWTs: what is read of a token is what its JSON says, each member once.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure is the result"
)]

use base64_simd::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::fuzzing::{members, only};

use super::jwt::{LEEWAY, Unverified, is_jwt};

const NOW: u64 = 1_767_225_600;

/// A token; or, without a dot, the JSON of header and claims, as two lines.
pub fn jwt(bytes: &[u8]) {
    if let Ok(token) = str::from_utf8(bytes) {
        check(token);
    }
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let mut part = || URL_SAFE_NO_PAD.encode_to_string(parts.next().unwrap_or_default());
    let (header, claims) = (part(), part());
    check(&format!("{header}.{claims}.c2lnbmF0dXJl"));
}

fn check(token: &str) {
    let Ok(jwt) = Unverified::parse(token) else { return };
    assert!(is_jwt(token));
    let parts = token.split('.').map(|part| URL_SAFE_NO_PAD.decode_to_vec(part).unwrap());
    let parts: Vec<_> = parts.take(2).collect();
    assert!(parts.iter().all(|part| str::from_utf8(part).is_ok()));
    let (Some(header), Some(claims)) = (members(&parts[0]), members(&parts[1])) else {
        // Members that are not known are skipped: their numbers may have any size.
        return;
    };
    let algorithm = only(&header, "alg").and_then(Value::as_str).unwrap();
    assert!(!algorithm.starts_with("HS") && algorithm != "none");
    assert!(header.iter().all(|(name, _)| name != "crit"));
    assert!(header.iter().all(|(name, value)| name != "kid" || value.is_string()));
    assert_eq!(only(&claims, "iss").and_then(Value::as_str), Some(&*jwt.claims.iss));
    assert_eq!(only(&claims, "sub").and_then(Value::as_str), Some(&*jwt.claims.sub));
    let audiences: Vec<&str> = match only(&claims, "aud").unwrap() {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().map(|one| one.as_str().unwrap()).collect(),
        other => panic!("{other}"),
    };
    assert!(audiences.iter().all(|one| jwt.claims.is_for(one)));
    assert_eq!(jwt.claims.is_for("kms-proxy"), audiences.contains(&"kms-proxy"));
    let exp = only(&claims, "exp").and_then(Value::as_f64).unwrap();
    if let Ok(until) = jwt.claims.valid_until(NOW) {
        assert!(until > NOW && exp + 1.0 > (NOW - LEEWAY) as f64);
        assert!(jwt.claims.valid_until(until).is_err());
        let nbf = only(&claims, "nbf").and_then(Value::as_f64);
        assert!(nbf.is_none_or(|nbf| nbf < (NOW + LEEWAY + 1) as f64));
    }
    for now in [0, u64::MAX] {
        let _ = jwt.claims.valid_until(now);
    }
}
