//! The lines that wait for the writer, and the calls that wait for their lines.
//!
//! All lines that wait are one batch: the writer hands them to the operating system by one write,
//! and then the calls of the batch continue. Nothing waits longer than [`PATIENCE`], and no more
//! than [`MAX_BYTES`] wait. It knows no format and no sink.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::metrics::Metrics;
use parking_lot::{Condvar, Mutex};

/// How long a call waits for its line: longer than a busy disk takes, and shorter than clients
/// wait.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The bytes of lines that wait at most, twice: for the writer, and in its hands.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// A buffer that grew beyond this is not kept.
const KEPT: usize = 1 << 20;

/// The lines that wait.
pub(super) struct Queue {
    /// Whether calls fail if their lines can't be written.
    refuses: bool,
    state: Mutex<State>,
    ready: Condvar,
    /// Whether no line is taken: what `State::down` says, without the lock.
    is_down: AtomicBool,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    count: u64,
    batch: Arc<Batch>,
    /// The writer waits for lines.
    is_idle: bool,
    /// Why no line is taken.
    down: Option<String>,
    /// What the writer has in its hands, and since when.
    writing: Option<(Instant, Arc<Batch>)>,
    missing: Missing,
    orders: Orders,
}

/// Lines that were not written since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Their calls succeeded.
    pub(super) lost: u64,
    /// Their calls were refused.
    pub(super) refused: u64,
}

/// What the writer is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// Open the file again.
    pub(super) reopen: bool,
    /// Write what is left, and end.
    pub(super) stop: bool,
}

/// What the writer takes.
pub(super) struct Work {
    /// Lines without their beginnings, each with a newline.
    pub(super) lines: Vec<u8>,
    pub(super) count: u64,
    pub(super) batch: Arc<Batch>,
    pub(super) orders: Orders,
}

/// What became of lines.
pub(super) enum Taken {
    /// They wait for the writer.
    Waiting(Written),
    /// They are lost, and the call goes through.
    Lost,
    /// The call must fail.
    Refused,
}

impl Queue {
    pub(super) fn new(refuses: bool, metrics: Arc<Metrics>) -> Self {
        metrics.audit.set_queue(0);
        metrics.audit.set_up(true);
        let (state, ready) = (Mutex::default(), Condvar::new());
        Self { refuses, state, ready, is_down: AtomicBool::new(false), metrics }
    }

    /// Whether calls must fail now, since their lines could not be written.
    pub(super) fn is_closed(&self) -> bool {
        self.refuses && self.is_down.load(Ordering::Relaxed)
    }

    /// Whether calls fail if their lines can't be written.
    pub(super) fn refuses(&self) -> bool {
        self.refuses
    }

