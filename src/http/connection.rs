//! Serves one connection: HTTP/1.1, or HTTP/2 if TLS negotiated it.
//!
//! It closes a connection that is idle, or whose client does not read its responses. The gate has
//! the deadlines of requests.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, HeaderValue};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::tls::peer::Peer;

use super::activity::{Activity, Over, UnderWay};
use super::budget::Held;
use super::gate::{Gate, NoRoom, size};
use super::heads::{Counted, FREE, MAX_FIELDS, MAX_HEAD};
use super::paced::{Paced, Streaming};

/// How long an idle connection may take to close.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of bytes that are read of an abandoned body, and the time for that.
const REST: usize = 16 << 20;
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// Concurrent requests on an HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// Flow-control windows in bytes: of a stream, and of a connection.
const WINDOW: u32 = 256 << 10;

/// Serves `stream` until it ends, or `stop` becomes true.
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
    let io = TokioIo::new(Counted::new(stream, Arc::clone(&activity), budget.clone(), !is_http_2));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (gate, activity, budget) = (gate.clone(), Arc::clone(&activity), budget.clone());
        if let Some(peer) = &peer {
            request.extensions_mut().insert(Arc::clone(peer));
        }
        // HTTP/2 does not keep the buffer of a head.
        let head = if is_http_2 { 0 } else { size(&request) };
        // Now, and not when the future is polled: what is read next is no head any more.
        activity.note_head(head);
        let under_way = UnderWay::begin(Arc::clone(&activity));
        let coming = Some(UnderWay::begin(activity));
        async move {
            if request.headers().len() > MAX_FIELDS {
                drop(request);
                let mut refused = Response::new(Outgoing::new(Body::empty(), None, under_way));
                *refused.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                return Ok(refused);
            }
            let expects = !is_http_2 && request.headers().contains_key(EXPECT);
            let request =
                request.map(|body| Body::new(Coming { body: Some(body), expects, coming }));
            let (mut answer, held) = gate.pass(request).await?;
            // An open connection would keep the memory of its head, which others need.
            if head > FREE && budget.is_scarce() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if answer.extensions_mut().remove::<Streaming>().is_some() {
                return Ok(answer.map(|body| Outgoing::Streamed(Paced::new(body, under_way))));
            }
            Ok::<_, NoRoom>(answer.map(|body| Outgoing::new(body, held, under_way)))
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
        // The timer of hyper would be reset for each request.
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
            // The shutdown has its own deadline.
            None => _ = activity.is_over().await,
        }
    };
    tokio::select! {
        biased;
        ended = connection => ended,
        () = late => Ok(()),
    }
}

/// The body of a request. After the response, the rest of the body is still read for a while and
/// discarded: a client that is cut off while it sends may never see the response.
struct Coming {
    /// Taken when it is dropped.
    body: Option<Incoming>,
    /// The client of HTTP/1.1 waits for a word before it sends the body, and gets none after the
    /// answer.
    expects: bool,
    /// The body is in flight until it is no longer read.
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

/// The body of a response. If it counts, it holds its part of the budget until the last byte is
/// written to the socket.
enum Outgoing {
    Made {
        body: Body,
        owed: Option<Arc<Owed>>,
        /// Of a response that has no length, and may take long.
        _under_way: Option<UnderWay>,
    },
    /// It is made while it is sent.
    Streamed(Paced),
}

struct Owed {
    activity: Arc<Activity>,
    number: u64,
    _held: Held,
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.activity.sent(self.number);
    }
}

impl Outgoing {
    fn new(body: Body, held: Option<(Held, usize)>, under_way: UnderWay) -> Self {
        let activity = under_way.activity();
        let owed = held.map(|(held, len)| {
            let number = activity.owe(len);
            Arc::new(Owed { activity: Arc::clone(activity), number, _held: held })
        });
        let has_no_len = http_body::Body::size_hint(&body).exact().is_none();
        Self::Made { body, owed, _under_way: has_no_len.then_some(under_way) }
    }

    fn body(&self) -> &Body {
        match self {
            Self::Made { body, .. } => body,
            Self::Streamed(paced) => paced.body(),
        }
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let (body, owed) = match &mut *self {
            Self::Made { body, owed, .. } => (body, owed),
            Self::Streamed(paced) => return paced.poll_frame(context),
        };
        let polled = Pin::new(body).poll_frame(context);
        let Some(owed) = owed else { return polled };
        polled.map(|frame| {
            frame.map(|frame| {
                frame.map(|frame| {
                    frame.map_data(|bytes| Bytes::from_owner(Piece(bytes, Arc::clone(owed))))
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

/// A part of a response, which is unsent as long as hyper has it.
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
    async fn answers_are_to_be_taken_in_time_and_give_the_budget_back() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let budget = Budget::new(10 << 20);
        drop(UnderWay::begin(Arc::clone(&activity)));
        let answer = |len: usize| {
            let held = budget.take(len).unwrap();
            Outgoing::new(
                Body::from(vec![0; len]),
                Some((held, len)),
                UnderWay::begin(Arc::clone(&activity)),
            )
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
        let mut answer =
            Outgoing::new(Body::from(vec![7; 100]), held, UnderWay::begin(Arc::clone(&activity)));
        assert_eq!(http_body::Body::size_hint(&answer).exact(), Some(100));
        let piece = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        drop(answer);
        assert!(budget.take(1).is_none() && piece.len() == 100);
        drop(piece);
        assert!(budget.take(100).is_some());
        assert_eq!(activity.owed(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_never_without_an_answer_to_send_is_not_cut_while_it_takes_them() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let budget = Budget::new(1 << 20);
        let answer = || {
            let held = budget.take(100).map(|held| (held, 100));
            Outgoing::new(Body::from(vec![7; 100]), held, UnderWay::begin(Arc::clone(&activity)))
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
