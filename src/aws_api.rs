//! The AWS KMS API: programs that call KMS call kms-proxy instead by changing one endpoint.
//!
//! It turns calls of the AWS JSON 1.1 protocol into typed calls of the key service. It is served
//! beside `http`, on the same listener and behind the same gate; nothing else knows of it.

use std::sync::Arc;

use async_trait::async_trait;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};

use crate::audit::record;
use crate::auth::Auth;
use crate::clock::Clock;
use crate::http::{Beside, Call, Outcome, RequestId};
use crate::root::forward::{self as kms, Kms};
use crate::service::{self, KeyService};

mod arn;
mod blob;
mod config;
mod context;
mod data;
mod error;
mod forward;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod identity;
mod key_id;
mod keys;
mod operation;
mod page;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use config::{Config, Forward, Key};
pub use context::{TooLong as ContextTooLong, context_aad};

use error::{Code, Error};
use forward::Forwarder;
use identity::Caller;
use key_id::Keys;
use operation::Operation;

const TARGET: HeaderName = HeaderName::from_static("x-amz-target");

/// The longest body in bytes. ReEncrypt with two encryption contexts of 64 KiB, each byte of which
/// is escaped, does not fit; no program sends one.
const MAX_BODY: usize = 256 << 10;

/// The API.
pub(crate) struct Api {
    service: Arc<KeyService>,
    /// Without it every caller may do everything.
    auth: Option<Arc<Auth>>,
    clock: Arc<dyn Clock>,
    region: String,
    keys: Keys,
    forwarder: Forwarder,
}

/// The response to a call that did not fail here.
enum Answer {
    /// A JSON object.
    Json(Vec<u8>),
    /// A response of KMS.
    Forwarded(kms::Response),
}

impl Api {
    /// The API of `config`, which was checked, for the clients of `auth`, or without it for every
    /// caller. Calls are forwarded through `kms`, if any are.
    pub(crate) fn new(
        config: &Config,
        service: Arc<KeyService>,
        auth: Option<Arc<Auth>>,
        clock: Arc<dyn Clock>,
        kms: Option<Arc<dyn Kms>>,
    ) -> Arc<Self> {
        let metrics = Arc::clone(service.metrics());
        let forwarder = Forwarder::new(config, kms, Arc::clone(&clock), metrics);
        Arc::new(Self {
            service,
            auth,
            clock,
            region: config.region().to_owned(),
            keys: Keys::new(config),
            forwarder,
        })
    }

    /// Recognises the caller and does what they ask for.
    async fn handle(&self, call: Call) -> Result<Answer, Error> {
        let (parts, body, stranger) = call.read(MAX_BODY).await.map_err(too_large)?;
        match self.identify(&parts, &body, &stranger).await? {
            None => self.run(&Caller { client: None, stranger }, &parts, body).await,
            Some(client) => {
                let traffic = &self.service.metrics().traffic;
                traffic.client_called(client.name());
                let _place = client.enter().map_err(Error::from)?;
                let lookups = Arc::clone(client.lookups());
                let caller = Caller { client: Some(client), stranger };
                let done = lookups.scope(self.run(&caller, &parts, body)).await;
                if let (Err(error), Some(client)) = (&done, &caller.client) {
                    traffic.client_failed(client.name(), error.code.outcome());
                }
                done
            }
        }
    }

    /// Does what a caller asks for, as far as they may.
    async fn run(&self, caller: &Caller, parts: &Parts, body: Bytes) -> Result<Answer, Error> {
        let operation = target(&parts.headers)?;
        if let Some(record) = record::current() {
            record.asks(operation.permission());
        }
        let done = match operation {
            Operation::Served(served) => self.serve(caller, served, body).await,
            Operation::Other(other) => Box::pin(self.forward_other(caller, other, body)).await,
        };
        if let Err(error) = &done
            && !error.is_counted
        {
            let outcome = error.code.outcome();
            self.service.metrics().failed(operation.permission(), "", outcome);
        }
        done
    }
}

#[async_trait]
impl Beside for Api {
    fn takes(&self, request: &Request) -> bool {
        request.method() == Method::POST && request.uri().path().bytes().all(|b| b == b'/')
    }

    async fn respond(&self, call: Call) -> Response {
        match self.handle(call).await {
            Ok(Answer::Json(body)) => response::json(200, body),
            Ok(Answer::Forwarded(answer)) => response::json(answer.status, answer.body.to_vec()),
            Err(error) => {
                let mut response = response::error(&error);
                response.extensions_mut().insert(Outcome(error.code.outcome()));
                response
            }
        }
    }

    fn refuse(&self, error: &service::Error, id: &RequestId) -> Response {
        let error = Error::from(error.clone());
        if error.code.http_status() >= 500 {
            let (code, detail) = (error.code.as_str(), &*error.message);
            let (request_id, trace_id) = (id.as_str(), id.trace_text());
            tracing::warn!(request_id, trace_id, code, detail, "a request failed");
        }
        response::error(&error)
    }

    fn complete(&self, response: &mut Response, id: &RequestId) {
        response::complete(response, id.header());
    }
}

/// The operation that the headers name.
fn target(headers: &HeaderMap) -> Result<Operation, Error> {
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = media.unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case(response::MEDIA_TYPE) {
        let message = "the content type must be application/x-amz-json-1.1";
        return Err(Error::new(Code::Serialization, message));
    }
    let target = headers.get(TARGET).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Operation::of_target(target).ok_or_else(|| {
        let message = "X-Amz-Target must be TrentService.NAME, with an operation of AWS KMS";
        Error::new(Code::UnknownOperation, message)
    })
}

fn too_large(error: service::Error) -> Error {
    match error.kind() {
        service::Kind::PayloadTooLarge => Error::new(Code::Validation, error.detail().to_owned()),
        _ => error.into(),
    }
}
