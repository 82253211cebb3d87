//! The pool with calls that hang, wait and panic.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;

use super::*;

const TIMEOUT: Duration = Duration::from_millis(200);

/// A pool, and how many values its threads have made for themselves.
fn pool(timeout: Duration) -> (Arc<Pool<usize>>, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let pool = Pool::start(timeout, move || count.fetch_add(1, SeqCst)).unwrap();
    (Arc::new(pool), made)
}

fn away<R>(result: Result<R, Error>) -> String {
    match result {
        Err(Error::Away(detail)) => detail,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the call must fail"),
    }
}

/// Waits until `holds`.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Calls until a call succeeds.
async fn until_it_works(pool: &Pool<usize>) {
    until("a call that succeeds", async || pool.call(|_| Ok(())).await.is_ok()).await;
}

#[tokio::test]
async fn callers_of_a_module_that_hangs_get_away_and_it_works_again_when_it_returns() {
    let (pool, made) = pool(TIMEOUT);
    // One call after another is tried, until no thread is free. A thread that is late skips the
    // call of a caller that has given up, so only calls that have begun count.
    let hanging = Arc::new(AtomicUsize::new(0));
    let mut releases = Vec::new();
    while hanging.load(SeqCst) < THREADS {
        let (release, hang) = mpsc::channel::<()>();
        let begun = Arc::clone(&hanging);
        let work = move |_: &mut usize| {
            begun.fetch_add(1, SeqCst);
            Ok(_ = hang.recv())
        };
        match &*away(pool.call(work).await) {
            "no answer in 200 ms" => releases.push(release),
            refused => assert!(refused.starts_with("the module hangs"), "{refused}"),
        }
    }
    until("a module that hangs", async || {
        pool.shared.state.lock().calls.admit(Instant::now(), TIMEOUT).is_err()
    })
    .await;
    let waiting = pool.shared.state.lock().queue.len();
    for _ in 0..100 {
        let error = away(pool.call(|_| Ok(())).await);
        assert!(error.starts_with("the module hangs: a call has not returned for "), "{error}");
    }
    assert_eq!(made.load(SeqCst), THREADS, "no further thread is started");
    assert_eq!(pool.shared.state.lock().queue.len(), waiting, "refused calls do not wait");
    drop(releases);
    until_it_works(&pool).await;
}

#[test]
fn a_module_hangs_when_nothing_returns_for_as_long_as_a_caller_waits() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let timeout = Duration::from_secs(5);
    let mut calls = Calls::new(2, start);
    calls.began(0, at(1));
    assert!(calls.admit(at(5), timeout).is_ok(), "it may only be slow");
    assert!(calls.admit(at(6), timeout).is_ok(), "one call tries it");
    assert!(calls.admit(at(7), timeout).unwrap_err().ends_with("for 6 s"));
    assert!(calls.admit(at(11), timeout).is_ok(), "one more call tries it");
    calls.began(1, at(11));
    assert!(calls.admit(at(99), timeout).unwrap_err().ends_with("for 98 s"), "no thread is free");

    calls.returned(1, at(100));
    for _ in 0..3 {
        assert!(calls.admit(at(100), timeout).is_ok(), "only one session hangs");
    }
    calls.returned(0, at(101));
    assert!(calls.admit(at(200), timeout).is_ok());
}

#[tokio::test]
async fn the_number_of_waiting_calls_is_bounded_and_those_that_were_given_up_are_not_made() {
    let (pool, _) = pool(Duration::from_secs(60));
    let (began, has_begun) = mpsc::channel();
    let mut releases = Vec::new();
    let mut hanging = Vec::new();
    for _ in 0..THREADS {
        let (release, hang) = mpsc::channel::<()>();
        let (pool, began) = (Arc::clone(&pool), began.clone());
        let work = move |_: &mut usize| {
            began.send(()).unwrap();
            Ok(_ = hang.recv())
        };
        hanging.push(tokio::spawn(async move { pool.call(work).await }));
        releases.push(release);
        while has_begun.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
    }
    let ran = Arc::new(AtomicUsize::new(0));
    let waiting: Vec<_> = (0..QUEUE)
        .map(|_| {
            let (pool, ran) = (Arc::clone(&pool), Arc::clone(&ran));
            tokio::spawn(async move { pool.call(move |_| Ok(ran.fetch_add(1, SeqCst))).await })
        })
        .collect();
    while pool.shared.state.lock().queue.len() < QUEUE {
        tokio::task::yield_now().await;
    }
    assert_eq!(away(pool.call(|_| Ok(())).await), "64 calls are already waiting for it");
    for call in waiting {
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    drop(releases);
    until_it_works(&pool).await;
    for call in hanging {
        call.await.unwrap().unwrap();
    }
    assert_eq!(ran.load(SeqCst), 0);
}

#[tokio::test]
async fn a_panic_fails_one_call() {
    let (pool, made) = pool(Duration::from_secs(60));
    for _ in 0..2 * THREADS {
        let error = away(pool.call(|_| -> Result<(), _> { panic!("on purpose") }).await);
        assert_eq!(error, "a call of the module panicked");
    }
    pool.call(|_| Ok(())).await.unwrap();
    assert!(made.load(SeqCst) >= 2 * THREADS, "a value is not used again after a panic");
}

/// Counts the values of threads that are gone.
struct Own(Arc<AtomicUsize>);

impl Drop for Own {
    fn drop(&mut self) {
        // Long enough to see a pool that does not wait.
        std::thread::sleep(Duration::from_millis(50));
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test]
async fn the_end_waits_for_the_threads_but_for_one_that_hangs_only_so_long() {
    let gone = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&gone);
    let mut pool = Pool::start(TIMEOUT, move || Own(Arc::clone(&count))).unwrap();
    pool.end(Duration::from_secs(60));
    assert_eq!(gone.load(SeqCst), THREADS);

    let (mut pool, _) = self::pool(TIMEOUT);
    let pool = Arc::get_mut(&mut pool).unwrap();
    let (release, hang) = mpsc::channel::<()>();
    let (began, has_begun) = mpsc::channel();
    pool.submit(Box::new(move |_| {
        began.send(()).unwrap();
        _ = hang.recv();
    }))
    .unwrap();
    has_begun.recv().unwrap();
    pool.end(TIMEOUT);
    assert_ne!(pool.shared.state.lock().threads, 0);
    drop(release);
    pool.end(Duration::from_secs(60));
    assert_eq!(pool.shared.state.lock().threads, 0);
}
