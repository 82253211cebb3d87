//! Envelopes of versions 3 and 4: each part of the start is authenticated, and no DEK serves two
//! kinds of payload.

use super::*;
use crate::cobblestone::{PREFIX_LEN, Sealer};
use crate::envelope::{Header, InlineRecord, PayloadForm, Version};
use crate::keychain::inline::InlineKek;

const PLACEMENTS: [KekPlacement; 2] = [KekPlacement::Stored, KekPlacement::Inline];

fn record() -> Vec<u8> {
    let wraps = vec![("main".into(), vec![5; 40].into()), ("dr".into(), vec![6; 28].into())];
    InlineRecord { wraps }.to_bytes().unwrap()
}

/// A chain whose headers can embed its primary.
fn inline_chain(suite: Suite) -> KeyChain {
    let mut chain = chain(suite);
    embed(&mut chain);
    chain
}

fn embed(chain: &mut KeyChain) {
    let kek = chain.kek(chain.primary_id().unwrap()).unwrap();
    let record = record();
    let record = InlineRecord::parse(&record).unwrap();
    let inline = InlineKek::new(kek.suite(), kek.id(), kek.chain(), &record).unwrap();
    chain.set_inline(Some(Arc::new(inline)));
}

fn seal(chain: &KeyChain, placement: KekPlacement, message: &[u8]) -> Vec<u8> {
    let one = chain.take(Monotonic::default()).unwrap().placed(placement);
    let NewStream { head, key, kek_id } = one.start_stream(b"row 7").unwrap();
    assert_eq!(Some(kek_id), chain.primary_id());
    let (mut sealer, mut envelope) = (Sealer::new(key), head);
    sealer.update(message, |chunk| envelope.extend_from_slice(&chunk)).unwrap();
    envelope.extend_from_slice(&sealer.finish().unwrap());
    envelope
}

fn opens(chain: &KeyChain, envelope: &[u8]) -> bool {
    let opened = chain.decrypt(envelope, b"row 7");
    assert!(opened.as_ref().map_or(true, |opened| opened.as_slice() == b"hello"));
    opened.is_ok()
}

#[test]
fn every_flipped_bit_and_every_cut_fails() {
    for suite in SUITES {
        let chain = inline_chain(suite);
        for placement in PLACEMENTS {
            let envelope = seal(&chain, placement, b"hello");
            assert!(opens(&chain, &envelope));
            for bit in 0..envelope.len() * 8 {
                let mut changed = envelope.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!opens(&chain, &changed), "bit {bit}");
            }
            for len in 0..envelope.len() {
                assert_eq!(error(chain.decrypt(&envelope[..len], b"row 7")), DecryptError::Invalid);
            }
        }
    }
}

#[test]
fn the_header_has_the_version_of_its_placement_and_its_length() {
    for suite in SUITES {
        let chain = inline_chain(suite);
        let record = record();
        for (placement, version, more) in [
            (KekPlacement::Stored, Version::StoredStream, 0),
            (KekPlacement::Inline, Version::InlineStream(&record), 2 + record.len()),
        ] {
            let envelope = seal(&chain, placement, b"hello");
            let parsed = Envelope::parse(&envelope).unwrap();
            assert_eq!(parsed.header.version, version);
            assert_eq!(parsed.header.bytes.len(), envelope::header_len(suite) + more);
            assert!(chain.is_current(&parsed, placement));
        }
    }
    let chain = chain(Suite::Aes128Gcm);
    let one = chain.take(Monotonic::default()).unwrap().placed(KekPlacement::Inline);
    assert_eq!(one.start_stream(b"").unwrap_err(), EncryptError::NoRecord);
}

#[test]
fn a_rewrap_changes_the_placement_and_keeps_the_form() {
    for suite in SUITES {
        let mut chain = inline_chain(suite);
        for from in PLACEMENTS {
            let stream = seal(&chain, from, b"hello");
            let one = chain.take(Monotonic::default()).unwrap().placed(from);
            let message: Vec<u8> = one.seal(b"hello".into(), b"row 7").unwrap().into();
            chain.rotate().unwrap();
            embed(&mut chain);
            for to in PLACEMENTS {
                chain.set_placement(to);
                for (old, form) in [(&stream, PayloadForm::Chunked), (&message, PayloadForm::Whole)]
                {
                    let whole = chain.rewrap(old).unwrap();
                    let version = Envelope::parse(&whole).unwrap().header.version;
                    assert_eq!(version.form(), form);
                    assert_eq!(version.record().is_some(), to == KekPlacement::Inline);
                    assert!(opens(&chain, &whole), "{from:?} to {to:?}, {form:?}");
                    let header = Header::split_from(old).unwrap().0.bytes;
                    let rewrapped = chain.rewrap(header).unwrap();
                    assert!(opens(&chain, &[&rewrapped, &old[header.len()..]].concat()));
                }
            }
        }
    }
}

/// The versions, with all that is needed to relabel one as another.
#[test]
fn versions_do_not_turn_into_each_other() {
    for suite in SUITES {
        let chain = inline_chain(suite);
        let (dek, kek) = (KeyBytes::random(suite).unwrap(), chain.primary_id().unwrap());
        let kek = chain.kek(kek).unwrap();
        for placement in PLACEMENTS {
            let stream = seal(&chain, placement, b"hello");
            let one = chain.take(Monotonic::default()).unwrap().placed(placement);
            let message: Vec<u8> = one.seal([7; 100].as_slice().into(), b"row 7").unwrap().into();
            for (envelope, shift) in [(&stream, -2_i8), (&message, 2)] {
                let mut relabelled = envelope.clone();
                relabelled[0] = relabelled[0].checked_add_signed(shift).unwrap();
                assert!(!opens(&chain, &relabelled));
                let header = Header::split_from(&relabelled).unwrap().0;
                assert!(kek.open_dek(&header).is_err(), "the wrap binds the version");
            }
        }
        // Even with a header of the other version around the same DEK.
        let whole = Dek::of(dek, PayloadForm::Whole);
        let prefix = &[0; PREFIX_LEN];
        let name = chain.name();
        assert_eq!(whole.open_stream(name, prefix, b"").err(), Some(DecryptError::Invalid));
    }
}

#[test]
fn a_stream_costs_one_use() {
    let mut chain = chain(Suite::Aes128Gcm);
    let kek = Kek::generate(chain.name(), Suite::Aes128Gcm).unwrap();
    chain.set_primary(Arc::new(kek), Arc::new(Budget::unshared(2)));
    assert!(chain.start_stream(b"").is_ok());
    assert_eq!(chain.start_stream(&[0; 65_537]).unwrap_err(), EncryptError::AadTooLong);
    assert_eq!(chain.start_stream(b"").unwrap_err(), EncryptError::Exhausted);
}
