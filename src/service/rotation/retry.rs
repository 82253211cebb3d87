//! When a step of the rotator that failed may be tried again. A leaf.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::clock::Monotonic;

/// When a step that failed may be tried again.
pub(in crate::service) struct RetryAt {
    waits: Backoff,
    until: Monotonic,
}

impl Default for RetryAt {
    /// Now; after failures, 1 s later, doubling to 8 s.
    fn default() -> Self {
        Self { waits: Backoff::new(Duration::from_secs(1), 3), until: Monotonic::default() }
    }
}

impl RetryAt {
    pub(super) fn is_over(&self, now: Monotonic) -> bool {
        now >= self.until
    }

    pub(super) fn note<T, E>(&mut self, result: &Result<T, E>, now: Monotonic) {
        if result.is_ok() {
            *self = Self::default();
            return;
        }
        self.until = now + self.waits.failed();
    }
}
