//! The bodies of a connection: of a request, whose end is checked, and of a response, which counts
//! until it is sent.
//!
//! It knows how hyper ends bodies, and not what they contain.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::super::activity::{Activity, UnderWay};
use super::super::budget::Held;
use super::super::paced::Paced;

/// Maximum number of bytes that are read of an abandoned body, and the time for that.
const REST: usize = 16 << 20;
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// The body of a request. After the response, the rest of the body is still read for a while and
/// discarded: a client that is cut off while it sends may never see the response.
pub(super) struct Coming {
    /// Taken when it is dropped.
    body: Option<Incoming>,
    is_http_2: bool,
    /// The client of HTTP/1.1 waits for a word before it sends the body, and gets none after the
    /// answer.
    expects: bool,
    /// The body is in flight until it is no longer read.
    coming: Option<UnderWay>,
}

impl Coming {
    pub(super) fn new(body: Incoming, is_http_2: bool, expects: bool, coming: UnderWay) -> Self {
        Self { body: Some(body), is_http_2, expects, coming: Some(coming) }
    }
}

/// Why a body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfinished {
    #[error(transparent)]
    Failed(#[from] hyper::Error),
    #[error("the body ended early")]
    Cut,
}

impl http_body::Body for Coming {
    type Data = Bytes;
    type Error = Unfinished;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unfinished>>> {
        // This tells it to send.
        self.expects = false;
        let is_http_2 = self.is_http_2;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Some(frame) = ready!(Pin::new(&mut *body).poll_frame(context)) {
            return Poll::Ready(Some(frame.map_err(Into::into)));
        }
        // hyper reports a reset without an error, or a connection that it dropped, as an end. It
        // knows the end of a body that has a length, and of every body of HTTP/2.
        let is_known = is_http_2 || http_body::Body::size_hint(body).exact().is_some();
        let is_cut = is_known && !http_body::Body::is_end_stream(body);
        Poll::Ready(is_cut.then_some(Err(Unfinished::Cut)))
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
pub(super) enum Outgoing {
    Made {
        body: Body,
        owed: Option<Arc<Owed>>,
        /// Of a response that has no length, and may take long.
        _under_way: Option<UnderWay>,
    },
    /// It is made while it is sent.
    Streamed(Paced),
}

pub(super) struct Owed {
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
    pub(super) fn new(body: Body, held: Option<(Held, usize)>, under_way: UnderWay) -> Self {
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
    use super::super::super::activity::Over;
    use super::super::super::budget::Budget;
    use super::*;

    const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

    async fn is_over_within(activity: &Activity, limit: Duration) -> Option<Over> {
        tokio::time::timeout(limit, activity.is_over()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn responses_must_be_taken_in_time_and_return_their_budget() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let budget = Budget::new(10 << 20);
        drop(UnderWay::begin(Arc::clone(&activity)));
        let answer = |len: usize| {
            let held = budget.take(len).unwrap();
            let under_way = UnderWay::begin(Arc::clone(&activity));
            Outgoing::new(Body::from(vec![0; len]), Some((held, len)), under_way)
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
    async fn a_response_is_owed_until_its_last_byte_is_sent() {
        use http_body_util::BodyExt;
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let budget = Budget::new(100);
        let held = budget.take(100).map(|held| (held, 100));
        let under_way = UnderWay::begin(Arc::clone(&activity));
        let mut answer = Outgoing::new(Body::from(vec![7; 100]), held, under_way);
        assert_eq!(http_body::Body::size_hint(&answer).exact(), Some(100));
        let piece = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        drop(answer);
        assert!(budget.take(1).is_none() && piece.len() == 100);
        drop(piece);
        assert!(budget.take(100).is_some());
        assert_eq!(activity.owed(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_always_has_a_response_to_send_stays_open_while_it_takes_them() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let budget = Budget::new(1 << 20);
        let answer = || {
            let held = budget.take(100).map(|held| (held, 100));
            let under_way = UnderWay::begin(Arc::clone(&activity));
            Outgoing::new(Body::from(vec![7; 100]), held, under_way)
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
        // One response that is never taken, while others are.
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
