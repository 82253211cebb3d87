//! The vectors of Project Wycheproof, and properties of sealed and opened messages.

use std::io::Read;

use proptest::collection::vec;
use proptest::prelude::*;
use serde::Deserialize;
use sha2::Digest;
use zeroize::Zeroizing;

use super::*;
use crate::constant_time;

mod reading;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    number_of_tests: usize,
    test_groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    tests: Vec<Vector>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vector {
    tc_id: u32,
    key: String,
    ctx: String,
    ct: String,
    #[serde(default)]
    msg_length: u64,
    #[serde(default)]
    msg_sha512: Option<String>,
    result: String,
    flags: Vec<String>,
}

fn hex(text: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(text).unwrap()
}

fn inflate(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::ZlibDecoder::new(&*hex(text)).read_to_end(&mut out).unwrap();
    out
}

/// Opens a whole ciphertext in pieces of `size`; also returns what was given before a failure.
fn open_in_pieces(
    key: &KeyBytes,
    context: &[u8],
    sealed: &[u8],
    size: usize,
) -> (Vec<u8>, Result<(), Invalid>) {
    let mut plaintext = Vec::new();
    let Some((prefix, chunks)) = sealed.split_first_chunk() else {
        return (plaintext, Err(Invalid));
    };
    let key = match MessageKey::open(key, prefix, context) {
        Ok(key) => key,
        Err(Invalid) => return (plaintext, Err(Invalid)),
    };
    let mut opener = Opener::new(key);
    for piece in chunks.chunks(size) {
        let out = |chunk: Zeroizing<Vec<u8>>| plaintext.extend_from_slice(&chunk);
        if opener.update(piece, out).is_err() {
            assert_eq!(opener.update(b"", |_| panic!("after a failure")), Err(Invalid));
            assert_eq!(opener.update(&[0; SEALED_CHUNK_LEN], |_| panic!()), Err(Invalid));
            assert!(opener.finish().is_err(), "it keeps failing");
            return (plaintext, Err(Invalid));
        }
    }
    let last = opener.finish().map(|last| plaintext.extend_from_slice(&last));
    (plaintext, last)
}

