//! One connection of the socket: HTTP/2, from the preface to the end.
//!
//! It ends a connection that does nothing, and notices what HTTP/2 refuses before it is a call. It
//! knows neither calls nor keys.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::body::Body;

use crate::http2_frames::{Frames, Part};
use crate::log_throttle::LogThrottle;

/// How long a client may take for the preface of HTTP/2 and its first call.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is closed after this long without a call. kube-apiserver makes one each minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);
/// How often this is checked.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long an idle connection may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take from its head to its answer. The plugin answers within 2.5 seconds; the
/// rest is for the client to send its message.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A peer that does not answer a ping within this time is gone.
const PING_EVERY: Duration = Duration::from_secs(60);
/// Concurrent calls on one connection. kube-apiserver opens one, and may ask for thousands of
/// seeds.
const MAX_STREAMS: u32 = 10_000;

/// The largest head of a call in bytes, each field counted with 32 more; kube-apiserver sends less
/// than 1 KiB. A connection keeps one unfinished head at most, of 60 KB where its fields are short.
const MAX_HEAD: u32 = 16 << 10;

/// The type of a frame that ends a stream, and its code for a request that HTTP/2 does not allow.
const RST_STREAM: u8 = 3;
const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];

/// Serves `stream` until it ends, or `stop` says that it should.
pub(super) async fn serve<A, F>(
    stream: UnixStream,
    answer: A,
    refusals: Arc<LogThrottle>,
    mut stop: watch::Receiver<()>,
) where
    A: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = http::Response<Body>> + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let wire = Wire {
        stream,
        sent: Refused::default(),
        activity: Arc::clone(&activity),
        refusals: Arc::clone(&refusals),
    };
    let seen = Arc::clone(&activity);
    let service = service_fn(move |request| {
        let call = Call::begin(Arc::clone(&seen));
        let answer = timeout(CALL_TIMEOUT, answer(request));
        async move {
            let answer = answer.await.unwrap_or_else(|_| {
                Status::deadline_exceeded("the message of the call did not come in time")
                    .into_http()
            });
            drop(call);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .keep_alive_interval(PING_EVERY);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(wire), service));
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => Some(ended),
        _ = stop.changed() => None,
        () = activity.is_idle() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            let late = async {
                // At a stop the server has a deadline for all connections.
                match stop.has_changed() {
                    Ok(_) => sleep(END_TIMEOUT).await,
                    Err(_) => activity.is_idle().await,
                }
            };
            tokio::select! {
                biased;
                ended = connection => ended,
                () = late => return,
            }
        }
    };
    // A client that goes away is no news; one that does not speak HTTP/2 is.
    match ended {
        Err(error) if activity.is_stranger() => {
            if let Some(count) = refusals.admit() {
                tracing::warn!(count, %error, "a client of the socket does not speak HTTP/2");
            }
        }
        Err(error) => tracing::debug!(%error, "a connection of Kubernetes ended badly"),
        Ok(()) => {}
    }
}

/// What a connection has done so far.
#[derive(Default)]
struct Activity {
    /// Something came.
    has_read: AtomicBool,
    /// The client sends nothing more.
    is_closed: AtomicBool,
    began: AtomicU64,
    ended: AtomicU64,
}

impl Activity {
    /// Waits until no call began, and none was under way, for as long as a client may be silent.
    async fn is_idle(&self) {
        let (mut before, mut since) = (0, Instant::now());
        loop {
            sleep(CHECK_EVERY).await;
            let began = self.began.load(Ordering::Relaxed);
            let limit = if began == 0 { FIRST_TIMEOUT } else { IDLE_TIMEOUT };
            if began != self.ended.load(Ordering::Relaxed) || began != before {
                (before, since) = (began, Instant::now());
            } else if since.elapsed() >= limit {
                return;
            }
        }
    }

    /// Whether the client sent something, waits for an answer, and HTTP/2 found no call in it.
    fn is_stranger(&self) -> bool {
        self.has_read.load(Ordering::Relaxed)
            && !self.is_closed.load(Ordering::Relaxed)
            && self.began.load(Ordering::Relaxed) == 0
    }
}

/// A call that is under way, however it ends.
struct Call(Arc<Activity>);

impl Call {
    fn begin(activity: Arc<Activity>) -> Self {
        activity.began.fetch_add(1, Ordering::Relaxed);
        Self(activity)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// The socket, with a look at what goes through it.
struct Wire {
    stream: UnixStream,
    sent: Refused,
    activity: Arc<Activity>,
    refusals: Arc<LogThrottle>,
}

impl Wire {
    /// Reports what HTTP/2 refused itself: the service never sees such a request.
    fn note_sent(&mut self, bytes: &[u8]) {
        if self.sent.is_in(bytes)
            && let Some(count) = self.refusals.admit()
        {
            tracing::warn!(
                count,
                "HTTP/2 refused a request with PROTOCOL_ERROR before it was a call; kube-apiserver \
                 before 1.32 sends the path of the socket as :authority: give it an abstract \
                 socket (docs/kubernetes.md, Versions)"
            );
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = polled {
            let came = buffer.filled().len() > before;
            let flag = if came { &self.activity.has_read } else { &self.activity.is_closed };
            flag.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(len)) = polled {
            self.note_sent(bytes.get(..len).unwrap_or(bytes));
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Finds requests that HTTP/2 refused in what a server sends.
#[derive(Default)]
struct Refused {
    frames: Frames,
    /// What came of the code of a frame that ends a stream.
    code: Option<Vec<u8>>,
}

impl Refused {
    /// Whether a frame that ends in `bytes` refuses a request.
    fn is_in(&mut self, mut bytes: &[u8]) -> bool {
        let mut is_in = false;
        while let Some(part) = self.frames.next(&mut bytes) {
            match (part, &mut self.code) {
                (Part::Head { kind, .. }, code) => *code = (kind == RST_STREAM).then(Vec::new),
                (Part::Payload(piece), Some(code)) => {
                    code.extend_from_slice(piece);
                    is_in |= *code == PROTOCOL_ERROR;
                }
                (Part::Payload(_), None) => {}
            }
        }
        is_in
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn a_refused_request_is_found_however_the_frames_are_cut() {
        let refused = frame(RST_STREAM, &PROTOCOL_ERROR);
        let cancelled = frame(RST_STREAM, &[0, 0, 0, 8]);
        let around = [frame(4, &[0; 18]), frame(0, &vec![RST_STREAM; 70_000]), frame(4, &[])];
        let without = [around.concat(), cancelled.clone(), frame(8, &[0, 0, 0, 1])].concat();
        let with = [around.concat(), cancelled, refused, around.concat()].concat();
        for step in [1, 2, 7, 9, 13, 4_096, usize::MAX] {
            let count = |bytes: &[u8]| {
                let mut refused = Refused::default();
                bytes.chunks(step.min(bytes.len())).filter(|bytes| refused.is_in(bytes)).count()
            };
            assert_eq!((count(&with), count(&without)), (1, 0), "{step}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_without_calls_and_not_while_one_is_under_way() {
        let activity = Arc::new(Activity::default());
        let idle_after = async || {
            let began = Instant::now();
            activity.is_idle().await;
            began.elapsed()
        };
        assert_eq!(idle_after().await, FIRST_TIMEOUT);
        let call = Call::begin(Arc::clone(&activity));
        let waited = timeout(10 * IDLE_TIMEOUT, activity.is_idle()).await;
        assert!(waited.is_err(), "a call is under way");
        drop(call);
        assert!((IDLE_TIMEOUT..=IDLE_TIMEOUT + CHECK_EVERY).contains(&idle_after().await));
    }
}
