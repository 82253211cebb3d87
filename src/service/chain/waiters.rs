//! The requests that wait for uses of a chain, and the error that they get. It knows no store and no
//! root.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Semaphore;

use crate::service::error::Error;

/// The waiting requests of one chain.
pub(super) struct Waiters {
    /// A fair queue. A permit allows one attempt to take a use.
    turns: Semaphore,
    waiting: AtomicU64,
    /// Why no uses can be reserved, if that is known.
    last_error: ArcSwapOption<Error>,
    /// Number of completed reservation attempts.
    rounds: AtomicU64,
}

impl Default for Waiters {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(0),
            waiting: AtomicU64::new(0),
            last_error: ArcSwapOption::empty(),
            rounds: AtomicU64::new(0),
        }
    }
}

impl Waiters {
    /// Adds a request to the queue.
    ///
    /// # Errors
    /// When `most` requests wait already.
    pub(super) fn enter(&self, most: usize) -> Result<Waiter<'_>, Error> {
        let waiter = Waiter(self);
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        if before >= u64::try_from(most).unwrap_or(u64::MAX) {
            return Err(Error::exhausted("too many requests wait for uses of the KEK"));
        }
        Ok(waiter)
    }

    pub(super) fn last_error(&self) -> Option<Error> {
        self.last_error.load().as_deref().cloned()
    }

    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Acquire)
    }

    pub(super) fn set_last_error(&self, error: Option<Error>) {
        self.last_error.store(error.map(Arc::new));
        self.rounds.fetch_add(1, Ordering::Release);
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn wake(&self, uses: u64) {
        let waiting = self.waiting();
        let wanted = if self.last_error().is_some() { waiting } else { uses.min(waiting) };
        let given = u64::try_from(self.turns.available_permits()).unwrap_or(u64::MAX);
        let more = usize::try_from(wanted.saturating_sub(given)).unwrap_or(0);
        self.turns.add_permits(more);
    }
}

/// A waiting request. Dropping it removes it from the queue.
pub(super) struct Waiter<'a>(&'a Waiters);

impl Waiter<'_> {
    /// Waits for a permit; returns false if `patience` ends first.
    pub(super) async fn turn(&self, patience: Duration) -> bool {
        let Ok(Ok(turn)) = tokio::time::timeout(patience, self.0.turns.acquire()).await else {
            return false;
        };
        turn.forget();
        true
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
