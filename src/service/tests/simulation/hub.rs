//! What all processes share: the store, the archives, the faults, and the checker.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::Conditions;
use super::checks::Checker;
use super::store::Net;
use crate::archive;
use crate::id::KekId;
use crate::store::record::{self, Kek, Part, Record as _, State};
use crate::store::{Committed, Compare, Error, Store as _, Txn, memory};

/// The parts that all processes share.
pub(super) struct Hub {
    pub(super) store: memory::Store,
    /// The archives, and until when each is unavailable.
    pub(super) archives: Vec<(archive::memory::Archive, Mutex<Instant>)>,
    pub(super) conditions: Conditions,
    pub(super) began: Instant,
    checker: Mutex<Checker>,
    /// Whether faults have ended.
    calm: AtomicBool,
    /// Whether the store is being restored.
    pub(super) down: AtomicBool,
}

impl Hub {
    pub(super) fn new(conditions: Conditions, log: bool) -> Self {
        let mut checker = Checker::default();
        checker.log = log.then(Vec::new);
        Self {
            store: memory::Store::new(),
            archives: (0..conditions.archives)
                .map(|_| (archive::memory::Archive::new(), Mutex::new(Instant::now())))
                .collect(),
            calm: conditions.is_calm.into(),
            conditions,
            began: Instant::now(),
            checker: Mutex::new(checker),
            down: false.into(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker.lock().unwrap()
    }

    pub(super) fn set_calm(&self) {
        self.calm.store(true, Relaxed);
        for (_, away) in &self.archives {
            *away.lock().unwrap() = self.began;
        }
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Relaxed)
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, Relaxed);
    }

    pub(super) async fn restore(&self, snapshot: memory::Snapshot) {
        self.store.restore(snapshot);
        let entries = self.store.list("", None, usize::MAX).await.unwrap();
        self.checker().restored(self.now(), &entries);
    }

    /// Applies a transaction that was sent in this history. A restored store receives no request
    /// that was sent before the restore.
    pub(super) async fn apply(&self, net: &Net, history: u32, txn: Txn) -> Result<Applied, Error> {
        if self.down.load(Relaxed) || self.checker().history != history {
            return Err(lost());
        }
        if self.meets_another_history(net, &txn).await {
            return Ok((Committed::Conflict, None));
        }
        let committed = self.store.commit(txn.clone()).await?;
        let granted = match committed {
            Committed::Applied(revision) => {
                for (key, value) in txn.puts.iter().filter(|_| self.conditions.restores) {
                    net.known.lock().unwrap().insert((key.clone(), revision), value.clone());
                }
                for id in txn.puts.iter().filter_map(|(key, value)| promoted(key, value)) {
                    self.check_archived(id);
                }
                self.checker().applied(net.process, self.now(), &txn)
            }
            Committed::Conflict => None,
        };
        Ok((committed, granted))
    }

    /// After a restore, revision numbers repeat. A store must notice that a revision is not the one
    /// that was read, by its value or by its history; this one does.
    async fn meets_another_history(&self, net: &Net, txn: &Txn) -> bool {
        for compare in &txn.compares {
            let Compare::Unchanged(key, revision) = compare else { continue };
            let Some(known) = net.known.lock().unwrap().get(&(key.clone(), *revision)).cloned()
            else {
                continue;
            };
            self.checker().wrote_after(net.process, key, &known);
            let Ok(Some(entry)) = self.store.get(key).await else { continue };
            if entry.revision == *revision && known != entry.value {
                let now = self.now();
                let mut checker = self.checker();
                checker.counts.confused += 1;
                checker.note(now, || format!("{} takes {key} for another history's", net.process));
                return true;
            }
        }
        false
    }
}

/// The KEK that a write promotes to primary.
fn promoted(key: &str, value: &[u8]) -> Option<KekId> {
    let Some((_, Part::Kek(id))) = record::parse_key(key) else { return None };
    (Kek::decode(key, value).ok()?.state == State::Primary).then_some(id)
}

pub(super) type Applied = (Committed, Option<(KekId, u64)>);

/// The error of a write whose outcome is unknown.
pub(super) fn lost() -> Error {
    let detail = "the simulation says so".to_owned();
    Error::Unavailable { detail, maybe_applied: true }
}
