//! JSON Web Tokens (RFC 7519), signed as RFC 8725 wants: taken apart, their claims compared, their
//! signature verified.
//!
//! It knows no client: which of them a token is, is asked in between.

use base64_simd::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::Refusal;
use super::jwks::KeySet;

/// How far clocks may differ, in seconds.
pub(super) const LEEWAY: u64 = 30;

/// A token whose parts were read; nothing in it is verified yet.
pub(super) struct Unverified<'a> {
    algorithm: Algorithm,
    key_id: Option<String>,
    pub(super) claims: Claims,
    message: &'a str,
    signature: &'a str,
}

/// What a token claims.
#[derive(Deserialize)]
pub(super) struct Claims {
    pub(super) iss: String,
    pub(super) sub: String,
    aud: Audience,
    exp: f64,
    nbf: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood: none is.
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

/// Whether `token` looks like one.
pub(super) fn is_jwt(token: &str) -> bool {
    token.bytes().filter(|&b| b == b'.').count() == 2
}

impl<'a> Unverified<'a> {
    /// Reads the parts of a token.
    pub(super) fn parse(token: &'a str) -> Result<Self, Refusal> {
        let (message, signature) = token.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(Refusal::Malformed)?;
        let header: Header = json(header)?;
        let algorithm = algorithm(&header.alg).ok_or(Refusal::Algorithm)?;
        if header.crit.is_some() {
            return Err(Refusal::Malformed);
        }
        Ok(Self { algorithm, key_id: header.kid, claims: json(claims)?, message, signature })
    }

    /// Whether one of `keys` made the signature.
    pub(super) fn verify(&self, keys: &KeySet) -> Result<(), Refusal> {
        let key = keys.find(self.key_id.as_deref(), self.algorithm).ok_or(Refusal::UnknownKey)?;
        if key.verifies(self.algorithm, self.message, self.signature) {
            Ok(())
        } else {
            Err(Refusal::Signature)
        }
    }
}

impl Claims {
    /// The second, since 1970, up to which the token is good; it must be good `now`.
    pub(super) fn valid_until(&self, now: u64) -> Result<u64, Refusal> {
        let until = seconds(self.exp).ok_or(Refusal::Malformed)?.saturating_add(LEEWAY);
        let from = self.nbf.map_or(Some(0), seconds).ok_or(Refusal::Malformed)?;
        if now >= until {
            Err(Refusal::Expired)
        } else if now.saturating_add(LEEWAY) < from {
            Err(Refusal::NotYetValid)
        } else {
            Ok(until)
        }
    }

    /// Whether the token is meant for `audience`.
    pub(super) fn is_for(&self, audience: &str) -> bool {
        match &self.aud {
            Audience::One(one) => one == audience,
            Audience::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

/// The algorithms that are taken: none without a key, none with a shared one.
fn algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    })
}

/// A NumericDate: seconds since 1970, perhaps with a fraction.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn seconds(date: f64) -> Option<u64> {
    (0.0..=1e15).contains(&date).then_some(date as u64)
}

fn json<T: DeserializeOwned>(part: &str) -> Result<T, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode_to_vec(part).map_err(|_| Refusal::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Refusal::Malformed)
}
