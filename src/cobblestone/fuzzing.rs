//! The target of messages in chunks: they open however they are cut into pieces, and never when
//! they were changed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure is the result")]

use std::io::{Cursor, Read as _};

use super::*;

const CONTEXT: &[u8] = b"context";

/// Eight bytes choose the length of the message, the pieces that it is cut into, and what is
/// changed; the message follows.
pub fn chunks(bytes: &[u8]) {
    let Some((&[size, less, one, two, three, high, low, bit], rest)) = bytes.split_first_chunk()
    else {
        return;
    };
    let suite = if size & 1 == 0 { Suite::Aes128Gcm } else { Suite::Aes256Gcm };
    let key = KeyBytes::from_slice(&[7; 32][..suite.key_len()]).unwrap();
    let len = usize::from(size >> 1) % 3 * CHUNK_LEN + rest.len();
    let len = len.saturating_sub(usize::from(less % 32));
    let pattern = rest.iter().chain(&[0]).copied().cycle();
    let message: Vec<u8> = pattern.take(len).collect();
    let piece = |byte: u8| usize::from(byte) * 131 + 1;

    let (sealing, prefix) = MessageKey::with_salt(&key, &[less; SALT_LEN], CONTEXT).unwrap();
    let mut sealed = prefix.to_vec();
    let mut sealer = Sealer::new(sealing);
    for piece in message.chunks(piece(one)) {
        sealer.update(piece, |chunk| sealed.extend_from_slice(&chunk)).unwrap();
    }
    sealed.extend_from_slice(&sealer.finish().unwrap());
    assert_eq!(sealed_len(len as u64), Some(sealed.len() as u64));
    assert_eq!(opened_len(sealed.len() as u64), Ok(len as u64));
    for opened in ways(&key, &sealed, (piece(two), piece(three))) {
        assert!(opened.unwrap() == message);
    }

    let at = usize::from(u16::from_be_bytes([high, low])) % sealed.len();
    let mut changed = sealed.clone();
    changed[at] ^= 1 << (bit % 8);
    for wrong in [&changed[..], &sealed[..at], rest] {
        for opened in ways(&key, wrong, (piece(three), piece(two))) {
            assert!(opened.is_err());
        }
    }
}

/// The message by each way to open it.
fn ways(key: &KeyBytes, sealed: &[u8], sizes: (usize, usize)) -> [Result<Vec<u8>, Invalid>; 4] {
    let Some((prefix, chunks)) = sealed.split_first_chunk() else {
        return [const { Err(Invalid) }; 4];
    };
    let opening = || MessageKey::open(key, prefix, CONTEXT);
    let in_pieces = || {
        let (mut opener, mut opened) = (Opener::new(opening()?), Vec::new());
        let (first, second) = chunks.split_at(sizes.0.min(chunks.len()));
        for piece in [first].into_iter().chain(second.chunks(sizes.1)) {
            opener.update(piece, |chunk| opened.extend_from_slice(&chunk))?;
        }
        opened.extend_from_slice(&opener.finish()?);
        Ok(opened)
    };
    let in_place = || {
        let mut place = chunks.to_vec();
        let len = open_in_place(&opening()?, &mut place);
        assert!(place[*len.as_ref().unwrap_or(&0)..].iter().all(|byte| *byte == 0));
        place.truncate(len?);
        Ok(place)
    };
    let by_reader = || {
        let mut opened = Vec::new();
        Reader::new(chunks, opening()?).read_to_end(&mut opened).map_err(|_| Invalid)?;
        Ok(opened)
    };
    let at_random = || {
        let mut opened = Vec::new();
        let reader = RandomReader::new(Cursor::new(sealed), opening()?, PREFIX_LEN as u64);
        reader.and_then(|mut reader| reader.read_to_end(&mut opened)).map_err(|_| Invalid)?;
        Ok(opened)
    };
    [in_pieces(), in_place(), by_reader(), at_random()]
}
