//! The API of the real binary: the table of error codes, limits, and metrics. What one handler
//! says is tested beside it, in src/http.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{Service, Setup, read_until, root, talk, until};

/// Where the tests produce a code.
enum Made {
    /// Below, in this file.
    Here,
    /// In another file of tests, which names the code.
    In(&'static str),
    /// Nowhere yet, for a reason.
    Not(&'static str),
}

const HTTP: Made = Made::In("src/http/tests.rs");
const LIFECYCLE: Made = Made::In("tests/it/lifecycle.rs");

/// Every code that the OpenAPI document lists. A new one needs a test and a line here.
const CODES: [(&str, Made); 19] = [
    ("invalid_request", HTTP),
    ("invalid_ciphertext", HTTP),
    ("unknown_kek", HTTP),
    ("unauthenticated", Made::In("tests/it/identities.rs")),
    ("forbidden", Made::Here),
    ("not_found", HTTP),
    ("unknown_chain", HTTP),
    ("method_not_allowed", HTTP),
    ("conflict", HTTP),
    ("kek_disabled", Made::Here),
    ("payload_too_large", HTTP),
    ("unsupported_media_type", HTTP),
    ("overloaded", Made::Here),
    ("internal", LIFECYCLE),
    ("kek_exhausted", Made::Not("no root goes away under a running service; src/service/tests.rs")),
    ("root_unavailable", LIFECYCLE),
    ("store_unavailable", LIFECYCLE),
    ("archive_unavailable", Made::In("tests/it/archive.rs")),
    ("audit_unavailable", Made::In("tests/it/audit/sinks.rs")),
];

#[tokio::test]
async fn every_code_of_the_document_is_produced_by_a_test() {
    let document = std::fs::read(root().join("openapi/kms-proxy.json")).unwrap();
    let document: Value = serde_json::from_slice(&document).unwrap();
    let listed = &document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
    let listed: BTreeSet<_> =
        listed.as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect();
    assert_eq!(CODES.iter().map(|(code, _)| *code).collect::<BTreeSet<_>>(), listed);

    let service = Setup::new().start().await;
    let made = make_codes(&service).await;
    for (code, where_made) in CODES {
        match where_made {
            Made::Here => assert!(made.contains(code), "{code} is not among {made:?}"),
            Made::In(file) => {
                let text = std::fs::read_to_string(root().join(file)).unwrap();
                assert!(text.contains(&format!("\"{code}\"")), "{file} does not name {code}");
            }
            Made::Not(reason) => assert!(!made.contains(code), "{code}: {reason}"),
        }
    }
}

/// Produces the codes that are made here, each with the status that the design gives it.
async fn make_codes(service: &Service) -> BTreeSet<String> {
    let mut made = BTreeSet::new();
    let mut note = |status: u16, problem: &Value, expected: (u16, &str)| {
        let code = problem["code"].as_str().unwrap_or_default().to_owned();
        assert_eq!((status, &*code), expected, "{problem}");
        made.insert(code);
    };
    let request = service.request(Method::GET, "/healthz").header("host", "example.com");
    let response = request.send().await.unwrap();
    let (status, problem) = (response.status().as_u16(), response.json().await.unwrap());
    note(status, &problem, (403, "forbidden"));

    let sealed = service.encrypt("default", "aGVsbG8=").await;
    let id = sealed.kek_id();
    service.ok("/v1/rotate", json!({})).await;
    service.ok(&format!("/v1/chains/default/keks/{id}/disable"), json!({})).await;
    let body = json!({"ciphertext": sealed.ciphertext});
    for path in ["/v1/decrypt", "/v1/rewrap"] {
        let (status, problem) = service.post(path, body.clone()).await;
        note(status.as_u16(), &problem, (409, "kek_disabled"));
    }
    let results = service.ok("/v1/batch/decrypt", json!({"items": [body]})).await;
    assert_eq!(results["results"][0]["error"]["code"], "kek_disabled");
    service.ok(&format!("/v1/chains/default/keks/{id}/enable"), json!({})).await;
    service.ok("/v1/decrypt", body).await;

    for _ in 1..10 {
        service.ok("/v1/rotate", json!({})).await;
    }
    let request = service.request(Method::POST, "/v1/rotate").json(&json!({}));
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=61).contains(&wait), "{wait}");
    note(status, &response.json().await.unwrap(), (429, "overloaded"));
    made
}

