//! The lines of a request at the level `full`, as JSON.
//!
//! It owns the buffers for them, and does not decide which operation has a line.

use std::cell::RefCell;
use std::ops::Range;

use crate::audit::AadForm;
use crate::audit::format::{self, Line};
use crate::id::{ChainName, KekId};

use super::{ChainRef, Event, Record, State};

/// The lines of a request.
#[derive(Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    count: u64,
    /// The bytes at the beginning of the first line that all lines have.
    head: usize,
    /// What the next item of a batch is likely to have in common with one before.
    common: Option<Common>,
}

/// The fields of an item's line that those of most other items are equal to, and where they are.
struct Common {
    operation: &'static str,
    chain: ChainName,
    kek_id: Option<KekId>,
    /// From the beginning of the line to the number of the item.
    before: Range<usize>,
    /// From there to the fields of one item alone.
    behind: Range<usize>,
}

impl Common {
    fn is_of(&self, operation: &'static str, event: &Event<'_>) -> bool {
        let ChainRef::Known(chain) = event.chain else { return false };
        event.key.is_none()
            && self.kek_id == event.kek_id
            && self.chain == *chain
            && self.operation == operation
    }
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
    pub(super) fn write(
        &self,
        state: &mut State,
        operation: &'static str,
        item: u64,
        event: &Event<'_>,
    ) {
        if state.lines.is_empty() {
            self.begin_lines(state);
            self.write_common(&mut state.lines, 0, operation, item, event);
        } else {
            let Lines { bytes, head, common, .. } = &mut state.lines;
            match common.as_ref().filter(|common| common.is_of(operation, event)) {
                Some(Common { before, behind, .. }) => {
                    bytes.extend_from_within(before.clone());
                    format::decimal(bytes, item);
                    bytes.extend_from_within(behind.clone());
                }
                None => {
                    let start = bytes.len();
                    bytes.extend_from_within(..*head);
                    self.write_common(&mut state.lines, start, operation, item, event);
                }
            }
        }
        state.lines.count += 1;
        self.end_line(&mut state.lines.bytes, event);
    }

    /// Writes the fields that all lines of the request have.
    fn begin_lines(&self, state: &mut State) {
        let State { lines, client, auth, .. } = state;
        lines.bytes = take_buffer();
        format::start(&mut lines.bytes, self.audit.clock.unix_millis(), &self.audit.node);
        let line = Line::onto(&mut lines.bytes).text("request_id", Some(&self.request_id));
        let line = match self.trace_id() {
            Some(id) => line.plain("trace_id", id),
            None => line,
        };
        let line =
            line.plain("api", self.api).text("client", client.as_deref()).text("auth", *auth);
        if let Some(peer) = self.peer.text() {
            _ = line.plain("peer", peer);
        }
        lines.head = lines.bytes.len();
    }

    /// Writes the fields of an operation that other operations of the request may have, too. The
    /// line begins at `start`.
    fn write_common(
        &self,
        lines: &mut Lines,
        start: usize,
        operation: &'static str,
        item: u64,
        event: &Event<'_>,
    ) {
        let Lines { bytes, common, .. } = lines;
        let mut line =
            Line::onto(bytes).plain("operation", operation).some("call", self.call.name.as_deref());
        let mut number = 0..0;
        if self.call.is_batch {
            line = line.number("item", Some(item));
            let digits = item.checked_ilog10().map_or(1, |log| log as usize + 1);
            number = line.len() - digits..line.len();
        }
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
        let end = line.len();
        *common = match (self.call.is_batch, event.chain, event.key) {
            (true, ChainRef::Known(chain), None) => Some(Common {
                operation,
                chain: chain.clone(),
                kek_id: event.kek_id,
                before: start..number.start,
                behind: number.end..end,
            }),
            _ => None,
        };
    }

    /// Writes the other fields, and ends the line.
    fn end_line(&self, bytes: &mut Vec<u8>, event: &Event<'_>) {
        let mut line = Line::onto(bytes);
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
