//! What names a request in the log, in the audit log and in its response: its id, and the trace
//! that its caller says it belongs to.

use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::trace_context::{TraceContext, TraceId};

/// The request's id, in and out.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The trace of the caller (W3C Trace Context).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The longest request id that is accepted from a caller.
const MAX_REQUEST_ID: usize = 64;

/// The id of a request, and its trace.
#[derive(Clone)]
pub(crate) struct RequestId {
    header: HeaderValue,
    trace: Option<TraceContext>,
}

impl RequestId {
    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        self.header.to_str().unwrap_or_default()
    }

    /// The id as the value of a header.
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// The trace, if the caller sent a valid one.
    pub(super) fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// The id of the trace.
    pub(crate) fn trace_id(&self) -> Option<&TraceId> {
        self.trace().map(TraceContext::trace_id)
    }

    /// The same as text, for the log.
    pub(crate) fn trace_text(&self) -> Option<&str> {
        self.trace_id().map(TraceId::as_str)
    }
}

/// Gives ids to requests.
pub(super) struct RequestIds {
    /// Generated ids: a random number for the process, and a counter.
    process: [u8; 4],
    count: AtomicU64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        let mut process = [0; 4];
        // An id without it is less unique, and no less useful.
        let _ = crate::random::fill(&mut process);
        Self { process, count: AtomicU64::new(0) }
    }

    /// The id that the caller sent, if it is valid, or a new one.
    pub(super) fn of(&self, headers: &HeaderMap) -> RequestId {
        let header = headers.get(REQUEST_ID).filter(|given| is_valid(given.as_bytes()));
        let header = header.cloned().unwrap_or_else(|| self.next());
        let mut traces = headers.get_all(TRACEPARENT).iter();
        let trace = traces.next().filter(|_| traces.next().is_none());
        let trace = trace.and_then(|trace| TraceContext::parse(trace.as_bytes()));
        RequestId { header, trace }
    }

    fn next(&self) -> HeaderValue {
        // 32 bits of each: enough to distinguish the requests of a log.
        let [.., a, b, c, d] = self.count.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let [e, f, g, h] = self.process;
        let mut digits = [0; 16];
        let id = base16ct::lower::encode(&[e, f, g, h, a, b, c, d], &mut digits).ok();
        let id = id.and_then(|id| HeaderValue::from_bytes(id).ok());
        id.unwrap_or(HeaderValue::from_static("none"))
    }
}

fn is_valid(id: &[u8]) -> bool {
    let is_allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(b);
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_trace_is_that_of_the_only_traceparent() {
        let ids = RequestIds::new();
        let trace_of = |given: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for &value in given {
                headers.append(TRACEPARENT, HeaderValue::from_static(value));
            }
            ids.of(&headers).trace_text().map(str::to_owned)
        };
        assert_eq!(trace_of(&[TRACE]).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(trace_of(&[]), None);
        assert_eq!(trace_of(&[TRACE, TRACE]), None);
        assert_eq!(trace_of(&["00-1-2-3"]), None);
    }
}
