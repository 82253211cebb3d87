//! Envelopes of all versions: what is read is written the same.

use crate::envelope::{self, Envelope, Header, InlineRecord};

/// An envelope, a header alone, an inline record or a text form.
pub fn envelope(bytes: &[u8]) {
    if let Ok((header, payload)) = Header::split_from(bytes) {
        let Header { version, suite, kek_id, wrap_nonce, wrapped_dek, wrap_tag, bytes: read } =
            header;
        let mut written = Vec::new();
        envelope::write_header(
            &mut written,
            version,
            suite,
            &kek_id,
            wrap_nonce,
            wrapped_dek,
            wrap_tag,
        );
        assert_eq!(written, read);
        written.extend_from_slice(payload);
        assert_eq!(written, bytes);
        assert_eq!(Header::len_from(bytes), Ok(read.len()));
        for cut in [0, 1, 2, 18, 19, 20] {
            let known = Header::len_from(&bytes[..cut]).unwrap();
            assert!(known <= read.len() && (known > cut || known == read.len()));
        }
        assert!(Header::split_from(&bytes[..read.len() - 1]).is_err());
        let whole = Envelope::parse(bytes);
        assert_eq!(
            whole.is_ok(),
            Envelope::parse_header_or_whole(bytes).is_ok() && !payload.is_empty()
        );
        if let Ok(whole) = whole {
            assert_eq!((whole.header, whole.payload), (header, payload));
            assert!(whole.plaintext_len().is_some_and(|len| len < payload.len()));
        }
        if let Some(record) = version.record() {
            assert_eq!(InlineRecord::parse(record).unwrap().to_bytes().unwrap(), record);
        }
    } else {
        assert!(Envelope::parse(bytes).is_err());
    }
    if let Ok(record) = InlineRecord::parse(bytes) {
        // Only what fits its length field is written.
        let written = record.to_bytes();
        assert!(written.as_deref() == Some(bytes) || bytes.len() > usize::from(u16::MAX));
    }
    if let Ok(decoded) = envelope::from_text(bytes) {
        assert_eq!(envelope::to_text(&decoded).as_bytes(), bytes);
    }
    assert_eq!(envelope::from_text(envelope::to_text(bytes)).unwrap(), bytes);
}
