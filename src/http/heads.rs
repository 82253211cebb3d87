//! The memory of incomplete heads of requests: it counts against the budget, and may use up to half
//! of it.
//!
//! hyper buffers a head of HTTP/1.1 until it is whole, so what is read between two requests is
//! counted as it is read. Bodies are counted by those who read them. A connection of HTTP/2 has one
//! unfinished head at most. A few bytes of it can make h2 keep much, so each counts as the largest
//! one, from the frame that leaves it unfinished to the end of its last frame.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http2_frames::{Frames, Part};

use super::activity::Activity;
use super::budget::{Budget, Held};

/// The largest head of a request in bytes: enough for 64 KiB of AAD in base64. It is also the
/// maximum number of bytes of one read from the socket.
pub(super) const MAX_HEAD: usize = 128 << 10;
/// The same while a response is made of the body of its request: hyper keeps some such buffers.
const STREAM_READ: usize = 16 << 10;
/// Header fields that a request may have. hyper has the same limit for HTTP/1.1, and none for
/// HTTP/2, where a field that is one byte on the wire takes a hundred in memory.
pub(super) const MAX_FIELDS: usize = 100;
/// Bytes of a head that are not counted: hyper's first buffer, which every connection has.
pub(super) const FREE: usize = 8 << 10;

/// What h2 keeps of an unfinished head at most, within [`MAX_HEAD`]: 3,400 fields with names of
/// three letters took 430 KB, one long value 250 KB.
const UNFINISHED: usize = 512 << 10;

/// Types of frames, and the flag of the last one of a head (RFC 9113, section 6).
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A connection whose heads are counted.
pub(super) struct Counted<S> {
    stream: S,
    activity: Arc<Activity>,
    budget: Budget,
    /// Only of HTTP/2: what is read between two requests is not a head there, since h2 reads
    /// ahead, also of bodies, before it passes a request on.
    unfinished: Option<Unfinished>,
    /// How many requests had begun when the bytes below were read.
    began: u64,
    /// Bytes since then; nothing keeps more than the largest head.
    bytes: usize,
    held: Option<Held>,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>, budget: Budget, is_http_1: bool) -> Self {
        let unfinished = (!is_http_1).then(Unfinished::default);
        Self { stream, activity, budget, unfinished, began: 0, bytes: 0, held: None }
    }

    /// Charges the bytes of the last read, unless they were a complete head, which is known now.
    /// Called before the next read.
    ///
    /// # Errors
    /// When there is no room.
    fn account(&mut self) -> io::Result<()> {
        if self.unfinished.is_some() {
            return Ok(());
        }
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
        if fits { Ok(()) } else { Err(no_room()) }
    }

    /// Notes what was read.
    ///
    /// # Errors
    /// When there is no room for an unfinished head of HTTP/2.
    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(unfinished) = &mut self.unfinished {
            if !unfinished.is_after(bytes) {
                self.held = None;
            } else if self.held.is_none() {
                self.held = self.budget.take_in_half(UNFINISHED);
                return if self.held.is_some() { Ok(()) } else { Err(no_room()) };
            }
            return Ok(());
        }
        let (began, ended) = self.activity.requests();
        // Else they are of a body.
        if began == ended {
            self.bytes = self.bytes.saturating_add(bytes.len()).min(MAX_HEAD);
        }
        Ok(())
    }
}

fn no_room() -> io::Error {
    io::Error::other("there is no room for a head now")
}

/// Whether a client of HTTP/2 has begun a head and not ended it.
struct Unfinished {
    frames: Frames,
    is_open: bool,
    /// The head ends with the frame that is being read.
    ends: bool,
}

impl Default for Unfinished {
    fn default() -> Self {
        Self { frames: Frames::of_client(), is_open: false, ends: false }
    }
}

impl Unfinished {
    /// Whether a head is unfinished after the client sent `bytes`.
    fn is_after(&mut self, mut bytes: &[u8]) -> bool {
        while let Some(part) = self.frames.next(&mut bytes) {
            match part {
                // A head in one frame is not decoded before it is whole.
                Part::Head { kind: HEADERS | PUSH_PROMISE, flags } => {
                    self.is_open |= flags & END_HEADERS == 0;
                }
                Part::Head { kind: CONTINUATION, flags } => self.ends = flags & END_HEADERS != 0,
                _ => {}
            }
            if self.ends && self.frames.is_whole() {
                (self.is_open, self.ends) = (false, false);
            }
        }
        self.is_open
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
        if self.activity.is_streaming() && buffer.remaining() > STREAM_READ {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(STREAM_READ));
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut part))?;
            let len = part.filled().len();
            buffer.advance(len);
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        }
        Poll::Ready(self.read(buffer.filled().get(before..).unwrap_or_default()))
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
            self.read(&vec![0; len])
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
    /// A frame of HTTP/2.
    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn an_unfinished_head_of_http_2_counts_until_its_last_frame_is_whole() {
        let budget = Budget::new(2 * UNFINISHED);
        let is_counted = || budget.take(UNFINISHED + 1).is_none();
        let connection = || {
            let activity = Arc::new(Activity::new(Duration::from_secs(1)));
            Counted::new((), activity, budget.clone(), false)
        };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let last = frame(CONTINUATION, END_HEADERS, &[0; 100]);
        let (start, end) = last.split_at(last.len() - 1);
        let mut one = connection();
        for (sent, counts) in [
            (&preface[..], false),
            (&frame(HEADERS, END_HEADERS, &[0; 16 << 10]), false),
            (&frame(0, 0, &[HEADERS; 40]), false),
            (&frame(HEADERS, 0, &[0; 10]), true),
            (&frame(CONTINUATION, 0, &[0; 100]), true),
            (start, true),
            (end, false),
            (&frame(0, 0, &[0; 4_096]), false),
            (&[frame(HEADERS, 0, &[]), last.clone()].concat(), false),
            (&[frame(HEADERS, 0, &[]), start.to_vec()].concat(), true),
        ] {
            one.account().unwrap();
            one.read(sent).unwrap();
            assert_eq!(is_counted(), counts, "{:?}", &sent[..9]);
        }
        let mut other = connection();
        let sent = [&preface[..], &frame(HEADERS, 0, &[])].concat();
        assert!(other.read(&sent).is_err(), "half of the budget is the most");
        drop(one);
        assert!(!is_counted() && connection().read(&sent).is_ok());
    }
}
