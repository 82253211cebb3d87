//! Responses that are made while they are sent: what is held until they end, and how much of one
//! may wait for the client.
//!
//! It does not know what the bytes are.

use std::any::Any;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;

use super::activity::{Activity, UnderWay};

/// The bytes of a response that hyper has and the socket does not.
const MAX_UNSENT: usize = 64 << 10;

/// Marks a response that is made while it is sent, as an extension of it. Its body holds a copy.
#[derive(Clone, Default)]
pub(super) struct Streaming(Arc<Shared>);

#[derive(Default)]
struct Shared {
    held: Mutex<Vec<Box<dyn Any + Send>>>,
    request_id: OnceLock<Box<str>>,
}

impl Streaming {
    /// Keeps `held` until the response ends.
    pub(super) fn hold(&self, held: impl Any + Send) {
        self.0.held.lock().push(Box::new(held));
    }

    /// The response to the request `id` begins, and keeps `held` until it ends.
    pub(super) fn begin(&self, id: &str, held: impl Any + Send) {
        _ = self.0.request_id.set(id.into());
        self.hold(held);
    }

    /// The id of its request.
    pub(super) fn request_id(&self) -> Option<&str> {
        self.0.request_id.get().map(|id| &**id)
    }
}

/// The body of such a response. Each piece that it gives must be taken by the client in time, and a
/// bounded number of bytes waits for that.
pub(super) struct Paced {
    body: Body,
    flow: Arc<Flow>,
    /// The connection is not idle while the response is under way.
    _under_way: UnderWay,
}

struct Flow {
    activity: Arc<Activity>,
    unsent: Mutex<Unsent>,
}

#[derive(Default)]
struct Unsent {
    bytes: usize,
    waiting: Option<Waker>,
}

impl Paced {
    pub(super) fn new(body: Body, under_way: UnderWay) -> Self {
        let activity = Arc::clone(under_way.activity());
        activity.begin_stream();
        let flow = Arc::new(Flow { activity, unsent: Mutex::default() });
        Self { body, flow, _under_way: under_way }
    }

    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        {
            let mut unsent = self.flow.unsent.lock();
            if unsent.bytes >= MAX_UNSENT {
                unsent.waiting = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        let flow = &self.flow;
        http_body::Body::poll_frame(Pin::new(&mut self.body), context).map(|frame| {
            frame.map(|frame| {
                frame.map(|frame| {
                    frame.map_data(|bytes| {
                        flow.unsent.lock().bytes += bytes.len();
                        let number = flow.activity.owe(bytes.len());
                        Bytes::from_owner(Piece { bytes, number, flow: Arc::clone(flow) })
                    })
                })
            })
        })
    }

    pub(super) fn body(&self) -> &Body {
        &self.body
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.flow.activity.end_stream();
    }
}

/// A part of the response, which is unsent as long as hyper has it.
struct Piece {
    bytes: Bytes,
    number: u64,
    flow: Arc<Flow>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flow.activity.sent(self.number);
        let mut unsent = self.flow.unsent.lock();
        unsent.bytes -= self.bytes.len().min(unsent.bytes);
        let waiting = unsent.waiting.take();
        drop(unsent);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::activity::Over;
    use super::*;

    const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

    /// A response that always has a piece of 16 KiB.
    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            Poll::Ready(Some(Ok(Frame::data(vec![7; 16 << 10].into()))))
        }
    }

    fn paced(activity: &Arc<Activity>) -> Paced {
        Paced::new(Body::new(Endless), UnderWay::begin(Arc::clone(activity)))
    }

    fn next(paced: &mut Paced) -> Option<Bytes> {
        match paced.poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => None,
            Poll::Ready(frame) => Some(frame.unwrap().unwrap().into_data().unwrap()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bounded_number_of_bytes_waits_for_the_client_and_for_a_bounded_time() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let mut response = paced(&activity);
        let mut pieces: Vec<_> = std::iter::from_fn(|| next(&mut response)).collect();
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), MAX_UNSENT);
        assert_eq!(activity.owed(), pieces.len());
        pieces.pop();
        pieces.push(next(&mut response).expect("room for one"));
        assert!(next(&mut response).is_none());
        let over = tokio::time::timeout(2 * IDLE_TIMEOUT, activity.is_over()).await;
        assert_eq!(over, Ok(Over::NotTaken));
        drop(pieces);
        assert_eq!(activity.owed(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_under_way_keeps_its_connection() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let response = paced(&activity);
        let over = tokio::time::timeout(5 * IDLE_TIMEOUT, activity.is_over()).await;
        assert!(over.is_err() && activity.is_streaming());
        drop(response);
        assert!(!activity.is_streaming());
        let over = tokio::time::timeout(2 * IDLE_TIMEOUT, activity.is_over()).await;
        assert_eq!(over, Ok(Over::Idle));
    }

    #[test]
    fn what_is_held_is_dropped_with_the_last_copy() {
        let (streaming, held) = (Streaming::default(), Arc::new(()));
        streaming.hold(Arc::clone(&held));
        let copy = streaming.clone();
        drop(streaming);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(copy);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
