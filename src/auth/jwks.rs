//! The public keys of an issuer, parsed from a JWKS (RFC 7517).
//!
//! Only keys that verify signatures are accepted, each for the algorithms of its type: the
//! algorithm that a token names can't turn a public key into a shared secret. A key that is not
//! used is reported with the reason. It must not know where a JWKS comes from.

use base64_simd::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

/// More keys than any issuer has.
const MAX_KEYS: usize = 64;
/// The sizes of an RSA modulus that signatures are verified with, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The longest RSA exponent that signatures are verified with, in bits.
const MAX_EXPONENT_BITS: usize = 33;
/// Maximum number of skipped keys in an error.
const NAMED: usize = 5;

/// The keys of an issuer.
#[derive(Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    skipped: Vec<String>,
}

/// A key of an issuer.
pub(super) struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// Reads a JWKS. Keys that can't verify signatures are skipped: [`KeySet::skipped`] names them.
    ///
    /// # Errors
    /// Why it is not a JWKS, or has no usable key.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        if [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"].iter().any(|bom| json.starts_with(bom))
        {
            return Err("it starts with a byte order mark; save it as UTF-8 without one".to_owned());
        }
        let no_jwks = || "it is no JWKS: no JSON object with a list `keys`".to_owned();
        let set: Map<String, Value> = serde_json::from_slice(json).map_err(|_| no_jwks())?;
        let jwks = set.get("keys").and_then(Value::as_array).ok_or_else(no_jwks)?;
        if jwks.len() > MAX_KEYS {
            return Err(format!("it has more than {MAX_KEYS} keys"));
        }
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for (index, jwk) in jwks.iter().enumerate() {
            match Key::new(jwk) {
                Ok(key) => keys.push(key),
                Err(why) => skipped.push(format!("{}: {why}", name(index, jwk))),
            }
        }
        if keys.is_empty() {
            let mut why = "it has no key that verifies RS, PS, ES or EdDSA signatures".to_owned();
            for skipped in skipped.iter().take(NAMED) {
                why.push_str("; ");
                why.push_str(skipped);
            }
            if let Some(more @ 1..) = skipped.len().checked_sub(NAMED) {
                why.push_str(&format!("; and {more} more"));
            }
            return Err(why);
        }
        Ok(Self { keys, skipped })
    }

    /// The keys with this id for this algorithm: several if the token names no id, or if the issuer
    /// uses an id more than once.
    pub(super) fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| {
            key.algorithms.contains(&algorithm) && id.is_none_or(|id| key.id.as_deref() == Some(id))
        })
    }

    /// The number of keys.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys that are not used, each with the reason.
    pub(super) fn skipped(&self) -> &[String] {
        &self.skipped
    }
}

/// The name of a key in messages.
fn name(index: usize, jwk: &Value) -> String {
    match jwk.get("kid") {
        Some(Value::String(id)) => format!("key {} with kid {}", index + 1, quote(id)),
        Some(Value::Number(id)) => format!("key {} with kid {id}", index + 1),
        _ => format!("key {} without kid", index + 1),
    }
}

