//! What one request reports, collected until its response is ready.
//!
//! A listener that has an audit log begins a [`Record`] for each request, runs the request in its
//! scope, and waits for [`Record::end`] before it responds. The service reports each operation to
//! the record of the current request. A request that reports nothing has one line all the same.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::id::{ChainName, KekId};
use crate::metrics::Operation;

pub use super::format::Value;
use super::format::{self, Line};
use super::queue::Taken;
use super::rules::Level;
use super::{AadForm, Audit, Unavailable, counts};

tokio::task_local! {
    static CURRENT: Arc<Record>;
}

/// The outcome of an operation that succeeded.
pub const OK: &str = "ok";

/// The operation of a request that the API does not have.
pub(super) const UNKNOWN: &str = "unknown";

/// The outcomes of refused callers, whose lines are limited.
const REFUSED: [&str; 4] = ["unauthenticated", "forbidden", "not_found", "method_not_allowed"];

/// One operation, as the part that did it reports it. It contains no plaintext and no ciphertext.
#[derive(Clone, Copy, Default)]
pub struct Event<'a> {
    /// What was done; without it, what the request asked for.
    pub operation: Option<Operation>,
    /// The chain.
    pub chain: ChainRef<'a>,
    /// The key that the caller named, where it is not a chain.
    pub key: Option<&'a str>,
    /// The KEK.
    pub kek_id: Option<KekId>,
    /// The AAD.
    pub aad: Option<&'a [u8]>,
    /// The size of the plaintext.
    pub plaintext_bytes: Option<usize>,
    /// The chunk of a stream in which it failed.
    pub chunk: Option<u64>,
    /// [`OK`] or the code of the error.
    pub outcome: &'static str,
    /// What an administrative call changed.
    pub change: &'a [(&'a str, &'a Value<'a>)],
}

/// The chain of an operation.
#[derive(Clone, Copy, Debug, Default)]
pub enum ChainRef<'a> {
    /// No chain.
    #[default]
    None,
    /// As a caller named it: it may not exist, and may not be a name.
    Named(&'a str),
    /// One that exists.
    Known(&'a ChainName),
}

impl<'a> ChainRef<'a> {
    fn text(self) -> Option<&'a str> {
        match self {
            Self::None => None,
            Self::Named(name) => Some(name),
            Self::Known(name) => Some(name.as_str()),
        }
    }
}

/// Whether the current request has a record. Without one nothing needs to be reported.
#[must_use]
pub fn is_on() -> bool {
    CURRENT.try_with(|_| ()).is_ok()
}

/// The record of the current request.
#[must_use]
pub fn current() -> Option<Arc<Record>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// Reports an operation to the record of the current request, if there is one.
pub fn report(event: &Event<'_>) {
    _ = CURRENT.try_with(|record| record.add(event));
}

/// Runs `call`, which may be on another task, with the record of a request.
pub async fn within<T>(record: Option<Arc<Record>>, call: impl Future<Output = T>) -> T {
    match record {
        Some(record) => CURRENT.scope(record, call).await,
        None => call.await,
    }
}

/// Runs `call` with the record of a request, if there is one. It is for one poll of a future.
pub fn enter<T>(record: Option<&Arc<Record>>, call: impl FnOnce() -> T) -> T {
    match record {
        Some(record) => CURRENT.sync_scope(Arc::clone(record), call),
        None => call(),
    }
}

/// Who is at the other end of a connection, as lines say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer(Option<Arc<str>>);

impl Peer {
    /// It is not known.
    pub const UNKNOWN: Self = Self(None);

    /// An address.
    #[must_use]
    pub fn address(address: SocketAddr) -> Self {
        Self(Some(address.to_string().into()))
    }

