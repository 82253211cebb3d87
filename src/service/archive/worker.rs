//! The task of each archive: archives what is due, and compares the store with the archive now and
//! then. An archive that hangs or fails holds up nothing else.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::archive::object::{PREFIX, Wraps};
use crate::backoff::Backoff;
use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::service::tasks::proceed;
use crate::service::{KeyService, kek_lifecycle};
use crate::store::record::{self, Kek, State};
use crate::store::records;

use super::archives::{Due, Item, One};
use super::sweep;
use super::sync::{self, Failed, Synced};

/// How often the store is compared with an archive.
const COMPARE_EVERY: Duration = Duration::from_secs(10 * 60);
/// How often an archive that failed is asked again when nothing is due.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How many records are archived concurrently.
const AT_ONCE: usize = 16;

impl KeyService {
    /// Starts the tasks of the archives.
    pub(in crate::service) fn archive(self: &Arc<Self>) -> Vec<tokio::task::JoinHandle<()>> {
        let archives = self.core.archives.iter().cloned();
        archives.map(|one| tokio::spawn(run(Arc::downgrade(self), one))).collect()
    }

    /// Archives what is due in every archive once.
    #[cfg(test)]
    pub(in crate::service) async fn archive_once(self: &Arc<Self>) {
        for one in self.core.archives.iter() {
            let _ = sweep::all(&self.core, one).await;
            while round(self, one).await == Round::More {}
        }
    }
}

/// What is left after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// More may be due.
    More,
    /// Nothing is due.
    Done,
    /// The archive or the store fails.
    Failed,
}

async fn run(service: Weak<KeyService>, one: Arc<One>) {
    let Some(mut stop) = service.upgrade().map(|it| it.core.stopping.subscribe()) else { return };
    let mut backoff = Backoff::new(Duration::from_secs(1), 3);
    let mut compare_at = Instant::now();
    loop {
        let Some(strong) = service.upgrade() else { return };
        let wants = one.take_sweep() || Instant::now() >= compare_at;
        let mut result = round(&strong, &one).await;
        if wants && result != Round::Failed {
            match sweep::all(&strong.core, &one).await {
                Ok(()) => compare_at = Instant::now() + COMPARE_EVERY,
                Err(_) => {
                    compare_at = Instant::now();
                    result = Round::Failed;
                }
            }
        } else if wants {
            compare_at = Instant::now();
        }
        drop(strong);
        let pause = async {
            match result {
                Round::Failed => tokio::time::sleep(backoff.failed()).await,
                Round::More => backoff.succeeded(),
                Round::Done => {
                    backoff.succeeded();
                    let _ = timeout(LOOK_EVERY, one.wake.notified()).await;
                }
            }
        };
        if !proceed(&mut stop, pause).await {
            return;
        }
    }
}

/// Archives some of what is due.
async fn round(service: &Arc<KeyService>, one: &Arc<One>) -> Round {
    let core = &service.core;
    // An archive that failed is tried with one record.
    let most = if one.is_up() { AT_ONCE } else { 1 };
    let items = one.next(most, core.clock.now());
    if items.is_empty() {
        if one.is_up() {
            return Round::Done;
        }
        let asked = sync::call(core, one, one.archive.list(PREFIX, None, 1)).await;
        return if asked.is_ok() { Round::More } else { Round::Failed };
    }
    let mut calls = JoinSet::new();
    for (item, due) in items {
        let (service, one) = (Arc::clone(service), Arc::clone(one));
        calls.spawn(async move { archive(&service, &one, item, due).await });
    }
    let mut all = Round::More;
    while let Some(ended) = calls.join_next().await {
        if ended.unwrap_or(Round::Failed) == Round::Failed {
            all = Round::Failed;
        }
    }
    all
}

/// Archives one record, and wakes its chain.
async fn archive(service: &Arc<KeyService>, one: &One, item: Item, due: Due) -> Round {
    let core = &service.core;
    let chain = service.chains.load().get(&item.0).cloned();
    let was_held = one.holds_item(&item);
    let synced = match sync::item(core, one, &item, due.wraps).await {
        Ok(Synced::Destroyed) => bury(core, chain.as_deref(), &item).await,
        synced => synced,
    };
    match synced {
        Ok(Synced::Same) => {
            one.done(&item, due);
            // Otherwise nothing has changed for the chain, and its task would ask again and again.
            if was_held || !one.holds_item(&item) {
                chain.iter().for_each(|chain| chain.staleness.outdate());
                return Round::More;
            }
        }
        Ok(Synced::NotStored) => {
            // If the chain waits for it, its records are out of date.
            chain.iter().for_each(|chain| chain.staleness.outdate());
            one.done(&item, due);
            return Round::More;
        }
        // The chain is repaired first.
        Ok(Synced::Destroyed) => one.note_stuck(item, core.clock.now()),
        Err(Failed::Record(detail)) => {
            tracing::error!(archive = %one.name, detail, "a record can't be archived");
            one.note_stuck(item, core.clock.now());
        }
        Err(Failed::Archive | Failed::Store) => {
            // Requests that wait learn that the archive fails.
            chain.iter().for_each(|chain| chain.need_uses.notify_one());
            return Round::Failed;
        }
    }
    chain.iter().for_each(|chain| chain.need_uses.notify_one());
    Round::More
}

/// Destroys a KEK in the store that is destroyed in an archive, and then in the other archives.
/// One that the chain encrypts with, or will, is retired first: only an old copy of the store has
/// it.
async fn bury(core: &Core, chain: Option<&Chain>, (name, id): &Item) -> Result<Synced, Failed> {
    let Some(id) = *id else { return Ok(Synced::NotStored) };
    let key = record::kek_key(name, id);
    let Some(read) = records::read::<Kek>(&*core.store, &key).await? else {
        return Ok(Synced::NotStored);
    };
    if let Some(chain) = chain {
        kek_lifecycle::follow(core, chain, id, State::Destroyed);
    }
    match (read.record.state, chain) {
        (State::Destroyed, _) => {}
        (State::Standby | State::Primary, Some(chain)) => {
            kek_lifecycle::suspect(core, chain, id).await?;
            return Ok(Synced::Destroyed);
        }
        (State::Standby | State::Primary, None) => return Ok(Synced::Destroyed),
        (State::Retired | State::Disabled, _) => {
            let tombstone = destroyed(&read.record);
            if !records::put_kek(&*core.store, name, id, &read, &tombstone).await? {
                return Ok(Synced::Destroyed);
            }
            tracing::warn!(chain = %name, kek_id = %id, "a KEK that an archive reports as \
                destroyed is destroyed in the store");
        }
    }
    core.archives.want(name, Some(id), Wraps::Join);
    Ok(Synced::Same)
}

fn destroyed(kek: &Kek) -> Kek {
    Kek { state: State::Destroyed, wraps: Vec::new(), ..kek.clone() }
}
