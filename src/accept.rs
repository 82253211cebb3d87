//! The next connection of a listener, within a bound on open connections.
//!
//! A leaf: it does not know what a listener is, nor what happens on a connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Pause after a failed accept. The usual cause, no file descriptors left, does not pass faster.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits for a free slot, then accepts a connection. The slot is taken until the permit is dropped.
///
/// An accept that fails is logged and retried. Dropping the future loses no connection.
pub(crate) async fn next<S, A, F>(
    slots: &Arc<Semaphore>,
    accept: impl Fn() -> F,
) -> (Option<OwnedSemaphorePermit>, S)
where
    F: Future<Output = io::Result<(S, A)>>,
{
    // Fails only for a semaphore that was closed, and nobody closes this one.
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    loop {
        match accept().await {
            Ok((stream, _)) => return (slot, stream),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failed_accept_is_retried_after_a_pause() {
        let (slots, calls) = (Arc::new(Semaphore::new(1)), AtomicUsize::new(0));
        let accept = async || match calls.fetch_add(1, Ordering::Relaxed) {
            0..3 => Err(io::Error::other("no file descriptors")),
            call => Ok((call, ())),
        };
        let began = Instant::now();
        let (_slot, stream) = next(&slots, accept).await;
        assert_eq!((stream, began.elapsed()), (3, 3 * PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_accepted_without_a_free_slot() {
        let (slots, calls) = (Arc::new(Semaphore::new(1)), AtomicUsize::new(0));
        let accept = async || Ok((calls.fetch_add(1, Ordering::Relaxed), ()));
        let (slot, first) = next(&slots, accept).await;
        assert!(timeout(Duration::from_secs(1), next(&slots, accept)).await.is_err());
        assert_eq!((first, calls.load(Ordering::Relaxed)), (0, 1));
        drop(slot);
        assert_eq!(next(&slots, accept).await.1, 1);
    }
}
