//! A bounded cache of opened DEKs, for envelopes that are read again and again.
//!
//! With the KEK in memory a hit saves little; with the KEK gone from memory it saves a call of the
//! root. The caller has checked the KEK's state: a hit is no permission.
//!
//! A DEK is kept when it is asked for the second time. Envelopes that are read once cost a look at
//! one number, and push nothing out (the doorkeeper of TinyLFU: Einziger, Friedman and Manes 2017).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;

use crate::aead::TAG_LEN;
use crate::clock::Monotonic;
use crate::envelope::Header;
use crate::id::{ChainName, KekId};

use super::kek::Dek;
use super::noted::NotedUntil;

/// Opened DEKs by chain and whole header.
pub struct DekCache {
    cache: Option<Cache<Key, Arc<Cached>>>,
    /// The last header that was opened of those that share a place.
    seen: Box<[AtomicU64]>,
    inserted: AtomicU64,
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
    noted: NotedUntil,
}

/// A DEK that may be shared with the cache.
pub struct SharedDek(Shared);

enum Shared {
    No(Dek),
    Yes(Arc<Cached>),
}

impl std::ops::Deref for SharedDek {
    type Target = Dek;

    fn deref(&self) -> &Dek {
        match &self.0 {
            Shared::No(dek) => dek,
            Shared::Yes(cached) => &cached.dek,
        }
    }
}

impl SharedDek {
    /// Which of its uses are noted, if it is in the cache.
    pub(crate) fn noted(&self) -> Option<&NotedUntil> {
        match &self.0 {
            Shared::No(_) => None,
            Shared::Yes(cached) => Some(&cached.noted),
        }
    }
}

impl DekCache {
    /// A cache of at most `entries` DEKs, each for at most `max_age`; none with zero entries.
    /// Beside them it takes 32 to 64 bytes an entry.
    #[must_use]
    pub fn new(entries: usize, max_age: Duration) -> Self {
        let places = if entries > 0 { (4 * entries).next_power_of_two() } else { 0 };
        Self {
            cache: (entries > 0).then(|| Cache::new(entries)),
            seen: (0..places).map(|_| AtomicU64::new(0)).collect(),
            inserted: AtomicU64::new(0),
            max_age,
        }
    }

    /// The DEK of this header, if it is here and not too old.
    #[must_use]
    pub fn get(&self, chain: &ChainName, header: &Header<'_>, now: Monotonic) -> Option<SharedDek> {
        let cache = self.cache.as_ref()?;
        let (place, mark) = self.place(header)?;
        if place.load(Ordering::Relaxed) != mark {
            return None;
        }
        let key = KeyRef { chain, kek_id: header.kek_id, header: header.bytes };
        let cached = cache.get(&key)?;
        if now.since(cached.since) < self.max_age {
            return Some(SharedDek(Shared::Yes(cached)));
        }
        cache.remove(&key);
        None
    }

    /// Keeps `dek` if it was opened before, and gives it back to be used.
    pub fn insert(
        &self,
        chain: &ChainName,
        header: &Header<'_>,
        dek: Dek,
        now: Monotonic,
    ) -> SharedDek {
        let (Some(cache), Some((place, mark))) = (&self.cache, self.place(header)) else {
            return SharedDek(Shared::No(dek));
        };
        if place.swap(mark, Ordering::Relaxed) != mark {
            return SharedDek(Shared::No(dek));
        }
        let cached = Arc::new(Cached { dek, since: now, noted: NotedUntil::default() });
        let key = Key { chain: chain.clone(), kek_id: header.kek_id, header: header.bytes.into() };
        cache.insert(key, Arc::clone(&cached));
        self.inserted.fetch_add(1, Ordering::Relaxed);
        SharedDek(Shared::Yes(cached))
    }

