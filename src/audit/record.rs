//! What one request reports, collected until its response is ready.
//!
//! A listener that has an audit log begins a [`Record`] for each request, runs the request in its
//! scope, and waits for [`Record::end`] before it responds. The service reports each operation to
//! the record of the current request. A request that reports nothing has one line all the same.
//!
//! Records are used again, so that a request whose operations are only counted allocates nothing.
//! `record/lines.rs` writes the lines.

use std::cell::RefCell;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::id::{ChainName, KekId};
use crate::metrics::Operation;
use crate::trace_context::TraceId;

use super::counts::{self, Sum};
pub use super::format::Value;
use super::peer::Peer;
use super::queue::Taken;
use super::rules::Level;
use super::{Audit, Unavailable};

mod lines;

use lines::Lines;

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

/// What one request reports.
pub struct Record {
    audit: Arc<Audit>,
    api: &'static str,
    request_id: String,
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
    /// The trace that the caller says the request belongs to.
    pub trace_id: Option<TraceId>,
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
    /// Those of the level `full`.
    lines: Lines,
    /// Those of the level `count`.
    counted: Vec<Counted>,
}

/// Operations of a request that are counted together.
struct Counted {
    operation: Option<Operation>,
    chain: Option<ChainName>,
    kek_id: Option<KekId>,
    outcome: &'static str,
    sum: Sum,
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
    /// Whether it is answered even if its lines can't be written.
    pub is_answered_anyway: bool,
}

thread_local! {
    /// Records of requests that have ended, to be used again. The last one is in the cache of the
    /// processor.
    static ENDED: RefCell<Vec<Arc<Record>>> = const { RefCell::new(Vec::new()) };
}

/// The records that a thread keeps, and the counts and the bytes of an id in one.
const MAX_ENDED: usize = 16;
const MAX_COUNTED: usize = 16;
const MAX_ID: usize = 256;

impl Record {
    /// Begins the record of a request.
    pub(super) fn begin(
        audit: &Arc<Audit>,
        api: &'static str,
        id: &str,
        peer: Peer,
        call: Call,
    ) -> Arc<Self> {
        if let Some(mut ended) = ENDED.with_borrow_mut(Vec::pop)
            // A task of the request may still have it.
            && let Some(record) = Arc::get_mut(&mut ended)
            && Arc::ptr_eq(&record.audit, audit)
        {
            record.api = api;
            record.request_id.clear();
            record.request_id.push_str(id);
            (record.peer, record.call) = (peer, call);
            let state = record.state.get_mut();
            let mut counted = std::mem::take(&mut state.counted);
            counted.clear();
            *state = State { counted, ..State::default() };
            return ended;
        }
        let (audit, request_id) = (Arc::clone(audit), id.to_owned());
        Arc::new(Self { audit, api, request_id, peer, call, state: Mutex::default() })
    }