/// The start of a text from an issuer, escaped for the log.
fn quote(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

impl Key {
    fn new(jwk: &Value) -> Result<Self, String> {
        let jwk = jwk.as_object().ok_or("it is not a JSON object")?;
        if let Some(usage) = text(jwk, "use")?
            && usage != "sig"
        {
            return Err(format!(
                "its `use` is {}, and only \"sig\" is for signatures",
                quote(usage)
            ));
        }
        let id = text(jwk, "kid")?.map(str::to_owned);
        let kind = text(jwk, "kty")?.ok_or("it has no `kty`")?;
        let curve = || text(jwk, "crv")?.ok_or_else(|| "it has no `crv`".to_owned());
        let (mut algorithms, key) = match kind {
            "RSA" => (
                vec![
                    Algorithm::RS256,
                    Algorithm::RS384,
                    Algorithm::RS512,
                    Algorithm::PS256,
                    Algorithm::PS384,
                    Algorithm::PS512,
                ],
                rsa(jwk)?,
            ),
            "EC" => match curve()? {
                "P-256" => (vec![Algorithm::ES256], ec(jwk, 32)?),
                "P-384" => (vec![Algorithm::ES384], ec(jwk, 48)?),
                other => return Err(format!("the curve {} is not supported", quote(other))),
            },
            "OKP" => match curve()? {
                "Ed25519" => (vec![Algorithm::EdDSA], ed25519(jwk)?),
                other => return Err(format!("the curve {} is not supported", quote(other))),
            },
            "oct" => return Err("a shared secret does not prove who signed a token".to_owned()),
            other => return Err(format!("the key type {} is not supported", quote(other))),
        };
        if let Some(only) = text(jwk, "alg")? {
            algorithms.retain(|algorithm| format!("{algorithm:?}") == only);
            if algorithms.is_empty() {
                let only = quote(only);
                return Err(format!("its `alg` is {only}, which is not supported for this key"));
            }
        }
        Ok(Self { id, algorithms, key })
    }

    /// Whether `signature` (base64url) is this key's for `message`. `algorithm` must be one for
    /// which [`KeySet::find`] returned the key.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &str, signature: &str) -> bool {
        jsonwebtoken::crypto::verify(signature, message.as_bytes(), &self.key, algorithm)
            .unwrap_or(false)
    }
}

fn rsa(jwk: &Map<String, Value>) -> Result<DecodingKey, String> {
    let (modulus, exponent) = (number(jwk, "n")?, number(jwk, "e")?);
    let size = bits(&modulus);
    if !RSA_BITS.contains(&size) {
        let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
        return Err(format!("its RSA modulus has {size} bits, and must have {least} to {most}"));
    }
    let is_odd = exponent.last().is_some_and(|last| last & 1 == 1);
    if !is_odd || !(2..=MAX_EXPONENT_BITS).contains(&bits(&exponent)) {
        return Err("its RSA exponent `e` can't be used".to_owned());
    }
    Ok(DecodingKey::from_rsa_raw_components(&modulus, &exponent))
}

/// An uncompressed point of a curve whose coordinates have `len` bytes.
fn ec(jwk: &Map<String, Value>, len: usize) -> Result<DecodingKey, String> {
    let mut point = vec![4];
    for name in ["x", "y"] {
        let coordinate = number(jwk, name)?;
        let missing = len.checked_sub(coordinate.len());
        let missing = missing.ok_or_else(|| format!("its `{name}` is too long for its curve"))?;
        point.extend(std::iter::repeat_n(0, missing));
        point.extend(coordinate);
    }
    Ok(DecodingKey::from_ec_der(&point))
}

fn ed25519(jwk: &Map<String, Value>) -> Result<DecodingKey, String> {
    let x = bytes(jwk, "x")?;
    if x.len() != 32 {
        return Err("its `x` does not have 32 bytes".to_owned());
    }
    Ok(DecodingKey::from_ed_der(&x))
}

/// A string member; `null` counts as missing.
fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, String> {
    match jwk.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("its `{name}` is not a string")),
    }
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, String> {
    let text = text(jwk, name)?.ok_or_else(|| format!("it has no `{name}`"))?;
    URL_SAFE_NO_PAD.decode_to_vec(text).map_err(|_| {
        let wrong = if text.ends_with('=') { ", but has padding" } else { "" };
        format!("its `{name}` must be base64url without padding{wrong}")
    })
}

/// A big-endian number, with leading zeros removed: some issuers write them (Java's `BigInteger`
/// adds one as a sign), and the verifier rejects them.
fn number(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, String> {
    let mut bytes = bytes(jwk, name)?;
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    bytes.drain(..zeros);
    Ok(bytes)
}

/// The size in bits of a number without leading zeros.
fn bits(number: &[u8]) -> usize {
    let unused = number.first().map_or(0, |first| first.leading_zeros() as usize);
    number.len() * 8 - unused
}
