//! Chains and KEKs: list, create, change and delete, as in `/v1/chains`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::id::{ChainName, KekId};
use crate::metrics::Operation;
use crate::store::record::{self, Kek, Limits, Record, Uses};
use crate::store::{self, Store};

use crate::service::chain::Chain;
use crate::service::error::{Error, Kind};
use crate::service::limits::lookup_quota;
use crate::service::types::{ChainInfo, ChainSettings, Change, KekInfo, Page};
use crate::service::{KeyService, kek_lifecycle, tasks};
use crate::store::records;

/// The most items of a page.
const MAX_PAGE: usize = 1000;
/// 100 years, as in the configuration: a larger value is a mistake in the unit.
const MAX_ROTATE_AFTER_AGE: u64 = 36_500 * 24 * 60 * 60;
/// How often a change is tried when other processes change the same record.
const TRIES: usize = 4;

impl KeyService {
    /// The chains after `after`, in the order of their names, at most `limit` (and at most 1,000).
    /// Those whose records are damaged are left out; readiness names them.
    ///
    /// # Errors
    /// [`Kind::StoreUnavailable`].
    pub async fn chains(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<ChainInfo, ChainName>, Error> {
        self.chains_that(|_| true, after, limit).await
    }

    /// As [`chains`](Self::chains), but only the chains for which `visible` returns true.
    ///
    /// # Errors
    /// [`Kind::StoreUnavailable`].
    pub async fn chains_that(
        &self,
        visible: impl Fn(&ChainName) -> bool,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<ChainInfo, ChainName>, Error> {
        let limit = limit.clamp(1, MAX_PAGE);
        let chains = self.chains.load_full();
        let later = |name: &&ChainName| after.is_none_or(|after| name.as_str() > after);
        let mut names: Vec<_> = chains.keys().filter(later).filter(|name| visible(name)).collect();
        names.sort();
        let more = names.len() > limit;
        names.truncate(limit);
        let mut items = Vec::new();
        for chain in names.iter().filter_map(|&name| chains.get(name)) {
            items.extend(healthy(self.info(chain).await)?);
        }
        let next = names.last().filter(|_| more).map(|&name| name.clone());
        Ok(Page { items, next })
    }

    /// One chain, and its KEKs after `after` in the order of their ids, at most `limit` (and at
    /// most 1,000). KEKs whose records are damaged are left out; the log names them.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::StoreUnavailable`].
    pub async fn chain_with_keks(
        &self,
        name: &str,
        after: Option<KekId>,
        limit: usize,
    ) -> Result<(ChainInfo, Page<KekInfo, KekId>), Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Read, Some(name)).await?;
        let result =
            async { Ok((self.info(&chain).await?, self.keks(&chain, after, limit).await?)) }.await;
        self.finish(Operation::Read, &chain, started, result)
    }

    async fn keks(
        &self,
        chain: &Chain,
        after: Option<KekId>,
        limit: usize,
    ) -> Result<Page<KekInfo, KekId>, Error> {
        let limit = limit.clamp(1, MAX_PAGE);
        let prefix = record::keks_prefix(&chain.name);
        let after = after.map(|id| record::kek_key(&chain.name, id));
        let failed = |error| self.core.store_error(&chain.name, error);
        let entries =
            self.core.store.list(&prefix, after.as_deref(), limit + 1).await.map_err(failed)?;
        let more = entries.len() > limit;
        let (mut read, mut last) = (Vec::new(), None);
        for entry in entries.iter().take(limit) {
            let id = entry.key.strip_prefix(&prefix).and_then(|id| id.parse().ok());
            let Some(id) = id else {
                let detail = "its key names no KEK id".to_owned();
                failed(store::Error::Corrupt { key: entry.key.clone(), detail });
                continue;
            };
            last = Some(id);
            let kek = Kek::decode(&entry.key, &entry.value).map_err(failed);
            read.extend(healthy(kek)?.map(|kek| (id, kek)));
        }
        let items = self.kek_infos(chain, read).await?;
        Ok(Page { items, next: last.filter(|_| more) })
    }

