//! A store in memory: the reference for the other stores, and the store of most tests.
//!
//! Its contents are lost when it is dropped. Services that share one see each other's writes, as
//! replicas do. Faults can be injected: a commit that fails, and may or may not have been applied.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::broadcast;

use super::{Committed, Compare, Entry, Error, News, Revision, Txn};

/// The number of news that a watch buffers before it misses some.
const NEWS: usize = 1024;

/// A store in memory.
pub struct Store {
    state: Mutex<State>,
    news: broadcast::Sender<(String, Revision)>,
}

/// The contents of a store at some time.
#[derive(Clone, Debug)]
pub struct Snapshot {
    revision: u64,
    entries: BTreeMap<String, (Vec<u8>, Revision)>,
}

#[derive(Default)]
struct State {
    revision: u64,
    entries: BTreeMap<String, (Vec<u8>, Revision)>,
    faults: VecDeque<Fault>,
    down: bool,
}

/// What happens to the next commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not applied, and that is certain.
    NotSent,
    /// It is applied, but the response is lost.
    AnswerLost,
    /// It is not applied, but that is not certain.
    RequestLost,
}

impl Default for Store {
    fn default() -> Self {
        Self { state: Mutex::default(), news: broadcast::Sender::new(NEWS) }
    }
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A store with the entries that `txn` puts.
    #[must_use]
    pub fn holding(txn: Txn) -> Self {
        let store = Self::new();
        // Without conditions there is no conflict.
        let _ = store.state().apply(Txn { puts: txn.puts, ..Txn::default() });
        store
    }

    /// Its current contents.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot { revision: state.revision, entries: state.entries.clone() }
    }

    /// The revision of the last write.
    #[cfg(test)]
    pub(crate) fn revision(&self) -> u64 {
        self.state().revision
    }

    /// Goes back to an earlier state, like a restore by an operator. Watches are not notified.
    pub fn restore(&self, snapshot: Snapshot) {
        let mut state = self.state();
        (state.revision, state.entries) = (snapshot.revision, snapshot.entries);
    }

    /// Makes the next commits fail in this way, one after the other.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// Every call fails while it is down.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Applies `txn`, and notifies watches.
    fn apply(&self, state: &mut State, txn: Txn) -> Committed {
        let keys: Vec<_> =
            txn.deletes.iter().chain(txn.puts.iter().map(|(key, _)| key)).cloned().collect();
        let committed = state.apply(txn);
        if let Committed::Applied(revision) = committed {
            for key in keys {
                // There may be no watch.
                let _ = self.news.send((key, revision));
            }
        }
        committed
    }

    fn up(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state();
        if state.down { Err(unavailable(false)) } else { Ok(state) }
    }
}

fn unavailable(maybe_applied: bool) -> Error {
    Error::Unavailable { detail: "a fault was put in".to_owned(), maybe_applied }
}

impl State {
    fn apply(&mut self, txn: Txn) -> Committed {
        let holds = txn.compares.iter().all(|compare| match compare {
            Compare::Absent(key) => !self.entries.contains_key(key),
            Compare::Unchanged(key, revision) => {
                self.entries.get(key).is_some_and(|(_, current)| current == revision)
            }
        });
        if !holds {
            return Committed::Conflict;
        }
        self.revision += 1;
        for key in txn.deletes {
            self.entries.remove(&key);
        }
        for (key, value) in txn.puts {
            self.entries.insert(key, (value, Revision(self.revision)));
        }
        Committed::Applied(Revision(self.revision))
    }
}

#[async_trait]
impl super::Store for Store {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let state = self.up()?;
        Ok(state.entries.get(key).map(|(value, revision)| Entry {
            key: key.to_owned(),
            value: value.clone(),
            revision: *revision,
        }))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        let state = self.up()?;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        Ok(state
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, (value, revision))| Entry {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            })
            .collect())
    }

    async fn count(&self, prefix: &str) -> Result<u64, Error> {
        let state = self.up()?;
        let from_prefix =
            state.entries.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        Ok(from_prefix.take_while(|(key, _)| key.starts_with(prefix)).count() as u64)
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        let mut state = self.up()?;
        match state.faults.pop_front() {
            None => Ok(self.apply(&mut state, txn)),
            Some(Fault::NotSent) => Err(unavailable(false)),
            Some(Fault::RequestLost) => Err(unavailable(true)),
            Some(Fault::AnswerLost) => {
                let _ = self.apply(&mut state, txn);
                Err(unavailable(true))
            }
        }
    }

    fn watch(&self) -> Option<Box<dyn super::Watch>> {
        Some(Box::new(Watch(self.news.subscribe())))
    }

    fn kind(&self) -> &'static str {
        "memory"
    }
}

struct Watch(broadcast::Receiver<(String, Revision)>);

#[async_trait]
impl super::Watch for Watch {
    async fn next(&mut self) -> News {
        match self.0.recv().await {
            Ok(change) => News::Changed(vec![change]),
            Err(broadcast::error::RecvError::Lagged(_)) => News::Missed,
            // The store was dropped, so nothing changes any more.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
