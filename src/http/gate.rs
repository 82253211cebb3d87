//! The gate that every request passes: it assigns an id, checks for requests from web pages,
//! identifies the caller, applies the deadline, catches panics, and writes the log line.
//!
//! It is one step, since a stack of layers costs more than the cryptography. The handlers limit
//! bodies, and the service counts operations.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use http::header::{
    CACHE_CONTROL, CONNECTION, HeaderValue, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Method, Version};
use http_body::Body;
use prometheus::IntGauge;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::audit::{self, record};
use crate::auth::{Auth, Client, Refusal};
use crate::metrics::{Counted, Metrics, Operation, Requests};
use crate::service::error::{Error, Kind};
use crate::telemetry::traces;
use crate::tls::peer::Peer;

use super::audited::{self, CHAIN_STATUS, Recording};
use super::beside::{API, Gatekeeper};
use super::budget::{Budget, Held};
use super::identity::RefusalLog;
use super::origins::Origins;
use super::paced::Streaming;
use super::problem::{self, Problem};
use super::request_id::{REQUEST_ID, RequestId, RequestIds};
use super::status;
use super::{Config, Handler};

mod passing;

use passing::Passing;

/// The largest response over HTTP/1.1 that is not counted: it fits in the buffer of a socket.
const SMALL_ANSWER: u64 = 16 << 10;
/// The memory of a response over HTTP/2 beside its body until the client reads it, and the size of
/// a head from which it counts: a connection has many of them concurrently.
const STREAM: usize = 4 << 10;

/// There is no memory for an error response: HTTP/2 resets the stream.
#[derive(Debug, thiserror::Error)]
#[error("there is no room for an answer")]
pub(super) struct NoRoom;

/// The gate before a handler. Cheap to clone.
#[derive(Clone)]
pub(super) struct Gate {
    handler: Handler,
    shared: Arc<Shared>,
    /// Who is at the other end of the connection, if there is an audit log.
    peer: audit::Peer,
}

pub(super) struct Shared {
    /// If not set, every caller may do everything.
    auth: Option<Arc<Auth>>,
    refusal_log: RefusalLog,
    timeout: Duration,
    idle_timeout: Duration,
    origins: Origins,
    /// Limits the requests that wait for something concurrently.
    waiting: Semaphore,
    budget: Budget,
    metrics: Arc<Metrics>,
    in_flight: IntGauge,
    connections: IntGauge,
    /// What has become of requests; not set for the listener of operators.
    requests: Option<Requests>,
    /// The same of the API beside this one, once it has a request.
    requests_beside: OnceLock<Requests>,
    ids: RequestIds,
}

impl Gate {
    pub(super) fn new(handler: Handler, config: &Config, listen: SocketAddr, is_tls: bool) -> Self {
        let metrics = Arc::clone(&handler.0.metrics);
        let listener = if handler.0.has_data { "public" } else { "admin" };
        let (in_flight, connections) = metrics.traffic.listener(listener);
        let requests = handler.0.has_data.then(|| metrics.traffic.requests("http"));
        let shared = Shared {
            auth: handler.0.auth.clone(),
            refusal_log: RefusalLog::default(),
            timeout: config.request_timeout,
            idle_timeout: config.idle_timeout,
            origins: Origins::new(listen, is_tls, handler.0.auth.is_some()),
            waiting: Semaphore::new(config.max_requests),
            // Metrics must be readable when callers have used up their budget.
            budget: match handler.0.has_data {
                true => handler.0.budget.clone(),
                false => Budget::new(config.body_memory()),
            },
            metrics,
            in_flight,
            connections,
            requests,
            requests_beside: OnceLock::new(),
            ids: RequestIds::new(),
        };
        Self { handler, shared: Arc::new(shared), peer: audit::Peer::UNKNOWN }
    }

    /// The gate for the requests of a connection.
    pub(super) fn of(self, stream: &TcpStream) -> Self {
        let address = self.handler.0.audit.get().and_then(|_| stream.peer_addr().ok());
        let peer = address.map_or(audit::Peer::UNKNOWN, audit::Peer::address);
        Self { peer, ..self }
    }

    /// How long a connection stays open between two requests.
    pub(super) fn idle_timeout(&self) -> Duration {
        self.shared.idle_timeout
    }

    /// Counts a connection until what it returns is dropped.
    pub(super) fn connected(&self) -> Counted {
        Counted::new(&self.shared.connections)
    }

