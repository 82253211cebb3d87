//! Cuts a message into chunks: [`Sealer`] and [`Opener`] take pieces of any size, and give whole
//! chunks in buffers of their own. Each holds one chunk.

use std::mem;

use zeroize::{Zeroize, Zeroizing};

use crate::aead::TAG_LEN;

use super::{CHUNK_LEN, Invalid, MessageKey, SEALED_CHUNK_LEN, SealError};

/// Seals a message that arrives in pieces. The plaintext that waits for the end of its chunk is
/// wiped on drop.
pub struct Sealer {
    key: MessageKey,
    index: u64,
    waiting: Vec<u8>,
}

impl Sealer {
    /// Begins with the first chunk. The prefix belongs in front of it.
    #[must_use]
    pub fn new(key: MessageKey) -> Self {
        Self { key, index: 0, waiting: Vec::with_capacity(SEALED_CHUNK_LEN) }
    }

    /// The number of the chunk that is sealed next.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Takes the next piece, and passes each chunk that is complete to `out`.
    ///
    /// # Errors
    /// [`SealError::TooLong`]; what was sealed until then must be thrown away.
    pub fn update(
        &mut self,
        mut piece: &[u8],
        mut out: impl FnMut(Vec<u8>),
    ) -> Result<(), SealError> {
        while let Some((rest, next)) = piece.split_at_checked(CHUNK_LEN - self.waiting.len()) {
            self.waiting.extend_from_slice(rest);
            piece = next;
            out(self.seal()?);
        }
        self.waiting.extend_from_slice(piece);
        Ok(())
    }

    /// The last chunk, which may be empty. A message that breaks off must not be finished.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn finish(mut self) -> Result<Vec<u8>, SealError> {
        self.seal()
    }

    fn seal(&mut self) -> Result<Vec<u8>, SealError> {
        let tag = self.key.seal_chunk(self.index, &mut self.waiting)?;
        self.index += 1;
        self.waiting.extend_from_slice(&tag);
        Ok(mem::replace(&mut self.waiting, Vec::with_capacity(SEALED_CHUNK_LEN)))
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.waiting.zeroize();
    }
}

/// Opens a message that arrives in pieces. It gives authenticated bytes only.
pub struct Opener {
    key: MessageKey,
    index: u64,
    waiting: Vec<u8>,
    failed: bool,
}

impl Opener {
    /// Begins with the first chunk, which follows the prefix.
    #[must_use]
    pub fn new(key: MessageKey) -> Self {
        Self::from_chunk(key, 0)
    }

    /// Begins with the chunk `index`, which is at `PREFIX_LEN + index * SEALED_CHUNK_LEN` in the
    /// ciphertext.
    #[must_use]
    pub fn from_chunk(key: MessageKey, index: u64) -> Self {
        Self { key, index, waiting: Vec::with_capacity(SEALED_CHUNK_LEN), failed: false }
    }

    /// The number of the chunk that is opened next.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Takes the next piece, and passes the plaintext of each full chunk to `out`.
    ///
    /// # Errors
    /// [`Invalid`], and again in each later call.
    pub fn update(
        &mut self,
        mut piece: &[u8],
        mut out: impl FnMut(Zeroizing<Vec<u8>>),
    ) -> Result<(), Invalid> {
        while let Some((rest, next)) = piece.split_at_checked(SEALED_CHUNK_LEN - self.waiting.len())
        {
            self.waiting.extend_from_slice(rest);
            piece = next;
            out(self.open()?);
        }
        self.waiting.extend_from_slice(piece);
        Ok(())
    }

    /// The plaintext of the last chunk, once all of the ciphertext has arrived.
    ///
    /// # Errors
    /// [`Invalid`], also if the ciphertext was cut.
    pub fn finish(mut self) -> Result<Zeroizing<Vec<u8>>, Invalid> {
        // A full chunk is never waiting: it was opened when it was complete.
        self.open()
    }

    fn open(&mut self) -> Result<Zeroizing<Vec<u8>>, Invalid> {
        if self.failed {
            return Err(Invalid);
        }
        let opened = self.key.open_chunk(self.index, &mut self.waiting).map(|chunk| chunk.len());
        self.failed = opened.is_err();
        opened?;
        self.index += 1;
        let mut chunk = mem::replace(&mut self.waiting, Vec::with_capacity(SEALED_CHUNK_LEN));
        chunk.truncate(chunk.len() - TAG_LEN);
        Ok(Zeroizing::new(chunk))
    }
}

/// Opens all chunks of a message, whose ciphertext without the prefix is `chunks`. The plaintext is
/// at the start of `chunks` then; gives its length.
///
/// # Errors
/// [`Invalid`]; `chunks` contains no plaintext then.
pub fn open_in_place(key: &MessageKey, chunks: &mut [u8]) -> Result<usize, Invalid> {
    let opened = open_all(key, chunks);
    // Behind the plaintext there are pieces of it: each chunk has moved.
    let wiped = opened.as_ref().map_or(0, |len| *len);
    chunks.get_mut(wiped..).unwrap_or_default().zeroize();
    opened
}

fn open_all(key: &MessageKey, chunks: &mut [u8]) -> Result<usize, Invalid> {
    let (mut index, mut start, mut len) = (0, 0, 0);
    loop {
        let end = (start + SEALED_CHUNK_LEN).min(chunks.len());
        let chunk = key.open_chunk(index, chunks.get_mut(start..end).ok_or(Invalid)?)?.len();
        chunks.copy_within(start..start + chunk, len);
        len += chunk;
        if chunk < CHUNK_LEN {
            // A short chunk is the last one.
            return if end == chunks.len() { Ok(len) } else { Err(Invalid) };
        }
        (index, start) = (index + 1, end);
    }
}
