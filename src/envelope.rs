//! The wire format of envelopes: parsing and writing. `docs/format.md` specifies it.
//!
//! No keys and no cryptography here. Parsing never panics, whatever the bytes.

use crate::aead::{NONCE_LEN, TAG_LEN};
use crate::id::{ChainName, KekId, Suite};

mod inline;
mod version;

pub use inline::InlineRecord;
pub use version::{PayloadForm, Version};

/// The longest AAD in bytes: 64 KiB.
pub const MAX_AAD_LEN: usize = 64 * 1024;

/// The prefix of the text form; standard padded base64 (RFC 4648 section 4) follows.
pub const TEXT_PREFIX: &str = "kp:";

/// The bytes before the payload in version 1: 62 for AES-128-GCM, 78 for AES-256-GCM.
#[must_use]
pub const fn header_len(suite: Suite) -> usize {
    1 + 1 + KekId::LEN + NONCE_LEN + suite.key_len() + TAG_LEN
}

/// The bytes that every header begins with: version, suite and kek_id.
const FIXED_LEN: usize = 1 + 1 + KekId::LEN;

/// The longest version 1 header in bytes.
pub const MAX_STORED_HEADER_LEN: usize = header_len(Suite::Aes256Gcm);

/// Why bytes are not an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The version byte is not 1 to 4.
    #[error("unknown envelope version")]
    Version,
    /// The suite byte is not assigned.
    #[error("unknown cipher suite")]
    Suite,
    /// The header is incomplete, or no payload of this version has this length.
    #[error("the envelope is truncated")]
    Truncated,
    /// The inline record of the header is malformed.
    #[error("the inline record is malformed")]
    Record,
    /// The text form is not `kp:` followed by standard padded base64.
    #[error("the text is not kp: and base64")]
    Text,
}

/// Everything before the payload: which KEK, and the DEK wrapped by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// The version, with the inline record if it has one.
    pub version: Version<'a>,
    /// The suite of KEK and DEK.
    pub suite: Suite,
    /// The KEK that wraps the DEK.
    pub kek_id: KekId,
    /// The nonce of the wrap, which is random.
    pub wrap_nonce: &'a [u8; NONCE_LEN],
    /// The DEK's ciphertext: 16 or 32 bytes.
    pub wrapped_dek: &'a [u8],
    /// The tag of the wrap.
    pub wrap_tag: &'a [u8; TAG_LEN],
    /// The whole header, as read.
    pub bytes: &'a [u8],
}

impl<'a> Header<'a> {
    /// Parses the header at the start of `bytes`; also returns the bytes after it.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn split_from(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Malformed> {
        let mut reader = Reader(bytes);
        let (form, is_inline) = Version::parts(reader.byte()?).ok_or(Malformed::Version)?;
        let suite = Suite::from_code(reader.byte()?).ok_or(Malformed::Suite)?;
        let kek_id = KekId::from_bytes(*reader.array()?);
        let record = if is_inline {
            let len = u16::from_be_bytes(*reader.array()?);
            let record = reader.take(usize::from(len))?;
            InlineRecord::parse(record)?;
            Some(record)
        } else {
            None
        };
        let version = Version::new(form, record);
        let wrap_nonce = reader.array()?;
        let wrapped_dek = reader.take(suite.key_len())?;
        let wrap_tag = reader.array()?;
        let (header, rest) =
            bytes.split_at_checked(bytes.len() - reader.0.len()).ok_or(Malformed::Truncated)?;
        Ok((
            Self { version, suite, kek_id, wrap_nonce, wrapped_dek, wrap_tag, bytes: header },
            rest,
        ))
    }

    /// The length of the header that starts with `start`; if that does not tell it yet, a larger
    /// number of bytes than `start` has, which are part of any such header.
    ///
    /// # Errors
    /// [`Malformed::Version`] and [`Malformed::Suite`]. It does not look at the rest.
    pub fn len_from(start: &[u8]) -> Result<usize, Malformed> {
        let is_inline = match start.first() {
            None => return Ok(FIXED_LEN),
            Some(&code) => Version::parts(code).ok_or(Malformed::Version)?.1,
        };
        let suite = match start.get(1) {
            None => return Ok(FIXED_LEN),
            Some(&code) => Suite::from_code(code).ok_or(Malformed::Suite)?,
        };
        if !is_inline {
            return Ok(header_len(suite));
        }
        let record_len = start.get(FIXED_LEN..).and_then(|rest| rest.first_chunk());
        let Some(len) = record_len else { return Ok(FIXED_LEN + 2) };
        Ok(header_len(suite) + 2 + usize::from(u16::from_be_bytes(*len)))
    }

    /// The AAD of the DEK's wrap: `kms-proxy dek v1`, version, suite, kek_id, chain, and the
    /// inline record if there is one. It authenticates every bit of the header.
    #[must_use]
    pub fn dek_aad(&self, chain: &ChainName) -> Vec<u8> {
        dek_aad(self.version, self.suite, &self.kek_id, chain)
    }
}

