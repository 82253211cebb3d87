//! Streams that are larger than the memory of the service may be, and clients that are slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;

use crate::lifecycle::{memory_kb, resident_kb};
use crate::limits::Target;
use crate::support::{Setup, tell, until};

use super::wire::{Answer, Call, Framing, read_head};
use super::{CHUNK, encrypt, ended, message};

const LARGE: u64 = 300 << 20;
const MAX_PEAK_KB: u64 = 64 << 10;
const BLOCK: usize = 64 << 10;

/// The bytes of the message at `at`.
fn block(at: u64, len: usize) -> Vec<u8> {
    (0..len as u64 / 8)
        .flat_map(|i| (at / 8 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

fn head(path: &str, framing: &str) -> String {
    format!(
        "POST /v1/stream/{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/octet-stream\r\n{framing}\r\n\r\n"
    )
}

/// Encrypts [`LARGE`] bytes, sends what comes to be decrypted, and compares what comes of that, all
/// at the same time.
async fn there_and_back(target: &Target) {
    let (mut sealed, mut plain) = tokio::io::split(target.connect().await);
    let sending = async {
        let head = head("encrypt", &format!("content-length: {LARGE}"));
        plain.write_all(head.as_bytes()).await.unwrap();
        for at in (0..LARGE).step_by(BLOCK) {
            plain.write_all(&block(at, BLOCK)).await.unwrap();
        }
        plain.flush().await.unwrap();
    };
    let (mut opened, mut back) = tokio::io::split(target.connect().await);
    let passing = async {
        let (answer, first) = read_head(&mut sealed).await;
        assert_eq!(answer.status, 200);
        let length = answer.length.expect("it follows from the other") as u64;
        assert_eq!(length, 62 + 56 + LARGE + (LARGE / CHUNK as u64 + 1) * 16);
        let head = head("decrypt", &format!("content-length: {length}"));
        back.write_all(head.as_bytes()).await.unwrap();
        back.write_all(&first).await.unwrap();
        let passed = tokio::io::copy(&mut sealed, &mut back).await.unwrap();
        back.flush().await.unwrap();
        assert_eq!(passed + first.len() as u64, length);
    };
    let comparing = async {
        let (answer, mut came) = read_head(&mut opened).await;
        assert_eq!((answer.status, answer.length), (200, Some(usize::try_from(LARGE).unwrap())));
        for at in (0..LARGE).step_by(BLOCK) {
            while came.len() < BLOCK {
                assert!(opened.read_buf(&mut came).await.unwrap() > 0, "it ends at {at}");
            }
            let rest = came.split_off(BLOCK);
            assert!(came == block(at, BLOCK), "other bytes at {at}");
            came = rest;
        }
        assert!(came.is_empty());
    };
    tokio::join!(sending, passing, comparing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_megabytes_pass_both_ways_in_little_memory() {
    for with_tls in [false, true] {
        let target = Target::with(Setup::new(), with_tls, &[]).await;
        let started = Instant::now();
        there_and_back(&target).await;
        let peak = memory_kb(&target.service, "VmHWM:");
        tell(&format!(
            "a stream of {LARGE} bytes there and back, TLS {with_tls}: {peak} kB at most, {:.1} s",
            started.elapsed().as_secs_f64()
        ));
        assert!(peak < MAX_PEAK_KB, "{peak} kB");
        until("both are counted", async || {
            let counts = [
                ended(&target.service, "encrypt", "ok").await,
                ended(&target.service, "decrypt", "ok").await,
            ];
            (counts == [1, 1]).then_some(())
        })
        .await;
        let bytes = format!("kms_proxy_stream_bytes_total{{operation=\"decrypt\"}} {LARGE}\n");
        assert!(target.service.metrics().await.contains(&bytes));
    }
}

/// A connection for which the kernel keeps little: some megabytes, most of them on the other side.
async fn narrow(target: &Target) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(256 << 10).unwrap();
    socket.set_send_buffer_size(256 << 10).unwrap();
    socket.connect(target.service.address()).await.unwrap()
}

/// Sends a body until no more of it is taken for a while; how much was.
async fn fill(target: Arc<Target>, body: Arc<Vec<u8>>) -> (OwnedReadHalf, OwnedWriteHalf, usize) {
    let (reader, mut writer) = narrow(&target).await.into_split();
    writer.write_all(Call::encrypt(&body).head().as_bytes()).await.unwrap();
    let mut sent = 0;
    let a_while = Duration::from_millis(500);
    while let Ok(more) = tokio::time::timeout(a_while, writer.write(&body[sent..])).await {
        sent += more.unwrap();
        assert!(sent < body.len(), "all of it is taken, and nothing was read");
    }
    (reader, writer, sent)
}

/// A client that does not read is not read from: it can send what the buffers have room for, and no
/// more; then its stream goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_occupy_little_and_can_go_on() {
    const STREAMS: usize = 40;
    const LEN: usize = 24 << 20;
    let target = Arc::new(Target::with(Setup::new(), false, &[]).await);
    encrypt(&target, &message(100_000)).await;
    let before = resident_kb(&target.service);
    let body = Arc::new(message(LEN));
    let mut filling = JoinSet::new();
    for _ in 0..STREAMS {
        filling.spawn(fill(Arc::clone(&target), Arc::clone(&body)));
    }
    let waiting = filling.join_all().await;
    let grown = memory_kb(&target.service, "VmHWM:").saturating_sub(before);
    let sent: usize = waiting.iter().map(|(.., sent)| sent).sum();
    tell(&format!("{STREAMS} streams that are not read: {grown} kB more, {sent} bytes were sent"));
    assert!(grown < STREAMS as u64 * 256, "{grown} kB");
    for (mut reader, mut writer, sent) in waiting.into_iter().take(2) {
        let sending = async { writer.write_all(&body[sent..]).await.unwrap() };
        let mut came = Vec::new();
        let ((), read) = tokio::join!(sending, reader.read_to_end(&mut came));
        read.unwrap();
        assert!(Answer::parse(&came).unwrap().is_whole);
    }
}

/// A stream may last longer than `server.request_timeout`, `server.idle_timeout` and
/// `server.stream_idle_timeout`, as long as something comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_writer_and_a_slow_reader_are_not_cut() {
    for with_tls in [false, true] {
        let setup = Setup::new()
            .set("SERVER__REQUEST_TIMEOUT", "4s")
            .set("SERVER__IDLE_TIMEOUT", "1s")
            .set("SERVER__STREAM_IDLE_TIMEOUT", "1s");
        let target = Target::with(setup, with_tls, &[]).await;
        let body = message(100_000);
        let envelope = encrypt(&target, &body).await;
        let call = Call { framing: Framing::Length, ..Call::decrypt(&envelope) };
        // Idle connections are cut 5 s after the time-out.
        let slow = async {
            let (mut reader, mut writer) = tokio::io::split(target.connect().await);
            writer.write_all(call.head().as_bytes()).await.unwrap();
            let sending = async {
                for piece in envelope.chunks(envelope.len() / 32) {
                    writer.write_all(piece).await.unwrap();
                    writer.flush().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            };
            let mut came = Vec::new();
            let (read, ()) = tokio::join!(reader.read_to_end(&mut came), sending);
            read.unwrap();
            Answer::parse(&came).unwrap()
        };
        let started = Instant::now();
        let answer = slow.await;
        assert!(answer.is_whole && answer.body == body, "TLS {with_tls}");
        assert!(started.elapsed() > Duration::from_secs(8));
    }
    let setup =
        Setup::new().set("SERVER__IDLE_TIMEOUT", "1s").set("SERVER__STREAM_IDLE_TIMEOUT", "1s");
    let target = Target::with(setup, false, &[]).await;
    let body = message(24 << 20);
    let call = Call::encrypt(&body);
    let (mut reader, mut writer) = narrow(&target).await.into_split();
    writer.write_all(call.head().as_bytes()).await.unwrap();
    let sending = async { writer.write_all(&body).await.unwrap() };
    let reading = async {
        let (started, mut came) = (Instant::now(), Vec::new());
        while started.elapsed() < Duration::from_secs(9) {
            let mut some = [0; 4096];
            let len = reader.read(&mut some).await.unwrap();
            came.extend_from_slice(&some[..len]);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(came.len() < 12 << 20, "the reader was slow");
        reader.read_to_end(&mut came).await.unwrap();
        Answer::parse(&came).unwrap()
    };
    let ((), answer) = tokio::join!(sending, reading);
    assert!(answer.is_whole);
}
