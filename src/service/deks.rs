//! Opens the DEK of an envelope: by the cache, by a KEK in memory, or by one from the store, from
//! an archive or from the envelope itself, which a root unwraps.
//!
//! It waits only for a KEK that is not in memory, and calls no root itself.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Monotonic;
use crate::envelope::Envelope;
use crate::id::KekId;
use crate::keychain::dek_cache::SharedDek;
use crate::keychain::{DecryptError, KeyChain};
use crate::store::record::{Kek, kek_key};
use crate::store::records;

use super::archive::{find, restore};
use super::chain::Chain;
use super::core::Core;
use super::error::{Error, Kind};
use super::last_used::Way;
use super::limits::lookup_quota;
use super::{KeyService, kek_lifecycle};

impl KeyService {
    /// Unwraps the DEK of an envelope: from the cache, by a KEK in memory, or by a KEK from a root.
    pub(super) async fn open_dek(
        &self,
        chain: &Chain,
        envelope: &Envelope<'_>,
        now: Monotonic,
    ) -> Result<(Arc<KeyChain>, SharedDek), Error> {
        let Core { deks, keyring, metrics, used, .. } = &*self.core;
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
            if let Some(noted) = dek.noted() {
                used.note(noted, &chain.name, id, Way::Decrypt, now);
            }
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
        let noted = &kek.noted().decrypts;
        used.note(noted, &chain.name, id, Way::Decrypt, now);
        let dek = deks.insert(&chain.name, header, dek, now);
        if let Some(of_dek) = dek.noted() {
            of_dek.set_like(noted);
        }
        Ok((snapshot, dek))
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
