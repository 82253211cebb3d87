//! The start of the headers that embed a KEK (versions 2 and 4): the same bytes in every such
//! envelope under it, so they are made once.
//!
//! The inline record is bytes here; what a root wrapped in it is not examined.

use crate::envelope::{self, InlineRecord, Version};
use crate::id::{ChainName, KekId, Suite};

/// Where the KEK of a new envelope is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KekPlacement {
    /// In the store: version 1, or 3 for a stream.
    #[default]
    Stored,
    /// In the header, wrapped by roots: version 2, or 4 for a stream.
    Inline,
}

/// The start of every header of version 2 or 4 under one KEK, with the record in it, and the AAD of
/// every wrap.
pub struct InlineKek {
    /// Version, suite, id, the record's length and the record.
    start: Vec<u8>,
    record: Vec<u8>,
    dek_aad: Vec<u8>,
}

impl InlineKek {
    /// The headers of the KEK `id` of `chain` with `record`, its wraps; `None` when the record has
    /// no wrap or is longer than 65,535 bytes.
    #[must_use]
    pub fn new(
        suite: Suite,
        id: KekId,
        chain: &ChainName,
        record: &InlineRecord<'_>,
    ) -> Option<Self> {
        let record = record.to_bytes()?;
        let version = Version::Inline(&record);
        let dek_aad = envelope::dek_aad(version, suite, &id, chain);
        let mut start = Vec::new();
        envelope::write_header_start(&mut start, version, suite, &id);
        Some(Self { start, record, dek_aad })
    }

    /// The inline record.
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
