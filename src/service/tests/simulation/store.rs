//! The connection of each process to the store: slow, interrupted, with lost responses and late
//! writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Rng;
use super::checks::{LATE, Put};
use super::hub::{Hub, lost};
use super::watch::Slow;
use crate::id::KekId;
use crate::store::record::{self, Kek, Part, Record, State};
use crate::store::{Committed, Compare, Entry, Error, Revision, Store, Txn, Watch};

fn refused() -> Error {
    let detail = "the simulation says so".to_owned();
    Error::Unavailable { detail, maybe_applied: false }
}

/// The value that each revision of a key has.
type Values = BTreeMap<(String, Revision), Vec<u8>>;

/// What a process knows of the store's history from the headers of etcd's responses.
struct Seen {
    history: u32,
    revision: u64,
    restores: watch::Sender<u64>,
}

/// The connection of one process to the store.
#[derive(Clone)]
pub(super) struct Net {
    pub(super) hub: Arc<Hub>,
    pub(super) process: usize,
    pub(super) rng: Rng,
    dead: Arc<AtomicBool>,
    /// Calls fail until then.
    cut: Arc<Mutex<Instant>>,
    /// The watch sends nothing until then.
    pub(super) silent: Arc<Mutex<Instant>>,
    /// The values that it read and wrote, if revision numbers may repeat.
    pub(super) known: Arc<Mutex<Values>>,
    seen: Arc<Mutex<Seen>>,
}

impl Net {
    pub(super) fn new(hub: Arc<Hub>, process: usize, rng: Rng) -> Self {
        let began = || Arc::new(Mutex::new(hub.began));
        let (cut, silent) = (began(), began());
        let (dead, known) = Default::default();
        let seen = Seen {
            history: hub.checker().history,
            revision: hub.store.revision(),
            restores: watch::Sender::new(0),
        };
        let seen = Arc::new(Mutex::new(seen));
        Self { hub, process, rng, dead, cut, silent, known, seen }
    }

    /// Receives a value for each restore that the store reports.
    pub(super) fn told_restores(&self) -> watch::Receiver<u64> {
        self.seen.lock().unwrap().restores.subscribe()
    }

    /// A response arrived. Its header shows a restore if the revision went back, or if the copy was
    /// restored as a new cluster.
    fn header(&self) {
        let Some(new_cluster) = self.hub.conditions.reports else { return };
        let (history, revision) = (self.hub.checker().history, self.hub.store.revision());
        let mut seen = self.seen.lock().unwrap();
        let went_back = revision < seen.revision || new_cluster;
        if history != seen.history && went_back {
            seen.restores.send_modify(|restores| *restores += 1);
            self.hub.checker().counts.reported += 1;
        }
        (seen.history, seen.revision) = (history, revision);
    }

    /// The process is killed: it receives no more responses.
    pub(super) fn kill(&self) {
        self.dead.store(true, Relaxed);
    }

    pub(super) fn cut(&self, until: Instant) {
        *self.cut.lock().unwrap() = until;
    }

    pub(super) fn silence(&self, until: Instant) {
        *self.silent.lock().unwrap() = until;
    }

    /// Ends all faults.
    pub(super) fn mend(&self) {
        self.cut(self.hub.began);
        self.silence(self.hub.began);
    }

    /// Waits forever if the process was killed.
    pub(super) async fn alive(&self) {
        if self.dead.load(Relaxed) {
            std::future::pending().await
        }
    }

    pub(super) async fn delay(&self) {
        let most = self.hub.conditions.delay;
        if self.rng.one_in(4) {
            sleep(self.rng.up_to(most)).await;
        } else {
            tokio::task::yield_now().await;
        }
        self.alive().await;
    }

    fn failed(&self, error: Error) -> Error {
        self.hub.checker().call_failed(self.process, self.hub.now());
        error
    }

    /// Sends a request, which may fail.
    async fn go(&self) -> Result<u32, Error> {
        self.alive().await;
        let history = self.hub.checker().history;
        self.delay().await;
        let cut = *self.cut.lock().unwrap() > Instant::now() || self.hub.down.load(Relaxed);
        if cut || !self.hub.is_calm() && self.rng.per_mille(self.hub.conditions.refused) {
            // The error may come immediately, or after the client's deadline.
            if self.rng.one_in(2) {
                sleep(self.rng.up_to(Duration::from_secs(3))).await;
            }
            self.alive().await;
            return Err(self.failed(refused()));
        }
        Ok(history)
    }

