//! A KEK in memory: it seals messages under fresh DEKs and opens what it sealed.
//!
//! It knows the envelope and the AEAD; not whether it may be used, nor how often it was.

use crate::aead::{self, Cipher, NONCE_LEN, TAG_LEN};
use crate::envelope::{self, Header, Version};
use crate::id::{ChainName, KekId, Suite};
use crate::random;
use crate::secret::KeyBytes;

use super::error::{DecryptError, EncryptError};
use super::inline::InlineKek;
use super::message::{Plaintext, Sealed};

/// A key encryption key of one chain, ready for use. Wiped on drop.
pub struct Kek {
    id: KekId,
    key: KeyBytes,
    cipher: Cipher,
    chain: ChainName,
    /// The AAD of every version 1 wrap under it.
    dek_aad: Vec<u8>,
    /// Version, suite and id: the start of every version 1 header under it.
    header_start: HeaderStart,
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
        // The hash leaves the key on the stack.
        let id = aead::swept(|| KekId::of_key(key.expose()));
        let suite = key.suite();
        Self {
            id,
            cipher: Cipher::new(&key),
            chain: chain.clone(),
            dek_aad: envelope::dek_aad(Version::Stored, suite, &id, chain),
            header_start: header_start(suite, &id),
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

    /// The chain that it belongs to.
    #[must_use]
    pub fn chain(&self) -> &ChainName {
        &self.chain
    }

    /// Its bytes, for a root to wrap.
    #[must_use]
    pub fn key(&self) -> &KeyBytes {
        &self.key
    }

    /// Seals `plaintext` under a fresh DEK: one use. If `inline` is given, the header embeds the
    /// wrapped KEK (version 2).
    pub(super) fn seal(
        &self,
        plaintext: Plaintext,
        aad: &[u8],
        inline: Option<&InlineKek>,
    ) -> Result<Sealed, EncryptError> {
        aead::swept(|| self.seal_unswept(plaintext, aad, inline))
    }

    #[inline]
    fn seal_unswept(
        &self,
        mut plaintext: Plaintext,
        aad: &[u8],
        inline: Option<&InlineKek>,
    ) -> Result<Sealed, EncryptError> {
        let suite = self.suite();
        let aad = envelope::data_aad(suite, &self.chain, aad).ok_or(EncryptError::AadTooLong)?;
        let dek = KeyBytes::random(suite)?;
        let (header, message, tag) = plaintext.parts(suite).ok_or(EncryptError::TooLong)?;
        *tag = aead::seal_once_unswept(&dek, &aad, message).map_err(|_| EncryptError::TooLong)?;
        let Some(inline) = inline else {
            self.wrap(&dek, header)?;
            return Ok(plaintext.into_sealed(suite));
        };
        let room = message.len() + TAG_LEN;
        let header = self.wrap_inline(&dek, inline, room)?;
        Ok(plaintext.into_sealed_behind(header))
    }

    /// A header that holds `dek` under this KEK, of version 2 where it is given how: one use.
    pub(super) fn seal_dek(
        &self,
        dek: &Dek,
        inline: Option<&InlineKek>,
    ) -> Result<Vec<u8>, EncryptError> {
        aead::swept(|| {
            if let Some(inline) = inline {
                return self.wrap_inline(&dek.0, inline, 0);
            }
            let mut header = vec![0; envelope::header_len(self.suite())];
            self.wrap(&dek.0, &mut header)?;
            Ok(header)
        })
    }

    /// A version 2 header that holds `dek`, with room for as many bytes behind it.
    fn wrap_inline(
        &self,
        dek: &KeyBytes,
        inline: &InlineKek,
        room: usize,
    ) -> Result<Vec<u8>, EncryptError> {
        if dek.suite() != self.suite() {
            return Err(EncryptError::OtherSuite);
        }
        let start = inline.header_start();
        // Allocated in full: a DEK must not stay behind in a buffer that grew.
        let len = start.len() + NONCE_LEN + self.suite().key_len() + TAG_LEN;
        let mut header = Vec::with_capacity(len + room);
        header.extend_from_slice(start);
        header.resize(len, 0);
        let rest = header.get_mut(start.len()..).unwrap_or_default();
        let (nonce, rest) =
            rest.split_first_chunk_mut::<NONCE_LEN>().ok_or(EncryptError::TooLong)?;
        let (wrapped, tag) = rest.split_last_chunk_mut().ok_or(EncryptError::TooLong)?;
        random::fill(nonce)?;
        self.seal_key(dek, nonce, inline.dek_aad(), wrapped, tag)?;
        Ok(header)
    }

    /// Fills `header` with a version 1 header that holds `dek`, which is sealed where it stands.
    fn wrap(&self, dek: &KeyBytes, header: &mut [u8]) -> Result<(), EncryptError> {
        if dek.suite() != self.suite() {
            return Err(EncryptError::OtherSuite);
        }
        let (start, nonce, wrapped, tag) = split(header).ok_or(EncryptError::TooLong)?;
        *start = self.header_start;
        random::fill(nonce)?;
        self.seal_key(dek, nonce, &self.dek_aad, wrapped, tag)
    }

    /// Seals `dek` into `wrapped`, which is as long.
    fn seal_key(
        &self,
        dek: &KeyBytes,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        wrapped: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) -> Result<(), EncryptError> {
        wrapped.copy_from_slice(dek.expose());
        *tag = self.cipher.seal(nonce, aad, wrapped).map_err(|_| EncryptError::TooLong)?;
        Ok(())
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
        let with_record;
        let aad = match header.version {
            Version::Stored => &self.dek_aad,
            Version::Inline(_) => {
                with_record = header.dek_aad(&self.chain);
                &with_record
            }
        };
        aead::swept(|| self.cipher.open(header.wrap_nonce, aad, dek.as_mut(), header.wrap_tag))
            .map_err(|_| DecryptError::Invalid)?;
        Ok(Dek(dek))
    }
}

/// A data encryption key that was opened: it opens one payload, or is wrapped again.
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
        let aad = envelope::data_aad(self.0.suite(), chain, aad).ok_or(DecryptError::Invalid)?;
        let (message, tag) =
            payload.split_last_chunk_mut::<TAG_LEN>().ok_or(DecryptError::Invalid)?;
        aead::open_once(&self.0, &aad, message, tag).map_err(|_| DecryptError::Invalid)?;
        Ok(message.len())
    }
}

type HeaderStart = [u8; 2 + KekId::LEN];

fn header_start(suite: Suite, id: &KekId) -> HeaderStart {
    let mut start: HeaderStart = [0; 2 + KekId::LEN];
    let [version, code, rest @ ..] = &mut start;
    (*version, *code, *rest) = (Version::Stored.code(), suite.code(), *id.as_bytes());
    start
}

type HeaderParts<'a> =
    (&'a mut HeaderStart, &'a mut [u8; NONCE_LEN], &'a mut [u8], &'a mut [u8; TAG_LEN]);

/// The parts of a version 1 header: start, nonce, wrapped DEK, tag.
fn split(header: &mut [u8]) -> Option<HeaderParts<'_>> {
    let (start, rest) = header.split_first_chunk_mut()?;
    let (nonce, rest) = rest.split_first_chunk_mut()?;
    let (wrapped, tag) = rest.split_last_chunk_mut()?;
    Some((start, nonce, wrapped, tag))
}
