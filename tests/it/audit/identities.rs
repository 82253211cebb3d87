//! How a line says who called: each kind of identity, and callers that have none.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::{events, full, log, of_request, run_token};
use crate::support::jwt::{self, Key};
use crate::support::kube;
use crate::support::pki::{self, Pki};
use crate::support::{Setup, until};

const ISSUER: &str = "https://issuer.example";

/// The one line of a request: the fields of its caller.
fn caller(setup: &Setup, id: &str) -> (Value, Value, Value) {
    let lines = of_request(setup, id);
    assert_eq!(lines.len(), 1, "{id}: {lines:#?}");
    let field = |name: &str| lines[0][name].clone();
    (field("client"), field("auth"), field("outcome"))
}

#[tokio::test]
async fn each_line_says_by_what_its_caller_was_identified() {
    let setup = full();
    let pki = Pki::new(setup.file("pki"));
    let (cert, server_key) = pki.server(&["localhost", "127.0.0.1"]);
    let (token, digest) = run_token();
    let key = Key::new("one", Algorithm::ES256);
    let jwks = setup.file("jwks.json");
    std::fs::write(&jwks, jwt::jwks(&[&key])).unwrap();
    let config = setup.file("kms-proxy.toml");
    let client = |name: &str, identity: &str| {
        format!(
            "[[client]]\nname = '{name}'\n{identity}\n\
             allow = [{{ chains = ['*'], operations = ['encrypt'] }}]\n"
        )
    };
    let of_jwt = format!(
        "jwt = {{ issuer = '{ISSUER}', audience = 'kms', subject = 'app', jwks_file = '{}' }}",
        jwks.display()
    );
    let clients = [
        client("by-token", &format!("token_sha256 = '{digest}'")),
        client("by-jwt", &of_jwt),
        client("by-certificate", "tls_san = 'spiffe://prod/app'"),
    ];
    std::fs::write(&config, format!("[auth]\nmode = 'required'\n{}", clients.concat())).unwrap();
    let setup = setup
        .env("KMS_PROXY_CONFIG", config.display())
        .set("SERVER__TLS__CERT", cert.display())
        .set("SERVER__TLS__KEY", server_key.display())
        .set("SERVER__TLS__CLIENT_CA", pki.ca().display());
    let service = setup.start().await;
    let identity = pki.client(&["spiffe://prod/app"]);
    let call = async |id: &str, certificate: Option<_>, bearer: Option<&str>| {
        let client = pki::client(&pki.ca(), certificate).build().unwrap();
        let mut request = client.post(format!("{}/v1/encrypt", service.url()));
        request = request.header("x-request-id", id).json(&json!({"plaintext": "aGVsbG8="}));
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        request.send().await.map(|response| response.status().as_u16())
    };
    let jwt = key.sign(&jwt::claims(ISSUER, "kms", "app"));
    let forged = Key::new("one", Algorithm::ES256).sign(&jwt::claims(ISSUER, "kms", "app"));
    assert_eq!(call("token", None, Some(&token)).await.unwrap(), 200);
    assert_eq!(call("jwt", None, Some(&jwt)).await.unwrap(), 200);
    assert_eq!(call("again", None, Some(&jwt)).await.unwrap(), 200);
    assert_eq!(call("certificate", Some(&identity), None).await.unwrap(), 200);
    // A token counts before a certificate.
    assert_eq!(call("both", Some(&identity), Some(&token)).await.unwrap(), 200);
    assert_eq!(call("nothing", None, None).await.unwrap(), 401);
    assert_eq!(call("forged", None, Some(&forged)).await.unwrap(), 401);
    assert_eq!(call("dots", None, Some("a.b.c")).await.unwrap(), 401);
    let elsewhere = Pki::new(setup.file("elsewhere"));
    let stranger = elsewhere.client(&["spiffe://prod/app"]);
    for _ in 0..30 {
        // With TLS 1.3 a client can learn of the refusal only when it reads.
        assert!(call("stranger", Some(&stranger), None).await.is_err());
    }
    service.stop().await;

    for (id, client, auth) in [
        ("token", "by-token", "token"),
        ("jwt", "by-jwt", "jwt"),
        ("again", "by-jwt", "jwt"),
        ("certificate", "by-certificate", "mtls"),
        ("both", "by-token", "token"),
    ] {
        assert_eq!(caller(&setup, id), (json!(client), json!(auth), json!("ok")), "{id}");
    }
    for id in ["nothing", "forged", "dots"] {
        let expected = (Value::Null, Value::Null, json!("unauthenticated"));
        assert_eq!(caller(&setup, id), expected, "{id}");
    }
    let text = log(&setup);
    let signature = |jwt: &str| jwt.rsplit_once('.').unwrap().1.to_owned();
    for secret in [&token, &jwt, &signature(&jwt), &signature(&forged)] {
        assert!(!text.contains(&**secret), "{text}");
    }
    // Handshakes that were refused have lines, within the limit.
    let events = events(&text);
    let refused: Vec<_> = events.iter().filter(|it| it["operation"] == "handshake").collect();
    assert!(!refused.is_empty(), "{text}");
    for line in &refused {
        assert_eq!((&line["client"], &line["auth"]), (&Value::Null, &Value::Null));
        assert_eq!((&line["api"], &line["outcome"]), (&json!("http"), &json!("unauthenticated")));
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
    let omitted = events.iter().filter(|it| it["operation"] == "omitted");
    let omitted: u64 = omitted.map(|it| it["count"].as_u64().unwrap()).sum();
    assert_eq!(refused.len() as u64 + omitted, 30, "{text}");
    super::prove(&text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_too_many_requests_is_named() {
    let setup = full();
    let (token, digest) = run_token();
    let config = setup.file("kms-proxy.toml");
    let client = format!(
        "[auth]\nmode = 'required'\n[[client]]\nname = 'billing'\ntoken_sha256 = '{digest}'\n\
         max_in_flight = 1\nallow = [{{ chains = ['*'], operations = ['encrypt'] }}]\n"
    );
    std::fs::write(&config, client).unwrap();
    let setup = setup.env("KMS_PROXY_CONFIG", config.display());
    let service = setup.start().await;
    // One request is held up by its body, so the other is one too many.
    let head = format!(
        "POST /v1/encrypt HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    let address = service.url().trim_start_matches("http://").to_owned();
    let mut held = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut held, head.as_bytes()).await.unwrap();
    let bearer = format!("Bearer {token}");
    let body = json!({"plaintext": "aGVsbG8="}).to_string();
    let headers = [("authorization", &*bearer)];
    let id = until("a refusal", async || {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let id = format!("n{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let status =
            super::call(&service, &id, reqwest::Method::POST, "/v1/encrypt", &headers, &body).await;
        (status == 429).then_some(id)
    })
    .await;
    drop(held);
    service.stop().await;
    assert_eq!(caller(&setup, &id), (json!("billing"), json!("token"), json!("overloaded")));
}

/// The calls of the plugin that have no line: kube-apiserver makes them all the time.
const SILENT: [&str; 1] = ["Status"];

#[tokio::test(flavor = "multi_thread")]
async fn no_call_of_kubernetes_is_without_a_line() {
    let setup = full();
    let socket = setup.file("kms.sock");
    let setup = setup.set("KUBERNETES__SOCKET", format!("unix://{}", socket.display()));
    let service = setup.start().await;
    let mut client = kube::Client::of(&[&socket]);
    // The definition of Kubernetes says which calls there are. A new one needs a line here.
    let proto = crate::support::root().join("tests/kubernetes/kms.proto");
    let proto = std::fs::read_to_string(proto).unwrap();
    let calls = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    let mut calls: Vec<_> = calls.map(|call| call.split('(').next().unwrap()).collect();
    calls.sort_unstable();
    assert_eq!(calls, ["Decrypt", "Encrypt", "Status"]);
    let made = client.good(&json!({"do": "encrypt", "plaintext": "00ff", "uid": "Encrypt"}));
    let mut decrypt = made;
    decrypt["do"] = json!("decrypt");
    decrypt["uid"] = json!("Decrypt");
    client.good(&decrypt);
    // Refused before it reaches the service: it has a line all the same.
    decrypt["uid"] = json!("wrong");
    decrypt["key_id"] = json!("other");
    assert_eq!(client.tell(&decrypt)["error"], "INVALID_ARGUMENT");
    client.key_id();
    service.stop().await;

    let uid = rustix::process::getuid().as_raw();
    let text = log(&setup);
    for (id, operation, outcome) in [
        ("Encrypt", "encrypt", "ok"),
        ("Decrypt", "decrypt", "ok"),
        ("wrong", "decrypt", "invalid_ciphertext"),
    ] {
        let lines = of_request(&setup, id);
        assert_eq!(lines.len(), 1, "{id}: {text}");
        let line = &lines[0];
        assert_eq!((&line["operation"], &line["outcome"]), (&json!(operation), &json!(outcome)));
        assert_eq!((&line["api"], &line["auth"]), (&json!("kubernetes"), &json!("socket")));
        assert_eq!((&line["client"], &line["chain"]), (&Value::Null, &json!("kubernetes")));
        assert_eq!(line["peer"], format!("uid:{uid}"));
    }
    let seen = |call: &str| !of_request(&setup, call).is_empty();
    let missing: Vec<_> = calls.iter().filter(|call| !seen(call)).collect();
    assert_eq!(missing, SILENT.iter().collect::<Vec<_>>());
    assert!(!text.contains("00ff"), "{text}");
    super::prove(&text);
}