    /// KEKs with their uses; without those whose uses are damaged.
    async fn kek_infos(
        &self,
        chain: &Chain,
        keks: Vec<(KekId, Kek)>,
    ) -> Result<Vec<KekInfo>, Error> {
        let keys: Vec<_> = keks.iter().map(|(id, _)| record::uses_key(&chain.name, *id)).collect();
        let mut infos = Vec::with_capacity(keks.len());
        let uses = match self.core.store.get_all(&keys).await {
            Ok(uses) => uses,
            // At least one is damaged. They are read one by one to find out which.
            Err(store::Error::Corrupt { .. }) => {
                for (id, kek) in keks {
                    infos.extend(healthy(self.kek_info(chain, id, kek).await)?);
                }
                return Ok(infos);
            }
            Err(error) => return Err(self.core.store_error(&chain.name, error)),
        };
        for ((id, kek), entry) in keks.into_iter().zip(uses) {
            let uses = entry.map(|entry| Uses::decode(&entry.key, &entry.value)).transpose();
            let uses = uses.map_err(|error| self.core.store_error(&chain.name, error));
            infos.extend(healthy(uses)?.map(|uses| kek_info(id, kek, uses)));
        }
        Ok(infos)
    }

    async fn kek_info(&self, chain: &Chain, kek_id: KekId, kek: Kek) -> Result<KekInfo, Error> {
        let uses =
            records::read::<Uses>(&*self.core.store, &record::uses_key(&chain.name, kek_id)).await;
        let uses = uses.map_err(|error| self.core.store_error(&chain.name, error))?;
        Ok(kek_info(kek_id, kek, uses.map(|uses| uses.record)))
    }

    async fn info(&self, chain: &Chain) -> Result<ChainInfo, Error> {
        let head = records::head(&*self.core.store, &chain.name).await;
        let head = head.map_err(|error| self.core.store_error(&chain.name, error))?;
        let keks = self.core.store.count(&record::keks_prefix(&chain.name)).await;
        Ok(ChainInfo {
            chain: chain.name.clone(),
            suite: head.suite,
            primary: head.primary,
            standby: head.standby,
            keks: keks.map_err(|error| self.core.store_error(&chain.name, error))?,
            limits: head.limits,
        })
    }

    /// Creates a chain, or changes the limits of an existing one. Returns whether it was created. A
    /// new chain gets its first KEK at its first use. A creation is charged as a look-up.
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
            return Err(self.count(Operation::Manage, "", error));
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
                return self.finish(Operation::Manage, &chain, started, info);
            }
            Ok((chain, false)) => chain,
            Err(error) => return Err(self.count(Operation::Manage, "", error)),
        };
        let result = async {
            self.change_limits(&chain, settings).await?;
            Ok((false, self.info(&chain).await?))
        };
        let result = result.await;
        self.finish(Operation::Manage, &chain, started, result)
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
        self.finish(Operation::Manage, &chain, started, result)
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
        let limits = merge(config.chain.limits(), settings)?;
        let head = self.core.new_head(settings.suite.unwrap_or(config.chain.suite), limits);
        let failed = |error| self.core.store_error(&name, error);
        let created = records::create(&*self.core.store, &name, &head).await.map_err(failed)?;
        let Some(chain) = self.core.load(&name).await.map_err(failed)? else {
            return Err(Error::new(Kind::Conflict, "the chain was deleted while it was created"));
        };
        // The follower may have loaded it already.
        Ok((self.adopt(chain), created))
    }

    async fn change_limits(&self, chain: &Chain, settings: ChainSettings) -> Result<(), Error> {
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
            if limits == head.limits || ledger.set_limits(limits).await.map_err(failed)? {
                chain.need_uses.notify_one();
                return Ok(());
            }
        }
        Err(busy())
    }

    /// Disables, enables or destroys a KEK.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::UnknownKek`], [`Kind::Conflict`] if its state does not allow
    /// the change and if nothing is stored, [`Kind::StoreUnavailable`].
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
                kek_lifecycle::change(&core, &chain, id, change).await
            }
        };
        let result = match tasks::run_to_end(work).await {
            Ok(kek) => self.kek_info(&chain, id, kek).await,
            Err(error) => Err(error),
        };
        self.finish(Operation::Manage, &chain, started, result)
    }
}

fn kek_info(kek_id: KekId, kek: Kek, uses: Option<Uses>) -> KekInfo {
    KekInfo {
        kek_id,
        state: kek.state,
        suite: kek.suite,
        created_at: kek.created_at,
        promoted_at: kek.promoted_at,
        disabled_at: kek.disabled_at,
        uses_reserved: uses.map_or(0, |uses| uses.reserved),
        exposed: kek.exposed,
        roots: kek.wraps.into_iter().map(|wrap| wrap.root).collect(),
    }
}

/// Converts damage, which is logged already, to `None`.
fn healthy<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Err(error) if error.kind() == Kind::Internal => Ok(None),
        read => read.map(Some),
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
