//! A store that notes how it is doing: for `/readyz` and `kms_proxy_store_up`.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::store::{Committed, Entry, Error, Store, Txn};

use super::answer::{Check, Health};

/// Passes everything on, and remembers the last answer.
pub(super) struct Observed {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// What is wrong, and since when.
    trouble: Mutex<Option<(String, u64)>>,
}

impl Observed {
    pub(super) fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        metrics.store_up.set(1);
        Self { store, clock, metrics, trouble: Mutex::new(None) }
    }

    pub(super) fn is_up(&self) -> bool {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    pub(super) fn check(&self) -> Check {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        Check {
            name: "store".to_owned(),
            health: if trouble.is_none() { Health::Ok } else { Health::Degraded },
            detail: trouble
                .as_ref()
                .map(|(detail, since)| format!("{detail} since {}", super::rfc3339(*since))),
        }
    }

    fn note<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Err(Error::Unavailable { detail, .. }) => {
                if trouble.is_none() {
                    tracing::error!(store = self.store.kind(), error = %detail, "the store is unavailable");
                    *trouble = Some((detail.clone(), self.clock.unix_now()));
                }
                self.metrics.store_up.set(0);
            }
            // One damaged record is no outage.
            Ok(_) | Err(Error::Corrupt { .. }) => {
                if trouble.take().is_some() {
                    tracing::info!(store = self.store.kind(), "the store is back");
                }
                self.metrics.store_up.set(1);
            }
        }
        result
    }
}

#[async_trait]
impl Store for Observed {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let result = self.store.get(key).await;
        self.note(result)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        let result = self.store.list(prefix, after, limit).await;
        self.note(result)
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        let result = self.store.commit(txn).await;
        self.note(result)
    }

    fn kind(&self) -> &'static str {
        self.store.kind()
    }
}