    /// The place where a header is remembered, and its mark there: both from the tag of its wrap,
    /// which is as good as random in every header that opened.
    fn place(&self, header: &Header<'_>) -> Option<(&AtomicU64, u64)> {
        const HALF: usize = TAG_LEN / 2;
        let (mark, index) = header.wrap_tag.split_first_chunk::<HALF>()?;
        let index = u64::from_le_bytes(*index.first_chunk::<HALF>()?);
        // A remainder below the number of places fits a usize.
        let index = usize::try_from(index % u64::try_from(self.seen.len()).ok()?.max(1)).ok()?;
        Some((self.seen.get(index)?, u64::from_le_bytes(*mark)))
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

    /// DEKs that left the cache so far: for room, for age, or with their KEK.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        let held = u64::try_from(self.len()).unwrap_or(u64::MAX);
        self.inserted.load(Ordering::Relaxed).saturating_sub(held)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Envelope;
    use crate::id::Suite;
    use crate::keychain::KeyChain;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A cache, and a chain to fill it from.
    fn world(entries: usize) -> (DekCache, KeyChain) {
        let name = ChainName::new("orders").unwrap();
        (DekCache::new(entries, MINUTE), KeyChain::generate(name, Suite::Aes128Gcm).unwrap())
    }

    /// Asks for the DEK of `envelope` as a decrypt does; whether it was a hit.
    fn ask(cache: &DekCache, chain: &KeyChain, envelope: &[u8], now: Monotonic) -> bool {
        let envelope = Envelope::parse(envelope).unwrap();
        if cache.get(chain.name(), &envelope.header, now).is_some() {
            return true;
        }
        let dek = chain.open_dek(&envelope).unwrap();
        let dek = cache.insert(chain.name(), &envelope.header, dek, now);
        assert_eq!(dek.open(chain.name(), &mut envelope.payload.to_vec(), b"").unwrap(), 0..5);
        false
    }

    #[test]
    fn a_dek_is_kept_from_the_second_time_on_until_it_is_too_old() {
        let (cache, chain) = world(10);
        let (one, start) = (chain.encrypt(b"hello", b"").unwrap(), Monotonic::default());
        let asked = [0, 1, 2, 60, 61, 62]
            .map(|secs| ask(&cache, &chain, &one, start + Duration::from_secs(secs)));
        assert_eq!(asked, [false, false, true, true, false, true]);
        cache.expire(start + 3 * MINUTE);
        assert_eq!((cache.len(), cache.evicted()), (0, 2));
    }

    #[test]
    fn envelopes_that_are_read_once_push_nothing_out() {
        let (cache, chain) = world(10);
        let (one, now) = (chain.encrypt(b"hello", b"").unwrap(), Monotonic::default());
        ask(&cache, &chain, &one, now);
        ask(&cache, &chain, &one, now);
        for _ in 0..1000 {
            assert!(!ask(&cache, &chain, &chain.encrypt(b"hello", b"").unwrap(), now));
        }
        assert_eq!((cache.len(), cache.evicted()), (1, 0));
    }

    #[test]
    fn it_is_bounded_and_forgets_a_kek() {
        let (cache, chain) = world(10);
        let now = Monotonic::default();
        for _ in 0..100 {
            let envelope = chain.encrypt(b"hello", b"").unwrap();
            ask(&cache, &chain, &envelope, now);
            ask(&cache, &chain, &envelope, now);
        }
        assert!((1..=10).contains(&cache.len()) && cache.evicted() >= 90, "{}", cache.len());
        cache.forget(&ChainName::new("other").unwrap(), chain.primary_id().unwrap());
        assert!(!cache.is_empty());
        cache.forget(chain.name(), chain.primary_id().unwrap());
        assert!(cache.is_empty());
    }

    #[test]
    fn another_header_or_chain_is_no_hit() {
        let (cache, chain) = world(10);
        let (mut one, now) = (chain.encrypt(b"hello", b"").unwrap(), Monotonic::default());
        for expected in [false, false, true] {
            assert_eq!(ask(&cache, &chain, &one, now), expected);
        }
        let other = ChainName::new("other").unwrap();
        assert!(cache.get(&other, &Envelope::parse(&one).unwrap().header, now).is_none());
        one[30] ^= 1;
        assert!(cache.get(chain.name(), &Envelope::parse(&one).unwrap().header, now).is_none());
    }

    #[test]
    fn without_entries_it_keeps_nothing() {
        let (cache, chain) = world(0);
        let one = chain.encrypt(b"hello", b"").unwrap();
        assert!((0..5).all(|_| !ask(&cache, &chain, &one, Monotonic::default())));
    }
}