#[tokio::test]
async fn a_body_may_have_max_body_bytes_and_not_one_more() {
    let service = Setup::new().set("SERVER__MAX_BODY", "1KiB").start().await;
    let octets = "application/octet-stream";
    let request = |path: &str| {
        service.request(Method::POST, path).header("content-type", octets).header("accept", octets)
    };
    assert_eq!(request("/v1/encrypt").body(vec![7; 1024]).send().await.unwrap().status(), 200);
    let refused = request("/v1/encrypt").body(vec![7; 1025]).send().await.unwrap();
    assert_eq!(refused.status(), 413);
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["code"], "payload_too_large");

    // The same where no length is declared.
    for (len, status) in [(1024, "200"), (1025, "413")] {
        let mut stream = service.connect().await;
        let chunked = format!(
            "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: {octets}\r\nTransfer-Encoding: chunked\r\n\r\n\
             400\r\n{}\r\n{}0\r\n\r\n",
            "A".repeat(1024),
            if len == 1025 { "1\r\nA\r\n" } else { "" },
        );
        let answer = talk(&mut stream, &chunked).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{len}: {answer}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up_and_others_are_served() {
    let service = Setup::new().set("SERVER__REQUEST_TIMEOUT", "1s").start().await;
    let mut slow = service.connect().await;
    let head = "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 100\r\n\r\n{\"plaintext\":";
    let answer = talk(&mut slow, head).await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("overloaded"), "{answer}");
    assert!(answer.contains("retry-after: 1"), "{answer}");
    until("an encrypt", async || service.try_encrypt("default", "aGVsbG8=").await?.ok()).await;
}

