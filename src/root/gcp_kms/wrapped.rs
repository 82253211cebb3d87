//! The wrap as it is stored: a format byte, the version of the key, a checksum, and the ciphertext
//! of Cloud KMS. It knows nothing about servers.
//!
//! Only the ciphertext authenticates the KEK and its context. The version beside it tells whether
//! another wrap would be made today, and the checksum notices damage before a call is paid for.

use crate::root::sealed::{after_format, wrong_length};
use crate::root::{Error, MAX_WRAP_LEN};

use super::crc32c;

/// The first byte of a wrap.
const FORMAT: u8 = 1;

/// Format, version and checksum.
const HEAD: usize = 1 + 4 + 4;

/// A ciphertext of Cloud KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrapped<'a> {
    /// The number of the key's version that made it, from 1 on.
    pub(super) version: u32,
    pub(super) ciphertext: &'a [u8],
}

impl<'a> Wrapped<'a> {
    /// Whether it fits in a record.
    pub(super) fn fits(self) -> bool {
        !self.ciphertext.is_empty() && HEAD + self.ciphertext.len() <= MAX_WRAP_LEN
    }

    /// Parses what [`to_bytes`](Self::to_bytes) returned.
    ///
    /// # Errors
    /// [`Error::Wrong`].
    pub(super) fn from_bytes(bytes: &'a [u8]) -> Result<Self, Error> {
        let rest = after_format(bytes, FORMAT)?;
        let parts = rest.split_first_chunk::<4>().and_then(|(version, rest)| {
            let (sum, ciphertext) = rest.split_first_chunk::<4>()?;
            let version = u32::from_be_bytes(*version);
            Some((Self { version, ciphertext }, u32::from_be_bytes(*sum)))
        });
        let (wrapped, sum) =
            parts.filter(|(wrapped, _)| wrapped.fits()).ok_or_else(wrong_length)?;
        if wrapped.checksum() != sum || wrapped.version == 0 {
            return Err(Error::Wrong("it is damaged: its checksum does not match".to_owned()));
        }
        Ok(wrapped)
    }

    /// The bytes to store.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let sum = self.checksum().to_be_bytes();
        [&[FORMAT], &self.version.to_be_bytes()[..], &sum, self.ciphertext].concat()
    }

    /// That of version and ciphertext.
    fn checksum(self) -> u32 {
        crc32c::of(&[&self.version.to_be_bytes(), self.ciphertext].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrap_is_read_as_it_was_written_and_damage_is_noticed() {
        let wrapped = Wrapped { version: 7, ciphertext: b"sealed" };
        let bytes = wrapped.to_bytes();
        assert_eq!((&bytes[..5], &bytes[9..]), (&[1, 0, 0, 0, 7][..], &b"sealed"[..]));
        assert_eq!(Wrapped::from_bytes(&bytes), Ok(wrapped));
        for bit in 0..8 * bytes.len() {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Wrapped::from_bytes(&bad), Err(Error::Wrong(_))), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Wrapped::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        let longest = Wrapped { version: 1, ciphertext: &[7; MAX_WRAP_LEN - HEAD] };
        assert!(longest.fits() && longest.to_bytes().len() == MAX_WRAP_LEN);
        assert!(!Wrapped { version: 1, ciphertext: &[7; MAX_WRAP_LEN - HEAD + 1] }.fits());
    }
}
