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
use crate::service::core::Core;
use crate::service::tasks::proceed;
use crate::store::record::{self, LastUsed, Record as _, UsedSince};
use crate::store::records::MANY;
use crate::store::{self, Committed, Store as _, Txn};

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
        let chains = self.chains.load().keys().cloned().collect::<Vec<_>>();
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

/// Stores the first day of those of `chains` that have none.
async fn begin(core: &Core, mut chains: Vec<ChainName>) -> Result<(), store::Error> {
    chains.retain(|chain| core.used.may_begin(chain));
    for chains in chains.chunks(MANY) {
        let keys: Vec<_> = chains.iter().map(record::used_since_key).collect();
        let read = core.store.get_all(&keys).await?;
        let (today, mut txn) = (UsedSince { day: core.used.today() }, Txn::default());
        for ((chain, key), entry) in chains.iter().zip(keys).zip(read) {
            let known = entry.as_ref().and_then(|it| UsedSince::decode(&key, &it.value).ok());
            txn = match (entry, known) {
                (_, Some(known)) if !core.used.begins_again(chain) || known.day >= today.day => txn,
                (Some(entry), _) => txn.replace(key, entry.revision, today.encode()?),
                (None, _) => txn.create(key, today.encode()?),
            };
        }
        if !txn.puts.is_empty() && core.store.commit(txn).await? == Committed::Conflict {
            return Ok(());
        }
        chains.iter().for_each(|chain| core.used.began(chain));
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
            // A damaged record is replaced.
            let known = last.as_ref().and_then(|it| LastUsed::decode(&key, &it.value).ok());
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
