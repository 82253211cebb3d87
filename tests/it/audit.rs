//! The audit log of the real binary: a line for each call, nothing secret in it, and sinks that
//! fail.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kms_proxy::audit::line::{Kind, Proof, seq};
use kms_proxy::audit::tree::{Tree, leaf_hash};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Service, Setup, root, until};

mod backups;
mod contexts;
mod identities;
mod keys;
mod lost_key;
mod many;
mod mappings;
mod sinks;
mod verifier;

/// A service whose log is a file.
fn setup() -> Setup {
    let setup = Setup::new();
    let file = setup.file("audit.jsonl");
    setup.set("AUDIT__FILE", file.display())
}

/// The same, with a line for each call.
fn full() -> Setup {
    setup().set("AUDIT__RULE__0__LEVEL", "full")
}

fn log(setup: &Setup) -> String {
    std::fs::read_to_string(setup.file("audit.jsonl")).unwrap_or_default()
}

/// The whole lines of a log.
fn lines(text: &str) -> Vec<Value> {
    let end = text.rfind('\n').map_or(0, |at| at + 1);
    text[..end].lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The lines about calls and the process.
fn events(text: &str) -> Vec<Value> {
    let is_event = |line: &Value| line.get("operation").is_some();
    lines(text).into_iter().filter(is_event).collect()
}

/// The lines of a request.
fn of_request(setup: &Setup, id: &str) -> Vec<Value> {
    events(&log(setup)).into_iter().filter(|line| line["request_id"] == id).collect()
}

/// Checks the numbers and the proof of the lines of one process; how many lines are after the last
/// checkpoint.
fn prove(text: &str) -> u64 {
    let (mut tree, mut unproved) = (Tree::default(), 0);
    for line in text.lines() {
        let line = line.as_bytes();
        let number = seq(line).unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(line)));
        assert_eq!(number, tree.size(), "{}", String::from_utf8_lossy(line));
        let signed = match Kind::of(line, number) {
            Kind::Proof(Proof::Checkpoint(it)) => Some(it.signed),
            Kind::Proof(Proof::Opening(it)) => {
                assert!(it.signed.is_signed_by(&it.key));
                Some(it.signed)
            }
            Kind::Event => None,
            Kind::Damaged => panic!("a damaged line {number}"),
        };
        unproved += 1;
        if let Some(signed) = signed {
            assert_eq!(signed.checkpoint.size, tree.size());
            assert_eq!(signed.checkpoint.root, tree.root());
            unproved = 0;
        }
        tree.append(leaf_hash(line));
    }
    unproved
}

/// What `audit verify` says of files, in which nothing is wrong.
fn verified(setup: &Setup, files: &[&str]) -> String {
    let output = setup.run(&[&["audit", "verify"], files].concat());
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said.into_owned()
}

