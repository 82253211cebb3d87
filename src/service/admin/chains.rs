//! Chains and KEKs: create, change and delete, as in `/v1/chains`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::archive::object::Wraps;
use crate::audit::Event;
use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};
use crate::metrics::Operation;
use crate::store::Store;
use crate::store::record::{self, Kek, Limits, State};

use crate::service::chain::Chain;
use crate::service::error::{Error, Kind};
use crate::service::limits::lookup_quota;
use crate::service::types::{ChainInfo, ChainSettings, Change, KekInfo};
use crate::service::{KeyService, archive, kek_lifecycle, tasks};
use crate::store::records;

/// 100 years, as in the configuration: a larger value is a mistake in the unit.
const MAX_ROTATE_AFTER_AGE: u64 = 36_500 * 24 * 60 * 60;
/// How often a change is tried when other processes change the same record.
const TRIES: usize = 4;

impl KeyService {
    /// Creates a chain, or changes the settings of an existing one. Returns whether it was
    /// created. A new chain gets its first KEK at its first use. A creation is charged as a
    /// look-up.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`] for an invalid name or limits, [`Kind::Conflict`] for another
    /// suite, limits below the reserved uses, more than [`ChainConfig::max_chains`] and if nothing
    /// is stored, [`Kind::Overloaded`], [`Kind::StoreUnavailable`].
    ///
    /// [`ChainConfig::max_chains`]: crate::service::ChainConfig::max_chains
    pub async fn put_chain(
        self: &Arc<Self>,
        name: &str,
        settings: ChainSettings,
    ) -> Result<(bool, ChainInfo), Error> {
        if !self.chains.load().contains_key(name)
            && let Err(error) = lookup_quota::charge(self.core.clock.now())
        {
            return Err(self.count(Operation::Manage, "", Some(name), error));
        }
        let (service, name) = (Arc::clone(self), name.to_owned());
        tasks::run_to_end(async move { service.put_chain_now(&name, settings).await }).await
    }

    async fn put_chain_now(
        &self,
        name: &str,
        settings: ChainSettings,
    ) -> Result<(bool, ChainInfo), Error> {
        let started = self.core.clock.now();
        let result = match self.core.needs_store("a chain is made, and its limits set, by [chain]")
        {
            Ok(()) => self.create_chain(name, settings).await,
            Err(error) => Err(error),
        };
        let chain = match result {
            Ok((chain, true)) => {
                let info = self.info(&chain).await.map(|info| (true, info));
                return self.finish_put(&chain, started, info);
            }
            Ok((chain, false)) => chain,
            Err(error) => return Err(self.count(Operation::Manage, "", Some(name), error)),
        };
        let result = async {
            self.change_settings(&chain, settings).await?;
            Ok((false, self.info(&chain).await?))
        };
        let result = result.await;
        self.finish_put(&chain, started, result)
    }

    fn finish_put(
        &self,
        chain: &Chain,
        started: Monotonic,
        result: Result<(bool, ChainInfo), Error>,
    ) -> Result<(bool, ChainInfo), Error> {
        let Ok((created, info)) = &result else {
            return self.finish(Operation::Manage, chain, started, result);
        };
        let (created, limits, suite, inline) = (*created, info.limits, info.suite, info.inline);
        let change: [(&str, &crate::audit::record::Value); 7] = [
            ("call", &"put_chain"),
            ("created", &created),
            ("suite", &suite),
            ("rotate_after_uses", &limits.rotate_after_uses),
            ("max_uses", &limits.max_uses),
            ("rotate_after_age", &limits.rotate_after_age),
            ("inline", &inline),
        ];
        let event = Event { change: &change, ..Event::default() };
        self.finish_with(Operation::Manage, chain, started, event, result)
    }

