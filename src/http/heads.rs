//! The memory of heads of requests that are not complete yet: they count against the budget, and
//! get half of it at most.
//!
//! hyper buffers a head of HTTP/1.1 until it is whole, so what is read between two requests is
//! counted as it is read. Bodies are counted by those who read them. A connection of HTTP/2 has one
//! unfinished head at most, whose size h2 limits.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;
use super::budget::{Budget, Held};

/// The largest head of a request in bytes: room for 64 KiB of AAD in base64, and then some. hyper
/// takes 100 headers at most. It is also the largest piece of one read from the socket.
pub(super) const MAX_HEAD: usize = 128 << 10;
/// Bytes of a head that are not counted: hyper's first buffer, which every connection has.
pub(super) const FREE: usize = 8 << 10;

/// A connection whose heads are counted.
pub(super) struct Counted<S> {
    stream: S,
    activity: Arc<Activity>,
    budget: Budget,
    /// Whether what is read between two requests is a head: h2 reads ahead, also of bodies, before
    /// it passes a request on.
    is_http_1: bool,
    /// How many requests had begun when the bytes below were read.
    began: u64,
    /// Bytes since then; more than a head may have are not kept by anybody.
    bytes: usize,
    held: Option<Held>,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>, budget: Budget, is_http_1: bool) -> Self {
        Self { stream, activity, budget, is_http_1, began: 0, bytes: 0, held: None }
    }

    /// Takes room for what was read before, unless that was a whole head; now it is known. Called
    /// before more is read.
    ///
    /// # Errors
    /// When there is no room.
    fn account(&mut self) -> io::Result<()> {
        let (began, _) = self.activity.requests();
        if began != self.began {
            (self.began, self.bytes) = (began, 0);
            // Its buffer stays as large as it is.
            let head = self.activity.head();
            self.held = self.held.take().filter(|_| head > FREE);
            if let Some(held) = &mut self.held {
                held.shrink(head);
            }
        }
        let fits = self.bytes <= FREE
            || match &mut self.held {
                Some(held) => held.grow_in_half(self.bytes),
                None => {
                    self.held = self.budget.take_in_half(self.bytes);
                    self.held.is_some()
                }
            };
        if fits { Ok(()) } else { Err(io::Error::other("there is no room for a head now")) }
    }

    /// Notes that `len` bytes were read.
    fn read(&mut self, len: usize) {
        let (began, ended) = self.activity.requests();
        // Else they are of a body.
        if self.is_http_1 && began == ended {
            self.bytes = self.bytes.saturating_add(len).min(MAX_HEAD);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.account()?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.read(buffer.filled().len().saturating_sub(before));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::activity::UnderWay;
    use super::*;

    impl Counted<()> {
        fn reads(&mut self, len: usize) -> io::Result<()> {
            self.account()?;
            self.read(len);
            Ok(())
        }
    }

    #[test]
    fn heads_count_while_they_are_read_and_bodies_do_not() {
        let activity = Arc::new(Activity::new(Duration::from_secs(1)));
        let budget = Budget::new(100 << 10);
        let left =
            |len: usize| budget.take((len << 10) + 1).is_none() && budget.take(len << 10).is_some();
        let mut one = Counted::new((), Arc::clone(&activity), budget.clone(), true);
        one.reads(FREE).unwrap();
        one.account().unwrap();
        assert!(left(100), "a usual head costs nothing");
        one.reads(12 << 10).unwrap();
        one.account().unwrap();
        assert!(left(80));
        // Head and body may come in one piece: the head is whole, and needs no room.
        one.reads(1 << 20).unwrap();
        let request = UnderWay::begin(Arc::clone(&activity));
        for _ in 0..100 {
            one.reads(100 << 10).unwrap();
        }
        assert!(left(100));
        drop(request);
        one.reads(60 << 10).unwrap();
        assert!(one.account().is_err(), "half of the budget is the most");
        drop(one);
        assert!(left(100));
    }

    #[test]
    fn the_room_of_a_large_head_is_kept_with_its_buffer() {
        let activity = Arc::new(Activity::new(Duration::from_secs(1)));
        let budget = Budget::new(100 << 10);
        let mut one = Counted::new((), Arc::clone(&activity), budget.clone(), true);
        one.reads(30 << 10).unwrap();
        one.reads(1 << 10).unwrap();
        activity.note_head(20 << 10);
        drop(UnderWay::begin(Arc::clone(&activity)));
        one.account().unwrap();
        assert!(budget.take(81 << 10).is_none() && budget.take(80 << 10).is_some());
        one.reads(100).unwrap();
        activity.note_head(100);
        drop(UnderWay::begin(activity));
        one.account().unwrap();
        assert!(budget.take(100 << 10).is_some());
    }
}
