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

thread_local! {
    /// Where the lines of a request are made.
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that grew beyond this is not kept.
const KEPT: usize = 256 << 10;

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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    client: Option<Arc<str>>,
    /// How the caller was identified; `None` until it is.
    auth: Option<&'static str>,
    /// What the request asks for.
    operation: Option<Operation>,
    entries: Vec<Entry>,
}

struct Entry {
    level: Level,
    operation: Option<Operation>,
    chain: Option<ChainName>,
    /// Whether the chain exists.
    is_known: bool,
    key: Option<Box<str>>,
    kek_id: Option<KekId>,
    aad: Aad,
    plaintext_bytes: Option<usize>,
    outcome: &'static str,
    change: Option<String>,
}

enum Aad {
    None,
    Hmac([u8; 32]),
    Plain(String),
}

/// What a listener knows of a request when its response is ready.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// What it asked for.
    pub operation: Option<Operation>,
    /// The call, as the API names it. Left out where the operation says it all.
    pub call: Option<&'a str>,
    /// The chain in its path.
    pub chain: Option<&'a str>,
    /// Whether each operation is an item of a batch.
    pub is_batch: bool,
    /// The code of the error that it ends with.
    pub failure: Option<&'static str>,
}

impl Record {
    pub(super) fn new(audit: Arc<Audit>, api: &'static str, id: &str, peer: Peer) -> Self {
        Self { audit, api, request_id: id.into(), peer, state: Mutex::default() }
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

    /// The caller is identified: by name, or as one who needs no name.
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
            state: Mutex::new(State { client, auth, ..State::default() }),
        }
    }

    /// Adds an operation.
    pub fn add(&self, event: &Event<'_>) {
        let mut state = self.state.lock();
        let asked = event.operation.or(state.operation);
        let operation = asked.map_or(UNKNOWN, Operation::as_str);
        let named = event.chain.text();
        let level = self.audit.rules.level(operation, named, state.client.as_deref());
        let aad = event.aad.filter(|aad| level == Level::Full && !aad.is_empty());
        let aad = match (aad, self.audit.aad) {
            (None, _) | (_, AadForm::None) => Aad::None,
            (Some(aad), AadForm::Hmac) => Aad::Hmac((self.audit.hmac)(aad)),
            (Some(aad), AadForm::Plain) => Aad::Plain(plain(aad)),
        };
        let (chain, is_known) = match event.chain {
            ChainRef::None => (None, false),
            // An invalid name may be a secret in the wrong field.
            ChainRef::Named(name) => (ChainName::new(name).ok(), false),
            ChainRef::Known(name) => (Some(name.clone()), true),
        };
        if state.entries.is_empty() {
            // Most requests have one.
            state.entries.reserve_exact(1);
        }
        state.entries.push(Entry {
            level,
            operation: asked,
            chain,
            is_known,
            key: event.key.map(Into::into),
            kek_id: event.kek_id,
            aad,
            plaintext_bytes: event.plaintext_bytes,
            outcome: event.outcome,
            change: (!event.change.is_empty()).then(|| format::object(event.change)),
        });
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

    /// Makes the lines and gives them to the writer.
    fn submit(&self, request: &Request<'_>) -> Taken {
        let is_silent = self.state.lock().entries.is_empty();
        // A failure before any operation, and a call that reads, report nothing themselves.
        if is_silent {
            self.add(&Event {
                operation: request.operation,
                chain: request.chain.map_or(ChainRef::None, ChainRef::Named),
                outcome: request.failure.unwrap_or(OK),
                ..Event::default()
            });
        }
        let State { client, auth, entries, .. } = std::mem::take(&mut *self.state.lock());
        LINES.with_borrow_mut(|lines| {
            lines.clear();
            // The head of the first line is that of the others.
            let (mut head, mut count) = (0, 0);
            for (item, entry) in entries.into_iter().enumerate() {
                // What is not returned was not done for the caller.
                let outcome = match request.failure {
                    Some(failure) if entry.outcome == OK => failure,
                    _ => entry.outcome,
                };
                match entry.level {
                    Level::None => {}
                    Level::Count => self.count(entry, outcome, client.as_ref(), auth),
                    Level::Full => {
                        let is_limited = auth.is_none() || REFUSED.contains(&outcome);
                        if is_limited && !self.audit.refusals.admit(client.as_ref()) {
                            self.audit.metrics.audit.omitted.inc();
                            continue;
                        }
                        if count == 0 {
                            self.head(lines, client.as_deref(), auth);
                            head = lines.len();
                        } else {
                            lines.extend_from_within(..head);
                        }
                        let item = request.is_batch.then_some(item);
                        entry.write(request, item, outcome, lines);
                        count += 1;
                    }
                }
            }
            let taken = if count > 0 {
                self.audit.queue.submit(lines, count)
            } else if self.audit.queue.is_closed() {
                Taken::Refused
            } else {
                Taken::Lost
            };
            if lines.capacity() > KEPT {
                *lines = Vec::new();
            }
            taken
        })
    }

    /// The fields that all lines of the request have.
    fn head(&self, out: &mut Vec<u8>, client: Option<&str>, auth: Option<&'static str>) {
        format::start(out, self.audit.clock.unix_millis(), &self.audit.node);
        let line = Line::onto(out)
            .text("request_id", Some(&self.request_id))
            .plain("api", self.api)
            .text("client", client)
            .text("auth", auth);
        if let Some(peer) = self.peer.text() {
            _ = line.plain("peer", peer);
        }
    }

    fn count(
        &self,
        entry: Entry,
        outcome: &'static str,
        client: Option<&Arc<str>>,
        auth: Option<&'static str>,
    ) {
        // A name or an id that a caller may have invented is not counted separately.
        let is_ok = outcome == OK;
        let key = counts::Key {
            api: self.api,
            client: client.cloned(),
            auth,
            operation: entry.operation,
            chain: entry.chain.filter(|_| entry.is_known),
            kek_id: entry.kek_id.filter(|_| is_ok),
            outcome,
        };
        let bytes = entry.plaintext_bytes.and_then(|bytes| u64::try_from(bytes).ok());
        self.audit.counts.add(key, bytes.filter(|_| is_ok).unwrap_or_default());
    }
}

impl Entry {
    fn write(&self, request: &Request<'_>, item: Option<usize>, outcome: &str, out: &mut Vec<u8>) {
        let operation = self.operation.map_or(UNKNOWN, Operation::as_str);
        let mut line = Line::onto(out)
            .plain("operation", operation)
            .some("call", request.call)
            .number("item", item.and_then(|item| u64::try_from(item).ok()));
        if let Some(chain) = &self.chain {
            line = line.plain("chain", chain.as_str());
        }
        line = line.some("key", self.key.as_deref());
        if let Some(id) = self.kek_id {
            line = line.plain("kek_id", id.to_hex().as_str());
        }
        line = match &self.aad {
            Aad::None => line,
            Aad::Hmac(hmac) => line.hmac("aad", hmac),
            Aad::Plain(text) => line.whole("aad", text),
        };
        let bytes = self.plaintext_bytes.and_then(|bytes| u64::try_from(bytes).ok());
        line = line.number("plaintext_bytes", bytes).plain("outcome", outcome);
        if let Some(change) = &self.change {
            line = line.json("change", change);
        }
        line.end();
    }
}

/// The text of an AAD that is shown: as text if it is UTF-8, else in base64.
fn plain(aad: &[u8]) -> String {
    match std::str::from_utf8(aad) {
        Ok(text) => format!("text:{text}"),
        Err(_) => format!("base64:{}", base64_simd::STANDARD.encode_to_string(aad)),
    }
}
