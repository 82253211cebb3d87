//! The HTTP API on the memory store and a test root, over real connections.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::clock::SystemClock;
use crate::metrics::Metrics;
use crate::root::{self, testing::TestRoot};
use crate::service;
use crate::store::memory;

mod bodies;

struct Server {
    address: SocketAddr,
    client: reqwest::Client,
    store: Arc<memory::Store>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start() -> Self {
        Self::with(Config { max_body: 100_000, ..Config::default() }).await
    }

    async fn with(config: Config) -> Self {
        let (registry, store) = (Registry::new(), Arc::new(memory::Store::new()));
        let root: Arc<dyn root::RootKey> = Arc::new(TestRoot::default());
        let service = KeyService::start(
            service::Config::default(),
            Arc::clone(&store) as _,
            vec![root::Named { name: "main".into(), root }],
            Arc::new(SystemClock::new()),
            Metrics::new(&registry).unwrap(),
        );
        let service = service.await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let shutdown = async { stopped.await.unwrap_or_default() };
        let listeners = Listeners { public: listener, tls: None, admin: None };
        // A busy machine may need seconds for a request.
        let config = Config { request_timeout: Duration::from_secs(120), ..config };
        let task = tokio::spawn(serve(config, listeners, service, None, registry, shutdown));
        Self { address, client: reqwest::Client::new(), store, stop: Some(stop), task }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(&body)).await
    }

    async fn ok(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Sends `text` unchanged, and returns what is received until the connection ends.
    async fn raw(&self, text: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
}

/// The names of an object's members.
fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// The members of an object in the OpenAPI document.
fn schema(name: &str) -> BTreeSet<String> {
    let document: Value = serde_json::from_str(&openapi()).unwrap();
    keys(&document["components"]["schemas"][name]["properties"])
}

#[tokio::test]
async fn what_is_encrypted_decrypts_and_answers_are_as_documented() {
    let server = Server::start().await;
    let request = json!({"plaintext": "aGVsbG8=", "aad": "cm93IDc=", "chain": "default"});
    let made = server.ok("/v1/encrypt", request).await;
    assert_eq!(keys(&made), schema("EncryptResponse"));
    let request = json!({"ciphertext": made["ciphertext"], "aad": "cm93IDc="});
    let opened = server.ok("/v1/decrypt", request).await;
    assert_eq!(keys(&opened), schema("DecryptResponse"));
    assert_eq!(opened["plaintext"], "aGVsbG8=");
    assert_eq!((&opened["chain"], &opened["kek_id"]), (&json!("default"), &made["kek_id"]));
    let rotated = server.ok("/v1/rotate", json!({})).await;
    assert_eq!(keys(&rotated), schema("RotateResponse"));
    assert_eq!(rotated["previous"], made["kek_id"]);
    let moved = server.ok("/v1/rewrap", json!({"ciphertext": made["ciphertext"]})).await;
    assert_eq!(keys(&moved), schema("RewrapResponse"));
    assert_eq!(
        (&moved["kek_id"], &moved["previous_kek_id"]),
        (&rotated["primary"], &made["kek_id"])
    );
    let key = server.ok("/v1/datakey", json!({"bytes": 16})).await;
    assert_eq!(keys(&key), schema("DatakeyResponse"));
    assert_eq!(key["plaintext"].as_str().unwrap().len(), 24);
    let opened = server.ok("/v1/decrypt", json!({"ciphertext": key["ciphertext"]})).await;
    assert_eq!(opened["plaintext"], key["plaintext"]);
    let (_, chain) = answer(server.request(Method::GET, "/v1/chains/default")).await;
    let mut kek = schema("Kek");
    assert!(kek.remove("still_archived_in"), "it is in the response to `destroy` alone");
    assert_eq!(keys(&chain["items"][0]), kek);
    let (_, chains) = answer(server.request(Method::GET, "/v1/chains?limit=1")).await;
    assert_eq!(keys(&chains["chains"][0]), schema("Chain"));
}

#[tokio::test]
async fn every_bad_request_has_its_code_and_affects_no_other() {
    let server = Server::start().await;
    let made = server.ok("/v1/encrypt", json!({"plaintext": "aGVsbG8="})).await;
    let good = made["ciphertext"].as_str().unwrap();
    let other = server.ok("/v1/encrypt", json!({"plaintext": "aGVsbG8=", "aad": "AAAA"})).await;
    let (_, unknown) = {
        let elsewhere = Server::start().await;
        elsewhere.post("/v1/encrypt", json!({"plaintext": ""})).await
    };
    let (status, _) =
        answer(server.request(Method::PUT, "/v1/chains/other").json(&json!({}))).await;
    assert_eq!(status, 201);
    let cut = &good[..good.len() - 8];
    let other_letter = if &good[60..61] == "A" { "B" } else { "A" };
    let flipped = format!("{}{other_letter}{}", &good[..60], &good[61..]);
    let kek = format!("/v1/chains/default/keks/{}", made["kek_id"].as_str().unwrap());
    let large = format!("{{\"plaintext\":\"{}\"}}", "A".repeat(200_000));
    let post = |path: &str, body: &str| (Method::POST, path.to_owned(), body.to_owned());
    let cases = [
        (post("/v1/encrypt", "{"), 400, "invalid_request", "not JSON"),
        (post("/v1/encrypt", ""), 400, "invalid_request", "missing field `plaintext`"),
        (post("/v1/encrypt", "[]"), 400, "invalid_request", "expected an object"),
        (post("/v1/encrypt", r#"["aGVsbG8="]"#), 400, "invalid_request", "expected an object"),
        (
            post("/v1/batch/encrypt", r#"{"items":[["aGVsbG8="]]}"#),
            400,
            "invalid_request",
            "items[0]: expected an object",
        ),
        (
            post("/v1/encrypt", r#"{"plaintext":5}"#),
            400,
            "invalid_request",
            "plaintext: expected a string",
        ),
        (
            post("/v1/encrypt", r#"{"plaintext":"","x":1}"#),
            400,
            "invalid_request",
            "unknown field `x`",
        ),
        (
            post("/v1/encrypt", r#"{"plaintext":"","plaintext":""}"#),
            400,
            "invalid_request",
            "duplicate",
        ),
        (
            post("/v1/encrypt", r#"{"plaintext":"a"}"#),
            400,
            "invalid_request",
            "plaintext is not base64",
        ),
        (post("/v1/encrypt", r#"{"plaintext":"aGVsbG9="}"#), 400, "invalid_request", "not base64"),
        (
            post("/v1/encrypt", r#"{"plaintext":"","aad":"*"}"#),
            400,
            "invalid_request",
            "aad is not base64",
        ),
        (
            post("/v1/encrypt", r#"{"plaintext":"","chain":"Ä"}"#),
            400,
            "invalid_request",
            "chain name",
        ),
        (post("/v1/encrypt", r#"{"plaintext":"","chain":"none"}"#), 404, "unknown_chain", ""),
        (post("/v1/encrypt", &large), 413, "payload_too_large", "100000"),
        (post("/v1/decrypt", r#"{"ciphertext":""}"#), 400, "invalid_ciphertext", ""),
        (post("/v1/decrypt", r#"{"ciphertext":"kp:"}"#), 400, "invalid_ciphertext", ""),
        (
            post("/v1/decrypt", &json!({"ciphertext": cut}).to_string()),
            400,
            "invalid_ciphertext",
            "",
        ),
        (
            post("/v1/decrypt", &json!({"ciphertext": flipped}).to_string()),
            400,
            "invalid_ciphertext",
            "",
        ),
        (
            post("/v1/decrypt", &json!({"ciphertext": good, "aad": "AAAA"}).to_string()),
            400,
            "invalid_ciphertext",
            "",
        ),
        (
            post("/v1/decrypt", &json!({"ciphertext": other["ciphertext"]}).to_string()),
            400,
            "invalid_ciphertext",
            "",
        ),
        (
            post("/v1/decrypt", &json!({"ciphertext": unknown["ciphertext"]}).to_string()),
            400,
            "unknown_kek",
            "",
        ),
        (
            post("/v1/decrypt", &json!({"ciphertext": good, "chain": "other"}).to_string()),
            400,
            "unknown_kek",
            "",
        ),
        (
            post("/v1/rewrap", &json!({"ciphertext": &good[..43]}).to_string()),
            400,
            "invalid_ciphertext",
            "",
        ),
        (post("/v1/datakey", r#"{"bytes":15}"#), 400, "invalid_request", "between 16 and 64"),
        (post("/v1/datakey", r#"{"bytes":-1}"#), 400, "invalid_request", "bytes"),
        (post("/v1/batch/encrypt", r#"{"items":[]}"#), 400, "invalid_request", "1 to 10000"),
        (
            post("/v1/batch/encrypt", r#"{"items":[{"plaintext":"","b":1}]}"#),
            400,
            "invalid_request",
            "items[0]",
        ),
        (post("/v1/rotate", r#"{"chain":"none"}"#), 404, "unknown_chain", ""),
        (post(&format!("{kek}/disable"), ""), 409, "conflict", "rotate"),
        (
            post(&format!("{kek}/destroy"), r#"{"confirm":"yes"}"#),
            400,
            "invalid_request",
            "confirm",
        ),
        (post("/v1/chains/default/keks/zz/disable", ""), 400, "invalid_request", "hex"),
        (
            post("/v1/chains/default/keks/00000000000000000000000000000000/disable", ""),
            400,
            "unknown_kek",
            "",
        ),
        (post("/v1/nothing", ""), 404, "not_found", ""),
        (post("/healthz", ""), 405, "method_not_allowed", ""),
        ((Method::GET, "/v1/encrypt".to_owned(), String::new()), 405, "method_not_allowed", ""),
        ((Method::GET, "/v1/chains/none".to_owned(), String::new()), 404, "unknown_chain", ""),
        (
            (Method::GET, "/v1/chains?limit=0".to_owned(), String::new()),
            400,
            "invalid_request",
            "limit",
        ),
        (
            (Method::GET, "/v1/chains?x=0".to_owned(), String::new()),
            400,
            "invalid_request",
            "query",
        ),
        (
            (Method::GET, "/v1/chains/default?after=x".to_owned(), String::new()),
            400,
            "invalid_request",
            "after",
        ),
        (
            (Method::PUT, "/v1/chains/-".to_owned(), "{}".to_owned()),
            400,
            "invalid_request",
            "chain name",
        ),
        (
            (Method::PUT, "/v1/chains/n".to_owned(), r#"{"max_uses":0}"#.to_owned()),
            400,
            "invalid_request",
            "max_uses",
        ),
        (
            (Method::PUT, "/v1/chains/n".to_owned(), r#"{"suite":"des"}"#.to_owned()),
            400,
            "invalid_request",
            "a suite is aes-128-gcm or aes-256-gcm",
        ),
        (
            (Method::PUT, "/v1/chains/n".to_owned(), r#"{"max_uses":"9"}"#.to_owned()),
            400,
            "invalid_request",
            "max_uses: expected a whole number (line 1",
        ),
        (
            (Method::PUT, "/v1/chains/other".to_owned(), r#"{"suite":"aes-256-gcm"}"#.to_owned()),
            409,
            "conflict",
            "suite",
        ),
    ];
    for ((method, path, body), status, code, said) in cases {
        let request = server.request(method, &path).header("content-type", "application/json");
        let response = request.body(body.clone()).send().await.unwrap();
        let (got, headers) = (response.status(), response.headers().clone());
        let problem: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        let what = format!("{path} {:.60} -> {problem}", body);
        assert_eq!((got.as_u16(), &problem["code"]), (status, &json!(code)), "{what}");
        assert_eq!(headers["content-type"], "application/problem+json", "{what}");
        assert_eq!(keys(&problem), schema("Problem"), "{what}");
        assert_eq!(problem["request_id"], headers["x-request-id"].to_str().unwrap(), "{what}");
        assert!(problem["detail"].as_str().unwrap().contains(said), "{what}");
        assert_eq!(headers.contains_key("allow"), status == 405, "{what}");
    }
    let opened = server.ok("/v1/decrypt", json!({"ciphertext": good})).await;
    assert_eq!(opened["plaintext"], "aGVsbG8=");
}

#[tokio::test]
async fn bad_values_are_never_repeated() {
    let server = Server::start().await;
    for body in [
        r#"{"plaintext":{"c2VjcmV0":1}}"#,
        r#"{"plaintext":["c2VjcmV0"]}"#,
        r#"{"plaintext":"c2VjcmV0!"}"#,
        r#"{"plaintext":"","aad":"c2VjcmV0!"}"#,
        r#"{"plaintext":"","chain":"c2VjcmV0"}"#,
        r#"{"plaintext":"c2VjcmV0""#,
    ] {
        let request = server.request(Method::POST, "/v1/encrypt");
        let request = request.header("content-type", "application/json").body(body);
        let (status, problem) = answer(request).await;
        assert!(status.is_client_error(), "{body}");
        assert!(!problem.to_string().contains("c2Vjc"), "{problem}");
    }
    let request = server.request(Method::POST, "/v1/datakey");
    let request =
        request.header("content-type", "application/json").body(r#"{"bytes":"c2VjcmV0"}"#);
    assert!(!answer(request).await.1.to_string().contains("c2Vjc"));
}

#[tokio::test]
async fn names_of_fields_are_repeated_once_and_truncated() {
    let server = Server::start().await;
    let long = "x".repeat(1000);
    let sixty_four = "x".repeat(64);
    for (body, detail) in [
        (
            json!({"plaintext": "", "x": 1}),
            "unknown field `x`, expected one of `plaintext`, `aad`, `chain`".to_owned(),
        ),
        (
            json!({ &long: 1 }),
            format!("unknown field `{sixty_four}...`, expected one of `plaintext`, `aad`, `chain`"),
        ),
        (
            json!({"a b<script>": 1}),
            "unknown field `a...`, expected one of `plaintext`, `aad`, `chain`".to_owned(),
        ),
        (
            json!({format!("`, expected {long}` at line 1"): 1}),
            "unknown field `...`, expected one of `plaintext`, `aad`, `chain`".to_owned(),
        ),
        (json!({"plaintext": true}), "plaintext: expected a string".to_owned()),
    ] {
        let (status, problem) = server.post("/v1/encrypt", body).await;
        let said = problem["detail"].as_str().unwrap();
        let (said, _) = said.rsplit_once(" (line 1, column ").unwrap();
        assert_eq!((status.as_u16(), said), (400, &*detail));
    }
    let items = json!({"items": [{"plaintext": ""}, {"plaintext": "", "y": 1}]});
    let (_, problem) = server.post("/v1/batch/encrypt", items).await;
    let said = problem["detail"].as_str().unwrap();
    assert!(said.starts_with("items[1]: unknown field `y`, expected one of"), "{said}");
    let name = format!("{long}`, there are no fields");
    let path = "/v1/chains/default/keks/00000000000000000000000000000000/enable";
    let (_, problem) = server.post(path, json!({ name: 1 })).await;
    let said = problem["detail"].as_str().unwrap();
    assert!(said.starts_with(&format!("unknown field `{sixty_four}...`, there are no fields (")));
}

#[tokio::test]
async fn a_body_that_is_declared_too_large_is_not_requested() {
    let server = Server::start().await;
    let head = |path: &str, len: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {len}\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    for path in ["/v1/encrypt", "/v1/decrypt", "/v1/batch/encrypt"] {
        let answer = server.raw(&head(path, 200_000)).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{path}: {answer}");
    }
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head("/v1/encrypt", 100_000).as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
}

#[tokio::test]
async fn content_types_are_checked() {
    let server = Server::start().await;
    let post = |path: &str| server.request(Method::POST, path).body("{}");
    for wrong in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let (status, problem) = answer(post("/v1/encrypt").header("content-type", wrong)).await;
        assert_eq!((status.as_u16(), &problem["code"]), (415, &json!("unsupported_media_type")));
    }
    assert_eq!(answer(post("/v1/rotate")).await.0, 415, "none at all");
    let octets = "application/octet-stream";
    for wrong in [octets, "text/plain"] {
        let (status, problem) = answer(post("/v1/rewrap").header("content-type", wrong)).await;
        assert_eq!(status, 415);
        assert_eq!(problem["detail"], "the content type must be application/json");
    }
    let json = post("/v1/datakey").header("content-type", "Application/JSON; charset=utf-8");
    assert_eq!(answer(json).await.0, 200);
}

#[tokio::test]
async fn raw_bodies_are_accepted_and_returned() {
    let server = Server::start().await;
    let octets = |path: &str, body: Vec<u8>| {
        let request = server.request(Method::POST, path).body(body);
        request.header("content-type", "application/octet-stream").header("kms-proxy-aad", "cm93")
    };
    let made = octets("/v1/encrypt", vec![7; 256]).send().await.unwrap();
    assert_eq!(made.headers()["content-type"], "application/octet-stream");
    assert_eq!(made.headers()["kms-proxy-chain"], "default");
    assert_eq!(made.headers()["cache-control"], "no-store");
    let envelope = made.bytes().await.unwrap();
    assert_eq!(envelope.len(), 334);
    let opened = octets("/v1/decrypt", envelope.to_vec()).send().await.unwrap();
    assert_eq!(opened.bytes().await.unwrap(), vec![7; 256]);
    let text = octets("/v1/decrypt", envelope.to_vec()).header("accept", "application/json");
    let text: Value = answer(text).await.1;
    assert_eq!(text["plaintext"].as_str().unwrap().len(), 344);
    let (status, problem) =
        answer(octets("/v1/decrypt", envelope.to_vec()).header("kms-proxy-chain", "none")).await;
    assert_eq!((status.as_u16(), &problem["code"]), (404, &json!("unknown_chain")));
    let json = server.request(Method::POST, "/v1/encrypt").json(&json!({"plaintext": "aGVsbG8="}));
    let raw = json.header("accept", "application/octet-stream").send().await.unwrap();
    assert_eq!(raw.bytes().await.unwrap().len(), 62 + 5 + 16);
    for header in ["kms-proxy-aad", "kms-proxy-chain"] {
        let twice = server.request(Method::POST, "/v1/encrypt").body("hello");
        let twice = twice.header("content-type", "application/octet-stream");
        let (status, problem) = answer(twice.header(header, "cm93").header(header, "cm93")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_request")));
        assert_eq!(problem["detail"], format!("the header {header} is there more than once"));
    }
    for (header, path) in [("kms-proxy-aad", "/v1/encrypt"), ("kms-proxy-chain", "/v1/decrypt")] {
        let json = server.request(Method::POST, path).header(header, "cm93").json(&json!({}));
        let (status, problem) = answer(json).await;
        assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_request")));
        assert!(problem["detail"].as_str().unwrap().contains("octet-stream"), "{problem}");
    }
}

#[tokio::test]
async fn the_largest_plaintext_decrypts_again() {
    let server = Server::start().await;
    let octets = |path: &str, body: Vec<u8>| {
        let request = server.request(Method::POST, path).body(body);
        request.header("content-type", "application/octet-stream")
    };
    let made = octets("/v1/encrypt", vec![7; 100_000]).send().await.unwrap();
    let opened = octets("/v1/decrypt", made.bytes().await.unwrap().to_vec()).send().await.unwrap();
    assert_eq!(opened.bytes().await.unwrap(), vec![7; 100_000]);
    assert_eq!(octets("/v1/encrypt", vec![7; 100_001]).send().await.unwrap().status(), 413);
    let largest = "A".repeat(100_000 - r#"{"plaintext":""}"#.len());
    let made = server.ok("/v1/encrypt", json!({"plaintext": largest})).await;
    let opened = server.ok("/v1/decrypt", json!({"ciphertext": made["ciphertext"]})).await;
    assert_eq!(opened["plaintext"], largest);
}

#[tokio::test]
async fn batch_items_fail_independently() {
    let server = Server::start().await;
    let items = json!({"items": [
        {"plaintext": "aGVsbG8="}, {"plaintext": "!"}, {"plaintext": "", "chain": "default"},
        {"plaintext": "aGVs\u{5c}u0062G8="},
    ]});
    let made = server.ok("/v1/batch/encrypt", items).await;
    let results = made["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    let error = &results[1]["error"];
    let detail = "plaintext is not base64: position 1 has a character that base64 does not have";
    assert_eq!(error, &json!({"code": "invalid_request", "detail": detail}));
    assert_eq!(results[2]["error"]["code"], "invalid_request");
    let cut = json!("kp:AQ==");
    let items = json!({"items": [{"ciphertext": results[0]["ciphertext"]}, {"ciphertext": cut}]});
    let opened = server.ok("/v1/batch/decrypt", items.clone()).await;
    assert_eq!(opened["results"][0]["plaintext"], "aGVsbG8=");
    assert_eq!(opened["results"][1]["error"]["code"], "invalid_ciphertext");
    let moved = server.ok("/v1/batch/rewrap", items).await;
    assert_eq!(moved["results"][0]["ciphertext"], results[0]["ciphertext"], "under the primary");
    let many: Vec<_> = (0..10_001).map(|_| json!({"plaintext": ""})).collect();
    let server = Server::with(Config::default()).await;
    let made = server.ok("/v1/batch/encrypt", json!({"items": many[1..]})).await;
    let done = made["results"].as_array().unwrap();
    assert_eq!(done.iter().filter(|result| result["ciphertext"].is_string()).count(), 10_000);
    assert_eq!(server.post("/v1/batch/encrypt", json!({"items": many})).await.0, 400);
}

#[tokio::test]
async fn pages_of_other_origins_and_other_hosts_are_refused() {
    let server = Server::start().await;
    let port = server.address.port();
    let get = |head: &str| format!("GET /healthz HTTP/1.1\r\nConnection: close\r\n{head}\r\n\r\n");
    for (head, status) in [
        (format!("Host: 127.0.0.1:{port}"), "200"),
        (format!("Host: LOCALHOST:{port}"), "200"),
        ("Host: [::1]".to_owned(), "200"),
        ("Host: example.com".to_owned(), "403"),
        ("Host: localhost.example.com".to_owned(), "403"),
        ("Host: 127.0.0.1.example.com".to_owned(), "403"),
        ("Host: localhost@example.com".to_owned(), "403"),
        ("Host: localhost:80@example.com".to_owned(), "403"),
        ("Host: [::1].example.com".to_owned(), "403"),
        ("Host: [::2]:80".to_owned(), "403"),
        ("Host: [::1]:80".to_owned(), "200"),
        ("Host: localhost\r\nHost: example.com".to_owned(), "400"),
        ("X: y".to_owned(), "400"),
        (format!("Host: localhost:{port}\r\nOrigin: http://localhost:{port}"), "200"),
        (format!("Host: localhost:{port}\r\nOrigin: http://localhost:1"), "403"),
        (format!("Host: localhost:{port}\r\nOrigin: https://example.com"), "403"),
        (format!("Host: localhost:{port}\r\nOrigin: null"), "403"),
        ("Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://a".into(), "403"),
        ("Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://localhost".into(), "403"),
    ] {
        let answer = server.raw(&get(&head)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
    }
    let absolute =
        "GET http://example.com/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(server.raw(absolute).await.starts_with("HTTP/1.1 403"));
}

#[tokio::test]
async fn request_ids_are_accepted_or_generated() {
    let server = Server::start().await;
    let id = async |given: Option<&str>| {
        let request = server.request(Method::GET, "/healthz");
        let request =
            given.into_iter().fold(request, |request, id| request.header("x-request-id", id));
        let response = request.send().await.unwrap();
        response.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id(Some("req-7/a.b")).await, "req-7/a.b");
    assert_ne!(id(Some("a b\"")).await, "a b\"");
    assert_ne!(id(Some(&"x".repeat(65))).await, "x".repeat(65));
    assert_ne!(id(None).await, id(None).await);
}

#[tokio::test]
async fn health_and_metrics_report_the_state() {
    let server = Server::start().await;
    assert_eq!(answer(server.request(Method::GET, "/healthz")).await.1, json!({"status": "ok"}));
    let (status, ready) = answer(server.request(Method::GET, "/readyz")).await;
    assert_eq!((status.as_u16(), &ready["status"]), (200, &json!("ok")));
    server.ok("/v1/encrypt", json!({"plaintext": ""})).await;
    server.post("/v1/encrypt", json!({"plaintext": "!"})).await;
    server.store.set_down(true);
    server.post("/v1/rotate", json!({})).await;
    let (status, ready) = answer(server.request(Method::GET, "/readyz")).await;
    assert_eq!((status.as_u16(), &ready["status"]), (200, &json!("degraded")));
    assert!(ready["checks"][0]["detail"].as_str().unwrap().contains("since 20"), "{ready}");
    let metrics = server.request(Method::GET, "/metrics").send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for line in [
        r#"kms_proxy_operations_total{chain="default",operation="encrypt",outcome="ok"} 1"#,
        r#"kms_proxy_operations_total{chain="",operation="encrypt",outcome="invalid_request"} 1"#,
        concat!(
            r#"kms_proxy_operations_total{chain="default","#,
            r#"operation="rotate",outcome="store_unavailable"} 1"#
        ),
        "kms_proxy_store_up 0",
        // While the store is down, no KEK is created that could not be stored.
        r#"kms_proxy_root_calls_total{operation="wrap",outcome="ok",root="main"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn a_stop_finishes_requests_in_flight() {
    let mut server = Server::start().await;
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let (first, last) = (r#"{"plaintext":"#, r#""aGVsbG8="}"#);
    let len = first.len() + last.len();
    let head = format!(
        "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
            application/json\r\nContent-Length: {len}\r\n\r\n{first}"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The response proves that the server has accepted the previous connection.
    server.ok("/v1/datakey", json!({})).await;
    server.stop.take().unwrap().send(()).unwrap();
    while tokio::net::TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(last.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("kp:"), "{answer}");
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_documentation_page_fetches_nothing_from_elsewhere() {
    let server = Server::start().await;
    let get = async |path: &str| server.request(Method::GET, path).send().await.unwrap();
    let document: Value = get("/openapi.json").await.json().await.unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let page = get("/docs").await;
    assert_eq!(page.url().path(), "/docs/");
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'self'") && policy.contains("frame-ancestors 'none'"));
    assert_eq!(page.headers()["cache-control"], "no-store");
    let page = page.text().await.unwrap();
    assert!(page.contains("<title>kms-proxy</title>"), "{page}");
    let files: Vec<_> =
        page.split(['"', '\'']).filter_map(|part| part.strip_prefix("./")).collect();
    assert!(files.len() >= 4 && !page.contains("//cdn") && !page.contains("https://"), "{page}");
    for file in files {
        let file = get(&format!("/docs/{file}")).await;
        assert_eq!(file.status(), 200);
        assert_eq!(file.headers()["cache-control"], "max-age=3600");
        assert_eq!(file.headers()["x-content-type-options"], "nosniff");
    }
    let script = get("/docs/swagger-initializer.js").await.text().await.unwrap();
    assert!(script.contains(r#""validatorUrl": "none""#), "{script}");
    assert_eq!(get("/docs/none.js").await.status(), 404);
}

/// `make openapi` regenerates the file.
#[test]
fn the_committed_document_is_current() {
    let committed = include_str!("../../openapi/kms-proxy.json");
    assert!(committed == openapi(), "openapi/kms-proxy.json is out of date: run `make openapi`");
}
