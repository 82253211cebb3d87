//! AWS Signature Version 4: verifies the signatures of HTTP requests.
//!
//! A leaf: it knows no client and no clock. Callers look up the secret of an access key id and pass
//! in the time. The canonical form is that of the AWS General Reference, for services that encode
//! the path once more and do not normalize it.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

mod canonical;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(any(test, fuzzing))]
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
        for part in pieces(parts, b',') {
            let mut name_and_value = part.trim().splitn(2, '=');
            let (name, value) = (name_and_value.next(), name_and_value.next());
            let (Some(name), Some(value)) = (name, value) else {
                return Err(Refusal::Incomplete("authorization has an unknown part"));
            };
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
        let mut parts = pieces(credential, b'/');
        let parts: [Option<&str>; 6] = std::array::from_fn(|_| parts.next());
        let [Some(access_key_id), Some(day), Some(region), Some(service), Some(TERMINATOR), None] =
            parts
        else {
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
    pub(crate) fn check<'b>(
        &'b self,
        request: &'b Request<'b>,
        scope: Scope<'_>,
        unix_now: u64,
    ) -> Result<Checked<'b>, Refusal> {
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
        let sent_hash = one(headers, &CONTENT_SHA256);
        let body_hash = sent_hash.map(|_| hex_digest(request.body));
        if sent_hash.map(HeaderValue::as_bytes) != body_hash.as_ref().map(<[u8; 64]>::as_slice) {
            return Err(Refusal::Signature);
        }
        let skew = MAX_SKEW.as_secs();
        if signed_at.saturating_add(skew) < unix_now {
            return Err(Refusal::Expired);
        }
        if signed_at > unix_now.saturating_add(skew) {
            return Err(Refusal::NotYetValid);
        }
        Ok(Checked { authorization: self, request, body_hash })
    }

    /// `host` and every `x-amz-*` header must be signed, and each signed header must be sent once.
    fn check_headers(&self, request: &Request<'_>) -> Result<(), Refusal> {
        let is_of_aws = |name: &[u8]| name.starts_with(b"x-amz-");
        let (mut last, mut has_host, mut of_aws): (&[u8], _, _) = (b"", false, 0);
        for name in signed_names(self.signed_headers) {
            if name <= last || name.iter().any(u8::is_ascii_uppercase) {
                let detail = "SignedHeaders must be lower-case names in order, each of them once";
                return Err(Refusal::Incomplete(detail));
            }
            let is_host = name == HOST.as_str().as_bytes();
            let mut values = values(request.headers, name);
            let is_once = match values.next() {
                Some(_) => values.next().is_none(),
                None => is_host && request.authority.is_some(),
            };
            // At the first name that was not sent, so headers limit the names that are tried.
            if !is_once {
                let detail = "every signed header must be sent exactly once";
                return Err(Refusal::Incomplete(detail));
            }
            (last, has_host) = (name, has_host || is_host);
            of_aws += usize::from(is_of_aws(name));
        }
        if !has_host {
            return Err(Refusal::Incomplete("host must be signed"));
        }
        // Each signed name is that of a header that was sent, so none is missing if there are as
        // many of them.
        let sent = request.headers.keys().filter(|name| is_of_aws(name.as_str().as_bytes()));
        if sent.count() != of_aws {
            return Err(Refusal::Incomplete("every x-amz-* header must be signed"));
        }
        Ok(())
    }

    /// Compares the signature with that of a request whose body has this hash.
    fn verify(
        &self,
        request: &Request<'_>,
        body_hash: &[u8; 64],
        key: &SigningKey,
    ) -> Result<(), Refusal> {
        let date = one(request.headers, &DATE).map(HeaderValue::as_bytes).unwrap_or_default();
        let mut hash = Sha256::new();
        canonical::write(request, self.signed_headers, body_hash, &mut |text| hash.update(text));
        let scope = Scope { region: self.region, service: self.service };
        let Some(key) = key.0.as_deref() else { return Err(Refusal::Signature) };
        let mut mac = key.clone();
        string_to_sign(date, self.day, scope, hash, &mut |text| mac.update(text));
        mac.verify_slice(&self.signature).map_err(|_| Refusal::Signature)
    }
}

/// A request that needs only its signature verified.
pub(crate) struct Checked<'a> {
    authorization: &'a Authorization<'a>,
    request: &'a Request<'a>,
    /// The hash of the body, if it was needed before.
    body_hash: Option<[u8; 64]>,
}

