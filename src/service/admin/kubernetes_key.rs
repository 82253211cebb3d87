//! The calls of the Kubernetes plugin: a chain's key id, the health of its key, and a new key id.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::id::ChainName;
use crate::metrics::Operation;
use crate::service::chain::Chain;
use crate::service::error::{Error, Kind};
use crate::service::key_id::{key_id, no_name, note_change};
use crate::service::rotation::reserver;
use crate::service::types::Rotated;
use crate::service::{KeyService, recheck, tasks};

/// The health of a chain's key, from memory alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// The key id; `None` until it is known.
    pub key_id: Option<String>,
    /// Why no root unwraps the primary KEK now, if that is known.
    pub root_outage: Option<String>,
    /// Another error that an operator should look at.
    pub last_error: Option<String>,
}

impl KeyService {
    /// Gives `chain` a key id. The store keeps it permanently: clients depend on the chain, so its
    /// KEKs are not destroyed without force. A chain without a KEK gets the key id with its first
    /// KEK.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::StoreUnavailable`].
    pub async fn name_keys(&self, chain: &str) -> Result<(), Error> {
        let chain = self.find(Operation::Manage, Some(chain)).await?;
        chain.wants_name.store(true, Ordering::Relaxed);
        // A failure is reported, and the chain's task tries again.
        reserver::drive(&self.core, &chain).await;
        Ok(())
    }

    /// The health of the key of `chain`. Calls no store and no root.
    #[must_use]
    pub fn key_state(&self, chain: &ChainName) -> KeyState {
        let Some(chain) = self.chains.load().get(chain).cloned() else {
            let last_error = Some("the chain is not there yet".to_owned());
            return KeyState { key_id: None, root_outage: None, last_error };
        };
        let keyring = &self.core.keyring;
        let primary = chain.snapshot().primary_id();
        let record = primary.and_then(|id| keyring.remembered(&chain.name, id));
        let root_outage = match &record {
            Some(record) => keyring.roots.outage(record),
            None => {
                let failure = chain.root_failure.load();
                let failure = failure.as_ref().filter(|it| it.kind() == Kind::RootUnavailable);
                failure.map(|error| error.detail().to_owned())
            }
        };
        let store = self.core.store.check();
        let away = (!self.core.store.is_up())
            .then(|| format!("store: {}", store.detail.unwrap_or_default()));
        let last_error = chain.last_error().map(|error| error.detail().to_owned()).or(away);
        let name = chain.named_root.load();
        KeyState {
            key_id: name.as_ref().map(|root| key_id(&chain.name, root)),
            root_outage,
            last_error,
        }
    }

    /// Rotates a chain that has a key id, and then replaces the key id, so that clients encrypt
    /// again under the new KEK. Returns the new key id.
    ///
    /// # Errors
    /// Those of [`ChainHandle::rotate`](crate::service::ChainHandle::rotate). [`Kind::Conflict`]
    /// for a chain without a key id, and if nothing is stored: then the key id is derived from the
    /// configured roots.
    pub async fn rotate_key_id(&self, chain: Option<&str>) -> Result<(Rotated, String), Error> {
        let chain = self.find(Operation::Rotate, chain).await?;
        if let Err(error) = self.check_named(&chain).await {
            let name = chain.name.as_str();
            return Err(self.count(Operation::Rotate, name, Some(name), error));
        }
        let rotated = self.rotate(Some(chain.name.as_str())).await?;
        let core = Arc::clone(&self.core);
        let named = tasks::run_to_end(async move {
            note_change(&core, &chain, true).await?;
            let head = &chain.reservations.lock().await.ledger.head;
            Ok(head.record.named_root.as_ref().map(|root| key_id(&chain.name, root)))
        });
        Ok((rotated, named.await?.ok_or_else(no_name)?))
    }

    async fn check_named(&self, chain: &Chain) -> Result<(), Error> {
        self.core.needs_store("a key id can't be renewed by hand")?;
        let ledger = &mut chain.reservations.lock().await.ledger;
        ledger.refresh().await.map_err(|error| self.core.store_error(&chain.name, error))?;
        ledger.head.record.named_root.is_some().then_some(()).ok_or_else(no_name)
    }

    /// Whether the store is down, or has not answered yet what the tasks of `chain` asked.
    #[must_use]
    pub fn awaits_store(&self, chain: &ChainName) -> bool {
        // The lock is held for calls of the store alone.
        let is_asking = |chain: &Arc<Chain>| chain.reservations.try_lock().is_err();
        !self.core.store.is_up() || self.chains.load().get(chain).is_some_and(is_asking)
    }

    /// Has each root of the primary KEK unwrap it, by one call each. The result shows in
    /// [`key_state`](Self::key_state), in readiness and in the metrics.
    pub async fn check_primary(&self, chain: &ChainName) {
        let chain = self.chains.load().get(chain).cloned();
        let primary = chain.as_ref().and_then(|chain| chain.snapshot().primary_id());
        if let (Some(chain), Some(id)) = (chain, primary) {
            recheck::ask(&self.core, &chain, id).await;
        }
    }
}
