//! A store that records its availability and latency, for `/readyz` and the metrics.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::id::ChainName;
use crate::metrics::Metrics;
use crate::status;
use crate::store::record::{self, Claim, Record as _};
use crate::store::{Committed, Entry, Error, Store, Txn, Watch};
use crate::timestamp::rfc3339;

use super::call_stats::CallStats;
use super::types::{Check, Health};

/// Forwards every call to a store, and remembers the outage that its last results show.
pub(super) struct MonitoredStore {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    last_error: Mutex<Option<LastError>>,
    stats: CallStats,
}

/// Why the store is unavailable.
struct LastError {
    detail: String,
    /// Unix time in seconds.
    since: u64,
    /// Whether a write failed. Then a successful read does not end the outage: a full disk can be
    /// read.
    of_writes: bool,
}

/// Whether a call reads or writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl MonitoredStore {
    pub(super) fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        metrics.store.up.set(1);
        let (last_error, stats) = Default::default();
        Self { store, clock, metrics, last_error, stats }
    }

    pub(super) fn is_up(&self) -> bool {
        self.last_error.lock().is_none()
    }

    pub(super) fn check(&self) -> Check {
        let last_error = self.last_error.lock();
        Check {
            name: "store".to_owned(),
            health: if last_error.is_none() { Health::Ok } else { Health::Degraded },
            detail: last_error.as_ref().map(|LastError { detail, since, .. }| {
                format!("{detail} since {}", rfc3339(*since))
            }),
        }
    }

    /// What its status shows, without the last backup.
    pub(super) fn status(&self, started_at: u64) -> status::Store {
        let last_error = self.last_error.lock();
        let outage = last_error.as_ref().map(|it| (it.detail.clone(), it.since));
        let state = if outage.is_some() { "away" } else { "ok" };
        let (last_error, since) = self.stats.outage(outage, started_at);
        status::Store {
            kind: self.store.kind().to_owned(),
            state: state.to_owned(),
            since,
            latency_us: self.stats.latency_us(),
            last_error,
            last_backup: None,
            decrypts_until: None,
        }
    }

    /// Checks whether a store that failed is available again: a read and, if a write failed, a
    /// write. A service without traffic makes no other calls that would show it.
    ///
    /// It writes a claim of `chain` and removes it again: no promise depends on a claim.
    pub(super) async fn probe(&self, chain: &ChainName, owner: u64) {
        let key = record::claim_key(chain);
        // `note` records every failure. There is nothing else to do about one here.
        let Ok(found) = self.get(&key).await else { return };
        if self.is_up() {
            return;
        }
        let Ok(claim) = Claim { owner }.encode() else { return };
        let txn = Txn::default();
        let write = match &found {
            None => txn.create(key.clone(), claim),
            Some(entry) => txn.replace(key.clone(), entry.revision, entry.value.clone()),
        };
        if let (Ok(Committed::Applied(revision)), None) = (self.commit(write).await, found) {
            // If this fails, the claim expires.
            let remove = Txn::default().unchanged(key.clone(), revision).delete(key);
            let _ = self.commit(remove).await;
        }
    }

    /// Runs a call of the store. `operation` is its label in the metrics.
    async fn call<T>(
        &self,
        operation: &'static str,
        access: Access,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let started = self.clock.now();
        let result = call.await;
        let took = self.clock.now().since(started);
        self.metrics.store_called(operation, took);
        self.stats.note(took, !matches!(result, Err(Error::Unavailable { .. })));
        self.note(access, result)
    }

    fn note<T>(&self, access: Access, result: Result<T, Error>) -> Result<T, Error> {
        let mut last_error = self.last_error.lock();
        match &result {
            Err(Error::Unavailable { detail, .. }) => {
                let of_writes = access == Access::Write;
                if let Some(last_error) = &mut *last_error {
                    last_error.of_writes |= of_writes;
                } else {
                    tracing::error!(store = self.store.kind(), error = %detail, "the store is \
                        unavailable");
                    let since = self.clock.unix_now();
                    *last_error = Some(LastError { detail: detail.clone(), since, of_writes });
                }
                self.metrics.store.up.set(0);
            }
            Ok(_) | Err(Error::Corrupt { .. })
                if access == Access::Read && last_error.as_ref().is_some_and(|it| it.of_writes) => {
            }
            // A damaged record is no outage.
            Ok(_) | Err(Error::Corrupt { .. }) => {
                if let Some(LastError { detail, since, .. }) = last_error.take() {
                    self.stats.outage_ended(detail, since, self.clock.unix_now());
                    tracing::info!(store = self.store.kind(), "the store is available again");
                }
                self.metrics.store.up.set(1);
            }
        }
        result
    }
}

#[async_trait]
impl Store for MonitoredStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.call("get", Access::Read, self.store.get(key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        self.call("list", Access::Read, self.store.list(prefix, after, limit)).await
    }

    async fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Entry>>, Error> {
        self.call("get", Access::Read, self.store.get_all(keys)).await
    }

    async fn count(&self, prefix: &str) -> Result<u64, Error> {
        self.call("count", Access::Read, self.store.count(prefix)).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        self.call("commit", Access::Write, self.store.commit(txn)).await
    }

    fn restores(&self) -> u64 {
        self.store.restores()
    }

    fn watch(&self) -> Option<Box<dyn Watch>> {
        self.store.watch()
    }

    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn is_lasting(&self) -> bool {
        self.store.is_lasting()
    }
}
