//! Makes signatures, for tests.

#![allow(clippy::unwrap_used, reason = "tests and targets of fuzzers alone")]

use hmac::Mac;
use http::HeaderName;
use sha2::{Digest, Sha256};

use super::{
    ALGORITHM, DATE, Request, Scope, SigningKey, TERMINATOR, canonical, hex, hex_digest, one,
    string_to_sign,
};

/// Credentials that requests are signed with.
#[derive(Clone, Copy)]
pub(crate) struct Credentials<'a> {
    pub(crate) access_key_id: &'a str,
    pub(crate) secret: &'a str,
}

/// The header `authorization` of a request that has all its other headers, with all of them
/// signed. Its date is that of `x-amz-date`.
pub(crate) fn sign(
    request: &Request<'_>,
    credentials: Credentials<'_>,
    scope: Scope<'_>,
) -> String {
    let date = one(request.headers, &DATE).and_then(|date| date.to_str().ok()).unwrap_or_default();
    let day = date.get(..8).unwrap_or_default();
    let mut names: Vec<&str> = request.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let names = names.join(";");
    let mut hash = Sha256::new();
    canonical::write(request, &names, &hex_digest(request.body), &mut |text| hash.update(text));
    let key = SigningKey::derive(credentials.secret.as_bytes(), day, scope);
    let mut mac = (*key.0.unwrap()).clone();
    string_to_sign(date.as_bytes(), day, scope, hash, &mut |text| mac.update(text));
    let signature = String::from_utf8(hex(&mac.finalize().into_bytes().into()).into()).unwrap();
    let (id, Scope { region, service }) = (credentials.access_key_id, scope);
    format!(
        "{ALGORITHM} Credential={id}/{day}/{region}/{service}/{TERMINATOR}, \
         SignedHeaders={names}, Signature={signature}"
    )
}

/// The SHA-256 of a body, as `x-amz-content-sha256`.
pub(crate) fn hex_of(body: &[u8]) -> String {
    String::from_utf8(hex_digest(body).into()).unwrap()
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        let mac_of_nothing =
            |key: &Self| key.0.as_deref().map(|mac| mac.clone().finalize().into_bytes());
        mac_of_nothing(self) == mac_of_nothing(other)
    }
}
