//! `decrypt --range`: any part of a plaintext, and nothing else is read.

use super::*;
use crate::support::random::Random;

/// A service, a plaintext, and its envelope in a file.
async fn world(setup: &Setup, chain: &str, len: usize) -> (Service, Vec<u8>, Vec<u8>) {
    let service = start(setup).await;
    let plaintext = message(len);
    let envelope = good(call(&service, &["encrypt", "--stream", "--chain", chain], &plaintext));
    std::fs::write(setup.file("big.kp"), &envelope).unwrap();
    (service, plaintext, envelope)
}

#[tokio::test]
async fn a_part_is_decrypted_wherever_it_is() {
    for (chain, _) in CHAINS {
        let setup = Setup::new();
        let (service, plaintext, envelope) = world(&setup, chain, 600_000).await;
        let file = setup.file("big.kp");
        let part = |range: &str| {
            let args = ["decrypt", "--chain", chain, "--range", range];
            good(call_with(&service, &args, &file))
        };
        let mut random = Random(7);
        for _ in 0..15 {
            let mut ends = [0; 2].map(|_| random.below(plaintext.len() as u64 + 1) as usize);
            ends.sort_unstable();
            let [start, end] = ends;
            assert!(part(&format!("{start}-{end}")) == plaintext[start..end], "{start}-{end}");
        }
        for (range, start, end) in [
            ("0-", 0, 600_000),
            ("16K-32K", CHUNK, 2 * CHUNK),
            ("16383-16385", CHUNK - 1, CHUNK + 1),
            ("500K-1G", 512_000, 600_000),
            ("599999-", 599_999, 600_000),
            ("600000-", 600_000, 600_000),
            ("7-7", 7, 7),
        ] {
            assert!(part(range) == plaintext[start..end], "{range}");
        }
        let args = ["decrypt", "--chain", chain, "--range", "600001-"];
        let (said, written) = refused(call_with(&service, &args, &file), 1);
        assert!(said.contains("which has 600000 bytes") && written.is_empty(), "{said}");
        let (said, written) = refused(call(&service, &args, &envelope), 2);
        assert!(said.contains("a pipe can't be read from the middle"), "{said}");
        assert!(written.is_empty());
        // In its text form, and whole, an envelope is in memory anyway.
        let args = ["decrypt", "--chain", chain, "--range", "16383-40000"];
        let text = envelope::to_text(&envelope);
        let whole = good(call(&service, &["encrypt", "--chain", chain], &plaintext));
        for input in [text.as_bytes(), &whole] {
            assert!(good(call(&service, &args, input)) == plaintext[16_383..40_000]);
        }
        let args = ["decrypt", "--chain", chain, "--range", "600001-"];
        let (said, _) = refused(call(&service, &args, &whole), 1);
        assert!(said.contains("which has 600000 bytes"), "{said}");
    }
}

/// An envelope that begins within a file is read from there.
#[tokio::test]
async fn a_range_counts_from_where_stdin_is() {
    let setup = Setup::new();
    let (service, plaintext, envelope) = world(&setup, "default", 100_000).await;
    let file = setup.file("archive");
    std::fs::write(&file, [&b"before"[..], &envelope].concat()).unwrap();
    let mut stdin = File::open(&file).unwrap();
    std::io::Seek::seek(&mut stdin, std::io::SeekFrom::Start(6)).unwrap();
    let output = command(&service, &["decrypt", "--range", "50000-50100"]).stdin(stdin).output();
    assert!(good(output.unwrap()) == plaintext[50_000..50_100]);
}

#[tokio::test]
async fn damage_matters_only_within_the_part_and_at_the_end() {
    let setup = Setup::new();
    let (service, plaintext, envelope) = world(&setup, "default", 10 * CHUNK + 5).await;
    let start = header_len(&envelope) + PREFIX;
    let file = setup.file("damaged.kp");
    let decrypt = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        call_with(&service, &["decrypt", "--range", "64K-112K"], &file)
    };
    let changed = |chunk: usize| {
        let mut changed = envelope.clone();
        changed[start + chunk * SEALED_CHUNK + 4] ^= 1;
        changed
    };
    for chunk in [0, 3, 7, 9] {
        assert!(good(decrypt(&changed(chunk))) == plaintext[4 * CHUNK..7 * CHUNK], "{chunk}");
    }
    // The chunks before the damage are verified, and the last one is, before all others.
    for (chunk, written) in [(4, 0), (5, 1), (6, 2), (10, 0)] {
        let (said, out) = refused(decrypt(&changed(chunk)), 1);
        assert!(said.contains("was cut or changed"), "{said}");
        assert!(out == plaintext[4 * CHUNK..(4 + written) * CHUNK], "{chunk}");
    }
    for len in [envelope.len() - 1, start + 10 * SEALED_CHUNK, start + 3 * SEALED_CHUNK] {
        let (said, out) = refused(decrypt(&envelope[..len]), 1);
        assert!(said.contains("was cut or changed") && out.is_empty(), "{said}");
    }
}
