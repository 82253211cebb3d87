//! The turns of those who make a status page: what a flood of requests costs is bounded.
//!
//! One page is made at a time, and all of them together take at most a quarter of one processor
//! after the first moments. It knows nothing of what a page shows.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::service::error::{Error, Kind};

/// Requests that wait for their turn. Further ones are refused: each takes one of the places for
/// waiting calls, which calls on data need.
const MOST_WAITING: usize = 64;
/// A page that took a millisecond to make uses up four.
const FACTOR: u32 = 4;
/// How far pages may be ahead of that: an operator who looks several times does not wait.
const AHEAD: Duration = Duration::from_secs(2);
/// The longest time that counts for one page: a process that was stopped worked for less.
const LONGEST: Duration = Duration::from_millis(250);

/// The turns of all listeners.
pub(in crate::http) struct Turns {
    /// When the time of all pages until now will be used up.
    used_until: Mutex<Instant>,
    waiting: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self { used_until: Mutex::new(Instant::now()), waiting: Semaphore::new(MOST_WAITING) }
    }
}

/// The turn of one page, from before it is made until it is made.
pub(super) struct Turn<'a> {
    used_until: MutexGuard<'a, Instant>,
    began: Instant,
}

impl Turns {
    /// Waits for a turn. It must not be held while anything else is waited for.
    pub(super) async fn take(&self) -> Result<Turn<'_>, Error> {
        let waiting = self.waiting.try_acquire().map_err(|_| {
            Error::new(Kind::Overloaded, "too many requests for the status are under way")
        })?;
        let used_until = self.used_until.lock().await;
        if let Some(earliest) = used_until.checked_sub(AHEAD) {
            sleep_until(earliest).await;
        }
        drop(waiting);
        Ok(Turn { used_until, began: Instant::now() })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let took = self.began.elapsed().min(LONGEST);
        *self.used_until = self.began.max(*self.used_until) + took * FACTOR;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::advance;

    use super::*;

    /// Makes a page that takes `millis`, and returns how long it waited for its turn.
    async fn make(turns: &Turns, millis: u64) -> Duration {
        let asked = Instant::now();
        let turn = turns.take().await.unwrap();
        let waited = asked.elapsed();
        advance(Duration::from_millis(millis)).await;
        drop(turn);
        waited
    }

    #[tokio::test(start_paused = true)]
    async fn pages_take_a_quarter_of_the_time_and_the_first_ones_do_not_wait() {
        let turns = Turns::default();
        for _ in 0..100 {
            assert_eq!(make(&turns, 5).await, Duration::ZERO);
        }
        let began = Instant::now();
        for _ in 0..1_000 {
            make(&turns, 5).await;
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(18), "{took:?} for 5 s of work");
        // Someone who looks now and then does not wait.
        advance(Duration::from_secs(10)).await;
        assert_eq!(make(&turns, 5).await, Duration::ZERO);
        // The time of a process that was stopped does not count.
        make(&turns, 3_600_000).await;
        assert!(make(&turns, 5).await <= LONGEST * FACTOR);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_when_many_wait_is_refused_and_waiting_ends() {
        let turns = Arc::new(Turns::default());
        let turn = turns.take().await.unwrap();
        let waiting: Vec<_> = (0..MOST_WAITING)
            .map(|_| {
                let turns = Arc::clone(&turns);
                tokio::spawn(async move { make(&turns, 1).await })
            })
            .collect();
        while turns.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = turns.take().await.err().unwrap();
        assert_eq!(refused.kind(), Kind::Overloaded);
        drop(turn);
        for one in waiting {
            one.await.unwrap();
        }
        assert_eq!(make(&turns, 1).await, Duration::ZERO);
    }
}
