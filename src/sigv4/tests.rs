//! AWS's own test suite, and requests that are signed properly and then altered.

use http::Uri;
use serde::Deserialize;

use super::testing::{Credentials, hex_of, sign};
use super::*;
use crate::constant_time;

/// The credentials, the scope and the time of every case of AWS's suite.
const ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SUITE: Scope<'_> = Scope { region: "us-east-1", service: "service" };
const KMS: Scope<'_> = Scope { region: "eu-central-1", service: "kms" };
/// 2015-08-30T12:36:00Z.
const NOW: u64 = 1_440_938_160;
const BODY: &[u8] = br#"{"KeyId":"orders","Plaintext":"aGVsbG8="}"#;

#[derive(Deserialize)]
struct Case {
    name: String,
    request: String,
    canonical_request: String,
    string_to_sign: String,
    authorization: String,
}

/// The parts of a request as the suite writes them.
struct Parsed {
    method: String,
    path: String,
    query: String,
    headers: HeaderMap,
    body: String,
    /// Whether a header is folded or sent more than once.
    is_irregular: bool,
}

impl Parsed {
    fn new(text: &str) -> Self {
        let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let mut first = lines.next().unwrap().split(' ');
        let method = first.next().unwrap().to_owned();
        let target = first.next().unwrap();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (mut headers, mut is_irregular) = (HeaderMap::new(), false);
        let mut last = HOST;
        for line in lines {
            let (name, value) = match line.strip_prefix(' ') {
                Some(folded) => (last.clone(), folded.trim()),
                None => {
                    let (name, value) = line.split_once(':').unwrap();
                    (name.to_ascii_lowercase().parse().unwrap(), value)
                }
            };
            is_irregular |= headers.contains_key(&name);
            headers.append(&name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            last = name;
        }
        Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            headers,
            body: body.to_owned(),
            is_irregular,
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
            authority: None,
            body: self.body.as_bytes(),
        }
    }
}

fn cases() -> Vec<Case> {
    let cases = include_str!("../../tests/vectors/sigv4/cases.json");
    serde_json::from_str(cases).unwrap()
}

#[test]
fn the_24_cases_of_aws_have_the_right_signatures_and_irregular_ones_are_refused() {
    let (mut verified, mut refused) = (0, 0);
    for case in cases() {
        let mut parsed = Parsed::new(&case.request);
        let value = HeaderValue::from_str(&case.authorization).unwrap();
        parsed.headers.insert(AUTHORIZATION, value);
        let request = parsed.request();
        let authorization = Authorization::parse(&parsed.headers).unwrap();
        let names = authorization.signed_headers;
        let body_hash = hex_digest(request.body);
        let (mut canonical, mut text) = (Vec::new(), Vec::new());
        canonical::write(&request, names, &body_hash, &mut |part| canonical.extend(part));
        assert_eq!(String::from_utf8(canonical.clone()).unwrap(), case.canonical_request);
        let hash = Sha256::new_with_prefix(&canonical);
        let (date, day) = (b"20150830T123600Z", "20150830");
        string_to_sign(date, day, SUITE, hash, &mut |part| text.extend(part));
        assert_eq!(String::from_utf8(text).unwrap(), case.string_to_sign, "{}", case.name);
        let key = SigningKey::derive(SECRET.as_bytes(), authorization.day, SUITE);
        assert_eq!(authorization.verify(&request, &body_hash, &key), Ok(()), "{}", case.name);
        let checked = authorization.check(&request, SUITE, NOW).map(|_| ());
        if parsed.headers.contains_key(SECURITY_TOKEN) {
            refused += 1;
            assert_eq!(checked, Err(Refusal::SecurityToken), "{}", case.name);
        } else if parsed.is_irregular {
            refused += 1;
            assert!(matches!(checked, Err(Refusal::Incomplete(_))), "{}: {checked:?}", case.name);
        } else {
            verified += 1;
            assert_eq!(checked, Ok(()), "{}", case.name);
        }
    }
    assert_eq!((verified, refused), (20, 4));
}

