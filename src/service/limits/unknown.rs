//! A small cache of names that the store does not have, so that callers who invent names cause few
//! reads of the store.

use std::time::Duration;

use crate::clock::Monotonic;

/// Names that the store did not have within the last 5 seconds.
pub(in crate::service) struct Unknown<K> {
    cache: quick_cache::sync::Cache<K, Monotonic>,
}

impl<K: Clone + Eq + std::hash::Hash> Unknown<K> {
    const ENTRIES: usize = 1024;
    const MAX_AGE: Duration = Duration::from_secs(5);

    pub(in crate::service) fn new() -> Self {
        Self { cache: quick_cache::sync::Cache::new(Self::ENTRIES) }
    }

    pub(in crate::service) fn insert(&self, key: K, now: Monotonic) {
        self.cache.insert(key, now);
    }

    /// Removes a name that was written meanwhile.
    pub(in crate::service) fn remove(&self, key: &K) {
        self.cache.remove(key);
    }

    pub(in crate::service) fn contains(&self, key: &K, now: Monotonic) -> bool {
        self.cache.get(key).is_some_and(|since| now.since(since) < Self::MAX_AGE)
    }
}
