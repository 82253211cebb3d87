//! What encrypting and decrypting can end with: one enum for each direction.

use serde::{Deserialize, Serialize};

use crate::id::KekId;
use crate::random;

/// Why nothing was encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptError {
    /// The chain has no primary KEK, or no use of it is left.
    #[error("no use of a primary KEK is left")]
    Exhausted,
    /// The AAD has more than 64 KiB.
    #[error("the AAD has more than 65536 bytes")]
    AadTooLong,
    /// The plaintext has more than 2^36 - 32 bytes (NIST SP 800-38D, section 5.2.1.1).
    #[error("the plaintext is too long for AES-GCM")]
    TooLong,
    /// The DEK to be wrapped is of another suite than the primary KEK: a rewrap keeps the payload,
    /// and so its suite.
    #[error("the envelope is of another suite than the primary KEK")]
    OtherSuite,
    /// The primary KEK is to be inline, and no record of its wraps exists.
    #[error("the primary KEK has no inline record")]
    NoRecord,
    /// See [`random::Unavailable`].
    #[error(transparent)]
    Randomness(#[from] random::Unavailable),
}

/// Why nothing was decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecryptError {
    /// Malformed, tampered, wrong AAD or wrong chain. It is not told which: one opaque answer for
    /// every failed authentication.
    #[error("the envelope is malformed or was not made with this chain and AAD")]
    Invalid,
    /// The chain does not hold this KEK.
    #[error("the KEK {0} is not in this chain")]
    UnknownKek(KekId),
    /// The chain refuses to use this KEK.
    #[error("the KEK {0} is {word}", word = .1.as_str())]
    Refused(KekId, Refusal),
}

/// Why a KEK is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refusal {
    /// Until it is enabled again.
    Disabled,
    /// Permanently.
    Destroyed,
}

impl Refusal {
    /// The word that users read.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Destroyed => "destroyed",
        }
    }
}