/// Opens a whole ciphertext in its own buffer.
fn open_whole(key: &KeyBytes, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Invalid> {
    let (prefix, chunks) = sealed.split_first_chunk().ok_or(Invalid)?;
    let key = MessageKey::open(key, prefix, context)?;
    let mut buffer = chunks.to_vec();
    let opened = open_in_place(&key, &mut buffer);
    let rest = &buffer[opened.as_ref().map_or(0, |len| *len)..];
    assert!(rest.iter().all(|byte| *byte == 0), "nothing is left behind the plaintext");
    opened.map(|len| buffer[..len].to_vec())
}

fn seal_in_pieces(key: MessageKey, prefix: &Prefix, message: &[u8], size: usize) -> Vec<u8> {
    let mut sealed = prefix.to_vec();
    let mut sealer = Sealer::new(key);
    for piece in message.chunks(size) {
        sealer.update(piece, |chunk| sealed.extend_from_slice(&chunk)).unwrap();
    }
    sealed.extend_from_slice(&sealer.finish().unwrap());
    sealed
}

/// The vectors of Project Wycheproof, which `tests/vectors/cobblestone` has unchanged.
#[test]
fn all_public_vectors_pass() {
    let mut seen = 0;
    for file in [
        include_str!("../../tests/vectors/cobblestone/aes_128_gcm.json"),
        include_str!("../../tests/vectors/cobblestone/aes_256_gcm.json"),
    ] {
        let file: File = serde_json::from_str(file).unwrap();
        let vectors: Vec<_> = file.test_groups.iter().flat_map(|group| &group.tests).collect();
        assert_eq!((vectors.len(), file.number_of_tests), (35, 35));
        for vector in vectors {
            check(vector);
            seen += 1;
        }
    }
    println!("{seen} vectors of Wycheproof");
    assert_eq!(seen, 70);
}

fn check(vector: &Vector) {
    let id = vector.tc_id;
    let has = |flag: &str| vector.flags.iter().any(|name| name == flag);
    let Some(key) = KeyBytes::from_slice(&hex(&vector.key)) else {
        return assert!(has("InvalidKeySize"), "{id}");
    };
    let (context, sealed) = (hex(&vector.ctx), inflate(&vector.ct));
    // A key of another size is not refused by its size: it is a key of the other suite.
    for size in [1_000, SEALED_CHUNK_LEN, usize::MAX] {
        let (plaintext, opened) = open_in_pieces(&key, &context, &sealed, size);
        let expected = vector.msg_sha512.as_deref();
        let digest = base16ct::lower::encode_string(&sha2::Sha512::digest(&plaintext));
        if vector.result == "valid" {
            assert_eq!(opened, Ok(()), "{id}");
            assert_eq!(opened_len(sealed.len() as u64), Ok(vector.msg_length), "{id}");
            assert_eq!(sealed_len(vector.msg_length), Some(sealed.len() as u64), "{id}");
            assert_eq!(expected, Some(&*digest), "{id}");
            assert!(open_whole(&key, &context, &sealed) == Ok(plaintext.clone()), "{id}");
            let salt = sealed.first_chunk().unwrap();
            let (key, prefix) = MessageKey::with_salt(&key, salt, &context).unwrap();
            assert!(seal_in_pieces(key, &prefix, &plaintext, size) == sealed, "{id}");
        } else {
            assert_eq!((&*vector.result, opened), ("invalid", Err(Invalid)), "{id}");
            assert_eq!(open_whole(&key, &context, &sealed), Err(Invalid), "{id}");
            // No more than the valid chunks before the damage.
            assert_eq!(plaintext.len() as u64, vector.msg_length, "{id}");
            assert!(!has("PartialPlaintext") || expected == Some(&*digest), "{id}");
        }
    }
}

fn key(suite: Suite) -> KeyBytes {
    KeyBytes::from_slice(&vec![7; suite.key_len()]).unwrap()
}

fn sealed(len: usize) -> (Vec<u8>, Vec<u8>) {
    let message: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    let (key, prefix) = MessageKey::generate(&key(Suite::Aes128Gcm), b"ctx").unwrap();
    let sealed = seal_in_pieces(key, &prefix, &message, 10_000);
    (message, sealed)
}

fn opened(sealed: &[u8]) -> Result<Vec<u8>, Invalid> {
    let (plaintext, result) = open_in_pieces(&key(Suite::Aes128Gcm), b"ctx", sealed, 9_999);
    result.map(|()| plaintext)
}

#[test]
fn sizes_follow_from_each_other() {
    for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN] {
        let (message, sealed) = sealed(len);
        assert_eq!(sealed_len(len as u64), Some(sealed.len() as u64));
        assert_eq!(opened_len(sealed.len() as u64), Ok(len as u64));
        assert_eq!(opened(&sealed), Ok(message));
    }
    let most = (MAX_CHUNKS * CHUNK_LEN as u64) - 1;
    assert_eq!(sealed_len(most).map(opened_len), Some(Ok(most)));
    assert_eq!(sealed_len(most + 1), None);
    for bad in [0, 55, 56, 71, 56 + SEALED_CHUNK_LEN as u64, 71 + SEALED_CHUNK_LEN as u64] {
        assert_eq!(opened_len(bad), Err(Invalid), "{bad}");
    }
    assert_eq!(opened_len(u64::MAX), Err(Invalid));
}

#[test]
fn commitments_take_the_same_time_wherever_the_difference_is() {
    let key = key(Suite::Aes256Gcm);
    let (_, prefix) = MessageKey::with_salt(&key, &[7; SALT_LEN], b"").unwrap();
    let set = |given: &mut Prefix, input: &[u8]| given[SALT_LEN..].copy_from_slice(input);
    let accepts = |given: &mut Prefix| MessageKey::open(&key, given, b"").is_ok();
    constant_time::check("commitment to a key", prefix, &prefix[SALT_LEN..], set, accepts);
}

#[test]
fn the_counter_ends() {
    let (key, prefix) = MessageKey::generate(&key(Suite::Aes256Gcm), b"").unwrap();
    let tag = key.seal_chunk(MAX_CHUNKS - 1, &mut [0; 3]).unwrap();
    assert_eq!(key.seal_chunk(MAX_CHUNKS, &mut [0; 3]), Err(SealError::TooLong));
    let reopened = MessageKey::open(&super::tests::key(Suite::Aes256Gcm), &prefix, b"").unwrap();
    let mut last = [0; 3 + TAG_LEN];
    let (chunk, room) = last.split_at_mut(3);
    assert_eq!(key.seal_chunk(MAX_CHUNKS - 1, chunk), Ok(tag));
    room.copy_from_slice(&tag);
    for index in [MAX_CHUNKS, MAX_CHUNKS - 2, u64::MAX] {
        assert_eq!(reopened.open_chunk(index, &mut last.clone()), Err(Invalid));
    }
    assert_eq!(reopened.open_chunk(MAX_CHUNKS - 1, &mut last), Ok(&mut [0; 3][..]));
}

