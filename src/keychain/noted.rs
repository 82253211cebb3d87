//! Until when the use of a key is noted, so that a use costs one comparison.
//!
//! It knows no clock, and not what is noted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Monotonic;

/// The time until which further uses need no note.
#[derive(Default)]
pub(crate) struct NotedUntil(AtomicU64);

impl NotedUntil {
    /// Whether a use at `now` is noted already.
    #[inline]
    pub(crate) fn covers(&self, now: Monotonic) -> bool {
        now.as_nanos() < self.0.load(Ordering::Relaxed)
    }

    /// Uses before `until` are noted.
    pub(crate) fn set(&self, until: Monotonic) {
        self.0.store(until.as_nanos(), Ordering::Relaxed);
    }

    /// What is noted for `other` is noted for this one.
    pub(crate) fn set_like(&self, other: &Self) {
        self.0.store(other.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// The same for both ways to use a KEK.
#[derive(Default)]
pub(crate) struct Noted {
    pub(crate) encrypts: NotedUntil,
    pub(crate) decrypts: NotedUntil,
}
