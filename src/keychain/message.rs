//! The buffers that a message passes through: [`Plaintext`] -> [`Sealed`], and back to [`Opened`].
//!
//! Plaintext, header and tag share one allocation, so that sealing and opening move no byte. What
//! holds a plaintext is wiped on drop.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use zeroize::Zeroize;

use crate::aead::TAG_LEN;
use crate::envelope::{MAX_STORED_HEADER_LEN, header_len};
use crate::id::Suite;

/// A plaintext with room around it for the header before and the tag behind. Wiped on drop.
pub struct Plaintext(Vec<u8>);

impl Plaintext {
    /// What its buffer has around it: so many bytes before it and behind it.
    pub(crate) const ROOM: (usize, usize) = (MAX_STORED_HEADER_LEN, TAG_LEN);

    /// The plaintext in `buffer`, behind as many bytes as [`ROOM`](Self::ROOM) says. With capacity
    /// for those behind it, nothing is copied.
    pub(crate) fn in_buffer(mut buffer: Vec<u8>) -> Self {
        if buffer.capacity() - buffer.len() < TAG_LEN {
            // To grow would leave a copy behind.
            let copied = Self::from(buffer.get(MAX_STORED_HEADER_LEN..).unwrap_or_default());
            buffer.zeroize();
            return copied;
        }
        buffer.extend_from_slice(&[0; TAG_LEN]);
        Self(buffer)
    }

    /// Room for `len` bytes, all zero, to be written through [`as_mut_slice`](Self::as_mut_slice).
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self(vec![0; MAX_STORED_HEADER_LEN + len + TAG_LEN])
    }

    /// The bytes, at most `len`, that `append` adds to the buffer.
    pub(crate) fn appended<E>(
        len: usize,
        append: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut plaintext = Self(Vec::with_capacity(MAX_STORED_HEADER_LEN + len + TAG_LEN));
        plaintext.0.extend_from_slice(&[0; MAX_STORED_HEADER_LEN]);
        if let Err(error) = append(&mut plaintext.0) {
            // Some of it may lie behind the end, and is wiped with the rest.
            plaintext.0.resize(plaintext.0.capacity(), 0);
            return Err(error);
        }
        plaintext.0.extend_from_slice(&[0; TAG_LEN]);
        Ok(plaintext)
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

    /// Room for a header of `suite`, the plaintext, room for its tag.
    pub(super) fn parts(
        &mut self,
        suite: Suite,
    ) -> Option<(&mut [u8], &mut [u8], &mut [u8; TAG_LEN])> {
        let (room, rest) = self.0.split_at_mut_checked(MAX_STORED_HEADER_LEN)?;
        let (plaintext, tag) = rest.split_last_chunk_mut()?;
        Some((room.get_mut(header_start(suite)..)?, plaintext, tag))
    }

    /// The buffer is an envelope of `suite` now.
    pub(super) fn into_sealed(mut self, suite: Suite) -> Sealed {
        Sealed { buffer: std::mem::take(&mut self.0), start: header_start(suite) }
    }

    /// An envelope of this header and what the plaintext was sealed to. The room of the buffer is
    /// for version 1: a longer header costs a copy.
    pub(super) fn into_sealed_behind(self, mut header: Vec<u8>) -> Sealed {
        let sealed = self.0.get(MAX_STORED_HEADER_LEN..).unwrap_or_default();
        header.extend_from_slice(sealed);
        Sealed { buffer: header, start: 0 }
    }

    fn range(buffer: &[u8]) -> Range<usize> {
        MAX_STORED_HEADER_LEN..buffer.len() - TAG_LEN
    }
}

impl<const N: usize> From<&[u8; N]> for Plaintext {
    fn from(bytes: &[u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl fmt::Debug for Plaintext {
    /// Its length alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plaintext({} bytes)", self.as_slice().len())
    }
}

impl Drop for Plaintext {
    fn drop(&mut self) {
        self.0.as_mut_slice().zeroize();
    }
}

/// Where in the buffer an envelope of `suite` starts.
fn header_start(suite: Suite) -> usize {
    MAX_STORED_HEADER_LEN - header_len(suite)
}

impl From<&[u8]> for Plaintext {
    fn from(bytes: &[u8]) -> Self {
        let appended = Self::appended(bytes.len(), |buffer| {
            buffer.extend_from_slice(bytes);
            Ok::<_, std::convert::Infallible>(())
        });
        appended.unwrap_or_else(|never| match never {})
    }
}

/// The binary envelope that came of a [`Plaintext`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    buffer: Vec<u8>,
    start: usize,
}

impl Sealed {
    /// The start of an envelope whose payload is sealed elsewhere.
    #[must_use]
    pub fn start_of(bytes: Vec<u8>) -> Self {
        Self { buffer: bytes, start: 0 }
    }

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

impl From<Sealed> for Vec<u8> {
    /// The binary envelope, in the same allocation.
    fn from(sealed: Sealed) -> Self {
        let mut envelope = sealed.buffer;
        envelope.drain(..sealed.start);
        envelope
    }
}

/// A plaintext that came of an envelope, in the envelope's own buffer. Wiped on drop.
pub struct Opened {
    buffer: Vec<u8>,
    range: Range<usize>,
}

impl Opened {
    pub(super) fn new(buffer: Vec<u8>, range: Range<usize>) -> Self {
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

impl fmt::Debug for Opened {
    /// Its length alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opened({} bytes)", self.as_slice().len())
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(plaintext) = self.buffer.get_mut(self.range.clone()) {
            plaintext.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plaintext_is_what_was_written_whichever_way() {
        let mut written = Plaintext::zeroed(5);
        assert_eq!(written.as_slice(), [0; 5]);
        written.as_mut_slice().copy_from_slice(b"hello");
        let copied = Plaintext::from(b"hello");
        assert_eq!((written.as_slice(), copied.as_slice()), (&b"hello"[..], &b"hello"[..]));
        assert_eq!(written.0.len(), copied.0.len(), "room for header and tag");
        for spare in [0, TAG_LEN] {
            let (before, _) = Plaintext::ROOM;
            let mut buffer = Vec::with_capacity(before + 5 + spare);
            buffer.extend_from_slice(&written.0[..before + 5]);
            assert_eq!(Plaintext::in_buffer(buffer).0, copied.0);
        }
    }

    #[test]
    fn a_sealed_message_gives_its_envelope_without_the_spare_room() {
        for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
            let sealed = Plaintext::from(b"hello").into_sealed(suite);
            let envelope = sealed.as_slice().to_vec();
            assert_eq!(envelope.len(), header_len(suite) + 5 + TAG_LEN);
            assert_eq!(Vec::from(sealed), envelope);
        }
    }

    #[test]
    fn debug_shows_no_plaintext() {
        let opened = Opened::new(b"hello".to_vec(), 0..5);
        assert_eq!(format!("{opened:?}"), "Opened(5 bytes)");
        assert_eq!(format!("{:?}", Plaintext::from(b"hello")), "Plaintext(5 bytes)");
    }
}
