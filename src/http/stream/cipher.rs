//! What a stream does to its bytes: it seals or opens them, chunk by chunk.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::cobblestone::{Invalid, Opener, SealError, Sealer};
use crate::metrics::StreamEnd;

/// What is done to the bytes.
pub(super) trait Cipher: Send + Unpin + 'static {
    /// Takes up to a chunk of bytes, and passes on the chunks that they complete.
    fn update(&mut self, piece: &[u8], out: &mut VecDeque<Bytes>) -> Result<(), StreamEnd>;

    /// The last chunk.
    fn finish(self) -> Result<Bytes, StreamEnd>;

    /// The number of the next chunk.
    fn chunk(&self) -> u64;

    /// The plaintext among the bytes that came and those that were made of them.
    fn plaintext(came: usize, made: usize) -> usize;
}

pub(super) struct Sealing(pub(super) Sealer);

impl Cipher for Sealing {
    fn update(&mut self, piece: &[u8], out: &mut VecDeque<Bytes>) -> Result<(), StreamEnd> {
        self.0.update(piece, |chunk| out.push_back(chunk.into())).map_err(seal_end)
    }

    fn finish(self) -> Result<Bytes, StreamEnd> {
        self.0.finish().map(Into::into).map_err(seal_end)
    }

    fn chunk(&self) -> u64 {
        self.0.index()
    }

    fn plaintext(came: usize, _: usize) -> usize {
        came
    }
}

fn seal_end(error: SealError) -> StreamEnd {
    match error {
        SealError::TooLong => StreamEnd::TooLong,
        // It is drawn at the start alone.
        SealError::Randomness(_) => StreamEnd::Aborted,
    }
}

pub(super) struct Opening(pub(super) Opener);

impl Cipher for Opening {
    fn update(&mut self, piece: &[u8], out: &mut VecDeque<Bytes>) -> Result<(), StreamEnd> {
        let opened = self.0.update(piece, |chunk| out.push_back(Bytes::from_owner(chunk)));
        opened.map_err(|Invalid| StreamEnd::Invalid)
    }

    fn finish(self) -> Result<Bytes, StreamEnd> {
        self.0.finish().map(Bytes::from_owner).map_err(|Invalid| StreamEnd::Invalid)
    }

    fn chunk(&self) -> u64 {
        self.0.index()
    }

    fn plaintext(_: usize, made: usize) -> usize {
        made
    }
}
