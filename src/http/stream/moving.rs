//! The body of a response that is made of the body of its request, chunk by chunk.
//!
//! It reads the request only when the client takes the response, and holds one chunk. If it fails,
//! the response is aborted. However it ends, its [`Report`] is made.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::audit::{self, Record, record};
use crate::cobblestone::{CHUNK_LEN, Invalid, Opener, SealError, Sealer};
use crate::id::{ChainName, KekId};
use crate::metrics::{Counted, Metrics, Operation, StreamEnd};
use crate::service::error::Error;

use super::super::App;
use super::super::body;
use super::super::paced::Streaming;
use super::Streams;

/// The body of a request, read in pieces.
pub(super) struct Coming {
    body: Body,
    /// Its length, if it is declared.
    pub(super) len: Option<u64>,
    /// The rest of the piece that came last.
    pub(super) piece: Bytes,
    is_over: bool,
    idle_timeout: Duration,
    idle: Option<Pin<Box<Sleep>>>,
    /// Whether `idle` is the deadline of what is awaited now.
    is_awaited: bool,
}

impl Coming {
    pub(super) fn new(body: Body, idle_timeout: Duration) -> Self {
        let len = http_body::Body::size_hint(&body).exact();
        let (piece, idle) = (Bytes::new(), None);
        Self { body, len, piece, is_over: false, idle_timeout, idle, is_awaited: false }
    }

    /// Reads until there is a piece, or the body is over. The caller has a deadline.
    pub(super) async fn read(&mut self) -> Result<(), Error> {
        while self.piece.is_empty() && !self.is_over {
            match body::next(&mut self.body).await? {
                Some(piece) => self.piece = piece,
                None => self.is_over = true,
            }
        }
        Ok(())
    }

    /// Takes up to `len` bytes of the piece.
    pub(super) fn take(&mut self, len: usize) -> Bytes {
        self.piece.split_to(len.min(self.piece.len()))
    }

