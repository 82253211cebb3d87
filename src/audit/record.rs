//! What one request reports, collected until its response is ready.
//!
//! A listener that has an audit log begins a [`Record`] for each request, runs the request in its
//! scope, and waits for [`Record::end`] before it responds. The service reports each operation to
//! the record of the current request. A request that reports nothing has one line all the same.

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
const UNKNOWN: &str = "unknown";

/// The outcomes of refused callers, whose lines are limited.
const REFUSED: [&str; 4] = ["unauthenticated", "forbidden", "not_found", "method_not_allowed"];

/// One operation, as the part that did it reports it. It contains no plaintext and no ciphertext.
#[derive(Clone, Copy, Default)]
pub struct Event<'a> {
    /// What was done; without it, what the request asked for.
    pub operation: Option<Operation>,
    /// The chain, as far as the caller named a possible one.
    pub chain: Option<&'a str>,
    /// Whether the chain is known to exist.
    pub is_known: bool,
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

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It is not known.
    Unknown,
    /// An address.
    Address(SocketAddr),
    /// A user of this machine.
    User(u32),
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
    is_known: bool,
    key: Option<Box<str>>,
    kek_id: Option<KekId>,
    aad: Aad,
    plaintext_bytes: Option<usize>,
    chunk: Option<u64>,
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

    /// A record of the same request, for what is reported after its response began.
    #[must_use]
    pub fn later(&self) -> Self {
        let state = self.state.lock();
        let (client, auth, operation) = (state.client.clone(), state.auth, state.operation);
        let state = State { client, auth, operation, entries: Vec::new() };
        Self {
            audit: Arc::clone(&self.audit),
            api: self.api,
            request_id: self.request_id.clone(),
            peer: self.peer,
            state: Mutex::new(state),
        }
    }

    /// Adds an operation.
    pub fn add(&self, event: &Event<'_>) {
        let mut state = self.state.lock();
        let asked = event.operation.or(state.operation);
        let operation = asked.map_or(UNKNOWN, Operation::as_str);
        let level = self.audit.rules.level(operation, event.chain, state.client.as_deref());
        let aad = event.aad.filter(|aad| level == Level::Full && !aad.is_empty());
        let aad = match (aad, self.audit.aad) {
            (None, _) | (_, AadForm::None) => Aad::None,
            (Some(aad), AadForm::Hmac) => Aad::Hmac((self.audit.hmac)(aad)),
            (Some(aad), AadForm::Plain) => Aad::Plain(plain(aad)),
        };
        // An invalid name may be a secret in the wrong field.
        let chain = event.chain.and_then(|chain| ChainName::new(chain).ok());
        state.entries.push(Entry {
            level,
            operation: asked,
            chain,
            is_known: event.is_known,
            key: event.key.map(Into::into),
            kek_id: event.kek_id,
            aad,
            plaintext_bytes: event.plaintext_bytes,
            chunk: event.chunk,
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
            Taken::Waiting(written) => written.await.then_some(()).ok_or(Unavailable),
        }
    }

    /// Makes the lines and gives them to the writer.
    fn submit(&self, request: &Request<'_>) -> Taken {
        let is_silent = self.state.lock().entries.is_empty();
        // A failure before any operation, and a call that reads, report nothing themselves.
        if is_silent {
            self.add(&Event {
                operation: request.operation,
                chain: request.chain,
                outcome: request.failure.unwrap_or(OK),
                ..Event::default()
            });
        }
        let State { client, auth, entries, .. } = std::mem::take(&mut *self.state.lock());
        let (mut lines, mut count) = (Vec::new(), 0);
        let mut head = Vec::new();
        for (item, entry) in entries.iter().enumerate() {
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
                    if head.is_empty() {
                        self.head(&mut head, client.as_deref(), auth);
                    }
                    let item = request.is_batch.then_some(item);
                    entry.write(&head, request, item, outcome, &mut lines);
                    count += 1;
                }
            }
        }
        if count > 0 {
            return self.audit.queue.submit(&lines, count);
        }
        match self.audit.queue.is_closed() {
            true => Taken::Refused,
            false => Taken::Lost,
        }
    }

    /// The fields that all lines of the request have.
    fn head(&self, out: &mut Vec<u8>, client: Option<&str>, auth: Option<&'static str>) {
        format::start(out, self.audit.clock.unix_millis(), &self.audit.node);
        let mut line = Line::after(b"", out)
            .text("request_id", Some(&self.request_id))
            .plain("api", self.api)
            .text("client", client)
            .text("auth", auth);
        match self.peer {
            Peer::Unknown => {}
            Peer::Address(address) => line = line.display("peer", &address),
            Peer::User(uid) => line = line.display("peer", &format_args!("uid:{uid}")),
        }
        _ = line;
    }

    fn count(
        &self,
        entry: &Entry,
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
            operation: entry.operation.map_or(UNKNOWN, Operation::as_str),
            chain: entry.chain.clone().filter(|_| entry.is_known),
            kek_id: entry.kek_id.filter(|_| is_ok),
            outcome,
        };
        let bytes = entry.plaintext_bytes.and_then(|bytes| u64::try_from(bytes).ok());
        self.audit.counts.add(key, bytes.filter(|_| is_ok).unwrap_or_default());
    }
}

impl Entry {
    fn write(
        &self,
        head: &[u8],
        request: &Request<'_>,
        item: Option<usize>,
        outcome: &str,
        out: &mut Vec<u8>,
    ) {
        let operation = self.operation.map_or(UNKNOWN, Operation::as_str);
        let mut line = Line::after(head, out)
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
        line = line
            .number("plaintext_bytes", bytes)
            .number("chunk", self.chunk)
            .plain("outcome", outcome);
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