#[test]
fn a_chunk_opens_at_its_place_alone_and_in_its_message_alone() {
    let (_, one) = sealed(3 * CHUNK_LEN + 5);
    let (_, other) = sealed(3 * CHUNK_LEN + 5);
    let chunk = |of: &[u8], i: usize| {
        let start = PREFIX_LEN + i * SEALED_CHUNK_LEN;
        of[start..(start + SEALED_CHUNK_LEN).min(of.len())].to_vec()
    };
    let with = |chunks: &[Vec<u8>]| [&one[..PREFIX_LEN], &chunks.concat()].concat();
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| chunk(&one, i));
    assert!(opened(&with(&[a.clone(), b.clone(), c.clone(), d.clone()])).is_ok());
    for wrong in [
        vec![b.clone(), a.clone(), c.clone(), d.clone()],
        vec![a.clone(), a.clone(), c.clone(), d.clone()],
        vec![a.clone(), b.clone(), d.clone()],
        vec![a.clone(), b.clone(), c.clone(), d.clone(), d.clone()],
        vec![a.clone(), b.clone(), c.clone(), d.clone(), c.clone(), d.clone()],
        vec![a.clone(), chunk(&other, 1), c.clone(), d.clone()],
        vec![a.clone(), b.clone(), c.clone(), chunk(&other, 3)],
        vec![d],
        vec![a, b, c],
    ] {
        assert_eq!(opened(&with(&wrong)), Err(Invalid));
    }
}

#[test]
fn a_message_opens_from_the_middle() {
    let (message, sealed) = sealed(3 * CHUNK_LEN + 5);
    let prefix = sealed.first_chunk().unwrap();
    for index in 0..4 {
        let key = MessageKey::open(&key(Suite::Aes128Gcm), prefix, b"ctx").unwrap();
        let mut opener = Opener::from_chunk(key, index);
        let mut rest = Vec::new();
        let start = PREFIX_LEN + usize::try_from(index).unwrap() * SEALED_CHUNK_LEN;
        opener.update(&sealed[start..], |chunk| rest.extend_from_slice(&chunk)).unwrap();
        rest.extend_from_slice(&opener.finish().unwrap());
        assert_eq!(rest, message[usize::try_from(index).unwrap() * CHUNK_LEN..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_message_opens_in_whatever_pieces(
        message in vec(any::<u8>(), 0..3 * CHUNK_LEN),
        context in vec(any::<u8>(), 0..100),
        (one, two) in (1_usize..40_000, 1_usize..40_000),
        suite in prop_oneof![Just(Suite::Aes128Gcm), Just(Suite::Aes256Gcm)],
    ) {
        let (message_key, prefix) = MessageKey::generate(&key(suite), &context).unwrap();
        let sealed = seal_in_pieces(message_key, &prefix, &message, one);
        let (plaintext, opened) = open_in_pieces(&key(suite), &context, &sealed, two);
        prop_assert_eq!(opened, Ok(()));
        prop_assert!(plaintext == message);
    }

    #[test]
    fn a_cut_or_a_changed_bit_anywhere_is_noticed(
        len in prop_oneof![0..100_usize, CHUNK_LEN - 20..CHUNK_LEN + 20, 0..3 * CHUNK_LEN],
        at: prop::sample::Index,
        bit in 0_usize..8,
    ) {
        let (message, sealed) = sealed(len);
        let at = at.index(sealed.len());
        prop_assert_eq!(opened(&sealed[..at]), Err(Invalid));
        let mut changed = sealed.clone();
        changed[at] ^= 1 << bit;
        let (plaintext, result) =
            open_in_pieces(&key(Suite::Aes128Gcm), b"ctx", &changed, SEALED_CHUNK_LEN);
        prop_assert_eq!(result, Err(Invalid));
        prop_assert!(message.starts_with(&plaintext), "only authenticated bytes are given");
        let other_context = open_in_pieces(&key(Suite::Aes128Gcm), b"CTX", &sealed, 99);
        prop_assert_eq!(other_context.1, Err(Invalid));
    }
}
