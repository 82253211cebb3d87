//! [`Permit`]: one use of a primary KEK, without which nothing is sealed; [`Uses`]: many of them.
//!
//! It does not know who counts the uses, nor whether they are stored.

use std::sync::Arc;

use crate::clock::Monotonic;
use crate::id::KekId;
use crate::secret::KeyBytes;

use super::KeyChain;
use super::budget::Taken;
use super::error::EncryptError;
use super::inline::{InlineKek, KekPlacement};
use super::kek::{Dek, Kek};
use super::message::{Plaintext, Sealed};
use super::stream::NewStream;

/// Uses of the primary of one snapshot that were taken together. Those that are not spent return
/// when this is dropped.
pub(crate) struct Uses {
    pub(super) chain: Arc<KeyChain>,
    pub(super) taken: Taken,
}

impl Uses {
    /// Takes one of them; `None` when none is left, or they are void at `now`.
    #[must_use]
    pub(crate) fn next(&mut self, now: Monotonic) -> Option<Permit<'_>> {
        self.chain.permit(self.taken.next(now)?)
    }
}

/// One use of the primary that was taken and must be spent or lost: nothing is sealed without one.
#[must_use]
pub struct Permit<'a> {
    pub(super) kek: &'a Kek,
    pub(super) inline: Option<&'a InlineKek>,
    pub(super) placement: KekPlacement,
    pub(super) void_at: Monotonic,
}

impl<'a> Permit<'a> {
    /// The KEK that it is a use of.
    pub(crate) fn kek(&self) -> &'a Kek {
        self.kek
    }
}

impl Permit<'_> {
    /// The id of the KEK that it is a use of.
    #[must_use]
    pub fn kek_id(&self) -> KekId {
        self.kek.id()
    }

    /// What is sealed with it must be thrown away when it is finished at this time or later.
    #[must_use]
    pub fn void_at(&self) -> Monotonic {
        self.void_at
    }

    /// The same use for an envelope with its KEK placed elsewhere than the chain places it.
    pub fn placed(self, placement: KekPlacement) -> Self {
        Self { placement, ..self }
    }

    /// The header that embeds the KEK, for an inline placement.
    fn inline(&self) -> Result<Option<&InlineKek>, EncryptError> {
        match self.placement {
            KekPlacement::Stored => Ok(None),
            KekPlacement::Inline => self.inline.ok_or(EncryptError::NoRecord).map(Some),
        }
    }

    /// Seals a message under a fresh DEK.
    ///
    /// # Errors
    /// [`EncryptError`]; the use is lost then.
    pub fn seal(self, plaintext: Plaintext, aad: &[u8]) -> Result<Sealed, EncryptError> {
        self.kek.seal(plaintext, aad, self.inline()?)
    }

    /// Starts an envelope whose plaintext arrives in pieces, under a fresh DEK.
    ///
    /// # Errors
    /// [`EncryptError`]; the use is lost then.
    pub fn start_stream(self, aad: &[u8]) -> Result<NewStream, EncryptError> {
        self.kek.start_stream(aad, self.inline()?)
    }

    /// The same, with the DEK, for a caller that has the chunks sealed elsewhere.
    ///
    /// # Errors
    /// [`EncryptError`]; the use is lost then.
    pub fn start_stream_with_dek(self, aad: &[u8]) -> Result<(NewStream, KeyBytes), EncryptError> {
        self.kek.start_stream_with_dek(aad, self.inline()?)
    }

    /// A header that holds an opened DEK.
    ///
    /// # Errors
    /// [`EncryptError`]; the use is lost then.
    pub fn seal_dek(self, dek: &Dek) -> Result<Vec<u8>, EncryptError> {
        self.kek.seal_dek(dek, self.inline()?)
    }
}
