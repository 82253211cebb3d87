//! A KEK in memory: it seals messages under fresh DEKs and opens what it sealed.
//!
//! It knows the envelope and the AEAD; not whether it may be used, nor how often it was.

use zeroize::Zeroizing;

use crate::aead::{Cipher, NONCE_LEN, TAG_LEN};
use crate::envelope::{self, Header, Version};
use crate::id::{ChainName, KekId, Suite};
use crate::random;
use crate::secret::KeyBytes;

use super::error::{DecryptError, EncryptError};
use super::message::{Plaintext, Sealed};

/// A key encryption key of one chain, ready for use. Wiped on drop.
pub struct Kek {
    id: KekId,
    key: KeyBytes,
    cipher: Cipher,
    chain: ChainName,
    /// The AAD of every version 1 wrap under it.
    dek_aad: Vec<u8>,
    /// The start of the AAD of every payload.
    data_aad_prefix: Vec<u8>,
}

impl Kek {
    /// A fresh KEK for `chain`.
    ///
    /// # Errors
    /// [`random::Unavailable`].
    pub fn generate(chain: &ChainName, suite: Suite) -> Result<Self, random::Unavailable> {
        Ok(Self::new(chain, KeyBytes::random(suite)?))
    }

    /// The KEK with these bytes; its id follows from them.
    #[must_use]
    pub fn new(chain: &ChainName, key: KeyBytes) -> Self {
        let id = KekId::of_key(key.expose());
        let suite = key.suite();
        Self {
            id,
            cipher: Cipher::new(&key),
            chain: chain.clone(),
            dek_aad: envelope::dek_aad(Version::Stored, suite, &id, chain),
            data_aad_prefix: envelope::data_aad_prefix(suite, chain),
            key,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> KekId {
        self.id
    }

    /// Its suite, and that of its DEKs.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.key.suite()
    }

    /// Its bytes, for a root to wrap.
    #[must_use]
    pub fn key(&self) -> &KeyBytes {
        &self.key
    }

    /// Seals `plaintext` under a fresh DEK: one use.
    pub(super) fn seal(
        &self,
        mut plaintext: Plaintext,
        aad: &[u8],
    ) -> Result<Sealed, EncryptError> {
        let aad =
            envelope::push_data_aad(&self.data_aad_prefix, aad).ok_or(EncryptError::AadTooLong)?;
        // DEK and nonce come from one draw; the DEK's part is wiped with it.
        let mut fresh = Zeroizing::new([0; NONCE_LEN + 32]);
        let (nonce, key) =
            fresh.split_first_chunk_mut::<NONCE_LEN>().ok_or(EncryptError::TooLong)?;
        let key = key.get_mut(..self.suite().key_len()).ok_or(EncryptError::TooLong)?;
        random::fill(nonce)?;
        random::fill(key)?;
        let dek = KeyBytes::from_slice(key).ok_or(EncryptError::TooLong)?;

        let header_len = envelope::header_len(self.suite());
        let (room, message, tag_room) = plaintext.parts();
        let start = room.len() - header_len;
        let tag = Cipher::new(&dek)
            .seal(&PAYLOAD_NONCE, &aad, message)
            .map_err(|_| EncryptError::TooLong)?;
        tag_room.copy_from_slice(&tag);
        let header = self.wrap(&dek, nonce)?;
        if let Some(room) = room.get_mut(start..) {
            room.copy_from_slice(header.as_slice());
        }
        Ok(plaintext.into_sealed(start))
    }

    /// A version 1 header that holds `dek` under this KEK: one use.
    pub(super) fn seal_dek(&self, dek: &Dek) -> Result<Vec<u8>, EncryptError> {
        let mut nonce = [0; NONCE_LEN];
        random::fill(&mut nonce)?;
        Ok(self.wrap(&dek.0, &nonce)?.as_slice().to_vec())
    }

    fn wrap(&self, dek: &KeyBytes, nonce: &[u8; NONCE_LEN]) -> Result<HeaderBuffer, EncryptError> {
        let mut wrapped = [0; 32];
        let wrapped = wrapped.get_mut(..dek.expose().len()).ok_or(EncryptError::TooLong)?;
        wrapped.copy_from_slice(dek.expose());
        let tag =
            self.cipher.seal(nonce, &self.dek_aad, wrapped).map_err(|_| EncryptError::TooLong)?;
        let mut header = HeaderBuffer::default();
        header.push(&[Version::Stored.code(), self.suite().code()]);
        header.push(self.id.as_bytes());
        header.push(nonce);
        header.push(wrapped);
        header.push(&tag);
        Ok(header)
    }

    /// Opens the DEK that `header` holds.
    ///
    /// # Errors
    /// [`DecryptError::Invalid`].
    pub fn open_dek(&self, header: &Header<'_>) -> Result<Dek, DecryptError> {
        if header.suite != self.suite() || header.kek_id != self.id {
            return Err(DecryptError::Invalid);
        }
        let mut dek = KeyBytes::from_slice(header.wrapped_dek).ok_or(DecryptError::Invalid)?;
        let carried;
        let aad = match header.version {
            Version::Stored => &self.dek_aad,
            Version::Carried(_) => {
                carried = header.dek_aad(&self.chain);
                &carried
            }
        };
        self.cipher
            .open(header.wrap_nonce, aad, dek.as_mut(), header.wrap_tag)
            .map_err(|_| DecryptError::Invalid)?;
        Ok(Dek(dek))
    }
}

#[cfg(test)]
impl Kek {
    /// A wrap of `dek` for a header of any version.
    pub(super) fn wrap_for_test(
        &self,
        dek: &Dek,
        version: Version<'_>,
        nonce: &[u8; NONCE_LEN],
    ) -> (Vec<u8>, [u8; TAG_LEN]) {
        let mut wrapped = dek.0.expose().to_vec();
        let aad = envelope::dek_aad(version, self.suite(), &self.id, &self.chain);
        let tag = self.cipher.seal(nonce, &aad, &mut wrapped).unwrap();
        (wrapped, tag)
    }
}

/// A data encryption key that was opened: it opens one payload, or is wrapped anew.
pub struct Dek(KeyBytes);

impl Dek {
    /// Opens `payload` (ciphertext and tag) in place and gives the length of the plaintext, which
    /// stands at its start.
    ///
    /// # Errors
    /// [`DecryptError::Invalid`].
    pub fn open(
        &self,
        chain: &ChainName,
        payload: &mut [u8],
        aad: &[u8],
    ) -> Result<usize, DecryptError> {
        let prefix = envelope::data_aad_prefix(self.0.suite(), chain);
        let aad = envelope::push_data_aad(&prefix, aad).ok_or(DecryptError::Invalid)?;
        let (message, tag) =
            payload.split_last_chunk_mut::<TAG_LEN>().ok_or(DecryptError::Invalid)?;
        Cipher::new(&self.0)
            .open(&PAYLOAD_NONCE, &aad, message, tag)
            .map_err(|_| DecryptError::Invalid)?;
        Ok(message.len())
    }
}

/// A DEK seals one payload, so its nonce need not differ from another's.
const PAYLOAD_NONCE: [u8; NONCE_LEN] = [0; NONCE_LEN];

/// A version 1 header on the stack.
struct HeaderBuffer {
    bytes: [u8; envelope::MAX_STORED_HEADER_LEN],
    len: usize,
}

impl Default for HeaderBuffer {
    fn default() -> Self {
        Self { bytes: [0; envelope::MAX_STORED_HEADER_LEN], len: 0 }
    }
}

impl HeaderBuffer {
    fn push(&mut self, part: &[u8]) {
        let end = self.len + part.len();
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(part);
            self.len = end;
        }
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
