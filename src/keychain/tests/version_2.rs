//! Version 2 envelopes: the KEK is inline, and no part of its record can be replaced.

use super::*;
use crate::envelope::{InlineRecord, Version};

/// A chain, its KEK, and an envelope of it in version 1.
struct Sample {
    chain: KeyChain,
    kek: Arc<Kek>,
    stored: Vec<u8>,
}

impl Sample {
    fn new(suite: Suite) -> Self {
        let chain = chain(suite);
        let kek = Arc::clone(chain.kek(chain.primary_id().unwrap()).unwrap());
        let stored = chain.encrypt(b"hello", b"").unwrap();
        Self { chain, kek, stored }
    }

    /// The same DEK and payload with `record`.
    fn inline(&self, record: &[u8]) -> Vec<u8> {
        let stored = Envelope::parse(&self.stored).unwrap();
        let dek = self.chain.open_dek(&stored).unwrap();
        let inline = self.travels_with(record);
        let mut out = self.kek.seal_dek(&dek, Some(&inline)).unwrap();
        out.extend_from_slice(stored.payload);
        out
    }

    fn travels_with(&self, record: &[u8]) -> InlineKek {
        inline_kek(&self.kek, &InlineRecord::parse(record).unwrap()).unwrap()
    }

    fn opens(&self, envelope: &[u8]) -> bool {
        let opened = self.chain.decrypt(envelope, b"");
        assert!(
            opened.as_ref().is_ok_and(|opened| opened.as_slice() == b"hello") || opened.is_err()
        );
        opened.is_ok()
    }
}

