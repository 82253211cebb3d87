//! Envelopes of any length, in constant memory: sealed to a writer, opened from a reader, from the
//! middle, or on several threads (envelope versions 3 and 4).
//!
//! It joins [`KeyChain`] and [`crate::cobblestone`]. It blocks; a caller that must not block drives
//! [`KeyChain::start_stream`], [`KeyChain::open_stream`], and the `Sealer` and `Opener` of
//! [`crate::cobblestone`] itself. It knows no service.
//!
//! ```
//! use std::io::{Read, Write};
//!
//! use kms_proxy::{KeyChain, stream};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let chain = KeyChain::new()?;
//! let mut sealing = stream::seal_to(&chain, Vec::new(), b"row 7")?;
//! sealing.write_all(b"a long text")?;
//! let envelope = sealing.finish()?;
//!
//! let mut text = String::new();
//! stream::open_from(&chain, &*envelope, b"row 7")?.read_to_string(&mut text)?;
//! assert_eq!(text, "a long text");
//! # Ok(())
//! # }
//! ```

use std::io::{self, Read, Seek, Write};
use std::num::NonZeroUsize;

use crate::cobblestone::{MessageKey, PREFIX_LEN, Prefix, RandomReader, Reader, Writer, parallel};
use crate::envelope::Header;
use crate::keychain::stream::NewStream;
use crate::keychain::{DecryptError, EncryptError, KeyChain};

/// Why a stream was not sealed or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The writer or the reader failed. One of kind [`io::ErrorKind::InvalidData`] is a chunk that
    /// does not open.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It can't be encrypted.
    #[error(transparent)]
    Encrypt(#[from] EncryptError),
    /// Its start does not open.
    #[error(transparent)]
    Decrypt(#[from] DecryptError),
}

/// Starts an envelope and writes its header to `out`. What is written to the result is sealed;
/// [`Writer::finish`] completes the envelope.
///
/// # Errors
/// [`Error`].
pub fn seal_to<W: Write>(chain: &KeyChain, mut out: W, aad: &[u8]) -> Result<Writer<W>, Error> {
    let NewStream { head, key, .. } = chain.start_stream(aad)?;
    out.write_all(&head)?;
    Ok(Writer::new(out, key))
}

/// Seals all that `plaintext` gives on `threads` threads, and writes the envelope to `out`. Returns
/// the length of the plaintext.
///
/// # Errors
/// [`Error`]; what was written does not open then.
pub fn seal_parallel(
    chain: &KeyChain,
    plaintext: impl Read,
    mut out: impl Write,
    aad: &[u8],
    threads: NonZeroUsize,
) -> Result<u64, Error> {
    let NewStream { head, key, .. } = chain.start_stream(aad)?;
    out.write_all(&head)?;
    Ok(parallel::seal(&key, plaintext, out, threads)?)
}

/// Opens the envelope that `envelope` gives. What is read from the result is authentic; it is
/// complete when the result has reported its end.
///
/// # Errors
/// [`Error`], also for an envelope of version 1 or 2.
pub fn open_from<R: Read>(
    chain: &KeyChain,
    mut envelope: R,
    aad: &[u8],
) -> Result<Reader<R>, Error> {
    let (key, _) = open_start(chain, &mut envelope, aad)?;
    Ok(Reader::new(envelope, key))
}

/// Opens the envelope that `envelope` gives on `threads` threads, and writes the plaintext to
/// `out`. Returns its length.
///
/// # Errors
/// [`Error`]; what was written is authentic then, and incomplete.
pub fn open_parallel(
    chain: &KeyChain,
    mut envelope: impl Read,
    out: impl Write,
    aad: &[u8],
    threads: NonZeroUsize,
) -> Result<u64, Error> {
    let (key, _) = open_start(chain, &mut envelope, aad)?;
    Ok(parallel::open(&key, envelope, out, threads)?)
}

/// Opens the envelope that begins where `envelope` is, and ends where it ends, to read any part of
/// its plaintext. Only the chunks of that part are read, and the last one.
///
/// # Errors
/// [`Error`], also for an envelope of version 1 or 2.
pub fn open_random<R: Read + Seek>(
    chain: &KeyChain,
    mut envelope: R,
    aad: &[u8],
) -> Result<RandomReader<R>, Error> {
    let start = envelope.stream_position()?;
    let (key, len) = open_start(chain, &mut envelope, aad)?;
    Ok(RandomReader::new(envelope, key, start.saturating_add(len))?)
}

/// What precedes the first chunk of an envelope: the header, and salt and commitment of the
/// payload.
#[derive(Debug)]
pub struct Start(Vec<u8>);

impl Start {
    /// Reads it, and nothing of the first chunk. Nothing is verified.
    ///
    /// # Errors
    /// Those of `envelope`, and [`DecryptError::Invalid`] if it ends before.
    pub fn read(mut envelope: impl Read) -> Result<Self, Error> {
        let mut bytes = read_header(&mut envelope)?;
        let header_len = bytes.len();
        bytes.resize(header_len + PREFIX_LEN, 0);
        read_exact(&mut envelope, bytes.get_mut(header_len..).unwrap_or_default())?;
        Ok(Self(bytes))
    }

    /// The bytes of it.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The header, and salt and commitment.
    ///
    /// # Errors
    /// [`DecryptError::Invalid`].
    pub fn parts(&self) -> Result<(Header<'_>, &Prefix), DecryptError> {
        let (header, prefix) = Header::split_from(&self.0).map_err(|_| DecryptError::Invalid)?;
        Ok((header, prefix.first_chunk().ok_or(DecryptError::Invalid)?))
    }
}

/// Reads the header of an envelope, and nothing of the payload. Nothing is verified.
///
/// # Errors
/// Those of `envelope`, and [`DecryptError::Invalid`] if it ends before.
pub fn read_header(mut envelope: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    loop {
        let known = bytes.len();
        let len = Header::len_from(&bytes).map_err(|_| DecryptError::Invalid)?;
        if len <= known {
            return Ok(bytes);
        }
        bytes.resize(len, 0);
        read_exact(&mut envelope, bytes.get_mut(known..).unwrap_or_default())?;
    }
}

/// Reads the start of an envelope and opens its key; also gives the length of the start.
fn open_start(
    chain: &KeyChain,
    envelope: &mut impl Read,
    aad: &[u8],
) -> Result<(MessageKey, u64), Error> {
    let start = Start::read(envelope)?;
    let (header, prefix) = start.parts()?;
    let key = chain.open_stream(&header, prefix, aad)?;
    Ok((key, start.as_slice().len() as u64))
}

/// Fills `buffer`. An envelope that ends before is invalid.
fn read_exact(envelope: &mut impl Read, buffer: &mut [u8]) -> Result<(), Error> {
    envelope.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => DecryptError::Invalid.into(),
        _ => error.into(),
    })
}

#[cfg(test)]
mod tests;
