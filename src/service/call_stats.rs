//! What is remembered of the calls of a root, the store or an archive: how many there were, how
//! long they take on average, and the last outage. For the status only. A leaf.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::status::Failure;
use crate::timestamp::rfc3339;

/// The weight of a call in the average is one in this many.
const WEIGHT: u64 = 8;

/// The calls of one component.
#[derive(Default)]
pub(super) struct CallStats {
    calls: AtomicU64,
    failed: AtomicU64,
    /// The average in microseconds; 0 before the first call.
    average_us: AtomicU64,
    last_outage: Mutex<Option<Outage>>,
}

/// An outage that is over. Times are seconds since the Unix epoch.
struct Outage {
    detail: String,
    since: u64,
    until: u64,
}

impl CallStats {
    /// Notes a call that took `time`. Only successful calls count for the average: the time of a
    /// failure is often that of a time-out.
    pub(super) fn note(&self, time: Duration, is_ok: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if !is_ok {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        // Of two concurrent calls one may be lost, which changes the average little.
        let average = match self.average_us.load(Ordering::Relaxed) {
            0 => us,
            before => before - before / WEIGHT + us / WEIGHT,
        };
        self.average_us.store(average.max(1), Ordering::Relaxed);
    }

    /// Notes that an outage has ended.
    pub(super) fn outage_ended(&self, detail: String, since: u64, until: u64) {
        *self.last_outage.lock() = Some(Outage { detail, since, until });
    }

    /// The calls, and those that failed.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.calls.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// The average of recent calls in microseconds.
    pub(super) fn latency_us(&self) -> Option<u64> {
        Some(self.average_us.load(Ordering::Relaxed)).filter(|&us| us > 0)
    }

    /// The outage that lasts, or else the last one; and since when the component is in its present
    /// state, which began at `started` unless there was an outage.
    pub(super) fn outage(
        &self,
        now: Option<(String, u64)>,
        started: u64,
    ) -> (Option<Failure>, String) {
        if let Some((detail, since)) = now {
            let since = rfc3339(since);
            return (Some(Failure { detail, since: since.clone(), until: None }), since);
        }
        match &*self.last_outage.lock() {
            None => (None, rfc3339(started)),
            Some(Outage { detail, since, until }) => {
                let (detail, until) = (detail.clone(), rfc3339(*until));
                let since = rfc3339(*since);
                (Some(Failure { detail, since, until: Some(until.clone()) }), until)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_recent_calls_and_ignores_failures() {
        let stats = CallStats::default();
        assert_eq!(stats.latency_us(), None);
        stats.note(Duration::from_millis(8), true);
        stats.note(Duration::from_secs(5), false);
        assert_eq!((stats.latency_us(), stats.counts()), (Some(8_000), (2, 1)));
        for _ in 0..100 {
            stats.note(Duration::from_millis(1), true);
        }
        let average = stats.latency_us().unwrap();
        assert!((990..1_100).contains(&average), "{average}");
        stats.note(Duration::ZERO, true);
        assert!(stats.latency_us().is_some());
    }

    #[test]
    fn an_outage_is_shown_while_it_lasts_and_afterwards() {
        let stats = CallStats::default();
        let (failure, since) = stats.outage(None, 0);
        assert_eq!((failure, &*since), (None, "1970-01-01T00:00:00Z"));
        let (failure, since) = stats.outage(Some(("away".to_owned(), 60)), 0);
        assert_eq!((failure.unwrap().until, &*since), (None, "1970-01-01T00:01:00Z"));
        stats.outage_ended("away".to_owned(), 60, 120);
        let (failure, since) = stats.outage(None, 0);
        let failure = failure.unwrap();
        assert_eq!((&*failure.detail, &*failure.since), ("away", "1970-01-01T00:01:00Z"));
        assert_eq!((failure.until.as_deref(), &*since), (Some(&*since), "1970-01-01T00:02:00Z"));
    }
}
