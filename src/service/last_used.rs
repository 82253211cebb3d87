//! On which day each KEK was last used to encrypt and to decrypt, as this process knows it.
//!
//! A call compares one number with its start time; once an hour for each KEK it takes a lock here.
//! This file calls no store: [`storing`] stores the days, and [`reading`] reads them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Monotonic};
use crate::id::{ChainName, KekId};
use crate::keychain::NotedUntil;
use crate::store;
use crate::store::record::LastUsed;
use crate::timestamp::DAY;

pub(super) mod reading;
pub(super) mod storing;

/// How long a note of a KEK is good for, and no longer than its day: a wall clock may be set.
const GOOD_FOR: Duration = Duration::from_secs(60 * 60);
/// Processes that share a store wait up to this long before they store a day, each another time:
/// the first one stores it, and the others find it stored.
const SPREAD: Duration = Duration::from_secs(10 * 60);
/// The same for a KEK that was disabled: its days are stored before it can be destroyed.
const SHORT_SPREAD: Duration = Duration::from_secs(30);
/// The most KEKs whose days are kept in memory: some 8 MB. Those whose days are stored are dropped
/// first.
const MOST: usize = 1 << 16;

/// The most records that can't be read and are in the log.
const MOST_UNREADABLE: usize = 1_000;

/// How a KEK is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It wraps a DEK.
    Encrypt,
    /// It opens a DEK.
    Decrypt,
}

type Key = (ChainName, KekId);

/// What this process knows.
pub(super) struct UsedKeks {
    clock: Arc<dyn Clock>,
    /// A random number of this process.
    owner: u64,
    /// Whether other processes write to the store.
    shared: bool,
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keks: HashMap<Key, Days>,
    /// Chains whose first day is stored.
    begun: HashSet<ChainName>,
    /// Chains of a store that went back: earlier days are not all known.
    went_back: HashSet<ChainName>,
    /// The keys of records that can't be read and are in the log.
    unreadable: HashSet<String>,
}

/// The days of one KEK.
#[derive(Clone, Copy)]
struct Days {
    used: LastUsed,
    /// The days that the store has, as far as this process knows.
    stored: LastUsed,
    /// When they are stored, if they are not.
    due: Monotonic,
}

impl Days {
    fn are_stored(&self) -> bool {
        self.stored.max(self.used) == self.stored
    }
}

impl UsedKeks {
    pub(super) fn new(clock: Arc<dyn Clock>, owner: u64, shared: bool) -> Self {
        Self { clock, owner, shared, most: MOST, state: Mutex::default() }
    }

    /// Notes a use of a KEK at `now`, unless `noted` says that it is noted.
    #[inline]
    pub(super) fn note(
        &self,
        noted: &NotedUntil,
        chain: &ChainName,
        id: KekId,
        way: Way,
        now: Monotonic,
    ) {
        if !noted.covers(now) {
            self.note_now(noted, chain, id, way, now);
        }
    }

    #[cold]
    fn note_now(&self, noted: &NotedUntil, chain: &ChainName, id: KekId, way: Way, now: Monotonic) {
        const MILLIS: u64 = DAY * 1_000;
        let millis = self.clock.unix_millis();
        let day = Some(u32::try_from(millis / MILLIS).unwrap_or(u32::MAX));
        let used = match way {
            Way::Encrypt => LastUsed { encrypt: day, decrypt: None },
            Way::Decrypt => LastUsed { encrypt: None, decrypt: day },
        };
        noted.set(now + GOOD_FOR.min(Duration::from_millis(MILLIS - millis % MILLIS)));
        let mut state = self.state.lock();
        let key = (chain.clone(), id);
        let due = now + self.spread(id, SPREAD);
        if let Some(days) = state.keks.get_mut(&key) {
            let was_stored = days.are_stored();
            days.used = days.used.max(used);
            if was_stored && !days.are_stored() {
                days.due = due;
            }
            return;
        }
        if state.keks.len() >= self.most {
            state.keks.retain(|_, days| !days.are_stored());
        }
        // If the store has been away for long, later days are not known.
        if state.keks.len() < self.most {
            state.keks.insert(key, Days { used, stored: LastUsed::default(), due });
        }
    }

