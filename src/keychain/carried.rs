//! What makes the headers of a KEK that travels along: the same bytes in every envelope under it, so
//! they are made once.
//!
//! It knows the carried record as bytes; what a root wrapped there is not looked at.

use crate::envelope::{self, InlineRecord, Version};

use super::kek::Kek;

/// Where the KEK of an envelope that is made is to be found: its version without the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Version 1: in the store.
    #[default]
    Stored,
    /// Version 2: it travels along.
    Carried,
}

/// The start of every version 2 header under one KEK, with the record in it, and the AAD of every
/// wrap.
pub struct Carried {
    /// Version, suite, id, the record's length and the record.
    start: Vec<u8>,
    record: Vec<u8>,
    dek_aad: Vec<u8>,
}

impl Carried {
    /// The headers of `kek` with `record`, the wraps of it; `None` when the record is longer than its
    /// length field can tell or has no wrap.
    #[must_use]
    pub fn new(kek: &Kek, record: &InlineRecord<'_>) -> Option<Self> {
        let record = record.to_bytes()?;
        let version = Version::Inline(&record);
        let dek_aad = envelope::dek_aad(version, kek.suite(), &kek.id(), kek.chain());
        let mut start = Vec::new();
        envelope::write_header_start(&mut start, version, kek.suite(), &kek.id());
        Some(Self { start, record, dek_aad })
    }

    /// The carried record.
    #[must_use]
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    pub(super) fn header_start(&self) -> &[u8] {
        &self.start
    }

    pub(super) fn dek_aad(&self) -> &[u8] {
        &self.dek_aad
    }
}