#[test]
fn signing_gives_the_signatures_of_aws() {
    for case in cases() {
        let parsed = Parsed::new(&case.request);
        let credentials = Credentials { access_key_id: ID, secret: SECRET };
        let made = sign(&parsed.request(), credentials, SUITE);
        assert_eq!(made, case.authorization, "{}", case.name);
    }
}

/// A request as an SDK sends it, and what is changed in it after signing.
struct Sent {
    method: &'static str,
    uri: Uri,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Sent {
    fn unsigned() -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "kms-proxy:8080"),
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", "TrentService.Encrypt"),
            ("x-amz-date", "20150830T123600Z"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Self { method: "POST", uri: Uri::from_static("/"), headers, body: BODY.to_vec() }
    }

    fn signed() -> Self {
        let mut sent = Self::unsigned();
        sent.sign(KMS);
        sent
    }

    fn sign(&mut self, scope: Scope<'_>) {
        self.headers.remove(AUTHORIZATION);
        let credentials = Credentials { access_key_id: ID, secret: SECRET };
        let authorization = sign(&self.request(), credentials, scope);
        self.headers.insert(AUTHORIZATION, authorization.parse().unwrap());
    }

    fn request(&self) -> Request<'_> {
        Request {
            method: self.method,
            path: self.uri.path(),
            query: self.uri.query().unwrap_or_default(),
            headers: &self.headers,
            authority: None,
            body: &self.body,
        }
    }

    fn authorization(&self) -> &str {
        self.headers[AUTHORIZATION].to_str().unwrap()
    }

    fn set_authorization(&mut self, text: &str) {
        self.headers.insert(AUTHORIZATION, HeaderValue::from_str(text).unwrap());
    }

    fn verify_at(&self, now: u64) -> Result<(), Refusal> {
        let request = self.request();
        let authorization = Authorization::parse(&self.headers)?;
        let key = SigningKey::derive(SECRET.as_bytes(), authorization.day, KMS);
        authorization.check(&request, KMS, now)?.verify(&key)
    }

    fn verify(&self) -> Result<(), Refusal> {
        self.verify_at(NOW)
    }
}

#[test]
fn signatures_take_the_same_time_wherever_the_difference_is() {
    let sent = Sent::signed();
    let request = sent.request();
    let authorization = Authorization::parse(&sent.headers).unwrap();
    let key = SigningKey::derive(SECRET.as_bytes(), authorization.day, KMS);
    let right = authorization.signature;
    let body_hash = hex_digest(BODY);
    let set = |given: &mut Authorization<'_>, input: &[u8]| given.signature.copy_from_slice(input);
    let accepts = |given: &mut Authorization<'_>| given.verify(&request, &body_hash, &key).is_ok();
    constant_time::check("signature of a request", authorization, &right, set, accepts);
}

#[test]
fn whatever_is_altered_after_signing_is_refused() {
    assert_eq!(Sent::signed().verify(), Ok(()));
    type Alter = fn(&mut Sent);
    let alterations: [(&str, Alter); 8] = [
        ("method", |sent| sent.method = "PUT"),
        ("path", |sent| sent.uri = Uri::from_static("/x")),
        ("query", |sent| sent.uri = Uri::from_static("/?a=b")),
        ("host", |sent| _ = sent.headers.insert(HOST, "kms-proxy".parse().unwrap())),
        ("target", |sent| {
            _ = sent.headers.insert("x-amz-target", "TrentService.Decrypt".parse().unwrap());
        }),
        ("content type", |sent| {
            _ = sent.headers.insert("content-type", "text/plain".parse().unwrap());
        }),
        ("date", |sent| _ = sent.headers.insert(DATE, "20150830T123601Z".parse().unwrap())),
        ("body", |sent| sent.body.push(b' ')),
    ];
    for (name, alter) in alterations {
        let mut sent = Sent::signed();
        alter(&mut sent);
        assert_eq!(sent.verify(), Err(Refusal::Signature), "{name}");
    }
    for index in 0..BODY.len() {
        let mut sent = Sent::signed();
        sent.body[index] ^= 1;
        assert_eq!(sent.verify(), Err(Refusal::Signature), "byte {index} of the body");
    }
}

