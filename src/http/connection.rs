//! One connection, from its first byte to its last: HTTP/1.1, or HTTP/2 where TLS agreed on it.
//!
//! It sees to it that a connection ends which does nothing, or whose client does not take what it
//! asked for. Deadlines of requests are the gate's.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, HeaderValue};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::tls::peer::Peer;

use super::budget::Held;
use super::gate::{Gate, NoRoom, size};
use super::heads::{Counted, FREE};

/// A connection is closed when no whole head of a first request came within this time, and later
/// when none came within `server.idle_timeout`; that also applies here where it is shorter.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a connection is checked at least: it is closed this much late at most.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// The same where the time-out is short: this part of it.
const LOOKS: u32 = 5;
/// How long an idle connection may take to end when it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes that are read of a body which nobody wants any more, and how long that may take.
const REST: usize = 16 << 20;
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// A client has this long to take an answer, and the time that the answer takes at [`MIN_PACE`].
const TAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes a second.
const MIN_PACE: u32 = 64 << 10;

/// The largest head of a request in bytes: room for 64 KiB of AAD in base64, and then some. hyper
/// takes 100 headers at most. It is also the largest piece that is read from the socket at once.
pub(super) const MAX_HEAD: usize = 128 << 10;
/// Requests at once on an HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// What a client may send in a stream, and in all of a connection, before we have read it.
const WINDOW: u32 = 256 << 10;

/// Serves `stream` until it ends, or `stop` says that it should.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_http_2: bool,
    peer: Option<Arc<Peer>>,
    gate: Gate,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), hyper::Error> {
    let activity = Arc::new(Activity::new(gate.idle_timeout()));
    let seen = Arc::clone(&activity);
    let budget = gate.budget().clone();
    let io = TokioIo::new(Counted::new(stream, Arc::clone(&activity), budget.clone()));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (gate, activity, budget) = (gate.clone(), Arc::clone(&activity), budget.clone());
        if let Some(peer) = &peer {
            request.extensions_mut().insert(Arc::clone(peer));
        }
        // HTTP/2 keeps no buffer of a head.
        let head = if is_http_2 { 0 } else { size(&request) };
        // Now, and not when the future is polled: what is read next is no head any more.
        activity.note_head(head);
        let under_way = UnderWay::begin(Arc::clone(&activity));
        let coming = Some(UnderWay::begin(activity));
        async move {
            let expects = !is_http_2 && request.headers().contains_key(EXPECT);
            let request =
                request.map(|body| Body::new(Coming { body: Some(body), expects, coming }));
            let (mut answer, held) = gate.pass(request).await?;
            // The connection would keep the room of its head, which others need.
            if head > FREE && budget.is_scarce() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, NoRoom>(answer.map(|body| Outgoing::new(body, held, &under_way.0)))
        }
    });
    if is_http_2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 2)
            .max_send_buf_size(WINDOW as usize);
        drive(builder.serve_connection(io, service), &seen, stop).await
    } else {
        let mut builder = http1::Builder::new();
        // hyper's own timer would be set anew for each request.
        builder.header_read_timeout(None).max_header_size(MAX_HEAD).max_buf_size(MAX_HEAD);
        drive(builder.serve_connection(io, service), &seen, stop).await
    }
}

/// Runs a connection, and ends it between two requests when it is time.
async fn drive<C>(
    connection: C,
    activity: &Activity,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), hyper::Error>
where
    C: GracefulConnection<Error = hyper::Error>,
{
    let mut connection = pin!(connection);
    let over = tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        // The sender outlives all connections.
        _ = stop.wait_for(|stop| *stop) => None,
        over = activity.is_over() => Some(over),
    };
    if over == Some(Over::NotTaken) {
        return Ok(());
    }
    connection.as_mut().graceful_shutdown();
    let late = async {
        match over {
            Some(_) => tokio::time::sleep(END_TIMEOUT).await,
            // Whoever stops everything has a deadline of his own.
            None => _ = activity.is_over().await,
        }
    };
    tokio::select! {
        biased;
        ended = connection => ended,
        () = late => Ok(()),
    }
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// Nothing happens.
    Idle,
    /// An answer is not taken.
    NotTaken,
}

/// The requests of a connection, and the answers that it has not sent yet.
pub(super) struct Activity {
    idle_timeout: Duration,
    began: AtomicU64,
    ended: AtomicU64,
    /// Bytes of the last head, whose buffer HTTP/1.1 keeps.
    head: AtomicUsize,
    /// Answers that are not sent, but for small ones of HTTP/1.1: a socket's buffer holds these.
    unsent: Mutex<Unsent>,
}

/// Answers that a client has not taken yet.
#[derive(Default)]
struct Unsent {
    /// How many there ever were.
    count: u64,
    /// The number of each, its bytes, and until when it is to be taken.
    answers: Vec<(u64, usize, Instant)>,
}

