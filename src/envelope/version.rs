//! The versions of the format: where the KEK of an envelope is found, and what its payload is.

use crate::aead::TAG_LEN;
use crate::cobblestone;

/// The format version, and with it where the KEK of an envelope is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version<'a> {
    /// Version 1: the KEK is in the store.
    Stored,
    /// Version 2: the wrapped KEK is in the header, as this [`InlineRecord`](super::InlineRecord).
    Inline(&'a [u8]),
    /// Version 3: as version 1, with a payload in chunks.
    StoredStream,
    /// Version 4: as version 2, with a payload in chunks.
    InlineStream(&'a [u8]),
}

/// What follows the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadForm {
    /// One AES-GCM message, in versions 1 and 2.
    Whole,
    /// The chunks of [`cobblestone`], in versions 3 and 4.
    Chunked,
}

impl<'a> Version<'a> {
    /// The version with this payload, and with an inline record or none.
    #[must_use]
    pub const fn new(form: PayloadForm, record: Option<&'a [u8]>) -> Self {
        match (form, record) {
            (PayloadForm::Whole, None) => Self::Stored,
            (PayloadForm::Whole, Some(record)) => Self::Inline(record),
            (PayloadForm::Chunked, None) => Self::StoredStream,
            (PayloadForm::Chunked, Some(record)) => Self::InlineStream(record),
        }
    }

    /// The version byte: 1 to 4.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Stored => 1,
            Self::Inline(_) => 2,
            Self::StoredStream => 3,
            Self::InlineStream(_) => 4,
        }
    }

    /// The payload of the version with this byte, and whether it has an inline record.
    pub(super) const fn parts(code: u8) -> Option<(PayloadForm, bool)> {
        match code {
            1 => Some((PayloadForm::Whole, false)),
            2 => Some((PayloadForm::Whole, true)),
            3 => Some((PayloadForm::Chunked, false)),
            4 => Some((PayloadForm::Chunked, true)),
            _ => None,
        }
    }

    /// The inline record, in versions 2 and 4.
    #[must_use]
    pub const fn record(self) -> Option<&'a [u8]> {
        match self {
            Self::Stored | Self::StoredStream => None,
            Self::Inline(record) | Self::InlineStream(record) => Some(record),
        }
    }

    /// What follows the header.
    #[must_use]
    pub const fn form(self) -> PayloadForm {
        match self {
            Self::Stored | Self::Inline(_) => PayloadForm::Whole,
            Self::StoredStream | Self::InlineStream(_) => PayloadForm::Chunked,
        }
    }
}

impl PayloadForm {
    /// The length of the plaintext of a payload of `len` bytes; `None` if no payload has this
    /// length.
    pub(super) fn message_len(self, len: usize) -> Option<usize> {
        match self {
            Self::Whole => len.checked_sub(TAG_LEN),
            Self::Chunked => {
                let len = cobblestone::opened_len(u64::try_from(len).ok()?).ok()?;
                usize::try_from(len).ok()
            }
        }
    }
}