/// An envelope: header and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Everything before the payload.
    pub header: Header<'a>,
    /// What follows the header: the ciphertext with its 16-byte tag, or the chunks of a stream.
    /// Empty for a header alone.
    pub payload: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Parses a whole envelope.
    ///
    /// # Errors
    /// [`Malformed`]; a payload that is too short for its version is [`Malformed::Truncated`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let envelope = Self::parse_header_or_whole(bytes)?;
        if envelope.payload.is_empty() { Err(Malformed::Truncated) } else { Ok(envelope) }
    }

    /// Parses a whole envelope, or a header alone, whose payload is then empty.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse_header_or_whole(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, payload) = Header::split_from(bytes)?;
        if payload.is_empty() || header.version.form().message_len(payload.len()).is_some() {
            Ok(Self { header, payload })
        } else {
            Err(Malformed::Truncated)
        }
    }

    /// The length of the plaintext; `None` for a header alone.
    #[must_use]
    pub fn plaintext_len(&self) -> Option<usize> {
        self.header.version.form().message_len(self.payload.len())
    }
}

/// Appends a header to `out`.
pub fn write_header(
    out: &mut Vec<u8>,
    version: Version<'_>,
    suite: Suite,
    kek_id: &KekId,
    wrap_nonce: &[u8; NONCE_LEN],
    wrapped_dek: &[u8],
    wrap_tag: &[u8; TAG_LEN],
) {
    write_header_start(out, version, suite, kek_id);
    out.extend_from_slice(wrap_nonce);
    out.extend_from_slice(wrapped_dek);
    out.extend_from_slice(wrap_tag);
}

/// Appends the part of a header before the nonce of the wrap: it is the same for all headers of one
/// KEK.
pub fn write_header_start(out: &mut Vec<u8>, version: Version<'_>, suite: Suite, kek_id: &KekId) {
    out.extend_from_slice(&[version.code(), suite.code()]);
    out.extend_from_slice(kek_id.as_bytes());
    push_inline(out, version);
}

/// The AAD of a DEK's wrap; see [`Header::dek_aad`].
#[must_use]
pub fn dek_aad(version: Version<'_>, suite: Suite, kek_id: &KekId, chain: &ChainName) -> Vec<u8> {
    let mut aad = b"kms-proxy dek v1".to_vec();
    aad.extend_from_slice(&[version.code(), suite.code()]);
    aad.extend_from_slice(kek_id.as_bytes());
    push_chain(&mut aad, chain);
    push_inline(&mut aad, version);
    aad
}

/// The AAD of a payload: `kms-proxy data v1`, suite, chain, and the caller's AAD after its length
/// (u32). `None` if the caller's AAD is longer than [`MAX_AAD_LEN`].
///
/// It does not bind the KEK, so that a rewrap only has to replace the header.
#[must_use]
pub fn data_aad(suite: Suite, chain: &ChainName, aad: &[u8]) -> Option<Vec<u8>> {
    payload_aad(b"kms-proxy data v1", suite, chain, aad)
}

/// The Cobblestone context of a payload in chunks: as [`data_aad`], with `kms-proxy stream v1`.
#[must_use]
pub fn stream_context(suite: Suite, chain: &ChainName, aad: &[u8]) -> Option<Vec<u8>> {
    payload_aad(b"kms-proxy stream v1", suite, chain, aad)
}

