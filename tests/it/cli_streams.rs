//! Streams on the command line: `encrypt --stream`, and `decrypt` of versions 3 and 4, against a
//! running service that makes and opens the keys alone.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kms_proxy::envelope::{self, Header};
use reqwest::Method;
use serde_json::json;

use crate::support::{BINARY, Service, Setup, run};

mod files;
mod interop;
mod keys;
mod large;
mod ranges;

const CHUNK: usize = 16 << 10;
/// What precedes the first chunk: salt and commitment.
const PREFIX: usize = 56;
const SEALED_CHUNK: usize = CHUNK + 16;

/// Chains whose envelopes have version 3 and version 4, one of each suite.
const CHAINS: [(&str, u8); 2] = [("default", 3), ("copied", 4)];

/// A service with these chains.
async fn start(setup: &Setup) -> Service {
    let service = setup.start().await;
    let inline = json!({"suite": "aes-256-gcm", "inline": true});
    let (status, _) = service.send(Method::PUT, "/v1/chains/copied", inline).await;
    assert_eq!(status, 201);
    service
}

/// Bytes that no chunk has twice.
fn message(len: usize) -> Vec<u8> {
    (0_u32..).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).take(len).collect()
}

/// A command that calls `service`, as it is to be run.
fn command(service: &Service, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).args(["--server", &service.url()]).env_clear();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A command that calls `service` with a pipe as stdin.
fn call(service: &Service, args: &[&str], input: &[u8]) -> Output {
    let url = service.url();
    run(&[args, &["--server", &url]].concat(), input)
}

/// The same with a file as stdin.
fn call_with(service: &Service, args: &[&str], input: &Path) -> Output {
    command(service, args).stdin(File::open(input).unwrap()).output().unwrap()
}

/// What a command that goes well writes: to stdout alone.
fn good(output: Output) -> Vec<u8> {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*said), (Some(0), ""));
    output.stdout
}

/// What a command that fails says, and what it has written.
fn refused(output: Output, code: i32) -> (String, Vec<u8>) {
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("kms-proxy: ") && said.lines().count() == 1, "{said}");
    (said, output.stdout)
}

/// The length of the header of a stream.
fn header_len(envelope: &[u8]) -> usize {
    Header::split_from(envelope).unwrap().0.bytes.len()
}

#[tokio::test]
async fn data_of_every_length_around_a_chunk_comes_out_as_it_was() {
    let service = start(&Setup::new()).await;
    for (chain, version) in CHAINS {
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 7, 3 << 20] {
            let plaintext = message(len);
            let with = |command: &[&'static str]| {
                [command, &["--chain", chain, "--aad", "row 7"]].concat()
            };
            let envelope = good(call(&service, &with(&["encrypt", "--stream"]), &plaintext));
            let header = header_len(&envelope);
            assert_eq!(envelope[0], version);
            let expected = header + PREFIX + len + 16 * (len / CHUNK + 1);
            assert_eq!(envelope.len(), expected, "{len}");
            assert!(good(call(&service, &with(&["decrypt"]), &envelope)) == plaintext, "{len}");
            // The service opens it as well, and the text form is an envelope like any other.
            if len < 1 << 20 {
                let text = envelope::to_text(&envelope);
                let opened = good(call(&service, &with(&["decrypt"]), text.as_bytes()));
                assert!(opened == plaintext, "{len}");
                let request = json!({"ciphertext": text, "chain": chain, "aad": "cm93IDc="});
                let opened = service.ok("/v1/decrypt", request).await;
                let opened = opened["plaintext"].as_str().unwrap();
                let opened = base64_simd::STANDARD.decode_to_vec(opened).unwrap();
                assert!(opened == plaintext, "{len}");
            }
        }
    }
}

#[tokio::test]
async fn envelopes_that_are_not_streams_are_decrypted_as_before() {
    let service = start(&Setup::new()).await;
    let plaintext = message(2 * CHUNK);
    for (chain, version) in CHAINS {
        for form in [&["--raw"][..], &[]] {
            let args = [&["encrypt", "--chain", chain], form].concat();
            let envelope = good(call(&service, &args, &plaintext));
            if form == ["--raw"] {
                assert_eq!(envelope[0], version - 2);
            }
            let opened = call(&service, &["decrypt", "--chain", chain], &envelope);
            assert!(good(opened) == plaintext);
        }
    }
    for input in [&b""[..], b"no envelope", b"\x01\x01"] {
        let (said, written) = refused(call(&service, &["decrypt"], input), 1);
        assert!(said.contains("invalid_ciphertext: ") && written.is_empty(), "{said}");
    }
}