    /// Keeps a record whose request has ended.
    fn keep(self: Arc<Self>) {
        if self.request_id.capacity() <= MAX_ID {
            ENDED.with_borrow_mut(|ended| {
                if ended.len() < MAX_ENDED {
                    ended.push(self);
                }
            });
        }
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

    /// The trace that the request belongs to.
    pub(super) fn trace_id(&self) -> Option<&str> {
        self.call.trace_id.as_ref().map(TraceId::as_str)
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
    pub fn continued(&self) -> Arc<Self> {
        let (id, peer, call) = (&self.request_id, self.peer.clone(), self.call.clone());
        let record = Self::begin(&self.audit, self.api, id, peer, call);
        let state = self.state.lock();
        let (client, auth) = (state.client.clone(), state.auth);
        drop(state);
        if let Some(auth) = auth {
            record.identified(client, auth);
        }
        record
    }

    /// Adds an operation.
    pub fn add(&self, event: &Event<'_>) {
        self.add_to(&mut self.state.lock(), event);
    }

    fn add_to(&self, state: &mut State, event: &Event<'_>) {
        let item = state.reported;
        state.reported += 1;
        let operation = event.operation.or(state.operation);
        let named = event.chain.text();
        match self.audit.rules.level(operation, named, state.client.as_deref()) {
            Level::None => {}
            Level::Count => count(&mut state.counted, operation, event),
            Level::Full => {
                let is_limited = state.auth.is_none() || REFUSED.contains(&event.outcome);
                if is_limited && !self.audit.refusals.admit(state.client.as_ref()) {
                    self.audit.metrics.audit.omitted.inc();
                    return;
                }
                self.write(state, operation.map_or(UNKNOWN, Operation::as_str), item, event);
            }
        }
    }

    /// Writes the lines of the request, and waits until the operating system has them.
    ///
    /// # Errors
    /// When they can't be written, and the request must fail.
    pub async fn end(self: Arc<Self>, request: Request<'_>) -> Result<(), Unavailable> {
        let ended = match self.submit(&request) {
            Taken::Lost => Ok(()),
            Taken::Refused => Err(Unavailable),
            Taken::Waiting(written) => {
                self.audit.queue.written(written).await.then_some(()).ok_or(Unavailable)
            }
        };
        self.keep();
        ended
    }

    /// Gives the lines to the writer, and what is counted to the counts.
    fn submit(&self, request: &Request<'_>) -> Taken {
        let mut state = self.state.lock();
        // A failure before any operation, and a call that reads, report nothing themselves.
        if state.reported == 0 {
            let event = Event {
                operation: request.operation,
                chain: request.chain.map_or(ChainRef::None, ChainRef::Named),
                outcome: request.failure.unwrap_or(OK),
                ..Event::default()
            };
            self.add_to(&mut state, &event);
        }
        if let Some(failure) = request.failure {
            state.fail(failure);
        }
        self.submit_counts(&mut state);
        let (queue, lines) = (&self.audit.queue, std::mem::take(&mut state.lines));
        drop(state);
        if lines.is_empty() {
            let is_refused = queue.is_closed() && !request.is_answered_anyway;
            return if is_refused { Taken::Refused } else { Taken::Lost };
        }
        match request.is_answered_anyway {
            false => queue.submit(lines.as_bytes(), lines.count()),
            true => queue.offer(lines.as_bytes(), lines.count()),
        }
    }

    fn submit_counts(&self, state: &mut State) {
        let State { client, auth, counted, .. } = state;
        while let Some(Counted { operation, chain, kek_id, outcome, sum }) = counted.pop() {
            // Most requests have one.
            let client = if counted.is_empty() { client.take() } else { client.clone() };
            let (api, auth) = (self.api, *auth);
            let key = counts::Key { api, client, auth, operation, chain, kek_id, outcome };
            self.audit.counts.add(key, sum);
        }
        if counted.capacity() > MAX_COUNTED {
            *counted = Vec::new();
        }
    }
}

/// Counts an operation.
fn count(counted: &mut Vec<Counted>, operation: Option<Operation>, event: &Event<'_>) {
    // A name or an id that a caller may have invented is not counted separately.
    let is_ok = event.outcome == OK;
    let chain = match event.chain {
        ChainRef::Known(name) => Some(name),
        ChainRef::Named(_) | ChainRef::None => None,
    };
    let (kek_id, outcome) = (event.kek_id.filter(|_| is_ok), event.outcome);
    let bytes = event.plaintext_bytes.and_then(|bytes| u64::try_from(bytes).ok());
    let one = Sum { calls: 1, plaintext_bytes: bytes.filter(|_| is_ok).unwrap_or_default() };
    // The items of a batch usually have all this in common.
    if let Some(last) = counted.last_mut()
        && (last.operation, last.chain.as_ref(), last.kek_id) == (operation, chain, kek_id)
        && last.outcome == outcome
    {
        return last.sum.add(one);
    }
    if counted.is_empty() {
        // Most requests have one.
        counted.reserve_exact(1);
    }
    counted.push(Counted { operation, chain: chain.cloned(), kek_id, outcome, sum: one });
}

impl State {
    /// What is not returned was not done for the caller: the operations that succeeded have the
    /// outcome of the request.
    fn fail(&mut self, failure: &'static str) {
        for it in self.counted.iter_mut().filter(|it| it.outcome == OK) {
            (it.outcome, it.kek_id, it.sum.plaintext_bytes) = (failure, None, 0);
        }
        self.lines.fail(failure);
    }
}

#[cfg(test)]
mod tests;
