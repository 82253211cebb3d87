//! Brings one record into one archive. The object is read before the stored record, and replaced
//! only if it has not changed, so a slow process never replaces a newer object by an older record.
//!
//! A tombstone wins: if the archive has one and the store does not, the KEK is destroyed in the
//! store as well.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::archive::object::{self, Damaged, Merged, Wraps};
use crate::archive::{self, Condition, Written};
use crate::id::{ChainName, KekId};
use crate::service::core::Core;
use crate::service::error::Error;
use crate::store;
use crate::store::record::{self, Kek, State, Wrap};
use crate::store::records::{self, Versioned};

use super::archives::{Item, One};

/// How often a record is tried that other processes archive at the same time.
pub(super) const TRIES: usize = 8;

/// Why a record was not archived.
#[derive(Debug)]
pub(super) enum Failed {
    /// The archive fails.
    Archive,
    /// The store fails.
    Store,
    /// This record can't be archived, or not now.
    Record(String),
}

/// What a synchronization found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Synced {
    /// The archive holds what the store holds.
    Same,
    /// The store has no such record.
    NotStored,
    /// The archive has a tombstone of a KEK that is not destroyed in the store.
    Destroyed,
}

impl From<store::Error> for Failed {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Unavailable { .. } => Self::Store,
            error @ store::Error::Corrupt { .. } => Self::Record(error.to_string()),
        }
    }
}

impl From<Damaged> for Failed {
    fn from(error: Damaged) -> Self {
        Self::Record(error.to_string())
    }
}

/// Archives a KEK, or the settings of a chain.
pub(super) async fn item(
    core: &Core,
    one: &One,
    (chain, id): &Item,
    wraps: Wraps,
) -> Result<Synced, Failed> {
    match id {
        Some(id) => kek(core, one, chain, *id, wraps).await,
        None => settings(core, one, chain).await,
    }
}

/// Makes a call of an archive, and notes whether it answers.
pub(super) async fn call<T>(
    core: &Core,
    one: &One,
    call: impl Future<Output = Result<T, archive::Error>>,
) -> Result<T, Failed> {
    let result = call.await;
    one.note(&result, core.clock.unix_now());
    result.map_err(|_| Failed::Archive)
}

async fn settings(core: &Core, one: &One, chain: &ChainName) -> Result<Synced, Failed> {
    let key = object::chain_key(chain);
    for _ in 0..TRIES {
        let found = call(core, one, one.archive.get(&key)).await?;
        let Some(head) = records::read_head(&*core.store, chain).await? else {
            return Ok(Synced::NotStored);
        };
        let stored = object::Chain::of(&head.record);
        let archived = found.as_ref().map(|it| object::decode_chain(chain, &it.bytes));
        if archived.transpose()? != Some(stored) {
            let condition = found.map_or(Condition::Absent, |it| Condition::Unchanged(it.version));
            let bytes = object::encode_chain(chain, &stored)?;
            let written = call(core, one, one.archive.put(&key, bytes, condition)).await?;
            if written == Written::Conflict {
                continue;
            }
        }
        one.note_settings(chain);
        return Ok(Synced::Same);
    }
    Err(busy(&key))
}

