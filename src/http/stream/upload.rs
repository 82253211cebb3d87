//! The body of a request, read in pieces, each within a deadline.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use crate::metrics::StreamEnd;
use crate::service::error::Error;

use super::super::body;

/// The body of a request.
pub(super) struct Upload {
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

impl Upload {
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
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamEnd>> {
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
