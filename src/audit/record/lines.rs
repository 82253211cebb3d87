//! The lines of a request at the level `full`, as JSON.
//!
//! It owns the buffers for them, and does not decide which operation has a line.

use std::cell::RefCell;

use crate::audit::AadForm;
use crate::audit::format::{self, Line};
use crate::id::ChainName;

use super::{ChainRef, Event, Record, State};

/// The lines of a request.
#[derive(Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    count: u64,
    /// The bytes at the beginning of the first line that all lines have.
    head: usize,
}

impl Lines {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives the operations that succeeded another outcome.
    pub(super) fn fail(&mut self, failure: &'static str) {
        let Ok(text) = std::str::from_utf8(&self.bytes) else { return };
        if text.contains(SUCCEEDED) {
            let failed = format!(",\"outcome\":\"{failure}\"");
            self.bytes = text.replace(SUCCEEDED, &failed).into_bytes();
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        keep_buffer(std::mem::take(&mut self.bytes));
    }
}

impl Record {
    /// Writes the line of an operation.
    pub(super) fn write(&self, state: &mut State, operation: &str, item: u64, event: &Event<'_>) {
        if state.lines.is_empty() {
            self.begin_lines(state);
        } else {
            let Lines { bytes, head, .. } = &mut state.lines;
            bytes.extend_from_within(..*head);
        }
        state.lines.count += 1;
        self.end_line(&mut state.lines.bytes, operation, item, event);
    }

    /// Writes the fields that all lines of the request have.
    fn begin_lines(&self, state: &mut State) {
        let State { lines, client, auth, .. } = state;
        lines.bytes = take_buffer();
        format::start(&mut lines.bytes, self.audit.clock.unix_millis(), &self.audit.node);
        let line = Line::onto(&mut lines.bytes)
            .text("request_id", Some(&self.request_id))
            .plain("api", self.api)
            .text("client", client.as_deref())
            .text("auth", *auth);
        if let Some(peer) = self.peer.text() {
            _ = line.plain("peer", peer);
        }
        lines.head = lines.bytes.len();
    }

    /// Writes the fields of one operation.
    fn end_line(&self, lines: &mut Vec<u8>, operation: &str, item: u64, event: &Event<'_>) {
        let mut line = Line::onto(lines)
            .plain("operation", operation)
            .some("call", self.call.name.as_deref())
            .number("item", self.call.is_batch.then_some(item));
        line = match event.chain {
            ChainRef::Known(name) => line.plain("chain", name.as_str()),
            // An invalid name may be a secret in the wrong field.
            ChainRef::Named(name) if ChainName::new(name).is_ok() => line.plain("chain", name),
            ChainRef::Named(_) | ChainRef::None => line,
        };
        line = line.some("key", event.key);
        if let Some(id) = event.kek_id {
            line = line.plain("kek_id", id.to_hex().as_str());
        }
        line = match (event.aad.filter(|aad| !aad.is_empty()), self.audit.aad) {
            (None, _) | (_, AadForm::None) => line,
            (Some(aad), AadForm::Hmac) => line.hmac("aad", &(self.audit.hmac)(aad)),
            (Some(aad), AadForm::Plain) => line.whole("aad", &format::plain_aad(aad)),
        };
        let bytes = event.plaintext_bytes.and_then(|bytes| u64::try_from(bytes).ok());
        line = line
            .number("plaintext_bytes", bytes)
            .number("chunk", event.chunk)
            .plain("outcome", event.outcome);
        if !event.change.is_empty() {
            line = line.json("change", &format::object(event.change));
        }
        line.end();
    }
}

/// The outcome in a line about an operation that succeeded. No text of a line contains these bytes,
/// since its quotes are escaped.
const SUCCEEDED: &str = ",\"outcome\":\"ok\"";

thread_local! {
    /// Buffers for lines: a buffer that grows is copied, and wiped where it was.
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// The buffers of a thread that are kept, and their largest size.
const MAX_BUFFERS: usize = 16;
const KEPT: usize = 128 << 10;

fn take_buffer() -> Vec<u8> {
    let kept = BUFFERS.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| Vec::with_capacity(512))
}

fn keep_buffer(mut buffer: Vec<u8>) {
    if (1..=KEPT).contains(&buffer.capacity()) {
        buffer.clear();
        // The thread may be ending.
        _ = BUFFERS.try_with(|buffers| {
            let mut buffers = buffers.borrow_mut();
            if buffers.len() < MAX_BUFFERS {
                buffers.push(buffer);
            }
        });
    }
}