    /// Why no line is taken.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state.lock().down.clone()
    }

    /// Takes `count` lines, each with a newline and without its beginning.
    pub(super) fn submit(&self, lines: &[u8], count: u64) -> Taken {
        let mut state = self.state.lock();
        if state.down.is_some() || state.lines.len().saturating_add(lines.len()) > MAX_BYTES {
            self.miss(&mut state, count);
            return if self.refuses { Taken::Refused } else { Taken::Lost };
        }
        state.lines.extend_from_slice(lines);
        state.count += count;
        let batch = Arc::clone(&state.batch);
        let wakes = std::mem::take(&mut state.is_idle);
        drop(state);
        if wakes {
            self.ready.notify_one();
        }
        Taken::Waiting(Written(batch))
    }

    /// Asks the writer for something.
    pub(super) fn order(&self, orders: Orders) {
        let mut state = self.state.lock();
        state.orders.reopen |= orders.reopen;
        state.orders.stop |= orders.stop;
        drop(state);
        self.ready.notify_one();
    }

    /// What there is to do, at the latest after `wait`. `spare` is a buffer to use again.
    pub(super) fn take(&self, mut spare: Vec<u8>, wait: Duration) -> Work {
        spare.clear();
        if spare.capacity() > KEPT {
            spare = Vec::new();
        }
        let mut state = self.state.lock();
        if state.lines.is_empty() && state.orders == Orders::default() {
            state.is_idle = true;
            _ = self.ready.wait_for(&mut state, wait);
            state.is_idle = false;
        }
        let lines = std::mem::replace(&mut state.lines, spare);
        let (count, batch) = (std::mem::take(&mut state.count), std::mem::take(&mut state.batch));
        state.writing = Some((Instant::now(), Arc::clone(&batch)));
        let orders = state.orders;
        state.orders.reopen = false;
        self.metrics.audit.set_queue(lines.len());
        Work { lines, count, batch, orders }
    }

    /// The operating system has `count` lines of the batch.
    pub(super) fn wrote(&self, count: u64) {
        self.metrics.audit.written.inc_by(count);
    }

    /// All lines of the batch are written: its calls continue.
    pub(super) fn release(&self, batch: &Batch) {
        batch.end(true);
    }

    /// The writer has nothing in its hands any more. If it was given up, it works again. Lines that
    /// are missing must be reported.
    pub(super) fn done(&self, batch: &Batch) -> Option<Missing> {
        batch.end(true);
        let mut state = self.state.lock();
        state.writing = None;
        self.metrics.audit.set_queue(state.lines.len());
        if state.down.take().is_some() {
            self.set_down(false);
            tracing::warn!("the audit log takes lines again");
        }
        let missing = std::mem::take(&mut state.missing);
        (missing != Missing::default()).then_some(missing)
    }

    /// The writer has nothing in its hands, and nothing is known to work again.
    pub(super) fn rest(&self) {
        self.state.lock().writing = None;
    }

    /// The lines of a report were not written either.
    pub(super) fn still_missing(&self, missing: Missing) {
        let mut state = self.state.lock();
        state.missing.lost += missing.lost;
        state.missing.refused += missing.refused;
    }

    /// `count` lines of the batch could not be written.
    pub(super) fn fail(&self, batch: &Batch, count: u64, why: String) {
        let mut state = self.state.lock();
        state.writing = None;
        self.give_up(&mut state, why);
        self.miss(&mut state, count);
        drop(state);
        batch.end(!self.refuses);
    }

    /// Gives up on a writer that has taken too long.
    pub(super) fn check(&self) {
        let mut state = self.state.lock();
        let Some((since, batch)) = state.writing.clone() else { return };
        if state.down.is_none() && since.elapsed() >= PATIENCE {
            let why = format!("no line was taken for {} seconds", PATIENCE.as_secs());
            self.give_up(&mut state, why);
            drop(state);
            batch.end(!self.refuses);
        }
    }

    /// No line is taken from now on, and those that wait are dropped.
    fn give_up(&self, state: &mut State, why: String) {
        state.down = Some(why);
        self.set_down(true);
        let count = std::mem::take(&mut state.count);
        self.miss(state, count);
        state.lines = Vec::new();
        self.metrics.audit.set_queue(0);
        std::mem::take(&mut state.batch).end(!self.refuses);
    }

    fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
        self.metrics.audit.set_up(!is_down);
    }

    fn miss(&self, state: &mut State, count: u64) {
        if self.refuses {
            state.missing.refused += count;
            self.metrics.audit.refused.inc_by(count);
        } else {
            state.missing.lost += count;
            self.metrics.audit.lost.inc_by(count);
        }
    }
}

/// The calls whose lines are written together.
#[derive(Default)]
pub(super) struct Batch {
    /// One of the following.
    state: AtomicU8,
    waiting: Mutex<Vec<Waker>>,
}

const WAITING: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

