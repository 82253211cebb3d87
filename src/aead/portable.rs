//! The `aes-gcm` crate with the interface of `long.rs`, for builds without AWS-LC.

use crate::secret::KeyBytes;

use super::{Cipher, Failed, NONCE_LEN, TAG_LEN};

/// No message is sealed here: both ways are the same.
pub(super) const fn takes(_len: usize) -> bool {
    false
}

/// A prepared key.
pub(super) struct Key(Cipher);

impl Key {
    #[expect(clippy::unnecessary_wraps, reason = "the interface of long.rs")]
    pub(super) fn new(key: &KeyBytes) -> Result<Self, Failed> {
        Ok(Self(Cipher::new(key)))
    }

    pub(super) fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Failed> {
        self.0.seal(nonce, aad, buffer)
    }

    pub(super) fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), Failed> {
        self.0.open(nonce, aad, buffer, tag)
    }
}