    /// A user of this machine.
    #[must_use]
    pub fn user(uid: u32) -> Self {
        Self(Some(format!("uid:{uid}").into()))
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// What one request reports.
pub struct Record {
    audit: Arc<Audit>,
    api: &'static str,
    request_id: Box<str>,
    peer: Peer,
    call: Call,
    state: Mutex<State>,
}

/// What a request says of all its operations.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// The call, as the API names it. Left out where the operation says it all.
    pub name: Option<Box<str>>,
    /// Whether each operation is an item of a batch.
    pub is_batch: bool,
}

#[derive(Default)]
struct State {
    client: Option<Arc<str>>,
    /// How the caller was identified; `None` until it is.
    auth: Option<&'static str>,
    /// What the request asks for.
    operation: Option<Operation>,
    /// How many operations were reported.
    reported: u64,
    /// The lines of those of the level `full`.
    lines: Vec<u8>,
    count: u64,
    /// The bytes at the beginning of the first line that all lines have.
    head: usize,
    /// Those of the level `count`, with the sizes of their plaintexts.
    counted: Vec<(counts::Key, u64)>,
}

/// What a listener knows of a request when its response is ready.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// What it asked for.
    pub operation: Option<Operation>,
    /// The chain in its path.
    pub chain: Option<&'a str>,
    /// The code of the error that it ends with.
    pub failure: Option<&'static str>,
}

impl Record {
    pub(super) fn new(
        audit: Arc<Audit>,
        api: &'static str,
        id: &str,
        peer: Peer,
        call: Call,
    ) -> Self {
        Self { audit, api, request_id: id.into(), peer, call, state: Mutex::default() }
    }

