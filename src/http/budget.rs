//! The memory budget of bodies and responses, over all connections.
//!
//! A body is charged as it arrives, so announcing a large body reserves nothing. If the budget is
//! used up, a request is refused before memory grows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The budget. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget(Arc<Inner>);

struct Inner {
    /// Bytes.
    limit: usize,
    taken: AtomicUsize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, taken: AtomicUsize::new(0) }))
    }

    /// Room for `len` bytes, if there is some.
    pub(super) fn take(&self, len: usize) -> Option<Held> {
        let mut held = self.none();
        held.grow(len).then_some(held)
    }

    /// The same, if all that is taken is half of the budget at most then.
    pub(super) fn take_in_half(&self, len: usize) -> Option<Held> {
        let mut held = self.none();
        held.grow_in_half(len).then_some(held)
    }

    /// Whether more than a quarter of it is used: then buffers should be released.
    pub(super) fn is_scarce(&self) -> bool {
        self.0.taken.load(Ordering::Relaxed) > self.0.limit / 4
    }

    fn none(&self) -> Held {
        Held { budget: self.clone(), len: 0 }
    }
}

/// A part of the budget, given back on drop.
pub(super) struct Held {
    budget: Budget,
    len: usize,
}

impl Held {
    /// Makes it `len` bytes, which are not fewer than before; false when there is no room.
    pub(super) fn grow(&mut self, len: usize) -> bool {
        self.grow_within(len, self.budget.0.limit)
    }

    /// The same, if all that is taken is half of the budget at most then.
    pub(super) fn grow_in_half(&mut self, len: usize) -> bool {
        self.grow_within(len, self.budget.0.limit / 2)
    }

    /// Makes it `len` bytes if it is more; the rest is given back.
    pub(super) fn shrink(&mut self, len: usize) {
        let less = self.len.saturating_sub(len);
        self.len -= less;
        self.budget.0.taken.fetch_sub(less, Ordering::Relaxed);
    }

    fn grow_within(&mut self, len: usize, limit: usize) -> bool {
        let taken = &self.budget.0.taken;
        let more = len.saturating_sub(self.len);
        if more == 0 {
            return true;
        }
        let room = |taken: usize| taken.checked_add(more).filter(|taken| *taken <= limit);
        let grown = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok();
        if grown {
            self.len += more;
        }
        grown
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.0.taken.fetch_sub(self.len, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_never_passes_the_limit_and_comes_back() {
        let budget = Budget::new(100);
        let mut first = budget.take(60).unwrap();
        assert!(budget.take(41).is_none());
        let second = budget.take(40).unwrap();
        assert!(!first.grow(61) && first.grow(60) && first.grow(10));
        drop(second);
        assert!(first.grow(100) && budget.take(1).is_none() && budget.take(0).is_some());
        assert!(!first.grow(usize::MAX));
        first.shrink(200);
        assert!(budget.take(1).is_none());
        first.shrink(30);
        assert!(budget.is_scarce() && budget.take(70).is_some() && budget.take(71).is_none());
        assert!(budget.take_in_half(21).is_none());
        assert!(!first.grow_in_half(51) && first.grow_in_half(50));
        first.shrink(25);
        assert!(!budget.is_scarce());
        drop(first);
        assert!(budget.take(100).is_some() && budget.take_in_half(51).is_none());
    }
}
