//! Cobblestone, the chunked encryption of C2SP (<https://c2sp.org/chunked-encryption>, version 1):
//! a message of up to 4 PiB under one input key, in constant memory, with random access.
//!
//! HKDF-Expand with SHA-512 derives a key, a base nonce and a commitment from the input key, a
//! salt and a context. The ciphertext is salt, commitment, and AES-GCM chunks of 16 KiB, of which
//! the last one is shorter. This file owns the derivation and single chunks. [`Sealer`] and
//! [`Opener`] cut a message into chunks without I/O; [`Writer`], [`Reader`] and [`RandomReader`] do
//! I/O, and [`parallel`] does it on several threads. Nothing here knows about envelopes or key
//! chains.

use std::io;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha512;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::aead::{self, BulkCipher, NONCE_LEN, TAG_LEN};
use crate::id::Suite;
use crate::random;
use crate::secret::KeyBytes;

mod blocking;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod message;
pub mod parallel;
mod random_reader;

pub use blocking::{Reader, Writer};
pub use message::{Opener, Sealer, open_in_place};
pub use random_reader::RandomReader;

/// The size of the plaintext of a chunk in bytes: 16 KiB. The last chunk is shorter.
pub const CHUNK_LEN: usize = 16 << 10;
/// The size of a full chunk in the ciphertext.
pub const SEALED_CHUNK_LEN: usize = CHUNK_LEN + TAG_LEN;
/// The size of the salt in bytes.
pub const SALT_LEN: usize = 24;
/// The size of the commitment in bytes.
pub const COMMITMENT_LEN: usize = 32;
/// The size of what precedes the first chunk: salt and commitment.
pub const PREFIX_LEN: usize = SALT_LEN + COMMITMENT_LEN;
/// The largest number of chunks of a message: 2^38, so a message has at most 2^52 - 1 bytes.
pub const MAX_CHUNKS: u64 = 1 << 38;

/// Salt and commitment, as they precede the first chunk.
pub type Prefix = [u8; PREFIX_LEN];

/// Why a message can't be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The message has more than 2^52 - 1 bytes.
    #[error("the message is longer than 4 PiB")]
    TooLong,
    /// The operating system gives no randomness.
    #[error(transparent)]
    Randomness(#[from] random::Unavailable),
}

impl From<SealError> for io::Error {
    fn from(error: SealError) -> Self {
        Self::other(error)
    }
}

/// The ciphertext does not open: a wrong key or context, or bytes that were changed, removed or
/// added. Which one is not reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct Invalid;

impl From<Invalid> for io::Error {
    fn from(error: Invalid) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// The key and the base nonce of one message.
pub struct MessageKey {
    cipher: BulkCipher,
    base_nonce: [u8; NONCE_LEN],
}

impl MessageKey {
    /// The key of a new message, with a random salt. `input_key` must be uniformly random; with
    /// random salts it is good for the number of messages that the specification lists.
    ///
    /// # Errors
    /// [`SealError::Randomness`].
    pub fn generate(input_key: &KeyBytes, context: &[u8]) -> Result<(Self, Prefix), SealError> {
        let mut salt = [0; SALT_LEN];
        random::fill(&mut salt)?;
        Self::with_salt(input_key, &salt, context)
    }

    fn with_salt(
        input_key: &KeyBytes,
        salt: &[u8; SALT_LEN],
        context: &[u8],
    ) -> Result<(Self, Prefix), SealError> {
        let (key, commitment) = derive(input_key, salt, context).map_err(|_| SealError::TooLong)?;
        let mut prefix = [0; PREFIX_LEN];
        let (first, second) = prefix.split_at_mut(SALT_LEN);
        first.copy_from_slice(salt);
        second.copy_from_slice(&commitment);
        Ok((key, prefix))
    }

    /// The key of the message that begins with `prefix`. The commitment is verified.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn open(input_key: &KeyBytes, prefix: &Prefix, context: &[u8]) -> Result<Self, Invalid> {
        let (salt, commitment) = prefix.split_first_chunk().ok_or(Invalid)?;
        let (key, expected) = derive(input_key, salt, context)?;
        if bool::from(expected.ct_eq(commitment)) { Ok(key) } else { Err(Invalid) }
    }

