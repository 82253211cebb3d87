//! AWS Signature Version 4: verifies the signatures of HTTP requests.
//!
//! A leaf: it knows no client and no clock. Callers look up the secret of an access key id and pass
//! in the time. The canonical form is that of the AWS General Reference, for services that encode
//! the path once more and do not normalize it.

use std::time::{Duration, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

mod canonical;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// The date that the signature is valid at, such as `20150830T123600Z`.
pub(crate) const DATE: HeaderName = HeaderName::from_static("x-amz-date");
/// The token of temporary credentials.
pub(crate) const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
/// The SHA-256 of the body, sent by some signers.
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";

/// How far the date of a request may be from the clock: 5 minutes, as at AWS.
pub(crate) const MAX_SKEW: Duration = Duration::from_secs(300);

/// What is signed.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// The path as it was received.
    pub(crate) path: &'a str,
    /// What follows the `?`, as it was received.
    pub(crate) query: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// The host of HTTP/2, which has no header `host`.
    pub(crate) authority: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

/// The part of AWS that a signature is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
}

/// Why a signature is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no `authorization`.
    Missing,
    /// The signature is not complete or not of this form; the text says which part.
    Incomplete(&'static str),
    /// The request carries the token of temporary credentials.
    SecurityToken,
    /// The date is more than [`MAX_SKEW`] before the clock.
    Expired,
    /// The date is more than [`MAX_SKEW`] after the clock.
    NotYetValid,
    /// The signature is for another region or service.
    Scope,
    /// The signature is not that of this request under this key.
    Signature,
}

/// The parts of the header `authorization`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Authorization<'a> {
    pub(crate) access_key_id: &'a str,
    /// The day of the signing key, such as `20150830`.
    pub(crate) day: &'a str,
    region: &'a str,
    service: &'a str,
    signed_headers: &'a str,
    signature: [u8; 32],
}

impl<'a> Authorization<'a> {
    /// Reads the header. Each part occurs exactly once, and there is no other part.
    ///
    /// # Errors
    /// [`Refusal::Missing`], [`Refusal::Incomplete`].
    pub(crate) fn parse(headers: &'a HeaderMap) -> Result<Self, Refusal> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().ok_or(Refusal::Missing)?;
        let parts = value.to_str().ok().filter(|_| values.next().is_none());
        let parts = parts.and_then(|text| text.strip_prefix(ALGORITHM)?.strip_prefix(' '));
        let parts = parts.ok_or(Refusal::Incomplete("authorization must be AWS4-HMAC-SHA256"))?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in parts.split(',') {
            let (name, value) = part.trim().split_once('=').unwrap_or_default();
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(Refusal::Incomplete("authorization has an unknown part")),
            };
            if slot.replace(value).is_some() {
                return Err(Refusal::Incomplete("authorization has a part twice"));
            }
        }
        let credential =
            credential.ok_or(Refusal::Incomplete("authorization has no Credential"))?;
        let parts: Vec<&str> = credential.split('/').collect();
        let [access_key_id, day, region, service, TERMINATOR] = parts[..] else {
            return Err(Refusal::Incomplete(
                "Credential must be ID/DAY/REGION/SERVICE/aws4_request",
            ));
        };
        if [access_key_id, day, region, service].contains(&"") {
            return Err(Refusal::Incomplete("Credential has an empty part"));
        }
        Ok(Self {
            access_key_id,
            day,
            region,
            service,
            signed_headers: signed_headers
                .ok_or(Refusal::Incomplete("authorization has no SignedHeaders"))?,
            signature: signature
                .and_then(from_hex)
                .ok_or(Refusal::Incomplete("Signature must be 64 lower-case hexadecimal digits"))?,
        })
    }

    /// Checks everything that needs no key: the token, the scope, the date, and which headers are
    /// signed.
    ///
    /// # Errors
    /// Every [`Refusal`] but [`Refusal::Missing`]; a body with another hash is
    /// [`Refusal::Signature`].
    pub(crate) fn check(
        &self,
        request: &Request<'_>,
        scope: Scope<'_>,
        unix_now: u64,
    ) -> Result<(), Refusal> {
        let headers = request.headers;
        if headers.contains_key(SECURITY_TOKEN) {
            return Err(Refusal::SecurityToken);
        }
        let date = one(headers, &DATE).and_then(|date| date.to_str().ok());
        let date = date.ok_or(Refusal::Incomplete("x-amz-date must be sent exactly once"))?;
        let signed_at = parse_date(date)
            .ok_or(Refusal::Incomplete("x-amz-date must be written like 20150830T123600Z"))?;
        if !date.starts_with(self.day) || self.day.len() != 8 {
            return Err(Refusal::Incomplete("the day in Credential must be that of x-amz-date"));
        }
        if (self.region, self.service) != (scope.region, scope.service) {
            return Err(Refusal::Scope);
        }
        self.check_headers(request)?;
        if let Some(sent) = one(headers, &CONTENT_SHA256)
            && sent.as_bytes() != hex_digest(request.body)
        {
            return Err(Refusal::Signature);
        }
        let skew = MAX_SKEW.as_secs();
        if signed_at.saturating_add(skew) < unix_now {
            return Err(Refusal::Expired);
        }
        if signed_at > unix_now.saturating_add(skew) {
            return Err(Refusal::NotYetValid);
        }
        Ok(())
    }

    /// `host` and every `x-amz-*` header must be signed, and each signed header must be sent once.
    fn check_headers(&self, request: &Request<'_>) -> Result<(), Refusal> {
        let names: Vec<&str> = self.signed_headers.split(';').collect();
        let is_lower = !self.signed_headers.bytes().any(|b| b.is_ascii_uppercase());
        if !is_lower || !names.is_sorted_by(|a, b| a < b) {
            let detail = "SignedHeaders must be lower-case names in order, each of them once";
            return Err(Refusal::Incomplete(detail));
        }
        let is_signed = |name: &str| names.binary_search(&name).is_ok();
        if !is_signed("host") {
            return Err(Refusal::Incomplete("host must be signed"));
        }
        let mut sent = request.headers.keys().map(HeaderName::as_str);
        if !sent.all(|name| !name.starts_with("x-amz-") || is_signed(name)) {
            return Err(Refusal::Incomplete("every x-amz-* header must be signed"));
        }
        let is_once = |name: &&str| {
            let is_authority = *name == HOST.as_str() && !request.headers.contains_key(HOST);
            is_authority && request.authority.is_some()
                || request.headers.get_all(*name).iter().count() == 1
        };
        if !names.iter().all(is_once) {
            return Err(Refusal::Incomplete("every signed header must be sent exactly once"));
        }
        Ok(())
    }

    /// Compares the signature in constant time. [`check`](Self::check) comes first.
    ///
    /// # Errors
    /// [`Refusal::Signature`].
    pub(crate) fn verify(&self, request: &Request<'_>, key: &SigningKey) -> Result<(), Refusal> {
        let date = one(request.headers, &DATE).map(HeaderValue::as_bytes).unwrap_or_default();
        let hash = Sha256::digest(canonical::request(request, self.signed_headers));
        let scope = Scope { region: self.region, service: self.service };
        let text = string_to_sign(date, self.day, scope, hash.into());
        mac(key.0.as_slice(), &text)
            .and_then(|mac| mac.verify_slice(&self.signature).ok())
            .ok_or(Refusal::Signature)
    }
}

