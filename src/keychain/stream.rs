//! The start of an envelope whose payload is in chunks (versions 3 and 4).
//!
//! It moves no data: [`crate::cobblestone`] cuts a message into chunks, and [`crate::stream`] reads
//! and writes.

use std::fmt;

use crate::cobblestone::MessageKey;
use crate::id::KekId;

/// A new envelope: what precedes its first chunk, and the key of its chunks.
pub struct NewStream {
    /// The header, and salt and commitment of the payload.
    pub head: Vec<u8>,
    /// Seals the chunks, for example with a [`Sealer`](crate::cobblestone::Sealer).
    pub key: MessageKey,
    /// The KEK that wraps its DEK.
    pub kek_id: KekId,
}

impl fmt::Debug for NewStream {
    /// Its KEK alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewStream").field("kek_id", &self.kek_id).finish_non_exhaustive()
    }
}