#[test]
fn a_signature_is_accepted_within_five_minutes_of_its_date() {
    let sent = Sent::signed();
    for now in [NOW - 300, NOW, NOW + 300] {
        assert_eq!(sent.verify_at(now), Ok(()));
    }
    for now in [NOW + 301, NOW + 86_400, u64::MAX] {
        assert_eq!(sent.verify_at(now), Err(Refusal::Expired));
    }
    for now in [NOW - 301, 0] {
        assert_eq!(sent.verify_at(now), Err(Refusal::NotYetValid));
    }
}

#[test]
fn another_region_service_or_key_is_refused() {
    for scope in [Scope { region: "eu-west-1", ..KMS }, Scope { service: "s3", ..KMS }] {
        let mut sent = Sent::unsigned();
        sent.sign(scope);
        assert_eq!(sent.verify(), Err(Refusal::Scope), "{scope:?}");
    }
    let sent = Sent::signed();
    let (request, authorization) = (sent.request(), Authorization::parse(&sent.headers).unwrap());
    for (secret, day) in [("", "20150830"), ("another", "20150830"), (SECRET, "20150829")] {
        let key = SigningKey::derive(secret.as_bytes(), day, KMS);
        let checked = authorization.check(&request, KMS, NOW).unwrap();
        assert_eq!(checked.verify(&key), Err(Refusal::Signature));
    }
}

#[test]
fn incomplete_or_ambiguous_signatures_are_refused() {
    let refused = |what: &str, sent: &Sent| {
        let result = sent.verify();
        assert!(matches!(result, Err(Refusal::Incomplete(_))), "{what}: {result:?}");
    };
    // Each edit of the header `authorization` that leaves it readable as text.
    for (from, to) in [
        ("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA1 "),
        ("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256"),
        ("AWS4-HMAC-SHA256 ", "Bearer "),
        ("Credential=AKIDEXAMPLE/", "Credential=/"),
        ("Credential=AKIDEXAMPLE/", "Credential=a/b/"),
        ("Credential=AKIDEXAMPLE/20150830", "Credential=AKIDEXAMPLE/"),
        ("Credential=AKIDEXAMPLE/20150830", "Credential=AKIDEXAMPLE/20150829"),
        ("Credential=AKIDEXAMPLE/20150830", "Credential=AKIDEXAMPLE/2015083"),
        ("/eu-central-1/", "//"),
        ("/kms/", "//"),
        ("/aws4_request", ""),
        ("/aws4_request", "/AWS4_request"),
        ("Credential=", "credential="),
        ("SignedHeaders=content-type;host;", "SignedHeaders=content-type;"),
        ("SignedHeaders=content-type;host;", "SignedHeaders=host;content-type;"),
        ("SignedHeaders=content-type;host;", "SignedHeaders=content-type;content-type;host;"),
        ("SignedHeaders=content-type;host;", "SignedHeaders=Content-Type;host;"),
        ("SignedHeaders=content-type;host;", "SignedHeaders=;content-type;host;"),
        ("SignedHeaders=content-type;host;", "SignedHeaders=accept;content-type;host;"),
        ("x-amz-date;x-amz-target", "x-amz-date"),
        ("x-amz-date;x-amz-target", "x-amz-target"),
        ("Signature=", "Signature=0"),
        ("Signature=", "Signature= "),
        ("Signature=", "Signature=a, Signature="),
        ("Signature=", "Other=a, Signature="),
        (", Signature=", ""),
        (", SignedHeaders=", ", "),
    ] {
        let mut sent = Sent::signed();
        let edited = sent.authorization().replacen(from, to, 1);
        assert_ne!(edited, sent.authorization(), "{from}");
        sent.set_authorization(&edited);
        refused(&format!("{from} -> {to}"), &sent);
    }
    let mut sent = Sent::signed();
    let upper = sent.authorization().rsplit_once('=').unwrap().1.to_ascii_uppercase();
    let head = sent.authorization().rsplit_once('=').unwrap().0.to_owned();
    sent.set_authorization(&format!("{head}={upper}"));
    refused("upper case", &sent);
    for len in [0, 1, 63] {
        sent.set_authorization(&format!("{head}={}", &upper.to_ascii_lowercase()[..len]));
        refused("shortened", &sent);
    }
    for (name, value) in [
        ("authorization", "x"),
        ("x-amz-date", "20150830T123600Z"),
        ("x-amz-target", "TrentService.Encrypt"),
        ("x-amz-meta", "not signed"),
        ("host", "kms-proxy:8080"),
        ("content-type", "application/x-amz-json-1.1"),
    ] {
        let mut sent = Sent::signed();
        sent.headers.append(name, HeaderValue::from_static(value));
        refused(name, &sent);
    }
    for date in ["", "20150830", "20150830T123600", "2015-08-30T12:36:00Z", "20151330T123600Z"] {
        let mut sent = Sent::unsigned();
        sent.headers.insert(DATE, date.parse().unwrap());
        sent.sign(KMS);
        refused(date, &sent);
    }
    let mut sent = Sent::signed();
    sent.headers.remove(AUTHORIZATION);
    assert_eq!(sent.verify(), Err(Refusal::Missing));
}

