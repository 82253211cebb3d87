//! One connection, from its first byte to its last: HTTP/1.1, or HTTP/2 where TLS agreed on it.
//!
//! It sees to it that a connection ends which does nothing, or whose client does not take what it
//! asked for. Deadlines of requests are the gate's.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::Request;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::tls::peer::Peer;

use super::budget::Held;
use super::gate::Gate;

/// A connection is closed when it does nothing for this long: no request, no whole head of one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// The same before its first request.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How long an idle connection may take to end when it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A client has this long to take an answer, and the time that the answer takes at [`MIN_PACE`].
const TAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes a second.
const MIN_PACE: usize = 64 << 10;

/// The largest head of a request in bytes: room for 64 KiB of AAD in base64, and then some. hyper
/// takes 100 headers at most. It is also the largest piece that is read from the socket at once.
const MAX_HEAD: usize = 128 << 10;
/// Requests at once on an HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// What a client may send in a stream, and in all of a connection, before we have read it.
const WINDOW: u32 = 256 << 10;

/// Serves `io` until it ends, or `stop` says that it should.
pub(super) async fn serve(
    io: impl Read + Write + Unpin + Send + 'static,
    is_http_2: bool,
    peer: Option<Arc<Peer>>,
    gate: Gate,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), hyper::Error> {
    let activity = Arc::new(Activity::default());
    let seen = Arc::clone(&activity);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (gate, activity) = (gate.clone(), Arc::clone(&activity));
        if let Some(peer) = &peer {
            request.extensions_mut().insert(Arc::clone(peer));
        }
        async move {
            let under_way = UnderWay::begin(activity);
            let (answer, held) = gate.pass(request.map(Body::new)).await;
            Ok::<_, Infallible>(answer.map(|body| Outgoing::new(body, held, &under_way.0)))
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
#[derive(Default)]
struct Activity {
    began: AtomicU64,
    ended: AtomicU64,
    /// Large answers that are not sent. Small ones are in the socket's buffer, more or less.
    unsent: AtomicUsize,
    /// When they are to be sent, in milliseconds after `ORIGIN`.
    due: AtomicU64,
}

impl Activity {
    /// Waits until no request began, and none was under way, for [`IDLE_TIMEOUT`], or an answer was
    /// not taken in time.
    async fn is_over(&self) -> Over {
        let (mut before, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.unsent.load(Ordering::Relaxed) > 0 {
                if millis(Instant::now()) > self.due.load(Ordering::Relaxed) {
                    return Over::NotTaken;
                }
                since = Instant::now();
                continue;
            }
            let (began, ended) =
                (self.began.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed));
            let timeout = if began == 0 { FIRST_TIMEOUT } else { IDLE_TIMEOUT };
            if began != ended || began != before {
                (before, since) = (began, Instant::now());
            } else if since.elapsed() >= timeout {
                return Over::Idle;
            }
        }
    }

    /// Notes an answer of `len` bytes that is to be sent.
    fn owe(&self, len: usize) {
        let allowed = Duration::from_secs((len / MIN_PACE) as u64);
        let now = millis(Instant::now());
        // What comes on top of others gets the time of its length alone.
        let due = match self.unsent.fetch_add(1, Ordering::Relaxed) {
            0 => now.saturating_add(TAKE_TIMEOUT.as_millis() as u64),
            _ => self.due.load(Ordering::Relaxed),
        };
        self.due.store(due.saturating_add(allowed.as_millis() as u64), Ordering::Relaxed);
    }
}

/// A request until it is answered, or dropped: a client of HTTP/2 may cancel it, and stay.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn begin(activity: Arc<Activity>) -> Self {
        activity.began.fetch_add(1, Ordering::Relaxed);
        Self(activity)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// Milliseconds of the process, more or less.
fn millis(at: Instant) -> u64 {
    static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let since = at.saturating_duration_since(*ORIGIN.get_or_init(|| at));
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The body of an answer. A large one holds its part of the budget until the last byte has been
/// handed to the socket.
struct Outgoing {
    body: Body,
    owed: Option<Arc<Owed>>,
}

struct Owed {
    activity: Arc<Activity>,
    _held: Held,
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.activity.unsent.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Outgoing {
    fn new(body: Body, held: Option<(Held, usize)>, activity: &Arc<Activity>) -> Self {
        let owed = held.map(|(held, len)| {
            activity.owe(len);
            Arc::new(Owed { activity: Arc::clone(activity), _held: held })
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

    async fn is_over_within(activity: &Activity, limit: Duration) -> Option<Over> {
        tokio::time::timeout(limit, activity.is_over()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_over_when_it_does_nothing() {
        let activity = Activity::default();
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
    async fn a_request_that_is_cancelled_keeps_no_connection_open() {
        let activity = Arc::new(Activity::default());
        let request = UnderWay::begin(Arc::clone(&activity));
        assert_eq!(is_over_within(&activity, 5 * IDLE_TIMEOUT).await, None);
        drop(request);
        assert_eq!(is_over_within(&activity, 2 * IDLE_TIMEOUT).await, Some(Over::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_to_be_taken_in_time_and_give_the_budget_back() {
        let activity = Arc::new(Activity::default());
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
        let activity = Arc::new(Activity::default());
        let budget = Budget::new(100);
        let held = budget.take(100).map(|held| (held, 100));
        let mut answer = Outgoing::new(Body::from(vec![7; 100]), held, &activity);
        assert_eq!(http_body::Body::size_hint(&answer).exact(), Some(100));
        let piece = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        drop(answer);
        assert!(budget.take(1).is_none() && piece.len() == 100);
        drop(piece);
        assert!(budget.take(100).is_some());
        assert_eq!(activity.unsent.load(Ordering::Relaxed), 0);
    }
}
