//! A bounded cache of opened DEKs, for envelopes that are read again and again.
//!
//! With the KEK in memory a hit saves little; with the KEK gone from memory it saves a call of the
//! root. Whoever asks has checked the KEK's state: a hit is no permission.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;

use crate::clock::Monotonic;
use crate::envelope::Header;
use crate::id::{ChainName, KekId};

use super::kek::Dek;

/// Opened DEKs by chain and whole header.
pub struct DekCache {
    cache: Option<Cache<Key, Arc<Cached>>>,
    max_age: Duration,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    chain: ChainName,
    kek_id: KekId,
    header: Box<[u8]>,
}

/// The same without owning the header, to look up with.
#[derive(Hash)]
struct KeyRef<'a> {
    chain: &'a ChainName,
    kek_id: KekId,
    header: &'a [u8],
}

impl quick_cache::Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.header == *key.header && *self.chain == key.chain
    }
}

struct Cached {
    dek: Dek,
    since: Monotonic,
}

/// A DEK that may be shared with the cache.
pub struct SharedDek(Arc<Cached>);

impl std::ops::Deref for SharedDek {
    type Target = Dek;

    fn deref(&self) -> &Dek {
        &self.0.dek
    }
}

impl DekCache {
    /// A cache of at most `entries` DEKs, each for at most `max_age`; none with zero entries.
    #[must_use]
    pub fn new(entries: usize, max_age: Duration) -> Self {
        Self { cache: (entries > 0).then(|| Cache::new(entries)), max_age }
    }

    /// The DEK of this header, if it is here and not too old.
    #[must_use]
    pub fn get(&self, chain: &ChainName, header: &Header<'_>, now: Monotonic) -> Option<SharedDek> {
        let cache = self.cache.as_ref()?;
        let key = KeyRef { chain, kek_id: header.kek_id, header: header.bytes };
        let cached = cache.get(&key)?;
        if now.since(cached.since) < self.max_age {
            return Some(SharedDek(cached));
        }
        cache.remove(&key);
        None
    }

    /// Keeps `dek`, and gives it back to be used.
    pub fn insert(
        &self,
        chain: &ChainName,
        header: &Header<'_>,
        dek: Dek,
        now: Monotonic,
    ) -> SharedDek {
        let cached = Arc::new(Cached { dek, since: now });
        if let Some(cache) = &self.cache {
            let key =
                Key { chain: chain.clone(), kek_id: header.kek_id, header: header.bytes.into() };
            cache.insert(key, Arc::clone(&cached));
        }
        SharedDek(cached)
    }

    /// Drops the DEKs of one KEK: it was disabled, destroyed or dropped.
    pub fn forget(&self, chain: &ChainName, kek_id: KekId) {
        if let Some(cache) = &self.cache {
            cache.retain(|key, _| key.kek_id != kek_id || key.chain != *chain);
        }
    }

    /// Drops the DEKs that are too old at `now`.
    pub fn expire(&self, now: Monotonic) {
        if let Some(cache) = &self.cache {
            cache.retain(|_, cached| now.since(cached.since) < self.max_age);
        }
    }

    /// DEKs in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.as_ref().map_or(0, Cache::len)
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
