//! Responses that are made while they are sent: what is held until they end, how much of one may
//! wait for the client, and for how long.
//!
//! It does not know what the bytes are.

use std::any::Any;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::activity::{Activity, UnderWay};
use super::request_id::RequestId;

/// The bytes of a response that hyper has and the socket does not.
const MAX_UNSENT: usize = 48 << 10;

/// Marks a response that is made while it is sent, as an extension of it. Its body holds a copy.
#[derive(Clone)]
pub(super) struct Streaming(Arc<Shared>);

struct Shared {
    idle_timeout: Duration,
    held: Mutex<Vec<Box<dyn Any + Send>>>,
    request_id: OnceLock<RequestId>,
    is_unread: AtomicBool,
}

impl Streaming {
    /// The response ends when its client takes nothing of it for `idle_timeout`.
    pub(super) fn new(idle_timeout: Duration) -> Self {
        Self(Arc::new(Shared {
            idle_timeout,
            held: Mutex::default(),
            request_id: OnceLock::new(),
            is_unread: AtomicBool::new(false),
        }))
    }

    /// Keeps `held` until the response ends.
    pub(super) fn hold(&self, held: impl Any + Send) {
        self.0.held.lock().push(Box::new(held));
    }

    /// The response to the request `id` begins, and keeps `held` until it ends.
    pub(super) fn begin(&self, id: &RequestId, held: impl Any + Send) {
        _ = self.0.request_id.set(id.clone());
        self.hold(held);
    }

    /// The id of its request.
    pub(super) fn request_id(&self) -> Option<&RequestId> {
        self.0.request_id.get()
    }

    /// Whether it ended because the client did not read.
    pub(super) fn is_unread(&self) -> bool {
        self.0.is_unread.load(Ordering::Relaxed)
    }
}

/// Ends what carries a response: a connection of HTTP/1.1, or one stream of HTTP/2.
#[derive(Clone, Default)]
pub(super) struct Cut(Arc<Notify>);

impl Cut {
    fn cut(&self) {
        self.0.notify_one();
    }

    /// Waits until it must end.
    pub(super) async fn is_due(&self) {
        self.0.notified().await;
    }
}

/// The body of such a response. A bounded number of bytes waits for the client, for a bounded time.
pub(super) struct Paced {
    body: Body,
    flow: Arc<Flow>,
    streaming: Streaming,
    watch: AbortHandle,
    /// The response fails with it when all that it gave is sent: hyper would drop that.
    failure: Option<axum::Error>,
    /// The connection is not idle while the response is under way.
    under_way: UnderWay,
}

#[derive(Default)]
struct Flow {
    unsent: Mutex<Unsent>,
    is_unread: AtomicBool,
}

#[derive(Default)]
struct Unsent {
    bytes: usize,
    /// Of a response that has ended.
    last: Option<Last>,
    /// When bytes began to wait, or some of those that waited were sent.
    since: Option<Instant>,
    waiting: Option<Waker>,
}

/// The end of a response, which waits to be sent as any other response does.
struct Last {
    activity: Arc<Activity>,
    number: u64,
    _streaming: Streaming,
}

impl Drop for Last {
    fn drop(&mut self) {
        self.activity.sent(self.number);
    }
}

impl Paced {
    /// `cut` ends what carries the response when the client does not read.
    pub(super) fn new(body: Body, streaming: Streaming, under_way: UnderWay, cut: Cut) -> Self {
        under_way.activity().begin_stream();
        let flow = Arc::<Flow>::default();
        let watch = tokio::spawn(watch(Arc::clone(&flow), streaming.0.idle_timeout, cut));
        let watch = watch.abort_handle();
        Self { body, flow, streaming, watch, failure: None, under_way }
    }

    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.failure.is_none() {
            if self.flow.has_more_than(MAX_UNSENT - 1, context) {
                return Poll::Pending;
            }
            let flow = &self.flow;
            match ready!(http_body::Body::poll_frame(Pin::new(&mut self.body), context)) {
                None => return Poll::Ready(None),
                Some(Ok(frame)) => {
                    return Poll::Ready(Some(Ok(frame.map_data(|bytes| {
                        flow.took(bytes.len());
                        Bytes::from_owner(Piece { bytes, flow: Arc::clone(flow) })
                    }))));
                }
                Some(Err(failure)) => self.failure = Some(failure),
            }
        }
        if self.flow.has_more_than(0, context) {
            return Poll::Pending;
        }
        Poll::Ready(self.failure.take().map(Err))
    }

    pub(super) fn body(&self) -> &Body {
        &self.body
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.watch.abort();
        self.under_way.activity().end_stream();
        // Before the body is dropped, which reports how it ended.
        let is_unread = self.flow.is_unread.load(Ordering::Relaxed);
        self.streaming.0.is_unread.store(is_unread, Ordering::Relaxed);
        let mut unsent = self.flow.unsent.lock();
        if unsent.bytes > 0 && !is_unread {
            let activity = Arc::clone(self.under_way.activity());
            let number = activity.owe(unsent.bytes);
            unsent.last = Some(Last { activity, number, _streaming: self.streaming.clone() });
        }
    }
}

impl Flow {
    /// Whether more than `limit` bytes wait. Then `context` is woken when some are sent.
    fn has_more_than(&self, limit: usize, context: &Context<'_>) -> bool {
        let mut unsent = self.unsent.lock();
        let waits = unsent.bytes > limit;
        if waits {
            unsent.waiting = Some(context.waker().clone());
        }
        waits
    }

    fn took(&self, len: usize) {
        let mut unsent = self.unsent.lock();
        unsent.bytes += len;
        unsent.since.get_or_insert_with(Instant::now);
    }

