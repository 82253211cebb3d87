//! The buffers that a message passes through: [`Plaintext`] -> [`Sealed`], and back to [`Opened`].
//!
//! Plaintext, header and tag share one allocation, so that sealing and opening move no byte. What
//! holds a plaintext is wiped on drop.

use std::ops::Range;

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::aead::TAG_LEN;
use crate::envelope::MAX_STORED_HEADER_LEN;

/// A plaintext with room around it for the header before and the tag behind. Wiped on drop.
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// Room for `len` bytes, all zero, to be written through [`as_mut_slice`](Self::as_mut_slice).
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self(Zeroizing::new(vec![0; MAX_STORED_HEADER_LEN + len + TAG_LEN]))
    }

    /// The plaintext.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.0.get(Self::range(&self.0)).unwrap_or_default()
    }

    /// The plaintext, to be written.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let range = Self::range(&self.0);
        self.0.get_mut(range).unwrap_or_default()
    }

    /// Header room, plaintext and tag room.
    pub(super) fn parts(&mut self) -> (&mut [u8], &mut [u8], &mut [u8]) {
        let range = Self::range(&self.0);
        let (front, tag) = self.0.split_at_mut(range.end);
        let (header, plaintext) = front.split_at_mut(range.start);
        (header, plaintext, tag)
    }

    /// The buffer is an envelope now, from `start` on.
    pub(super) fn into_sealed(mut self, start: usize) -> Sealed {
        Sealed { buffer: std::mem::take(&mut *self.0), start }
    }

    fn range(buffer: &[u8]) -> Range<usize> {
        MAX_STORED_HEADER_LEN..buffer.len() - TAG_LEN
    }
}

impl From<&[u8]> for Plaintext {
    fn from(bytes: &[u8]) -> Self {
        let mut plaintext = Self::zeroed(bytes.len());
        plaintext.as_mut_slice().copy_from_slice(bytes);
        plaintext
    }
}

/// The binary envelope that came of a [`Plaintext`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    buffer: Vec<u8>,
    start: usize,
}

impl Sealed {
    /// The binary envelope.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }
}

impl From<Sealed> for Bytes {
    fn from(sealed: Sealed) -> Self {
        Self::from(sealed.buffer).slice(sealed.start..)
    }
}

/// A plaintext that came of an envelope, in the envelope's own buffer. Wiped on drop.
pub struct Opened {
    buffer: Zeroizing<Vec<u8>>,
    range: Range<usize>,
}

impl Opened {
    pub(super) fn new(buffer: Zeroizing<Vec<u8>>, range: Range<usize>) -> Self {
        Self { buffer, range }
    }

    /// The plaintext.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.buffer.get(self.range.clone()).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Opened {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}