    /// As [`read`](Self::read), with the deadline of a stream.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamEnd>> {
        while self.piece.is_empty() && !self.is_over {
            let body = Pin::new(&mut self.body);
            let Poll::Ready(frame) = http_body::Body::poll_frame(body, context) else {
                let timeout = self.idle_timeout;
                let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                if !self.is_awaited {
                    // Not since the last piece came: the client may have read in between.
                    self.is_awaited = true;
                    idle.as_mut().reset(Instant::now() + timeout);
                }
                ready!(idle.as_mut().poll(context));
                return Poll::Ready(Err(StreamEnd::Stalled));
            };
            self.is_awaited = false;
            match frame {
                Some(Ok(frame)) => self.piece = frame.into_data().unwrap_or_default(),
                Some(Err(_)) => return Poll::Ready(Err(StreamEnd::Aborted)),
                None => self.is_over = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What is done to the bytes.
pub(super) trait Cipher: Send + Unpin + 'static {
    /// Takes up to a chunk of bytes, and passes on the chunks that they complete.
    fn update(&mut self, piece: &[u8], out: &mut VecDeque<Bytes>) -> Result<(), StreamEnd>;

    /// The last chunk.
    fn finish(self) -> Result<Bytes, StreamEnd>;

    /// The number of the next chunk.
    fn chunk(&self) -> u64;

    /// The plaintext among the bytes that came and those that were made of them.
    fn plaintext(came: usize, made: usize) -> usize;
}

pub(super) struct Sealing(pub(super) Sealer);

impl Cipher for Sealing {
    fn update(&mut self, piece: &[u8], out: &mut VecDeque<Bytes>) -> Result<(), StreamEnd> {
        self.0.update(piece, |chunk| out.push_back(chunk.into())).map_err(seal_end)
    }

    fn finish(self) -> Result<Bytes, StreamEnd> {
        self.0.finish().map(Into::into).map_err(seal_end)
    }

    fn chunk(&self) -> u64 {
        self.0.index()
    }

    fn plaintext(came: usize, _: usize) -> usize {
        came
    }
}

fn seal_end(error: SealError) -> StreamEnd {
    match error {
        SealError::TooLong => StreamEnd::TooLong,
        // It is drawn at the start alone.
        SealError::Randomness(_) => StreamEnd::Aborted,
    }
}

pub(super) struct Opening(pub(super) Opener);

impl Cipher for Opening {
    fn update(&mut self, piece: &[u8], out: &mut VecDeque<Bytes>) -> Result<(), StreamEnd> {
        let opened = self.0.update(piece, |chunk| out.push_back(Bytes::from_owner(chunk)));
        opened.map_err(|Invalid| StreamEnd::Invalid)
    }

    fn finish(self) -> Result<Bytes, StreamEnd> {
        self.0.finish().map(Bytes::from_owner).map_err(|Invalid| StreamEnd::Invalid)
    }

    fn chunk(&self) -> u64 {
        self.0.index()
    }

    fn plaintext(_: usize, made: usize) -> usize {
        made
    }
}

/// The response.
pub(super) struct Moving<C> {
    coming: Coming,
    /// Taken when the last chunk is made.
    cipher: Option<C>,
    /// What is made and not given yet.
    ready: VecDeque<Bytes>,
    /// The bytes that are not given yet, if their number is known.
    left: Option<u64>,
    report: Report,
}

impl<C: Cipher> Moving<C> {
    /// A response that begins with `first`. Without a `cipher` that is all of it.
    pub(super) fn new(
        first: Bytes,
        cipher: Option<C>,
        left: Option<u64>,
        coming: Coming,
        mut report: Report,
    ) -> Self {
        report.bytes = C::plaintext(0, first.len()) as u64;
        if cipher.is_none() && first.is_empty() {
            // Nobody asks for nothing.
            report.end = StreamEnd::Complete;
        }
        Self { coming, cipher, ready: VecDeque::from([first]), left, report }
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
            let before: usize = self.ready.iter().map(Bytes::len).sum();
            self.report.chunk = cipher.chunk();
            ready!(self.coming.poll_read(context))?;
            let piece = self.coming.take(CHUNK_LEN);
            if piece.is_empty() {
                if let Some(cipher) = self.cipher.take() {
                    self.ready.push_back(cipher.finish()?);
                }
            } else {
                cipher.update(&piece, &mut self.ready)?;
            }
            let made: usize = self.ready.iter().map(Bytes::len).sum();
            self.report.bytes += C::plaintext(piece.len(), made - before) as u64;
        }
    }
}

impl<C: Cipher> http_body::Body for Moving<C> {
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        let this = &mut *self;
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
                (this.cipher, this.left) = (None, None);
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

/// What is counted and recorded when a stream ends.
pub(super) struct Report {
    end: StreamEnd,
    /// The chunk that was worked on last.
    chunk: u64,
    /// The plaintext that has passed.
    bytes: u64,
    operation: Operation,
    chain: ChainName,
    kek_id: KekId,
    metrics: Arc<Metrics>,
    streams: Arc<Streams>,
    /// For the audit log.
    record: Option<Record>,
    /// Also what the stream holds.
    held: Streaming,
    _open: Counted,
}

impl Report {
    pub(super) fn new(
        app: &App,
        metrics: &Arc<Metrics>,
        operation: Operation,
        chain: &ChainName,
        kek_id: KekId,
        held: &Streaming,
    ) -> Self {
        Self {
            // Unless something else is known: the response is dropped.
            end: StreamEnd::Aborted,
            chunk: 0,
            bytes: 0,
            operation,
            chain: chain.clone(),
            kek_id,
            metrics: Arc::clone(metrics),
            streams: Arc::clone(&app.streams),
            record: record::current().map(|record| record.later()),
            held: held.clone(),
            _open: Counted::new(&metrics.streams.open),
        }
    }

    fn log(&self) {
        let (operation, outcome) = (self.operation.as_str(), self.end.as_str());
        let (chain, chunk, bytes) = (&self.chain, self.chunk, self.bytes);
        let request_id = self.held.request_id();
        let what = "a stream failed";
        if self.streams.log.admit().is_some() {
            tracing::info!(request_id, operation, %chain, outcome, chunk, bytes, "{what}");
        } else {
            tracing::debug!(request_id, operation, %chain, outcome, chunk, bytes, "{what}");
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.metrics.streams.ended(self.operation, self.end, self.bytes);
        if self.end == StreamEnd::Complete {
            return;
        }
        self.log();
        let (Some(record), Ok(runtime)) =
            (self.record.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let operation = Some(self.operation);
        record.add(&audit::Event {
            operation,
            chain: Some(self.chain.as_str()),
            is_known: true,
            kek_id: Some(self.kek_id),
            plaintext_bytes: usize::try_from(self.bytes).ok(),
            chunk: Some(self.chunk),
            outcome: self.end.as_str(),
            ..audit::Event::default()
        });
        let call = format!("POST /v1/stream/{}", self.operation.as_str());
        runtime.spawn(async move {
            // The response has ended: a line that can't be written is counted as lost.
            let call = Some(&*call);
            _ = record.end(audit::Request { operation, call, ..Default::default() }).await;
        });
    }
}
