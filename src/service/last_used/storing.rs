//! Stores the days on which KEKs were last used. A day is stored once, whichever process is the
//! first: each reads what is stored and writes only a later day.
//!
//! No call waits for this. What fails is tried again, and once more at the end of the process.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};
use crate::keychain::KekPlacement;
use crate::service::KeyService;
use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::service::tasks::proceed;
use crate::store::record::{self, LastUsed, Record as _, UsedSince};
use crate::store::records::MANY;
use crate::store::{self, Committed, Store as _, Txn};
use crate::timestamp::DAY;

/// How often the task looks for days to store.
const TICK: Duration = Duration::from_secs(15);
/// How long the end of a process waits for the store.
const AT_END: Duration = Duration::from_secs(3);
/// KEKs of one transaction. The record of each KEK is read as well.
const AT_ONCE: usize = MANY / 2;
/// How often a transaction is tried when other processes store the same days.
const TRIES: usize = 4;

impl KeyService {
    /// Starts the task.
    pub(in crate::service) fn keep_days(self: &Arc<Self>) -> tokio::task::JoinHandle<()> {
        let (service, mut stop) = (Arc::downgrade(self), self.core.stopping.subscribe());
        tokio::spawn(async move {
            while proceed(&mut stop, tokio::time::sleep(TICK)).await {
                let Some(service) = service.upgrade() else { return };
                service.store_days().await;
            }
        })
    }

    /// Stores what is due.
    pub(in crate::service) async fn store_days(&self) {
        let core = &self.core;
        if !stores_any(core) {
            return;
        }
        let chains = self.chains.load().values().map(first_day).collect::<Vec<_>>();
        // The store reports its own failures, and the next tick repeats what failed.
        for result in [begin(core, chains).await, store(core, Some(core.clock.now())).await] {
            if let Err(error) = result {
                tracing::debug!(%error, "the days on which KEKs were used were not stored");
            }
        }
    }
}

/// Stores all days at the end of the process.
pub(in crate::service) async fn store_all(core: &Core) {
    if stores_any(core)
        && !matches!(tokio::time::timeout(AT_END, store(core, None)).await, Ok(Ok(())))
    {
        tracing::warn!("the days on which KEKs were last used were not all stored");
    }
}

fn stores_any(core: &Core) -> bool {
    core.placement == KekPlacement::Stored && core.store.is_up()
}

/// A chain, and the earliest day that can be today: the one on which its primary was promoted.
fn first_day(chain: &Arc<Chain>) -> (ChainName, u32) {
    let promoted_at = chain.published.facts().and_then(|facts| facts.promoted_at);
    let day = u32::try_from(promoted_at.unwrap_or_default() / DAY).unwrap_or(u32::MAX);
    (chain.name.clone(), day)
}

/// Stores the first day of those of `chains` that have none. If it is today by a clock that is
/// behind the chain, it waits until the clock is right.
async fn begin(core: &Core, mut chains: Vec<(ChainName, u32)>) -> Result<(), store::Error> {
    chains.retain(|(chain, _)| core.used.may_begin(chain));
    for chains in chains.chunks(MANY) {
        let keys: Vec<_> = chains.iter().map(|(it, _)| record::used_since_key(it)).collect();
        let read = core.store.get_all(&keys).await?;
        let (today, mut txn) = (UsedSince { day: core.used.today() }, Txn::default());
        let mut begun = Vec::new();
        for (((chain, earliest), key), entry) in chains.iter().zip(keys).zip(read) {
            let is_behind = today.day < *earliest;
            txn = match entry {
                Some(entry) => match core.used.read::<UsedSince>(&key, &entry) {
                    // It is not replaced: a newer version may have written it.
                    None => txn,
                    Some(known) if !core.used.begins_again(chain) || known == today => txn,
                    Some(known) if is_behind || today.day < known.day => continue,
                    Some(_) => txn.replace(key, entry.revision, today.encode()?),
                },
                None if is_behind => continue,
                None => txn.create(key, today.encode()?),
            };
            begun.push(chain);
        }
        if !txn.puts.is_empty() && core.store.commit(txn).await? == Committed::Conflict {
            return Ok(());
        }
        begun.into_iter().for_each(|chain| core.used.began(chain));
    }
    Ok(())
}

/// Stores the days that are due at `now`, or all of them.
async fn store(core: &Core, now: Option<Monotonic>) -> Result<(), store::Error> {
    for keks in core.used.unstored(now).chunks(AT_ONCE) {
        match store_some(core, keks).await {
            // A damaged record must not stop the others.
            Err(store::Error::Corrupt { .. }) => {
                for kek in keks {
                    if let Err(store::Error::Corrupt { key, detail }) =
                        store_some(core, std::slice::from_ref(kek)).await
                    {
                        tracing::warn!(key, detail, "the days of a KEK can't be stored");
                        core.used.stored(kek, core.used.of(&kek.0, kek.1));
                    }
                }
            }
            result => result?,
        }
    }
    Ok(())
}

async fn store_some(core: &Core, keks: &[(ChainName, KekId)]) -> Result<(), store::Error> {
    for _ in 0..TRIES {
        let keys: Vec<_> = keks
            .iter()
            .flat_map(|(chain, id)| {
                [record::kek_key(chain, *id), record::last_used_key(chain, *id)]
            })
            .collect();
        let read = core.store.get_all(&keys).await?;
        let (mut txn, mut stored) = (Txn::default(), Vec::new());
        for (kek, found) in keks.iter().zip(read.as_chunks().0) {
            let [record, last] = found;
            let used = core.used.of(&kek.0, kek.1);
            // An inline KEK that the store does not have: nobody can list or destroy it here.
            if record.is_none() {
                stored.push((kek, used));
                continue;
            }
            let key = record::last_used_key(&kek.0, kek.1);
            let known = last.as_ref().map(|entry| core.used.read::<LastUsed>(&key, entry));
            // It is not replaced: a newer version may have written it.
            if known == Some(None) {
                stored.push((kek, used));
                continue;
            }
            let known = known.flatten();
            let latest = known.unwrap_or_default().max(used);
            stored.push((kek, latest));
            txn = match last {
                _ if known == Some(latest) => txn,
                Some(entry) => txn.replace(key, entry.revision, latest.encode()?),
                None => txn.create(key, latest.encode()?),
            };
        }
        if txn.puts.is_empty() || core.store.commit(txn).await? != Committed::Conflict {
            stored.into_iter().for_each(|(kek, days)| core.used.stored(kek, days));
            return Ok(());
        }
    }
    Ok(())
}
