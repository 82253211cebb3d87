//! KEKs that were requested and can't be used: ids that a chain does not have, and stored KEKs that
//! no configured root unwraps. It calls no root and no store.
//!
//! Callers choose the ids that they request, so both the memory and the number of log lines are
//! bounded.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};
use crate::service::limits::rate_limiter::RateLimiter;
use crate::service::types::{Absence, MissingKek};

use super::CacheKey;

/// The maximum number of KEKs that are remembered, of one chain and of all chains.
const PER_CHAIN: usize = 1_000;
const IN_ALL: usize = 10_000;
/// Rate limit on log lines about newly missing KEKs: a burst, then one per interval.
const LOG_BURST: u32 = 50;
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The missing KEKs.
pub(super) struct Missing {
    entries: Mutex<Entries>,
    log: RateLimiter,
}

#[derive(Default)]
struct Entries {
    keks: HashMap<CacheKey, Entry>,
    per_chain: HashMap<ChainName, Counts>,
}

/// The number of missing KEKs of a chain.
#[derive(Clone, Copy, Default)]
struct Counts {
    unknown: usize,
    unopenable: usize,
}

impl Counts {
    fn of(&mut self, absence: Absence) -> &mut usize {
        match absence {
            Absence::Unknown => &mut self.unknown,
            Absence::Unopenable => &mut self.unopenable,
        }
    }
}

struct Entry {
    absence: Absence,
    first_seen: u64,
    last_seen: u64,
}

impl Missing {
    pub(super) fn new() -> Self {
        Self { entries: Mutex::default(), log: RateLimiter::new(LOG_BURST, LOG_EVERY) }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock()
    }

    /// Notes that a requested KEK could not be used. Returns whether to log it: the first time,
    /// within the rate limit.
    pub(super) fn note(
        &self,
        chain: &ChainName,
        id: KekId,
        absence: Absence,
        unix_now: u64,
        now: Monotonic,
    ) -> bool {
        let Entries { keks, per_chain } = &mut *self.lock();
        let key = (chain.clone(), id);
        if let Some(entry) = keks.get_mut(&key) {
            entry.last_seen = unix_now;
            if entry.absence == absence {
                return false;
            }
            let counts = per_chain.entry(chain.clone()).or_default();
            *counts.of(entry.absence) -= 1;
            *counts.of(absence) += 1;
            entry.absence = absence;
            return self.log.take(now);
        }
        let counts = per_chain.entry(chain.clone()).or_default();
        if counts.unknown + counts.unopenable < PER_CHAIN && keks.len() < IN_ALL {
            *counts.of(absence) += 1;
            keks.insert(key, Entry { absence, first_seen: unix_now, last_seen: unix_now });
        }
        self.log.take(now)
    }

    /// Removes a KEK that can be used again, or never will be.
    pub(super) fn remove(&self, chain: &ChainName, id: KekId) {
        let Entries { keks, per_chain } = &mut *self.lock();
        if keks.is_empty() {
            return;
        }
        if let Some(entry) = keks.remove(&(chain.clone(), id))
            && let Some(counts) = per_chain.get_mut(chain)
        {
            *counts.of(entry.absence) -= 1;
        }
    }

    /// How many KEKs of a chain are missing for this reason.
    pub(super) fn count(&self, chain: &ChainName, absence: Absence) -> usize {
        self.lock().per_chain.get_mut(chain).map_or(0, |counts| *counts.of(absence))
    }

    /// The missing KEKs of a chain; the one that was missed first comes first.
    pub(super) fn of(&self, chain: &ChainName) -> Vec<MissingKek> {
        let entries = self.lock();
        let of_chain = entries.keks.iter().filter(|((name, _), _)| name == chain);
        let mut missing: Vec<_> = of_chain
            .map(|((_, kek_id), entry)| MissingKek {
                kek_id: *kek_id,
                absence: entry.absence,
                first_seen: entry.first_seen,
                last_seen: entry.last_seen,
            })
            .collect();
        missing.sort_by_key(|kek| (kek.first_seen, kek.kek_id));
        missing
    }

    /// Stored KEKs that no root opened, of all chains: at most `most`, those asked for longest ago
    /// first.
    pub(super) fn unopenable(&self, most: usize) -> Vec<CacheKey> {
        let entries = self.lock();
        let mut keks: Vec<_> = entries
            .keks
            .iter()
            .filter(|(_, entry)| entry.absence == Absence::Unopenable)
            .map(|(key, entry)| (entry.last_seen, key.clone()))
            .collect();
        keks.sort();
        keks.into_iter().take(most).map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(missing: &Missing, chain: &ChainName, byte: u16, absence: Absence) -> bool {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&byte.to_be_bytes());
        missing.note(chain, KekId::from_bytes(id), absence, byte.into(), Monotonic::default())
    }

    #[test]
    fn forged_ids_take_a_bounded_amount_of_memory_and_log() {
        let (missing, chain) = (Missing::new(), ChainName::new("orders").unwrap());
        let logged = (0..5_000).filter(|&id| note(&missing, &chain, id, Absence::Unknown)).count();
        assert_eq!(logged, LOG_BURST as usize);
        assert_eq!(missing.count(&chain, Absence::Unknown), PER_CHAIN);
        assert_eq!(missing.of(&chain).len(), PER_CHAIN);
    }

    #[test]
    fn a_kek_is_reported_once_and_leaves_when_it_is_found() {
        let (missing, chain) = (Missing::new(), ChainName::new("orders").unwrap());
        assert!(note(&missing, &chain, 1, Absence::Unknown));
        assert!(!note(&missing, &chain, 1, Absence::Unknown));
        assert!(note(&missing, &chain, 1, Absence::Unopenable), "it is another fault");
        let counts = [Absence::Unknown, Absence::Unopenable].map(|it| missing.count(&chain, it));
        assert_eq!(counts, [0, 1]);
        let [kek] = &missing.of(&chain)[..] else { panic!("one KEK is missed") };
        assert_eq!(missing.unopenable(9), [(chain.clone(), kek.kek_id)]);
        missing.remove(&chain, kek.kek_id);
        assert!(missing.of(&chain).is_empty() && missing.unopenable(9).is_empty());
        assert_eq!(missing.count(&chain, Absence::Unopenable), 0);
    }
}
