//! When the rotator may try again after a failure, and the reserver after a conflict.

use std::time::Duration;

use crate::backoff::{Backoff, jitter};
use crate::clock::Monotonic;

/// The longest wait after a first conflict, and how often it doubles.
const CONFLICT: Duration = Duration::from_millis(4);
const DOUBLINGS: u32 = 7;

/// How long to wait after so many conflicts in a row: a random time, so that of many processes that
/// reserve uses at the same time, few do so at any moment.
pub(super) fn after_conflicts(conflicts: u32) -> Duration {
    let most = CONFLICT * 2_u32.pow(conflicts.saturating_sub(1).min(DOUBLINGS));
    most.mul_f64(jitter())
}

/// The time from which the next attempt is allowed.
pub(in crate::service) struct RetryAt {
    waits: Backoff,
    until: Monotonic,
}

impl Default for RetryAt {
    /// Immediately; after failures, 1 s later, doubling to 8 s.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_after_conflicts_is_random_and_bounded() {
        for conflicts in 1..100 {
            let waits: Vec<_> = (0..100).map(|_| after_conflicts(conflicts)).collect();
            let most = CONFLICT * 2_u32.pow((conflicts - 1).min(DOUBLINGS));
            assert!(waits.iter().all(|wait| *wait <= most), "{conflicts}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{conflicts}");
        }
    }
}