#[test]
fn a_security_token_is_refused_even_if_it_is_signed() {
    for sign in [true, false] {
        let mut sent = Sent::signed();
        sent.headers.insert(SECURITY_TOKEN, "AQoDYXdzEPT".parse().unwrap());
        if sign {
            sent.sign(KMS);
        }
        assert_eq!(sent.verify(), Err(Refusal::SecurityToken));
    }
}

#[test]
fn a_declared_hash_must_be_that_of_the_body() {
    let (right, wrong) = (hex_of(BODY), hex_of(b""));
    for (hash, expected) in [
        (right.as_str(), Ok(())),
        (&wrong, Err(Refusal::Signature)),
        ("UNSIGNED-PAYLOAD", Err(Refusal::Signature)),
    ] {
        let mut sent = Sent::unsigned();
        sent.headers.insert("x-amz-content-sha256", hash.parse().unwrap());
        sent.sign(KMS);
        assert_eq!(sent.verify(), expected, "{hash}");
    }
}

#[test]
fn the_authority_of_http_2_is_the_host() {
    let sent = Sent::signed();
    let mut headers = sent.headers.clone();
    headers.remove(HOST);
    let key = SigningKey::derive(SECRET.as_bytes(), "20150830", KMS);
    for (authority, expected) in [
        (Some("kms-proxy:8080"), Ok(())),
        (Some("kms-proxy"), Err(Refusal::Signature)),
        (None, Err(Refusal::Incomplete("every signed header must be sent exactly once"))),
    ] {
        let request = Request { headers: &headers, authority, ..sent.request() };
        let authorization = Authorization::parse(&headers).unwrap();
        let checked = authorization.check(&request, KMS, NOW);
        assert_eq!(checked.and_then(|checked| checked.verify(&key)), expected);
    }
}

#[test]
fn dates_are_written_as_they_are_read() {
    assert_eq!(format_date(NOW), "20150830T123600Z");
    assert_eq!(parse_date("20150830T123600Z"), Some(NOW));
    for bad in ["20150230T123600Z", "20150830T243600Z", "20150830T1236000", "+0150830T123600Z"] {
        assert_eq!(parse_date(bad), None, "{bad}");
    }
}
