//! A limit on log lines that others cause: a client that fails in a loop must not fill the disk.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Counts events, and permits a number of log lines per interval.
#[derive(Debug)]
pub(crate) struct LogThrottle {
    lines: u32,
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the current interval began.
    since: Option<Instant>,
    /// Lines permitted in it.
    permitted: u32,
    /// Events since the last permitted line.
    events: u64,
}

impl LogThrottle {
    /// A throttle that permits `lines` log lines per `interval`.
    pub(crate) fn new(lines: u32, interval: Duration) -> Self {
        Self { lines, interval, state: Mutex::default() }
    }

    /// Counts an event. If it may be logged: the number of events since the last one that was,
    /// including this one.
    pub(crate) fn admit(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.events = state.events.saturating_add(1);
        if state.since.is_none_or(|since| now.duration_since(since) >= self.interval) {
            (state.since, state.permitted) = (Some(now), 0);
        }
        if state.permitted >= self.lines {
            return None;
        }
        state.permitted += 1;
        Some(std::mem::take(&mut state.events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_counts_all_events_since_the_last_one() {
        let interval = Duration::from_secs(10);
        let throttle = LogThrottle::new(1, interval);
        assert_eq!(throttle.admit(), Some(1));
        for _ in 0..1_000 {
            assert_eq!(throttle.admit(), None);
        }
        tokio::time::advance(interval).await;
        assert_eq!(throttle.admit(), Some(1_001));
        assert_eq!(throttle.admit(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn each_interval_permits_its_lines() {
        let throttle = LogThrottle::new(2, Duration::from_secs(1));
        for _ in 0..2 {
            let admitted = [throttle.admit(), throttle.admit(), throttle.admit()];
            assert!(matches!(admitted, [Some(_), Some(1), None]), "{admitted:?}");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
