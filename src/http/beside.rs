//! What an API beside this one is given: it is served on the same listener, behind the same gate.

use std::sync::Arc;

use async_trait::async_trait;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;

use crate::auth::Refusal;
use crate::service::error::Error;
use crate::tls::peer::Peer;

use super::body::{self, Limit};
use super::budget::Budget;
use super::request_id::RequestId;

/// The API, as the audit log and the metrics name it.
pub(super) const API: &str = "aws";

/// What a gate does for a request of an API beside this one.
pub(super) trait Gatekeeper: Send + Sync {
    /// The budget of bodies and responses.
    fn budget(&self) -> &Budget;

    /// Counts and logs a caller that is not recognised.
    fn not_recognised(&self, refusal: Refusal, id: &RequestId, peer: Option<&Peer>);

    /// Whether one more refusal is logged.
    fn may_log(&self) -> bool;
}

/// An API beside this one.
#[async_trait]
pub(crate) trait Beside: Send + Sync + 'static {
    /// Whether a request is for this API.
    fn takes(&self, request: &Request) -> bool;

    /// Responds to a request. The gate has checked `Host` and `Origin`, and it bounds the time and
    /// the number of requests; who calls is not known yet.
    async fn respond(&self, call: Call) -> Response;

    /// Responds to the request `id`, which the gate refuses.
    fn refuse(&self, error: &Error, id: &RequestId) -> Response;

    /// Completes a response to the request `id`.
    fn complete(&self, response: &mut Response, id: &RequestId);
}

/// A request for an API beside this one.
pub(crate) struct Call {
    request: Request,
    id: RequestId,
    gate: Arc<dyn Gatekeeper>,
}

impl Call {
    pub(super) fn new(request: Request, id: &RequestId, gate: Arc<dyn Gatekeeper>) -> Self {
        Self { request, id: id.clone(), gate }
    }

    /// Reads the body, of at most `len` bytes.
    ///
    /// # Errors
    /// [`Kind::PayloadTooLarge`](crate::service::Kind::PayloadTooLarge), and others of the body.
    pub(crate) async fn read(self, len: usize) -> Result<(Parts, Bytes, Caller), Error> {
        let (parts, body) = self.request.into_parts();
        let body = body::read(body, Limit { len, budget: self.gate.budget() }).await?;
        let peer = parts.extensions.get::<Arc<Peer>>().cloned();
        Ok((parts, body, Caller { peer, id: self.id, gate: self.gate }))
    }
}

/// What is known of the caller before it is recognised, and where its refusal is logged.
pub(crate) struct Caller {
    peer: Option<Arc<Peer>>,
    id: RequestId,
    gate: Arc<dyn Gatekeeper>,
}

impl Caller {
    /// The verified certificate, if there is one.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.peer.as_deref()
    }

    /// The id of the request.
    pub(crate) fn request_id(&self) -> &RequestId {
        &self.id
    }

    /// Counts and logs that the caller is not recognised.
    pub(crate) fn refused(&self, refusal: Refusal) {
        self.gate.not_recognised(refusal, self.request_id(), self.peer());
    }

    /// Whether one more refusal is logged: strangers cannot fill the disk.
    pub(crate) fn may_log(&self) -> bool {
        self.gate.may_log()
    }
}
