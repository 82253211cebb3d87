//! The pool with calls that hang, wait and panic.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;

use super::*;

const TIMEOUT: Duration = Duration::from_millis(200);

/// A pool, and how many of what its threads own were made.
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
        Ok(_) => panic!("it must not answer"),
    }
}

/// Asks until there is an answer.
async fn until_it_works(pool: &Pool<usize>) {
    let start = Instant::now();
    while pool.call(|_| Ok(())).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never works again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn callers_of_a_module_that_hangs_get_away_and_it_works_again_when_it_returns() {
    let (pool, made) = pool(TIMEOUT);
    // One after another tries it, until no thread is left.
    let mut releases = Vec::new();
    while releases.len() < THREADS {
        let (release, hang) = mpsc::channel::<()>();
        match &*away(pool.call(move |_| Ok(_ = hang.recv())).await) {
            "no answer in 200 ms" => releases.push(release),
            told => assert!(told.starts_with("the module hangs"), "{told}"),
        }
    }
    for _ in 0..100 {
        let error = away(pool.call(|_| Ok(())).await);
        assert!(error.starts_with("the module hangs: a call has not returned for "), "{error}");
    }
    assert_eq!(made.load(SeqCst), THREADS, "no thread more is made");
    assert!(pool.shared.state.lock().queue.is_empty(), "and nothing waits");
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
    assert!(calls.admit(at(6), timeout).is_ok(), "one tries it");
    assert!(calls.admit(at(7), timeout).unwrap_err().ends_with("for 6 s"));
    assert!(calls.admit(at(11), timeout).is_ok(), "one more tries it");
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
async fn calls_that_wait_have_a_bound_and_those_that_were_given_up_are_not_made() {
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
async fn a_panic_is_one_call_that_failed() {
    let (pool, made) = pool(Duration::from_secs(60));
    for _ in 0..2 * THREADS {
        let error = away(pool.call(|_| -> Result<(), _> { panic!("on purpose") }).await);
        assert_eq!(error, "a call of the module panicked");
    }
    pool.call(|_| Ok(())).await.unwrap();
    assert!(made.load(SeqCst) >= 2 * THREADS, "what a panic left is not used again");
}
