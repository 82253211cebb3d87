//! The limits of streams, over all connections: how many there are, and what each holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::log_throttle::LogThrottle;
use crate::service::error::{Error, Kind};

use super::super::budget::Budget;
use super::super::paced::Streaming;

/// The memory of a stream: what is read ahead of it, one chunk, and what is not sent yet.
const MEMORY: usize = 256 << 10;
/// Lines per second about streams that failed.
const LINES_A_SECOND: u32 = 10;

/// The places of streams.
pub(in super::super) struct Limits {
    places: Arc<Semaphore>,
    pub(super) idle_timeout: Duration,
    /// For the log of streams that failed.
    pub(super) log: Arc<LogThrottle>,
}

impl Limits {
    pub(in super::super) fn new(max_streams: usize, idle_timeout: Duration) -> Self {
        let log = Arc::new(LogThrottle::new(LINES_A_SECOND, Duration::from_secs(1)));
        Self { places: Arc::new(Semaphore::new(max_streams)), idle_timeout, log }
    }

    /// Takes the place of a stream, and its part of the budget.
    pub(super) fn enter(&self, budget: &Budget) -> Result<Streaming, Error> {
        let overloaded = |detail| Error::new(Kind::Overloaded, detail);
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| overloaded("too many streams are under way"))?;
        let memory = budget.take(MEMORY);
        let memory = memory.ok_or_else(|| overloaded("there is no room for a stream now"))?;
        let held = Streaming::new(self.idle_timeout);
        held.hold((place, memory));
        Ok(held)
    }
}