fn payload_aad(label: &[u8], suite: Suite, chain: &ChainName, aad: &[u8]) -> Option<Vec<u8>> {
    let len = u32::try_from(aad.len()).ok().filter(|_| aad.len() <= MAX_AAD_LEN)?;
    // One allocation: this runs for every message.
    let fixed = label.len() + 1 + 2 + chain.as_str().len() + 4;
    let mut whole = Vec::with_capacity(fixed + aad.len());
    whole.extend_from_slice(label);
    whole.push(suite.code());
    push_chain(&mut whole, chain);
    whole.extend_from_slice(&len.to_be_bytes());
    whole.extend_from_slice(aad);
    Some(whole)
}

/// The text form of an envelope: `kp:` and standard padded base64.
#[must_use]
pub fn to_text(envelope: &[u8]) -> String {
    let mut text = String::with_capacity(
        TEXT_PREFIX.len() + base64_simd::STANDARD.encoded_length(envelope.len()),
    );
    text.push_str(TEXT_PREFIX);
    base64_simd::STANDARD.encode_append(envelope, &mut text);
    text
}

/// Decodes a text form.
///
/// # Errors
/// [`Malformed::Text`].
pub fn from_text(text: impl AsRef<[u8]>) -> Result<Vec<u8>, Malformed> {
    let base64 = text.as_ref().strip_prefix(TEXT_PREFIX.as_bytes()).ok_or(Malformed::Text)?;
    base64_simd::STANDARD.decode_to_vec(base64).map_err(|_| Malformed::Text)
}

fn push_chain(out: &mut Vec<u8>, chain: &ChainName) {
    // A chain name has at most 63 bytes.
    out.extend_from_slice(&[0, u8::try_from(chain.as_str().len()).unwrap_or(u8::MAX)]);
    out.extend_from_slice(chain.as_str().as_bytes());
}

