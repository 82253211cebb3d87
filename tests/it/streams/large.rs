//! Streams that are larger than the memory of the service may be. `make soak` sets their sizes:
//! `KMS_PROXY_STREAM_BYTES` of one, `KMS_PROXY_STREAMS_BYTES` of each of many.

use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::lifecycle::memory_kb;
use crate::limits::Target;
use crate::support::random::variable;
use crate::support::{Service, Setup, tell, until};

use super::wire::read_head;
use super::{CHUNK, ended};

/// The size of one stream, which is larger than all memory of the service.
fn large() -> u64 {
    variable("KMS_PROXY_STREAM_BYTES").unwrap_or(128 << 20)
}

/// The size of each of many.
fn each() -> u64 {
    variable("KMS_PROXY_STREAMS_BYTES").unwrap_or(4 << 20)
}

const MAX_PEAK_KB: u64 = 64 << 10;
const MANY: usize = 50;
const MAX_PEAK_OF_MANY_KB: u64 = 200 << 10;
const BLOCK: usize = 64 << 10;

/// Fills `block` with the bytes of the message at `at`.
fn fill(at: u64, block: &mut [u8]) {
    for (i, word) in block.chunks_exact_mut(8).enumerate() {
        let word_at = at / 8 + i as u64;
        word.copy_from_slice(&word_at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

fn head(path: &str, framing: &str) -> String {
    format!(
        "POST /v1/stream/{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/octet-stream\r\n{framing}\r\n\r\n"
    )
}

/// Encrypts `len` bytes, sends what comes to be decrypted, and compares what comes of that, all
/// at the same time.
async fn there_and_back(target: &Target, len: u64) {
    let (mut sealed, mut plain) = tokio::io::split(target.connect().await);
    let sending = async {
        let head = head("encrypt", &format!("content-length: {len}"));
        plain.write_all(head.as_bytes()).await.unwrap();
        let mut block = vec![0; BLOCK];
        for at in (0..len).step_by(BLOCK) {
            fill(at, &mut block);
            plain.write_all(&block).await.unwrap();
        }
        plain.flush().await.unwrap();
    };
    let (mut opened, mut back) = tokio::io::split(target.connect().await);
    let passing = async {
        let (answer, first) = read_head(&mut sealed).await;
        assert_eq!(answer.status, 200);
        let length = answer.length.expect("it follows from the other") as u64;
        assert_eq!(length, 62 + 56 + len + (len / CHUNK as u64 + 1) * 16);
        let head = head("decrypt", &format!("content-length: {length}"));
        back.write_all(head.as_bytes()).await.unwrap();
        back.write_all(&first).await.unwrap();
        let passed = tokio::io::copy(&mut sealed, &mut back).await.unwrap();
        back.flush().await.unwrap();
        assert_eq!(passed + first.len() as u64, length);
    };
    let comparing = async {
        let (answer, mut came) = read_head(&mut opened).await;
        assert_eq!((answer.status, answer.length), (200, Some(usize::try_from(len).unwrap())));
        let (mut block, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
        for at in (0..len).step_by(BLOCK) {
            let first = came.split_off(came.len().min(BLOCK));
            let first = std::mem::replace(&mut came, first);
            block[..first.len()].copy_from_slice(&first);
            let read = opened.read_exact(&mut block[first.len()..]).await;
            read.unwrap_or_else(|error| panic!("it ends at {at}: {error}"));
            fill(at, &mut expected);
            assert!(block == expected, "other bytes at {at}");
        }
        assert!(came.is_empty() && opened.read(&mut block).await.unwrap() == 0);
    };
    tokio::join!(sending, passing, comparing);
}

/// The seconds of processor time of the service.
fn cpu(service: &Service) -> f64 {
    let path = format!("/proc/{}/stat", service.pid().as_raw_nonzero());
    let stat = std::fs::read_to_string(path).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u32 = [fields[11], fields[12]].map(|it| it.parse::<u32>().unwrap()).iter().sum();
    f64::from(ticks) / 100.0
}

/// Prints what it took to move `bytes` both ways, and checks the memory.
fn check(service: &Service, started: Instant, bytes: u64, what: &str, max_peak_kb: u64) {
    let (elapsed, cpu) = (started.elapsed().as_secs_f64(), cpu(service));
    let peak = memory_kb(service, "VmHWM:");
    #[expect(clippy::cast_precision_loss, reason = "it is printed")]
    let gigabytes = 2.0 * bytes as f64 / 1e9;
    let (speed, each) = (gigabytes / elapsed, cpu / gigabytes);
    tell(&format!(
        "{what}: {bytes} bytes there and back in {elapsed:.1} s, {speed:.2} GB/s of plaintext, \
         {each:.2} s of CPU for a GB, {peak} kB at most"
    ));
    assert!(peak < max_peak_kb, "{what}: {peak} kB");
}

async fn all_are_complete(service: &Service, count: u64) {
    until("all are counted", async || {
        let counts = [ended(service, "encrypt", "ok").await, ended(service, "decrypt", "ok").await];
        (counts == [count, count]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_stream_passes_both_ways_in_little_memory() {
    let len = large();
    for with_tls in [false, true] {
        let target = Target::with(Setup::new(), with_tls, &[]).await;
        let started = Instant::now();
        there_and_back(&target, len).await;
        let what = format!("one stream, TLS {with_tls}");
        check(&target.service, started, len, &what, MAX_PEAK_KB);
        all_are_complete(&target.service, 1).await;
        let bytes = format!("kms_proxy_stream_bytes_total{{operation=\"decrypt\"}} {len}\n");
        assert!(target.service.metrics().await.contains(&bytes));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_the_same_time_take_little_memory() {
    let len = each();
    for with_tls in [false, true] {
        let target = Arc::new(Target::with(Setup::new(), with_tls, &[]).await);
        let started = Instant::now();
        let mut pairs = JoinSet::new();
        for _ in 0..MANY / 2 {
            let target = Arc::clone(&target);
            pairs.spawn(async move { there_and_back(&target, len).await });
        }
        pairs.join_all().await;
        let (all, what) = (len * MANY as u64 / 2, format!("{MANY} streams, TLS {with_tls}"));
        check(&target.service, started, all, &what, MAX_PEAK_OF_MANY_KB);
        all_are_complete(&target.service, MANY as u64 / 2).await;
    }
}

/// As a user has it: nothing knows the length, and nothing is on a disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_sends_and_receives_streams_of_any_length() {
    let len = large() + 1;
    for (with_tls, options) in [(false, ""), (true, "--http1.1 -k"), (true, "--http2 -k")] {
        let target = Target::with(Setup::new(), with_tls, &[]).await;
        let url = target.service.url();
        let curl = |path: &str| {
            format!(
                "curl -sSf --noproxy '*' {options} -X POST -T - -H 'expect:' \
                 -H 'content-type: application/octet-stream' {url}/v1/stream/{path}"
            )
        };
        let (to, back) = (curl("encrypt"), curl("decrypt"));
        let zeros = format!("head -c {len} /dev/zero");
        let script = format!("set -o pipefail; {zeros} | {to} | {back} | cmp - <({zeros})");
        let started = Instant::now();
        let output = Command::new("bash").args(["-c", &script]).output().await.unwrap();
        assert!(output.status.success(), "{options}: {output:?}");
        let what = format!("curl {options}");
        check(&target.service, started, len, &what, MAX_PEAK_KB);
        all_are_complete(&target.service, 1).await;
    }
}