    fn sent(&self, len: usize) {
        let mut unsent = self.unsent.lock();
        unsent.bytes -= len.min(unsent.bytes);
        unsent.since = (unsent.bytes > 0).then(Instant::now);
        let waiting = unsent.waiting.take();
        let last = if unsent.bytes == 0 { unsent.last.take() } else { None };
        drop(unsent);
        drop(last);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

/// Waits until bytes of a response have waited for `timeout`, and none of them was sent.
async fn watch(flow: Arc<Flow>, timeout: Duration, cut: Cut) {
    loop {
        let since = flow.unsent.lock().since;
        let due = since.unwrap_or_else(Instant::now) + timeout;
        if due <= Instant::now() {
            break;
        }
        tokio::time::sleep_until(due).await;
    }
    flow.is_unread.store(true, Ordering::Relaxed);
    cut.cut();
}

/// A part of the response, which is unsent as long as hyper has it.
struct Piece {
    bytes: Bytes,
    flow: Arc<Flow>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flow.sent(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::super::activity::{Activity, Over};
    use super::*;

    const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
    const UNREAD: Duration = Duration::from_secs(30);

    /// A response that has a piece of 16 KiB each time, until it fails.
    struct Endless {
        pieces: usize,
    }

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            if self.pieces == 0 {
                return Poll::Ready(Some(Err(axum::Error::new("it fails"))));
            }
            self.pieces -= 1;
            Poll::Ready(Some(Ok(Frame::data(vec![7; 16 << 10].into()))))
        }
    }

    fn paced(activity: &Arc<Activity>) -> (Paced, Streaming, Cut) {
        paced_until(activity, usize::MAX)
    }

    fn paced_until(activity: &Arc<Activity>, pieces: usize) -> (Paced, Streaming, Cut) {
        let (streaming, cut) = (Streaming::new(UNREAD), Cut::default());
        let under_way = UnderWay::begin(Arc::clone(activity));
        let paced =
            Paced::new(Body::new(Endless { pieces }), streaming.clone(), under_way, cut.clone());
        (paced, streaming, cut)
    }

    fn next(paced: &mut Paced) -> Option<Bytes> {
        match paced.poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => None,
            Poll::Ready(frame) => Some(frame.unwrap().unwrap().into_data().unwrap()),
        }
    }

    async fn is_due_within(cut: &Cut, limit: Duration) -> bool {
        tokio::time::timeout(limit, cut.is_due()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_bounded_number_of_bytes_waits_for_the_client_and_for_a_bounded_time() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let (mut response, streaming, cut) = paced(&activity);
        assert!(!is_due_within(&cut, 5 * UNREAD).await, "nothing waits");
        let mut pieces: Vec<_> = std::iter::from_fn(|| next(&mut response)).collect();
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), MAX_UNSENT);
        for _ in 0..5 {
            assert!(!is_due_within(&cut, UNREAD - Duration::from_secs(1)).await, "some are taken");
            pieces.remove(0);
            pieces.push(next(&mut response).expect("room for one"));
            assert!(next(&mut response).is_none());
        }
        assert!(is_due_within(&cut, 2 * UNREAD).await);
        assert!(!streaming.is_unread(), "until it has ended");
        drop(response);
        assert!(streaming.is_unread() && activity.owed() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_response_is_to_be_taken_in_time() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let (mut response, streaming, _) = paced(&activity);
        let held = Arc::new(());
        streaming.hold(Arc::clone(&held));
        let pieces = [next(&mut response).unwrap(), next(&mut response).unwrap()];
        drop((response, streaming));
        assert_eq!((activity.owed(), Arc::strong_count(&held)), (1, 2));
        let over = tokio::time::timeout(2 * IDLE_TIMEOUT, activity.is_over()).await;
        assert_eq!(over, Ok(Over::NotTaken));
        drop(pieces);
        assert_eq!((activity.owed(), Arc::strong_count(&held)), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_whose_client_took_everything_waits_for_the_next_piece() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let (mut response, streaming, cut) = paced(&activity);
        drop(next(&mut response).unwrap());
        assert!(!is_due_within(&cut, 10 * UNREAD).await);
        let piece = next(&mut response).unwrap();
        assert!(!is_due_within(&cut, UNREAD - Duration::from_secs(1)).await);
        assert!(is_due_within(&cut, Duration::from_secs(2)).await);
        drop((piece, response));
        assert!(streaming.is_unread());
    }

    #[tokio::test]
    async fn a_response_fails_when_all_that_it_gave_is_sent() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let (mut response, ..) = paced_until(&activity, 2);
        let pieces = [next(&mut response).unwrap(), next(&mut response).unwrap()];
        for piece in pieces {
            assert!(next(&mut response).is_none(), "it waits");
            drop(piece);
        }
        let failed = response.poll_frame(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(failed, Poll::Ready(Some(Err(_)))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_under_way_keeps_its_connection() {
        let activity = Arc::new(Activity::new(IDLE_TIMEOUT));
        let (response, streaming, _) = paced(&activity);
        let over = tokio::time::timeout(5 * IDLE_TIMEOUT, activity.is_over()).await;
        assert!(over.is_err() && activity.is_streaming());
        drop(response);
        assert!(!activity.is_streaming() && !streaming.is_unread());
        let over = tokio::time::timeout(2 * IDLE_TIMEOUT, activity.is_over()).await;
        assert_eq!(over, Ok(Over::Idle));
    }

    #[test]
    fn what_is_held_is_dropped_with_the_last_copy() {
        let (streaming, held) = (Streaming::new(UNREAD), Arc::new(()));
        streaming.hold(Arc::clone(&held));
        let copy = streaming.clone();
        drop(streaming);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(copy);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
