//! Traces: the caller's `traceparent` in the log, in the audit log and in exported spans, and a
//! collector that takes them or is away.
//!
//! The collector is a server of the test's own: what it receives is decoded by OpenTelemetry's
//! schema.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Service, Setup};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// A plaintext, and the AAD beside it.
const PLANTED: &str = "cGxhbnRlZC1wbGFpbnRleHQ=";

/// What was received of the service.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Bytes>>>);

impl Collector {
    /// Starts it, and returns where.
    async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = collector.clone();
        let take = post(async move |body: Bytes| received.0.lock().unwrap().push(body));
        let router = Router::new().route("/v1/traces", take);
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.0.lock().unwrap().clone();
        let exports = received.into_iter().map(ExportTraceServiceRequest::decode);
        let resources = exports.flat_map(|export| export.unwrap().resource_spans);
        let resources = resources.inspect(|it| {
            let attributes = &it.resource.as_ref().unwrap().attributes;
            let name = attributes.iter().find(|it| it.key == "service.name").unwrap();
            let name = name.value.as_ref().and_then(|it| it.value.as_ref());
            assert_eq!(name, Some(&any_value::Value::StringValue("kms-proxy".to_owned())));
        });
        resources.flat_map(|it| it.scope_spans).flat_map(|it| it.spans).collect()
    }

    /// The spans of requests.
    fn requests(&self) -> Vec<Span> {
        let is_request = |span: &Span| attribute(span, "http.request.method").is_some();
        self.spans().into_iter().filter(is_request).collect()
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|it| it.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

async fn call(service: &Service, path: &str, traceparent: &str, body: Value) -> StatusCode {
    let request = service.request(Method::POST, path).header("traceparent", traceparent);
    request.json(&body).send().await.unwrap().status()
}

fn with_collector(address: SocketAddr) -> Setup {
    Setup::new()
        .set("TRACES__ENDPOINT", format!("http://{address}/v1/traces"))
        .set("TRACES__SAMPLE_RATIO", 0)
        .env("OTEL_BSP_SCHEDULE_DELAY", 50)
}

#[tokio::test]
async fn a_request_of_a_recorded_trace_has_a_span_with_its_root_calls() {
    let (collector, address) = Collector::start().await;
    let setup = with_collector(address);
    let service = setup.start().await;
    let old = service.encrypt("default", PLANTED).await;
    service.ok("/v1/rotate", json!({})).await;
    service.stop().await;
    assert!(collector.requests().is_empty(), "no request had a traceparent, and the ratio is 0");

    let service = setup.start().await;
    let body = json!({"plaintext": PLANTED});
    assert_eq!(call(&service, "/v1/encrypt", &traceparent("01"), body.clone()).await, 200);
    // The caller does not record it.
    assert_eq!(call(&service, "/v1/encrypt", &traceparent("00"), body.clone()).await, 200);
    // No trace.
    assert_eq!(call(&service, "/v1/encrypt", "00-1-2-01", body).await, 200);
    // The old KEK is not in memory.
    let body = json!({"ciphertext": old.ciphertext});
    assert_eq!(call(&service, "/v1/decrypt", &traceparent("01"), body).await, 200);
    let body = json!({"ciphertext": "AAAA"});
    assert_eq!(call(&service, "/v1/decrypt", &traceparent("01"), body).await, 400);
    let path = "/v1/chains/default/roots/nothing/rewrap";
    assert_eq!(call(&service, path, &traceparent("01"), json!({})).await, 400);
    // The end of the process sends what waits.
    service.stop().await;

    let requests = collector.requests();
    let told: Vec<_> = requests
        .iter()
        .map(|span| {
            let status = attribute(span, "http.response.status_code").unwrap();
            (span.name.clone(), status, attribute(span, "error.type"))
        })
        .collect();
    let invalid = |code: &str| Some(code.to_owned());
    assert_eq!(
        told,
        [
            ("POST /v1/encrypt".to_owned(), "200".to_owned(), None),
            ("POST /v1/decrypt".to_owned(), "200".to_owned(), None),
            ("POST /v1/decrypt".to_owned(), "400".to_owned(), invalid("invalid_ciphertext")),
            (
                "POST /v1/chains/{name}/roots/{id}/rewrap".to_owned(),
                "400".to_owned(),
                invalid("invalid_request")
            ),
        ]
    );
    for span in &requests {
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), PARENT.into()));
        assert_eq!(span.kind, 2, "a server");
        assert!(span.start_time_unix_nano < span.end_time_unix_nano);
        assert!(attribute(span, "kms_proxy.request_id").is_some());
    }
    let roots = collector.spans();
    let of_decrypt: Vec<_> =
        roots.iter().filter(|span| span.parent_span_id == requests[1].span_id).collect();
    let [unwrap] = *of_decrypt else { panic!("{of_decrypt:?}") };
    assert_eq!((&*unwrap.name, hex(&unwrap.trace_id)), ("root unwrap", TRACE.into()));
    assert_eq!(attribute(unwrap, "kms_proxy.root").as_deref(), Some("local"));
    assert_eq!(attribute(unwrap, "kms_proxy.chain").as_deref(), Some("default"));

    for received in collector.0.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(received);
        for secret in [PLANTED, "planted-plaintext", old.ciphertext.as_str()] {
            assert!(!text.contains(secret), "{secret} was exported");
        }
    }
}