#[tokio::test]
async fn a_stream_outlives_rotations_and_is_rewrapped() {
    let setup = Setup::new();
    let service = start(&setup).await;
    let plaintext = message(3 * CHUNK);
    for (chain, version) in CHAINS {
        let with = |args: &[&'static str]| [args, &["--chain", chain]].concat();
        let envelope = good(call(&service, &with(&["encrypt", "--stream"]), &plaintext));
        good(call(&service, &with(&["rotate"]), b""));
        assert!(good(call(&service, &with(&["decrypt"]), &envelope)) == plaintext);
        let rewrapped = good(call(&service, &with(&["rewrap", "--raw"]), &envelope));
        assert_eq!(rewrapped[0], version);
        assert_ne!(rewrapped[..header_len(&rewrapped)], envelope[..header_len(&envelope)]);
        assert!(good(call(&service, &with(&["decrypt"]), &rewrapped)) == plaintext);
        // The payload is copied, whatever the limit of memory is.
        let little = with(&["rewrap", "--raw", "--max-size", "1KiB"]);
        let file = setup.file("old.kp");
        std::fs::write(&file, &envelope).unwrap();
        for moved in
            [call(&service, &little, &envelope), call_with(&service, &little, &file)].map(good)
        {
            assert!(moved[header_len(&moved)..] == envelope[header_len(&envelope)..]);
            assert!(good(call(&service, &with(&["decrypt"]), &moved)) == plaintext);
        }
        let header = &envelope[..header_len(&envelope)];
        assert_eq!(good(call(&service, &little, header)).len(), header.len());
    }
}

#[tokio::test]
async fn what_was_verified_before_a_cut_is_written() {
    let service = start(&Setup::new()).await;
    let plaintext = message(200 * CHUNK);
    let envelope = good(call(&service, &["encrypt", "--stream"], &plaintext));
    let cut = &envelope[..150 * SEALED_CHUNK];
    let (said, written) = refused(call(&service, &["decrypt"], cut), 1);
    assert!(said.contains("what was written before is authentic, but not complete"), "{said}");
    assert!(written.len() >= 64 * CHUNK, "{} bytes", written.len());
    assert_verified(&written, &plaintext, 149 * CHUNK, "cut");
}

/// What was written before a failure is a whole number of chunks of the plaintext.
fn assert_verified(written: &[u8], plaintext: &[u8], most: usize, what: &str) {
    assert!(plaintext.starts_with(written), "{what}");
    assert!(written.len() <= most && written.len().is_multiple_of(CHUNK), "{what}");
}

#[tokio::test]
async fn a_cut_or_changed_stream_fails_and_nothing_unverified_is_written() {
    let service = start(&Setup::new()).await;
    let plaintext = message(4 * CHUNK + 100);
    for (chain, _) in CHAINS {
        let envelope = good(call(&service, &["encrypt", "--stream", "--chain", chain], &plaintext));
        let decrypt = |bytes: &[u8]| {
            let output = call(&service, &["decrypt", "--chain", chain], bytes);
            let (said, written) = refused(output, 1);
            let codes = ["invalid_ciphertext: ", "unknown_kek: ", "root_unavailable: "];
            assert!(codes.iter().any(|code| said.contains(code)), "{said}");
            (said, written)
        };
        let header = header_len(&envelope);
        let start = header + PREFIX;
        let chunk = |index: usize| start + index * SEALED_CHUNK;
        let ends = [chunk(1), chunk(2), chunk(4)].map(|end| [end - 1, end, end + 1]);
        let cuts = [1, 17, header - 1, header, header + 24, start, start + 16, envelope.len() - 1];
        for len in cuts.into_iter().chain(ends.into_iter().flatten()) {
            let (said, written) = decrypt(&envelope[..len]);
            let most = len.saturating_sub(start) / SEALED_CHUNK * CHUNK;
            assert_verified(&written, &plaintext, most, &format!("cut to {len}"));
            if len > chunk(1) {
                assert!(said.contains("was cut or changed"), "{said}");
            }
        }
        let within = [0, 1, 5, 20, header - 1, header, header + 30, start - 1];
        let chunks = [chunk(0), chunk(0) + 9_000, chunk(1) - 1, chunk(2), chunk(4), chunk(4) + 99];
        for at in within.into_iter().chain(chunks).chain([envelope.len() - 1]) {
            let mut changed = envelope.clone();
            changed[at] ^= 0x10;
            let (_, written) = decrypt(&changed);
            let most = at.saturating_sub(start) / SEALED_CHUNK * CHUNK;
            assert_verified(&written, &plaintext, most, &format!("changed at {at}"));
        }
        let longer = [&envelope[..], b"x"].concat();
        assert_verified(&decrypt(&longer).1, &plaintext, 4 * CHUNK, "longer");
        let mut swapped = envelope.clone();
        let (one, two) = swapped[chunk(1)..].split_at_mut(SEALED_CHUNK);
        one.swap_with_slice(&mut two[..SEALED_CHUNK]);
        assert_verified(&decrypt(&swapped).1, &plaintext, CHUNK, "swapped");

        let other = call(&service, &["decrypt", "--chain", chain, "--aad", "x"], &envelope);
        let (said, written) = refused(other, 1);
        assert!(said.contains("invalid_ciphertext: ") && written.is_empty(), "{said}");
        let elsewhere = if chain == "default" { "copied" } else { "default" };
        let other = call(&service, &["decrypt", "--chain", elsewhere], &envelope);
        assert!(refused(other, 1).1.is_empty());
    }
}

#[tokio::test]
async fn a_reader_that_stops_early_and_inputs_that_fail_have_their_messages() {
    let setup = Setup::new();
    let service = start(&setup).await;
    let envelope = good(call(&service, &["encrypt", "--stream"], &message(4 << 20)));
    let file = setup.file("big.kp");
    std::fs::write(&file, &envelope).unwrap();
    for args in [["encrypt", "--stream"].as_slice(), &["decrypt"]] {
        let mut child = command(&service, args).stdin(File::open(&file).unwrap()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(1), &b""[..]), "{args:?}");

        let directory = call_with(&service, args, setup.file("").as_path());
        let (said, _) = refused(directory, 1);
        assert!(said.contains("can't read stdin: Is a directory"), "{said}");
    }
    let mut full = command(&service, &["decrypt"]);
    full.stdin(File::open(&file).unwrap()).stdout(File::create("/dev/full").unwrap());
    let (said, _) = refused(full.output().unwrap(), 1);
    assert!(said.contains("can't write to stdout: No space left"), "{said}");
}
