//! A store in memory: the reference that the others are compared with, and the tests' own.
//!
//! It forgets everything when it is dropped. Faults can be put in: a commit that fails, and may
//! or may not have been applied.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Committed, Compare, Entry, Error, Revision, Txn};

/// A store in memory.
#[derive(Default)]
pub struct Store(Mutex<State>);

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
    /// It is applied, and the answer is lost.
    AnswerLost,
    /// It is not applied, and nobody can tell.
    RequestLost,
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next commits fail so, one after the other.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// Every call fails while it is down.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        let mut state = self.up()?;
        match state.faults.pop_front() {
            None => Ok(state.apply(txn)),
            Some(Fault::NotSent) => Err(unavailable(false)),
            Some(Fault::RequestLost) => Err(unavailable(true)),
            Some(Fault::AnswerLost) => {
                let _ = state.apply(txn);
                Err(unavailable(true))
            }
        }
    }

    fn kind(&self) -> &'static str {
        "memory"
    }
}
