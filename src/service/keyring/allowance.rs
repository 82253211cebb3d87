//! How many calls of roots the callers of a chain may cost in vain. It knows no root and no KEK.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Monotonic;
use crate::id::ChainName;

/// Calls of roots that a chain's callers may cost in vain: this many at once,
const BURST: u32 = 100;
/// and then one in this time. A day of it costs 86,400 calls: some 0.26 USD in AWS KMS.
const EVERY: Duration = Duration::from_secs(1);

/// The allowances of all chains: those of one can't use up another's.
#[derive(Default)]
pub(super) struct Allowances(Mutex<HashMap<ChainName, Allowance>>);

impl Allowances {
    /// Whether one call more may turn out to be in vain.
    pub(super) fn take(&self, chain: &ChainName, now: Monotonic) -> bool {
        // A chain that is not there gets no further than its name, so there are not many.
        let mut chains = self.lock();
        chains.entry(chain.clone()).or_insert_with(|| Allowance::full(now)).take(now)
    }

    /// The call was not in vain, or it was not the caller's fault.
    pub(super) fn give_back(&self, chain: &ChainName) {
        if let Some(allowance) = self.lock().get_mut(chain) {
            allowance.left = BURST.min(allowance.left + 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChainName, Allowance>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is left of a chain's calls in vain.
struct Allowance {
    left: u32,
    since: Monotonic,
}

impl Allowance {
    fn full(now: Monotonic) -> Self {
        Self { left: BURST, since: now }
    }

    fn take(&mut self, now: Monotonic) -> bool {
        let due = now.since(self.since).as_nanos() / EVERY.as_nanos();
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        if due >= BURST {
            *self = Self::full(now);
        } else {
            self.left = BURST.min(self.left + due);
            self.since = self.since + EVERY * due;
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_in_vain_are_a_hundred_at_once_and_then_one_a_second() {
        let at = |secs| Monotonic::default() + Duration::from_secs(secs);
        let mut allowance = Allowance::full(at(5));
        let mut take = |secs| (0..500).filter(|_| allowance.take(at(secs))).count();
        assert_eq!([take(5), take(5), take(6), take(6), take(16)], [100, 0, 1, 0, 10]);
        assert_eq!(take(1_000_000), 100, "no more are saved up");
    }
}