    /// Deletes a chain that has no KEK.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::Conflict`] if it has a KEK, if the configuration names it,
    /// and if nothing is stored, [`Kind::StoreUnavailable`].
    pub async fn delete_chain(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Manage, Some(name)).await?;
        let work = {
            let (service, chain) = (Arc::clone(self), Arc::clone(&chain));
            async move { service.delete_now(&chain).await }
        };
        let result = tasks::run_to_end(work).await;
        let event = Event { change: &[("call", &"delete_chain")], ..Event::default() };
        self.finish_with(Operation::Manage, &chain, started, event, result)
    }

    async fn delete_now(&self, chain: &Chain) -> Result<(), Error> {
        self.core.needs_store("a chain can't be deleted")?;
        if chain.is_named.load(Ordering::Relaxed) {
            let detail = "the configuration names this chain, or it is the default one";
            return Err(Error::new(Kind::Conflict, detail));
        }
        let failed = |error| self.core.store_error(&chain.name, error);
        for _ in 0..TRIES {
            let ledger = &mut chain.reservations.lock().await.ledger;
            ledger.refresh().await.map_err(failed)?;
            let keks = self.core.store.count(&record::keks_prefix(&chain.name)).await;
            let keks = keks.map_err(failed)?;
            if keks > 0 {
                let detail =
                    format!("the chain has {keks} KEKs; only a chain without any is deleted");
                return Err(Error::new(Kind::Conflict, detail));
            }
            if archive::find::has_keks(&self.core, &chain.name).await? {
                let detail = "the archives have KEKs of this chain; only a chain without any is \
                    deleted";
                return Err(Error::new(Kind::Conflict, detail));
            }
            if ledger.delete().await.map_err(failed)? {
                tracing::warn!(chain = %chain.name, "an operator deleted a chain without KEKs");
                chain.is_deleted.store(true, Ordering::Relaxed);
                self.drop_deleted();
                return Ok(());
            }
        }
        Err(busy())
    }

    /// Removes chains that were deleted by this process or another one.
    pub(in crate::service) fn drop_deleted(&self) {
        let is_deleted = |chain: &Arc<Chain>| chain.is_deleted.load(Ordering::Relaxed);
        let deleted: Vec<_> =
            self.chains.load().values().filter(|it| is_deleted(it)).cloned().collect();
        if deleted.is_empty() {
            return;
        }
        self.chains.rcu(|chains| {
            let mut chains = (**chains).clone();
            chains.retain(|_, chain| !is_deleted(chain));
            chains
        });
        for chain in deleted {
            self.core.metrics.forget(&chain.name);
            chain.need_uses.notify_one();
            chain.need_kek.notify_one();
        }
    }

    /// Returns the chain of this name, and whether it was created by this call.
    async fn create_chain(
        &self,
        name: &str,
        settings: ChainSettings,
    ) -> Result<(Arc<Chain>, bool), Error> {
        if let Some(chain) = self.chains.load().get(name) {
            return Ok((Arc::clone(chain), false));
        }
        let name = ChainName::new(name)
            .map_err(|error| Error::new(Kind::InvalidRequest, error.to_string()))?;
        if self.damaged_chains().contains_key(&name) {
            return Err(Error::new(Kind::Internal, "the stored record of this chain is damaged"));
        }
        let config = &self.core.config;
        let chains = self.chains.load().len();
        if chains >= config.chain.max_chains {
            let detail = format!("there are {chains} chains, and chain.max_chains allows no more");
            return Err(Error::new(Kind::Conflict, detail));
        }
        if let Some(chain) = self.found_again(&name).await? {
            return Ok((chain, false));
        }
        let limits = merge(config.chain.limits(), settings)?;
        let suite = settings.suite.unwrap_or(config.chain.suite);
        let inline = settings.inline.unwrap_or(config.chain.inline);
        let head = self.core.new_head(suite, limits, inline);
        let failed = |error| self.core.store_error(&name, error);
        let created = records::create(&*self.core.store, &name, &head).await.map_err(failed)?;
        let Some(chain) = self.core.load(&name).await.map_err(failed)? else {
            return Err(Error::new(Kind::Conflict, "the chain was deleted while it was created"));
        };
        // The follower may have loaded it already.
        Ok((self.adopt(chain), created))
    }

    async fn change_settings(&self, chain: &Chain, settings: ChainSettings) -> Result<(), Error> {
        let failed = |error| self.core.store_error(&chain.name, error);
        for _ in 0..TRIES {
            let mut reserver = chain.reservations.lock().await;
            let ledger = &mut reserver.ledger;
            ledger.refresh().await.map_err(failed)?;
            let head = &ledger.head.record;
            if settings.suite.is_some_and(|suite| suite != head.suite) {
                return Err(Error::new(
                    Kind::Conflict,
                    format!("the suite of this chain is {}; it can't be changed", head.suite),
                ));
            }
            let limits = merge(head.limits, settings)?;
            let reserved =
                ledger.primary.as_ref().map_or(0, |primary| primary.uses.record.reserved);
            if limits.max_uses < reserved {
                return Err(Error::new(
                    Kind::Conflict,
                    format!(
                        "{reserved} uses of the primary KEK are reserved: max_uses can't be less"
                    ),
                ));
            }
            let inline = settings.inline.unwrap_or(head.inline);
            let is_set = (limits, inline) == (head.limits, head.inline);
            if is_set || ledger.set_settings(limits, inline).await.map_err(failed)? {
                // The next envelope has the new form.
                reserver.publish_inline(&self.core, chain);
                self.core.archives.want(&chain.name, None, Wraps::Join);
                chain.need_uses.notify_one();
                return Ok(());
            }
        }
        Err(busy())
    }

    /// Disables, enables or destroys a KEK.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::UnknownKek`], [`Kind::Conflict`] if its state does not
    /// allow the change and if nothing is stored, [`Kind::StoreUnavailable`]. Where only an archive
    /// has the KEK: [`Kind::ArchiveUnavailable`], [`Kind::RootUnavailable`].
    pub async fn change_kek(
        &self,
        chain: &str,
        id: KekId,
        change: Change,
    ) -> Result<KekInfo, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Manage, Some(chain)).await?;
        let work = {
            let (core, chain) = (Arc::clone(&self.core), Arc::clone(&chain));
            async move {
                core.needs_store("a KEK can't be disabled, enabled or destroyed")?;
                let kek = kek_lifecycle::change(&core, &chain, id, change).await?;
                let left = archive::sync::everywhere(&core, &chain.name, id).await;
                if kek.state == State::Destroyed && !left.is_empty() {
                    let archives = left.join(", ");
                    tracing::error!(chain = %chain.name, kek_id = %id, archives, "archives still \
                        have the wraps of a KEK that was destroyed; they are tried again");
                }
                Ok((kek, left))
            }
        };
        let result = match tasks::run_to_end(work).await {
            Ok((kek, left)) => self.kek_info(&chain, id, kek).await.map(|info| {
                let is_destroyed = info.state == State::Destroyed;
                KekInfo { still_archived_in: if is_destroyed { left } else { Vec::new() }, ..info }
            }),
            Err(error) => Err(self.with_last_decrypt(&chain, id, change, error).await),
        };
        let (call, forced) = change.as_call();
        let event = Event {
            kek_id: Some(id),
            change: &[("call", &call), ("forced", &forced)],
            ..Event::default()
        };
        self.finish_with(Operation::Manage, &chain, started, event, result)
    }
}