const PROBE: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn one_connection_too_many_waits_for_its_turn() {
    let service = Setup::new().set("SERVER__MAX_CONNECTIONS", 2).start().await;
    let (mut first, mut second) = (service.connect().await, service.connect().await);
    let mut third = service.connect().await;
    third.write_all(PROBE.as_bytes()).await.unwrap();
    for _ in 0..10 {
        for held in [&mut first, &mut second] {
            held.write_all(PROBE.as_bytes()).await.unwrap();
            read_until(held, "}").await;
        }
        let read = third.try_read(&mut [0; 1]);
        assert!(read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
    drop(first);
    assert!(read_until(&mut third, "}").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn probes_are_answered_on_their_own_listener_when_callers_have_every_connection() {
    let setup = Setup::new().set("SERVER__MAX_CONNECTIONS", 1);
    let service = setup.set("SERVER__ADMIN_LISTEN", "127.0.0.1:0").start().await;
    let said = service.said();
    let (_, admin) = said.trim_end().split_once(", admin on http://").expect("an address");
    service.logged(&format!(r#""admin":"http://{admin}""#)).await;
    let mut admin = tokio::net::TcpStream::connect(admin).await.unwrap();
    for _ in 0..2 {
        admin.write_all(PROBE.as_bytes()).await.unwrap();
        assert!(read_until(&mut admin, "}").await.starts_with("HTTP/1.1 200"));
        let mut caller = service.connect().await;
        let last = PROBE.replace("localhost", "localhost\r\nConnection: close");
        let answer = talk(&mut caller, &last).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "probes are on the other listener");
    }
    let nothing = PROBE.replace("/healthz", "/openapi.json");
    admin.write_all(nothing.as_bytes()).await.unwrap();
    let answer = read_until(&mut admin, "}").await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("/healthz, /readyz"), "{answer}");
    assert!(!answer.contains("openapi"), "{answer}");
}

/// The metrics and their labels: a contract. One more is there with TLS alone:
/// `kms_proxy_tls_certificate_expiry_seconds`, see tls.rs. Those of callers are there with auth alone:
/// `kms_proxy_auth_failures_total`, `kms_proxy_client_requests_total` and
/// `kms_proxy_client_refusals_total`, see identities.rs.
const METRICS: [(&str, &str); 46] = [
    ("kms_proxy_audit_lines_total", "outcome"),
    ("kms_proxy_operations_total", "chain operation outcome"),
    ("kms_proxy_operation_duration_seconds_bucket", "le operation"),
    ("kms_proxy_root_calls_total", "operation outcome root"),
    ("kms_proxy_root_call_duration_seconds_bucket", "le operation root"),
    ("kms_proxy_root_calls_avoided_total", ""),
    ("kms_proxy_kek_uses", "chain"),
    ("kms_proxy_kek_rotate_after_uses", "chain"),
    ("kms_proxy_kek_max_uses", "chain"),
    ("kms_proxy_kek_age_seconds", "chain"),
    ("kms_proxy_rotations_total", "chain reason"),
    ("kms_proxy_rotation_failures_total", "chain"),
    ("kms_proxy_reservations_total", "chain outcome"),
    ("kms_proxy_keks_missing_wraps", "root"),
    ("kms_proxy_dek_cache_hits_total", ""),
    ("kms_proxy_dek_cache_misses_total", ""),
    ("kms_proxy_dek_cache_evictions_total", ""),
    ("kms_proxy_dek_cache_entries", ""),
    ("kms_proxy_root_up", "root"),
    ("kms_proxy_root_info", "kind root"),
    ("kms_proxy_store_up", ""),
    ("kms_proxy_last_backup_timestamp_seconds", ""),
    ("kms_proxy_archive_restored_keks_total", ""),
    ("kms_proxy_unarchived_promotions_total", ""),
    ("kms_proxy_root_wrong_wraps", "root"),
    ("kms_proxy_store_rollbacks_total", "chain"),
    ("kms_proxy_unknown_keks", "chain"),
    ("kms_proxy_unopenable_keks", "chain"),
    ("kms_proxy_rules_current", ""),
    ("kms_proxy_build_info", "version"),
    ("kms_proxy_operation_duration_seconds_count", "operation"),
    ("kms_proxy_kek_standby", "chain"),
    ("kms_proxy_store_call_duration_seconds_bucket", "le operation"),
    ("kms_proxy_requests_in_flight", "listener"),
    ("kms_proxy_requests_total", "api outcome"),
    ("kms_proxy_connections", "listener"),
    ("kms_proxy_streams_open", ""),
    ("kms_proxy_streams_total", "operation outcome"),
    ("kms_proxy_stream_bytes_total", "operation"),
    ("process_cpu_seconds_total", ""),
    ("process_start_time_seconds", ""),
    ("process_resident_memory_bytes", ""),
    ("process_virtual_memory_bytes", ""),
    ("process_threads", ""),
    ("process_open_fds", ""),
    ("process_max_fds", ""),
];

#[test]
fn every_metric_has_its_line_for_operators() {
    let text = std::fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    for (name, _) in METRICS {
        let name = name.trim_end_matches("_bucket").trim_end_matches("_count");
        assert!(text.contains(&format!("`{name}`")), "docs/monitoring.md does not have {name}");
    }
}

/// Each series with its value: names and labels as they are written.
fn series(metrics: &str) -> BTreeMap<&str, f64> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series, value.parse().unwrap())
        })
        .collect()
}

/// The labels of each name, in the alphabet's order.
fn labels(metrics: &str) -> BTreeMap<&str, BTreeSet<String>> {
    let mut labels = BTreeMap::<_, BTreeSet<_>>::new();
    for series in series(metrics).into_keys() {
        let (name, rest) = series.split_once('{').unwrap_or((series, ""));
        let parts = rest.trim_end_matches('}').split("\",").filter(|part| !part.is_empty());
        let mut names: Vec<_> = parts.map(|part| part.split('=').next().unwrap()).collect();
        names.sort_unstable();
        labels.entry(name).or_default().insert(names.join(" "));
    }
    labels
}

