//! Signatures as the service receives them: which requests it accepts, and which it refuses.

use super::*;
use crate::auth::aws::derive_secret;

const KEY: Credentials<'_> = Credentials { access_key_id: "KPADMIN", secret: SECRET };
const KMS: Scope<'_> = Scope { region: REGION, service: "kms" };

async fn server() -> Server {
    let allow = "{ chains = ['*'], operations = ['encrypt', 'read'] }";
    let derived = "aws_access_key_id = ['KPONE', 'KPTWO']";
    Setup::new().access_key("KPADMIN", allow).client("derived", derived, allow).start().await
}

fn unsigned(server: &Server) -> Request {
    server.request("Encrypt", &json!({"KeyId": "plain", "Plaintext": base64("hello")}))
}

#[tokio::test]
async fn a_signed_request_is_accepted_however_its_signer_writes_it() {
    let server = server().await;
    let request = unsigned(&server);
    let hash = sigv4::testing::hex_of(request.body.as_bytes());
    for (what, request) in [
        ("as it is", request.clone()),
        ("with the hash of the body", request.clone().set("x-amz-content-sha256", &hash)),
        (
            "with more headers",
            request.clone().set("amz-sdk-invocation-id", "a").set("user-agent", "b  c"),
        ),
        ("with a Host without the port", request.clone().set("host", "localhost")),
    ] {
        let answer = server.send(request.signed(KEY)).await;
        assert_eq!(answer.code(), "", "{what}: {answer:?}");
    }
    // A signer normalizes the path to one slash, and omits an empty query.
    for path in ["//", "/?", "//?"] {
        let signed = Request { path: path.to_owned(), ..request.clone().signed(KEY) };
        assert_eq!(server.send(signed).await.code(), "", "{path}");
    }
    for skew in [-300, 300] {
        let date = request.now.saturating_add_signed(skew);
        let signed = request.clone().signed_at(KEY, KMS, date);
        assert_eq!(server.send(signed).await.code(), "", "{skew} seconds");
    }
    // Headers that are not signed may be added on the way.
    let signed = request.clone().signed(KEY).set("x-forwarded-for", "10.0.0.1");
    assert_eq!(server.send(signed).await.code(), "");
    for id in ["KPONE", "KPTWO"] {
        let secret = derive_secret(&[7; 32], id);
        let key = Credentials { access_key_id: id, secret: &secret };
        assert_eq!(server.send(request.clone().signed(key)).await.code(), "", "{id}");
    }
}

#[tokio::test]
async fn a_request_that_was_altered_in_any_part_is_refused() {
    let server = server().await;
    let good = unsigned(&server).signed(KEY);
    let authorization = good.get("authorization").to_owned();
    let with = |text: String| good.clone().set("authorization", &text);
    let signature = authorization.split("Signature=").nth(1).unwrap().to_owned();
    let other_body = unsigned(&server).body.replace("aGVsbG8=", "aGVsbG9=");
    let (invalid, incomplete) = ("InvalidSignatureException", "IncompleteSignature");
    let mut duplicate = good.clone();
    duplicate.headers.append("x-amz-target", HeaderValue::from_static("TrentService.Encrypt"));
    let mut two = good.clone();
    two.headers.append("authorization", HeaderValue::from_str(&authorization).unwrap());
    let mut dateless = good.clone();
    dateless.headers.remove("x-amz-date");
    let cases = [
        ("the body", Request { body: other_body, ..good.clone() }, invalid),
        ("the target", good.clone().set("x-amz-target", "TrentService.ListKeys"), invalid),
        (
            "the media type",
            good.clone().set("content-type", "application/x-amz-json-1.1; a=b"),
            invalid,
        ),
        ("the host", good.clone().set("host", "other.example"), invalid),
        (
            "the hash of the body",
            good.clone().set("x-amz-content-sha256", &"0".repeat(64)),
            incomplete,
        ),
        ("a header that is not signed", good.clone().set("x-amz-new", "a"), incomplete),
        ("a header twice", duplicate, incomplete),
        ("authorization twice", two, incomplete),
        ("no date", dateless, incomplete),
        ("another date", good.clone().set("x-amz-date", "20150830T123600Z"), incomplete),
        ("a date of another form", good.clone().set("x-amz-date", "now"), incomplete),
        (
            "a security token",
            good.clone().set("x-amz-security-token", "t"),
            "UnrecognizedClientException",
        ),
        ("a query", Request { path: "/?Action=Encrypt".to_owned(), ..good.clone() }, incomplete),
        (
            "upper case",
            with(authorization.replace(&signature, &signature.to_uppercase())),
            incomplete,
        ),
        (
            "a shorter signature",
            with(authorization.replace(&signature, &signature[..63])),
            incomplete,
        ),
        (
            "no signature",
            with(authorization.replace(&format!(", Signature={signature}"), "")),
            incomplete,
        ),
        ("an empty part", with(authorization.replace("KPADMIN/", "/")), incomplete),
        ("a part more", with(authorization.replace("/kms/", "/kms/kms/")), incomplete),
        ("host not signed", with(authorization.replace(";host;", ";")), incomplete),
        ("date not signed", with(authorization.replace(";x-amz-date", "")), incomplete),
        ("another algorithm", with(authorization.replace("HMAC-SHA256", "HMAC-SHA1")), incomplete),
        ("another access key id", with(authorization.replace("KPADMIN", "KPONE")), invalid),
        (
            "an unknown access key id",
            with(authorization.replace("KPADMIN", "KPNONE")),
            "UnrecognizedClientException",
        ),
        ("another region", with(authorization.replace(REGION, "us-east-1")), invalid),
        ("another service", with(authorization.replace("/kms/", "/s3/")), invalid),
    ];
    let count = cases.len();
    for (what, request, code) in cases {
        let answer = server.send(request).await;
        assert_eq!((answer.status, &*answer.code()), (400, code), "{what}: {answer:?}");
        assert!(!answer.body.to_string().contains(&signature), "{what}");
    }
    // Every bit of the signature counts.
    for index in 0..64 {
        let mut signature = signature.clone().into_bytes();
        signature[index] = if signature[index] == b'0' { b'1' } else { b'0' };
        let signature = String::from_utf8(signature).unwrap();
        let start = authorization.split("Signature=").next().unwrap();
        let answer = server.send(with(format!("{start}Signature={signature}"))).await;
        assert_eq!(answer.code(), invalid, "digit {index}");
    }
    assert_eq!(server.send(good).await.code(), "");
    let text = prometheus::TextEncoder::new().encode_to_string(&server.registry.gather()).unwrap();
    let failures = text.lines().filter(|line| line.starts_with("kms_proxy_auth_failures_total"));
    let failures: u64 =
        failures.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(failures, count as u64 + 64);
}

