//! The target of signatures: a request that was signed verifies, also in its canonical form, and no
//! changed one does.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure is the result")]

use super::testing::{Credentials, hex_of, sign};
use super::*;

const CREDENTIALS: Credentials<'_> = Credentials { access_key_id: "KPEXAMPLE", secret: "secret" };
const SCOPE: Scope<'_> = Scope { region: "eu-west-1", service: "kms" };
const NOW: u64 = 1_440_938_160;

/// A request: lines with the method, the path, the query and headers; an empty line; the body.
pub fn sigv4(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut text = || str::from_utf8(lines.next().unwrap_or_default()).ok();
    let (Some(method), Some(path), Some(query)) = (text(), text(), text()) else { return };
    let mut headers = HeaderMap::new();
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let name = HeaderName::from_bytes(name);
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) else { return };
        headers.append(name, value);
    }
    let rest: Vec<&[u8]> = lines.collect();
    let body = rest.join(&b'\n');
    received(Request { method, path, query, headers: &headers, authority: None, body: &body });
    // What a signer sends: each header once, the date, and no token of temporary credentials.
    let hash = headers.remove(CONTENT_SHA256).map(|_| hex_of(&body));
    for name in [AUTHORIZATION, SECURITY_TOKEN] {
        headers.remove(name);
    }
    let mut signed: HeaderMap = HeaderMap::new();
    for (name, value) in &headers {
        signed.entry(name).or_insert_with(|| value.clone());
    }
    signed.insert(DATE, HeaderValue::from_str(&format_date(NOW)).unwrap());
    signed.entry(HOST).or_insert(HeaderValue::from_static("kms.example"));
    if let Some(hash) = hash {
        signed.insert(CONTENT_SHA256, HeaderValue::from_str(&hash).unwrap());
    }
    let request = Request { method, path, query, headers: &signed, authority: None, body: &body };
    let authorization = sign(&request, CREDENTIALS, SCOPE);
    let mut sent = signed.clone();
    sent.insert(AUTHORIZATION, HeaderValue::from_str(&authorization).unwrap());
    let request = Request { headers: &sent, ..request };
    assert_eq!(verdict(&request), Ok(()));
    canonical_form(&request);
    changed(&request, &authorization);
}

/// Whatever is received is refused: nobody signed it.
fn received(request: Request<'_>) {
    assert!(verdict(&request).is_err());
}

fn verdict(request: &Request<'_>) -> Result<(), Refusal> {
    let authorization = Authorization::parse(request.headers)?;
    let key = SigningKey::derive(CREDENTIALS.secret.as_bytes(), authorization.day, SCOPE);
    authorization.check(request, SCOPE, NOW)?.verify(&key)
}

/// The canonical query is its own canonical form.
fn canonical_form(request: &Request<'_>) {
    let mut text = Vec::new();
    canonical::write(request, "", &[b'0'; 64], &mut |part| text.extend_from_slice(part));
    let text = String::from_utf8(text).unwrap();
    let query = text.split('\n').nth(2).unwrap();
    assert_eq!(verdict(&Request { query, ..*request }), Ok(()), "{query}");
}

fn changed(request: &Request<'_>, authorization: &str) {
    let longer = |text: &str, end: &str| [text, end].concat();
    let (method, path) = (longer(request.method, "X"), longer(request.path, "/"));
    let (query, body) = (longer(request.query, "&x"), [request.body, b"x"].concat());
    let mut host = request.headers.clone();
    let other = [request.headers[HOST].as_bytes(), b"x"].concat();
    host.insert(HOST, HeaderValue::from_bytes(&other).unwrap());
    let mut digit = authorization.to_owned();
    let last = digit.pop().unwrap();
    digit.push(if last == '0' { '1' } else { '0' });
    let mut signature = request.headers.clone();
    signature.insert(AUTHORIZATION, HeaderValue::from_str(&digit).unwrap());
    let mut date = request.headers.clone();
    date.insert(DATE, HeaderValue::from_str(&format_date(NOW + 1)).unwrap());
    for changed in [
        Request { method: &method, ..*request },
        Request { path: &path, ..*request },
        Request { query: &query, ..*request },
        Request { body: &body, ..*request },
        Request { headers: &host, ..*request },
        Request { headers: &signature, ..*request },
        Request { headers: &date, ..*request },
    ] {
        assert_eq!(verdict(&changed), Err(Refusal::Signature));
    }
    let mut more = request.headers.clone();
    more.append("x-amz-more", HeaderValue::from_static("1"));
    assert!(verdict(&Request { headers: &more, ..*request }).is_err());
}