    /// A time below `most` that differs by process and KEK; none if no other process writes.
    fn spread(&self, id: KekId, most: Duration) -> Duration {
        if !self.shared {
            return Duration::ZERO;
        }
        let [seed, ..] = id.as_bytes().as_chunks::<8>().0 else { return Duration::ZERO };
        // The finalizer of SplitMix64.
        let mut mixed = u64::from_le_bytes(*seed) ^ self.owner;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = (mixed ^ (mixed >> 31)) >> 40;
        let millis = u64::try_from(most.as_millis()).unwrap_or_default();
        Duration::from_millis((millis * part) >> 24)
    }

    /// The days of a KEK that this process knows.
    fn of(&self, chain: &ChainName, id: KekId) -> LastUsed {
        let state = self.state.lock();
        state.keks.get(&(chain.clone(), id)).map_or_else(LastUsed::default, |days| days.used)
    }

    /// The KEKs whose days are not stored: those that are due at `now`, or all of them.
    fn unstored(&self, now: Option<Monotonic>) -> Vec<Key> {
        let state = self.state.lock();
        let is_due = |days: &Days| !days.are_stored() && now.is_none_or(|now| days.due <= now);
        state.keks.iter().filter(|(_, days)| is_due(days)).map(|(key, _)| key.clone()).collect()
    }

    /// Notes the days that the store has.
    fn stored(&self, key: &Key, stored: LastUsed) {
        if let Some(days) = self.state.lock().keks.get_mut(key) {
            days.stored = stored;
        }
    }

    /// A KEK was disabled: its days are stored soon.
    pub(super) fn hurry(&self, chain: &ChainName, id: KekId) {
        if let Some(days) = self.state.lock().keks.get_mut(&(chain.clone(), id)) {
            days.due = days.due.min(self.clock.now() + self.spread(id, SHORT_SPREAD));
        }
    }

    /// The store went back to an earlier state of a chain: the days that this process knows are
    /// stored again, and others are not known any more.
    pub(super) fn went_back(&self, chain: &ChainName) {
        let now = self.clock.now();
        let state = &mut *self.state.lock();
        for ((of, id), days) in &mut state.keks {
            if of == chain {
                days.stored = LastUsed::default();
                days.due = now + self.spread(*id, SHORT_SPREAD);
            }
        }
        state.begun.remove(chain);
        state.went_back.insert(chain.clone());
    }

    /// Whether the first day of a chain may have to be stored.
    fn may_begin(&self, chain: &ChainName) -> bool {
        !self.state.lock().begun.contains(chain)
    }

    /// Whether the first day of a chain is today, whatever is stored.
    fn begins_again(&self, chain: &ChainName) -> bool {
        self.state.lock().went_back.contains(chain)
    }

    /// The first day of a chain is stored.
    fn began(&self, chain: &ChainName) {
        let mut state = self.state.lock();
        state.went_back.remove(chain);
        state.begun.insert(chain.clone());
    }

    /// Logs once that a record can't be read.
    fn report_unreadable(&self, key: &str, error: &store::Error) {
        let mut state = self.state.lock();
        if state.unreadable.len() < MOST_UNREADABLE && state.unreadable.insert(key.to_owned()) {
            tracing::warn!(
                key,
                %error,
                "a record of when KEKs were last used can't be read: it is damaged, or a newer \
                 version wrote it; it is kept, and what it says is not known"
            );
        }
    }

    /// Today in UTC, in days since the Unix epoch.
    fn today(&self) -> u32 {
        u32::try_from(self.clock.unix_now() / DAY).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::clock::ManualClock;

    fn id(byte: u8) -> KekId {
        KekId::from_bytes([byte; 16])
    }

    fn chain() -> ChainName {
        ChainName::new("orders").unwrap()
    }

    fn world(shared: bool) -> (UsedKeks, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new());
        (UsedKeks::new(Arc::clone(&clock) as _, 7, shared), clock)
    }

    /// 2026-01-01, where the clock starts.
    const FIRST: u32 = 20_454;

