//! The activity of a connection: its requests and unsent responses, and when it must be closed
//! because it is idle or its client does not read responses.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A connection is closed when no whole head of a first request came within this time, and later
/// when none came within `server.idle_timeout`; that also applies here where it is shorter.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a connection is checked at least: it is closed this much late at most.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// The same where the time-out is short: this part of it.
const LOOKS: u32 = 5;

/// A client has this long to read a response, plus the time that it takes at [`MIN_PACE`].
const TAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes per second.
const MIN_PACE: u32 = 64 << 10;

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// It is idle.
    Idle,
    /// The client does not read a response.
    NotTaken,
}

/// The requests of a connection and its unsent responses.
pub(super) struct Activity {
    idle_timeout: Duration,
    began: AtomicU64,
    ended: AtomicU64,
    /// Bytes of the last head, whose buffer HTTP/1.1 keeps.
    head: AtomicUsize,
    /// Responses that are made while they are sent.
    streams: AtomicUsize,
    /// Unsent responses, except small ones over HTTP/1.1, which fit in the buffer of the socket.
    unsent: Mutex<Unsent>,
}

/// Responses that a client has not read yet.
#[derive(Default)]
struct Unsent {
    /// The number of all responses so far.
    count: u64,
    /// The number of each, its bytes, and until when it is to be taken.
    answers: Vec<(u64, usize, Instant)>,
}

impl Activity {
    pub(super) fn new(idle_timeout: Duration) -> Self {
        let (began, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        let (head, streams) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { idle_timeout, began, ended, head, streams, unsent: Mutex::default() }
    }

    /// How many requests, and bodies of them, have begun, and how many have ended.
    pub(super) fn requests(&self) -> (u64, u64) {
        (self.began.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed))
    }

    /// Notes the bytes of a head, whose buffer is kept until the next one.
    pub(super) fn note_head(&self, len: usize) {
        self.head.store(len, Ordering::Relaxed);
    }

    /// The bytes of the last head.
    pub(super) fn head(&self) -> usize {
        self.head.load(Ordering::Relaxed)
    }

    /// A response begins that is made while it is sent.
    pub(super) fn begin_stream(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    /// Such a response has ended.
    pub(super) fn end_stream(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether there is such a response.
    pub(super) fn is_streaming(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > 0
    }

    /// Waits until no request began, and none was under way, for the idle time-out, or an answer
    /// was not taken in time.
    pub(super) async fn is_over(&self) -> Over {
        let look_every = LOOK_EVERY.min(self.idle_timeout / LOOKS);
        let (mut before, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(look_every).await;
            if let Some(due) = self.unsent().answers.iter().map(|(.., due)| *due).min() {
                since = Instant::now();
                if since > due {
                    return Over::NotTaken;
                }
                continue;
            }
            let (began, ended) = self.requests();
            let idle_timeout = self.idle_timeout;
            let timeout = if began == 0 { FIRST_TIMEOUT.min(idle_timeout) } else { idle_timeout };
            if began != ended || began != before {
                (before, since) = (began, Instant::now());
            } else if since.elapsed() >= timeout {
                return Over::Idle;
            }
        }
    }

    /// Notes an answer of `len` bytes that is to be sent; its number. They come side by side, so
    /// each gets the time for all.
    pub(super) fn owe(&self, len: usize) -> u64 {
        let pace = |len: usize| Duration::from_secs(len as u64) / MIN_PACE;
        let mut unsent = self.unsent();
        let mut all = len;
        for (_, other, due) in &mut unsent.answers {
            all = all.saturating_add(*other);
            *due += pace(len);
        }
        unsent.count += 1;
        let (number, due) = (unsent.count, Instant::now() + TAKE_TIMEOUT + pace(all));
        unsent.answers.push((number, len, due));
        number
    }

    /// Forgets the response `number`: it is sent, or the connection has ended.
    pub(super) fn sent(&self, number: u64) {
        let mut unsent = self.unsent();
        let place = unsent.answers.iter().position(|(other, ..)| *other == number);
        if let Some(place) = place {
            unsent.answers.swap_remove(place);
        }
    }

    /// The number of unsent responses.
    #[cfg(test)]
    pub(super) fn owed(&self) -> usize {
        self.unsent().answers.len()
    }

    fn unsent(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request until it is answered, or dropped: a client of HTTP/2 may cancel it, and stay.
pub(super) struct UnderWay(Arc<Activity>);

impl UnderWay {
    pub(super) fn begin(activity: Arc<Activity>) -> Self {
        activity.began.fetch_add(1, Ordering::Relaxed);
        Self(activity)
    }

    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.0
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

    async fn is_over_within(activity: &Activity, limit: Duration) -> Option<Over> {
        tokio::time::timeout(limit, activity.is_over()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_over_when_it_does_nothing() {
        let activity = Activity::new(IDLE_TIMEOUT);
        let (short, long) = (IDLE_TIMEOUT, 2 * IDLE_TIMEOUT);
        assert_eq!(is_over_within(&activity, short).await, Some(Over::Idle), "no first request");
        activity.began.store(1, Ordering::Relaxed);
        assert_eq!(is_over_within(&activity, 5 * long).await, None, "a request is under way");
        activity.ended.store(1, Ordering::Relaxed);
        assert_eq!(is_over_within(&activity, short).await, None);
        let busy = async {
            for count in 2..20 {
                activity.began.store(count, Ordering::Relaxed);
                activity.ended.store(count, Ordering::Relaxed);
                tokio::time::sleep(short / 2).await;
            }
        };
        tokio::select! {
            over = activity.is_over() => panic!("{over:?} while requests come"),
            () = busy => {}
        }
        assert_eq!(is_over_within(&activity, long).await, Some(Over::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_after_the_time_that_is_set_and_never_before() {
        for seconds in [1, 10, 75, 650, 86_400] {
            let idle_timeout = Duration::from_secs(seconds);
            let activity = Activity::new(idle_timeout);
            let first = FIRST_TIMEOUT.min(idle_timeout) + LOOK_EVERY;
            assert_eq!(is_over_within(&activity, first).await, Some(Over::Idle), "{seconds}");
            let (started, before) = (Instant::now(), Duration::from_millis(700));
            let request = async {
                tokio::time::sleep(before).await;
                for count in [&activity.began, &activity.ended] {
                    count.store(1, Ordering::Relaxed);
                }
            };
            let (over, ()) = tokio::join!(activity.is_over(), request);
            let idle = started.elapsed() - before;
            assert_eq!(over, Over::Idle);
            assert!(idle >= idle_timeout, "{seconds}: {idle:?}");
            assert!(idle <= idle_timeout + idle_timeout / 5 + LOOK_EVERY, "{seconds}: {idle:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_cancelled_keeps_no_connection_open() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let request = UnderWay::begin(Arc::clone(&activity));
        assert_eq!(is_over_within(&activity, 5 * IDLE_TIMEOUT).await, None);
        drop(request);
        assert_eq!(is_over_within(&activity, 2 * IDLE_TIMEOUT).await, Some(Over::Idle));
    }
}
