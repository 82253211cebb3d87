//! [`RandomReader`]: reads any part of a message from an [`io::Read`] that can seek.

use std::io::{self, Read, Seek, SeekFrom};

use zeroize::Zeroizing;

use super::blocking::{copy, read_full};
use super::{CHUNK_LEN, Invalid, MessageKey, SEALED_CHUNK_LEN, opened_len};

/// Opens the parts of a message that are read. Each chunk is authenticated before a byte of it is
/// given, and the last one at the start: so the length is authentic too.
pub struct RandomReader<R> {
    inner: R,
    key: MessageKey,
    /// Where the first chunk begins in `inner`.
    start: u64,
    /// The length of the message.
    len: u64,
    position: u64,
    /// The chunk that was opened last, and its length.
    held: Option<(u64, usize)>,
    buffer: Zeroizing<Vec<u8>>,
}

impl<R: Read + Seek> RandomReader<R> {
    /// Reads a message that ends where `inner` ends. Its prefix, which was read already, ends at
    /// `start`.
    ///
    /// # Errors
    /// Those of `inner`. An error of kind [`io::ErrorKind::InvalidData`] is an authentication
    /// failure, or a message that was cut.
    pub fn new(inner: R, key: MessageKey, start: u64) -> io::Result<Self> {
        let buffer = Zeroizing::new(vec![0; SEALED_CHUNK_LEN]);
        let mut reader = Self { inner, key, start, len: 0, position: 0, held: None, buffer };
        let end = reader.inner.seek(SeekFrom::End(0))?;
        let sealed = end.checked_sub(start).ok_or(Invalid)?;
        reader.len = opened_len(sealed + super::PREFIX_LEN as u64)?;
        reader.open(reader.len / CHUNK_LEN as u64)?;
        Ok(reader)
    }

    /// The length of the message in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the message is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Opens the chunk `index` into the buffer.
    fn open(&mut self, index: u64) -> io::Result<()> {
        if self.held.is_some_and(|(held, _)| held == index) {
            return Ok(());
        }
        self.held = None;
        self.inner.seek(SeekFrom::Start(self.start + index * SEALED_CHUNK_LEN as u64))?;
        // The last chunk is shorter, and no other one is.
        let read = read_full(&mut self.inner, &mut self.buffer)?;
        let sealed = self.buffer.get_mut(..read).unwrap_or_default();
        let opened = self.key.open_chunk(index, sealed)?.len();
        if (opened < CHUNK_LEN) != (index == self.len / CHUNK_LEN as u64) {
            return Err(Invalid.into());
        }
        self.held = Some((index, opened));
        Ok(())
    }
}

impl<R: Read + Seek> Read for RandomReader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.len || bytes.is_empty() {
            return Ok(0);
        }
        let (index, within) = (self.position / CHUNK_LEN as u64, self.position % CHUNK_LEN as u64);
        self.open(index)?;
        // Below the size of a chunk.
        let within = usize::try_from(within).unwrap_or(CHUNK_LEN);
        let opened = self.held.map_or(0, |(_, len)| len);
        let chunk = self.buffer.get(within..opened).unwrap_or_default();
        let len = copy(chunk, bytes);
        self.position += len as u64;
        Ok(len)
    }
}

impl<R: Read + Seek> Seek for RandomReader<R> {
    /// Positions are those of the message. One behind its end is allowed; nothing is read there.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
