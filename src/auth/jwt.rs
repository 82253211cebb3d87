//! JSON Web Tokens (RFC 7519), verified by the rules of RFC 8725: parsing, checks of claims, and
//! signatures. A member that is `null` is not the same as one that is missing.
//!
//! It must not know clients: the caller finds them by the claims before it verifies the signature.

use base64_simd::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::Refusal;
use super::jwks::KeySet;

/// Tolerated difference of clocks, in seconds.
pub(super) const LEEWAY: u64 = 30;

/// A parsed token, not verified yet.
pub(super) struct Unverified<'a> {
    algorithm: Algorithm,
    key_id: Option<String>,
    pub(super) claims: Claims,
    message: &'a str,
    signature: &'a str,
}

/// The claims of a token.
pub(super) struct Claims {
    pub(super) iss: String,
    pub(super) sub: String,
    aud: Audience,
    exp: f64,
    nbf: Option<f64>,
}

/// The claims before the check that the required ones are present.
#[derive(Deserialize)]
struct Given {
    #[serde(default, deserialize_with = "given")]
    iss: Option<String>,
    #[serde(default, deserialize_with = "given")]
    sub: Option<String>,
    #[serde(default, deserialize_with = "given")]
    aud: Option<Audience>,
    #[serde(default, deserialize_with = "given")]
    exp: Option<f64>,
    #[serde(default, deserialize_with = "given")]
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
    #[serde(default, deserialize_with = "given")]
    kid: Option<String>,
    /// Extensions that a verifier must support: none is supported.
    #[serde(default, deserialize_with = "given")]
    crit: Option<IgnoredAny>,
}

/// A member that is present: `null` is a value, usually of the wrong type.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(member: D) -> Result<Option<T>, D::Error> {
    T::deserialize(member).map(Some)
}

/// Whether `token` has the form of a JWT.
pub(super) fn is_jwt(token: &str) -> bool {
    token.bytes().filter(|&b| b == b'.').count() == 2
}

impl<'a> Unverified<'a> {
    /// Parses a token.
    pub(super) fn parse(token: &'a str) -> Result<Self, Refusal> {
        let (message, signature) = token.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(Refusal::Malformed)?;
        let header: Header = json(header)?;
        let algorithm = algorithm(&header.alg).ok_or(Refusal::Algorithm)?;
        if header.crit.is_some() {
            return Err(Refusal::Malformed);
        }
        let claims = Claims::from_given(json(claims)?)?;
        Ok(Self { algorithm, key_id: header.kid, claims, message, signature })
    }

    /// Verifies the signature with each of `keys` that matches, until one succeeds.
    pub(super) fn verify(&self, keys: &KeySet) -> Result<(), Refusal> {
        let mut fitting = keys.find(self.key_id.as_deref(), self.algorithm).peekable();
        if fitting.peek().is_none() {
            return Err(Refusal::UnknownKey);
        }
        if fitting.any(|key| key.verifies(self.algorithm, self.message, self.signature)) {
            Ok(())
        } else {
            Err(Refusal::Signature)
        }
    }

    /// Whether newer keys of the issuer could change `refusal`.
    pub(super) fn may_be_of_a_new_key(&self, refusal: Refusal) -> bool {
        match refusal {
            Refusal::UnknownKey => true,
            Refusal::Signature => self.key_id.is_none(),
            _ => false,
        }
    }
}

impl Claims {
    fn from_given(given: Given) -> Result<Self, Refusal> {
        let Given { iss, sub, aud, exp, nbf } = given;
        Ok(Self {
            iss: iss.ok_or(Refusal::MissingClaim("iss"))?,
            sub: sub.ok_or(Refusal::MissingClaim("sub"))?,
            aud: aud.ok_or(Refusal::MissingClaim("aud"))?,
            exp: exp.ok_or(Refusal::MissingClaim("exp"))?,
            nbf,
        })
    }

    /// When the token expires, if it is valid `now`; both in seconds since 1970.
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

    /// Whether the token is for `audience`.
    pub(super) fn is_for(&self, audience: &str) -> bool {
        match &self.aud {
            Audience::One(one) => one == audience,
            Audience::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

/// The accepted algorithms: all are asymmetric. `none` and HMAC are rejected.
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

/// A NumericDate: seconds since 1970, possibly with a fraction.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn seconds(date: f64) -> Option<u64> {
    (0.0..=1e15).contains(&date).then_some(date as u64)
}

/// Decodes a part, which must be a JSON object in UTF-8 (RFC 7519, section 7.2). serde would also
/// accept an array and read its items as the members in order, so the first byte is checked; and it
/// does not look at the bytes of members that it ignores, so the encoding is checked too.
fn json<T: DeserializeOwned>(part: &str) -> Result<T, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode_to_vec(part).map_err(|_| Refusal::Malformed)?;
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::Malformed);
    }
    let text = str::from_utf8(&bytes).map_err(|_| Refusal::Malformed)?;
    serde_json::from_str(text).map_err(|_| Refusal::Malformed)
}
