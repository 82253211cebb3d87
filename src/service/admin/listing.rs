//! What operators read about chains and their KEKs, as in `/v1/chains`. It changes nothing, but
//! a head that the store has lost is restored.

use crate::id::{ChainName, KekId};
use crate::keychain::KekPlacement;
use crate::metrics::Operation;
use crate::store::record::{self, Kek, Record, Uses};
use crate::store::records;
use crate::store::{self, Store};

use crate::service::KeyService;
use crate::service::chain::Chain;
use crate::service::error::{Error, Kind};
use crate::service::last_used::reading::Usage;
use crate::service::rollback::repair;
use crate::service::types::{ChainInfo, KekInfo, Page};

/// The most items of a page.
const MAX_PAGE: usize = 1000;

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
        let ids: Vec<_> = keks.iter().map(|(id, _)| *id).collect();
        let usage = self.core.usage(&chain.name, &ids).await?;
        for ((id, kek), entry) in keks.into_iter().zip(uses) {
            let uses = entry.map(|entry| Uses::decode(&entry.key, &entry.value)).transpose();
            let uses = uses.map_err(|error| self.core.store_error(&chain.name, error));
            infos.extend(healthy(uses)?.map(|uses| kek_info(id, kek, uses, &usage)));
        }
        Ok(infos)
    }

    pub(super) async fn kek_info(
        &self,
        chain: &Chain,
        kek_id: KekId,
        kek: Kek,
    ) -> Result<KekInfo, Error> {
        let uses =
            records::read::<Uses>(&*self.core.store, &record::uses_key(&chain.name, kek_id)).await;
        let uses = uses.map_err(|error| self.core.store_error(&chain.name, error))?;
        let usage = self.core.usage(&chain.name, &[kek_id]).await?;
        Ok(kek_info(kek_id, kek, uses.map(|uses| uses.record), &usage))
    }

    pub(super) async fn info(&self, chain: &Chain) -> Result<ChainInfo, Error> {
        let head = repair::head(&self.core, chain).await?;
        let keks = self.core.store.count(&record::keks_prefix(&chain.name)).await;
        Ok(ChainInfo {
            chain: chain.name.clone(),
            suite: head.suite,
            primary: head.primary,
            standby: head.standby,
            keks: keks.map_err(|error| self.core.store_error(&chain.name, error))?,
            limits: head.limits,
            inline: head.inline || self.core.placement == KekPlacement::Inline,
        })
    }
}

fn kek_info(kek_id: KekId, kek: Kek, uses: Option<Uses>, usage: &Usage) -> KekInfo {
    let (last_used, usage_known_since) = usage.of(kek_id);
    KekInfo {
        kek_id,
        state: kek.state,
        suite: kek.suite,
        created_at: kek.created_at,
        promoted_at: kek.promoted_at,
        disabled_at: kek.disabled_at,
        uses_reserved: uses.map_or(0, |uses| uses.reserved),
        last_used,
        usage_known_since,
        exposed: kek.exposed,
        roots: kek.wraps.into_iter().map(|wrap| wrap.root).collect(),
        still_archived_in: Vec::new(),
    }
}

/// Converts damage, which is logged already, to `None`.
fn healthy<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Err(error) if error.kind() == Kind::Internal => Ok(None),
        read => read.map(Some),
    }
}
