//! The canonical form of a request: what the signer and the verifier both hash.

use std::borrow::Cow;

use http::header::HOST;

use super::{Request, signed_names, values};

/// Passes the canonical request with the headers named in `signed_headers` to `sink`, in pieces.
/// `body_hash` is the SHA-256 of the body.
pub(super) fn write(
    request: &Request<'_>,
    signed_headers: &str,
    body_hash: &[u8; 64],
    sink: &mut impl FnMut(&[u8]),
) {
    let path = encode(request.path.as_bytes(), b"/");
    for part in [request.method, "\n", &path, "\n", &query(request.query), "\n"] {
        sink(part.as_bytes());
    }
    for name in signed_names(signed_headers) {
        header(request, name, sink);
    }
    for part in [b"\n", signed_headers.as_bytes(), b"\n", body_hash] {
        sink(part);
    }
}

/// `name:value` and a line feed, with the values of a repeated header joined by commas.
fn header(request: &Request<'_>, name: &[u8], sink: &mut impl FnMut(&[u8])) {
    sink(name);
    let mut separator: &[u8] = b":";
    for value in values(request.headers, name) {
        sink(separator);
        trim(value.as_bytes(), sink);
        separator = b",";
    }
    if separator == b":" {
        let authority = request.authority.filter(|_| name == HOST.as_str().as_bytes());
        let authority = authority.unwrap_or_default();
        sink(separator);
        sink(authority.as_bytes());
    }
    sink(b"\n");
}

/// A value without white space at both ends, and with single spaces within.
fn trim(value: &[u8], sink: &mut impl FnMut(&[u8])) {
    let words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut separator: &[u8] = b"";
    for word in words {
        sink(separator);
        sink(word);
        separator = b" ";
    }
}

/// The parameters, encoded and sorted by name and value.
fn query(query: &str) -> String {
    let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
    let mut parameters: Vec<(String, String)> = parameters
        .map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let encoded = |text: &str| encode(&decode(text), b"").into_owned();
            (encoded(name), encoded(value))
        })
        .collect();
    parameters.sort_unstable();
    let parameters = parameters.iter().map(|(name, value)| format!("{name}={value}"));
    parameters.collect::<Vec<_>>().join("&")
}

/// Percent-encodes all but the unreserved characters of RFC 3986 and those in `kept`.
fn encode<'a>(text: &'a [u8], kept: &[u8]) -> Cow<'a, str> {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let is_plain =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || kept.contains(byte);
    if let Some(plain) = text.iter().all(is_plain).then(|| str::from_utf8(text).ok()).flatten() {
        return Cow::Borrowed(plain);
    }
    let mut out = String::with_capacity(text.len());
    for byte in text {
        if is_plain(byte) {
            out.push(char::from(*byte));
        } else {
            let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or('0');
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    Cow::Owned(out)
}

/// Undoes percent-encoding. What is not encoded properly stays as it is.
fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| byte == b'%' && !digits.contains('+'));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}
