//! Envelopes under a chain: one that was changed never opens, in whichever way it is read.

use std::io::{Cursor, Read as _, Write as _};
use std::sync::OnceLock;

use crate::cobblestone::PREFIX_LEN;
use crate::envelope::Header;
use crate::id::{ChainName, Suite};
use crate::keychain::KeyChain;
use crate::stream::{self, Start};

use super::edited;

const MESSAGE: &[u8] = b"a message of a few bytes";

/// The first byte chooses an envelope; the rest is an edit of it, as [`edited`] reads it.
pub fn stream(bytes: &[u8]) {
    let (chain, envelopes) = whole();
    starts(bytes);
    let Some((which, edit)) = bytes.split_first() else { return };
    let envelope = &envelopes[usize::from(*which) % envelopes.len()];
    let changed = edited(envelope, edit);
    starts(&changed);
    let opened = chain.decrypt(&changed, b"row 7");
    assert_eq!(opened.is_ok(), changed == *envelope);
    assert!(opened.is_err() || opened.is_ok_and(|opened| opened.as_slice() == MESSAGE));
    if usize::from(*which) % envelopes.len() > 0 {
        assert_eq!(read(chain, &changed), (changed == *envelope).then(|| MESSAGE.to_vec()));
        let mut reader = stream::open_random(chain, Cursor::new(&changed), b"row 7");
        let all = reader.as_mut().map(|reader| reader.read_to_end(&mut Vec::new()).is_ok());
        assert_eq!(all.is_ok_and(|all| all), changed == *envelope);
    }
}

/// A start is read without its chunks, and is the beginning of the envelope.
fn starts(envelope: &[u8]) {
    let header = Header::split_from(envelope).ok().filter(|(_, rest)| rest.len() >= PREFIX_LEN);
    match (Start::read(envelope), header) {
        (Ok(start), header) => {
            assert!(envelope.starts_with(start.as_slice()));
            assert_eq!(start.parts().is_ok(), header.is_some());
            let bytes = header.map(|(header, _)| header.bytes);
            assert_eq!(start.parts().ok().map(|(header, _)| header.bytes), bytes);
        }
        (Err(_), header) => assert!(header.is_none()),
    }
}

fn read(chain: &KeyChain, envelope: &[u8]) -> Option<Vec<u8>> {
    let mut opened = Vec::new();
    stream::open_from(chain, envelope, b"row 7").ok()?.read_to_end(&mut opened).ok()?;
    Some(opened)
}

/// A chain and its envelopes: a whole one, and one in chunks.
fn whole() -> &'static (KeyChain, [Vec<u8>; 2]) {
    static CHAIN: OnceLock<(KeyChain, [Vec<u8>; 2])> = OnceLock::new();
    CHAIN.get_or_init(|| {
        let chain = KeyChain::generate(ChainName::new("orders").unwrap(), Suite::Aes256Gcm);
        let chain = chain.unwrap();
        let whole = chain.encrypt(MESSAGE, b"row 7").unwrap();
        let mut writer = stream::seal_to(&chain, Vec::new(), b"row 7").unwrap();
        writer.write_all(MESSAGE).unwrap();
        let chunked = writer.finish().unwrap();
        (chain, [whole, chunked])
    })
}
