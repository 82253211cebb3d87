//! The connection of each process to the archives: slow, interrupted, with lost responses and late
//! writes. And the invariants of the archived objects.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::checks::LATE;
use super::hub::Hub;
use super::process::is_right;
use super::store::Net;
use crate::archive::{
    self, Archive, Condition, Error, Object, OnFailure, Require, Written, object,
};
use crate::id::{ChainName, KekId};
use crate::service::DEFAULT_CHAIN;
use crate::store::record::{Kek, State};

/// The connection of one process to one archive.
pub(super) struct Way {
    pub(super) net: Net,
    pub(super) index: usize,
}

fn chain() -> ChainName {
    ChainName::new(DEFAULT_CHAIN).unwrap()
}

impl Hub {
    /// The archives as a process reaches them.
    pub(super) fn archives_of(&self, net: &Net) -> Vec<archive::Named> {
        let way = |index| archive::Named {
            name: format!("archive{index}").into(),
            archive: Arc::new(Way { net: net.clone(), index }),
        };
        (0..self.archives.len()).map(way).collect()
    }

    /// The record of a KEK in an archive.
    fn archived(&self, index: usize, id: KekId) -> Option<Kek> {
        let bytes = self.archives[index].0.peek(&object::kek_key(&chain(), id))?;
        Some(object::decode_kek(&chain(), id, &bytes).expect("a whole object"))
    }

    /// Whether the archives guarantee that no envelope is lost.
    pub(super) fn is_guaranteed(&self) -> bool {
        !self.archives.is_empty() && self.conditions.policy.on_failure == OnFailure::Wait
    }

    /// Whether an archive has a record of a KEK in one of these states.
    pub(super) fn is_archived_as(&self, id: KekId, states: &[State]) -> bool {
        let mut archives = 0..self.archives.len();
        archives.any(|index| self.archived(index, id).is_some_and(|it| states.contains(&it.state)))
    }

    /// A KEK that encrypts, or is to encrypt, must be in the required archives.
    pub(super) fn check_archived(&self, id: KekId) {
        if !self.is_guaranteed() {
            return;
        }
        let holds = |index: usize| {
            let has_settings = self.archives[index].0.peek(&object::chain_key(&chain())).is_some();
            let kek = self.archived(index, id);
            has_settings
                && kek.is_some_and(|kek| {
                    kek.state == State::Destroyed || kek.wraps.iter().any(is_right)
                })
        };
        let mut archives = 0..self.archives.len();
        let held = match self.conditions.policy.require {
            Require::All => archives.all(holds),
            Require::Any => archives.any(holds),
        };
        if !held {
            let at = self.now().as_secs_f64();
            let broken = format!("at {at:.3} s: {id} encrypts, and is not in the archives");
            self.checker().broken.push(broken);
        }
    }

    async fn put(&self, index: usize, put: Put) -> Result<Written, Error> {
        let Put { key, bytes, condition } = put;
        let before = self.archives[index].0.peek(&key);
        let written = self.archives[index].0.put(&key, bytes.clone(), condition).await?;
        let Written::Applied(_) = written else { return Ok(written) };
        let Some((_, object::Part::Kek(id))) = object::parse_key(&key) else { return Ok(written) };
        let decode = |bytes: &[u8]| object::decode_kek(&chain(), id, bytes).expect("whole");
        let (next, now) = (decode(&bytes), self.now());
        let mut checker = self.checker();
        checker.counts.archived += 1;
        checker.note(now, || format!("archive {index} gets {id} {:?}", next.state));
        let undone = before.map(|before| decode(&before)).is_some_and(|before| {
            before.state == State::Destroyed && next.state != State::Destroyed
        });
        if undone {
            checker
                .broken
                .push(format!("at {now:?}: the tombstone of {id} is undone in an archive"));
        }
        Ok(written)
    }
}

#[derive(Clone)]
struct Put {
    key: String,
    bytes: Vec<u8>,
    condition: Condition,
}

fn away() -> Error {
    Error::Unavailable("the simulation says so".to_owned())
}

impl Way {
    fn hub(&self) -> &Arc<Hub> {
        &self.net.hub
    }

    /// Sends a request, which may fail.
    async fn go(&self) -> Result<(), Error> {
        self.net.alive().await;
        self.net.delay().await;
        let (hub, rng) = (self.hub(), &self.net.rng);
        let is_away = *hub.archives[self.index].1.lock().unwrap() > Instant::now();
        if is_away || !hub.is_calm() && rng.per_mille(hub.conditions.refused) {
            // The error may come immediately, or after the client's deadline.
            if rng.one_in(2) {
                sleep(rng.up_to(Duration::from_secs(10))).await;
            }
            self.net.alive().await;
            return Err(away());
        }
        Ok(())
    }
}

#[async_trait]
impl Archive for Way {
    async fn get(&self, key: &str) -> Result<Option<Object>, Error> {
        self.go().await?;
        let object = self.hub().archives[self.index].0.get(key).await;
        self.net.delay().await;
        object
    }

    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<Written, Error> {
        self.go().await?;
        let put = Put { key: key.to_owned(), bytes, condition };
        let (hub, rng, index) = (Arc::clone(self.hub()), self.net.rng.clone(), self.index);
        if !hub.is_calm() && rng.per_mille(hub.conditions.lost) {
            match rng.below(3) {
                0 => {}
                1 => drop(hub.put(index, put).await),
                _ => {
                    tokio::spawn(async move {
                        sleep(rng.up_to(LATE)).await;
                        let _ = hub.put(index, put).await;
                    });
                }
            }
            self.net.delay().await;
            return Err(away());
        }
        let written = hub.put(index, put).await;
        self.net.delay().await;
        written
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        self.go().await?;
        let keys = self.hub().archives[self.index].0.list(prefix, after, limit).await;
        self.net.delay().await;
        keys
    }

    fn kind(&self) -> &'static str {
        "simulated"
    }
}