impl KeyService {
    /// Adds to the refusal of a destroy when the KEK last decrypted.
    async fn with_last_decrypt(
        &self,
        chain: &Chain,
        id: KekId,
        change: Change,
        error: Error,
    ) -> Error {
        let is_destroy = matches!(change, Change::Destroy | Change::ForceDestroy);
        if !is_destroy || error.kind() != Kind::Conflict {
            return error;
        }
        let key = record::kek_key(&chain.name, id);
        let Ok(Some(kek)) = records::read::<Kek>(&*self.core.store, &key).await else {
            return error;
        };
        match self.kek_info(chain, id, kek.record).await {
            Ok(info) => {
                let [_, decrypt] = info.last_used_text();
                error.and(&format!("last decrypt under it: {decrypt}"))
            }
            Err(_) => error,
        }
    }
}

/// `limits` with `settings` applied, validated.
fn merge(limits: Limits, settings: ChainSettings) -> Result<Limits, Error> {
    let merged = Limits {
        rotate_after_uses: settings.rotate_after_uses.unwrap_or(limits.rotate_after_uses),
        max_uses: settings.max_uses.unwrap_or(limits.max_uses),
        rotate_after_age: settings.rotate_after_age.unwrap_or(limits.rotate_after_age),
    };
    merged.validate().map_err(|detail| Error::new(Kind::InvalidRequest, detail))?;
    if merged.rotate_after_age > MAX_ROTATE_AFTER_AGE {
        let detail = "rotate_after_age is at most 3153600000 seconds (36500 days)";
        return Err(Error::new(Kind::InvalidRequest, detail));
    }
    Ok(merged)
}

fn busy() -> Error {
    Error::new(Kind::Conflict, "modified concurrently; try again")
}