    /// Seals the chunk `index` in place, and returns its tag. Chunks may be sealed in any order,
    /// each of them once; all but the last one have [`CHUNK_LEN`] bytes, and the last one has
    /// fewer.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn seal_chunk(&self, index: u64, chunk: &mut [u8]) -> Result<[u8; TAG_LEN], SealError> {
        let nonce = self.nonce(index).ok_or(SealError::TooLong)?;
        self.cipher.seal(&nonce, b"", chunk).map_err(|_| SealError::TooLong)
    }

    /// Opens the chunk `index`, ciphertext and tag, in place, and returns the plaintext. If it is
    /// shorter than [`CHUNK_LEN`], it is the last chunk. On failure, `sealed` contains no
    /// plaintext.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn open_chunk<'a>(
        &self,
        index: u64,
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], Invalid> {
        let (chunk, tag) = sealed.split_last_chunk_mut().ok_or(Invalid)?;
        if chunk.len() > CHUNK_LEN {
            return Err(Invalid);
        }
        let nonce = self.nonce(index).ok_or(Invalid)?;
        self.cipher.open(&nonce, b"", chunk, tag).map_err(|_| Invalid)?;
        Ok(chunk)
    }

    /// The base nonce XOR the index as a big-endian integer.
    fn nonce(&self, index: u64) -> Option<[u8; NONCE_LEN]> {
        if index >= MAX_CHUNKS {
            return None;
        }
        let mut nonce = self.base_nonce;
        for (byte, index) in nonce.iter_mut().rev().zip(index.to_le_bytes()) {
            *byte ^= index;
        }
        Some(nonce)
    }
}

/// Key, base nonce and commitment: HKDF-Expand (RFC 5869 section 2.3) with HMAC-SHA-512 of
/// `"c2sp.org/ chunked-encryption@v1+" || aead || 0x00 || salt || context`. The input key is the
/// PRK. It is shorter than what RFC 5869 recommends, as the specification demands.
fn derive(
    input_key: &KeyBytes,
    salt: &[u8; SALT_LEN],
    context: &[u8],
) -> Result<(MessageKey, [u8; COMMITMENT_LEN]), Invalid> {
    let name: &[u8] = match input_key.suite() {
        Suite::Aes128Gcm => b"AEAD_AES_128_GCM",
        Suite::Aes256Gcm => b"AEAD_AES_256_GCM",
    };
    let info: [&[u8]; 5] = [b"c2sp.org/chunked-encryption@v1+", name, b"\0", salt, context];
    // Two blocks: at most 32 + 12 + 32 bytes are needed.
    let mut expanded = Zeroizing::new([0; 128]);
    aead::swept(|| {
        let (first, second) = expanded.split_at_mut(64);
        expand(input_key, &[], &info, 1, first)?;
        expand(input_key, first, &info, 2, second)
    })?;
    let (key, rest) = expanded.split_at(input_key.suite().key_len());
    let (base_nonce, rest) = rest.split_first_chunk().ok_or(Invalid)?;
    let commitment = rest.first_chunk().ok_or(Invalid)?;
    let key = KeyBytes::from_slice(key).ok_or(Invalid)?;
    let cipher = BulkCipher::new(&key).map_err(|_| Invalid)?;
    Ok((MessageKey { cipher, base_nonce: *base_nonce }, *commitment))
}

/// One block of HKDF-Expand.
fn expand(
    key: &KeyBytes,
    previous: &[u8],
    info: &[&[u8]],
    counter: u8,
    out: &mut [u8],
) -> Result<(), Invalid> {
    let mut mac = Hmac::<Sha512>::new_from_slice(key.expose()).map_err(|_| Invalid)?;
    mac.update(previous);
    for part in info {
        mac.update(part);
    }
    mac.update(&[counter]);
    out.copy_from_slice(&mac.finalize().into_bytes());
    Ok(())
}

/// The size of the ciphertext of a message of `len` bytes; `None` if that is too long.
#[must_use]
pub const fn sealed_len(len: u64) -> Option<u64> {
    let chunks = len / CHUNK_LEN as u64 + 1;
    if chunks > MAX_CHUNKS {
        return None;
    }
    Some(PREFIX_LEN as u64 + len + chunks * TAG_LEN as u64)
}

/// The size of the message whose ciphertext has `len` bytes.
///
/// # Errors
/// [`Invalid`] if no message has such a ciphertext: it was cut.
pub const fn opened_len(len: u64) -> Result<u64, Invalid> {
    let Some(chunks) = len.checked_sub(PREFIX_LEN as u64) else { return Err(Invalid) };
    let full = chunks / SEALED_CHUNK_LEN as u64;
    let Some(last) = (chunks % SEALED_CHUNK_LEN as u64).checked_sub(TAG_LEN as u64) else {
        return Err(Invalid);
    };
    if full >= MAX_CHUNKS { Err(Invalid) } else { Ok(full * CHUNK_LEN as u64 + last) }
}

#[cfg(test)]
mod tests;
