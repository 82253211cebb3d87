//! `/v1/stream/encrypt` and `/v1/stream/decrypt` by raw sockets: what passes whole, what must not
//! look whole, and how much memory it takes.

use kms_proxy::envelope::Envelope;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::limits::Target;
use crate::support::random::Random;
use crate::support::{Service, Setup, until};

mod cut;
mod http2;
mod large;
mod slow;
mod wire;

use wire::{Answer, Call, Framing};

const CHUNK: usize = 16 << 10;

fn message(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

async fn encrypt(target: &Target, message: &[u8]) -> Vec<u8> {
    let answer = Call::encrypt(message).send(target).await;
    assert!(answer.status == 200 && answer.is_whole, "{answer:?}");
    answer.body
}

/// The metric of streams that ended.
async fn ended(service: &Service, operation: &str, outcome: &str) -> u64 {
    let metrics = service.metrics().await;
    let labels = format!("{{operation=\"{operation}\",outcome=\"{outcome}\"}} ");
    let name = format!("\nkms_proxy_streams_total{labels}");
    let (_, rest) = metrics.split_once(&name).expect("the metric exists from the start");
    rest.lines().next().unwrap().parse().unwrap()
}

/// The lengths around the borders of chunks, in both framings and with TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_length_passes_both_ways() {
    for with_tls in [false, true] {
        let target = Target::with(Setup::new(), with_tls, &[]).await;
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5, 1_000_000] {
            let message = message(len);
            let payload = 56 + len + (len / CHUNK + 1) * 16;
            for framing in [Framing::Length, Framing::Chunks(10_000)] {
                let call = Call { framing, ..Call::encrypt(&message) };
                let made = call.send(&target).await;
                assert_eq!((made.status, made.is_whole), (200, true), "{len}, {framing:?}");
                let parsed = Envelope::parse(&made.body).unwrap();
                assert_eq!(parsed.header.version.code(), 3);
                assert_eq!(made.header("kms-proxy-kek-id"), parsed.header.kek_id.to_string());
                assert_eq!(made.header("kms-proxy-chain"), "default");
                assert_eq!(made.body.len(), 62 + payload);
                let is_known = matches!(framing, Framing::Length);
                assert_eq!(made.length, is_known.then_some(62 + payload), "{len}");

                let opened = Call { framing, ..Call::decrypt(&made.body) }.send(&target).await;
                assert_eq!((opened.status, opened.is_whole), (200, true), "{len}, {framing:?}");
                assert!(opened.body == message, "{len}");
                // What fits in one chunk is known in any case.
                assert_eq!(opened.length, (is_known || len < CHUNK).then_some(len));
                // A whole envelope is one to the other calls as well.
                let mut request = target.service.request(Method::POST, "/v1/decrypt");
                request = request.header("content-type", "application/octet-stream");
                let opened = request.header("kms-proxy-aad", "cm93IDc=").body(made.body);
                let opened = opened.send().await.unwrap();
                assert_eq!(opened.status(), 200);
                assert!(opened.bytes().await.unwrap() == message);
            }
        }
        assert_eq!(ended(&target.service, "encrypt", "ok").await, 16);
        assert_eq!(ended(&target.service, "decrypt", "ok").await, 16);
    }
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_an_ordinary_error() {
    let target = Target::with(Setup::new().set("CHAIN__NAMES", "orders"), false, &[]).await;
    let envelope = encrypt(&target, &message(50_000)).await;
    let whole = target.service.encrypt("default", "aGVsbG8=").await.ciphertext;
    let stored = kms_proxy::envelope::from_text(&whole).unwrap();
    let mut unknown = envelope.clone();
    unknown[5] ^= 1;
    let mut first = envelope.clone();
    first[62 + 56 + 100] ^= 1;
    let mut commitment = envelope.clone();
    commitment[62 + 24] ^= 1;
    let text = kms_proxy::envelope::to_text(&envelope);
    let short = encrypt(&target, b"hello").await;
    let with = |bytes: usize| [&*short, &*vec![7; bytes]].concat();
    let (longer, much_longer) = (with(1), with(40_000));
    for (what, body, headers, code) in [
        ("another AAD", &envelope[..], "kms-proxy-aad: cm93IDg=\r\n", "invalid_ciphertext"),
        ("no AAD", &envelope, "", "invalid_ciphertext"),
        (
            "another chain",
            &envelope,
            "kms-proxy-aad: cm93IDc=\r\nkms-proxy-chain: orders\r\n",
            "unknown_kek",
        ),
        (
            "no chain",
            &envelope,
            "kms-proxy-aad: cm93IDc=\r\nkms-proxy-chain: x\r\n",
            "unknown_chain",
        ),
        ("bad base64", &envelope, "kms-proxy-aad: !\r\n", "invalid_request"),
        ("another KEK", &unknown, "kms-proxy-aad: cm93IDc=\r\n", "unknown_kek"),
        ("a changed first chunk", &first, "kms-proxy-aad: cm93IDc=\r\n", "invalid_ciphertext"),
        ("a changed commitment", &commitment, "kms-proxy-aad: cm93IDc=\r\n", "invalid_ciphertext"),
        ("version 1", &stored, "", "invalid_ciphertext"),
        ("the text form", text.as_bytes(), "kms-proxy-aad: cm93IDc=\r\n", "invalid_ciphertext"),
        ("a byte behind it", &longer, "kms-proxy-aad: cm93IDc=\r\n", "invalid_ciphertext"),
        ("more behind it", &much_longer, "kms-proxy-aad: cm93IDc=\r\n", "invalid_ciphertext"),
        ("nothing", b"", "", "invalid_ciphertext"),
        ("another version", b"\x05\x01", "", "invalid_ciphertext"),
        ("the header alone", &envelope[..62], "kms-proxy-aad: cm93IDc=\r\n", "invalid_ciphertext"),
        (
            "the start of the first chunk",
            &envelope[..9_000],
            "kms-proxy-aad: cm93IDc=\r\n",
            "invalid_ciphertext",
        ),
    ] {
        for framing in [Framing::Length, Framing::Chunks(1_000)] {
            let call = Call { framing, headers, ..Call::decrypt(body) };
            let answer = call.send(&target).await;
            let problem: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(problem["code"], code, "{what}, {framing:?}: {problem}");
            assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
        }
    }
    // With a length, an envelope that was cut between two chunks is known to be one at the start.
    let cut = &envelope[..62 + 56 + 2 * (CHUNK + 16)];
    assert_eq!(Call::decrypt(cut).send(&target).await.status, 400);
    let json = Call { kind: "application/json", ..Call::encrypt(b"{}") }.send(&target).await;
    assert_eq!(json.status, 415);
}