#[tokio::test]
async fn metrics_are_named_as_agreed_and_count_the_root_calls_that_were_spared() {
    let service = Setup::new().start().await;
    let mut operations = 0;
    let mut sealed = None;
    for _ in 0..40 {
        sealed = Some(service.encrypt("default", "aGVsbG8=").await);
        operations += 1;
    }
    let body = json!({"ciphertext": sealed.unwrap().ciphertext});
    service.ok("/v1/rotate", json!({})).await;
    for path in ["/v1/decrypt", "/v1/decrypt", "/v1/rewrap"] {
        service.ok(path, body.clone()).await;
        operations += 1;
    }
    service.ok("/v1/datakey", json!({})).await;
    service.ok("/v1/batch/decrypt", json!({"items": [body, body, {"ciphertext": "kp:"}]})).await;
    operations += 3;
    assert_eq!(service.post("/v1/encrypt", json!({"plaintext": "", "chain": "x"})).await.0, 404);
    assert_eq!(service.post("/v1/encrypt", json!({"plaintext": "!"})).await.0, 400);

    let metrics = service.metrics().await;
    let found = labels(&metrics);
    for (name, expected) in METRICS {
        let expected = BTreeSet::from([expected.to_owned()]);
        assert_eq!(found.get(name), Some(&expected), "{name}\n{metrics}");
    }
    let known = |name: &str| METRICS.iter().any(|(known, _)| *known == name);
    let unknown = found.keys().filter(|name| !known(name) && !name.ends_with("_sum"));
    let unknown: Vec<_> = unknown.filter(|name| !name.ends_with("_count")).collect();
    assert!(unknown.is_empty(), "metrics that are not in the list: {unknown:?}");

    let series = series(&metrics);
    let sum = |name: &str| -> f64 {
        series.iter().filter(|(key, _)| key.starts_with(name)).map(|(_, value)| value).sum()
    };
    let calls = sum("kms_proxy_root_calls_total");
    assert!(calls >= 2.0, "a KEK at the start, one by hand");
    let avoided = series["kms_proxy_root_calls_avoided_total"];
    assert_eq!(avoided, f64::from(operations) - calls, "{metrics}");
    for (key, value) in [
        (r#"operations_total{chain="default",operation="encrypt",outcome="ok"}"#, 40.0),
        (r#"operations_total{chain="default",operation="decrypt",outcome="ok"}"#, 4.0),
        (
            r#"operations_total{chain="default",operation="decrypt",outcome="invalid_ciphertext"}"#,
            1.0,
        ),
        (r#"operations_total{chain="",operation="encrypt",outcome="unknown_chain"}"#, 1.0),
        (r#"operations_total{chain="",operation="encrypt",outcome="invalid_request"}"#, 1.0),
        (r#"rotations_total{chain="default",reason="manual"}"#, 1.0),
        (r#"kek_max_uses{chain="default"}"#, 4_194_304.0),
        // What has not happened yet is there with 0.
        (r#"rotations_total{chain="default",reason="uses"}"#, 0.0),
        (r#"reservations_total{chain="default",outcome="lost"}"#, 0.0),
        (r#"operations_total{chain="default",operation="encrypt",outcome="kek_exhausted"}"#, 0.0),
        (r#"root_calls_total{operation="unwrap",outcome="away",root="local"}"#, 0.0),
        // This request, and its connection.
        (r#"requests_in_flight{listener="public"}"#, 1.0),
        ("store_up", 1.0),
    ] {
        assert_eq!(series.get(&*format!("kms_proxy_{key}")), Some(&value), "{key}\n{metrics}");
    }
    let misses = series["kms_proxy_dek_cache_misses_total"];
    let hits = series["kms_proxy_dek_cache_hits_total"];
    assert_eq!(
        (misses, hits),
        (2.0, 3.0),
        "one header, opened five times, kept from the second on"
    );
}
