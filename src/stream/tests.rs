//! Envelopes in chunks, by all the ways of this module.

use std::io::{Cursor, ErrorKind, SeekFrom};

use proptest::prelude::*;

use super::*;
use crate::envelope::{Envelope, Version};
use crate::id::{ChainName, Suite};

const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();
const LENS: [usize; 9] = [0, 1, 16, 16_383, 16_384, 16_385, 32_768, 32_773, 1 << 20];

fn chain(suite: Suite) -> KeyChain {
    KeyChain::generate(ChainName::new("orders").unwrap(), suite).unwrap()
}

fn message(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn seal(chain: &KeyChain, message: &[u8], aad: &[u8]) -> Vec<u8> {
    let mut writer = seal_to(chain, Vec::new(), aad).unwrap();
    writer.write_all(message).unwrap();
    writer.finish().unwrap()
}

fn open(chain: &KeyChain, envelope: &[u8], aad: &[u8]) -> Result<Vec<u8>, Error> {
    let mut opened = Vec::new();
    open_from(chain, envelope, aad)?.read_to_end(&mut opened)?;
    Ok(opened)
}

fn is_invalid<T>(result: Result<T, Error>) -> bool {
    match result {
        Ok(_) => false,
        Err(Error::Io(error)) => error.kind() == ErrorKind::InvalidData,
        Err(error) => matches!(error, Error::Decrypt(DecryptError::Invalid)),
    }
}

/// Whether every way refuses it.
fn all_refuse(chain: &KeyChain, envelope: &[u8], aad: &[u8]) -> bool {
    let random = open_random(chain, Cursor::new(envelope), aad)
        .and_then(|mut reader| Ok(reader.read_to_end(&mut Vec::new())?));
    is_invalid(open(chain, envelope, aad))
        && is_invalid(random)
        && is_invalid(open_parallel(chain, envelope, io::sink(), aad, THREADS))
        && chain.decrypt(envelope, aad).is_err_and(|error| error == DecryptError::Invalid)
}

#[test]
fn what_one_way_seals_every_way_opens() {
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        let chain = chain(suite);
        for len in LENS {
            let message = message(len);
            let mut sealed = Vec::new();
            let total = seal_parallel(&chain, &*message, &mut sealed, b"row 7", THREADS);
            assert_eq!(total.unwrap(), len as u64);
            for envelope in [seal(&chain, &message, b"row 7"), sealed] {
                let parsed = Envelope::parse(&envelope).unwrap();
                assert_eq!(parsed.header.version, Version::StoredStream);
                assert_eq!(parsed.plaintext_len(), Some(len));
                assert!(open(&chain, &envelope, b"row 7").unwrap() == message);
                let decrypted = chain.decrypt(&envelope, b"row 7").unwrap();
                assert!(decrypted.as_slice() == message);
                let mut opened = Vec::new();
                let total = open_parallel(&chain, &*envelope, &mut opened, b"row 7", THREADS);
                assert!(total.unwrap() == len as u64 && opened == message);
            }
        }
    }
}

#[test]
fn a_part_is_read_from_an_envelope_within_a_file() {
    let chain = chain(Suite::Aes256Gcm);
    let message = message(50_000);
    let mut file = Cursor::new([b"before".to_vec(), seal(&chain, &message, b"")].concat());
    file.set_position(6);
    let mut reader = open_random(&chain, file, b"").unwrap();
    assert_eq!(reader.len(), 50_000);
    let mut part = [0; 20_000];
    reader.seek(SeekFrom::Start(16_000)).unwrap();
    reader.read_exact(&mut part).unwrap();
    assert!(part == message[16_000..36_000]);
}

