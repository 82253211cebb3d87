//! The connection of a replica to the cluster, and its watch: how long requests take, and how much
//! is sent.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::sleep;

use super::super::simulation::Rng;
use super::cluster::{Cluster, PREFIX};
use crate::store::{Committed, Entry, Error, News, Store, Txn, Watch};

/// The number of entries of one read of a list.
const PAGE: usize = 500;
/// The number of keys of one read.
const KEYS: usize = 64;
/// What an entry takes in a response beside its key and value, and a response beside its entries.
const ENTRY_FRAME: usize = 30;
const ANSWER_FRAME: usize = 60;

/// The connection of one replica.
pub(super) struct Connection {
    pub(super) cluster: Arc<Cluster>,
    pub(super) rng: Rng,
}

impl Connection {
    async fn ask(&self, requests: usize) {
        self.cluster.handle(u32::try_from(requests).unwrap(), 1).await;
    }

    /// Counts what was read by so many requests.
    fn read<'a>(&self, requests: usize, entries: impl Iterator<Item = &'a Entry>) {
        let prefix = usize::try_from(PREFIX).unwrap();
        let sizes = entries.map(|it| prefix + it.key.len() + it.value.len() + ENTRY_FRAME);
        let (number, bytes) = sizes.fold((0, 0), |(number, sum), size| (number + 1, sum + size));
        self.cluster.count(|counts| {
            counts.reads += requests as u64;
            counts.entries += number;
            counts.answer_bytes += (requests * ANSWER_FRAME + bytes) as u64;
        });
    }
}

#[async_trait]
impl Store for Connection {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.ask(1).await;
        let entry = self.cluster.store.get(key).await?;
        self.read(1, entry.iter());
        Ok(entry)
    }

    async fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Entry>>, Error> {
        let requests = keys.len().div_ceil(KEYS);
        self.ask(requests).await;
        let entries = self.cluster.store.get_all(keys).await?;
        self.read(requests, entries.iter().flatten());
        Ok(entries)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        let entries = self.cluster.store.list(prefix, after, limit).await?;
        let requests = entries.len() / PAGE + 1;
        self.ask(requests).await;
        self.read(requests, entries.iter());
        Ok(entries)
    }

    async fn count(&self, prefix: &str) -> Result<u64, Error> {
        self.ask(1).await;
        self.read(1, std::iter::empty());
        self.cluster.store.count(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        self.cluster.handle(1, 2 + self.rng.below(2)).await;
        let committed = self.cluster.store.commit(txn.clone()).await?;
        match committed {
            Committed::Applied(revision) => self.cluster.written(&txn, revision),
            Committed::Conflict => self.cluster.count(|counts| counts.conflicts += 1),
        }
        self.cluster.count(|counts| counts.answer_bytes += ANSWER_FRAME as u64);
        sleep(Duration::from_millis(1)).await;
        Ok(committed)
    }

    fn watch(&self) -> Option<Box<dyn Watch>> {
        let cluster = Arc::clone(&self.cluster);
        cluster.watches.fetch_add(1, Relaxed);
        let published = cluster.published.subscribe();
        let next = *published.borrow();
        Some(Box::new(Subscription { cluster, published, next }))
    }

    fn kind(&self) -> &'static str {
        "simulated"
    }
}

struct Subscription {
    cluster: Arc<Cluster>,
    published: watch::Receiver<u64>,
    /// The number of the set that is reported next.
    next: u64,
}

#[async_trait]
impl Watch for Subscription {
    async fn next(&mut self) -> News {
        loop {
            {
                let state = self.cluster.state();
                let end = state.first + state.published.len() as u64;
                let missed = self.next < state.first;
                let skip = usize::try_from(self.next.saturating_sub(state.first)).unwrap();
                self.next = end;
                if missed {
                    return News::Missed;
                }
                let sets = state.published.iter().skip(skip);
                let changes: Vec<_> = sets.flat_map(|set| set.iter().cloned()).collect();
                if !changes.is_empty() {
                    return News::Changed(changes);
                }
            }
            if self.published.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cluster.watches.fetch_sub(1, Relaxed);
    }
}