fn record(wraps: &[(&'static str, &[u8])]) -> Vec<u8> {
    let wraps = wraps.iter().map(|&(root, wrap)| (root.into(), wrap.to_vec().into())).collect();
    InlineRecord { wraps }.to_bytes().unwrap()
}

const MAIN: (&str, &[u8]) = ("main", &[5; 40]);
const DR: (&str, &[u8]) = ("dr", &[6; 28]);

/// The positions of kek_len and of the record.
const KEK_LEN: usize = 18;
const RECORD: usize = 20;

#[test]
fn it_opens_and_every_flipped_bit_fails() {
    for suite in SUITES {
        let sample = Sample::new(suite);
        let envelope = sample.inline(&record(&[MAIN, DR]));
        assert!(sample.opens(&envelope));
        for bit in 0..envelope.len() * 8 {
            let mut changed = envelope.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!sample.opens(&changed), "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_and_every_trailing_byte_fails() {
    for suite in SUITES {
        let sample = Sample::new(suite);
        let envelope = sample.inline(&record(&[MAIN, DR]));
        for len in 0..envelope.len() {
            assert_eq!(
                error(sample.chain.decrypt(&envelope[..len], b"")),
                DecryptError::Invalid,
                "{len}"
            );
        }
        assert!(!sample.opens(&[&envelope[..], &[0]].concat()));
    }
}

#[test]
fn every_other_kek_len_fails() {
    let sample = Sample::new(Suite::Aes128Gcm);
    let record = record(&[MAIN, DR]);
    let mut envelope = sample.inline(&record);
    for len in (0..=u16::MAX).filter(|&len| usize::from(len) != record.len()) {
        envelope[KEK_LEN..RECORD].copy_from_slice(&len.to_be_bytes());
        assert!(!sample.opens(&envelope), "{len}");
    }
}

#[test]
fn a_record_of_another_envelope_fails() {
    let ours = record(&[MAIN, DR]);
    let sample = Sample::new(Suite::Aes128Gcm);
    let envelope = sample.inline(&ours);
    let (start, end) = (&envelope[..KEK_LEN], &envelope[RECORD + ours.len()..]);
    let exchange = |record: &[u8]| {
        let len = u16::try_from(record.len()).unwrap().to_be_bytes();
        [start, &len, record, end].concat()
    };
    assert!(sample.opens(&exchange(&ours)));
    for theirs in [
        record(&[DR, MAIN]),
        record(&[MAIN]),
        record(&[MAIN, DR, DR]),
        record(&[MAIN, ("dr", &[7; 28])]),
        record(&[MAIN, ("ab", &[6; 28])]),
    ] {
        assert!(sample.opens(&sample.inline(&theirs)), "it is good where it belongs");
        assert!(!sample.opens(&exchange(&theirs)), "{theirs:?}");
    }
}

#[test]
fn versions_do_not_turn_into_each_other() {
    for suite in SUITES {
        let record = record(&[MAIN]);
        let sample = Sample::new(suite);
        let inline = sample.inline(&record);
        let (one, two) = (&sample.stored[..], &inline[..]);
        assert!(sample.opens(one) && sample.opens(two));
        let inline_part = &two[KEK_LEN..RECORD + record.len()];
        let put = [&[2], &one[1..KEK_LEN], inline_part, &one[KEK_LEN..]].concat();
        let taken = [&[1], &two[1..KEK_LEN], &two[RECORD + record.len()..]].concat();
        let renamed = [[&[2], &one[1..]].concat(), [&[1], &two[1..]].concat()];
        for changed in [put, taken].iter().chain(&renamed) {
            assert!(!sample.opens(changed));
        }
    }
}

#[test]
fn what_a_use_seals_has_the_form_that_it_is_asked_for() {
    for suite in SUITES {
        let Sample { mut chain, kek, .. } = Sample::new(suite);
        let one = chain.take(Monotonic::default()).unwrap().placed(KekPlacement::Inline);
        let refused = one.seal(b"hello".into(), b"");
        assert_eq!(refused.unwrap_err(), EncryptError::NoRecord, "nothing is sealed without one");
        for record in [record(&[MAIN]), record(&[MAIN, DR])] {
            let inline = inline_kek(&kek, &InlineRecord::parse(&record).unwrap()).unwrap();
            chain.set_inline(Some(Arc::new(inline)));
            for plaintext in [&b""[..], b"hello", &[7; 5000]] {
                let one = chain.take(Monotonic::default()).unwrap().placed(KekPlacement::Inline);
                let sealed: Vec<u8> = one.seal(plaintext.into(), b"row 7").unwrap().into();
                let parsed = Envelope::parse(&sealed).unwrap();
                assert_eq!(parsed.header.version, Version::Inline(&record));
                let header_len = envelope::header_len(suite) + 2 + record.len();
                assert_eq!(parsed.header.bytes.len(), header_len);
                assert_eq!(chain.decrypt(&sealed, b"row 7").unwrap().as_slice(), plaintext);
                assert!(chain.decrypt(&sealed, b"row 8").is_err());
                assert!(chain.is_current(&parsed, KekPlacement::Inline));
                assert!(!chain.is_current(&parsed, KekPlacement::Stored));
            }
            let one = chain.take(Monotonic::default()).unwrap();
            let stored: Vec<u8> = one.seal(b"hello".into(), b"").unwrap().into();
            let stored = Envelope::parse(&stored).unwrap();
            assert_eq!(stored.header.version, Version::Stored);
            assert!(!chain.is_current(&stored, KekPlacement::Inline));
        }
    }
}

#[test]
fn an_envelope_with_other_wraps_is_not_current() {
    let mut sample = Sample::new(Suite::Aes128Gcm);
    let old = sample.inline(&record(&[MAIN]));
    sample.chain.set_inline(Some(Arc::new(sample.travels_with(&record(&[MAIN, DR])))));
    assert!(!sample.chain.is_current(&Envelope::parse(&old).unwrap(), KekPlacement::Inline));
    let new = sample.inline(&record(&[MAIN, DR]));
    assert!(sample.chain.is_current(&Envelope::parse(&new).unwrap(), KekPlacement::Inline));
    let next = Kek::generate(&sample.chain.name, Suite::Aes128Gcm).unwrap();
    sample.chain.set_primary(Arc::new(next), Arc::new(Budget::unshared(1)));
    assert!(sample.chain.inline().is_none(), "it was the old primary's");
}

#[test]
fn a_rewrap_makes_it_version_1() {
    for suite in SUITES {
        let sample = Sample::new(suite);
        let envelope = sample.inline(&record(&[MAIN]));
        let (header, payload) = envelope.split_at(envelope.len() - (5 + 16));
        let rewrapped = sample.chain.rewrap(header).unwrap();
        assert_eq!(rewrapped.len(), envelope::header_len(suite));
        assert!(sample.opens(&[&rewrapped, payload].concat()));
        assert!(sample.opens(&sample.chain.rewrap(&envelope).unwrap()));
    }
}

fn inline_kek(kek: &Kek, record: &InlineRecord<'_>) -> Option<InlineKek> {
    InlineKek::new(kek.suite(), kek.id(), kek.chain(), record)
}