/// Makes a call with an id.
async fn call(
    service: &Service,
    id: &str,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> u16 {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.request(method, format!("{}{path}", service.url()));
    request = request.header("x-request-id", id);
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.to_owned()).send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn the_log_says_who_did_what_and_proves_it() {
    let setup = full().set("CHAIN__NAMES", "orders");
    let service = setup.start().await;
    let body = json!({"chain": "orders", "plaintext": "aGVsbG8=", "aad": "cm93IDc="});
    let made = service.ok("/v1/encrypt", body).await;
    let ciphertext = made["ciphertext"].clone();
    let open = json!({"chain": "orders", "ciphertext": ciphertext, "aad": "cm93IDc="});
    service.ok("/v1/decrypt", open).await;
    let items = json!([{"ciphertext": ciphertext, "aad": "cm93IDc="}, {"ciphertext": "kp:AAAA"}, {"ciphertext": "!"}]);
    let batch = json!({"chain": "orders", "items": items}).to_string();
    assert_eq!(call(&service, "b", Method::POST, "/v1/batch/decrypt", &[], &batch).await, 200);
    let wrong = json!({"chain": "orders", "ciphertext": ciphertext}).to_string();
    assert_eq!(call(&service, "w", Method::POST, "/v1/decrypt", &[], &wrong).await, 400);
    service.ok("/v1/rotate", json!({"chain": "orders"})).await;
    let put = json!({"max_uses": 1000, "rotate_after_uses": 500}).to_string();
    assert_eq!(call(&service, "p", Method::PUT, "/v1/chains/new", &[], &put).await, 201);
    service.stop().await;

    let text = log(&setup);
    assert_eq!(prove(&text), 0, "the end is proved");
    verified(&setup, &["audit.jsonl"]);
    let events = events(&text);
    let find = |operation: &str| {
        events.iter().find(|it| it["operation"] == operation).unwrap_or_else(|| panic!("{text}"))
    };
    assert_eq!(find("start")["api"], "system");
    assert_eq!(events.last().unwrap()["operation"], "stop");
    let encrypt = find("encrypt");
    assert_eq!(encrypt["chain"], "orders");
    assert_eq!((&encrypt["plaintext_bytes"], &encrypt["outcome"]), (&json!(5), &json!("ok")));
    assert_eq!((&encrypt["client"], &encrypt["auth"]), (&Value::Null, &json!("none")));
    assert_eq!(encrypt["kek_id"], made["kek_id"]);
    assert!(encrypt["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    let decrypt = find("decrypt");
    assert_eq!(decrypt["aad"], encrypt["aad"], "it says which record was read");
    assert!(encrypt["aad"].as_str().unwrap().starts_with("hmac:"));
    assert_eq!(find("root_wrap")["change"]["root"], "local");
    assert_eq!(find("rotate")["change"]["previous"], made["kek_id"]);

    let items = of_request(&setup, "b");
    let of_items: Vec<_> = items
        .iter()
        .map(|it| (it["item"].as_u64().unwrap(), it["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(of_items, [(0, "ok"), (1, "invalid_ciphertext"), (2, "invalid_ciphertext")]);
    let wrong = of_request(&setup, "w");
    assert_eq!(wrong.len(), 1);
    assert_eq!(wrong[0]["outcome"], "invalid_ciphertext");
    assert_eq!(wrong[0]["kek_id"], made["kek_id"]);
    let put = of_request(&setup, "p");
    assert_eq!(
        (&put[0]["operation"], &put[0]["call"]),
        (&json!("manage"), &json!("PUT /v1/chains/new"))
    );
    assert_eq!(put[0]["change"]["max_uses"], 1000);
    assert_eq!(put[0]["change"]["created"], true);
}

#[tokio::test]
async fn nothing_secret_is_in_the_log() {
    let token = run_token();
    let setup = full().set("AUDIT__AAD", "plain").set("AUTH__MODE", "required");
    let config = setup.file("kms-proxy.toml");
    let digest = token.1;
    let client = format!(
        "[[client]]\nname = 'billing'\ntoken_sha256 = '{digest}'\n\
         allow = [{{ chains = ['default'], operations = ['encrypt', 'decrypt', 'datakey'] }}]\n"
    );
    std::fs::write(&config, client).unwrap();
    let setup = setup.env("KMS_PROXY_CONFIG", config.display());
    let service = setup.start().await;
    let bearer = format!("Bearer {}", token.0);
    let good = [("authorization", &*bearer)];
    let planted = "UExBTlRFRC1TRUNSRVQ=";
    let body = json!({"plaintext": planted, "aad": "cm93IDc="}).to_string();
    assert_eq!(call(&service, "one", Method::POST, "/v1/encrypt", &good, &body).await, 200);
    let bad = [("authorization", "Bearer PLANTED-SECRET")];
    assert_eq!(call(&service, "two", Method::POST, "/v1/encrypt", &bad, &body).await, 401);
    let body = json!({"plaintext": planted, "chain": "secret"}).to_string();
    assert_eq!(call(&service, "three", Method::POST, "/v1/encrypt", &good, &body).await, 403);
    let body = json!({"plaintext": planted, "chain": "PLANTED-SECRET"}).to_string();
    assert_eq!(call(&service, "four", Method::POST, "/v1/encrypt", &good, &body).await, 403);
    assert_eq!(call(&service, "five", Method::POST, "/v1/encrypt", &good, "{PLANTED").await, 400);
    let key = json!({"bytes": 32}).to_string();
    assert_eq!(call(&service, "six", Method::POST, "/v1/datakey", &good, &key).await, 200);
    let path = "/v1/chains/a%22b%0a";
    assert_eq!(call(&service, "seven", Method::GET, path, &good, "").await, 403);
    service.stop().await;

    let text = log(&setup);
    for secret in ["PLANTED", "UExBTlRFRC", &*token.0, "Bearer", "kp:"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    let one = |id| of_request(&setup, id).remove(0);
    assert_eq!((&one("one")["client"], &one("one")["auth"]), (&json!("billing"), &json!("token")));
    assert_eq!(one("one")["aad"], "text:row 7");
    assert_eq!(
        (&one("two")["outcome"], &one("two")["client"]),
        (&json!("unauthenticated"), &Value::Null)
    );
    assert_eq!(one("two")["auth"], Value::Null);
    assert_eq!(
        (&one("three")["outcome"], &one("three")["chain"]),
        (&json!("forbidden"), &json!("secret"))
    );
    assert_eq!(one("four")["chain"], Value::Null);
    assert_eq!(one("five")["outcome"], "invalid_request");
    assert_eq!(one("six")["operation"], "datakey");
    assert_eq!(one("seven")["outcome"], "forbidden");
    prove(&text);
}

/// A token and its digest.
fn run_token() -> (String, String) {
    let (token, digest) = kms_proxy::auth::token::generate().unwrap();
    let digest = serde_json::to_value(digest).unwrap();
    (token.to_string(), digest.as_str().unwrap().to_owned())
}

#[tokio::test]
async fn encrypts_are_counted_by_default_and_refusals_are_limited() {
    let setup = setup().set("CHAIN__NAMES", "orders");
    let service = setup.start().await;
    for _ in 0..30 {
        service.encrypt("orders", "aGVsbG8=").await;
    }
    // Until some are beyond the limit of a second.
    let mut sent = 0;
    until("a refusal without a line", async || {
        let calls: Vec<_> = (0..100)
            .map(|_| service.request(Method::GET, "/nothing").send())
            .map(tokio::spawn)
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().status(), 404);
        }
        sent += 100;
        events(&log(&setup)).iter().any(|it| it["operation"] == "omitted").then_some(())
    })
    .await;
    service.stop().await;
    let events = events(&log(&setup));
    let encrypts: Vec<_> = events.iter().filter(|it| it["operation"] == "encrypt").collect();
    assert!(encrypts.len() < 30, "{encrypts:#?}");
    assert!(encrypts.iter().all(|it| it["chain"] == "orders" && it["outcome"] == "ok"));
    let sum = |of: &[&Value], key: &str| of.iter().map(|it| it[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum(&encrypts, "count"), sum(&encrypts, "plaintext_bytes")), (30, 150));
    let refused = events.iter().filter(|it| it["outcome"] == "not_found").count() as u64;
    let omitted: Vec<_> = events.iter().filter(|it| it["operation"] == "omitted").collect();
    assert_eq!(refused + sum(&omitted, "count"), sent);
    assert!(refused < sent, "they are limited");
}

/// The calls that have no line: they show no data, and machines make them all the time.
const SILENT: [&str; 5] = ["/healthz", "/readyz", "/metrics", "/status", "/status.json"];

#[tokio::test]
async fn no_call_of_any_api_is_without_a_line() {
    let setup = full().set("AWS_API__ENABLED", true);
    let service = setup.start().await;
    let mut ids = BTreeSet::new();
    let document: Value = serde_json::from_str(&kms_proxy::http::openapi()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, _) in item.as_object().unwrap() {
            let Ok(verb) = Method::from_bytes(method.to_uppercase().as_bytes()) else { continue };
            if SILENT.contains(&&**path) {
                continue;
            }
            let filled = path.replace("{name}", "default").replace("{root}", "local");
            let filled = filled.replace("{id}", "7841c0b3f2a94d1e8c55e02f6b9d1a37");
            let id = format!("{method}{}", path.replace(['{', '}'], ""));
            call(&service, &id, verb, &filled, &[], "{}").await;
            ids.insert(id);
        }
    }
    let source = std::fs::read_to_string(root().join("src/aws_api/operation.rs")).unwrap();
    let mut operations = 0;
    for name in source.split(['"', '\n']).filter(|name| {
        name.len() > 3
            && name.bytes().all(|b| b.is_ascii_alphabetic())
            && name.starts_with(char::is_uppercase)
    }) {
        let (target, id) = (format!("TrentService.{name}"), format!("aws/{name}"));
        let headers = [("x-amz-target", &*target), ("content-type", "application/x-amz-json-1.1")];
        call(&service, &id, Method::POST, "/", &headers, "{}").await;
        ids.insert(id);
        operations += 1;
    }
    assert!(operations >= 54, "the operations are in another place: {operations}");
    service.stop().await;
    let seen: BTreeSet<_> = events(&log(&setup))
        .into_iter()
        .filter_map(|it| it["request_id"].as_str().map(str::to_owned))
        .collect();
    let missing: Vec<_> = ids.difference(&seen).collect();
    assert!(missing.is_empty(), "no line for {missing:?}");
    let events = events(&log(&setup));
    let unknown = |it: &&Value| it["operation"] == "unknown";
    assert_eq!(events.iter().find(unknown), None, "each call has an operation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_its_line_whenever_the_process_is_killed() {
    let setup = full();
    let service = Arc::new(setup.start().await);
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let (service, stop) = (Arc::clone(&service), Arc::clone(&stop));
            tokio::spawn(async move {
                let client = reqwest::Client::builder().no_proxy().build().unwrap();
                let url = format!("{}/v1/encrypt", service.url());
                let mut answered = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("k{caller}-{}", answered.len());
                    let call = client.post(&url).header("x-request-id", &id);
                    let call = call.json(&json!({"plaintext": "aGVsbG8="})).send().await;
                    match call {
                        Ok(response) if response.status() == 200 => answered.push(id),
                        _ => break,
                    }
                }
                answered
            })
        })
        .collect();
    until("some answers", async || log(&setup).lines().nth(500).map(drop)).await;
    service.signal(Signal::KILL);
    let mut answered = Vec::new();
    for caller in callers {
        answered.extend(caller.await.unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    let text = log(&setup);
    let end = text.rfind('\n').unwrap() + 1;
    prove(&text[..end]);
    let seen: BTreeSet<_> = events(&text)
        .into_iter()
        .filter_map(|it| it["request_id"].as_str().map(str::to_owned))
        .collect();
    assert!(answered.len() > 100);
    let missing: Vec<_> = answered.iter().filter(|id| !seen.contains(*id)).collect();
    assert!(missing.is_empty(), "{} answers have no line: {missing:?}", missing.len());
    // The file is as it was written, and its end is not proved.
    let said = verified(&setup, &["audit.jsonl"]);
    assert!(said.contains("not proved yet"), "{said}");
    // The next process continues the file.
    setup.start().await.stop().await;
    verified(&setup, &["audit.jsonl"]);
    let starts = events(&log(&setup)).iter().filter(|it| it["operation"] == "start").count();
    assert_eq!(starts, 2);
}