    fn read(&self, entry: Option<&Entry>) {
        let Some(entry) = entry else { return };
        if self.hub.conditions.restores {
            let (key, value) = ((entry.key.clone(), entry.revision), entry.value.clone());
            self.known.lock().unwrap().insert(key, value);
        }
        self.hub.checker().read(self.process, self.hub.now(), entry);
    }

    /// Whether the response to this commit is lost, and if so, what happens to the commit.
    async fn lose(&self, history: u32, txn: &Txn) -> bool {
        if self.hub.is_calm() || !self.rng.per_mille(self.hub.conditions.lost) {
            return false;
        }
        self.hub.checker().counts.lost += 1;
        match self.rng.below(3) {
            0 => {}
            1 => drop(self.hub.apply(self, history, txn.clone()).await),
            _ => {
                // Other writes are applied before it.
                let (net, txn) = (self.clone(), txn.clone());
                let late = self.rng.up_to(LATE);
                tokio::spawn(async move {
                    sleep(late).await;
                    let _ = net.hub.apply(&net, history, txn).await;
                });
            }
        }
        true
    }

    async fn commit_and_tell(&self, asked: Duration, txn: Txn) -> Result<Committed, Error> {
        let history = self.go().await?;
        if self.lose(history, &txn).await {
            self.delay().await;
            return Err(self.failed(lost()));
        }
        let applied = self.hub.apply(self, history, txn).await;
        if applied.is_ok() {
            self.header();
        }
        self.delay().await;
        let (committed, granted) = applied.map_err(|error| self.failed(error))?;
        if let Some(granted) = granted {
            self.hub.checker().block_answered(self.process, asked, granted);
        }
        Ok(committed)
    }
}

/// The new KEK that a txn stores as standby.
fn new_kek(txn: &Txn) -> Option<KekId> {
    txn.compares.iter().find_map(|compare| {
        let Compare::Absent(key) = compare else { return None };
        let id = kek_of(key)?;
        let (_, value) = txn.puts.iter().find(|(put, _)| put == key)?;
        (Kek::decode(key, value).ok()?.state == State::Standby).then_some(id)
    })
}

/// The KEK whose record is at `key`.
fn kek_of(key: &str) -> Option<KekId> {
    match record::parse_key(key) {
        Some((_, Part::Kek(id))) => Some(id),
        _ => None,
    }
}

#[async_trait]
impl Store for Net {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.go().await?;
        let entry = self.hub.store.get(key).await;
        self.header();
        self.read(entry.iter().flatten().next());
        self.delay().await;
        entry
    }

    async fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Entry>>, Error> {
        self.go().await?;
        let mut entries = Vec::new();
        for key in keys {
            let entry = self.hub.store.get(key).await?;
            self.header();
            self.read(entry.as_ref());
            entries.push(entry);
            if self.hub.conditions.reads_apart {
                self.delay().await;
            }
        }
        self.delay().await;
        Ok(entries)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        self.go().await?;
        let entries = self.hub.store.list(prefix, after, limit).await;
        self.header();
        self.delay().await;
        entries
    }

    async fn count(&self, prefix: &str) -> Result<u64, Error> {
        self.go().await?;
        let count = self.hub.store.count(prefix).await;
        self.header();
        self.delay().await;
        count
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        let asked = self.hub.now();
        let new_kek = new_kek(&txn);
        let keks: Vec<_> = txn.puts.iter().filter_map(|(key, _)| kek_of(key)).collect();
        let committed = self.commit_and_tell(asked, txn).await;
        if let Err(Error::Unavailable { maybe_applied: true, .. }) = committed {
            self.hub.checker().unanswered(keks);
        }
        if let Some(id) = new_kek {
            self.hub.checker().put_answered(
                self.hub.now(),
                id,
                match committed {
                    Ok(Committed::Applied(_)) => Put::Applied,
                    Ok(Committed::Conflict) => Put::Conflict(self.hub.now()),
                    Err(_) => Put::Doubtful,
                },
            );
        }
        committed
    }

    fn restores(&self) -> u64 {
        *self.told_restores().borrow()
    }

    fn watch(&self) -> Option<Box<dyn Watch>> {
        Some(Box::new(Slow::new(self.hub.store.watch()?, self.clone())))
    }

    fn kind(&self) -> &'static str {
        "simulated"
    }
}
