//! Inline KEKs, with the store `inline`. The inline record goes into an annotation; the rest of the
//! version 2 envelope has the form of version 1, so that it stays within 1,024 bytes. Decrypt joins
//! them again. The record is authenticated: joined with another record, an envelope does not open.

use std::collections::HashMap;

use crate::envelope::{Envelope, Version, write_header};

/// The annotation with the record.
const KEK: &str = "kek.kms-proxy.dev";

/// An envelope as Kubernetes stores it.
pub(super) type Stored = (Vec<u8>, HashMap<String, Vec<u8>>);

/// The envelope in the form of version 1, and its inline record. `None` if it is not an envelope.
pub(super) fn split(envelope: Vec<u8>) -> Option<Stored> {
    let parsed = Envelope::parse(&envelope).ok()?;
    let Version::Inline(record) = parsed.header.version else {
        return Some((envelope, HashMap::new()));
    };
    let annotations = HashMap::from([(KEK.to_owned(), record.to_vec())]);
    Some((with_version(&parsed, Version::Stored), annotations))
}

/// Joins the parts that [`split`] returned. Other annotations are ignored. `None` if the ciphertext
/// is not an envelope of version 1.
pub(super) fn join(ciphertext: Vec<u8>, annotations: &HashMap<String, Vec<u8>>) -> Option<Vec<u8>> {
    let parsed = Envelope::parse(&ciphertext).ok()?;
    if parsed.header.version != Version::Stored {
        return None;
    }
    let Some(record) = annotations.get(KEK) else { return Some(ciphertext) };
    u16::try_from(record.len()).ok()?;
    Some(with_version(&parsed, Version::Inline(record)))
}

fn with_version(envelope: &Envelope<'_>, version: Version<'_>) -> Vec<u8> {
    let header = &envelope.header;
    let mut out = Vec::new();
    write_header(
        &mut out,
        version,
        header.suite,
        &header.kek_id,
        header.wrap_nonce,
        header.wrapped_dek,
        header.wrap_tag,
    );
    out.extend_from_slice(envelope.payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{InlineRecord, header_len};
    use crate::id::{KekId, Suite};

    fn envelope(version: Version<'_>) -> Vec<u8> {
        let (id, nonce, tag) = (KekId::of_key(&[7; 16]), [1; 12], [2; 16]);
        let mut bytes = Vec::new();
        write_header(&mut bytes, version, Suite::Aes128Gcm, &id, &nonce, &[3; 16], &tag);
        bytes.extend_from_slice(&[4; 48]);
        bytes
    }

    #[test]
    fn an_inline_record_is_split_off_and_joined_again() {
        let record = InlineRecord { wraps: vec![("main".into(), vec![5; 900].into())] };
        let record = record.to_bytes().unwrap();
        let whole = envelope(Version::Inline(&record));
        let (ciphertext, annotations) = split(whole.clone()).unwrap();
        assert_eq!(ciphertext, envelope(Version::Stored));
        assert_eq!(ciphertext.len(), header_len(Suite::Aes128Gcm) + 48);
        assert_eq!(annotations, HashMap::from([(KEK.to_owned(), record)]));
        assert_eq!(join(ciphertext.clone(), &annotations), Some(whole.clone()));
        // Without its record it is another envelope, which does not open.
        assert_eq!(join(ciphertext, &HashMap::new()), Some(envelope(Version::Stored)));
        assert_eq!(join(whole, &annotations), None);
    }

    #[test]
    fn an_envelope_of_version_1_is_unchanged() {
        let whole = envelope(Version::Stored);
        let (ciphertext, annotations) = split(whole.clone()).unwrap();
        assert_eq!((&ciphertext, annotations.len()), (&whole, 0));
        let others = HashMap::from([("other.example.com".to_owned(), vec![1])]);
        assert_eq!(join(ciphertext, &others), Some(whole));
        assert_eq!(split(vec![1, 1]), None);
        assert_eq!(join(Vec::new(), &others), None);
        let long = HashMap::from([(KEK.to_owned(), vec![1; 1 << 16])]);
        assert_eq!(join(envelope(Version::Stored), &long), None);
    }
}