    /// The budget of bodies and answers.
    pub(super) fn budget(&self) -> &Budget {
        &self.shared.budget
    }

    /// Counts a caller whose certificate was refused by the handshake.
    pub(super) fn refused(&self, why: &std::io::Error) {
        if let Some(auth) = &self.shared.auth {
            auth.failed(Refusal::Certificate);
        }
        self.shared.refusal_log.handshake(why);
        if let Some(audit) = self.handler.0.audit.get() {
            audit.handshake_refused(&self.peer);
        }
    }

    /// Handles a request. A response that counts has its length and its part of the budget.
    ///
    /// # Errors
    /// [`NoRoom`], on HTTP/2 alone.
    pub(super) async fn pass(
        self,
        request: Request,
    ) -> Result<(Response, Option<(Held, usize)>), NoRoom> {
        let Self { handler, shared, peer } = self;
        let in_flight = Counted::new(&shared.in_flight);
        let many = request.version() >= Version::HTTP_2;
        let framed = is_framed(request.headers());
        // HTTP/2 announces the end of a connection by GOAWAY.
        let last = !many && (handler.is_draining() || !framed);
        let head = if many { size(&request) } else { 0 };
        let head = (head > STREAM).then(|| shared.budget.take(head).ok_or(NoRoom)).transpose()?;
        let id = shared.ids.of(request.headers());
        let operation = operation(request.method(), request.uri().path());
        let started = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| (std::time::Instant::now(), request.method().clone(), request.uri().clone()));
        let (method, path) = (request.method(), request.uri().path());
        let span = traces::begin(id.trace(), method, path, id.as_str());
        let answering = Answering {
            is_for_people: status::is_for_people(&request),
            is_starting: handler.is_starting(),
        };
        let mut client = None;
        let beside = handler.0.beside.get().filter(|api| api.takes(&request)).cloned();
        let recording = handler.0.audit.get().map(|audit| {
            let is_beside = beside.is_some();
            Recording::begin(audit, &request, &id, peer, operation, is_beside)
        });
        let is_open = shared.auth.is_none();
        let passing = Passing { shared: &shared, id: &id, client: &mut client };
        let answered = match recording.as_ref().map(|it| it.record(is_open)).transpose() {
            Err(error) => Err(error),
            Ok(record) => {
                let mut answer = pin!(passing.answer(handler, request, beside.as_deref(), framed));
                poll_fn(|context| {
                    let mut poll = || record::enter(record, || answer.as_mut().poll(context));
                    match &span {
                        Some(span) => span.enter(poll),
                        None => poll(),
                    }
                })
                .await
            }
        };
        let mut failure = match &answered {
            Ok(response) => audited::failure(response),
            Err(error) => Some(error.kind().code()),
        };
        if let Some(client) = &client {
            let error = match &answered {
                Ok(response) => response.extensions().get().map(|Problem(error)| error),
                Err(error) => Some(error),
            };
            let code = error.map_or("", |error| error.kind().code());
            shared.metrics.traffic.client_failed(client.name(), code);
        }
        let refused = |error: &Error| match &beside {
            Some(api) => api.refuse(error, &id),
            None => answering.failed(error, &id, &HeaderMap::new()),
        };
        let mut response = answered.unwrap_or_else(|error| refused(&error));
        if let Some(Problem(error)) = response.extensions_mut().remove::<Problem>() {
            if let Some(operation) = operation
                && !error.is_counted()
            {
                shared.metrics.failed(operation, "", error.kind().code());
            }
            response = answering.failed(&error, &id, response.headers());
        }
        if let Some((started, method, uri)) = started {
            let (path, status) = (uri.path(), response.status().as_u16());
            // As u64: the JSON log writes u128 as text.
            let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            let client = client.as_deref().map(Client::name);
            let (request_id, trace_id) = (id.as_str(), id.trace_text());
            tracing::debug!(
                request_id,
                trace_id,
                client,
                %method,
                path,
                status,
                took_us,
                "a request"
            );
        }
        drop(head);
        let held = match shared.room(&response, many) {
            Err(NoRoom) => {
                let why = "too many answers are not sent yet";
                response = refused(&Error::new(Kind::Overloaded, why));
                failure = Some(Kind::Overloaded.code());
                shared.room(&response, many)?
            }
            Ok(held) => held,
        };
        let lacks_line = recording.as_ref().is_some_and(Recording::lacks_line);
        if let Some(recording) = recording
            && let Err(error) = recording.end(failure).await
        {
            response = refused(&error);
            failure = Some(error.kind().code());
        }
        if let Some(requests) = shared.requests(beside.is_some()) {
            requests.ended(failure);
        }
        if let Some(span) = span {
            span.end(response.status().as_u16(), failure, client.as_deref().map(Client::name));
        }
        if let Some(streaming) = response.extensions().get::<Streaming>() {
            streaming.begin(&id, in_flight);
        }
        if let Some(api) = &beside {
            api.complete(&mut response, &id);
        }
        let headers = response.headers_mut();
        if last {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if lacks_line {
            headers.insert(audited::WARNING, audited::CLOSED);
        }
        headers.insert(REQUEST_ID, id.header().clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        Ok((response, held))
    }
}

/// Whether the body has no transfer coding but `chunked`. hyper undoes no other one, and what is in
/// front may frame it in another way: the connection ends after such a request.
fn is_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(one), None) => one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    }
}

