//! An issuer of JWTs: its keys, the JWKS that it shows, and tokens with any claims.

use std::time::{SystemTime, UNIX_EPOCH};

use base64_simd::URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

/// A key pair of an issuer.
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) algorithm: Algorithm,
    private: EncodingKey,
    jwk: Value,
}

impl Key {
    /// A new key for signatures of this algorithm.
    pub(crate) fn new(id: &str, algorithm: Algorithm) -> Self {
        let pair = |kind| KeyPair::generate_for(kind).unwrap();
        let (private, mut jwk) = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => {
                let kind = match algorithm {
                    Algorithm::ES256 => &rcgen::PKCS_ECDSA_P256_SHA256,
                    _ => &rcgen::PKCS_ECDSA_P384_SHA384,
                };
                let private = EncodingKey::from_ec_der(&pair(kind).serialize_der());
                let jwk = Jwk::from_encoding_key(&private, algorithm).unwrap();
                (private, serde_json::to_value(jwk).unwrap())
            }
            Algorithm::EdDSA => {
                let pair = pair(&rcgen::PKCS_ED25519);
                let x = BASE64.encode_to_string(pair.der_bytes());
                let private = EncodingKey::from_ed_der(&pair.serialize_der());
                (private, json!({"kty": "OKP", "crv": "Ed25519", "x": x}))
            }
            _ => {
                let der = pair(&rcgen::PKCS_RSA_SHA256).serialize_der();
                // PKCS#8 is PKCS#1 behind 26 bytes, at 2048 bits.
                let private = EncodingKey::from_rsa_der(&der[26..]);
                let jwk = Jwk::from_encoding_key(&private, algorithm).unwrap();
                (private, serde_json::to_value(jwk).unwrap())
            }
        };
        jwk["kid"] = id.into();
        jwk["use"] = "sig".into();
        jwk["alg"] = json!(algorithm);
        Self { id: id.to_owned(), algorithm, private, jwk }
    }

    /// Its public half, as a JWKS shows it.
    pub(crate) fn public(&self) -> Value {
        self.jwk.clone()
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = json!({"typ": "JWT", "alg": self.algorithm, "kid": self.id});
        self.sign_as(&header, claims)
    }

    /// The same with another header; the signature is of this key's algorithm all the same.
    pub(crate) fn sign_as(&self, header: &Value, claims: &Value) -> String {
        self.sign_bytes(header.to_string().as_bytes(), claims.to_string().as_bytes())
    }

    /// The same of any bytes.
    pub(crate) fn sign_bytes(&self, header: &[u8], claims: &[u8]) -> String {
        let message = [header, claims].map(|part| BASE64.encode_to_string(part)).join(".");
        let signature = crypto::sign(message.as_bytes(), &self.private, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

/// What is signed of a token.
pub(crate) fn message(header: &Value, claims: &Value) -> String {
    [header, claims].map(|json| BASE64.encode_to_string(json.to_string())).join(".")
}

/// A JWKS of these keys.
pub(crate) fn jwks(keys: &[&Key]) -> String {
    json!({ "keys": keys.iter().map(|key| key.public()).collect::<Vec<_>>() }).to_string()
}

/// Good claims for an hour from now.
pub(crate) fn claims(issuer: &str, audience: &str, subject: &str) -> Value {
    claims_at(now(), issuer, audience, subject)
}

/// The same from another second on.
pub(crate) fn claims_at(now: u64, issuer: &str, audience: &str, subject: &str) -> Value {
    json!({
        "iss": issuer, "aud": [audience, "another"], "sub": subject,
        "iat": now, "nbf": now, "exp": now + 3_600,
    })
}

/// The second since 1970.
#[expect(clippy::disallowed_methods, reason = "an issuer has its own clock")]
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A signature as an attacker makes it who takes a public key for a shared secret.
pub(crate) fn hmac_of(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = message(header, claims);
    let key = EncodingKey::from_secret(secret);
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}
