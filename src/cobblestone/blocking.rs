//! [`Writer`] seals to an [`io::Write`], and [`Reader`] opens from an [`io::Read`]: one chunk at a
//! time, in constant memory.

use std::io::{self, Read, Write};
use std::ops::Range;

use zeroize::{Zeroize, Zeroizing};

use super::{CHUNK_LEN, MessageKey, SEALED_CHUNK_LEN};

/// Seals what is written to it. The message is complete only after [`finish`](Self::finish): a
/// writer that is dropped without that leaves a ciphertext that does not open.
pub struct Writer<W> {
    inner: W,
    key: MessageKey,
    index: u64,
    /// The plaintext of the chunk that is not complete yet.
    chunk: Zeroizing<Vec<u8>>,
    failed: bool,
}

impl<W: Write> Writer<W> {
    /// Writes the chunks of a new message to `inner`, which has the prefix already.
    #[must_use]
    pub fn new(inner: W, key: MessageKey) -> Self {
        let chunk = Zeroizing::new(Vec::with_capacity(SEALED_CHUNK_LEN));
        Self { inner, key, index: 0, chunk, failed: false }
    }

    /// Writes the last chunk, flushes, and gives the inner writer back.
    ///
    /// # Errors
    /// Those of the inner writer; what was written must be thrown away. Also after an earlier
    /// error, and if the message has more than 2^52 - 1 bytes.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal()?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    fn seal(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write failed"));
        }
        // Until it is written: a chunk that was written in part must not be written again.
        self.failed = true;
        let tag = self.key.seal_chunk(self.index, &mut self.chunk)?;
        self.chunk.extend_from_slice(&tag);
        self.inner.write_all(&self.chunk)?;
        self.chunk.clear();
        self.index += 1;
        self.failed = false;
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_LEN - self.chunk.len().min(CHUNK_LEN);
        let taken = bytes.get(..room).unwrap_or(bytes);
        if !self.failed {
            self.chunk.extend_from_slice(taken);
        }
        if taken.len() == room {
            self.seal()?;
        }
        Ok(taken.len())
    }

    /// Flushes the inner writer. A chunk that is not complete stays here.
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Opens what it reads. It gives authenticated bytes only; the message is complete, and was not
/// cut, only when it has reported its end.
pub struct Reader<R> {
    inner: R,
    key: MessageKey,
    index: u64,
    buffer: Zeroizing<Vec<u8>>,
    /// How much of the next chunk is in the buffer, while nothing of it is opened.
    filled: usize,
    /// The part of the buffer that was opened and is not read yet.
    opened: Range<usize>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    More,
    /// The last chunk is opened.
    Last,
    Failed,
}

impl<R: Read> Reader<R> {
    /// Reads the chunks of a message from `inner`, from which the prefix was read already.
    #[must_use]
    pub fn new(inner: R, key: MessageKey) -> Self {
        let buffer = Zeroizing::new(vec![0; SEALED_CHUNK_LEN]);
        Self { inner, key, index: 0, buffer, filled: 0, opened: 0..0, state: State::More }
    }

    /// Opens the next chunk.
    fn open(&mut self) -> io::Result<()> {
        while let Some(room) = self.buffer.get_mut(self.filled..)
            && !room.is_empty()
        {
            match self.inner.read(room) {
                Ok(0) => {
                    self.state = State::Last;
                    break;
                }
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was read is kept: the caller may try again.
                Err(error) => return Err(error),
            }
        }
        let sealed = self.buffer.get_mut(..self.filled).unwrap_or_default();
        match self.key.open_chunk(self.index, sealed) {
            Ok(chunk) => {
                self.opened = 0..chunk.len();
                (self.index, self.filled) = (self.index + 1, 0);
                Ok(())
            }
            Err(error) => {
                self.state = State::Failed;
                Err(error.into())
            }
        }
    }
}

impl<R: Read> Read for Reader<R> {
    /// An error of kind [`io::ErrorKind::InvalidData`] is an authentication failure, or a message
    /// that was cut; it comes again in each later call.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        while self.opened.is_empty() {
            match self.state {
                State::More => self.open()?,
                State::Last => return Ok(0),
                State::Failed => return Err(super::Invalid.into()),
            }
        }
        let opened = self.buffer.get(self.opened.clone()).unwrap_or_default();
        let len = copy(opened, bytes);
        self.opened.start += len;
        Ok(len)
    }
}

/// Copies as many bytes as fit; gives their number.
pub(super) fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let len = from.len().min(to.len());
    to.split_at_mut(len).0.copy_from_slice(from.split_at(len).0);
    len
}

/// Reads until `buffer` is full or `reader` ends; gives the number of bytes.
pub(super) fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..)
        && !room.is_empty()
    {
        match reader.read(room) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                buffer.zeroize();
                return Err(error);
            }
        }
    }
    Ok(filled)
}
