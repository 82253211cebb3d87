//! A few threads that call a module, for async callers with deadlines. A call into a module can't
//! be cancelled, so a thread may hang in one for as long as it likes: no caller does, and no thread
//! more is made for it. It knows nothing of PKCS#11.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::root::Error;

/// Threads of a pool. A call takes milliseconds at most HSMs, and there is one for each KEK only.
const THREADS: usize = 4;

/// Calls that wait for a thread at most: the service makes fewer at once.
const QUEUE: usize = 64;

/// Threads with a `T` each.
pub(super) struct Pool<T> {
    shared: Arc<Shared<T>>,
    timeout: Duration,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
}

struct State<T> {
    queue: VecDeque<Job<T>>,
    calls: Calls,
    closed: bool,
}

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

impl<T: 'static> Pool<T> {
    /// Starts the threads; each makes its own `T`.
    ///
    /// # Errors
    /// When the operating system has no thread for it.
    pub(super) fn start(
        timeout: Duration,
        make: impl Fn() -> T + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let state = State {
            queue: VecDeque::new(),
            calls: Calls::new(THREADS, Instant::now()),
            closed: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new() });
        let pool = Self { shared, timeout };
        let make = Arc::new(make);
        for index in 0..THREADS {
            let (shared, make) = (Arc::clone(&pool.shared), Arc::clone(&make));
            std::thread::Builder::new()
                .name(format!("pkcs11-{index}"))
                .spawn(move || shared.work(index, &*make))
                .map_err(|error| format!("can't start a thread: {error}"))?;
        }
        Ok(pool)
    }

    /// Has a thread do `work`.
    ///
    /// # Errors
    /// What `work` says; [`Error::Away`] when there is no answer in time, or none is to be expected.
    pub(super) async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut T) -> Result<R, Error> + Send + 'static,
    ) -> Result<R, Error> {
        let (reply, answer) = oneshot::channel();
        let job: Job<T> = Box::new(move |state| {
            // Whoever asked may have given up while this waited.
            if !reply.is_closed() {
                _ = reply.send(work(state));
            }
        });
        self.submit(job).map_err(Error::Away)?;
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Away("a call of the module broke off".to_owned())),
            Err(_) => Err(Error::Away(format!("no answer in {}", seconds(self.timeout)))),
        }
    }

    fn submit(&self, job: Job<T>) -> Result<(), String> {
        let mut state = self.shared.lock();
        state.calls.admit(Instant::now(), self.timeout)?;
        if state.queue.len() >= QUEUE {
            return Err(format!("{QUEUE} calls wait for it already"));
        }
        state.queue.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }
}

impl<T> Drop for Pool<T> {
    /// Threads end after their current call; nobody waits for that.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, index: usize, make: &impl Fn() -> T) {
        let mut own = make();
        while let Some(job) = self.next(index) {
            // A panic in it is one call that failed, not a thread less.
            if catch_unwind(AssertUnwindSafe(|| job(&mut own))).is_err() {
                own = make();
            }
            self.lock().calls.returned(index, Instant::now());
        }
    }

    /// The next job, which has begun then; none when the pool is gone.
    fn next(&self, index: usize) -> Option<Job<T>> {
        let idle = |state: &mut State<T>| state.queue.is_empty() && !state.closed;
        let mut state =
            self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return None;
        }
        let job = state.queue.pop_front()?;
        state.calls.began(index, Instant::now());
        Some(job)
    }
}

/// Which calls are under way, and so whether the module hangs.
struct Calls {
    /// For each thread: since when it is in a call.
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

    /// Whether one more call may be made. When one has not returned for `timeout`, and none has
    /// returned since it began, the module hangs: then one call in each `timeout` tries it, as
    /// long as a thread is free, and the others fail at once.
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

/// Does `work` on a thread of its own; none when it takes longer than `timeout`, or broke off.
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