/// The outcome that a failed call is counted as.
fn operation(method: &Method, path: &str) -> Option<Operation> {
    if path.starts_with(CHAIN_STATUS) {
        return Some(Operation::Read);
    }
    let call = path.strip_prefix("/v1/")?;
    let is_one_of = |group| call.strip_prefix(group);
    Some(match is_one_of("batch/").or_else(|| is_one_of("stream/")).unwrap_or(call) {
        "encrypt" => Operation::Encrypt,
        "decrypt" => Operation::Decrypt,
        "rewrap" => Operation::Rewrap,
        "datakey" => Operation::Datakey,
        "rotate" => Operation::Rotate,
        "backup" => Operation::Manage,
        call if !call.starts_with("chains") => return None,
        _ if method == Method::GET => Operation::Read,
        _ => Operation::Manage,
    })
}

/// The bytes of a head: its path and its headers.
pub(super) fn size<B>(request: &http::Request<B>) -> usize {
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let lines = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    lines.fold(path, usize::saturating_add)
}

/// What decides how a failure is answered and logged.
struct Answering {
    is_for_people: bool,
    is_starting: bool,
}

impl Answering {
    /// The response to a request that failed. `routed` is what the router has set.
    fn failed(&self, error: &Error, id: &RequestId, routed: &HeaderMap) -> Response {
        let (code, detail) = (error.kind().code(), error.detail());
        let (request_id, trace_id) = (id.as_str(), id.trace_text());
        // The log says once what the start waits for: a probe or a scrape each second adds nothing.
        if self.is_starting && error.kind() == Kind::StoreUnavailable {
            tracing::debug!(request_id, trace_id, code, detail, "a request failed");
        } else if error.kind().http_status() >= 500 {
            tracing::warn!(request_id, trace_id, code, detail, "a request failed");
        }
        let response = problem::respond(error, id.as_str(), routed);
        let is_for_people = self.is_for_people;
        if is_for_people { status::refused(error, id.as_str(), response) } else { response }
    }
}

impl Gatekeeper for Shared {
    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn not_recognised(&self, refusal: Refusal, id: &RequestId, peer: Option<&Peer>) {
        if let Some(auth) = &self.auth {
            auth.failed(refusal);
        }
        self.refusal_log.caller(refusal, id, peer);
    }

    fn may_log(&self) -> bool {
        self.refusal_log.may_log()
    }
}

impl Shared {
    /// The part of the budget that an answer takes, and its length; nothing for a small one of
    /// HTTP/1.1.
    fn room(&self, answer: &Response, many: bool) -> Result<Option<(Held, usize)>, NoRoom> {
        // What is made while it is sent has its part already.
        if answer.extensions().get::<Streaming>().is_some() {
            return Ok(None);
        }
        let len = answer.body().size_hint().exact().filter(|len| many || *len > SMALL_ANSWER);
        let Some(len) = len.and_then(|len| usize::try_from(len).ok()) else { return Ok(None) };
        let beside = if many { STREAM } else { 0 };
        let held = self.budget.take(len.saturating_add(beside)).ok_or(NoRoom)?;
        Ok(Some((held, len)))
    }

    /// The counters of this API, or of the one beside it.
    fn requests(&self, is_beside: bool) -> Option<&Requests> {
        match is_beside {
            false => self.requests.as_ref(),
            true => Some(self.requests_beside.get_or_init(|| self.metrics.traffic.requests(API))),
        }
    }
}
