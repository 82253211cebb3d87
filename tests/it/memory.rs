//! What a search of the memory of the process finds when its requests are over: no plaintext and
//! no DEK.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use base64_simd::STANDARD;
use kms_proxy::aead::Cipher;
use kms_proxy::envelope::{self, Envelope};
use kms_proxy::id::{ChainName, KekId};
use kms_proxy::root::{Context, RootKey, local};
use kms_proxy::secret::KeyBytes;
use kms_proxy::store::Store as _;
use kms_proxy::store::file::Store;
use kms_proxy::store::record::{self, Record as _};
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
    a_request_that_is_running_is_seen(&service).await;
    look(service, Client::builder().no_proxy()).await;
    let setup =
        setup.set("SERVER__TLS__CERT", cert.display()).set("SERVER__TLS__KEY", key.display());
    look(setup.start().await, pki::client(&pki.ca(), None).http1_only()).await;
    look(setup.start().await, pki::client(&pki.ca(), None)).await;
}

/// What is looked for is found where it must be.
async fn a_request_that_is_running_is_seen(service: &Service) {
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

/// Sends plaintexts through every call, closes the connections, and searches.
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

/// The memory that is searched together.
const PAGE: usize = 4096;
/// Envelopes that each kind of call makes or opens.
const ENVELOPES: usize = 40;

/// A build without optimisation uses more of the stack than is overwritten, so this fails there.
#[tokio::test]
async fn no_dek_is_in_memory_when_the_requests_are_over() {
    for suite in ["aes-128-gcm", "aes-256-gcm"] {
        let setup = Setup::new()
            .env("KMS_PROXY_DEBUGGABLE", "true")
            .set("CHAIN__SUITE", suite)
            .set("CACHE__DEK_ENTRIES", 0);
        let service = setup.start().await;
        let retired = sealed(&service).await;
        service.ok("/v1/rotate", json!({})).await;
        service.encrypt("default", "").await;
        service.stop().await;
        let keks = keks(&setup).await;
        let opened = dek_list(&keks, &retired);

        let service = setup.start().await;
        let mut all_found = Vec::new();
        let mut look = |call: &str, deks: &[Vec<u8>]| {
            all_found.extend(search(&service, deks).iter().map(|at| format!("{call}: {at}")));
        };
        look("encrypt", &dek_list(&keks, &sealed(&service).await));
        let mut made = Vec::new();
        for _ in 0..ENVELOPES {
            let answer = service.ok("/v1/datakey", json!({})).await;
            made.push(answer["ciphertext"].as_str().unwrap().to_owned());
        }
        look("datakey", &dek_list(&keks, &made));
        let items = json!({"items": vec![json!({"plaintext": "aGVsbG8="}); ENVELOPES]});
        let results = service.ok("/v1/batch/encrypt", items).await["results"].take();
        let made = results.as_array().unwrap().iter();
        let made: Vec<_> = made.map(|it| it["ciphertext"].as_str().unwrap().to_owned()).collect();
        look("a batch of encrypts", &dek_list(&keks, &made));
        for call in ["decrypt", "rewrap"] {
            for made in &retired {
                service.ok(&format!("/v1/{call}"), json!({"ciphertext": made})).await;
            }
            look(call, &opened);
            let items: Vec<_> = retired.iter().map(|made| json!({"ciphertext": made})).collect();
            service.ok(&format!("/v1/batch/{call}"), json!({"items": items})).await;
            look(&format!("a batch of {call}s"), &opened);
        }
        assert!(all_found.is_empty(), "DEKs of {suite} are in memory: {all_found:#?}");
        service.stop().await;
    }
}

/// What is looked for above is found where it must be.
#[tokio::test]
async fn a_dek_in_the_cache_is_seen_in_memory() {
    let setup = Setup::new().env("KMS_PROXY_DEBUGGABLE", "true");
    let service = setup.start().await;
    let made = sealed(&service).await;
    service.stop().await;
    let deks = dek_list(&keks(&setup).await, &made);
    let service = setup.start().await;
    // A DEK is kept when it is opened for the second time.
    for made in made.iter().chain(&made) {
        service.ok("/v1/decrypt", json!({"ciphertext": made})).await;
    }
    assert!(search(&service, &deks).len() >= ENVELOPES);
    service.stop().await;
}

/// Envelopes of a short, a longer and a long message.
async fn sealed(service: &Service) -> Vec<String> {
    let mut sealed = Vec::new();
    for index in 0..ENVELOPES {
        let text = STANDARD.encode_to_string(&*"x".repeat([5, 300, 5_000][index % 3]));
        sealed.push(service.encrypt("default", &text).await.ciphertext);
    }
    sealed
}

/// The KEKs of the chain `default`; the service must have ended.
async fn keks(setup: &Setup) -> Vec<(KekId, Cipher)> {
    let root = local::Root::open(&local::Config::new("local"), &setup.data()).unwrap();
    let store = Store::open(&setup.data()).await.unwrap();
    let chain = ChainName::new("default").unwrap();
    let prefix = record::keks_prefix(&chain);
    let mut keks = Vec::new();
    for entry in store.list(&prefix, None, 100).await.unwrap() {
        let kek_id: KekId = entry.key.strip_prefix(&prefix).unwrap().parse().unwrap();
        let kek = record::Kek::decode(&entry.key, &entry.value).unwrap();
        let context = Context { chain: &chain, kek_id, suite: kek.suite };
        let key: KeyBytes = root.unwrap(context, &kek.wraps[0].bytes).await.unwrap();
        keks.push((kek_id, Cipher::new(&key)));
    }
    keks
}

/// The DEKs of these envelopes of the chain `default`, in pieces of 16 bytes.
fn dek_list(keks: &[(KekId, Cipher)], envelopes: &[String]) -> Vec<Vec<u8>> {
    let chain = ChainName::new("default").unwrap();
    let mut pieces = Vec::new();
    for text in envelopes {
        let bytes = envelope::from_text(text).unwrap();
        let header = Envelope::parse(&bytes).unwrap().header;
        let (_, kek) = keks.iter().find(|(id, _)| *id == header.kek_id).unwrap();
        let mut dek = header.wrapped_dek.to_vec();
        kek.open(header.wrap_nonce, &header.dek_aad(&chain), &mut dek, header.wrap_tag).unwrap();
        pieces.extend(dek.chunks(16).map(<[u8]>::to_vec));
    }
    pieces
}

async fn gone(service: &Service) {
    until("memory without a plaintext", async || (found(service) == 0).then_some(())).await;
}

/// How often a plaintext is in the memory that the process can write to.
fn found(service: &Service) -> usize {
    let forms = [PLANTED.to_owned(), STANDARD.encode_to_string(PLANTED)];
    search(service, &forms.map(String::into_bytes)).len()
}

/// Where any of `needles` is in the memory that the process can write to: its heap, and the stacks
/// of all its threads.
fn search(service: &Service, needles: &[Vec<u8>]) -> Vec<String> {
    let mut by_start = vec![Vec::new(); 1 << 8];
    for needle in needles {
        by_start[usize::from(needle[0])].push(&**needle);
    }
    let pid = service.pid().as_raw_nonzero();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        // What was unmapped meanwhile is gone.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            // Most of it was never used.
            for page in (0..bytes.len()).step_by(PAGE) {
                let end = bytes.len().min(page + PAGE);
                if bytes[page..end] == [0; PAGE][..end - page] {
                    continue;
                }
                for at in page..end {
                    let needles: &Vec<&[u8]> = &by_start[usize::from(bytes[at])];
                    let here = needles.iter().filter(|needle| bytes[at..].starts_with(needle));
                    found.extend(here.map(|_| {
                        format!("{} bytes before the end of {line}", to - from - at as u64)
                    }));
                }
            }
        }
    }
    found
}
