//! Encrypt, decrypt, rewrap and data keys. The payload of a message passes through the service;
//! [`streams`](super::streams) are messages whose payload does not.
//!
//! Encrypting takes a reserved use and waits only if none is left. Decrypting waits only for a KEK
//! that is not in memory. This module calls no root itself.

use std::ops::RangeInclusive;

use crate::audit::{Event, record};
use crate::clock::Monotonic;
use crate::envelope::Envelope;
use crate::id::KekId;
use crate::keychain::KekPlacement;
use crate::keychain::message::Plaintext;
use crate::metrics::Operation;
use crate::secret::SecretBytes;

use super::calls::Calls;
use super::chain::Chain;
use super::deks::decrypt_error;
use super::error::{Error, Kind};
use super::types::{DataKey, Decrypted, Encrypted, Rewrapped};
use super::{DATA_KEY_SIZES, KeyService};

impl Calls<'_> {
    /// Encrypts `plaintext`.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`], [`Kind::UnknownChain`], and if no use is available
    /// [`Kind::KekExhausted`], [`Kind::RootUnavailable`] or [`Kind::StoreUnavailable`].
    pub(crate) async fn encrypt(
        &mut self,
        plaintext: Plaintext,
        aad: &[u8],
    ) -> Result<Encrypted, Error> {
        let (chain, started) = self.begin(Operation::Encrypt).await?;
        let len = plaintext.as_slice().len();
        let sealed = self.spend_use(&chain, started, |one| one.seal(plaintext, aad)).await;
        let made = sealed.map(|(envelope, kek_id)| Encrypted {
            envelope,
            chain: chain.name.clone(),
            kek_id,
        });
        let event = Event {
            kek_id: made.as_ref().ok().map(|made| made.kek_id),
            aad: Some(aad),
            plaintext_bytes: Some(len),
            ..Event::default()
        };
        self.finish(Operation::Encrypt, chain, started, event, made)
    }

    /// Decrypts a whole binary envelope.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`], [`Kind::UnknownChain`], [`Kind::InvalidCiphertext`],
    /// [`Kind::UnknownKek`], [`Kind::KekDisabled`], and for a KEK that is not in memory
    /// [`Kind::RootUnavailable`] or [`Kind::StoreUnavailable`].
    pub(crate) async fn decrypt(
        &mut self,
        envelope: Vec<u8>,
        aad: &[u8],
    ) -> Result<Decrypted, Error> {
        let (chain, started) = self.begin(Operation::Decrypt).await?;
        // The KEK that the envelope names, also if it does not open.
        let kek_id = if record::is_on() { named_kek(&envelope) } else { None };
        let opened = self.service.open(&chain, envelope, aad, started).await;
        let event = Event {
            kek_id,
            aad: Some(aad),
            plaintext_bytes: opened.as_ref().ok().map(|it| it.plaintext.as_slice().len()),
            ..Event::default()
        };
        self.finish(Operation::Decrypt, chain, started, event, opened)
    }

    /// Wraps the DEK of a binary envelope, or of a header alone, with the primary KEK. If it is
    /// current, it is returned unchanged and costs no use. The payload is not verified.
    ///
    /// With a `placement` of `Inline` the result has version 2 or 4, and any service with a chain
    /// of this name and one of the roots can decrypt it. Without a `placement`, that of the chain
    /// counts.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt) and [`decrypt`](Self::decrypt).
    pub(crate) async fn rewrap(
        &mut self,
        placement: Option<KekPlacement>,
        envelope: Vec<u8>,
    ) -> Result<Rewrapped, Error> {
        let (chain, started) = self.begin(Operation::Rewrap).await?;
        let kek_id = if record::is_on() { named_kek(&envelope) } else { None };
        let result = self.move_to_primary(&chain, envelope, placement, started).await;
        let to = result.as_ref().ok().filter(|_| record::is_on()).map(|it| it.kek_id.to_string());
        let to = to.unwrap_or_default();
        let change: [(&str, &crate::audit::record::Value); 1] = [("to_kek_id", &to)];
        let change: &[_] = if to.is_empty() { &[] } else { &change };
        let event = Event { kek_id, change, ..Event::default() };
        self.finish(Operation::Rewrap, chain, started, event, result)
    }

    async fn move_to_primary(
        &mut self,
        chain: &Chain,
        envelope: Vec<u8>,
        placement: Option<KekPlacement>,
        now: Monotonic,
    ) -> Result<Rewrapped, Error> {
        let parsed =
            Envelope::parse_header_or_whole(&envelope).map_err(|_| Error::invalid_ciphertext())?;
        let previous_kek_id = parsed.header.kek_id;
        let (snapshot, dek) = self.service.open_dek(chain, &parsed, now).await?;
        let chain_name = chain.name.clone();
        let placement = placement.unwrap_or_else(|| snapshot.placement());
        if snapshot.is_current(&parsed, placement) {
            return Ok(Rewrapped {
                envelope,
                chain: chain_name,
                kek_id: previous_kek_id,
                previous_kek_id,
            });
        }
        // A call of a root may have taken long.
        let now = self.service.core.clock.now();
        let (mut rewrapped, kek_id) =
            self.spend_use(chain, now, |one| one.placed(placement).seal_dek(&dek)).await?;
        rewrapped.extend_from_slice(parsed.payload);
        Ok(Rewrapped { envelope: rewrapped, chain: chain_name, kek_id, previous_kek_id })
    }

    /// Generates a random key of `bytes` bytes, which must be one of `sizes`, and its envelope.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub(crate) async fn datakey(
        &mut self,
        bytes: usize,
        sizes: RangeInclusive<usize>,
        aad: &[u8],
    ) -> Result<DataKey, Error> {
        let (chain, started) = self.begin(Operation::Datakey).await?;
        let made = self.generate(&chain, bytes, sizes, aad, started).await;
        let event = Event {
            kek_id: made.as_ref().ok().map(|made| made.kek_id),
            aad: Some(aad),
            plaintext_bytes: Some(bytes),
            ..Event::default()
        };
        self.finish(Operation::Datakey, chain, started, event, made)
    }

    async fn generate(
        &mut self,
        chain: &Chain,
        bytes: usize,
        sizes: RangeInclusive<usize>,
        aad: &[u8],
        now: Monotonic,
    ) -> Result<DataKey, Error> {
        if !sizes.contains(&bytes) {
            let detail = format!("bytes must be between {} and {}", sizes.start(), sizes.end());
            return Err(Error::new(Kind::InvalidRequest, detail));
        }
        let plaintext = SecretBytes::random(bytes).map_err(|error| Error::internal(&error))?;
        let message = plaintext.expose().into();
        let sealed = self.spend_use(chain, now, |one| one.seal(message, aad)).await;
        let (envelope, kek_id) = sealed?;
        Ok(DataKey { plaintext, envelope, chain: chain.name.clone(), kek_id })
    }
}

