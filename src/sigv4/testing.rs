//! Makes signatures, for tests.

use http::HeaderName;
use sha2::{Digest, Sha256};

use super::{
    ALGORITHM, DATE, Request, Scope, SigningKey, TERMINATOR, canonical, hash_mac, one,
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
    let hash = Sha256::digest(canonical::request(request, &names));
    let text = string_to_sign(date.as_bytes(), day, scope, hash.into());
    let key = SigningKey::derive(credentials.secret.as_bytes(), day, scope);
    let signature = base16ct::lower::encode_string(hash_mac(key.0.as_slice(), &text).as_slice());
    let (id, Scope { region, service }) = (credentials.access_key_id, scope);
    format!(
        "{ALGORITHM} Credential={id}/{day}/{region}/{service}/{TERMINATOR}, \
         SignedHeaders={names}, Signature={signature}"
    )
}

/// The SHA-256 of a body, as `x-amz-content-sha256`.
pub(crate) fn hex_of(body: &[u8]) -> String {
    String::from_utf8(super::hex_digest(body)).unwrap()
}
