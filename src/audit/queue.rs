//! The lines that wait for the writer, and the calls that wait for their lines.
//!
//! All lines that wait are one batch: the writer hands them to the operating system by one write,
//! and then the calls of the batch continue. To wake the writer costs more than to write a line.
//! So the first call of a thread that adds to a batch lets the other tasks of the thread run, and
//! then wakes the writer. Nothing waits longer than [`PATIENCE`], and no more than [`MAX_BYTES`]
//! wait. It knows no format and no sink.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::metrics::Metrics;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// How long a call waits for its line: longer than a busy disk takes, and shorter than clients
/// wait.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The bytes of lines that wait at most, twice: for the writer, and in its hands.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// A buffer that grew beyond this is not kept.
const KEPT: usize = 1 << 20;

/// So many bytes of lines are written without waiting for others.
const PLENTY: usize = 16 << 10;

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
    /// The writer should take the lines now.
    is_due: bool,
    /// The writer waits until it should.
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
        if state.lines.len() >= PLENTY {
            self.wake(state);
            return Taken::Waiting(Written { batch, leads: false });
        }
        let leads = !state.is_due && batch.is_first_of_thread();
        Taken::Waiting(Written { batch, leads })
    }

    /// The same, and the writer takes them now.
    pub(super) fn submit_now(&self, lines: &[u8], count: u64) -> Taken {
        let taken = self.submit(lines, count);
        if let Taken::Waiting(written) = &taken {
            self.wake_for(&written.batch);
        }
        taken
    }

    /// Waits until lines are written; false if the call must fail.
    pub(super) async fn written(&self, written: Written) -> bool {
        let Written { batch, leads } = written;
        if leads {
            // It wakes the writer also if the call is given up: others wait for the same write.
            let leader = Leader { queue: self, batch: &batch };
            tokio::task::yield_now().await;
            drop(leader);
        }
        Waiting { batch: &batch, place: None }.await
    }

    /// The writer takes the lines of `batch` now, unless it has.
    fn wake_for(&self, batch: &Arc<Batch>) {
        let state = self.state.lock();
        if Arc::ptr_eq(&state.batch, batch) {
            self.wake(state);
        }
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        state.is_due = true;
        let wakes = std::mem::take(&mut state.is_idle);
        drop(state);
        if wakes {
            self.ready.notify_one();
        }
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
        if !state.is_due && state.orders == Orders::default() {
            state.is_idle = true;
            _ = self.ready.wait_for(&mut state, wait);
            state.is_idle = false;
        }
        state.is_due = false;
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
pub(super) struct Batch {
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
    fn is_first_of_thread(&self) -> bool {
        thread_local! {
            static LAST: Cell<u64> = const { Cell::new(0) };
        }
        LAST.replace(self.number) != self.number
    }

    /// Lets the calls continue, or fail. Only the first call counts.
    fn end(&self, is_done: bool) {
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

    fn outcome(&self) -> Option<bool> {
        match self.state.load(Ordering::Acquire) {
            WAITING => None,
            end => Some(end == DONE),
        }
    }
}

/// Lines that wait for the writer.
pub(super) struct Written {
    batch: Arc<Batch>,
    /// Whether the call wakes the writer, after the other tasks of its thread.
    leads: bool,
}

impl Written {
    /// Waits until lines are written for which the writer was woken; false if the call must fail.
    pub(super) async fn end(self) -> bool {
        Waiting { batch: &self.batch, place: None }.await
    }
}

/// Wakes the writer when it is dropped.
struct Leader<'a> {
    queue: &'a Queue,
    batch: &'a Arc<Batch>,
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.queue.wake_for(self.batch);
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
        assert!(queue.written(one).await && queue.written(two).await);
        assert_eq!(next.batch.outcome(), None);
        assert_eq!(&*take(&queue).lines, b"d\n");
    }

    /// Whether the writer would take lines now.
    fn is_due(queue: &Queue) -> bool {
        queue.state.lock().is_due
    }

    #[tokio::test]
    async fn the_writer_is_woken_after_the_other_tasks_of_the_thread() {
        let queue = Arc::new(queue(true));
        let call = |line: &'static [u8]| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                let written = waits(queue.submit(line, 1));
                queue.written(written).await
            })
        };
        let (one, two) = (call(b"a\n"), call(b"b\n"));
        let deadline = Instant::now() + PATIENCE;
        while !is_due(&queue) && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        let work = take(&queue);
        assert_eq!(&*work.lines, b"a\nb\n", "both lines are in one batch");
        assert!(!is_due(&queue));
        queue.done(&work.batch);
        assert!(one.await.unwrap() && two.await.unwrap());
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_wakes_the_writer_all_the_same() {
        let queue = queue(true);
        let call = queue.written(waits(queue.submit(b"a\n", 1)));
        let behind = waits(queue.submit(b"b\n", 1));
        assert!(!behind.leads, "one call of a thread wakes the writer");
        let mut call = Box::pin(call);
        let polled = std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context)));
        assert!(polled.await.is_pending() && !is_due(&queue));
        drop(call);
        assert!(is_due(&queue));
    }

    #[test]
    fn many_lines_are_written_without_waiting_for_others() {
        let queue = queue(true);
        waits(queue.submit(&vec![b'x'; PLENTY], 1));
        assert!(is_due(&queue));
        take(&queue);
        // A thread that has led a batch that was taken leads the next one.
        assert!(waits(queue.submit(b"a\n", 1)).leads);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| waits(queue.submit(b"b\n", 1)).leads);
            assert!(other.join().unwrap(), "one call of each thread: a thread may hang");
        });
    }

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

    #[tokio::test]
    async fn a_write_that_fails_ends_the_calls_and_the_next_success_reports_what_is_missing() {
        for refuses in [true, false] {
            let queue = queue(refuses);
            let call = waits(queue.submit(b"a\n", 1));
            let work = take(&queue);
            let behind = waits(queue.submit(b"b\n", 1));
            queue.fail(&work.batch, 1, "no space".to_owned());
            assert_eq!((call.end().await, behind.end().await), (!refuses, !refuses));
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
        assert_eq!((call.end().await, behind.end().await), (false, false));
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
