//! Lines about the process itself: start, stop, reload, and calls of roots.

use std::sync::Arc;

use crate::id::{ChainName, KekId};
use crate::metrics::Operation;

use super::format::{self, Line};
use super::peer::Peer;
use super::queue::Taken;
use super::record::{self, OK, Value};
use super::rules::Level;
use super::{Audit, Unavailable};

/// The operation of a caller that got no further than the handshake of TLS.
const HANDSHAKE: &str = "handshake";

/// An event of the process.
pub struct System<'a> {
    /// `start`, `stop`, `reload`, `root_wrap` or `root_unwrap`.
    pub operation: &'static str,
    /// The chain whose KEK a root is called for.
    pub chain: Option<&'a ChainName>,
    /// That KEK.
    pub kek_id: Option<KekId>,
    /// [`OK`] or why not.
    pub outcome: &'a str,
    /// More about it.
    pub change: &'a [(&'a str, &'a Value<'a>)],
}

impl<'a> System<'a> {
    /// An event that has nothing to do with a chain, and did not fail.
    #[must_use]
    pub fn new(operation: &'static str, change: &'a [(&'a str, &'a Value<'a>)]) -> Self {
        Self { operation, chain: None, kek_id: None, outcome: OK, change }
    }
}

impl Audit {
    /// Writes a line about the process, and waits for it.
    ///
    /// # Errors
    /// When it can't be written, and calls are refused then.
    pub fn system(
        &self,
        event: &System<'_>,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send + use<> {
        let taken = self.queue.submit_now(&self.system_line(event), 1);
        async move {
            match taken {
                Taken::Lost => Ok(()),
                Taken::Refused => Err(Unavailable),
                Taken::Waiting(written) => written.end().await.then_some(()).ok_or(Unavailable),
            }
        }
    }

    /// Writes a line about a caller whose certificate was refused by the handshake. Such lines are
    /// limited together with those about other callers that are not identified. Nothing waits for
    /// it, since there is no response.
    pub fn handshake_refused(&self, peer: &Peer) {
        if self.rules.level(None, None, None) == Level::None {
            return;
        }
        if !self.refusals.admit(None) {
            self.metrics.audit.omitted.inc();
            return;
        }
        let mut out = Vec::new();
        format::start(&mut out, self.clock.unix_millis(), &self.node);
        Line::onto(&mut out)
            .plain("api", "http")
            .text("client", None)
            .text("auth", None)
            .some("peer", peer.text())
            .plain("operation", HANDSHAKE)
            .plain("outcome", "unauthenticated")
            .end();
        self.queue.submit_now(&out, 1);
    }

    /// The line of an event, without its beginning.
    pub(super) fn system_line(&self, event: &System<'_>) -> Vec<u8> {
        let System { operation, chain, kek_id, outcome, change } = *event;
        let mut out = Vec::new();
        format::start(&mut out, self.clock.unix_millis(), &self.node);
        let mut line = Line::after(b"", &mut out);
        // A root is called for a request, or by a task.
        if let Some(record) = record::current() {
            line = line.text("request_id", Some(record.request_id()));
            line = line.some("trace_id", record.trace_id());
        }
        line = line.plain("api", "system").plain("operation", operation);
        if let Some(chain) = chain {
            line = line.plain("chain", chain.as_str());
        }
        if let Some(id) = kek_id {
            line = line.plain("kek_id", id.to_hex().as_str());
        }
        line = line.plain("outcome", outcome);
        if !change.is_empty() {
            line = line.json("change", &format::object(change));
        }
        line.end();
        out
    }

    /// The lines of what was only counted since the last call.
    pub(super) fn counted_lines(&self) -> (Vec<u8>, u64) {
        let (mut out, mut head, mut count) = (Vec::new(), Vec::new(), 0);
        format::start(&mut head, self.clock.unix_millis(), &self.node);
        for (key, sum) in self.counts.take() {
            let mut line = Line::after(&head, &mut out)
                .plain("api", key.api)
                .text("client", key.client.as_deref())
                .text("auth", key.auth)
                .plain("operation", key.operation.map_or(record::UNKNOWN, Operation::as_str))
                .number("count", Some(sum.calls));
            if let Some(chain) = &key.chain {
                line = line.plain("chain", chain.as_str());
            }
            if let Some(id) = key.kek_id {
                line = line.plain("kek_id", id.to_hex().as_str());
            }
            line.number("plaintext_bytes", Some(sum.plaintext_bytes))
                .plain("outcome", key.outcome)
                .end();
            count += 1;
        }
        for (client, omitted) in self.refusals.take() {
            Line::after(&head, &mut out)
                .plain("api", "system")
                .text("client", client.as_ref().map(Arc::as_ref))
                .plain("operation", "omitted")
                .number("count", Some(omitted))
                .plain("outcome", OK)
                .end();
            count += 1;
        }
        (out, count)
    }
}
