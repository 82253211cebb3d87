//! Identities and permissions over the real binary: every call by every kind of caller, by HTTP/1.1
//! and by HTTP/2; and rules that change while the service runs.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jsonwebtoken::Algorithm;
use kms_proxy::auth::token;
use kms_proxy::metrics::Operation;
use reqwest::{Client, Method, Version};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::jwt::{self, Key};
use crate::support::pki::{self, Pki};
use crate::support::{Service, Setup, read_until, root, run, talk, until};

mod refusals;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "kms-proxy";
/// The names of the server in these tests.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// What a client's line of `allow` says.
const ALL: &str = "encrypt decrypt rewrap datakey rotate manage read";

/// A service for clients alone, by HTTPS, with everything that makes some of them.
struct World {
    setup: Setup,
    pki: Pki,
    key: Key,
    config: PathBuf,
    clients: String,
}

impl World {
    fn new() -> Self {
        let setup = Setup::new();
        let pki = Pki::new(setup.file("pki"));
        let (cert, server_key) = pki.server(&NAMES);
        let key = Key::new("one", Algorithm::ES256);
        std::fs::write(setup.file("jwks.json"), jwt::jwks(&[&key])).unwrap();
        let config = setup.file("kms-proxy.toml");
        let setup = setup
            .env("KMS_PROXY_CONFIG", config.display())
            .set("CHAIN__NAMES", "orders-1,secret")
            .set("LOG__LEVEL", "debug")
            .set("SERVER__ADMIN_LISTEN", "127.0.0.1:0")
            .set("SERVER__TLS__CERT", cert.display())
            .set("SERVER__TLS__KEY", server_key.display())
            .set("SERVER__TLS__CLIENT_CA", pki.ca().display());
        Self { setup, pki, key, config, clients: String::new() }
    }

    /// Adds a client with an identity that is written as in the configuration.
    fn client(&mut self, name: &str, identity: &str, chains: &str, operations: &str) {
        let operations: Vec<_> = operations.split(' ').collect();
        self.clients += &format!(
            "[[client]]\nname = '{name}'\n{identity}\n\
             allow = [{{ chains = ['{chains}'], operations = {operations:?} }}]\n"
        );
    }

    fn jwt_identity(&self, subject: &str) -> String {
        let jwks = self.setup.file("jwks.json");
        format!(
            "jwt = {{ issuer = '{ISSUER}', audience = '{AUDIENCE}', subject = '{subject}', \
             jwks_file = '{}' }}",
            jwks.display()
        )
    }

    fn write(&self) {
        let new = self.config.with_extension("new");
        std::fs::write(&new, format!("[auth]\nmode = 'required'\n{}", self.clients)).unwrap();
        std::fs::rename(new, &self.config).unwrap();
    }

    async fn start(&self) -> Service {
        self.write();
        self.setup.start().await
    }

    fn http(&self, identity: Option<&(PathBuf, PathBuf)>, version: Version) -> Client {
        let builder = pki::client(&self.pki.ca(), identity);
        let builder = if version == Version::HTTP_11 { builder.http1_only() } else { builder };
        builder.build().unwrap()
    }
}

