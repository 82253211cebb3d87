//! The data path: encrypt, decrypt, rewrap and data keys, each with one snapshot of a chain.
//!
//! Encrypting takes a reserved use from the snapshot and waits only if none is left. Decrypting
//! waits only for a KEK that is not in memory. This module calls no root itself.

use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::audit::{Event, record};
use crate::clock::Monotonic;
use crate::envelope::Envelope;
use crate::id::KekId;
use crate::keychain::dek_cache::SharedDek;
use crate::keychain::message::{Plaintext, Sealed};
use crate::keychain::{DecryptError, EncryptError, KekPlacement, KeyChain, Permit};
use crate::metrics::Operation;
use crate::secret::SecretBytes;
use crate::store::record::{Kek, kek_key};
use crate::store::records;

use super::archive::{find, restore};
use super::chain::Chain;
use super::core::Core;
use super::error::{Error, Kind};
use super::limits::lookup_quota;
use super::types::{DataKey, Decrypted, Encrypted, Rewrapped};
use super::{KeyService, kek_lifecycle};

impl KeyService {
    /// Encrypts `plaintext` with `chain`, or with `default` if that is `None`.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`], [`Kind::UnknownChain`], and if no use is available
    /// [`Kind::KekExhausted`], [`Kind::RootUnavailable`] or [`Kind::StoreUnavailable`].
    pub(crate) async fn encrypt(
        &self,
        chain: Option<&str>,
        plaintext: Plaintext,
        aad: &[u8],
    ) -> Result<Encrypted, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Encrypt, chain).await?;
        let len = plaintext.as_slice().len();
        let result = self.seal(&chain, plaintext, aad, started).await;
        let event = Event {
            kek_id: result.as_ref().ok().map(|&(_, id)| id),
            aad: Some(aad),
            plaintext_bytes: Some(len),
            ..Event::default()
        };
        self.finish_with(
            Operation::Encrypt,
            &chain,
            started,
            event,
            result.map(|(envelope, kek_id)| Encrypted {
                envelope,
                chain: chain.name.clone(),
                kek_id,
            }),
        )
    }

    /// Decrypts a whole binary envelope.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`], [`Kind::UnknownChain`], [`Kind::InvalidCiphertext`],
    /// [`Kind::UnknownKek`], [`Kind::KekDisabled`], and for a KEK that is not in memory
    /// [`Kind::RootUnavailable`] or [`Kind::StoreUnavailable`].
    pub(crate) async fn decrypt(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
        aad: &[u8],
    ) -> Result<Decrypted, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Decrypt, chain).await?;
        // The KEK that the envelope names, also if it does not open.
        let kek_id = if record::is_on() { named_kek(&envelope) } else { None };
        let result = self.open(&chain, envelope, aad, started).await;
        let event = Event {
            kek_id,
            aad: Some(aad),
            plaintext_bytes: result.as_ref().ok().map(|it| it.plaintext.as_slice().len()),
            ..Event::default()
        };
        self.finish_with(Operation::Decrypt, &chain, started, event, result)
    }

    /// Wraps the DEK of a binary envelope, or of a header alone, with the primary KEK. If it is
    /// current, it is returned unchanged and costs no use. The payload is not verified.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt) and [`decrypt`](Self::decrypt).
    pub(crate) async fn rewrap(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
    ) -> Result<Rewrapped, Error> {
        self.rewrap_to(None, chain, envelope).await
    }

    /// As [`rewrap`](Self::rewrap), with an inline KEK: the result has version 2 or 4, and any
    /// service with a chain of this name and one of the roots can decrypt it. In a chain that is
    /// set to `inline`, and with a store of this kind, every rewrap does this.
    ///
    /// # Errors
    /// Those of [`rewrap`](Self::rewrap).
    pub(crate) async fn rewrap_inline(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
    ) -> Result<Rewrapped, Error> {
        self.rewrap_to(Some(KekPlacement::Inline), chain, envelope).await
    }

    /// Without a `placement`, the one of the chain.
    async fn rewrap_to(
        &self,
        placement: Option<KekPlacement>,
        chain: Option<&str>,
        envelope: Vec<u8>,
    ) -> Result<Rewrapped, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Rewrap, chain).await?;
        let kek_id = if record::is_on() { named_kek(&envelope) } else { None };
        let result = self.move_to_primary(&chain, envelope, placement, started).await;
        let to = result.as_ref().ok().filter(|_| record::is_on()).map(|it| it.kek_id.to_string());
        let to = to.unwrap_or_default();
        let change: [(&str, &crate::audit::record::Value); 1] = [("to_kek_id", &to)];
        let change: &[_] = if to.is_empty() { &[] } else { &change };
        let event = Event { kek_id, change, ..Event::default() };
        self.finish_with(Operation::Rewrap, &chain, started, event, result)
    }

    /// Generates a random key of `bytes` bytes (16 to 64) and its envelope.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub(crate) async fn datakey(
        &self,
        chain: Option<&str>,
        bytes: usize,
        aad: &[u8],
    ) -> Result<DataKey, Error> {
        self.datakey_within(chain, bytes, 16..=64, aad).await
    }

    /// As [`datakey`](Self::datakey), with other sizes.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub(crate) async fn datakey_within(
        &self,
        chain: Option<&str>,
        bytes: usize,
        sizes: RangeInclusive<usize>,
        aad: &[u8],
    ) -> Result<DataKey, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Datakey, chain).await?;
        let result = async {
            if !sizes.contains(&bytes) {
                let detail = format!("bytes must be between {} and {}", sizes.start(), sizes.end());
                return Err(Error::new(Kind::InvalidRequest, detail));
            }
            let plaintext = SecretBytes::random(bytes).map_err(|error| Error::internal(&error))?;
            let (envelope, kek_id) =
                self.seal(&chain, plaintext.expose().into(), aad, started).await?;
            Ok(DataKey { plaintext, envelope, chain: chain.name.clone(), kek_id })
        };
        let result = result.await;
        let event = Event {
            kek_id: result.as_ref().ok().map(|made: &DataKey| made.kek_id),
            aad: Some(aad),
            plaintext_bytes: Some(bytes),
            ..Event::default()
        };
        self.finish_with(Operation::Datakey, &chain, started, event, result)
    }

    async fn seal(
        &self,
        chain: &Chain,
        plaintext: Plaintext,
        aad: &[u8],
        now: Monotonic,
    ) -> Result<(Sealed, KekId), Error> {
        self.spend_use(chain, now, |one| one.seal(plaintext, aad)).await
    }

    /// Spends one use, and waits for one if none is left. Returns the result with the id of its
    /// KEK.
    pub(super) async fn spend_use<T>(
        &self,
        chain: &Chain,
        mut now: Monotonic,
        spend: impl FnOnce(Permit<'_>) -> Result<T, EncryptError>,
    ) -> Result<(T, KekId), Error> {
        let mut until = None;
        let rounds = chain.rounds();
        loop {
            let snapshot = chain.snapshot();
            if let Some(one) = snapshot.take(now) {
                chain.watch_level(&snapshot, now);
                let (void_at, id) = (one.void_at(), one.kek_id());
                let made = spend(one).map_err(encrypt_error)?;
                // If the use has expired meanwhile, the result must not be returned.
                return if self.core.clock.now() < void_at {
                    Ok((made, id))
                } else {
                    Err(Error::exhausted("the reserved use expired while it was spent; try again"))
                };
            }
            let until = match until {
                None => *until.insert(now + self.core.config.wait),
                Some(until) => {
                    // The permit may be left over from requests that waited before.
                    if let Some(error) = chain.last_error().filter(|_| chain.rounds() != rounds) {
                        return Err(error);
                    }
                    until
                }
            };
            chain.wait_for_uses(until.since(now), self.core.config.max_waiting).await?;
            now = self.core.clock.now();
        }
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

    async fn move_to_primary(
        &self,
        chain: &Chain,
        envelope: Vec<u8>,
        placement: Option<KekPlacement>,
        now: Monotonic,
    ) -> Result<Rewrapped, Error> {
        let parsed =
            Envelope::parse_header_or_whole(&envelope).map_err(|_| Error::invalid_ciphertext())?;
        let previous_kek_id = parsed.header.kek_id;
        let (snapshot, dek) = self.open_dek(chain, &parsed, now).await?;
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
        let now = self.core.clock.now();
        let (mut rewrapped, kek_id) =
            self.spend_use(chain, now, |one| one.placed(placement).seal_dek(&dek)).await?;
        rewrapped.extend_from_slice(parsed.payload);
        Ok(Rewrapped { envelope: rewrapped, chain: chain_name, kek_id, previous_kek_id })
    }

    /// Unwraps the DEK of an envelope: from the cache, by a KEK in memory, or by a KEK from a root.
    pub(super) async fn open_dek(
        &self,
        chain: &Chain,
        envelope: &Envelope<'_>,
        now: Monotonic,
    ) -> Result<(Arc<KeyChain>, SharedDek), Error> {
        let Core { deks, keyring, metrics, .. } = &*self.core;
        let (header, id) = (&envelope.header, envelope.header.kek_id);
        let mut snapshot = chain.snapshot();
        snapshot.allows(id).map_err(decrypt_error)?;
        if !self.core.is_confirmed(now) {
            return Err(Error::new(
                Kind::StoreUnavailable,
                "the store has been unavailable for longer than cache.offline_grace",
            ));
        }
        if let Some(dek) = deks.get(&chain.name, header, now) {
            metrics.dek_cache.hits.inc();
            return Ok((snapshot, dek));
        }
        let held = snapshot.kek(id).cloned().or_else(|| keyring.in_memory(&chain.name, id));
        let kek = match held {
            Some(kek) => kek,
            None => {
                let archived = Mutex::new(None);
                let fetch = self.fetch(chain, id, now, &archived);
                let stored = keyring.get(&chain.name, id, fetch).await;
                if let Some(record) = archived.into_inner().filter(|_| stored.is_ok()) {
                    // If this fails, it is found in the archive again.
                    let _ = restore::kek(&self.core, chain, id, record).await;
                }
                let kek = match (stored, header.version.record()) {
                    // The stored record takes precedence over the inline one.
                    (Err(error), Some(record))
                        if matches!(error.kind(), Kind::UnknownKek | Kind::ArchiveUnavailable) =>
                    {
                        keyring.inline(&chain.name, header.suite, id, record).await?
                    }
                    (stored, _) => stored.inspect_err(|error| {
                        if error.kind() == Kind::UnknownKek {
                            keyring.note_unknown(&chain.name, id);
                        }
                    })?,
                };
                // If it was disabled meanwhile, it must not stay in memory.
                snapshot = chain.snapshot();
                snapshot.allows(id).map_err(|error| {
                    keyring.drop_kek(&chain.name, id);
                    decrypt_error(error)
                })?;
                kek
            }
        };
        let dek = kek.open_dek(header).map_err(decrypt_error)?;
        metrics.dek_cache.misses.inc();
        Ok((snapshot, deks.insert(&chain.name, header, dek, now)))
    }

    /// Reads the record of a KEK that is not in memory. One from an archive is also put into
    /// `archived`.
    async fn fetch(
        &self,
        chain: &Chain,
        id: KekId,
        now: Monotonic,
        archived: &Mutex<Option<Kek>>,
    ) -> Result<Kek, Error> {
        let unknown = || decrypt_error(DecryptError::UnknownKek(id));
        let name = (chain.name.clone(), id);
        if self.core.unknown.contains(&name, now) {
            return Err(unknown());
        }
        lookup_quota::charge(now)?;
        let _permit = self.core.lookups.acquire().await.map_err(|error| Error::internal(&error))?;
        let read = records::read::<Kek>(&*self.core.store, &kek_key(&chain.name, id)).await;
        let Some(read) = read.map_err(|error| self.core.store_error(&chain.name, error))? else {
            let Some(kek) = find::kek(&self.core, &chain.name, id).await? else {
                self.core.unknown.insert(name, now);
                return Err(unknown());
            };
            if find::is_live(&kek) {
                *archived.lock() = Some(kek.clone());
                return Ok(kek);
            }
            let state = kek.state;
            let restored = restore::kek(&self.core, chain, id, kek).await;
            restored.map_err(|error| self.core.store_error(&chain.name, error))?;
            kek_lifecycle::follow(&self.core, chain, id, state);
            let refusal = kek_lifecycle::refusal(state).ok_or_else(unknown)?;
            return Err(decrypt_error(DecryptError::Refused(id, refusal)));
        };
        self.core.keyring.note_known(&chain.name, id);
        if kek_lifecycle::refusal(read.record.state).is_none() {
            return Ok(read.record);
        }
        let read = kek_lifecycle::learn(&self.core, chain, id).await;
        let kek = read.map_err(|error| self.core.store_error(&chain.name, error))?;
        let kek = kek.ok_or_else(unknown)?;
        match kek_lifecycle::refusal(kek.state) {
            None => Ok(kek),
            Some(refusal) => Err(decrypt_error(DecryptError::Refused(id, refusal))),
        }
    }
}

/// The KEK that an envelope or a header names.
fn named_kek(envelope: &[u8]) -> Option<KekId> {
    Envelope::parse_header_or_whole(envelope).ok().map(|parsed| parsed.header.kek_id)
}

fn encrypt_error(error: EncryptError) -> Error {
    match error {
        EncryptError::AadTooLong | EncryptError::OtherSuite => {
            Error::new(Kind::InvalidRequest, error.to_string())
        }
        EncryptError::NoRecord => Error::new(Kind::Conflict, error.to_string()),
        EncryptError::TooLong => Error::new(Kind::PayloadTooLarge, error.to_string()),
        EncryptError::Exhausted => Error::exhausted("no use of the KEK is left"),
        EncryptError::Randomness(error) => Error::internal(&error),
    }
}

pub(super) fn decrypt_error(error: DecryptError) -> Error {
    match error {
        DecryptError::Invalid => Error::invalid_ciphertext(),
        DecryptError::UnknownKek(id) => Error::new(
            Kind::UnknownKek,
            format!("the ciphertext names KEK {id}, which this chain does not have"),
        ),
        DecryptError::Refused(..) => Error::new(Kind::KekDisabled, error.to_string()),
    }
}