#[tokio::test]
async fn requests_without_a_trace_are_recorded_by_the_ratio() {
    let (collector, address) = Collector::start().await;
    let setup = with_collector(address).set("TRACES__SAMPLE_RATIO", 0.25);
    let service = setup.start().await;
    for _ in 0..40 {
        service.encrypt("default", PLANTED).await;
    }
    service.stop().await;
    let requests = collector.requests();
    let encrypts: Vec<_> = requests.iter().filter(|it| it.name == "POST /v1/encrypt").collect();
    // Probes of the test count too.
    assert!(encrypts.len().abs_diff(10) <= 2, "{}", encrypts.len());
    assert!(encrypts.iter().all(|span| span.parent_span_id.is_empty()));
}

#[tokio::test]
async fn a_collector_that_is_away_delays_nothing_and_is_logged() {
    let setup = with_collector("127.0.0.1:1".parse().unwrap()).set("TRACES__SAMPLE_RATIO", 1);
    let service = setup.start().await;
    for _ in 0..20 {
        service.encrypt("default", PLANTED).await;
    }
    let line = service.logged("traces can't be exported").await;
    assert!(line.contains("refused"), "{line}");
    service.stop().await;
}

#[tokio::test]
async fn the_trace_of_the_caller_is_in_the_log_and_in_the_audit_log() {
    let setup = Setup::new().set("LOG__LEVEL", "debug").set("LOG__FORMAT", "json");
    let file = setup.file("audit.jsonl");
    let setup = setup.set("AUDIT__FILE", file.display()).set("AUDIT__RULE__0__LEVEL", "full");
    let service = setup.start().await;
    let with_id = |trace: String, id: &'static str| {
        let request = service.request(Method::POST, "/v1/encrypt").header("traceparent", trace);
        request.header("x-request-id", id).json(&json!({"plaintext": PLANTED}))
    };
    with_id(traceparent("00"), "traced").send().await.unwrap();
    with_id(traceparent("0"), "invalid").send().await.unwrap();
    let batch = service.request(Method::POST, "/v1/batch/encrypt").header("x-request-id", "batch");
    let items = json!({"items": [{"plaintext": PLANTED}, {"plaintext": PLANTED}]});
    let batch = batch.header("traceparent", traceparent("01")).json(&items);
    assert_eq!(batch.send().await.unwrap().status(), 200);
    let log = service.stop().await;

    let traces_of = |lines: &str, id: &str| -> Vec<Value> {
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines = lines.filter(|line| line["request_id"] == id);
        lines.map(|line| line["trace_id"].clone()).collect()
    };
    let audit = std::fs::read_to_string(file).unwrap();
    for (id, audited, logged) in [
        ("traced", vec![json!(TRACE)], vec![json!(TRACE)]),
        ("invalid", vec![Value::Null], vec![Value::Null]),
        ("batch", vec![json!(TRACE); 2], vec![json!(TRACE)]),
    ] {
        assert_eq!(traces_of(&audit, id), audited, "{id} in {audit}");
        assert_eq!(traces_of(&log, id), logged, "{id} in {log}");
    }
}