impl Checked<'_> {
    /// Compares the signature in constant time.
    ///
    /// # Errors
    /// [`Refusal::Signature`].
    pub(crate) fn verify(&self, key: &SigningKey) -> Result<(), Refusal> {
        let body_hash = self.body_hash.unwrap_or_else(|| hex_digest(self.request.body));
        self.authorization.verify(self.request, &body_hash, key)
    }
}

/// The key that signs one day's requests for one scope, prepared for use. Cheap to clone; wiped on
/// drop. HMAC-SHA-256 takes keys of any length, so there always is one.
#[derive(Clone)]
pub(crate) struct SigningKey(Option<Arc<Hmac<Sha256>>>);

impl SigningKey {
    /// The key of a secret access key for a day such as `20150830`.
    pub(crate) fn derive(secret: &[u8], day: &str, scope: Scope<'_>) -> Self {
        Self(Self::prepare(secret, day, scope).map(Arc::new))
    }

    fn prepare(secret: &[u8], day: &str, scope: Scope<'_>) -> Option<Hmac<Sha256>> {
        let mut start = Zeroizing::new(Vec::with_capacity(4 + secret.len()));
        start.extend_from_slice(b"AWS4");
        start.extend_from_slice(secret);
        let mut mac = Hmac::<Sha256>::new_from_slice(&start).ok()?;
        for part in [day, scope.region, scope.service, TERMINATOR] {
            mac.update(part.as_bytes());
            let key: Zeroizing<[u8; 32]> = Zeroizing::new(mac.finalize().into_bytes().into());
            mac = Hmac::new_from_slice(&*key).ok()?;
        }
        Some(mac)
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
    let (day, time) = text.strip_suffix('Z')?.split_once('T')?;
    let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(day) || !is_digits(time) {
        return None;
    }
    let [a, b, c, d, e, f, g, h] = day.as_bytes() else { return None };
    let [i, j, k, l, m, n] = time.as_bytes() else { return None };
    let text = [a, b, c, d, &b'-', e, f, &b'-', g, h, &b'T', i, j, &b':', k, l, &b':', m, n, &b'Z'];
    let text = text.map(|byte| *byte);
    let time = humantime::parse_rfc3339(str::from_utf8(&text).ok()?).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Passes the text that is signed to `sink`, in pieces. `hash` is that of the canonical request.
fn string_to_sign(
    date: &[u8],
    day: &str,
    Scope { region, service }: Scope<'_>,
    hash: Sha256,
    sink: &mut impl FnMut(&[u8]),
) {
    let line_of_scope = [day, "/", region, "/", service, "/", TERMINATOR, "\n"];
    [ALGORITHM.as_bytes(), b"\n", date, b"\n"].into_iter().for_each(&mut *sink);
    line_of_scope.into_iter().for_each(|part| sink(part.as_bytes()));
    sink(&hex(&hash.finalize().into()));
}

/// The parts of a text. For short ones this is faster than [`str::split`].
fn pieces(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let pieces = text.as_bytes().split(move |byte| *byte == separator);
    // An ASCII character splits UTF-8 into UTF-8.
    pieces.map(|piece| str::from_utf8(piece).unwrap_or_default())
}

/// The names in `SignedHeaders`.
fn signed_names(signed_headers: &str) -> impl Iterator<Item = &[u8]> {
    signed_headers.as_bytes().split(|byte| *byte == b';')
}

/// The values of a header. Requests have few headers: to compare all names is faster than to hash
/// one.
fn values<'a>(headers: &'a HeaderMap, name: &'a [u8]) -> impl Iterator<Item = &'a HeaderValue> {
    let named = headers.iter().filter(move |(other, _)| other.as_str().as_bytes() == name);
    named.map(|(_, value)| value)
}

/// The value of a header that is sent exactly once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn hex_digest(bytes: &[u8]) -> [u8; 64] {
    hex(&Sha256::digest(bytes).into())
}

/// Lower-case hexadecimal digits.
fn hex(hash: &[u8; 32]) -> [u8; 64] {
    let mut digits = [0; 64];
    // There is room for two digits of each byte.
    _ = base16ct::lower::encode(hash, &mut digits);
    digits
}

/// Exactly 64 lower-case digits.
fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let decoded = base16ct::lower::decode(text, &mut bytes).ok()?;
    (decoded.len() == bytes.len()).then_some(bytes)
}
