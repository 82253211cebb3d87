//! Uploads that break off, at every kind of place: none is ever sealed as complete, and of an
//! envelope that breaks off no more than its verified start is sent.

use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::limits::{Stream, Target};
use crate::support::{Setup, until};

use super::wire::{Call, Framing};
use super::{CHUNK, encrypt, ended, message};

/// More than three chunks, of which the last one is short.
const LEN: usize = 3 * CHUNK + 1_000;

/// The places at which an upload is cut: the start, the borders of chunks of both kinds, what
/// frames them, and the end.
fn places(wire: &[u8], framing: Framing) -> Vec<usize> {
    let mut places = vec![0, 1, 2, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK];
    if let Framing::Chunks(size) = framing {
        let start = format!("{size:x}\r\n").len();
        let next = start + size + 2;
        for at in [0, next, 2 * next] {
            let data = at + start;
            places.extend([at + 1, data - 2, data - 1, data, data + 1]);
            places.extend([data + size - 1, data + size, data + size + 1, data + size + 2]);
        }
    }
    // The last chunk of HTTP/1.1 has five bytes: no part of them is an end.
    places.extend((1..=8).map(|left| wire.len() - left));
    places.sort_unstable();
    places.dedup();
    places
}

/// Whether the service opens it.
pub(super) async fn opens(target: &Target, envelope: &[u8]) -> bool {
    let request = target.service.request(Method::POST, "/v1/stream/decrypt");
    let request = request.header("content-type", "application/octet-stream");
    let request = request.header("kms-proxy-aad", "cm93IDc=").body(envelope.to_vec());
    let response = request.send().await.unwrap();
    response.status() == 200 && response.bytes().await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_cut_is_never_sealed_as_complete() {
    for with_tls in [false, true] {
        let target = Target::with(Setup::new(), with_tls, &[]).await;
        let message = message(LEN);
        let (mut cuts, mut begun) = (0, 0);
        for framing in [Framing::Length, Framing::Chunks(10_000), Framing::Chunks(CHUNK)] {
            let call = Call { framing, ..Call::encrypt(&message) };
            for at in places(&call.wire(), framing) {
                let answer = call.cut(&target, at).await;
                assert!(answer.status != 200 || !answer.is_whole, "{framing:?} cut at {at}");
                if answer.status == 200 {
                    begun += 1;
                    assert!(!opens(&target, &answer.body).await, "{framing:?} cut at {at}");
                }
                cuts += 1;
            }
        }
        assert!(cuts > 80 && begun > 40, "{cuts} cuts, {begun} responses began");
        assert_eq!(ended(&target.service, "encrypt", "ok").await, 0);
        until("every stream that began is counted as aborted", async || {
            (ended(&target.service, "encrypt", "aborted").await >= begun).then_some(())
        })
        .await;
        until("no stream is left", async || {
            target.service.metrics().await.contains("\nkms_proxy_streams_open 0\n").then_some(())
        })
        .await;
    }
}

/// A body that is framed wrongly does not end, whatever follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_whose_chunks_are_malformed_is_never_sealed_as_complete() {
    let target = Target::with(Setup::new(), false, &[]).await;
    let data = vec![7; 40_000];
    for wrong in ["x\r\n", "\r\n", "-1\r\n", "0\r\nx", "0\rx\r\n", "fffffffffffffffff\r\n"] {
        let call = Call { framing: Framing::Chunks(40_000), ..Call::encrypt(&data) };
        let mut begun = call.begin(&target, call.wire().len() - 5).await;
        // What the service refuses it need not read.
        _ = begun.writer.write_all(wrong.as_bytes()).await;
        _ = begun.writer.shutdown().await;
        let answer = begun.read().await;
        assert!(answer.status == 200 && !answer.is_whole, "{wrong:?}: {answer:?}");
    }
    assert_eq!(ended(&target.service, "encrypt", "ok").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_its_connection_ends_the_stream() {
    let target = Target::with(Setup::new(), false, &[]).await;
    let message = message(LEN);
    for framing in [Framing::Length, Framing::Chunks(10_000)] {
        let call = Call { framing, ..Call::encrypt(&message) };
        let socket = tokio::net::TcpStream::connect(target.service.address()).await.unwrap();
        socket.set_zero_linger().unwrap();
        let mut stream: Box<dyn Stream> = Box::new(socket);
        stream.write_all(call.head().as_bytes()).await.unwrap();
        let wire = call.wire();
        stream.write_all(&wire[..wire.len() - 1]).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    until("both are aborted", async || {
        (ended(&target.service, "encrypt", "aborted").await == 2).then_some(())
    })
    .await;
    assert_eq!(ended(&target.service, "encrypt", "ok").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_that_is_cut_gives_its_verified_start_and_an_aborted_response() {
    for with_tls in [false, true] {
        let target = Target::with(Setup::new(), with_tls, &[]).await;
        for len in [LEN, 2 * CHUNK, 500] {
            let message = message(len);
            let envelope = encrypt(&target, &message).await;
            // The upload is cut.
            for framing in [Framing::Length, Framing::Chunks(10_000)] {
                let call = Call { framing, ..Call::decrypt(&envelope) };
                let wire = call.wire();
                for at in places(&wire, framing).into_iter().filter(|at| *at < wire.len()) {
                    let answer = call.cut(&target, at).await;
                    if answer.status == 200 && answer.is_whole {
                        panic!("{len}, {framing:?} cut at {at}");
                    }
                    let is_start = message.starts_with(&answer.body);
                    assert!(answer.status != 200 || is_start, "{len}, {framing:?} cut at {at}");
                }
            }
            // The upload is whole, and the envelope is not.
            let chunk = |number: usize| 62 + 56 + number * (CHUNK + 16);
            let mut places = vec![0, 1, 61, 62, 62 + 24, 62 + 56, 62 + 56 + 1, envelope.len() - 1];
            places.extend([chunk(1), chunk(2), chunk(3), chunk(3) + 10, chunk(1) - 1]);
            for at in places.into_iter().filter(|at| *at < envelope.len()) {
                for framing in [Framing::Length, Framing::Chunks(5_000)] {
                    let call = Call { framing, ..Call::decrypt(&envelope[..at]) };
                    let answer = call.send(&target).await;
                    assert!(answer.status != 200 || !answer.is_whole, "{len} cut at {at}");
                    let is_start = message.starts_with(&answer.body);
                    assert!(answer.status != 200 || is_start, "{len} cut at {at}");
                    if let Some(length) = answer.length
                        && answer.status == 200
                    {
                        assert!(length > answer.body.len(), "{len} cut at {at}: bytes are missing");
                    }
                }
            }
        }
        assert_eq!(ended(&target.service, "decrypt", "ok").await, 0);
    }
}
