//! The lines that wait for the writer.
//!
//! All lines that wait are one batch: the writer hands them to the operating system by one write,
//! and then the calls of the batch continue. To wake the writer costs more than to write a line.
//! So the first call of a thread that adds to a batch lets the other tasks of the thread run, and
//! then wakes the writer. Nothing waits longer than [`PATIENCE`], and no more than [`MAX_BYTES`]
//! wait. It knows no format and no sink; `queue/batch.rs` has the calls that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::metrics::Metrics;

mod batch;

pub(super) use batch::Batch;

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
        self.put(lines, count, self.refuses)
    }

    /// The same for a call that is answered also while no line is taken.
    pub(super) fn offer(&self, lines: &[u8], count: u64) -> Taken {
        self.put(lines, count, false)
    }

    fn put(&self, lines: &[u8], count: u64, refuses: bool) -> Taken {
        let mut state = self.state.lock();
        if state.down.is_some() || state.lines.len().saturating_add(lines.len()) > MAX_BYTES {
            self.miss(&mut state, count, refuses);
            return if refuses { Taken::Refused } else { Taken::Lost };
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
        batch.ended().await
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
        self.miss(&mut state, count, self.refuses);
        drop(state);
        batch.end(!self.refuses);
    }

    /// Gives up on a writer that has taken too long.
    pub(super) fn check(&self) {
        self.check_at(Instant::now());
    }

    fn check_at(&self, now: Instant) {
        let mut state = self.state.lock();
        let Some((since, batch)) = state.writing.clone() else { return };
        if state.down.is_none() && now.saturating_duration_since(since) >= PATIENCE {
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
        self.miss(state, count, self.refuses);
        state.lines = Vec::new();
        self.metrics.audit.set_queue(0);
        std::mem::take(&mut state.batch).end(!self.refuses);
    }

    fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
        self.metrics.audit.set_up(!is_down);
    }

    fn miss(&self, state: &mut State, count: u64, is_refused: bool) {
        if is_refused {
            state.missing.refused += count;
            self.metrics.audit.refused.inc_by(count);
        } else {
            state.missing.lost += count;
            self.metrics.audit.lost.inc_by(count);
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
        self.batch.ended().await
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

#[cfg(test)]
mod tests;
