//! Lines of the log about clients that were refused: one that connects in a loop must not fill the
//! disk.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// At most one line is written in this time.
const EVERY: Duration = Duration::from_secs(10);

/// Counts events, and says which ones to log.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// Counts an event. If a line is due: how many events it stands for.
    pub(super) fn count(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, count) = &mut *state;
        *count += 1;
        if last.is_some_and(|last| last.elapsed() < EVERY) {
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_in_ten_seconds_stands_for_all_events_since_the_last_one() {
        let throttle = Throttle::default();
        assert_eq!(throttle.count(), Some(1));
        for _ in 0..1_000 {
            assert_eq!(throttle.count(), None);
        }
        tokio::time::advance(EVERY).await;
        assert_eq!(throttle.count(), Some(1_001));
        assert_eq!(throttle.count(), None);
    }
}