#[tokio::test]
async fn an_old_and_a_future_date_and_another_scope_are_refused_with_a_reason() {
    let server = server().await;
    let request = unsigned(&server);
    let now = request.now;
    for (signed, said) in [
        (request.clone().signed_at(KEY, KMS, now - 301), "Signature expired"),
        (request.clone().signed_at(KEY, KMS, now + 301), "Signature not yet current"),
        (request.clone().signed_at(KEY, KMS, now - 86_400), "Signature expired"),
        (
            request.clone().signed_at(KEY, Scope { region: "us-east-1", ..KMS }, now),
            "the region eu-central-1",
        ),
        (request.clone().signed_at(KEY, Scope { service: "s3", ..KMS }, now), "service kms"),
        (request.clone().signed_at(Credentials { secret: "x", ..KEY }, KMS, now), "does not match"),
    ] {
        let answer = server.send(signed).await;
        assert_eq!((answer.status, &*answer.code()), (400, "InvalidSignatureException"));
        assert!(answer.message().contains(said), "{answer:?}");
        assert!(answer.headers.contains_key("date"));
    }
}

/// A folded header has the same meaning and is signed as one line.
#[tokio::test]
async fn a_folded_header_is_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = server().await;
    let request = unsigned(&server).set("x-amz-meta", "a b").signed(KEY);
    assert_eq!(server.send(request.clone()).await.code(), "");
    let mut head = format!(
        "POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n",
        request.body.len()
    );
    for (name, value) in &request.headers {
        let value = value.to_str().unwrap();
        let value = if name == "x-amz-meta" { "a\r\n b" } else { value };
        head += &format!("{name}: {value}\r\n");
    }
    let address = server.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}\r\n{}", request.body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_is_an_error_that_is_retried() {
    let server = server().await;
    let dir = server.auth_config.aws_secret_key_file.as_ref().unwrap().parent().unwrap();
    std::fs::remove_file(dir.join("secret")).unwrap();
    let answer = server.send(unsigned(&server).signed(KEY)).await;
    assert_eq!((answer.status, &*answer.code()), (503, "DependencyTimeoutException"));
    assert!(!answer.message().contains(dir.to_str().unwrap()), "{answer:?}");
    std::fs::write(dir.join("secret"), SECRET).unwrap();
    // The failure counts for a second.
    assert_eq!(server.send(unsigned(&server).signed(KEY)).await.status, 503);
    server.clock.advance(Duration::from_secs(1));
    assert_eq!(server.send(unsigned(&server).signed(KEY)).await.code(), "");
    // While the secret is cached, the file may be missing.
    std::fs::remove_file(dir.join("secret")).unwrap();
    assert_eq!(server.send(unsigned(&server).signed(KEY)).await.code(), "");
}