impl Activity {
    pub(super) fn new(idle_timeout: Duration) -> Self {
        let (began, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { idle_timeout, began, ended, head: AtomicUsize::new(0), unsent: Mutex::default() }
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

    /// Waits until no request began, and none was under way, for the idle time-out, or an answer was
    /// not taken in time.
    async fn is_over(&self) -> Over {
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

    /// Notes an answer of `len` bytes that is to be sent; its number. They come side by side, so each
    /// gets the time for all.
    fn owe(&self, len: usize) -> u64 {
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
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// The body of a request. What is left of it when the request is answered is still read, for a while,
/// and thrown away: a client that is cut off while it sends may never see the answer.
struct Coming {
    /// Taken when it is dropped.
    body: Option<Incoming>,
    /// The client of HTTP/1.1 waits for a word before it sends the body, and gets none after the answer.
    expects: bool,
    /// The body is under way until nothing of it is read any more.
    coming: Option<UnderWay>,
}

impl http_body::Body for Coming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // This tells it to send.
        self.expects = false;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if self.expects || http_body::Body::is_end_stream(self) {
            return;
        }
        let (body, runtime) = (self.body.take(), tokio::runtime::Handle::try_current());
        let coming = self.coming.take();
        if let (Some(body), Ok(runtime)) = (body, runtime) {
            runtime.spawn(async move {
                _ = tokio::time::timeout(REST_TIMEOUT, discard(body)).await;
                drop(coming);
            });
        }
    }
}

/// Reads a body up to [`REST`] bytes.
async fn discard(mut body: Incoming) {
    let mut left = REST;
    while let Some(Ok(frame)) = body.frame().await {
        let len = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(len) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// The body of an answer. One that counts holds its part of the budget until the last byte has been
/// handed to the socket.
struct Outgoing {
    body: Body,
    owed: Option<Arc<Owed>>,
}

struct Owed {
    activity: Arc<Activity>,
    number: u64,
    _held: Held,
}

impl Drop for Owed {
    fn drop(&mut self) {
        let mut unsent = self.activity.unsent();
        let place = unsent.answers.iter().position(|(number, ..)| *number == self.number);
        if let Some(place) = place {
            unsent.answers.swap_remove(place);
        }
    }
}

impl Outgoing {
    fn new(body: Body, held: Option<(Held, usize)>, activity: &Arc<Activity>) -> Self {
        let owed = held.map(|(held, len)| {
            let number = activity.owe(len);
            Arc::new(Owed { activity: Arc::clone(activity), number, _held: held })
        });
        Self { body, owed }
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let Some(owed) = &self.owed else { return polled };
        polled.map(|frame| {
            frame.map(|frame| {
                frame.map(|frame| {
                    frame.map_data(|bytes| Bytes::from_owner(Piece(bytes, Arc::clone(owed))))
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A part of an answer, which is owed as long as hyper has it.
struct Piece(Bytes, #[expect(dead_code, reason = "it is held")] Arc<Owed>);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
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

    #[tokio::test(start_paused = true)]
    async fn answers_are_to_be_taken_in_time_and_give_the_budget_back() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let budget = Budget::new(10 << 20);
        activity.began.store(1, Ordering::Relaxed);
        activity.ended.store(1, Ordering::Relaxed);
        let answer = |len: usize| {
            let held = budget.take(len).unwrap();
            Outgoing::new(Body::from(vec![0; len]), Some((held, len)), &activity)
        };
        let (first, second) = (answer(4 << 20), answer(6 << 20));
        assert!(budget.take(1).is_none());
        // 10 MiB take 160 s at 64 KiB/s.
        assert_eq!(is_over_within(&activity, Duration::from_secs(170)).await, None);
        assert_eq!(is_over_within(&activity, Duration::from_secs(40)).await, Some(Over::NotTaken));
        drop((first, second));
        assert_eq!(is_over_within(&activity, IDLE_TIMEOUT * 2).await, Some(Over::Idle));
        assert!(budget.take(10 << 20).is_some());
    }

    #[tokio::test]
    async fn an_answer_is_owed_until_its_last_byte_is_gone() {
        use http_body_util::BodyExt;
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let budget = Budget::new(100);
        let held = budget.take(100).map(|held| (held, 100));
        let mut answer = Outgoing::new(Body::from(vec![7; 100]), held, &activity);
        assert_eq!(http_body::Body::size_hint(&answer).exact(), Some(100));
        let piece = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        drop(answer);
        assert!(budget.take(1).is_none() && piece.len() == 100);
        drop(piece);
        assert!(budget.take(100).is_some());
        assert_eq!(activity.unsent().answers.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_never_without_an_answer_to_send_is_not_cut_while_it_takes_them() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let budget = Budget::new(1 << 20);
        let answer = || {
            let held = budget.take(100).map(|held| (held, 100));
            Outgoing::new(Body::from(vec![7; 100]), held, &activity)
        };
        let busy = async {
            let mut last = answer();
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(5)).await;
                last = answer();
            }
            drop(last);
        };
        tokio::select! {
            over = activity.is_over() => panic!("{over:?} while answers are taken"),
            () = busy => {}
        }
        // One that is left, whatever else is taken.
        let _left = answer();
        let busy = async {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                drop(answer());
            }
        };
        tokio::select! {
            over = activity.is_over() => assert_eq!(over, Over::NotTaken),
            () = busy => {}
        }
    }
}