/// How a caller shows who it is, and what should come of it.
struct Caller {
    what: &'static str,
    certificate: Option<(PathBuf, PathBuf)>,
    bearer: Option<String>,
    expected: Expected,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The handshake fails.
    NoConnection,
    /// 401.
    Nobody,
    /// 403, which names the client.
    Forbidden(&'static str),
    /// The call is made.
    Served,
}

/// A call: its path without the chain's name and with it, its body, and the operation that it is.
struct Call {
    method: Method,
    path: &'static str,
    body: fn(&str, &str) -> Value,
    operation: Option<Operation>,
}

/// Every call but health, which is for everybody. A new one needs a line here.
fn calls() -> Vec<Call> {
    let call = |method, path, operation: Operation, body| Call {
        method,
        path,
        body,
        operation: Some(operation),
    };
    let (get, post, put) = (|| Method::GET, || Method::POST, || Method::PUT);
    let nothing: fn(&str, &str) -> Value = |_, _| json!({});
    let chain: fn(&str, &str) -> Value = |chain, _| json!({ "chain": chain });
    vec![
        call(
            post(),
            "/v1/encrypt",
            Operation::Encrypt,
            |chain, _| json!({"chain": chain, "plaintext": "aGVsbG8="}),
        ),
        call(
            post(),
            "/v1/batch/encrypt",
            Operation::Encrypt,
            |chain, _| json!({"chain": chain, "items": [{"plaintext": ""}, {"plaintext": ""}]}),
        ),
        call(
            post(),
            "/v1/decrypt",
            Operation::Decrypt,
            |chain, sealed| json!({"chain": chain, "ciphertext": sealed}),
        ),
        call(
            post(),
            "/v1/batch/decrypt",
            Operation::Decrypt,
            |chain, sealed| json!({"chain": chain, "items": [{"ciphertext": sealed}]}),
        ),
        call(post(), "/v1/stream/encrypt", Operation::Encrypt, nothing),
        call(post(), "/v1/stream/decrypt", Operation::Decrypt, nothing),
        call(
            post(),
            "/v1/rewrap",
            Operation::Rewrap,
            |chain, sealed| json!({"chain": chain, "ciphertext": sealed}),
        ),
        call(
            post(),
            "/v1/batch/rewrap",
            Operation::Rewrap,
            |chain, sealed| json!({"chain": chain, "items": [{"ciphertext": sealed}]}),
        ),
        call(post(), "/v1/datakey", Operation::Datakey, chain),
        call(post(), "/v1/rotate", Operation::Rotate, chain),
        call(get(), "/v1/chains", Operation::Read, nothing),
        call(get(), "/v1/chains/{name}", Operation::Read, nothing),
        call(put(), "/v1/chains/{name}", Operation::Manage, nothing),
        call(Method::DELETE, "/v1/chains/{name}", Operation::Manage, nothing),
        call(post(), "/v1/chains/{name}/keks/{id}/disable", Operation::Manage, nothing),
        call(post(), "/v1/chains/{name}/keks/{id}/enable", Operation::Manage, nothing),
        call(post(), "/v1/chains/{name}/keks/{id}/destroy", Operation::Manage, nothing),
        call(get(), "/v1/chains/{name}/missing", Operation::Read, nothing),
        call(post(), "/v1/chains/{name}/roots/{root}/rewrap", Operation::Manage, nothing),
        call(post(), "/v1/chains/{name}/roots/{root}/remove", Operation::Manage, nothing),
    ]
}

/// What is not in the document, and is for clients alone all the same, whatever they may do.
const FOR_ALL_CLIENTS: [&str; 4] = ["/openapi.json", "/docs/", "/nothing", "/v1/nothing"];

#[test]
fn every_call_of_the_document_is_in_the_table() {
    let document = std::fs::read(root().join("openapi/kms-proxy.json")).unwrap();
    let document: Value = serde_json::from_slice(&document).unwrap();
    let mut listed = BTreeSet::new();
    for (path, calls) in document["paths"].as_object().unwrap() {
        listed.extend(calls.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
    }
    // tests/it/hot_backup.rs has the callers of a backup, which is of all chains, and
    // tests/it/status.rs those of the status page.
    let operators = [
        "get /healthz",
        "get /readyz",
        "get /metrics",
        "get /status",
        "get /status.json",
        "get /status/chains/{name}",
        "get /v1/backup",
    ];
    let operators = operators.map(str::to_owned);
    let tested = calls()
        .iter()
        .map(|call| format!("{} {}", call.method, call.path).to_lowercase())
        .chain(operators)
        .collect::<BTreeSet<_>>();
    assert_eq!(listed.iter().map(|call| call.to_lowercase()).collect::<BTreeSet<_>>(), tested);
}

/// Makes a call; the status, the answer and the version of HTTP, or nothing without a connection.
async fn make(
    http: &Client,
    service: &Service,
    caller: &Caller,
    call: &Call,
    chain: &str,
    sealed: &str,
) -> Option<(u16, Value, Version)> {
    let id = "00000000000000000000000000000000";
    let path = call.path.replace("{name}", chain).replace("{id}", id).replace("{root}", "local");
    let request = http.request(call.method.clone(), format!("{}{path}", service.url()));
    let request = caller.bearer.iter().fold(request, |request, bearer| request.bearer_auth(bearer));
    let request = match call.method {
        Method::GET => request,
        _ if call.path.starts_with("/v1/stream/") => {
            let request = request.header("kms-proxy-chain", chain);
            let bytes = kms_proxy::envelope::from_text(sealed).unwrap_or_default();
            request.header("content-type", "application/octet-stream").body(bytes)
        }
        _ => request.json(&(call.body)(chain, sealed)),
    };
    let response = request.send().await.ok()?;
    let (status, version) = (response.status().as_u16(), response.version());
    if status == 401 {
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"kms-proxy\"");
    }
    let body = response.bytes().await.unwrap();
    Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null), version))
}

