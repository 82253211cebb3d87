//! The chains of the service: finds them by name, loads them from the store, starts their tasks.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::audit;
use crate::id::{ChainName, KekId};
use crate::metrics::Operation;
use crate::store;

use super::chain::Chain;
use super::error::{Error, Kind};
use super::limits::lookup_quota;
use super::{DEFAULT_CHAIN, KeyService};

impl KeyService {
    /// Loads a chain that this process does not have yet, if the store has it.
    pub(super) async fn load_chain(
        &self,
        name: &ChainName,
    ) -> Result<Option<Arc<Chain>>, store::Error> {
        let chain = self.core.load(name).await?;
        Ok(chain.map(|chain| self.adopt(chain)))
    }

    /// Adds a loaded chain and starts its tasks. If there is one of this name already, returns
    /// that.
    pub(super) fn adopt(&self, chain: Arc<Chain>) -> Arc<Chain> {
        let mut ours = false;
        self.chains.rcu(|chains| {
            let mut chains = (**chains).clone();
            ours = !chains.contains_key(&chain.name);
            chains.entry(chain.name.clone()).or_insert_with(|| Arc::clone(&chain));
            chains
        });
        if ours {
            self.spawn(&chain);
            return chain;
        }
        self.chains.load().get(&chain.name).cloned().unwrap_or(chain)
    }

    /// Finds the chain of a call. Counts a failure.
    pub(super) async fn find(
        &self,
        operation: Operation,
        chain: Option<&str>,
    ) -> Result<Arc<Chain>, Error> {
        let name = chain.unwrap_or(DEFAULT_CHAIN);
        if let Some(chain) = self.chains.load().get(name) {
            return Ok(Arc::clone(chain));
        }
        // Boxed, since it is rare and would make the future of every request larger.
        let found = Box::pin(self.look_up(name)).await;
        found.map_err(|error| self.count(operation, "", Some(name), error))
    }

    /// Counts and reports a failure. `chain` is empty unless the chain exists; `named` is what the
    /// caller named.
    pub(super) fn count(
        &self,
        operation: Operation,
        chain: &str,
        named: Option<&str>,
        error: Error,
    ) -> Error {
        let code = error.kind().code();
        self.core.metrics.failed(operation, chain, code);
        let known = ChainName::new(chain).ok();
        let named = named.map_or(audit::ChainRef::None, audit::ChainRef::Named);
        audit::record::report(&audit::Event {
            operation: Some(operation),
            chain: known.as_ref().map_or(named, audit::ChainRef::Known),
            outcome: code,
            ..audit::Event::default()
        });
        error.counted()
    }

    /// Looks in the store for a chain that another process may have created a moment ago.
    pub(super) async fn look_up(&self, name: &str) -> Result<Arc<Chain>, Error> {
        let name = ChainName::new(name)
            .map_err(|error| Error::new(Kind::InvalidRequest, error.to_string()))?;
        if self.damaged_chains().contains_key(&name) {
            return Err(Error::new(Kind::Internal, "the stored record of this chain is damaged"));
        }
        let unknown = || Error::new(Kind::UnknownChain, "there is no chain of this name");
        let can_be_elsewhere = self.core.shared || !self.core.archives.is_empty();
        if !can_be_elsewhere || self.core.unknown_chains.contains(&name, self.core.clock.now()) {
            return Err(unknown());
        }
        lookup_quota::charge(self.core.clock.now())?;
        let _permit = self.core.lookups.acquire().await.map_err(|error| Error::internal(&error))?;
        match self.load_chain(&name).await {
            Ok(Some(chain)) => Ok(chain),
            Ok(None) => {
                if let Some(chain) = self.found_again(&name).await? {
                    return Ok(chain);
                }
                self.core.unknown_chains.insert(name, self.core.clock.now());
                Err(unknown())
            }
            Err(error) => Err(self.core.store_error(&name, error)),
        }
    }

    pub(super) fn damaged_chains(&self) -> MutexGuard<'_, HashMap<ChainName, String>> {
        self.damaged.lock()
    }

    /// The KEKs in memory and the refused ones, with their chains.
    pub(super) fn held(&self) -> Vec<(Arc<Chain>, KekId)> {
        let chains = self.chains.load();
        let mut held: Vec<_> = chains
            .values()
            .flat_map(|chain| {
                let snapshot = chain.snapshot();
                let ids = snapshot.keks().map(|kek| kek.id());
                let ids = ids.chain(snapshot.refused().map(|(id, _)| id));
                ids.map(|id| (Arc::clone(chain), id)).collect::<Vec<_>>()
            })
            .collect();
        let cached = self.core.keyring.held().into_iter();
        held.extend(cached.filter_map(|(name, id)| Some((Arc::clone(chains.get(&name)?), id))));
        held
    }
}
