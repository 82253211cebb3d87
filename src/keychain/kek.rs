//! A KEK in memory: it seals messages and streams under fresh DEKs and opens what it sealed.
//!
//! It knows the envelope and the AEAD; not whether it may be used, nor how often it was.

use std::ops::Range;

use crate::aead::{self, Cipher, NONCE_LEN, TAG_LEN};
use crate::cobblestone::{self, MessageKey, PREFIX_LEN, Prefix, SealError};
use crate::envelope::{self, Header, PayloadForm, Version};
use crate::id::{ChainName, KekId, Suite};
use crate::random;
use crate::secret::KeyBytes;

use super::error::{DecryptError, EncryptError};
use super::inline::InlineKek;
use super::message::{Opened, Plaintext, Sealed};
use super::noted::Noted;
use super::stream::NewStream;

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
    noted: Noted,
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
            noted: Noted::default(),
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

    /// Which of its uses are noted.
    pub(crate) fn noted(&self) -> &Noted {
        &self.noted
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
        let header = self.wrap_behind(&dek, inline.header_start(), inline.dek_aad(), room)?;
        Ok(plaintext.into_sealed_behind(header))
    }

    /// Starts an envelope whose plaintext arrives in pieces, under a fresh DEK: one use. If
    /// `inline` is given, the header embeds the wrapped KEK (version 4).
    pub(super) fn start_stream(
        &self,
        aad: &[u8],
        inline: Option<&InlineKek>,
    ) -> Result<NewStream, EncryptError> {
        self.start_stream_with_dek(aad, inline).map(|(stream, _)| stream)
    }

    /// The same, with the DEK, for a caller that has the chunks sealed elsewhere.
    pub(super) fn start_stream_with_dek(
        &self,
        aad: &[u8],
        inline: Option<&InlineKek>,
    ) -> Result<(NewStream, KeyBytes), EncryptError> {
        let context = envelope::stream_context(self.suite(), &self.chain, aad);
        let context = context.ok_or(EncryptError::AadTooLong)?;
        let dek = KeyBytes::random(self.suite())?;
        let dek = Dek { key: dek, form: PayloadForm::Chunked };
        let mut head = aead::swept(|| self.wrap_stream(&dek.key, inline, PREFIX_LEN))?;
        let (key, prefix) = MessageKey::generate(&dek.key, &context)?;
        head.extend_from_slice(&prefix);
        Ok((NewStream { head, key, kek_id: self.id }, dek.key))
    }

    /// A header that holds `dek` under this KEK, for the payload that it came from: one use. If
    /// `inline` is given, the header embeds the wrapped KEK.
    pub(super) fn seal_dek(
        &self,
        dek: &Dek,
        inline: Option<&InlineKek>,
    ) -> Result<Vec<u8>, EncryptError> {
        aead::swept(|| match (dek.form, inline) {
            (PayloadForm::Whole, None) => {
                let mut header = vec![0; envelope::header_len(self.suite())];
                self.wrap(&dek.key, &mut header)?;
                Ok(header)
            }
            (PayloadForm::Whole, Some(inline)) => {
                self.wrap_behind(&dek.key, inline.header_start(), inline.dek_aad(), 0)
            }
            (PayloadForm::Chunked, inline) => self.wrap_stream(&dek.key, inline, 0),
        })
    }

    /// A header of version 3 or 4 that holds `dek`, with room for as many bytes behind it. Its
    /// start and the AAD of its wrap are made here: few headers are of a stream.
    fn wrap_stream(
        &self,
        dek: &KeyBytes,
        inline: Option<&InlineKek>,
        room: usize,
    ) -> Result<Vec<u8>, EncryptError> {
        let version = Version::new(PayloadForm::Chunked, inline.map(InlineKek::record));
        let mut start = Vec::new();
        envelope::write_header_start(&mut start, version, self.suite(), &self.id);
        let aad = envelope::dek_aad(version, self.suite(), &self.id, &self.chain);
        self.wrap_behind(dek, &start, &aad, room)
    }

    /// The header with this start that holds `dek`, with room for as many bytes behind it.
    fn wrap_behind(
        &self,
        dek: &KeyBytes,
        start: &[u8],
        aad: &[u8],
        room: usize,
    ) -> Result<Vec<u8>, EncryptError> {
        if dek.suite() != self.suite() {
            return Err(EncryptError::OtherSuite);
        }
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
        self.seal_key(dek, nonce, aad, wrapped, tag)?;
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
        let made;
        let aad = match header.version {
            Version::Stored => &self.dek_aad,
            _ => {
                made = header.dek_aad(&self.chain);
                &made
            }
        };
        aead::swept(|| self.cipher.open(header.wrap_nonce, aad, dek.as_mut(), header.wrap_tag))
            .map_err(|_| DecryptError::Invalid)?;
        Ok(Dek { key: dek, form: header.version.form() })
    }
}