/// The key that signs one day's requests for one scope. Wiped on drop.
#[derive(Clone)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub(crate) struct SigningKey(Zeroizing<[u8; 32]>);

impl SigningKey {
    /// The key of a secret access key for a day such as `20150830`.
    pub(crate) fn derive(secret: &[u8], day: &str, scope: Scope<'_>) -> Self {
        let mut start = Zeroizing::new(Vec::with_capacity(4 + secret.len()));
        start.extend_from_slice(b"AWS4");
        start.extend_from_slice(secret);
        let parts = [scope.region, scope.service, TERMINATOR];
        let first = hash_mac(&start, day.as_bytes());
        Self(parts.iter().fold(first, |key, part| hash_mac(key.as_slice(), part.as_bytes())))
    }
}

/// Seconds since the Unix epoch as `x-amz-date`.
pub(crate) fn format_date(unix: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(unix);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

/// Seconds since the Unix epoch of `20150830T123600Z`.
fn parse_date(text: &str) -> Option<u64> {
    let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (day, time) = text.strip_suffix('Z')?.split_once('T')?;
    if day.len() != 8 || time.len() != 6 || !is_digits(day) || !is_digits(time) {
        return None;
    }
    let part = |text: &str, at: usize, len: usize| text.get(at..at + len).map(str::to_owned);
    let (year, month, of_month) = (part(day, 0, 4)?, part(day, 4, 2)?, part(day, 6, 2)?);
    let (hour, minute, second) = (part(time, 0, 2)?, part(time, 2, 2)?, part(time, 4, 2)?);
    let text = format!("{year}-{month}-{of_month}T{hour}:{minute}:{second}Z");
    let time = humantime::parse_rfc3339(&text).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

fn string_to_sign(date: &[u8], day: &str, scope: Scope<'_>, hash: [u8; 32]) -> Vec<u8> {
    let Scope { region, service } = scope;
    let scope = format!("{day}/{region}/{service}/{TERMINATOR}");
    let hash = base16ct::lower::encode_string(&hash);
    [ALGORITHM.as_bytes(), date, scope.as_bytes(), hash.as_bytes()].join(&b'\n')
}

/// The value of a header that is sent exactly once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn hex_digest(bytes: &[u8]) -> Vec<u8> {
    base16ct::lower::encode_string(&Sha256::digest(bytes)).into_bytes()
}

/// Exactly 64 lower-case digits.
fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let decoded = base16ct::lower::decode(text, &mut bytes).ok()?;
    (decoded.len() == bytes.len()).then_some(bytes)
}

/// HMAC-SHA-256 takes keys of any length, so this is always `Some`.
fn mac(key: &[u8], text: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(text);
    Some(mac)
}

fn hash_mac(key: &[u8], text: &[u8]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(mac(key, text).map(|mac| mac.finalize().into_bytes().into()).unwrap_or_default())
}
