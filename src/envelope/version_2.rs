//! Tests of the inline record, and of envelopes that are almost valid.

use proptest::prelude::*;

use super::tests::{record, sample, versions};
use super::*;

/// Writes what was parsed again.
fn written(envelope: &Envelope<'_>) -> Vec<u8> {
    let Header { version, suite, kek_id, wrap_nonce, wrapped_dek, wrap_tag, bytes } =
        &envelope.header;
    let mut out = Vec::new();
    write_header(&mut out, *version, *suite, kek_id, wrap_nonce, wrapped_dek, wrap_tag);
    assert_eq!(out, *bytes);
    out.extend_from_slice(envelope.payload);
    out
}

#[test]
fn a_header_alone_is_whole_or_refused() {
    let record = record();
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        for version in versions(&record) {
            let header = sample(version, suite, 0);
            assert!(Envelope::parse_header_or_whole(&header).unwrap().payload.is_empty());
            assert!(Envelope::parse(&header).is_err());
            for len in 0..header.len() {
                assert!(Envelope::parse_header_or_whole(&header[..len]).is_err(), "{len}");
            }
            for payload in 1..TAG_LEN {
                let longer = sample(version, suite, payload);
                assert!(Envelope::parse_header_or_whole(&longer).is_err(), "{payload}");
            }
        }
    }
}

#[test]
fn records_that_do_not_fit_are_not_written() {
    let of = |root: usize, wrap: usize| InlineRecord {
        wraps: vec![("r".repeat(root).into(), vec![7; wrap].into())],
    };
    assert!(InlineRecord { wraps: Vec::new() }.to_bytes().is_none());
    for (root, wrap, fits) in [
        (1, 1, true),
        (0, 1, false),
        (1, 0, false),
        (255, 1, true),
        (256, 1, false),
        // Format byte and two length fields take 4 bytes of the record's 65,535.
        (1, 65_530, true),
        (1, 65_531, false),
        (1, 65_536, false),
    ] {
        let bytes = of(root, wrap).to_bytes();
        assert_eq!(bytes.is_some(), fits, "{root}, {wrap}");
        if let Some(bytes) = bytes {
            assert_eq!(InlineRecord::parse(&bytes), Ok(of(root, wrap)));
        }
    }
}

proptest! {
    /// What is nearly an envelope, as random bytes never are.
    #[test]
    fn changed_inline_envelopes_are_read_to_the_last_byte_or_refused(
        long: bool,
        chunked: bool,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4), 1..4),
    ) {
        let record = record();
        let suite = if long { Suite::Aes256Gcm } else { Suite::Aes128Gcm };
        let form = if chunked { PayloadForm::Chunked } else { PayloadForm::Whole };
        let mut bytes = sample(Version::new(form, Some(&record)), suite, 80);
        for (at, byte, edit) in edits {
            let at = at.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at + 1),
            }
        }
        if let Ok(envelope) = Envelope::parse_header_or_whole(&bytes) {
            prop_assert_eq!(written(&envelope), bytes);
        }
    }

    #[test]
    fn records_are_read_as_they_were_written(
        wraps in proptest::collection::vec(
            ("[a-zä-ö根]{1,60}", proptest::collection::vec(any::<u8>(), 1..300)), 1..5,
        ),
    ) {
        let wraps = wraps.into_iter().map(|(root, wrap)| (root.into(), wrap.into())).collect();
        let record = InlineRecord { wraps };
        let bytes = record.to_bytes().unwrap();
        prop_assert_eq!(InlineRecord::parse(&bytes), Ok(record));
    }

    /// Nothing in a record is skipped.
    #[test]
    fn what_is_read_as_a_record_is_written_the_same(
        at: prop::sample::Index, byte: u8, cut: prop::sample::Index,
    ) {
        let mut bytes = record();
        let (at, cut) = (at.index(bytes.len()), cut.index(bytes.len()));
        bytes[at] = byte;
        for bytes in [&bytes[..], &bytes[..=cut]] {
            if let Ok(record) = InlineRecord::parse(bytes) {
                prop_assert_eq!(record.to_bytes().unwrap(), bytes);
            }
        }
    }
}
