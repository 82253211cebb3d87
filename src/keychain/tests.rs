//! Chains in memory: what opens, and all that must not.

use proptest::prelude::*;

use super::*;
use crate::envelope;
use crate::secret::KeyBytes;

mod streams;
mod version_2;

fn name(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

fn chain(suite: Suite) -> KeyChain {
    KeyChain::generate(name("orders"), suite).unwrap()
}

const SUITES: [Suite; 2] = [Suite::Aes128Gcm, Suite::Aes256Gcm];

fn error(result: Result<Opened, DecryptError>) -> DecryptError {
    result.expect_err("it must not open")
}

#[test]
fn what_is_encrypted_decrypts() {
    for suite in SUITES {
        let chain = chain(suite);
        for len in [0, 1, 15, 16, 17, 256, 4096, 100_000] {
            let plaintext = vec![7; len];
            let envelope = chain.encrypt(&plaintext, b"row 7").unwrap();
            assert_eq!(envelope.len(), envelope::header_len(suite) + len + 16);
            assert_eq!(chain.decrypt(&envelope, b"row 7").unwrap().as_slice(), plaintext);
        }
    }
}

#[test]
fn equal_plaintexts_make_different_envelopes() {
    let chain = chain(Suite::Aes128Gcm);
    let (one, two) = (chain.encrypt(b"same", b"").unwrap(), chain.encrypt(b"same", b"").unwrap());
    assert_ne!(one[18..30], two[18..30], "nonces");
    assert_ne!(one[62..], two[62..], "payloads");
}

#[test]
fn another_aad_does_not_open() {
    let chain = chain(Suite::Aes128Gcm);
    let envelope = chain.encrypt(b"hello", b"row 7").unwrap();
    for aad in [&b""[..], b"row 8", b"row 7 ", b"row 7\0"] {
        assert_eq!(error(chain.decrypt(&envelope, aad)), DecryptError::Invalid);
    }
    assert_eq!(chain.encrypt(b"", &vec![0; 65_537]), Err(EncryptError::AadTooLong));
    assert_eq!(error(chain.decrypt(&envelope, &vec![0; 65_537])), DecryptError::Invalid);
}

#[test]
fn another_chain_with_the_same_kek_does_not_open() {
    let ours = Arc::new(Kek::new(&name("orders"), KeyBytes::from_slice(&[7; 16]).unwrap()));
    let theirs = Arc::new(Kek::new(&name("invoices"), KeyBytes::from_slice(&[7; 16]).unwrap()));
    let (mut orders, mut invoices) =
        (KeyChain::empty(name("orders")), KeyChain::empty(name("invoices")));
    orders.set_primary(ours, Arc::new(Budget::unshared(1)));
    invoices.hold(theirs);
    let envelope = orders.encrypt(b"hello", b"").unwrap();
    assert_eq!(error(invoices.decrypt(&envelope, b"")), DecryptError::Invalid);
}

#[test]
fn an_unknown_kek_is_named() {
    let envelope = chain(Suite::Aes128Gcm).encrypt(b"hello", b"").unwrap();
    let id = Envelope::parse(&envelope).unwrap().header.kek_id;
    assert_eq!(
        error(chain(Suite::Aes128Gcm).decrypt(&envelope, b"")),
        DecryptError::UnknownKek(id)
    );
}

#[test]
fn every_flipped_bit_fails() {
    for suite in SUITES {
        let chain = chain(suite);
        let envelope = chain.encrypt(b"hello", b"row 7").unwrap();
        for bit in 0..envelope.len() * 8 {
            let mut changed = envelope.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(chain.decrypt(&changed, b"row 7").is_err(), "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_and_every_trailing_byte_fails() {
    for suite in SUITES {
        let chain = chain(suite);
        let envelope = chain.encrypt(b"a longer message", b"row 7").unwrap();
        for len in 0..envelope.len() {
            assert_eq!(error(chain.decrypt(&envelope[..len], b"row 7")), DecryptError::Invalid);
        }
        let longer = [&envelope[..], &[0]].concat();
        assert_eq!(error(chain.decrypt(&longer, b"row 7")), DecryptError::Invalid);
    }
}

#[test]
fn headers_and_payloads_do_not_mix() {
    let chain = chain(Suite::Aes128Gcm);
    let (one, two) = (chain.encrypt(b"one", b"").unwrap(), chain.encrypt(b"two", b"").unwrap());
    let mixed = [&one[..62], &two[62..]].concat();
    assert_eq!(error(chain.decrypt(&mixed, b"")), DecryptError::Invalid);
}

#[test]
fn a_header_alone_is_rewrapped_and_decrypts_before_its_old_payload() {
    for suite in SUITES {
        let mut chain = chain(suite);
        let old = chain.encrypt(b"hello", b"row 7").unwrap();
        let unchanged = chain.rewrap(&old).unwrap();
        assert_eq!(unchanged, old, "already under the primary");
        let primary = chain.rotate().unwrap();
        let (header, payload) = old.split_at(envelope::header_len(suite));
        let rewrapped = chain.rewrap(header).unwrap();
        assert_eq!(rewrapped.len(), header.len());
        let whole = [&rewrapped, payload].concat();
        assert_eq!(Envelope::parse(&whole).unwrap().header.kek_id, primary);
        assert_eq!(chain.decrypt(&whole, b"row 7").unwrap().as_slice(), b"hello");
        assert_eq!(chain.rewrap(&old).unwrap()[header.len()..], *payload);
        assert_eq!(chain.decrypt(&old, b"row 7").unwrap().as_slice(), b"hello", "the old one too");
        let mut tampered = header.to_vec();
        *tampered.last_mut().unwrap() ^= 1;
        assert_eq!(chain.rewrap(&tampered), Err(DecryptError::Invalid.into()));
        assert_eq!(chain.rewrap(&old[..header.len() + 3]), Err(DecryptError::Invalid.into()));
    }
}

/// The suite is bound by the payload, which a rewrap keeps.
#[test]
fn a_dek_of_another_suite_is_not_rewrapped() {
    let mut chain = chain(Suite::Aes128Gcm);
    let envelope = chain.encrypt(b"hello", b"").unwrap();
    let longer = Kek::generate(chain.name(), Suite::Aes256Gcm).unwrap();
    chain.set_primary(Arc::new(longer), Arc::new(Budget::unshared(1)));
    assert_eq!(chain.rewrap(&envelope), Err(EncryptError::OtherSuite.into()));
    assert_eq!(chain.decrypt(&envelope, b"").unwrap().as_slice(), b"hello");
}

#[test]
fn a_rotation_keeps_the_suite() {
    for suite in SUITES {
        let mut chain = chain(suite);
        let id = chain.rotate().unwrap();
        assert_eq!((chain.primary_id(), chain.kek(id).unwrap().suite()), (Some(id), suite));
    }
    assert_eq!(KeyChain::empty(name("orders")).rotate(), Err(EncryptError::Exhausted));
}

#[test]
fn refused_keks_neither_decrypt_nor_rewrap() {
    let mut chain = chain(Suite::Aes128Gcm);
    let envelope = chain.encrypt(b"hello", b"").unwrap();
    let old = chain.primary_id().unwrap();
    chain.rotate().unwrap();
    let kek = Arc::clone(chain.kek(old).unwrap());
    chain.refuse(old, Some(Refusal::Disabled));
    let refused = DecryptError::Refused(old, Refusal::Disabled);
    assert_eq!(error(chain.decrypt(&envelope, b"")), refused);
    assert_eq!(chain.rewrap(&envelope), Err(refused.into()));
    chain.refuse(old, None);
    chain.hold(kek);
    assert!(chain.decrypt(&envelope, b"").is_ok());
}

#[test]
fn no_use_no_envelope() {
    let mut chain = KeyChain::empty(name("orders"));
    assert_eq!(chain.encrypt(b"hello", b""), Err(EncryptError::Exhausted));
    let kek = Arc::new(Kek::generate(&name("orders"), Suite::Aes128Gcm).unwrap());
    chain.set_primary(kek, Arc::new(Budget::unshared(2)));
    assert!(chain.encrypt(b"hello", b"").is_ok());
    assert!(chain.encrypt(b"hello", b"").is_ok());
    assert_eq!(chain.encrypt(b"hello", b""), Err(EncryptError::Exhausted));
}

proptest! {
    #[test]
    fn any_message_round_trips(plaintext: Vec<u8>, aad: Vec<u8>, long: bool) {
        let chain = chain(if long { Suite::Aes256Gcm } else { Suite::Aes128Gcm });
        let envelope = chain.encrypt(&plaintext, &aad).unwrap();
        let opened = chain.decrypt(&envelope, &aad).unwrap();
        prop_assert_eq!(opened.as_slice(), plaintext);
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(chain(Suite::Aes128Gcm).decrypt(&bytes, b"").is_err());
    }
}
