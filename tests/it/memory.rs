//! What a look into the memory of the process shows once its requests are over: the plaintext of none.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use base64_simd::STANDARD;
use reqwest::{Client, ClientBuilder, Method};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::support::pki::{self, Pki};
use crate::support::{Service, Setup, read_until, until};

/// A plaintext like no other; in base64, it may be repeated.
const PLANTED: &str = "planted-7e1f0a5c93d24b8/";

#[tokio::test]
async fn no_plaintext_is_in_memory_when_the_requests_are_over() {
    let setup = Setup::new().env("KMS_PROXY_DEBUGGABLE", "true");
    let pki = Pki::new(setup.file("pki"));
    let (cert, key) = pki.server(&["127.0.0.1"]);
    let service = setup.start().await;
    a_request_that_goes_on_is_seen(&service).await;
    look(service, Client::builder().no_proxy()).await;
    let setup =
        setup.set("SERVER__TLS__CERT", cert.display()).set("SERVER__TLS__KEY", key.display());
    look(setup.start().await, pki::client(&pki.ca(), None).http1_only()).await;
    look(setup.start().await, pki::client(&pki.ca(), None)).await;
}

/// What is looked for is found where it must be.
async fn a_request_that_goes_on_is_seen(service: &Service) {
    let mut stream = service.connect().await;
    let body = STANDARD.encode_to_string(PLANTED);
    let head = "POST /v1/encrypt HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                expect: 100-continue\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut stream, "100 Continue").await;
    let body = format!("{{\"plaintext\":\"{body}");
    stream.write_all(body.as_bytes()).await.unwrap();
    until("a plaintext in memory", async || (found(service) > 0).then_some(())).await;
    drop(stream);
    gone(service).await;
}

/// Lets plaintexts through in every way that there is, closes the connections, and looks.
async fn look(mut service: Service, client: ClientBuilder) {
    service.call_with(client.build().unwrap());
    for times in [1, 100, 20_000] {
        let plaintext = PLANTED.repeat(times);
        let text = STANDARD.encode_to_string(&plaintext);
        let made = service.encrypt("default", &text).await.ciphertext;
        for _ in 0..3 {
            let opened = service.ok("/v1/decrypt", json!({"ciphertext": made})).await;
            assert_eq!(opened["plaintext"], text);
        }
        let items = json!({"items": [{"plaintext": text}, {"plaintext": text}]});
        service.ok("/v1/batch/encrypt", items).await;
        let items = json!({"items": [{"ciphertext": made}, {"ciphertext": made}]});
        service.ok("/v1/batch/decrypt", items).await;
        let (status, _) = service.post("/v1/decrypt", json!({"ciphertext": text})).await;
        assert_eq!(status, 400);
        let (status, _) = service.post("/v1/encrypt", json!({"plaintext": [text]})).await;
        assert_eq!(status, 400);
        // A text with escapes is put together elsewhere.
        let escaped = format!("{{\"plaintext\":\"\\u{:04x}{}\"}}", text.as_bytes()[0], &text[1..]);
        let octets = [("application/json", escaped), ("application/octet-stream", plaintext)];
        for (kind, body) in octets {
            let request = service.request(Method::POST, "/v1/encrypt").header("content-type", kind);
            let made = request.body(body).send().await.unwrap();
            assert_eq!(made.status(), 200);
            let kept = made.bytes().await.unwrap();
            if kind == "application/octet-stream" {
                let request = service.request(Method::POST, "/v1/decrypt");
                let request = request.header("content-type", kind).body(kept);
                assert_eq!(request.send().await.unwrap().status(), 200);
            }
        }
    }
    // With the client its connections end.
    service.call_with(Client::new());
    gone(&service).await;
    service.stop().await;
}

async fn gone(service: &Service) {
    until("memory without a plaintext", async || (found(service) == 0).then_some(())).await;
}

/// How often a plaintext is in the memory that the process can write to.
fn found(service: &Service) -> usize {
    let pid = service.pid().as_raw_nonzero();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let forms = [PLANTED.to_owned(), STANDARD.encode_to_string(PLANTED)];
    let mut count = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        // What was unmapped meanwhile is gone.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            for form in forms.iter().map(String::as_bytes) {
                count += bytes.windows(form.len()).filter(|part| *part == form).count();
            }
        }
    }
    count
}
