//! Chains and KEKs looked at and changed: what `/v1/chains` does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::{ChainName, KekId};
use crate::metrics::Operation;
use crate::store::record::{self, Kek, Limits, Record, Uses};
use crate::store::{self, Store};

use super::answer::{ChainInfo, ChainSettings, Change, KekInfo, Page};
use super::chain::Chain;
use super::error::{Error, Kind};
use super::{KeyService, core, ledger, states};

/// The most items of a page.
const MAX_PAGE: usize = 1000;
/// How often a change is tried when others change the same record.
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
        let limit = limit.clamp(1, MAX_PAGE);
        let chains = self.chains.load_full();
        let mut names: Vec<_> =
            chains.keys().filter(|name| after.is_none_or(|after| name.as_str() > after)).collect();
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

    /// One chain, and its KEKs after `after` in the order of their ids, at most `limit` (and at most
    /// 1,000). KEKs whose records are damaged are left out; the log names them.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::StoreUnavailable`].
    pub async fn chain(
        &self,
        name: &str,
        after: Option<KekId>,
        limit: usize,
    ) -> Result<(ChainInfo, Page<KekInfo, KekId>), Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Read, Some(name))?;
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
        let (mut items, mut last) = (Vec::new(), None);
        for entry in entries.iter().take(limit) {
            let id = entry.key.strip_prefix(&prefix).and_then(|id| id.parse().ok());
            let Some(id) = id else {
                let detail = "its key names no KEK id".to_owned();
                failed(store::Error::Corrupt { key: entry.key.clone(), detail });
                continue;
            };
            last = Some(id);
            let kek = match Kek::decode(&entry.key, &entry.value).map_err(failed) {
                Ok(kek) => self.kek_info(chain, id, kek).await,
                Err(error) => Err(error),
            };
            items.extend(healthy(kek)?);
        }
        Ok(Page { items, next: last.filter(|_| more) })
    }

    async fn kek_info(&self, chain: &Chain, kek_id: KekId, kek: Kek) -> Result<KekInfo, Error> {
        let uses =
            ledger::read::<Uses>(&*self.core.store, &record::uses_key(&chain.name, kek_id)).await;
        let uses = uses.map_err(|error| self.core.store_error(&chain.name, error))?;
        Ok(KekInfo {
            kek_id,
            state: kek.state,
            suite: kek.suite,
            created_at: kek.created_at,
            promoted_at: kek.promoted_at,
            disabled_at: kek.disabled_at,
            uses_reserved: uses.map_or(0, |uses| uses.record.reserved),
            exposed: kek.exposed,
            roots: kek.wraps.into_iter().map(|wrap| wrap.root).collect(),
        })
    }

    async fn info(&self, chain: &Chain) -> Result<ChainInfo, Error> {
        let head = {
            let mut reserver = chain.reserver.lock().await;
            let refreshed = reserver.ledger.refresh().await;
            refreshed.map_err(|error| self.core.store_error(&chain.name, error))?;
            reserver.ledger.head.record.clone()
        };
        Ok(ChainInfo {
            chain: chain.name.clone(),
            suite: head.suite,
            primary: head.primary,
            standby: head.standby,
            keks: self.count_keks(chain).await?,
            limits: head.limits,
        })
    }

    /// Counts the stored KEKs once; from then on the count is kept.
    async fn count_keks(&self, chain: &Chain) -> Result<u64, Error> {
        let count = async || {
            let prefix = record::keks_prefix(&chain.name);
            let (mut count, mut after) = (0, None::<String>);
            loop {
                let page = self.core.store.list(&prefix, after.as_deref(), MAX_PAGE).await?;
                count += page.len() as u64;
                match page.into_iter().last() {
                    Some(last) => after = Some(last.key),
                    None => return Ok(AtomicU64::new(count)),
                }
            }
        };
        let counted: Result<&AtomicU64, store::Error> = chain.keks.get_or_try_init(count).await;
        let counted = counted.map_err(|error| self.core.store_error(&chain.name, error))?;
        Ok(counted.load(Ordering::Relaxed))
    }

    /// Makes a chain (then the first of the answer is true), or changes the limits of one. A new
    /// chain gets its first KEK within a second, or at its first use.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`] for a name or limits that can not be, [`Kind::Conflict`] for another
    /// suite or limits below what is reserved, [`Kind::StoreUnavailable`].
    pub async fn put_chain(
        self: &Arc<Self>,
        name: &str,
        settings: ChainSettings,
    ) -> Result<(bool, ChainInfo), Error> {
        let (service, name) = (Arc::clone(self), name.to_owned());
        core::run_to_end(async move { service.put_chain_now(&name, settings).await }).await
    }

    async fn put_chain_now(
        &self,
        name: &str,
        settings: ChainSettings,
    ) -> Result<(bool, ChainInfo), Error> {
        let started = self.core.clock.now();
        let result = self.create_chain(name, settings).await;
        let chain = match result {
            Ok((chain, true)) => {
                let info = self.info(&chain).await.map(|info| (true, info));
                return self.finish(Operation::Manage, &chain, started, info);
            }
            Ok((chain, false)) => chain,
            Err(error) => {
                self.core.metrics.failed(Operation::Manage, "", error.kind().code());
                return Err(error);
            }
        };
        let result = async {
            self.change_limits(&chain, settings).await?;
            Ok((false, self.info(&chain).await?))
        };
        let result = result.await;
        self.finish(Operation::Manage, &chain, started, result)
    }

    /// The chain of this name, and whether it was made here.
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
        if self.damaged.contains_key(&name) {
            return Err(Error::new(Kind::Internal, "the stored record of this chain is damaged"));
        }
        let config = &self.core.config;
        let limits = merge(config.limits, settings)?;
        let head = self.core.new_head(settings.suite.unwrap_or(config.suite), limits);
        let failed = |error| self.core.store_error(&name, error);
        let created = ledger::create(&*self.core.store, &name, &head).await.map_err(failed)?;
        let Some(chain) = self.core.load(&name).await.map_err(failed)? else {
            return Err(Error::new(Kind::Conflict, "the chain went away as it was made"));
        };
        let mut ours = false;
        self.chains.rcu(|chains| {
            let mut chains = (**chains).clone();
            ours = !chains.contains_key(&name);
            chains.entry(name.clone()).or_insert_with(|| Arc::clone(&chain));
            chains
        });
        if ours {
            self.spawn(&chain);
            return Ok((chain, created));
        }
        let current = self.chains.load().get(&name).cloned();
        Ok((current.unwrap_or(chain), created))
    }

    async fn change_limits(&self, chain: &Chain, settings: ChainSettings) -> Result<(), Error> {
        let failed = |error| self.core.store_error(&chain.name, error);
        for _ in 0..TRIES {
            let mut reserver = chain.reserver.lock().await;
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
    /// [`Kind::UnknownChain`], [`Kind::UnknownKek`], [`Kind::Conflict`] when its state does not allow
    /// it, [`Kind::StoreUnavailable`].
    pub async fn change_kek(
        &self,
        chain: &str,
        id: KekId,
        change: Change,
    ) -> Result<KekInfo, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Manage, Some(chain))?;
        let work = {
            let (core, chain) = (Arc::clone(&self.core), Arc::clone(&chain));
            async move { states::change(&core, &chain, id, change).await }
        };
        let result = match core::run_to_end(work).await {
            Ok(kek) => self.kek_info(&chain, id, kek).await,
            Err(error) => Err(error),
        };
        self.finish(Operation::Manage, &chain, started, result)
    }
}

/// What was read, unless it is damaged; the log has its name then.
fn healthy<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Err(error) if error.kind() == Kind::Internal => Ok(None),
        read => read.map(Some),
    }
}

/// `limits` with what is set, checked.
fn merge(limits: Limits, settings: ChainSettings) -> Result<Limits, Error> {
    let merged = Limits {
        rotate_after_uses: settings.rotate_after_uses.unwrap_or(limits.rotate_after_uses),
        max_uses: settings.max_uses.unwrap_or(limits.max_uses),
        rotate_after_age: settings.rotate_after_age.unwrap_or(limits.rotate_after_age),
    };
    merged.validate().map_err(|detail| Error::new(Kind::InvalidRequest, detail))?;
    Ok(merged)
}

fn busy() -> Error {
    Error::new(Kind::Conflict, "others changed it at the same time; try again")
}
