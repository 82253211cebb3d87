//! The uses of a primary KEK that this process may spend: blocks that were reserved before.
//!
//! Taking uses is lock-free and knows no store. The caller that adds a block has counted it
//! durably. Uses that are not spent when a block expires are lost, never returned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::Monotonic;

/// A block is void this long after it was asked for, so that a process which lost touch with the
/// store stops by itself, and no envelope is born under a KEK that others destroyed meanwhile.
pub const BLOCK_LIFE: Duration = Duration::from_secs(60);

/// Reserved uses of one KEK.
pub struct Budget {
    /// The oldest first.
    blocks: ArcSwap<Vec<Arc<Block>>>,
    /// Uses taken so far: what the rate of traffic is measured by.
    spent: AtomicU64,
}

struct Block {
    left: AtomicU64,
    void_at: Monotonic,
}

impl Budget {
    /// A budget without a use.
    #[must_use]
    pub fn empty() -> Self {
        Self { blocks: ArcSwap::default(), spent: AtomicU64::new(0) }
    }

    /// A budget of `uses` that are never void: for a KEK that only this process knows.
    #[must_use]
    pub fn unshared(uses: u64) -> Self {
        let budget = Self::empty();
        budget.add(uses, Monotonic::NEVER, Monotonic::default());
        budget
    }

    /// Adds a block of `uses`, and drops the blocks that are spent or void at `now`.
    pub fn add(&self, uses: u64, void_at: Monotonic, now: Monotonic) {
        let block = Arc::new(Block { left: AtomicU64::new(uses), void_at });
        self.blocks.rcu(|blocks| {
            let live = |block: &&Arc<Block>| block.left(now) > 0;
            blocks.iter().filter(live).chain([&block]).cloned().collect::<Vec<_>>()
        });
    }

    /// Takes one use. It is good until the time that comes back.
    #[must_use]
    pub fn take(&self, now: Monotonic) -> Option<Monotonic> {
        let blocks = self.blocks.load();
        let block = blocks.iter().find(|block| block.take(now))?;
        self.spent.fetch_add(1, Ordering::Relaxed);
        Some(block.void_at)
    }

    /// Takes `uses` of one block together, unless that leaves others less than three times as many.
    #[must_use]
    pub fn take_many(self: &Arc<Self>, uses: u64, now: Monotonic) -> Option<Taken> {
        let blocks = self.blocks.load();
        let block = blocks.iter().find(|block| block.take_many(uses, now))?;
        self.spent.fetch_add(uses, Ordering::Relaxed);
        Some(Taken { budget: Arc::clone(self), block: Arc::clone(block), left: uses })
    }

    /// Takes half of the uses that are left and never void, rounded down, for a copy of the chain;
    /// says how many that are. Uses of blocks that end stay: they must not live on elsewhere.
    #[must_use]
    pub fn take_half(&self) -> u64 {
        let blocks = self.blocks.load();
        blocks.iter().filter(|block| block.void_at == Monotonic::NEVER).map(|b| b.take_half()).sum()
    }

    /// Uses that can still be taken at `now`.
    #[must_use]
    pub fn left(&self, now: Monotonic) -> u64 {
        self.blocks.load().iter().map(|block| block.left(now)).sum()
    }

    /// When the last of these uses expires, if there are any; [`Monotonic::NEVER`] if it does not.
    #[must_use]
    pub fn void_at(&self, now: Monotonic) -> Option<Monotonic> {
        let blocks = self.blocks.load();
        blocks.iter().filter(|block| block.left(now) > 0).map(|block| block.void_at).max()
    }

    /// Uses that were taken so far.
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }
}

impl Block {
    fn take(&self, now: Monotonic) -> bool {
        // Relaxed: the count alone matters, and a read-modify-write always sees the latest.
        now < self.void_at
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
    }

    fn take_many(&self, uses: u64, now: Monotonic) -> bool {
        let rest = |left: u64| left.checked_sub(uses).filter(|&rest| rest / 3 >= uses);
        now < self.void_at
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).is_ok()
    }

    fn take_half(&self) -> u64 {
        let half = |left| Some(left - left / 2);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, half)
            .map_or(0, |left| left / 2)
    }

    fn left(&self, now: Monotonic) -> u64 {
        if now < self.void_at { self.left.load(Ordering::Relaxed) } else { 0 }
    }
}

/// Uses that were taken together, to be spent one by one. On drop the others return to their block.
pub struct Taken {
    budget: Arc<Budget>,
    block: Arc<Block>,
    left: u64,
}

