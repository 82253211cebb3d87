//! The wrap as it is stored: a format byte, the algorithm, the version of the key, and what Azure
//! returned. It knows nothing about servers.

use crate::root::sealed::{after_format, wrong_length};
use crate::root::settings::WrapAlgorithm;
use crate::root::{Error, MAX_WRAP_LEN};

/// The first byte of a wrap.
const FORMAT: u8 = 1;

/// Format, algorithm and version.
const HEAD: usize = 1 + 1 + 16;

/// What Azure wrapped, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrapped<'a> {
    pub(super) algorithm: WrapAlgorithm,
    /// The version of the key: 32 hexadecimal digits in Azure.
    pub(super) version: [u8; 16],
    pub(super) sealed: &'a [u8],
}

impl<'a> Wrapped<'a> {
    /// Whether it fits in a record.
    pub(super) fn fits(self) -> bool {
        !self.sealed.is_empty() && HEAD + self.sealed.len() <= MAX_WRAP_LEN
    }

    /// Parses what [`to_bytes`](Self::to_bytes) returned.
    ///
    /// # Errors
    /// [`Error::Wrong`].
    pub(super) fn from_bytes(bytes: &'a [u8]) -> Result<Self, Error> {
        let rest = after_format(bytes, FORMAT)?;
        let (algorithm, rest) = rest.split_first().ok_or_else(wrong_length)?;
        let algorithm = match algorithm {
            1 => WrapAlgorithm::RsaOaep256,
            2 => WrapAlgorithm::A256Kw,
            _ => return Err(Error::Wrong("its algorithm is unknown".to_owned())),
        };
        let (version, sealed) = rest.split_first_chunk::<16>().ok_or_else(wrong_length)?;
        let wrapped = Self { algorithm, version: *version, sealed };
        Some(wrapped).filter(|wrapped| wrapped.fits()).ok_or_else(wrong_length)
    }

    /// The bytes to store.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let algorithm = match self.algorithm {
            WrapAlgorithm::RsaOaep256 => 1,
            WrapAlgorithm::A256Kw => 2,
        };
        [&[FORMAT, algorithm], &self.version[..], self.sealed].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrap_is_read_as_it_was_written() {
        for algorithm in [WrapAlgorithm::RsaOaep256, WrapAlgorithm::A256Kw] {
            let wrapped = Wrapped { algorithm, version: [7; 16], sealed: b"sealed" };
            let bytes = wrapped.to_bytes();
            assert_eq!((bytes[0], bytes.len()), (1, HEAD + 6));
            assert_eq!(Wrapped::from_bytes(&bytes), Ok(wrapped));
            assert!(Wrapped::from_bytes(&bytes[..HEAD]).is_err());
        }
        assert!(Wrapped::from_bytes(&[&[1, 3][..], &[0; 100]].concat()).is_err());
        assert!(Wrapped::from_bytes(&[&[1, 1][..], &[0; 1023]].concat()).is_err());
    }
}