async fn kek(
    core: &Core,
    one: &One,
    chain: &ChainName,
    id: KekId,
    wraps: Wraps,
) -> Result<Synced, Failed> {
    let key = object::kek_key(chain, id);
    for _ in 0..TRIES {
        let found = call(core, one, one.archive.get(&key)).await?;
        let Some(Versioned { record: stored, .. }) = read(core, chain, id).await? else {
            return Ok(Synced::NotStored);
        };
        let archived = found.as_ref().map(|it| object::decode_kek(chain, id, &it.bytes));
        let archived = archived.transpose()?;
        let merged = match &archived {
            Some(archived)
                if archived.state == State::Destroyed && stored.state != State::Destroyed =>
            {
                return Ok(Synced::Destroyed);
            }
            Some(archived) => {
                let wraps = joined(core, &archived.wraps, &stored.wraps, wraps);
                object::merge(archived, &stored, wraps)
            }
            None => Merged::Replace(stored.clone()),
        };
        let held = match merged {
            Merged::Keep => archived.unwrap_or_else(|| stored.clone()),
            Merged::Replace(next) => {
                let condition =
                    found.map_or(Condition::Absent, |it| Condition::Unchanged(it.version));
                let bytes = object::encode_kek(chain, id, &next)?;
                let written = call(core, one, one.archive.put(&key, bytes, condition)).await?;
                if written == Written::Conflict {
                    continue;
                }
                next
            }
        };
        // One wrap of the stored record is enough to open it.
        let opens = held.wraps.iter().any(|wrap| stored.wraps.contains(wrap));
        if opens || stored.state == State::Destroyed {
            one.note_kek(chain, id, &stored);
            return Ok(Synced::Same);
        }
        return Err(Failed::Record(format!("the object {key} has other wraps than the store")));
    }
    Err(busy(&key))
}

/// Whether wraps that the store lacks remain in the archive. Those of a root that was removed do
/// not: it is configured here no longer, and another root that is has a wrap in the store.
pub(super) fn joined(core: &Core, archived: &[Wrap], stored: &[Wrap], wraps: Wraps) -> Wraps {
    let is_configured = |root: &str| core.keyring.roots.is_configured(root);
    let lacking =
        archived.iter().filter(|wrap| !stored.iter().any(|other| other.root == wrap.root));
    let mut lacking = lacking.peekable();
    let is_removed = lacking.peek().is_some()
        && lacking.all(|wrap| !is_configured(&wrap.root))
        && stored.iter().any(|wrap| is_configured(&wrap.root));
    if is_removed { Wraps::Replace } else { wraps }
}

async fn read(
    core: &Core,
    chain: &ChainName,
    id: KekId,
) -> Result<Option<Versioned<Kek>>, store::Error> {
    records::read(&*core.store, &record::kek_key(chain, id)).await
}

pub(super) fn busy(key: &str) -> Failed {
    Failed::Record(format!("other processes write the object {key}"))
}

/// Archives a standby that is to be promoted now, in all archives that lack it.
///
/// # Errors
/// [`Kind::ArchiveUnavailable`](crate::service::Kind::ArchiveUnavailable) if the required archives
/// do not hold it afterwards.
pub(in crate::service) async fn ensure(
    core: &Arc<Core>,
    chain: &ChainName,
    id: KekId,
) -> Result<(), Error> {
    core.archives.want_first(chain, id);
    let mut calls = JoinSet::new();
    for one in core.archives.iter().filter(|one| !one.holds(chain, id)) {
        let (core, one, chain) = (Arc::clone(core), Arc::clone(one), chain.clone());
        calls.spawn(async move {
            settings(&core, &one, &chain).await?;
            kek(&core, &one, &chain, id, Wraps::Join).await
        });
    }
    // With `require = "any"`, one archive that hangs holds up nothing.
    while core.archives.permit(chain, id).is_none() && calls.join_next().await.is_some() {}
    calls.detach_all();
    match core.archives.permit(chain, id) {
        Some(_) => Ok(()),
        None => Err(core.archives.obstacle(chain, id).unwrap_or_else(super::permit::not_yet)),
    }
}

/// Archives the current state of a KEK in all archives. Returns the names of those that failed;
/// their tasks try again.
pub(in crate::service) async fn everywhere(
    core: &Arc<Core>,
    chain: &ChainName,
    id: KekId,
) -> Vec<String> {
    core.archives.want(chain, Some(id), Wraps::Join);
    let mut calls = JoinSet::new();
    for one in core.archives.iter() {
        let (core, one, chain) = (Arc::clone(core), Arc::clone(one), chain.clone());
        calls.spawn(async move {
            let synced = kek(&core, &one, &chain, id, Wraps::Join).await;
            synced.is_err().then(|| one.name.to_string())
        });
    }
    let mut failed = Vec::new();
    while let Some(ended) = calls.join_next().await {
        failed.extend(ended.ok().flatten());
    }
    failed.sort();
    failed
}
