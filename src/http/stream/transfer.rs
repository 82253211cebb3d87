//! The body of a response that is made of the body of its request, chunk by chunk.
//!
//! It reads the request only when the client takes the response, and holds one chunk. If it fails,
//! the response is aborted. However it ends, its [`Report`] is made.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::cobblestone::CHUNK_LEN;
use crate::metrics::StreamEnd;

use super::cipher::Cipher;
use super::report::Report;
use super::upload::Upload;

/// The response.
pub(super) struct Transfer<C> {
    upload: Upload,
    /// Taken when the last chunk is made, or the stream fails.
    cipher: Option<C>,
    has_failed: bool,
    /// What is made and not given yet.
    ready: VecDeque<Bytes>,
    /// The bytes that are not given yet, if their number is known.
    left: Option<u64>,
    report: Report,
}

impl<C: Cipher> Transfer<C> {
    /// A response that begins with `first`. Without a `cipher` that is all of it.
    pub(super) fn new(
        first: Bytes,
        cipher: Option<C>,
        left: Option<u64>,
        upload: Upload,
        mut report: Report,
    ) -> Self {
        report.passed(C::plaintext(0, first.len()));
        if cipher.is_none() && first.is_empty() {
            // Nobody asks for nothing.
            report.end = StreamEnd::Complete;
        }
        let ready = VecDeque::from([first]);
        Self { upload, cipher, has_failed: false, ready, left, report }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamEnd>> {
        loop {
            self.ready.retain(|bytes| !bytes.is_empty());
            let next = self.ready.front().map(Bytes::len);
            // The bytes with which the announced length is complete wait for the last chunk, which
            // may be empty: a client that has them all believes that it is.
            let waits = next.is_some() && self.left == next.map(|len| len as u64);
            if let Some(bytes) = self.ready.pop_front_if(|_| !waits || self.cipher.is_none()) {
                return Poll::Ready(Ok(Some(bytes)));
            }
            let Some(cipher) = &mut self.cipher else { return Poll::Ready(Ok(None)) };
            self.report.chunk = cipher.chunk();
            ready!(self.upload.poll_read(context))?;
            let before: usize = self.ready.iter().map(Bytes::len).sum();
            let piece = self.upload.take(CHUNK_LEN);
            if piece.is_empty() {
                if let Some(cipher) = self.cipher.take() {
                    self.ready.push_back(cipher.finish()?);
                }
            } else {
                cipher.update(&piece, &mut self.ready)?;
            }
            let made: usize = self.ready.iter().map(Bytes::len).sum();
            self.report.passed(C::plaintext(piece.len(), made - before));
        }
    }
}

impl<C: Cipher> http_body::Body for Transfer<C> {
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        let this = &mut *self;
        if this.has_failed {
            return Poll::Ready(Some(Err(Incomplete)));
        }
        match ready!(this.poll_next(context)) {
            Ok(Some(bytes)) => {
                this.left = this.left.map(|left| left.saturating_sub(bytes.len() as u64));
                // A client's side that knows the length may not ask for the end.
                if this.cipher.is_none() && this.ready.iter().all(Bytes::is_empty) {
                    this.report.end = StreamEnd::Complete;
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Ok(None) => {
                this.report.end = StreamEnd::Complete;
                Poll::Ready(None)
            }
            Err(end) => {
                this.report.end = end;
                (this.has_failed, this.cipher, this.left) = (true, None, None);
                this.ready.clear();
                Poll::Ready(Some(Err(Incomplete)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.report.end == StreamEnd::Complete
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// The stream failed; its report says why.
#[derive(Debug, thiserror::Error)]
#[error("the stream failed")]
pub(super) struct Incomplete;
