//! The audit log of a gate: what of a request becomes a line, and what happens without one.
//!
//! It knows paths and responses. What operations report, the service decides.

use std::sync::Arc;

use axum::response::Response;
use http::header::{HeaderName, HeaderValue};

use crate::audit::{Audit, Call, Peer, Record, Request as Recorded};
use crate::metrics::Operation;
use crate::service::error::{Error, Kind};
use crate::service::{Check, Health};

use super::beside;
use super::problem::Problem;
use super::request_id::RequestId;

/// Where the page of a chain is, which shows what `/v1/chains/{name}` does.
pub(super) const CHAIN_STATUS: &str = "/status/chains/";

/// The errors that end calls outside the API which have a line all the same.
const REFUSED: [&str; 4] = ["unauthenticated", "forbidden", "not_found", "method_not_allowed"];

/// What a client should know about the service, beside the response.
pub(super) const WARNING: HeaderName = HeaderName::from_static("kms-proxy-warning");
/// The audit log takes no lines, and so calls are refused that do more than read.
pub(super) const CLOSED: HeaderValue =
    HeaderValue::from_static("the audit log takes no lines, and calls are refused: see /readyz");

/// The code of the error of an API beside this one, as an extension of its response.
#[derive(Clone, Copy)]
pub(crate) struct Outcome(pub(crate) &'static str);

/// The recording of one request.
pub(super) struct Recording {
    record: Arc<Record>,
    operation: Option<Operation>,
    chain: Option<String>,
    /// Whether it has a line even if nobody is refused.
    always: bool,
    /// Whether it only reads the state of the service, and so is answered even if its line can't be
    /// written: an operator must be able to find out what is wrong.
    reads: bool,
}

impl Recording {
    /// Begins to record a request; `is_beside` is one for another API.
    pub(super) fn begin(
        audit: &Arc<Audit>,
        request: &axum::extract::Request,
        id: &RequestId,
        peer: Peer,
        operation: Option<Operation>,
        is_beside: bool,
    ) -> Self {
        let path = request.uri().path();
        let name = if is_beside {
            let target = request.headers().get("x-amz-target");
            let target = target.and_then(|target| target.to_str().ok()).unwrap_or_default();
            Some(target.strip_prefix("TrentService.").unwrap_or(target).into())
        } else if operation.is_some_and(|operation| is_plain(path, operation)) {
            None
        } else {
            Some(format!("{} {path}", request.method()).into())
        };
        let is_batch = path.starts_with("/v1/batch/");
        let call = Call { name, is_batch, trace_id: id.trace_id().copied() };
        let api = if is_beside { beside::API } else { "http" };
        let record = audit.begin(api, id.as_str(), peer, call);
        let of_chain = path.strip_prefix("/v1/chains/").or_else(|| path.strip_prefix(CHAIN_STATUS));
        let chain = of_chain.and_then(|rest| rest.split('/').next());
        Self {
            record,
            operation,
            chain: chain.filter(|chain| !chain.is_empty()).map(str::to_owned),
            always: is_beside || operation.is_some(),
            reads: operation == Some(Operation::Read),
        }
    }

    /// What the parts of the request report to. `is_open` says that callers need no identity.
    ///
    /// # Errors
    /// When there could be no line about the request: it is refused before it does anything.
    pub(super) fn record(&self, is_open: bool) -> Result<&Arc<Record>, Error> {
        if is_open {
            self.record.identified(None, "none");
        }
        if self.always && !self.reads && self.record.is_closed() {
            return Err(unavailable());
        }
        Ok(&self.record)
    }

    /// Whether it is answered although its line can't be written.
    pub(super) fn lacks_line(&self) -> bool {
        self.reads && self.record.is_closed()
    }

    /// Writes the lines of the request, whose response is ready. `failure` is the code of the error
    /// that it ends with.
    pub(super) async fn end(self, failure: Option<&'static str>) -> Result<(), Error> {
        let is_refused = failure.is_some_and(|code| REFUSED.contains(&code));
        if !self.always && !is_refused {
            return Ok(());
        }
        let ended = self.record.end(Recorded {
            operation: self.operation,
            chain: self.chain.as_deref(),
            failure,
            is_answered_anyway: self.reads,
        });
        let ended = ended.await;
        // Probes are answered in any case.
        if self.always { ended.map_err(|_| unavailable()) } else { Ok(()) }
    }
}

/// The code of the error that a response contains.
pub(super) fn failure(response: &Response) -> Option<&'static str> {
    let extensions = response.extensions();
    let problem = extensions.get().map(|Problem(error)| error.kind().code());
    problem.or_else(|| extensions.get().map(|Outcome(code)| *code))
}

/// Whether the operation is all that there is to say about a call.
fn is_plain(path: &str, operation: Operation) -> bool {
    let call = path.strip_prefix("/v1/").unwrap_or_default();
    call.strip_prefix("batch/").unwrap_or(call) == operation.as_str()
}

fn unavailable() -> Error {
    Error::new(Kind::AuditUnavailable, "the audit log takes no line now; see /readyz")
}

/// What readiness says of the audit log.
pub(super) fn check(audit: &Audit) -> Check {
    let (health, detail) = match audit.trouble() {
        None => (Health::Ok, format!("verified by {}", audit.public_key())),
        Some(trouble) if audit.refuses() => (Health::Down, format!("calls are refused: {trouble}")),
        Some(trouble) => (Health::Degraded, format!("lines are lost: {trouble}")),
    };
    Check { name: "audit".to_owned(), health, detail: Some(detail) }
}