#[test]
fn another_aad_chain_or_version_does_not_open() {
    let ours = chain(Suite::Aes128Gcm);
    let envelope = seal(&ours, &message(20_000), b"row 7");
    for aad in [&b""[..], b"row 8", b"row 7\0", &[0; 65_537]] {
        assert!(all_refuse(&ours, &envelope, aad));
    }
    assert!(matches!(seal_to(&ours, io::sink(), &[0; 65_537]), Err(Error::Encrypt(_))));
    let other = chain(Suite::Aes128Gcm);
    let result = open_from(&other, &*envelope, b"row 7").map(drop);
    assert!(matches!(result, Err(Error::Decrypt(DecryptError::UnknownKek(_)))));
    // A message of version 1 is never a stream.
    let message = ours.encrypt(&[7; 100], b"row 7").unwrap();
    assert!(is_invalid(open(&ours, &message, b"row 7")));
}

#[test]
fn a_stream_opens_under_a_rewrapped_header() {
    let mut chain = chain(Suite::Aes128Gcm);
    let (message, old) = (message(40_000), chain.primary_id().unwrap());
    let mut envelope = seal(&chain, &message, b"row 7");
    let header = Header::split_from(&envelope).unwrap().0.bytes.to_vec();
    assert_eq!(chain.rewrap(&header).unwrap(), header, "it is current");
    let new = chain.rotate().unwrap();
    let rewrapped = chain.rewrap(&header).unwrap();
    let parsed = Header::split_from(&rewrapped).unwrap().0;
    assert_eq!((parsed.version, parsed.kek_id), (Version::StoredStream, new));
    assert_ne!(new, old);
    let whole = chain.rewrap(&envelope).unwrap();
    envelope[..header.len()].copy_from_slice(&rewrapped);
    assert_eq!(whole[62..], envelope[62..], "the payload is the same");
    for envelope in [whole, envelope] {
        assert!(open(&chain, &envelope, b"row 7").unwrap() == message);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cut_or_changed_anywhere_no_way_opens_it(
        len in prop_oneof![0..100_usize, 16_370..16_400_usize, 0..50_000_usize],
        at: prop::sample::Index,
        bit in 0_usize..8,
    ) {
        let chain = chain(Suite::Aes128Gcm);
        let message = message(len);
        let envelope = seal(&chain, &message, b"row 7");
        let at = at.index(envelope.len());
        prop_assert!(all_refuse(&chain, &envelope[..at], b"row 7"), "cut at {}", at);
        let mut changed = envelope.clone();
        changed[at] ^= 1 << bit;
        let mut opened = Vec::new();
        let read = open_from(&chain, &*changed, b"row 7")
            .and_then(|mut reader| Ok(reader.read_to_end(&mut opened)?));
        prop_assert!(read.is_err(), "changed at {}", at);
        prop_assert!(message.starts_with(&opened));
        // In the id of the KEK, another KEK is named.
        let unknown = (2..18).contains(&at);
        prop_assert!(unknown || all_refuse(&chain, &changed, b"row 7"), "changed at {}", at);
        let longer = [&envelope[..], &[0]].concat();
        prop_assert!(all_refuse(&chain, &longer, b"row 7"));
    }

    /// Whatever order chunks are in, with some twice and some of another stream of the same DEK.
    #[test]
    fn other_chunks_than_those_in_their_order_do_not_open(
        order in proptest::collection::vec((0_usize..3, any::<bool>()), 0..5),
    ) {
        let chain = chain(Suite::Aes128Gcm);
        let ours = seal(&chain, &message(2 * 16_384 + 5), b"");
        let theirs = seal(&chain, &message(2 * 16_384 + 5), b"");
        let head = 62 + PREFIX_LEN;
        let chunk = |of: &[u8], index: usize| {
            let start = head + index * 16_400;
            of[start..(start + 16_400).min(of.len())].to_vec()
        };
        let mut envelope = ours[..head].to_vec();
        for (index, own) in &order {
            envelope.extend(chunk(if *own { &ours } else { &theirs }, *index));
        }
        let is_ours = order == [(0, true), (1, true), (2, true)];
        prop_assert_eq!(all_refuse(&chain, &envelope, b""), !is_ours);
    }
}
