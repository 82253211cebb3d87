//! An archive in memory: the reference for the other kinds, and the archive of most tests.
//!
//! Its contents are lost when it is dropped. Faults can be injected: a write that fails, and was
//! applied, was not applied, or is applied later; and an archive that is down.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};

use super::{Condition, Error, Object, Version, Written};

/// An archive in memory.
#[derive(Default)]
pub struct Archive {
    state: Mutex<State>,
}

/// The contents of an archive at some time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(BTreeMap<String, (Vec<u8>, u64)>);

#[derive(Default)]
struct State {
    /// The number of writes so far: the version of the last one. It never goes back.
    writes: u64,
    objects: BTreeMap<String, (Vec<u8>, u64)>,
    faults: VecDeque<Fault>,
    late: VecDeque<Put>,
    down: bool,
}

struct Put {
    key: String,
    bytes: Vec<u8>,
    condition: Condition,
}

/// What happens to the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not applied, and the caller cannot know that.
    RequestLost,
    /// It is applied, but the response is lost.
    AnswerLost,
    /// It is applied by [`Archive::deliver`], if its condition holds then.
    Late,
    /// It is refused, and not applied.
    Denied,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the next writes fail in this way, one after the other.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// Every call fails while it is down.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// Applies the writes that are late, in their order; returns how many had an effect.
    pub fn deliver(&self) -> usize {
        let mut state = self.state();
        let late = std::mem::take(&mut state.late);
        late.into_iter().map(|put| state.apply(put)).filter(is_applied).count()
    }

    /// Its current contents.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.state().objects.clone())
    }

    /// Replaces the contents, like a restore by an operator; `Snapshot::default()` loses all.
    pub fn restore(&self, snapshot: Snapshot) {
        self.state().objects = snapshot.0;
    }

    /// The bytes of the object at `key`, also while it is down.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<Vec<u8>> {
        self.state().objects.get(key).map(|(bytes, _)| bytes.clone())
    }

    /// The number of writes that were applied.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn up(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state();
        if state.down { Err(unavailable()) } else { Ok(state) }
    }
}

fn unavailable() -> Error {
    Error::Unavailable("a fault was injected".to_owned())
}

fn is_applied(written: &Written) -> bool {
    matches!(written, Written::Applied(_))
}

impl State {
    fn apply(&mut self, put: Put) -> Written {
        let current = self.objects.get(&put.key).map(|(_, version)| name(*version));
        let holds = match &put.condition {
            Condition::Absent => current.is_none(),
            Condition::Unchanged(version) => current.as_ref() == Some(version),
        };
        if !holds {
            return Written::Conflict;
        }
        self.writes += 1;
        self.objects.insert(put.key, (put.bytes, self.writes));
        Written::Applied(name(self.writes))
    }
}

fn name(version: u64) -> Version {
    Version(version.to_string())
}

#[async_trait]
impl super::Archive for Archive {
    async fn get(&self, key: &str) -> Result<Option<Object>, Error> {
        let state = self.up()?;
        let found = state.objects.get(key);
        Ok(found.map(|(bytes, at)| Object { bytes: bytes.clone(), version: name(*at) }))
    }

    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<Written, Error> {
        let mut state = self.up()?;
        let put = Put { key: key.to_owned(), bytes, condition };
        match state.faults.pop_front() {
            None => Ok(state.apply(put)),
            Some(Fault::RequestLost) => Err(unavailable()),
            Some(Fault::AnswerLost) => {
                let _ = state.apply(put);
                Err(unavailable())
            }
            Some(Fault::Late) => {
                state.late.push_back(put);
                Err(unavailable())
            }
            Some(Fault::Denied) => Err(Error::Denied("a fault was injected".to_owned())),
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        let state = self.up()?;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let from_prefix = state.objects.range::<str, _>((start, Bound::Unbounded));
        let keys = from_prefix.map(|(key, _)| key).take_while(|key| key.starts_with(prefix));
        Ok(keys.take(limit).cloned().collect())
    }

    fn kind(&self) -> &'static str {
        "memory"
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Archive as _, contract};
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_archive_in_memory_keeps_the_contract() {
        contract::all(std::sync::Arc::new(Archive::new())).await;
    }

    #[tokio::test]
    async fn each_fault_does_what_it_says() {
        let archive = Archive::new();
        archive.fail_next([Fault::RequestLost, Fault::AnswerLost, Fault::Late, Fault::Denied]);
        let put = |key| archive.put(key, vec![1], Condition::Absent);
        for key in ["lost", "applied", "late"] {
            assert!(matches!(put(key).await, Err(Error::Unavailable(_))), "{key}");
        }
        assert!(matches!(put("denied").await, Err(Error::Denied(_))));
        assert_eq!(archive.list("", None, 9).await.unwrap(), ["applied"]);
        assert_eq!(archive.deliver(), 1);
        assert_eq!(archive.list("", None, 9).await.unwrap(), ["applied", "late"]);
        assert_eq!((archive.deliver(), archive.writes()), (0, 2));

        archive.fail_next([Fault::Late]);
        assert!(put("again").await.is_err());
        assert!(matches!(put("again").await, Ok(Written::Applied(_))));
        assert_eq!(archive.deliver(), 0, "the condition of the late write holds no longer");

        archive.set_down(true);
        assert!(archive.get("late").await.is_err() && archive.list("", None, 1).await.is_err());
        assert!(put("down").await.is_err());
        assert_eq!((archive.peek("late"), archive.peek("down")), (Some(vec![1]), None));
        archive.set_down(false);
        let full = archive.snapshot();
        archive.restore(Snapshot::default());
        assert_eq!(archive.get("late").await, Ok(None));
        archive.restore(full);
        assert!(archive.get("late").await.unwrap().is_some());
    }
}
