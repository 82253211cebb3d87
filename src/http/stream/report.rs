//! What is counted, logged and recorded when a stream ends.

use std::sync::Arc;

use prometheus::IntCounter;
use tokio::runtime::Handle;

use crate::audit::{ChainRef, Event, Record, Request, record};
use crate::id::{ChainName, KekId};
use crate::log_throttle::LogThrottle;
use crate::metrics::{Counted, Metrics, Operation, StreamEnd};

use super::super::paced::Streaming;
use super::super::request_id::RequestId;

/// The report of one stream, made when it is dropped.
pub(super) struct Report {
    pub(super) end: StreamEnd,
    /// The chunk that was worked on last.
    pub(super) chunk: u64,
    /// The plaintext that has passed.
    bytes: u64,
    operation: Operation,
    chain: ChainName,
    kek_id: KekId,
    metrics: Arc<Metrics>,
    passed: IntCounter,
    throttle: Arc<LogThrottle>,
    /// For the audit log.
    record: Option<Arc<Record>>,
    /// Also what the stream holds.
    held: Streaming,
    _open: Counted,
}

impl Report {
    pub(super) fn new(
        throttle: &Arc<LogThrottle>,
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
            passed: metrics.streams.bytes(operation),
            throttle: Arc::clone(throttle),
            record: record::current().map(|record| record.continued()),
            held: held.clone(),
            _open: Counted::new(&metrics.streams.open),
        }
    }

    /// Counts `len` bytes of plaintext.
    pub(super) fn passed(&mut self, len: usize) {
        self.bytes += len as u64;
        self.passed.inc_by(len as u64);
    }

    fn log(&self) {
        let (operation, outcome) = (self.operation.as_str(), self.end.as_str());
        let (chain, chunk, bytes) = (&self.chain, self.chunk, self.bytes);
        let id = self.held.request_id();
        let request_id = id.map(RequestId::as_str);
        let trace_id = id.and_then(RequestId::trace_text);
        let what = self.end.what();
        if self.throttle.admit().is_some() {
            tracing::info!(
                request_id,
                trace_id,
                operation,
                %chain,
                outcome,
                chunk,
                bytes,
                "{what}"
            );
        } else {
            tracing::debug!(
                request_id,
                trace_id,
                operation,
                %chain,
                outcome,
                chunk,
                bytes,
                "{what}"
            );
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if self.end == StreamEnd::Aborted && self.held.is_unread() {
            self.end = StreamEnd::Unread;
        }
        self.metrics.streams.ended(self.operation, self.end);
        if self.end == StreamEnd::Complete {
            return;
        }
        self.log();
        let Some(record) = self.record.take() else { return };
        record.add(&Event {
            operation: Some(self.operation),
            chain: ChainRef::Known(&self.chain),
            kek_id: Some(self.kek_id),
            plaintext_bytes: usize::try_from(self.bytes).ok(),
            chunk: Some(self.chunk),
            outcome: self.end.as_str(),
            ..Event::default()
        });
        if let Ok(runtime) = Handle::try_current() {
            // The response has ended: a line that can't be written is counted as lost.
            runtime.spawn(async move { _ = record.end(Request::default()).await });
        }
    }
}
