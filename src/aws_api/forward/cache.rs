//! Plaintexts of KMS that are kept for a while: the data keys of old objects are read repeatedly.
//! They are wiped when their time is over, or when there are too many.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Monotonic};

use super::{Digest, Foreign};

/// Plaintexts at most: 40 MB if all of them have 4 KiB.
const MAX_ENTRIES: usize = 10_000;

/// The plaintexts that are kept.
pub(super) struct Cache {
    max_age: Duration,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Digest, Entry>,
    /// In the order in which they are added, which is that in which they expire.
    added: VecDeque<(Monotonic, Digest)>,
    /// How often KMS refused a key.
    refusals: u64,
}

struct Entry {
    added_at: Monotonic,
    opened: Arc<Foreign>,
}

impl Cache {
    /// A cache that keeps plaintexts for `max_age`; nothing if it is zero. A task wipes what is
    /// too old, until the cache is dropped.
    pub(super) fn start(max_age: Duration, clock: Arc<dyn Clock>) -> Arc<Self> {
        let cache = Arc::new(Self::new(max_age, clock));
        if !max_age.is_zero() {
            let weak = Arc::downgrade(&cache);
            let every = (max_age / 4).clamp(Duration::from_millis(10), Duration::from_secs(10));
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(every).await;
                    let Some(cache) = weak.upgrade() else { return };
                    cache.sweep();
                }
            });
        }
        cache
    }

    fn new(max_age: Duration, clock: Arc<dyn Clock>) -> Self {
        Self { max_age, clock, state: Mutex::default() }
    }

    pub(super) fn find(&self, digest: &Digest) -> Option<Arc<Foreign>> {
        let now = self.clock.now();
        let state = self.state.lock();
        let entry = state.entries.get(digest)?;
        (now.since(entry.added_at) < self.max_age).then(|| Arc::clone(&entry.opened))
    }

    /// How often KMS has refused a key.
    pub(super) fn refusals(&self) -> u64 {
        self.state.lock().refusals
    }

    /// Keeps a plaintext, unless it is kept already, or KMS has refused a key since there were
    /// `refusals` refusals.
    pub(super) fn keep(&self, digest: Digest, opened: &Arc<Foreign>, refusals: u64) {
        if self.max_age.is_zero() {
            return;
        }
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.expire(now, self.max_age);
        if state.refusals != refusals || state.entries.contains_key(&digest) {
            return;
        }
        while state.entries.len() >= MAX_ENTRIES && state.drop_oldest() {}
        state.entries.insert(digest, Entry { added_at: now, opened: Arc::clone(opened) });
        state.added.push_back((now, digest));
    }

    /// Wipes everything under a key that KMS refuses, or everything if the key is not known.
    pub(super) fn forget(&self, key: Option<&str>) {
        let mut state = self.state.lock();
        state.refusals = state.refusals.saturating_add(1);
        state.entries.retain(|_, entry| key.is_some_and(|key| entry.opened.key() != key));
    }

    fn sweep(&self) {
        self.state.lock().expire(self.clock.now(), self.max_age);
    }
}

impl State {
    fn expire(&mut self, now: Monotonic, max_age: Duration) {
        while let Some((added_at, _)) = self.added.front()
            && now.since(*added_at) >= max_age
        {
            self.drop_oldest();
        }
    }

    /// Drops the entry that was added first; false if the cache is empty.
    fn drop_oldest(&mut self) -> bool {
        let Some((added_at, digest)) = self.added.pop_front() else { return false };
        // It may have been forgotten, and added again since.
        if self.entries.get(&digest).is_some_and(|entry| entry.added_at == added_at) {
            self.entries.remove(&digest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::clock::ManualClock;

    fn opened(key: &str) -> Arc<Foreign> {
        Arc::new(Foreign { plaintext: Zeroizing::new(b"secret".to_vec()), key: key.into() })
    }

    fn cache(max_age: u64) -> (Cache, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new());
        (Cache::new(Duration::from_secs(max_age), Arc::clone(&clock) as _), clock)
    }

    #[test]
    fn a_plaintext_is_kept_for_its_time_and_no_longer() {
        let (cache, clock) = cache(60);
        let held = opened("a");
        cache.keep([1; 32], &held, 0);
        clock.advance(Duration::from_secs(59));
        assert!(cache.find(&[1; 32]).is_some() && cache.find(&[2; 32]).is_none());
        // Another reading does not keep it longer.
        cache.keep([1; 32], &held, 0);
        clock.advance(Duration::from_secs(1));
        assert!(cache.find(&[1; 32]).is_none());
        cache.sweep();
        assert_eq!(Arc::strong_count(&held), 1, "it is dropped, and so wiped");
    }

    #[test]
    fn what_is_under_a_refused_key_is_forgotten() {
        let (cache, _clock) = cache(60);
        cache.keep([1; 32], &opened("a"), 0);
        cache.keep([2; 32], &opened("b"), 0);
        cache.forget(Some("a"));
        assert!(cache.find(&[1; 32]).is_none() && cache.find(&[2; 32]).is_some());
        // A response that is older than the refusal is not kept.
        cache.keep([1; 32], &opened("a"), 0);
        assert!(cache.find(&[1; 32]).is_none());
        cache.forget(None);
        assert!(cache.find(&[2; 32]).is_none());
        cache.keep([1; 32], &opened("a"), cache.refusals());
        assert!(cache.find(&[1; 32]).is_some());
    }

    #[test]
    fn the_oldest_leave_when_there_are_too_many() {
        let (cache, _clock) = cache(60);
        let held = opened("a");
        let digest = |index: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&index.to_be_bytes());
            digest
        };
        for index in 0..=MAX_ENTRIES {
            cache.keep(digest(index), &held, 0);
        }
        assert_eq!(Arc::strong_count(&held), MAX_ENTRIES + 1);
        assert!(cache.find(&digest(0)).is_none() && cache.find(&digest(MAX_ENTRIES)).is_some());
    }

    #[test]
    fn without_an_age_nothing_is_kept() {
        let (cache, _clock) = cache(0);
        cache.keep([1; 32], &opened("a"), 0);
        assert!(cache.find(&[1; 32]).is_none());
    }
}
