//! A `CiphertextBlob` of this service: a short head that names the chain, and the binary envelope.
//!
//! Programs that decrypt with KMS need not name a key, so the blob does. The head needs no tag: the
//! chain's name is in the AADs of the envelope. `docs/format.md` specifies it.

use crate::id::ChainName;

/// What every blob starts with: in base64 its text starts with `kmspr`. Blobs of KMS start with
/// `0x01`.
pub(super) const MAGIC: [u8; 4] = [0x92, 0x6b, 0x29, 0xaf];

const FORMAT: u8 = 1;

/// What a `CiphertextBlob` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Blob<'a> {
    /// It was made by kms-proxy, or is meant to look so.
    Own {
        /// The chain that it names.
        chain: ChainName,
        /// The binary envelope, which is not checked yet.
        envelope: &'a [u8],
    },
    /// It starts like a blob of kms-proxy and is not one.
    Malformed,
    /// It was made by KMS, or by something else.
    Foreign,
}

impl<'a> Blob<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Self {
        let Some(rest) = bytes.strip_prefix(&MAGIC) else { return Self::Foreign };
        Self::parse_rest(rest).unwrap_or(Self::Malformed)
    }

    fn parse_rest(rest: &'a [u8]) -> Option<Self> {
        let (&[format, len], rest) = rest.split_first_chunk()?;
        let (name, envelope) = rest.split_at_checked(usize::from(len))?;
        let chain = ChainName::new(str::from_utf8(name).ok()?).ok()?;
        (format == FORMAT).then_some(Self::Own { chain, envelope })
    }
}

/// The blob of an envelope of `chain`.
pub(super) fn write(chain: &ChainName, envelope: &[u8]) -> Vec<u8> {
    let name = chain.as_str().as_bytes();
    let mut blob = Vec::with_capacity(MAGIC.len() + 2 + name.len() + envelope.len());
    blob.extend_from_slice(&MAGIC);
    // A chain's name has at most 63 bytes.
    blob.extend_from_slice(&[FORMAT, u8::try_from(name.len()).unwrap_or(u8::MAX)]);
    blob.extend_from_slice(name);
    blob.extend_from_slice(envelope);
    blob
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_blob_is_the_magic_the_format_the_chain_and_the_envelope() {
        let chain = ChainName::new("orders").unwrap();
        let blob = write(&chain, b"envelope");
        assert_eq!(blob, b"\x92\x6b\x29\xaf\x01\x06ordersenvelope");
        assert!(base64_simd::STANDARD.encode_to_string(&blob).starts_with("kmspr"));
        assert_eq!(Blob::parse(&blob), Blob::Own { chain, envelope: b"envelope" });
    }

    #[test]
    fn a_damaged_head_is_never_the_same_chain() {
        let chain = ChainName::new("orders").unwrap();
        let blob = write(&chain, b"envelope");
        for index in 0..MAGIC.len() + 2 + 6 {
            for bit in 0..8 {
                let mut damaged = blob.clone();
                damaged[index] ^= 1 << bit;
                let parsed = Blob::parse(&damaged);
                let is_same = matches!(parsed, Blob::Own { chain: found, .. } if found == chain);
                assert!(!is_same, "bit {bit} of byte {index}");
            }
        }
        for len in 0..MAGIC.len() + 2 + 6 {
            assert!(!matches!(Blob::parse(&blob[..len]), Blob::Own { .. }), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_blob_of_kms_is_mistaken_for_one_of_ours(
            rest in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let blob = [&[1], &rest[..]].concat();
            prop_assert_eq!(Blob::parse(&blob), Blob::Foreign);
        }

        #[test]
        fn every_blob_of_ours_is_recognised(
            name in "[a-z0-9][a-z0-9._-]{0,62}",
            envelope in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let chain = ChainName::new(&name).unwrap();
            let blob = write(&chain, &envelope);
            prop_assert_eq!(Blob::parse(&blob), Blob::Own { chain, envelope: &envelope });
            prop_assert!(blob[0] != 1);
        }
    }
}
