//! [`ChainHandle`]: one chain of a service, and what its callers do with it.
//!
//! It only names the chain in each call. Managing chains, KEKs and roots is not its business.

use std::fmt;
use std::sync::Arc;

use crate::id::ChainName;
use crate::keychain::message::Plaintext;

use super::{DataKey, Decrypted, Encrypted, Error, KeyService, Kind, Rewrapped, Rotated};

/// A chain of a [`KeyService`]. Cheap to clone, and keeps the service alive.
#[derive(Clone)]
pub struct ChainHandle {
    service: Arc<KeyService>,
    name: ChainName,
}

impl KeyService {
    /// The chain `name`. It is looked up by each call, so it may be created or deleted later, also
    /// by another process.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`] when `name` is not the name of a chain.
    pub fn chain(self: &Arc<Self>, name: &str) -> Result<ChainHandle, Error> {
        let name = ChainName::new(name)
            .map_err(|error| Error::new(Kind::InvalidRequest, error.to_string()))?;
        Ok(ChainHandle { service: Arc::clone(self), name })
    }
}

impl ChainHandle {
    /// The name of the chain.
    #[must_use]
    pub fn name(&self) -> &ChainName {
        &self.name
    }

    /// Encrypts `plaintext`; the same `aad` is needed to decrypt it.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`], [`Kind::UnknownChain`], and when no use is available
    /// [`Kind::KekExhausted`], [`Kind::RootUnavailable`] or [`Kind::StoreUnavailable`].
    pub async fn encrypt(
        &self,
        plaintext: impl Into<Plaintext>,
        aad: &[u8],
    ) -> Result<Encrypted, Error> {
        self.service.encrypt(self.id(), plaintext.into(), aad).await
    }

    /// Decrypts a whole binary envelope.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`], [`Kind::UnknownChain`], [`Kind::InvalidCiphertext`],
    /// [`Kind::UnknownKek`], [`Kind::KekDisabled`], and for a KEK that is not in memory
    /// [`Kind::RootUnavailable`] or [`Kind::StoreUnavailable`].
    pub async fn decrypt(
        &self,
        envelope: impl Into<Vec<u8>>,
        aad: &[u8],
    ) -> Result<Decrypted, Error> {
        self.service.decrypt(self.id(), envelope.into(), aad).await
    }

    /// Moves an envelope, or a header alone, to the primary KEK. One that is there already is
    /// returned unchanged and costs no use. A payload is not verified.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt) and [`decrypt`](Self::decrypt).
    pub async fn rewrap(&self, envelope: impl Into<Vec<u8>>) -> Result<Rewrapped, Error> {
        self.service.rewrap(self.id(), envelope.into()).await
    }

    /// Like [`rewrap`](Self::rewrap), and the header embeds the wrapped KEK (version 2 or 4): any
    /// service with the chain's name and one of its roots can open it. A service without a store
    /// always rewraps in this way.
    ///
    /// # Errors
    /// Those of [`rewrap`](Self::rewrap).
    pub async fn rewrap_inline(&self, envelope: impl Into<Vec<u8>>) -> Result<Rewrapped, Error> {
        self.service.rewrap_inline(self.id(), envelope.into()).await
    }

    /// Makes a random key of `bytes` bytes (16 to 64), and its envelope.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub async fn datakey(&self, bytes: usize, aad: &[u8]) -> Result<DataKey, Error> {
        self.service.datakey(self.id(), bytes, aad).await
    }

    /// Makes a new primary KEK now. A root must open one of the chain's KEKs, if it has any.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::Overloaded`] when a rotation is under way or there were too
    /// many, [`Kind::RootUnavailable`], [`Kind::StoreUnavailable`], [`Kind::Conflict`].
    pub async fn rotate(&self) -> Result<Rotated, Error> {
        self.service.rotate(self.id()).await
    }

    fn id(&self) -> Option<&str> {
        Some(self.name.as_str())
    }
}

impl fmt::Debug for ChainHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainHandle").field("name", &self.name).finish_non_exhaustive()
    }
}