/// A data encryption key that was opened: it opens one payload, or is wrapped again.
pub struct Dek {
    key: KeyBytes,
    /// What it opens: the wrap authenticates that, as a part of the version.
    form: PayloadForm,
}

impl Dek {
    #[cfg(test)]
    pub(super) fn of(key: KeyBytes, form: PayloadForm) -> Self {
        Self { key, form }
    }

    /// Opens a whole `payload` in place and gives the range of the plaintext in it.
    ///
    /// # Errors
    /// [`DecryptError::Invalid`]; `payload` contains no plaintext then.
    pub fn open(
        &self,
        chain: &ChainName,
        payload: &mut [u8],
        aad: &[u8],
    ) -> Result<Range<usize>, DecryptError> {
        let invalid = DecryptError::Invalid;
        match self.form {
            PayloadForm::Whole => {
                let aad = envelope::data_aad(self.key.suite(), chain, aad).ok_or(invalid)?;
                let (message, tag) =
                    payload.split_last_chunk_mut::<TAG_LEN>().ok_or(DecryptError::Invalid)?;
                aead::open_once(&self.key, &aad, message, tag).map_err(|_| invalid)?;
                Ok(0..message.len())
            }
            PayloadForm::Chunked => {
                let (prefix, chunks) = payload.split_first_chunk_mut().ok_or(invalid)?;
                let key = self.open_stream(chain, prefix, aad)?;
                let len = cobblestone::open_in_place(&key, chunks).map_err(|_| invalid)?;
                Ok(PREFIX_LEN..PREFIX_LEN + len)
            }
        }
    }

    /// The key of the stream whose payload begins with `prefix`. The commitment is verified.
    ///
    /// # Errors
    /// [`DecryptError::Invalid`], also if the payload is not in chunks.
    pub fn open_stream(
        &self,
        chain: &ChainName,
        prefix: &Prefix,
        aad: &[u8],
    ) -> Result<MessageKey, DecryptError> {
        let context = envelope::stream_context(self.key.suite(), chain, aad)
            .filter(|_| self.form == PayloadForm::Chunked)
            .ok_or(DecryptError::Invalid)?;
        MessageKey::open(&self.key, prefix, &context).map_err(|_| DecryptError::Invalid)
    }

    /// The DEK itself, for a caller that has the chunks opened elsewhere. It is verified as in
    /// [`open_stream`](Self::open_stream).
    ///
    /// # Errors
    /// [`DecryptError::Invalid`].
    pub fn stream_key(
        &self,
        chain: &ChainName,
        prefix: &Prefix,
        aad: &[u8],
    ) -> Result<Opened, DecryptError> {
        self.open_stream(chain, prefix, aad)?;
        let key = self.key.expose();
        Ok(Opened::new(key.to_vec(), 0..key.len()))
    }
}

impl From<SealError> for EncryptError {
    fn from(error: SealError) -> Self {
        match error {
            SealError::TooLong => Self::TooLong,
            SealError::Randomness(error) => Self::Randomness(error),
        }
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
