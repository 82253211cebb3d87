//! The canonical form of a request: what the signer and the verifier both hash.

use http::header::HOST;

use super::{Request, hex_digest};

/// The canonical request with the headers named in `signed_headers`.
pub(super) fn request(request: &Request<'_>, signed_headers: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let mut line = |text: &[u8]| {
        out.extend_from_slice(text);
        out.push(b'\n');
    };
    line(request.method.as_bytes());
    line(encode(request.path.as_bytes(), b"/").as_bytes());
    line(query(request.query).as_bytes());
    for name in signed_headers.split(';') {
        line(&header(request, name));
    }
    line(b"");
    line(signed_headers.as_bytes());
    out.extend_from_slice(&hex_digest(request.body));
    out
}

/// `name:value`, with the values of a repeated header joined by commas.
fn header(request: &Request<'_>, name: &str) -> Vec<u8> {
    let values = request.headers.get_all(name).iter().map(|value| trim(value.as_bytes()));
    let mut values: Vec<Vec<u8>> = values.collect();
    if values.is_empty() && name == HOST.as_str() {
        values.extend(request.authority.map(|authority| authority.as_bytes().to_vec()));
    }
    [name.as_bytes(), &values.join(&b',')].join(&b':')
}

/// Without white space at both ends, and with single spaces within.
fn trim(value: &[u8]) -> Vec<u8> {
    let words = value.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(&b' ')
}

/// The parameters, encoded and sorted by name and value.
fn query(query: &str) -> String {
    let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
    let mut parameters: Vec<(String, String)> = parameters
        .map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (encode(&decode(name), b""), encode(&decode(value), b""))
        })
        .collect();
    parameters.sort_unstable();
    let parameters = parameters.iter().map(|(name, value)| format!("{name}={value}"));
    parameters.collect::<Vec<_>>().join("&")
}

/// Percent-encodes all but the unreserved characters of RFC 3986 and those in `kept`.
fn encode(text: &[u8], kept: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let mut out = String::with_capacity(text.len());
    for &byte in text {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if is_plain || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or('0');
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    out
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
