//! The calls whose lines are written together, and how each of them waits.
//!
//! It knows no lines.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// The calls whose lines are written together.
pub(in crate::audit) struct Batch {
    /// No other batch of the process has it.
    number: u64,
    /// One of the following.
    state: AtomicU8,
    waiting: Mutex<Vec<Waker>>,
}

const WAITING: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

impl Default for Batch {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { number, state: AtomicU8::new(WAITING), waiting: Mutex::default() }
    }
}

impl Batch {
    /// Whether this thread has not asked before.
    pub(super) fn is_first_of_thread(&self) -> bool {
        thread_local! {
            static LAST: Cell<u64> = const { Cell::new(0) };
        }
        LAST.replace(self.number) != self.number
    }

    /// Waits until the calls continue; false if they fail.
    pub(super) async fn ended(&self) -> bool {
        Waiting { batch: self, place: None }.await
    }

    /// Lets the calls continue, or fail. Only the first call counts.
    pub(super) fn end(&self, is_done: bool) {
        if self.outcome().is_some() {
            return;
        }
        let mut waiting = self.waiting.lock();
        let end = if is_done { DONE } else { FAILED };
        _ = self.state.compare_exchange(WAITING, end, Ordering::AcqRel, Ordering::Acquire);
        let wakers = std::mem::take(&mut *waiting);
        drop(waiting);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn outcome(&self) -> Option<bool> {
        match self.state.load(Ordering::Acquire) {
            WAITING => None,
            end => Some(end == DONE),
        }
    }
}

/// A call that waits for its batch.
struct Waiting<'a> {
    batch: &'a Batch,
    /// Where its waker is.
    place: Option<usize>,
}

impl Future for Waiting<'_> {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        if let Some(outcome) = self.batch.outcome() {
            return Poll::Ready(outcome);
        }
        let mut waiting = self.batch.waiting.lock();
        // It may have ended meanwhile.
        if let Some(outcome) = self.batch.outcome() {
            return Poll::Ready(outcome);
        }
        match self.place.and_then(|place| waiting.get_mut(place)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                let place = waiting.len();
                waiting.push(context.waker().clone());
                drop(waiting);
                self.place = Some(place);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[tokio::test]
    async fn a_call_that_is_polled_again_is_woken_by_its_last_waker() {
        let batch = Batch::default();
        let mut waiting = Waiting { batch: &batch, place: None };
        let wakers = [Arc::new(Woken::default()), Arc::new(Woken::default())];
        for woken in &wakers {
            let waker = Waker::from(Arc::clone(woken));
            let polled = Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
        }
        assert_eq!(batch.waiting.lock().len(), 1);
        batch.end(true);
        assert_eq!(wakers.map(|it| it.0.load(Ordering::Relaxed)), [false, true]);
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