fn push_inline(out: &mut Vec<u8>, version: Version<'_>) {
    if let Some(record) = version.record() {
        // A record from parsing or from InlineRecord::to_bytes fits its length field.
        out.extend_from_slice(&u16::try_from(record.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(record);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| *byte)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn record() -> Vec<u8> {
        let wraps = vec![("main".into(), vec![1, 2, 3].into()), ("dr".into(), vec![4; 60].into())];
        InlineRecord { wraps }.to_bytes().unwrap()
    }

    pub(super) fn versions(record: &[u8]) -> [Version<'_>; 4] {
        [
            Version::Stored,
            Version::Inline(record),
            Version::StoredStream,
            Version::InlineStream(record),
        ]
    }

    pub(super) fn sample(version: Version<'_>, suite: Suite, payload: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let id = KekId::from_bytes([9; 16]);
        write_header(&mut out, version, suite, &id, &[1; 12], &vec![2; suite.key_len()], &[3; 16]);
        out.resize(out.len() + payload, 4);
        out
    }

    #[test]
    fn an_envelope_adds_78_bytes_to_a_plaintext() {
        assert_eq!(sample(Version::Stored, Suite::Aes128Gcm, 256 + TAG_LEN).len(), 334);
        assert_eq!((header_len(Suite::Aes128Gcm), header_len(Suite::Aes256Gcm)), (62, 78));
    }

    #[test]
    fn a_written_header_parses_to_the_same_parts() {
        let record = record();
        for version in versions(&record) {
            for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
                let bytes = sample(version, suite, 80);
                let envelope = Envelope::parse(&bytes).unwrap();
                assert_eq!((envelope.header.version, envelope.header.suite), (version, suite));
                assert_eq!(envelope.header.kek_id, KekId::from_bytes([9; 16]));
                assert_eq!(envelope.payload, &[4; 80]);
                assert_eq!([envelope.header.bytes, envelope.payload].concat(), bytes);
                let tags = if version.form() == PayloadForm::Chunked { 72 } else { 16 };
                assert_eq!(envelope.plaintext_len(), Some(80 - tags));
            }
        }
    }

    #[test]
    fn the_first_bytes_tell_the_length_of_a_header() {
        let record = record();
        for version in versions(&record) {
            for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
                let bytes = sample(version, suite, 80);
                let (mut known, mut rounds) = (0, 0);
                while let len = Header::len_from(&bytes[..known]).unwrap()
                    && len > known
                {
                    assert!(bytes.len() >= len, "a header has no fewer bytes");
                    (known, rounds) = (len, rounds + 1);
                }
                assert_eq!(known, Header::split_from(&bytes).unwrap().0.bytes.len());
                assert!(rounds <= 3, "{rounds}");
                for start in 0..bytes.len() {
                    assert!(Header::len_from(&bytes[..start]).unwrap() <= known, "{start}");
                }
            }
        }
        assert_eq!(Header::len_from(&[5]), Err(Malformed::Version));
        assert_eq!(Header::len_from(&[3, 3]), Err(Malformed::Suite));
    }

    #[test]
    fn a_payload_in_chunks_has_no_other_length_than_a_message_gives() {
        let record = record();
        for version in [Version::StoredStream, Version::InlineStream(&record)] {
            let refused = |payload| {
                let bytes = sample(version, Suite::Aes128Gcm, payload);
                Envelope::parse_header_or_whole(&bytes) == Err(Malformed::Truncated)
            };
            let full = 56 + 16_400;
            for payload in [1, 16, 55, 56, 71, full, full + 1, full + 15, full + 16_400] {
                assert!(refused(payload), "{payload}");
            }
            for payload in [0, 72, full - 1, full + 16, full + 16_399] {
                assert!(!refused(payload), "{payload}");
            }
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let record = record();
        for version in versions(&record) {
            let least = if version.form() == PayloadForm::Chunked { 72 } else { TAG_LEN };
            let bytes = sample(version, Suite::Aes128Gcm, least);
            for len in 0..bytes.len() {
                assert!(Envelope::parse(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
            }
            let header = &bytes[..bytes.len() - least];
            assert!(Envelope::parse_header_or_whole(header).unwrap().payload.is_empty());
        }
    }

    #[test]
    fn text_form_is_kp_and_padded_base64() {
        assert_eq!(to_text(&[1, 2, 3, 4]), "kp:AQIDBA==");
        assert_eq!(from_text("kp:AQIDBA==").unwrap(), [1, 2, 3, 4]);
        for bad in
            ["", "kp", "AQIDBA==", "KP:AQIDBA==", "kp:AQIDBA", "kp:AQ-DBA==", "kp:AQIDBA==\n"]
        {
            assert_eq!(from_text(bad), Err(Malformed::Text), "{bad:?}");
        }
    }

    #[test]
    fn aads_match_the_specification() {
        let chain = ChainName::new("orders").unwrap();
        let id = KekId::from_bytes([9; 16]);
        let mut expected = b"kms-proxy dek v1\x01\x01".to_vec();
        expected.extend_from_slice(&[9; 16]);
        expected.extend_from_slice(b"\x00\x06orders");
        assert_eq!(dek_aad(Version::Stored, Suite::Aes128Gcm, &id, &chain), expected);
        assert_eq!(
            data_aad(Suite::Aes256Gcm, &chain, b"row 7").unwrap(),
            b"kms-proxy data v1\x02\x00\x06orders\x00\x00\x00\x05row 7"
        );
        assert_eq!(
            stream_context(Suite::Aes128Gcm, &chain, b"row 7").unwrap(),
            b"kms-proxy stream v1\x01\x00\x06orders\x00\x00\x00\x05row 7"
        );
        assert!(stream_context(Suite::Aes128Gcm, &chain, &vec![0; MAX_AAD_LEN + 1]).is_none());
        assert!(data_aad(Suite::Aes128Gcm, &chain, &vec![0; MAX_AAD_LEN]).is_some());
        assert!(data_aad(Suite::Aes128Gcm, &chain, &vec![0; MAX_AAD_LEN + 1]).is_none());
    }

    proptest! {
        /// Parsing never panics, and an accepted envelope accounts for every input byte.
        #[test]
        fn parsing_never_panics_and_loses_nothing(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            version in 0_u8..6,
            suite in 0_u8..4,
        ) {
            if let Some(first) = bytes.first_mut() { *first = version; }
            if let Some(second) = bytes.get_mut(1) { *second = suite; }
            if let Ok(envelope) = Envelope::parse_header_or_whole(&bytes) {
                prop_assert_eq!([envelope.header.bytes, envelope.payload].concat(), bytes);
            }
        }

        #[test]
        fn text_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(from_text(to_text(&bytes)).unwrap(), bytes);
        }
    }
}

#[cfg(test)]
mod version_2;
