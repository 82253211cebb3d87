//! Errors as HTTP says them: problem+json (RFC 9457) with a stable `code`.
//!
//! A handler fails with a [`Problem`]; the gate, which knows the request's id, writes it out.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};

use crate::service::error::{Error, Kind};

/// A failed request, on its way to the gate.
#[derive(Clone, Debug)]
pub(super) struct Problem(pub(super) Error);

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status(&self.0);
        response.extensions_mut().insert(self);
        response
    }
}

/// The body of every error.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody<'a> {
    /// Always `about:blank`: `code` has the kind of the error.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    kind: &'static str,
    /// The name of the HTTP status.
    #[schema(example = "Bad Request")]
    title: &'a str,
    /// The HTTP status.
    #[schema(example = 400)]
    status: u16,
    /// The stable code of the error.
    #[schema(schema_with = error_code)]
    code: &'static str,
    /// An explanation for the caller.
    #[schema(example = "the ciphertext is malformed or was not made with this chain and AAD")]
    detail: &'a str,
    /// The request's id, as in the header `x-request-id` and in the log.
    #[schema(example = "5f0c2a9e1b7d4c38")]
    request_id: &'a str,
}

/// The stable codes as a schema.
pub(super) fn error_code() -> Schema {
    let codes = Kind::ALL.map(Kind::code);
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("The stable code of the error."))
        .examples([Kind::InvalidCiphertext.code()])
        .enum_values(Some(codes))
        .into()
}

/// Writes `error` as the whole answer to the request `request_id`. `allow` is kept from the router.
pub(super) fn respond(error: &Error, request_id: &str, routed: &HeaderMap) -> Response {
    let status = status(error);
    let body = ProblemBody {
        kind: "about:blank",
        title: title(error),
        status: status.as_u16(),
        code: error.kind().code(),
        detail: error.detail(),
        request_id,
    };
    // Plain strings and a number can be written.
    let mut response = Response::new(Body::from(serde_json::to_vec(&body).unwrap_or_default()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if error.kind() == Kind::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kms-proxy\""));
    }
    if let Some(seconds) = error.retry_after_secs() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allow) = routed.get(ALLOW) {
        headers.insert(ALLOW, allow.clone());
    }
    response
}

/// The name of the error's HTTP status.
pub(super) fn title(error: &Error) -> &'static str {
    status(error).canonical_reason().unwrap_or("Error")
}

fn status(error: &Error) -> StatusCode {
    StatusCode::from_u16(error.kind().http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The response to an unknown path, where callers are served.
pub(super) async fn not_found() -> Problem {
    nothing("there is nothing at this path; /openapi.json lists what is")
}

/// The response to an unknown path, where only operators are served.
pub(super) async fn not_found_for_operators() -> Problem {
    nothing("there is nothing at this path; /healthz, /readyz and /metrics are here")
}

/// The response to a path at which there is nothing.
pub(super) fn nothing(detail: &'static str) -> Problem {
    Problem(Error::new(Kind::NotFound, detail))
}

/// The answer for a method that a path does not take; the router adds `allow`.
pub(super) async fn method_not_allowed() -> Problem {
    Problem(Error::new(Kind::MethodNotAllowed, "this path does not take this method"))
}
