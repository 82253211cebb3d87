//! A rate limit with a burst, in one atomic number: the generic cell rate algorithm (ITU-T I.371).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Monotonic;

/// Allows a burst of units, and then one per interval.
#[derive(Debug)]
pub(in crate::service) struct RateLimiter {
    /// The interval of one unit, and that of the whole burst, in nanoseconds.
    every: u64,
    burst: u64,
    /// When the limiter is full again, in nanoseconds of monotonic time.
    paid_at: AtomicU64,
}

impl RateLimiter {
    /// A full limiter.
    pub(in crate::service) fn new(burst: u32, every: Duration) -> Self {
        let every = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX).max(1);
        let burst = every.saturating_mul(u64::from(burst));
        Self { every, burst, paid_at: AtomicU64::new(0) }
    }

    /// Takes one unit; returns false if none is left.
    pub(in crate::service) fn take(&self, now: Monotonic) -> bool {
        let now = now.as_nanos();
        let paid = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            let paid_at = paid_at.max(now).saturating_add(self.every);
            (paid_at - now <= self.burst).then_some(paid_at)
        });
        paid.is_ok()
    }

    /// Returns one unit that was taken.
    pub(in crate::service) fn give_back(&self) {
        let _ = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            Some(paid_at.saturating_sub(self.every))
        });
    }

    /// The interval after which one more unit is available.
    pub(in crate::service) fn every(&self) -> Duration {
        Duration::from_nanos(self.every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_one_per_interval() {
        let limiter = RateLimiter::new(100, Duration::from_secs(1));
        let take = |secs: u64| {
            let now = Monotonic::default() + Duration::from_secs(secs);
            (0..500).filter(|_| limiter.take(now)).count()
        };
        assert_eq!([5, 5, 6, 6, 16].map(take), [100, 0, 1, 0, 10]);
        assert_eq!(take(1_000_000), 100, "no more than the burst accumulate");
        limiter.give_back();
        limiter.give_back();
        assert_eq!(take(1_000_000), 2);
    }
}