/// Single calls.
impl KeyService {
    /// See [`Calls::encrypt`].
    pub(crate) async fn encrypt(
        &self,
        chain: Option<&str>,
        plaintext: Plaintext,
        aad: &[u8],
    ) -> Result<Encrypted, Error> {
        self.on(chain).encrypt(plaintext, aad).await
    }

    /// See [`Calls::decrypt`].
    pub(crate) async fn decrypt(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
        aad: &[u8],
    ) -> Result<Decrypted, Error> {
        self.on(chain).decrypt(envelope, aad).await
    }

    /// See [`Calls::rewrap`]: to the placement of the chain.
    pub(crate) async fn rewrap(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
    ) -> Result<Rewrapped, Error> {
        self.on(chain).rewrap(None, envelope).await
    }

    /// See [`Calls::rewrap`]: with an inline KEK.
    pub(crate) async fn rewrap_inline(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
    ) -> Result<Rewrapped, Error> {
        self.on(chain).rewrap(Some(KekPlacement::Inline), envelope).await
    }

    /// See [`Calls::datakey`]: of 16 to 64 bytes.
    pub(crate) async fn datakey(
        &self,
        chain: Option<&str>,
        bytes: usize,
        aad: &[u8],
    ) -> Result<DataKey, Error> {
        self.on(chain).datakey(bytes, DATA_KEY_SIZES, aad).await
    }

    async fn open(
        &self,
        chain: &Chain,
        envelope: Vec<u8>,
        aad: &[u8],
        now: Monotonic,
    ) -> Result<Decrypted, Error> {
        let parsed = Envelope::parse(&envelope).map_err(|_| Error::invalid_ciphertext())?;
        let kek_id = parsed.header.kek_id;
        let (snapshot, dek) = self.open_dek(chain, &parsed, now).await?;
        let plaintext = snapshot.open(&dek, envelope, aad).map_err(decrypt_error)?;
        Ok(Decrypted { plaintext, chain: chain.name.clone(), kek_id })
    }
}

/// The KEK that an envelope or a header names.
fn named_kek(envelope: &[u8]) -> Option<KekId> {
    Envelope::parse_header_or_whole(envelope).ok().map(|parsed| parsed.header.kek_id)
}