impl Taken {
    /// Takes one of them. It is good until the time that is returned.
    #[must_use]
    pub fn next(&mut self, now: Monotonic) -> Option<Monotonic> {
        if now >= self.block.void_at {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        Some(self.block.void_at)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // If the block is void, or was spent and dropped, they are lost with it.
        self.block.left.fetch_add(self.left, Ordering::Relaxed);
        self.budget.spent.fetch_sub(self.left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(secs: u64) -> Monotonic {
        Monotonic::from_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn a_block_is_void_when_its_time_is_over() {
        let budget = Budget::empty();
        assert_eq!(budget.take(at(0)), None);
        budget.add(10, at(60), at(0));
        assert_eq!(budget.take(at(59)), Some(at(60)));
        assert_eq!(budget.left(at(59)), 9);
        assert_eq!((budget.take(at(60)), budget.left(at(60))), (None, 0));
        budget.add(1, at(120), at(61));
        assert_eq!((budget.take(at(61)), budget.take(at(61))), (Some(at(120)), None));
        assert_eq!(budget.spent(), 2);
    }

    #[test]
    fn uses_that_were_taken_together_return_unless_they_are_spent() {
        let budget = Arc::new(Budget::empty());
        budget.add(40, at(60), at(0));
        assert!(budget.take_many(11, at(1)).is_none(), "29 are too few for the others");
        let mut taken = budget.take_many(10, at(1)).unwrap();
        assert_eq!((budget.left(at(1)), budget.spent()), (30, 10));
        assert_eq!((taken.next(at(2)), taken.next(at(59))), (Some(at(60)), Some(at(60))));
        assert_eq!(taken.next(at(60)), None, "it is void");
        drop(taken);
        assert_eq!((budget.left(at(1)), budget.spent()), (38, 2));
        let mut all = budget.take_many(9, at(1)).unwrap();
        assert_eq!(std::iter::from_fn(|| all.next(at(2))).count(), 9);
        drop(all);
        assert_eq!((budget.left(at(1)), budget.spent()), (29, 11));
        assert!(budget.take_many(1, at(60)).is_none());
    }

    #[test]
    fn half_of_the_uses_that_are_never_void_can_be_taken_at_once() {
        let budget = Budget::unshared(7);
        budget.add(10, at(60), at(0));
        assert_eq!((budget.take_half(), budget.left(at(0))), (3, 4 + 10));
        assert_eq!((budget.take_half(), budget.take_half(), budget.take_half()), (2, 1, 0));
        assert_eq!(budget.left(at(0)), 1 + 10);
    }

    #[test]
    fn halves_and_single_uses_are_exactly_what_was_there() {
        let budget = Budget::unshared(1 << 20);
        let taken: u64 = std::thread::scope(|scope| {
            let single = || (0..10_000).filter(|_| budget.take(at(1)).is_some()).count() as u64;
            let halves = || (0..10).map(|_| budget.take_half()).sum();
            let takers = [scope.spawn(single), scope.spawn(halves), scope.spawn(single)];
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!(taken + budget.left(at(1)), 1 << 20);
    }

    #[test]
    fn threads_take_exactly_what_was_added() {
        let budget = Arc::new(Budget::empty());
        let taken: usize = std::thread::scope(|scope| {
            let single = || (0..40_000).filter(|_| budget.take(at(1)).is_some()).count();
            // Each spends two of three, and returns the third.
            let many = || {
                let taken = (0..10_000).filter_map(|_| budget.take_many(3, at(1)));
                taken.filter_map(|mut taken| taken.next(at(1)).and(taken.next(at(1)))).count() * 2
            };
            let takers =
                [scope.spawn(single), scope.spawn(many), scope.spawn(single), scope.spawn(many)];
            for _ in 0..1_000 {
                budget.add(7, at(2), at(1));
            }
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        let rest = std::iter::from_fn(|| budget.take(at(1))).count();
        assert_eq!(taken + rest, 7_000);
    }

    proptest! {
        #[test]
        fn wraps_never_pass_reserved(
            steps in proptest::collection::vec((0_u64..40, 0_u64..90, any::<bool>()), 1..80),
        ) {
            let budget = Budget::empty();
            let (mut now, mut reserved, mut wraps) = (0, 0, 0);
            for (uses, wait, add) in steps {
                if add {
                    budget.add(uses, at(now + 60), at(now));
                    reserved += uses;
                } else {
                    wraps += (0..uses).filter(|_| budget.take(at(now)).is_some()).count() as u64;
                    now += wait;
                }
                prop_assert!(wraps + budget.left(at(now)) <= reserved);
                prop_assert_eq!(wraps, budget.spent());
            }
        }
    }
}
