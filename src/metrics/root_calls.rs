//! What operations on one chain spared the roots: the one place that says what an avoided call is.
//!
//! Each call of a root for a chain is a debt of that chain. Each operation that succeeds pays for
//! one call, or has avoided one. So no figure ever falls, and the total is the sum over the chains.

use std::sync::atomic::{AtomicU64, Ordering};

/// The calls of roots for one chain.
#[derive(Debug, Default)]
pub(super) struct RootCalls {
    made: AtomicU64,
    avoided: AtomicU64,
    /// Calls that were made and that no operation has paid for yet.
    debt: AtomicU64,
}

impl RootCalls {
    /// A root was called.
    pub(super) fn owe(&self) {
        self.debt.fetch_add(1, Ordering::Relaxed);
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    /// `count` operations succeeded. Returns how many calls they avoided.
    #[inline]
    pub(super) fn pay(&self, count: u64) -> u64 {
        let mut paid = 0;
        if self.debt.load(Ordering::Relaxed) > 0 {
            let rest = |debt: u64| Some(debt.saturating_sub(count));
            let debt = self.debt.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
            paid = debt.unwrap_or_default().min(count);
        }
        let avoided = count - paid;
        self.avoided.fetch_add(avoided, Ordering::Relaxed);
        avoided
    }

    /// The calls that were made, and those that were avoided.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.made.load(Ordering::Relaxed), self.avoided.load(Ordering::Relaxed))
    }
}