/// The clients that the table of callers needs, and a token of the right one and of the other.
fn callers(world: &mut World) -> Vec<Caller> {
    let (right, right_digest) = token::generate().unwrap();
    let (other, other_digest) = token::generate().unwrap();
    let stranger = Key::new("one", Algorithm::ES256);
    for (name, chains, san, digest) in [
        ("right", "orders-*", "spiffe://prod/right", right_digest),
        ("other", "others-*", "other.example", other_digest),
    ] {
        world.client(&format!("{name}-cert"), &format!("tls_san = '{san}'"), chains, ALL);
        world.client(&format!("{name}-token"), &format!("token_sha256 = '{digest}'"), chains, ALL);
        let jwt = world.jwt_identity(&format!("system:serviceaccount:prod:{name}"));
        world.client(&format!("{name}-jwt"), &jwt, chains, ALL);
    }
    let pki = &world.pki;
    let claims =
        |name: &str| jwt::claims(ISSUER, AUDIENCE, &format!("system:serviceaccount:prod:{name}"));
    let changed = |claim: &str, value: Value| {
        let mut claims = claims("right");
        claims[claim] = value;
        Some(world.key.sign(&claims))
    };
    let elsewhere = Pki::new(world.setup.file("elsewhere"));
    let right_cert = pki.client(&["spiffe://prod/right"]);
    let caller = |what, certificate: Option<(PathBuf, PathBuf)>, bearer, expected| Caller {
        what,
        certificate,
        bearer,
        expected,
    };
    use Expected::{Forbidden, NoConnection, Nobody, Served};
    vec![
        caller("nothing", None, None, Nobody),
        caller(
            "expired certificate",
            Some(pki.expired_client(&["spiffe://prod/right"])),
            None,
            NoConnection,
        ),
        caller(
            "certificate of another authority",
            Some(elsewhere.client(&["spiffe://prod/right"])),
            None,
            NoConnection,
        ),
        caller("wrong SAN", Some(pki.client(&["spiffe://prod/wrong"])), None, Nobody),
        caller(
            "two clients in one certificate",
            Some(pki.client(&["spiffe://prod/right", "other.example"])),
            None,
            Nobody,
        ),
        caller("wrong token", None, Some(format!("{}x", *right)), Nobody),
        caller(
            "right certificate, wrong token",
            Some(right_cert.clone()),
            Some("x".to_owned()),
            Nobody,
        ),
        caller("expired JWT", None, changed("exp", json!(jwt::now() - 3_600)), Nobody),
        caller(
            "JWT that is not valid yet",
            None,
            changed("nbf", json!(jwt::now() + 3_600)),
            Nobody,
        ),
        caller("wrong issuer", None, changed("iss", json!("https://other.example")), Nobody),
        caller("wrong audience", None, changed("aud", json!("other")), Nobody),
        caller("wrong subject", None, changed("sub", json!("other")), Nobody),
        caller("wrong key", None, Some(stranger.sign(&claims("right"))), Nobody),
        caller(
            "certificate without the permission",
            Some(pki.client(&["other.example"])),
            None,
            Forbidden("other-cert"),
        ),
        caller(
            "token without the permission",
            None,
            Some(other.to_string()),
            Forbidden("other-token"),
        ),
        caller(
            "JWT without the permission",
            None,
            Some(world.key.sign(&claims("other"))),
            Forbidden("other-jwt"),
        ),
        caller("right certificate", Some(right_cert), None, Served),
        caller("right token", None, Some(right.to_string()), Served),
        caller("right JWT", None, Some(world.key.sign(&claims("right"))), Served),
    ]
}

