//! Waits between attempts: they double, and are random in part, so that processes that failed
//! together do not come back together.
//!
//! A leaf: it computes durations and knows no clock.

use std::time::Duration;

use crate::random;

/// The waits after consecutive failures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    /// How often the wait doubles before it stays the same.
    doublings: u32,
    failures: u32,
}

impl Backoff {
    /// Waits of `first`, doubled after each further failure, at most `doublings` times.
    pub(crate) const fn new(first: Duration, doublings: u32) -> Self {
        Self { first, doublings, failures: 0 }
    }

    /// Counts a failure and returns how long to wait: up to a quarter longer than the doubled time.
    pub(crate) fn failed(&mut self) -> Duration {
        let wait = self.first * 2_u32.saturating_pow(self.failures.min(self.doublings));
        self.failures = self.failures.saturating_add(1);
        wait + (wait / 4).mul_f64(jitter())
    }

    /// An attempt succeeded: the next failure waits for the first time again.
    pub(crate) const fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// A random number from 0 to 1, in steps of 1/255. Without randomness it is 0.
pub(crate) fn jitter() -> f64 {
    let mut byte = [0];
    // Nothing else works without randomness, so the failure is reported elsewhere.
    let _ = random::fill(&mut byte);
    let [byte] = byte;
    f64::from(byte) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), 3);
        for doubled in [100, 200, 400, 800, 800, 800] {
            let doubled = Duration::from_millis(doubled);
            let wait = backoff.failed();
            assert!((doubled..=doubled * 5 / 4).contains(&wait), "{wait:?} for {doubled:?}");
        }
        backoff.succeeded();
        assert!(backoff.failed() <= Duration::from_millis(125));
    }
}