/// Chunks that were removed, repeated, exchanged or added, of an envelope with five of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_moved_abort_the_response_and_no_wrong_byte_is_sent() {
    let target = Target::with(Setup::new(), false, &[]).await;
    let message = message(4 * CHUNK + 100);
    let envelope = encrypt(&target, &message).await;
    let (start, chunks) = envelope.split_at(62 + 56);
    let chunks: Vec<_> = chunks.chunks(CHUNK + 16).collect();
    for order in [
        &[0, 1, 2, 4][..],
        &[0, 2, 3, 4],
        &[0, 1, 2, 3],
        &[0, 1, 1, 2, 3, 4],
        &[0, 2, 1, 3, 4],
        &[0, 1, 2, 3, 4, 4],
        &[0, 1, 2, 3, 4, 1],
        &[0, 4],
        &[0],
    ] {
        let moved: Vec<_> = order.iter().map(|&number| chunks[number]).collect();
        let moved = [start, &*moved.concat()].concat();
        for framing in [Framing::Length, Framing::Chunks(7_000)] {
            let answer = Call { framing, ..Call::decrypt(&moved) }.send(&target).await;
            assert!(answer.status != 200 || !answer.is_whole, "{order:?}, {framing:?}");
            let is_start = message.starts_with(&answer.body);
            assert!(answer.status != 200 || is_start, "{order:?}, {framing:?}");
        }
    }
    assert_eq!(ended(&target.service, "decrypt", "ok").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_byte_aborts_the_response_and_no_wrong_byte_is_sent() {
    let target = Target::with(Setup::new(), false, &[]).await;
    let mut random = Random(7);
    for len in [20_0000, 4 * CHUNK] {
        let message = message(len);
        let envelope = encrypt(&target, &message).await;
        let last_chunk = envelope.len() - (len % CHUNK + 16);
        let mut places: Vec<_> =
            (0..60).map(|_| random.below(envelope.len() as u64) as usize).collect();
        places.extend([last_chunk, envelope.len() - 1, 62 + 56 + CHUNK + 16]);
        for at in places {
            let mut changed = envelope.clone();
            changed[at] ^= 1 << random.below(8);
            for framing in [Framing::Length, Framing::Chunks(7_000)] {
                let answer = Call { framing, ..Call::decrypt(&changed) }.send(&target).await;
                if answer.status == 200 {
                    assert!(!answer.is_whole, "changed at {at} of {}", envelope.len());
                    assert!(message.starts_with(&answer.body), "changed at {at}");
                    assert!(at >= 62 + 56 + CHUNK + 16, "the start is verified first");
                } else if answer.status == 400 {
                    assert!(at < 62 + 56 + CHUNK + 16, "changed at {at}");
                }
            }
        }
    }
    assert!(ended(&target.service, "decrypt", "invalid_ciphertext").await > 100);
    assert_eq!(ended(&target.service, "decrypt", "ok").await, 0);
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_first() {
    let target = Target::with(Setup::new(), false, &[]).await;
    let mut stream = target.connect().await;
    let head = "POST /v1/stream/encrypt HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                content-type: application/octet-stream\r\nexpect: 100-continue\r\n\
                content-length: 5\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut came = [0; 25];
    stream.read_exact(&mut came).await.unwrap();
    assert_eq!(&came, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let answer = Answer::read(&mut stream).await;
    assert_eq!((answer.status, answer.is_whole, answer.body.len()), (200, true, 139));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_under_the_kek_that_it_began_with() {
    let target = Target::with(Setup::new(), false, &[]).await;
    let message = message(100_000);
    let mut open = Call::encrypt(&message).begin(&target, 50_000).await;
    let old = open.answer_head().await;
    let rotated = target.service.ok("/v1/rotate", json!({})).await;
    let new = target.service.encrypt("default", "aGVsbG8=").await.kek_id();
    let kek = format!("/v1/chains/default/keks/{old}");
    target.service.ok(&format!("{kek}/disable"), json!({})).await;
    let made = open.finish().await;
    assert!(made.is_whole);
    assert_eq!(old, made.header("kms-proxy-kek-id"));
    assert_eq!(rotated["previous"], old);
    assert_ne!(old, new);
    assert_eq!(Call::decrypt(&made.body).send(&target).await.status, 409);
    target.service.ok(&format!("{kek}/enable"), json!({})).await;
    let opened = Call::decrypt(&made.body).send(&target).await;
    assert!(opened.is_whole && opened.body == message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_have_a_limit_and_a_client_that_sends_nothing_loses_its_place() {
    let setup = Setup::new()
        .set("SERVER__MAX_STREAMS", 2)
        .set("SERVER__STREAM_IDLE_TIMEOUT", "2s")
        .set("LOG__LEVEL", "info");
    let target = Target::with(setup, false, &[]).await;
    let message = message(100_000);
    let mut stalled = 0;
    // It is repeated where the streams ended before another one was refused.
    until("a stream that is refused", async || {
        let mut open = Vec::new();
        for _ in 0..2 {
            let mut call = Call::encrypt(&message).begin(&target, 50_000).await;
            call.answer_head().await;
            open.push(call);
        }
        let metrics = target.service.metrics().await;
        let refused = Call::encrypt(b"hello").send(&target).await;
        for call in open {
            let answer = call.read().await;
            assert!(!answer.is_whole, "it ends without its end");
        }
        stalled += 2;
        until("no stream", async || {
            target.service.metrics().await.contains("\nkms_proxy_streams_open 0\n").then_some(())
        })
        .await;
        let is_full = metrics.contains("\nkms_proxy_streams_open 2\n");
        (is_full && refused.status == 429).then(|| {
            assert_eq!(refused.header("retry-after"), "1");
        })
    })
    .await;
    assert_eq!(ended(&target.service, "encrypt", "stalled").await, stalled);
    target.service.logged("\"outcome\":\"stalled\",\"chunk\":3").await;
    until("the places of the streams", async || {
        let answer = Call::encrypt(b"hello").send(&target).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_need_the_permissions_of_the_calls_and_count_as_requests_of_the_client() {
    let setup = Setup::new()
        .set("AUTH__MODE", "required")
        .set("CLIENT__0__NAME", "writer")
        .set("CLIENT__0__TOKEN_SHA256", base16ct::lower::encode_string(&Sha256::digest("writes")))
        .set("CLIENT__0__MAX_IN_FLIGHT", 1)
        .set("CLIENT__0__ALLOW__0__CHAINS", "default")
        .set("CLIENT__0__ALLOW__0__OPERATIONS", "encrypt");
    let target = Target::with(setup, false, &[]).await;
    let token = "authorization: Bearer writes\r\n";
    let none = Call { headers: "", ..Call::encrypt(b"hello") }.send(&target).await;
    assert_eq!(none.status, 401);
    let made = Call { headers: token, ..Call::encrypt(b"hello") }.send(&target).await;
    assert!(made.is_whole);
    let opened = Call { headers: token, ..Call::decrypt(&made.body) }.send(&target).await;
    assert_eq!(opened.status, 403);
    let message = message(100_000);
    let call = Call { headers: token, ..Call::encrypt(&message) };
    let mut open = call.begin(&target, 50_000).await;
    open.answer_head().await;
    let second = Call { headers: token, ..Call::encrypt(b"hello") }.send(&target).await;
    assert_eq!(second.status, 429, "the stream is in flight");
    assert!(open.finish().await.is_whole);
    until("the place of the stream", async || {
        let answer = Call { headers: token, ..Call::encrypt(b"hello") }.send(&target).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_fails_later_has_a_line_in_the_audit_log_with_its_chunk() {
    let setup = Setup::new();
    let file = setup.file("audit.jsonl");
    let setup = setup.set("AUDIT__FILE", file.display()).set("AUDIT__RULE__0__LEVEL", "full");
    let target = Target::with(setup, false, &[]).await;
    let mut envelope = encrypt(&target, &message(100_000)).await;
    envelope[62 + 56 + 3 * (CHUNK + 16)] ^= 1;
    let headers = "kms-proxy-aad: cm93IDc=\r\nx-request-id: changed\r\n";
    let answer = Call { headers, ..Call::decrypt(&envelope) }.send(&target).await;
    assert!(answer.status == 200 && !answer.is_whole);
    let lines = until("two lines of the request", async || {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<_> = lines.filter(|line| line["request_id"] == "changed").collect();
        (lines.len() == 2).then_some(lines)
    });
    let lines = lines.await;
    for line in &lines {
        assert_eq!(line["call"], "POST /v1/stream/decrypt");
        assert_eq!((&line["operation"], &line["chain"]), (&json!("decrypt"), &json!("default")));
        assert_eq!(line["kek_id"], answer.header("kms-proxy-kek-id"));
    }
    assert_eq!(
        (&lines[0]["outcome"], &lines[0]["plaintext_bytes"]),
        (&json!("ok"), &json!(100_000))
    );
    assert_eq!(
        (&lines[1]["outcome"], &lines[1]["chunk"]),
        (&json!("invalid_ciphertext"), &json!(3))
    );
    assert_eq!(lines[1]["plaintext_bytes"], 3 * CHUNK);
    let changed = json!({"aad": lines[0]["aad"].is_string(), "chunk": lines[0]["chunk"]});
    assert_eq!(changed, json!({"aad": true, "chunk": null}));
    // One that fails at its start is an ordinary call.
    for (id, body) in [("no-start", &b"nothing"[..]), ("no-aad", &envelope)] {
        let headers = format!("kms-proxy-chain: default\r\nx-request-id: {id}\r\n");
        let answer = Call { headers: &headers, ..Call::decrypt(body) }.send(&target).await;
        assert_eq!(answer.status, 400);
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let lines: Vec<_> = lines.filter(|line| line["request_id"] == id).collect();
        assert_eq!(lines.len(), 1, "{id}");
        let line = &lines[0];
        let said = [&line["operation"], &line["chain"], &line["outcome"], &line["chunk"]];
        let expected = json!(["decrypt", "default", "invalid_ciphertext", null]);
        assert_eq!(json!(said), expected, "{id}");
    }
}