#[tokio::test]
async fn every_call_by_every_kind_of_caller() {
    let mut world = World::new();
    let callers = callers(&mut world);
    let service = world.start().await;
    let calls = calls();
    let right = callers.last().unwrap();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let http = world.http(None, version);
        let (status, made, _) =
            make(&http, &service, right, &calls[0], "orders-1", "").await.unwrap();
        assert_eq!(status, 200, "{made}");
        let sealed = made["ciphertext"].as_str().unwrap();
        for caller in &callers {
            let http = world.http(caller.certificate.as_ref(), version);
            for call in &calls {
                let what = format!("{}: {} {} by {version:?}", caller.what, call.method, call.path);
                let answer = make(&http, &service, caller, call, "orders-1", sealed).await;
                let Some((status, answer, used)) = answer else {
                    assert!(caller.expected == Expected::NoConnection, "{what}");
                    continue;
                };
                assert_eq!(used, version, "{what}");
                let code = answer["code"].as_str().unwrap_or_default();
                match caller.expected {
                    Expected::NoConnection => panic!("{what}: {answer}"),
                    Expected::Nobody => {
                        assert_eq!((status, code), (401, "unauthenticated"), "{what}");
                    }
                    // It sees the list of those chains that it may read: none is there.
                    Expected::Forbidden(_) if call.path == "/v1/chains" => {
                        assert_eq!(answer["chains"], json!([]), "{what}: {answer}");
                    }
                    Expected::Forbidden(name) => {
                        assert_eq!((status, code), (403, "forbidden"), "{what}: {answer}");
                        let operation = call.operation.unwrap().as_str();
                        let detail = format!(
                            "the client {name} may not {operation} with the chain orders-1"
                        );
                        assert_eq!(answer["detail"], detail, "{what}");
                    }
                    Expected::Served => {
                        let names_a_kek = call.path.contains("{id}");
                        // An envelope of version 1 is no stream.
                        let is_stream = call.path == "/v1/stream/decrypt";
                        let good = if names_a_kek || is_stream { 400..500 } else { 200..300 };
                        // The root is configured, so it is not removed.
                        let good = if call.path.ends_with("/remove") { 409..410 } else { good };
                        // The chain has KEKs, and the configuration names it.
                        let is_kept = call.method == Method::DELETE;
                        let good = if is_kept { 409..410 } else { good };
                        // There are ten rotations a minute.
                        let is_rotated = call.path == "/v1/rotate" && status == 429;
                        assert!(good.contains(&status) || is_rotated, "{what}: {status} {answer}");
                        assert!(!matches!(status, 401 | 403), "{what}: {answer}");
                    }
                }
            }
            for path in FOR_ALL_CLIENTS {
                let call =
                    Call { method: Method::GET, path, body: |_, _| json!({}), operation: None };
                let answer = make(&http, &service, caller, &call, "", "").await;
                let status = answer.map(|(status, ..)| status);
                let expected = match caller.expected {
                    Expected::NoConnection => None,
                    Expected::Nobody => Some(401),
                    _ if path.ends_with("nothing") => Some(404),
                    _ => Some(200),
                };
                assert_eq!(status, expected, "{}: {path}", caller.what);
            }
        }
    }
    let log = service.stop().await;
    for reason in ["no_credentials", "unknown_certificate", "unknown_token", "expired", "signature"]
    {
        assert!(log.contains(&format!(r#""reason":"{reason}""#)), "{reason}\n{log}");
    }
}

#[tokio::test]
async fn a_client_with_encrypt_on_some_chains_can_do_exactly_that() {
    let mut world = World::new();
    let (token, digest) = token::generate().unwrap();
    world.client("orders", &format!("token_sha256 = '{digest}'"), "orders-*", "encrypt");
    let service = world.start().await;
    let http = world.http(None, Version::HTTP_11);
    let caller = Caller {
        what: "orders",
        certificate: None,
        bearer: Some(token.to_string()),
        expected: Expected::Served,
    };
    let mut done = Vec::new();
    for call in calls() {
        for chain in ["orders-1", "orders-none", "secret", "default", "none", "orders"] {
            let (status, answer, _) =
                make(&http, &service, &caller, &call, chain, "kp:AQ==").await.unwrap();
            if status == 403 {
                // A chain that exists can't be distinguished from one that does not.
                let detail = answer["detail"].as_str().unwrap();
                let known = format!("with the chain {chain}");
                let list = "the client orders may not read any chain";
                assert!(detail.ends_with(&known) || detail == list, "{detail}");
            } else {
                done.push((call.path, chain, status));
            }
        }
    }
    let expected = [
        ("/v1/encrypt", "orders-1", 200),
        ("/v1/encrypt", "orders-none", 404),
        ("/v1/batch/encrypt", "orders-1", 200),
        // Each item answers for itself.
        ("/v1/batch/encrypt", "orders-none", 200),
        ("/v1/stream/encrypt", "orders-1", 200),
        ("/v1/stream/encrypt", "orders-none", 404),
    ];
    assert_eq!(done, expected);
    // The same by a raw body, whose chain is in a header.
    for (chain, status) in [("orders-1", 200), ("secret", 403)] {
        let request = http.post(format!("{}/v1/encrypt", service.url())).bearer_auth(&*token);
        let request = request.header("content-type", "application/octet-stream");
        let response = request.header("kms-proxy-chain", chain).body("x").send().await.unwrap();
        assert_eq!(response.status(), status, "{chain}");
    }
    // Without a chain it is `default`.
    let request = http.post(format!("{}/v1/encrypt", service.url())).bearer_auth(&*token);
    let response = request.json(&json!({"plaintext": ""})).send().await.unwrap();
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn a_list_shows_what_may_be_read_and_readiness_and_metrics_what_all_may() {
    let mut world = World::new();
    let mut tokens = Vec::new();
    for (name, chains, operations) in
        [("some", "orders-*", "read"), ("all", "*", "read"), ("none", "*", "encrypt")]
    {
        let (token, digest) = token::generate().unwrap();
        world.client(name, &format!("token_sha256 = '{digest}'"), chains, operations);
        tokens.push(token.to_string());
    }
    let service = world.start().await;
    let http = world.http(None, Version::HTTP_11);
    let get = async |path: &str, token: &str| {
        let request = http.get(format!("{}{path}", service.url())).bearer_auth(token);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap_or(Value::Null))
    };
    let [some, all, none] = &tokens[..] else { panic!("three") };
    let names = |list: &Value| {
        let chains = list["chains"].as_array().unwrap().clone();
        chains.iter().map(|chain| chain["chain"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&get("/v1/chains", some).await.1), ["orders-1"]);
    let (_, page) = get("/v1/chains?limit=2", all).await;
    assert_eq!(
        (names(&page), &page["next"]),
        (vec!["default".into(), "orders-1".into()], &json!("orders-1"))
    );
    assert_eq!(get("/v1/chains", none).await.0, 403);
    assert_eq!(get("/v1/chains?after=a", some).await.1["next"], Value::Null);
}

/// The address of the admin listener.
fn admin(service: &Service) -> String {
    let said = service.said();
    let (_, admin) = said.trim_end().split_once(", admin on ").expect("an address");
    admin.to_owned()
}

#[tokio::test]
async fn probes_need_no_identity_and_see_no_names() {
    let setup = Setup::new();
    let (token, digest) = token::generate().unwrap();
    let (narrow, narrow_digest) = token::generate().unwrap();
    let config = setup.file("kms-proxy.toml");
    let client = |name: &str, digest, chains: &str| {
        format!(
            "[[client]]\nname = '{name}'\ntoken_sha256 = '{digest}'\n\
             allow = [{{ chains = ['{chains}'], operations = ['read'] }}]\n"
        )
    };
    let clients = client("all", digest, "*") + &client("narrow", narrow_digest, "default");
    std::fs::write(&config, format!("[auth]\nmode = 'required'\n{clients}")).unwrap();
    // On loopback plain HTTP does.
    let setup = setup.env("KMS_PROXY_CONFIG", config.display());
    let service = setup.start().await;
    let get = async |path: &str, bearer: Option<&str>| {
        let request = service.request(Method::GET, path).header("host", "kms.example");
        let request = bearer.iter().fold(request, |request, bearer| request.bearer_auth(bearer));
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.text().await.unwrap())
    };
    assert_eq!(get("/healthz", None).await.0, 200, "and any Host does");
    for nobody in [None, Some("wrong"), Some(&**narrow)] {
        let (status, ready) = get("/readyz", nobody).await;
        assert_eq!((status, &*ready), (200, r#"{"status":"ok","checks":[]}"#));
    }
    assert!(get("/readyz", Some(&token)).await.1.contains(r#""name":"root:local""#));
    assert_eq!(get("/metrics", None).await.0, 401);
    assert_eq!(get("/metrics", Some("wrong")).await.0, 401);
    assert_eq!(get("/metrics", Some(&narrow)).await.0, 403);
    let (status, metrics) = get("/metrics", Some(&token)).await;
    assert_eq!(status, 200);
    // Probes are no failures.
    assert!(
        metrics.contains(r#"kms_proxy_auth_failures_total{reason="no_credentials"} 1"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"kms_proxy_auth_failures_total{reason="unknown_token"} 1"#),
        "{metrics}"
    );
    for line in [
        // One that was not seen yet.
        r#"kms_proxy_auth_failures_total{reason="expired"} 0"#,
        // One each by /readyz, and one by /metrics.
        r#"kms_proxy_client_requests_total{client="all"} 2"#,
        r#"kms_proxy_client_refusals_total{client="all",reason="forbidden"} 0"#,
        r#"kms_proxy_client_requests_total{client="narrow"} 2"#,
        r#"kms_proxy_client_refusals_total{client="narrow",reason="forbidden"} 1"#,
        r#"kms_proxy_client_refusals_total{client="narrow",reason="overloaded"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let origin = service.request(Method::GET, "/healthz").header("origin", "https://evil.example");
    assert_eq!(origin.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn rules_change_without_a_restart_and_a_broken_file_changes_nothing() {
    let mut world = World::new();
    let (token, digest) = token::generate().unwrap();
    let identity = format!("token_sha256 = '{digest}'");
    world.client("orders", &identity, "orders-*", "encrypt");
    let mut service = world.start().await;
    service.call_with(world.http(None, Version::HTTP_11));
    let encrypt = async |chain: &str| {
        let request = service.request(Method::POST, "/v1/encrypt").bearer_auth(&*token);
        let request = request.json(&json!({"chain": chain, "plaintext": ""}));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((encrypt("orders-1").await, encrypt("secret").await), (200, 403));

    world.clients.clear();
    world.client("orders", &identity, "secret", "encrypt");
    world.write();
    until("the new rules", async || (encrypt("secret").await == 200).then_some(())).await;
    assert_eq!(encrypt("orders-1").await, 403);

    let admin = admin(&service);
    let look = async |path: &str| {
        let http = Client::builder().no_proxy().build().unwrap();
        http.get(format!("{admin}{path}")).send().await.unwrap().text().await.unwrap()
    };
    for broken in ["[auth", "[auth]\nmode = 'required'\n", "[auth]\nmode = 'none'\n"] {
        std::fs::write(&world.config, broken).unwrap();
        service.signal(Signal::HUP);
        until("a complaint", async || {
            look("/readyz").await.contains(r#""name":"config","status":"degraded""#).then_some(())
        })
        .await;
        assert!(look("/metrics").await.contains("kms_proxy_rules_current 0"));
        assert_eq!((encrypt("orders-1").await, encrypt("secret").await), (403, 200), "{broken}");
    }
    world.write();
    until("no complaint", async || (!look("/readyz").await.contains("config")).then_some(())).await;
    assert!(look("/metrics").await.contains("kms_proxy_rules_current 1"));
    world.clients.insert_str(0, "[chain]\nsuite = 'aes-256-gcm'\n");
    world.write();
    let log =
        service.logged("settings other than the clients have changed and need a restart").await;
    assert!(log.contains(r#""settings":"chain.suite""#), "{log}");
    assert!(log.contains("clients and permissions were reloaded"), "{log}");
    assert!(log.contains("the clients and permissions before it stay"), "{log}");
    world.clients = world.clients.replace("[chain]\nsuite = 'aes-256-gcm'\n", "");
    world.write();
    service.logged("settings other than the clients are the same as at the start again").await;
}

/// The service reads the rest of a refused body for 5 s. A client that is slower may not see the
/// response; a little less, because the client starts earlier.
const REST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(4);

/// Also by clients that send the whole body before they read.
#[tokio::test]
async fn a_refusal_is_received_however_much_is_sent() {
    let mut world = World::new();
    let (token, digest) = token::generate().unwrap();
    world.client("orders", &format!("token_sha256 = '{digest}'"), "orders-*", "encrypt");
    let service = world.start().await;
    let (ca, url) = (world.pki.ca().display().to_string(), service.url());
    let authorization = format!("authorization: Bearer {}", *token);
    let octets = "content-type: application/octet-stream";
    for (len, header, status) in [
        (100_000, octets, "401"),
        (3_000_000, octets, "401"),
        (3_000_000, "content-type: text/plain", "415"),
        (3_000_000, octets, "403"),
        (5_000_000, octets, "413"),
    ] {
        let body = world.setup.file("body");
        std::fs::write(&body, vec![b'a'; len]).unwrap();
        let body = format!("@{}", body.display());
        let mut args = vec!["-sS", "--noproxy", "*", "--cacert", &ca, "-H", header];
        args.extend(["-w", "%{http_code}", "-o", "/dev/null", "--data-binary", &body]);
        if status != "401" {
            args.extend(["-H", &authorization]);
        }
        if status != "403" {
            args.extend(["-H", "kms-proxy-chain: orders-1"]);
        }
        let encrypt = format!("{url}/v1/encrypt");
        args.push(&encrypt);
        for version in ["--http2", "--http1.1"] {
            // Without a response curl waits for a second first.
            for expect in ["expect:", "expect: 100-continue"] {
                let mut received = 0;
                while received < 3 {
                    let started = std::time::Instant::now();
                    let mut curl = std::process::Command::new("curl");
                    let said = curl.args(&args).args([version, "-H", expect]).output().unwrap();
                    let is_received = String::from_utf8_lossy(&said.stdout) == status;
                    let is_slow = started.elapsed() > REST_TIMEOUT;
                    assert!(is_received || is_slow, "{len} {version} {expect}: {said:?}");
                    received += u32::from(is_received);
                }
            }
        }
    }
    let server = ["encrypt", "--chain", "orders-1", "--server", &url, "--ca", &ca];
    let mut received = 0;
    while received < 5 {
        let started = std::time::Instant::now();
        let said = run(&server, &vec![0; 3_000_000]);
        let is_received = String::from_utf8_lossy(&said.stderr).contains("unauthenticated: ");
        assert!(is_received || started.elapsed() > REST_TIMEOUT, "{said:?}");
        received += u32::from(is_received);
    }
}

#[tokio::test]
async fn a_client_whose_certificate_fails_the_handshake_is_logged_and_counted() {
    let mut world = World::new();
    world.client("orders", "tls_san = 'a.example'", "orders-*", "encrypt");
    let service = world.start().await;
    let expired = world.pki.expired_client(&["a.example"]);
    let stranger = Pki::new(world.setup.file("stranger"));
    for identity in [expired, stranger.client(&["a.example"])] {
        let http = world.http(Some(&identity), Version::HTTP_11);
        assert!(http.get(format!("{}/healthz", service.url())).send().await.is_err());
    }
    service.logged("UnknownIssuer").await;
    let is_refusal = |line: &&str| {
        line.contains(r#""level":"INFO""#) && line.contains(r#""reason":"certificate""#)
    };
    let refusals = || service.log().lines().filter(is_refusal).count();
    until("a line for each", async || (refusals() >= 2).then_some(())).await;
    assert_eq!(refusals(), 2, "{}", service.log());
    let metrics = format!("{}/metrics", admin(&service));
    let metrics = reqwest::get(metrics).await.unwrap().text().await.unwrap();
    let counted = r#"kms_proxy_auth_failures_total{reason="certificate"} 2"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn one_client_does_not_take_the_place_of_others() {
    let setup = Setup::new();
    let (mut tokens, mut clients) = (Vec::new(), String::new());
    for name in ["small", "other"] {
        let (token, digest) = token::generate().unwrap();
        clients += &format!(
            "[[client]]\nname = '{name}'\nmax_in_flight = 1\ntoken_sha256 = '{digest}'\n\
             allow = [{{ chains = ['*'], operations = ['datakey'] }}]\n"
        );
        tokens.push(token.to_string());
    }
    let config = setup.file("kms-proxy.toml");
    std::fs::write(&config, format!("[auth]\nmode = 'required'\n{clients}")).unwrap();
    let setup = setup.env("KMS_PROXY_CONFIG", config.display());
    let setup = setup.set("SERVER__REQUEST_TIMEOUT", "60s");
    let service = setup.start().await;
    let datakey = async |token: &str| {
        let request = service.request(Method::POST, "/v1/datakey").bearer_auth(token);
        let response = request.json(&json!({})).send().await.unwrap();
        let retry = response.headers().get("retry-after").cloned();
        (response.status().as_u16(), retry, response.json::<Value>().await.unwrap())
    };
    // A body that does not come keeps its request in flight; it is when the server asks for it.
    let mut slow = service.connect().await;
    let head = format!(
        "POST /v1/datakey HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\nAuthorization: Bearer {}\r\n\r\n",
        tokens[0]
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut slow, "100 Continue\r\n\r\n").await;
    let (status, retry, problem) = datakey(&tokens[0]).await;
    assert_eq!((status, &problem["code"]), (429, &json!("overloaded")));
    assert_eq!(retry.unwrap(), "1");
    assert_eq!(problem["detail"], "the client small has its 1 requests in flight already");
    assert_eq!(datakey(&tokens[1]).await.0, 200);
    assert!(talk(&mut slow, "{}").await.starts_with("HTTP/1.1 200"));
    until("room", async || (datakey(&tokens[0]).await.0 == 200).then_some(())).await;
}

#[tokio::test]
async fn a_client_pays_for_what_is_looked_up_and_not_for_what_is_in_memory() {
    let setup = Setup::new();
    let (mut tokens, mut clients) = (Vec::new(), String::new());
    for (name, lookups) in [("small", 1), ("other", 600)] {
        let (token, digest) = token::generate().unwrap();
        clients += &format!(
            "[[client]]\nname = '{name}'\nlookups_per_minute = {lookups}\ntoken_sha256 = '{digest}'\n\
             allow = [{{ chains = ['*'], operations = ['encrypt', 'decrypt'] }}]\n"
        );
        tokens.push(token.to_string());
    }
    let config = setup.file("kms-proxy.toml");
    std::fs::write(&config, format!("[auth]\nmode = 'required'\n{clients}")).unwrap();
    let setup = setup.env("KMS_PROXY_CONFIG", config.display());
    let service = setup.start().await;
    let call = async |token: &str, path: &str, body: Value| {
        let request = service.request(Method::POST, path).bearer_auth(token).json(&body);
        request.send().await.unwrap().json::<Value>().await.unwrap()
    };
    let made = call(&tokens[1], "/v1/encrypt", json!({"plaintext": "aGVsbG8="})).await;
    let sealed = made["ciphertext"].as_str().unwrap();
    let under = |kek: u8| {
        let mut envelope = kms_proxy::envelope::from_text(sealed).unwrap();
        envelope[2..18].fill(kek);
        json!({ "ciphertext": kms_proxy::envelope::to_text(&envelope) })
    };
    // One batch: a minute does not pass in it.
    let items = json!({"items": [under(1), under(2), under(3), {"ciphertext": sealed}]});
    let code = |answer: &Value| answer["error"]["code"].as_str().unwrap_or("ok").to_owned();
    let codes = async |token: &str| {
        let answer = call(token, "/v1/batch/decrypt", items.clone()).await;
        answer["results"].as_array().unwrap().iter().map(code).collect::<Vec<_>>()
    };
    assert_eq!(codes(&tokens[0]).await, ["unknown_kek", "overloaded", "overloaded", "ok"]);
    assert_eq!(codes(&tokens[1]).await, ["unknown_kek", "unknown_kek", "unknown_kek", "ok"]);
}

#[tokio::test]
async fn the_command_line_makes_tokens_and_shows_them() {
    let made = run(&["token", "new"], b"");
    assert!(made.status.success());
    let token = String::from_utf8(made.stdout).unwrap();
    assert!(token.starts_with("kpt_") && token.ends_with('\n') && token.len() == 48, "{token}");
    let said = String::from_utf8(made.stderr).unwrap();
    let digest = said.trim().rsplit_once("token_sha256 = ").unwrap().1.trim_matches('"').to_owned();
    assert!(!said.contains(token.trim()), "{said}");

    let mut world = World::new();
    world.client("me", &format!("token_sha256 = '{digest}'"), "*", ALL);
    let service = world.start().await;
    let file = world.setup.file("token");
    std::fs::write(&file, &token).unwrap();
    let (url, ca) = (service.url(), world.pki.ca());
    let server = ["--server", &*url, "--ca", ca.to_str().unwrap()];
    let with = |command: &[&str], input: &[u8]| {
        let token = ["--token-file", file.to_str().unwrap()];
        run(&[command, &server[..], &token].concat(), input)
    };
    let sealed = with(&["encrypt", "--aad", "x"], b"hello");
    assert!(sealed.status.success(), "{}", String::from_utf8_lossy(&sealed.stderr));
    let opened = with(&["decrypt", "--aad", "x"], &sealed.stdout);
    assert_eq!(opened.stdout, b"hello");
    let admin = admin(&service);
    let status = with(&["status", "--admin", &admin], b"");
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let nobody = run(&[&["encrypt"], &server[..]].concat(), b"hello");
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(said.contains("unauthenticated") && said.contains("--token-file"), "{said}");
    std::fs::write(&file, "two words").unwrap();
    let said = with(&["encrypt"], b"hello").stderr;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("--token-file") && !said.contains("two words"), "{said}");
}