    /// Whether the request must fail before it does anything, since its lines could not be written.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.audit.is_closed()
    }

    /// The id of the request.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The caller is identified: by name, or as one who needs no name. It comes before the first
    /// operation.
    pub fn identified(&self, client: Option<Arc<str>>, auth: &'static str) {
        let mut state = self.state.lock();
        state.client = client;
        state.auth = Some(auth);
    }

    /// What the request asks for, where its path does not say it.
    pub fn asks(&self, operation: Operation) {
        self.state.lock().operation = Some(operation);
    }

    /// A record of what the same request does after its response has begun.
    #[must_use]
    pub fn continued(&self) -> Self {
        let state = self.state.lock();
        let (client, auth) = (state.client.clone(), state.auth);
        drop(state);
        Self {
            audit: Arc::clone(&self.audit),
            api: self.api,
            request_id: self.request_id.clone(),
            peer: self.peer.clone(),
            call: self.call.clone(),
            state: Mutex::new(State { client, auth, ..State::default() }),
        }
    }

    /// Adds an operation.
    pub fn add(&self, event: &Event<'_>) {
        let mut state = self.state.lock();
        let item = state.reported;
        state.reported += 1;
        let asked = event.operation.or(state.operation);
        let operation = asked.map_or(UNKNOWN, Operation::as_str);
        let named = event.chain.text();
        match self.audit.rules.level(operation, named, state.client.as_deref()) {
            Level::None => {}
            Level::Count => self.count(&mut state, asked, event),
            Level::Full => {
                let is_limited = state.auth.is_none() || REFUSED.contains(&event.outcome);
                if is_limited && !self.audit.refusals.admit(state.client.as_ref()) {
                    self.audit.metrics.audit.omitted.inc();
                    return;
                }
                if state.count == 0 {
                    state.lines = take_buffer();
                    self.head(&mut state);
                } else {
                    let head = state.head;
                    state.lines.extend_from_within(..head);
                }
                state.count += 1;
                self.write(&mut state.lines, operation, item, event);
            }
        }
    }

    /// The fields that all lines of the request have.
    fn head(&self, state: &mut State) {
        let State { lines, client, auth, .. } = state;
        format::start(lines, self.audit.clock.unix_millis(), &self.audit.node);
        let line = Line::onto(lines)
            .text("request_id", Some(&self.request_id))
            .plain("api", self.api)
            .text("client", client.as_deref())
            .text("auth", *auth);
        if let Some(peer) = self.peer.text() {
            _ = line.plain("peer", peer);
        }
        state.head = state.lines.len();
    }

    /// Writes the fields of one operation.
    fn write(&self, lines: &mut Vec<u8>, operation: &str, item: u64, event: &Event<'_>) {
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
            (Some(aad), AadForm::Plain) => line.whole("aad", &plain(aad)),
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

    fn count(&self, state: &mut State, operation: Option<Operation>, event: &Event<'_>) {
        // A name or an id that a caller may have invented is not counted separately.
        let is_ok = event.outcome == OK;
        let key = counts::Key {
            api: self.api,
            client: state.client.clone(),
            auth: state.auth,
            operation,
            chain: match event.chain {
                ChainRef::Known(name) => Some(name.clone()),
                ChainRef::Named(_) | ChainRef::None => None,
            },
            kek_id: event.kek_id.filter(|_| is_ok),
            outcome: event.outcome,
        };
        let bytes = event.plaintext_bytes.and_then(|bytes| u64::try_from(bytes).ok());
        if state.counted.is_empty() {
            // Most requests have one.
            state.counted.reserve_exact(1);
        }
        state.counted.push((key, bytes.filter(|_| is_ok).unwrap_or_default()));
    }

    /// Writes the lines of the request, and waits until the operating system has them.
    ///
    /// # Errors
    /// When they can't be written, and the request must fail.
    pub async fn end(&self, request: Request<'_>) -> Result<(), Unavailable> {
        match self.submit(&request) {
            Taken::Lost => Ok(()),
            Taken::Refused => Err(Unavailable),
            Taken::Waiting(written) => {
                self.audit.queue.written(written).await.then_some(()).ok_or(Unavailable)
            }
        }
    }

    /// Gives the lines to the writer.
    fn submit(&self, request: &Request<'_>) -> Taken {
        let is_silent = self.state.lock().reported == 0;
        // A failure before any operation, and a call that reads, report nothing themselves.
        if is_silent {
            self.add(&Event {
                operation: request.operation,
                chain: request.chain.map_or(ChainRef::None, ChainRef::Named),
                outcome: request.failure.unwrap_or(OK),
                ..Event::default()
            });
        }
        let mut state = std::mem::take(&mut *self.state.lock());
        if let Some(failure) = request.failure {
            self.fail(&mut state, failure);
        }
        for (key, bytes) in state.counted {
            self.audit.counts.add(key, bytes);
        }
        let taken = if state.count > 0 {
            self.audit.queue.submit(&state.lines, state.count)
        } else if self.audit.queue.is_closed() {
            Taken::Refused
        } else {
            Taken::Lost
        };
        keep_buffer(state.lines);
        taken
    }

    /// What is not returned was not done for the caller: the operations that succeeded have the
    /// outcome of the request.
    fn fail(&self, state: &mut State, failure: &'static str) {
        for (key, bytes) in &mut state.counted {
            if key.outcome == OK {
                (key.outcome, key.kek_id, *bytes) = (failure, None, 0);
            }
        }
        let Ok(text) = std::str::from_utf8(&state.lines) else { return };
        if text.contains(SUCCEEDED) {
            let failed = format!(",\"outcome\":\"{failure}\"");
            state.lines = text.replace(SUCCEEDED, &failed).into_bytes();
        }
    }
}

thread_local! {
    /// Buffers for lines: a buffer that grows is copied, and wiped where it was.
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// The outcome in a line about an operation that succeeded. No text of a line contains these bytes,
/// since its quotes are escaped.
const SUCCEEDED: &str = ",\"outcome\":\"ok\"";

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
        BUFFERS.with_borrow_mut(|buffers| {
            if buffers.len() < MAX_BUFFERS {
                buffers.push(buffer);
            }
        });
    }
}

/// The text of an AAD that is shown: as text if it is UTF-8, else in base64.
fn plain(aad: &[u8]) -> String {
    match std::str::from_utf8(aad) {
        Ok(text) => format!("text:{text}"),
        Err(_) => format!("base64:{}", base64_simd::STANDARD.encode_to_string(aad)),
    }
}

#[cfg(test)]
mod tests;
