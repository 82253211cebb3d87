//! A few threads that call a module, for async callers with deadlines. A call into a module can't
//! be cancelled, so it may block its thread indefinitely, but never a caller, and it is not
//! replaced by another thread. The pool knows nothing about PKCS#11.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::root::Error;

/// The number of threads of a pool. At most HSMs a call takes milliseconds, and each KEK needs one.
const THREADS: usize = 4;

/// The largest number of calls that wait for a thread. The service makes fewer concurrently.
const QUEUE: usize = 64;

/// How long a pool that ends waits for its threads.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Threads that own a `T` each.
pub(super) struct Pool<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    timeout: Duration,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
    ended: Condvar,
}

struct State<T> {
    queue: VecDeque<Job<T>>,
    calls: Calls,
    /// How many threads may still call.
    threads: usize,
    closed: bool,
}

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

impl<T: 'static> Pool<T> {
    /// Starts the threads; each creates its own `T`.
    ///
    /// # Errors
    /// When the operating system can't start a thread.
    pub(super) fn start(
        timeout: Duration,
        make: impl Fn() -> T + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let state = State {
            queue: VecDeque::new(),
            calls: Calls::new(THREADS, Instant::now()),
            threads: 0,
            closed: false,
        };
        let (wake, ended) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { state: Mutex::new(state), wake, ended });
        let mut pool = Self { shared, threads: Vec::with_capacity(THREADS), timeout };
        let make = Arc::new(make);
        for index in 0..THREADS {
            let (shared, make) = (Arc::clone(&pool.shared), Arc::clone(&make));
            let thread = std::thread::Builder::new()
                .name(format!("pkcs11-{index}"))
                .spawn(move || shared.work(index, &*make))
                .map_err(|error| format!("can't start a thread: {error}"))?;
            pool.threads.push(thread);
            pool.shared.state.lock().threads += 1;
        }
        Ok(pool)
    }

    /// Runs `work` on a thread.
    ///
    /// # Errors
    /// The error of `work`, or [`Error::Away`] if it does not finish in time or the module hangs.
    pub(super) async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut T) -> Result<R, Error> + Send + 'static,
    ) -> Result<R, Error> {
        let (reply, answer) = oneshot::channel();
        let job: Job<T> = Box::new(move |state| {
            // The caller may have given up while this waited.
            if !reply.is_closed() {
                _ = reply.send(work(state));
            }
        });
        self.submit(job).map_err(Error::Away)?;
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Away("a call of the module panicked".to_owned())),
            Err(_) => Err(Error::Away(format!("no answer in {}", seconds(self.timeout)))),
        }
    }

    fn submit(&self, job: Job<T>) -> Result<(), String> {
        let mut state = self.shared.state.lock();
        state.calls.admit(Instant::now(), self.timeout)?;
        if state.queue.len() >= QUEUE {
            return Err(format!("{QUEUE} calls are already waiting for it"));
        }
        state.queue.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }
}

impl<T> Pool<T> {
    /// Lets each thread end after its current call, and waits for them, for at most `patience`: a
    /// call that hangs may never return.
    fn end(&mut self, patience: Duration) {
        let Shared { state, wake, ended } = &*self.shared;
        let mut state = state.lock();
        state.closed = true;
        wake.notify_all();
        ended.wait_while_for(&mut state, |state| state.threads > 0, patience);
        if state.threads == 0 {
            drop(state);
            // Libraries clean up when a thread ends. A thread ends well, as `work` does not panic.
            self.threads.drain(..).for_each(|thread| _ = thread.join());
        }
    }
}

impl<T> Drop for Pool<T> {
    /// Waits for the threads, since the process may end next: libraries that are called meanwhile
    /// may crash.
    fn drop(&mut self) {
        self.end(LAST_CALLS);
    }
}

impl<T> Shared<T> {
    fn work(&self, index: usize, make: &impl Fn() -> T) {
        self.serve(index, make);
        self.state.lock().threads -= 1;
        self.ended.notify_all();
    }

    fn serve(&self, index: usize, make: &impl Fn() -> T) {
        let mut own = make();
        while let Some(job) = self.next(index) {
            // A panic fails one call and does not end the thread.
            if catch_unwind(AssertUnwindSafe(|| job(&mut own))).is_err() {
                own = make();
            }
            self.state.lock().calls.returned(index, Instant::now());
        }
    }

    /// The next job, which is marked as begun; `None` when the pool is gone.
    fn next(&self, index: usize) -> Option<Job<T>> {
        let idle = |state: &mut State<T>| state.queue.is_empty() && !state.closed;
        let mut state = self.state.lock();
        self.wake.wait_while(&mut state, idle);
        if state.closed {
            return None;
        }
        let job = state.queue.pop_front()?;
        state.calls.began(index, Instant::now());
        Some(job)
    }
}

/// The calls under way, which show whether the module hangs.
struct Calls {
    /// For each thread, when its current call began.
    since: Vec<Option<Instant>>,
    last_return: Instant,
    last_trial: Option<Instant>,
}

impl Calls {
    fn new(threads: usize, now: Instant) -> Self {
        Self { since: vec![None; threads], last_return: now, last_trial: None }
    }

    fn began(&mut self, index: usize, now: Instant) {
        if let Some(since) = self.since.get_mut(index) {
            *since = Some(now);
        }
    }

    fn returned(&mut self, index: usize, now: Instant) {
        if let Some(since) = self.since.get_mut(index) {
            *since = None;
        }
        self.last_return = now;
    }

    /// Whether one more call may be made. If a call has not returned for `timeout`, and none has
    /// returned since it began, the module hangs. Then one call per `timeout` tries it, as long as
    /// a thread is free, and the others fail immediately.
    fn admit(&mut self, now: Instant, timeout: Duration) -> Result<(), String> {
        let hangs = |since: &Instant| {
            now.saturating_duration_since(*since) >= timeout && self.last_return <= *since
        };
        let Some(since) = self.since.iter().flatten().copied().filter(hangs).min() else {
            return Ok(());
        };
        let tried = |trial| now.saturating_duration_since(trial) < timeout;
        if self.since.iter().all(Option::is_some) || self.last_trial.is_some_and(tried) {
            return Err(format!(
                "the module hangs: a call has not returned for {}",
                seconds(now.saturating_duration_since(since))
            ));
        }
        self.last_trial = Some(now);
        Ok(())
    }
}

/// Runs `work` on a dedicated thread; `None` if it takes longer than `timeout`, or panics.
pub(super) async fn apart<R: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let (reply, answer) = oneshot::channel();
    let work = move || _ = reply.send(work());
    std::thread::Builder::new().name("pkcs11".to_owned()).spawn(work).ok()?;
    tokio::time::timeout(timeout, answer).await.ok()?.ok()
}

/// A duration for a message.
fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests;