    #[test]
    fn a_note_is_good_until_the_day_ends_and_for_an_hour_at_most() {
        let (keks, clock) = world(false);
        let noted = NotedUntil::default();
        let decrypt = |now| keks.note(&noted, &chain(), id(1), Way::Decrypt, now);
        decrypt(clock.now());
        assert_eq!(keks.of(&chain(), id(1)), LastUsed { encrypt: None, decrypt: Some(FIRST) });
        assert!(noted.covers(clock.now() + (GOOD_FOR - Duration::from_nanos(1))));
        assert!(!noted.covers(clock.now() + GOOD_FOR), "a clock may have been set");
        clock.advance(Duration::from_secs(DAY - 60));
        decrypt(clock.now());
        assert!(noted.covers(clock.now() + Duration::from_secs(59)));
        assert!(!noted.covers(clock.now() + Duration::from_secs(60)));
        clock.advance(Duration::from_secs(60));
        decrypt(clock.now());
        assert_eq!(keks.of(&chain(), id(1)).decrypt, Some(FIRST + 1));
        let encrypts = NotedUntil::default();
        keks.note(&encrypts, &chain(), id(1), Way::Encrypt, clock.now());
        let both = LastUsed { encrypt: Some(FIRST + 1), decrypt: Some(FIRST + 1) };
        assert_eq!(keks.of(&chain(), id(1)), both);
        assert_eq!(keks.of(&chain(), id(2)), LastUsed::default());
    }

    #[test]
    fn processes_store_a_day_at_different_times() {
        let clock = Arc::new(ManualClock::new());
        let mut due: Vec<Duration> = (0..1_000)
            .map(|owner: u64| {
                let owner = owner.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let keks = UsedKeks::new(Arc::clone(&clock) as _, owner, true);
                keks.spread(id(1), SPREAD)
            })
            .collect();
        due.sort();
        assert!(due.last().is_some_and(|last| *last < SPREAD));
        for (index, due) in due.iter().enumerate() {
            let even = SPREAD * u32::try_from(index).unwrap() / 1_000;
            assert!(due.abs_diff(even) < SPREAD / 10, "{index}: {due:?}");
        }
        assert_eq!(world(false).0.spread(id(1), SPREAD), Duration::ZERO);
    }

    #[test]
    fn what_is_stored_is_due_no_more_until_the_day_changes() {
        let (keks, clock) = world(true);
        let noted = NotedUntil::default();
        let key = (chain(), id(1));
        keks.note(&noted, &key.0, key.1, Way::Encrypt, clock.now());
        assert_eq!(keks.unstored(None), slice::from_ref(&key));
        assert_eq!(keks.unstored(Some(clock.now())), [], "it waits");
        assert_eq!(keks.unstored(Some(clock.now() + SPREAD)), slice::from_ref(&key));
        keks.hurry(&key.0, key.1);
        assert_eq!(keks.unstored(Some(clock.now() + SHORT_SPREAD)), slice::from_ref(&key));
        keks.stored(&key, LastUsed { encrypt: Some(FIRST), decrypt: Some(FIRST) });
        assert_eq!(keks.unstored(None), []);
        clock.advance(Duration::from_secs(DAY));
        keks.note(&noted, &key.0, key.1, Way::Encrypt, clock.now());
        assert_eq!(keks.unstored(None), slice::from_ref(&key));
        keks.stored(&key, LastUsed { encrypt: Some(FIRST + 9), decrypt: None });
        assert_eq!(keks.unstored(None), [], "another process was later");
        keks.went_back(&key.0);
        assert_eq!(keks.unstored(None), [key]);
    }

    #[test]
    fn memory_is_bounded_and_what_is_stored_makes_room() {
        let (mut keks, clock) = world(false);
        keks.most = 2;
        let use_one = |keks: &UsedKeks, byte| {
            let noted = NotedUntil::default();
            keks.note(&noted, &chain(), id(byte), Way::Decrypt, clock.now());
        };
        (1..=3).for_each(|byte| use_one(&keks, byte));
        assert_eq!(keks.of(&chain(), id(3)), LastUsed::default(), "there is no room");
        keks.stored(&(chain(), id(1)), keks.of(&chain(), id(1)));
        use_one(&keks, 3);
        assert_eq!(keks.of(&chain(), id(3)).decrypt, Some(FIRST));
        assert_eq!(keks.of(&chain(), id(1)), LastUsed::default());
        assert_eq!(keks.state.lock().keks.len(), 2);
    }
}
