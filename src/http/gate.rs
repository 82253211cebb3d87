//! What every request passes, in one step: its id, the checks against web pages, its deadline, a
//! guard against panics, and its line in the log.
//!
//! One step, since a stack of layers costs more than the cryptography. Body limits are the
//! handlers', which know what they read; metrics are the service's.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use http::header::{CACHE_CONTROL, HOST, HeaderName, HeaderValue, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, Uri};

use crate::id::hex;
use crate::service::error::{Error, Kind};

use super::Face;
use super::problem::{self, Problem};

/// The request's id, in and out.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken over from a caller.
const MAX_REQUEST_ID: usize = 64;

/// The gate before a face. Cheap to clone.
#[derive(Clone)]
pub(super) struct Gate {
    face: Face,
    shared: Arc<Shared>,
}

struct Shared {
    timeout: Duration,
    /// Whether it listens on loopback alone: then `Host` must be loopback too, or a web page could
    /// reach it through a name that it controls (DNS rebinding).
    loopback: bool,
    /// Ids that are made here: a random number for the process, and a count.
    process: [u8; 4],
    count: AtomicU64,
}

impl Gate {
    pub(super) fn new(face: Face, timeout: Duration, loopback: bool) -> Self {
        let mut process = [0; 4];
        // An id without it is less unique, and no less useful.
        let _ = crate::random::fill(&mut process);
        let shared = Shared { timeout, loopback, process, count: AtomicU64::new(0) };
        Self { face, shared: Arc::new(shared) }
    }

    /// Answers a request.
    pub(super) async fn pass(self, request: Request) -> Response {
        let Self { face, shared } = self;
        let id = shared.request_id(request.headers());
        let started = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| (std::time::Instant::now(), request.method().clone(), request.uri().clone()));
        let mut response = match shared.check(request.headers(), request.uri()) {
            Ok(()) => match guarded(face.answer(request), shared.timeout).await {
                Ok(response) => response,
                Err(error) => failed(&error, &id),
            },
            Err(error) => failed(&error, &id),
        };
        if let Some(Problem(error)) = response.extensions_mut().remove::<Problem>() {
            response = failed_in_router(&error, &id, response.headers());
        }
        if let Some((started, method, uri)) = started {
            let (path, status) = (uri.path(), response.status().as_u16());
            let took_us = started.elapsed().as_micros();
            tracing::debug!(request_id = id_text(&id), %method, path, status, took_us, "a request");
        }
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, id);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        response
    }
}

fn failed(error: &Error, id: &HeaderValue) -> Response {
    failed_in_router(error, id, &HeaderMap::new())
}

fn failed_in_router(error: &Error, id: &HeaderValue, routed: &HeaderMap) -> Response {
    let id = id_text(id);
    if error.kind().http_status() >= 500 {
        tracing::warn!(
            request_id = id,
            code = error.kind().code(),
            detail = error.detail(),
            "a request failed"
        );
    }
    problem::respond(error, id, routed)
}

fn id_text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

impl Shared {
    /// The caller's id if it is a decent one, else a new one.
    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        if let Some(given) = headers.get(REQUEST_ID) {
            let bytes = given.as_bytes();
            let decent = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(b);
            if (1..=MAX_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(decent) {
                return given.clone();
            }
        }
        // 32 bits of either: enough to tell the requests of a log apart.
        let [.., a, b, c, d] = self.count.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let [e, f, g, h] = self.process;
        let digits = [e, f, g, h, a, b, c, d].map(hex);
        HeaderValue::from_bytes(digits.as_flattened()).unwrap_or(HeaderValue::from_static("none"))
    }

    /// Refuses what a web page in a browser on this machine could send.
    fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), Error> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        let Some(host) = host.filter(|_| hosts.next().is_none()) else {
            return Err(Error::new(Kind::InvalidRequest, "the request has no valid Host"));
        };
        let named = uri.authority().is_none_or(|authority| is_loopback(authority.as_str()));
        if self.loopback && !(named && is_loopback(host)) {
            return Err(forbidden(
                "without authentication Host must be localhost or a loopback address",
            ));
        }
        let own = |origin: &HeaderValue| {
            let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
            origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host))
        };
        let mut origins = headers.get_all(ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => Ok(()),
            (Some(origin), None) if own(origin) => Ok(()),
            _ => Err(forbidden("requests from pages of other origins are refused")),
        }
    }
}

fn forbidden(detail: &'static str) -> Error {
    Error::new(Kind::Forbidden, detail)
}

/// Whether a host, with or without a port, is this machine.
fn is_loopback(host: &str) -> bool {
    let end = host.rfind(']').unwrap_or(0);
    let (name, port) = match host.rfind(':').filter(|&colon| colon > end) {
        Some(colon) => host.split_at(colon),
        None => (host, ""),
    };
    let port = port.strip_prefix(':').unwrap_or_default();
    let loopback = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(name) => name.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback()),
        None if name.eq_ignore_ascii_case("localhost") => true,
        None => name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback()),
    };
    loopback && port.bytes().all(|b| b.is_ascii_digit())
}

/// Runs a call until it ends, panics or has taken `timeout`. The timer starts when the call first
/// waits: most never do.
async fn guarded(
    call: impl Future<Output = Response>,
    timeout: Duration,
) -> Result<Response, Error> {
    let mut call = pin!(call);
    let mut timer: Option<Pin<Box<tokio::time::Sleep>>> = None;
    std::future::poll_fn(move |context| {
        match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context))) {
            Ok(Poll::Ready(response)) => Poll::Ready(Ok(response)),
            Ok(Poll::Pending) => {
                let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                timer
                    .as_mut()
                    .poll(context)
                    .map(|()| Err(Error::new(Kind::Overloaded, "the request was not done in time")))
            }
            Err(_) => Poll::Ready(Err(Error::new(Kind::Internal, "the service failed"))),
        }
    })
    .await
}