impl Batch {
    /// Lets the calls continue, or fail. Only the first call counts.
    fn end(&self, is_done: bool) {
        let mut waiting = self.waiting.lock();
        let end = if is_done { DONE } else { FAILED };
        _ = self.state.compare_exchange(WAITING, end, Ordering::AcqRel, Ordering::Acquire);
        let wakers = std::mem::take(&mut *waiting);
        drop(waiting);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn outcome(&self) -> Option<bool> {
        match self.state.load(Ordering::Acquire) {
            WAITING => None,
            end => Some(end == DONE),
        }
    }
}

/// Waits until lines are written; false if the call must fail.
pub(super) struct Written(Arc<Batch>);

impl Future for Written {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        if let Some(outcome) = self.0.outcome() {
            return Poll::Ready(outcome);
        }
        let mut waiting = self.0.waiting.lock();
        // It may have ended meanwhile.
        if let Some(outcome) = self.0.outcome() {
            return Poll::Ready(outcome);
        }
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    fn queue(refuses: bool) -> Queue {
        Queue::new(refuses, Metrics::new(&Registry::new()).unwrap())
    }

    fn waits(taken: Taken) -> Written {
        match taken {
            Taken::Waiting(written) => written,
            Taken::Lost | Taken::Refused => panic!("it is not taken"),
        }
    }

    fn take(queue: &Queue) -> Work {
        queue.take(Vec::new(), Duration::ZERO)
    }

    #[tokio::test]
    async fn all_lines_that_wait_are_one_batch() {
        let queue = queue(true);
        let (one, two) = (waits(queue.submit(b"a\n", 1)), waits(queue.submit(b"b\nc\n", 2)));
        let work = take(&queue);
        assert_eq!((&*work.lines, work.count), (&b"a\nb\nc\n"[..], 3));
        let next = waits(queue.submit(b"d\n", 1));
        assert_eq!(queue.done(&work.batch), None);
        assert!(one.await && two.await);
        assert_eq!(next.0.outcome(), None);
        assert_eq!(&*take(&queue).lines, b"d\n");
    }

    #[tokio::test]
    async fn a_write_that_fails_ends_the_calls_and_the_next_success_reports_what_is_missing() {
        for refuses in [true, false] {
            let queue = queue(refuses);
            let call = waits(queue.submit(b"a\n", 1));
            let work = take(&queue);
            let behind = waits(queue.submit(b"b\n", 1));
            queue.fail(&work.batch, 1, "no space".to_owned());
            assert_eq!((call.await, behind.await), (!refuses, !refuses));
            assert_eq!(queue.is_closed(), refuses);
            match queue.submit(b"c\n", 1) {
                Taken::Refused => assert!(refuses),
                Taken::Lost => assert!(!refuses),
                Taken::Waiting(_) => panic!("the log is down"),
            }
            let work = take(&queue);
            assert!(work.lines.is_empty());
            let missing = queue.done(&work.batch).unwrap();
            let expected = if refuses { (0, 3) } else { (3, 0) };
            assert_eq!((missing.lost, missing.refused), expected);
            assert!(!queue.is_closed() && queue.trouble().is_none());
        }
    }

    #[tokio::test]
    async fn a_writer_that_hangs_is_given_up_and_works_again_when_it_returns() {
        let queue = queue(true);
        let call = waits(queue.submit(b"a\n", 1));
        let work = take(&queue);
        let behind = waits(queue.submit(b"b\n", 1));
        queue.check();
        assert!(!queue.is_closed(), "it had no time yet");
        let long_ago = Instant::now().checked_sub(PATIENCE).unwrap();
        queue.state.lock().writing.as_mut().unwrap().0 = long_ago;
        queue.check();
        assert!(queue.is_closed());
        assert_eq!((call.await, behind.await), (false, false));
        // The line that was in its hands is written, that of the call behind is not.
        let missing = queue.done(&work.batch).unwrap();
        assert_eq!(missing, Missing { lost: 0, refused: 1 });
        assert!(!queue.is_closed());
    }

    #[test]
    fn no_more_than_the_maximum_waits() {
        let queue = queue(false);
        let line = vec![b'x'; 1 << 20];
        for _ in 0..64 {
            waits(queue.submit(&line, 1));
        }
        assert!(matches!(queue.submit(b"x", 1), Taken::Lost));
        assert_eq!(take(&queue).lines.len(), MAX_BYTES);
        waits(queue.submit(b"x", 1));
    }
}
