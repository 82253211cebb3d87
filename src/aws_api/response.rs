//! Responses of the AWS JSON 1.1 protocol.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;

use super::error::Error;

/// The media type of requests and responses.
pub(super) const MEDIA_TYPE: &str = "application/x-amz-json-1.1";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The body of an error. SDKs read the message under either name.
#[derive(Serialize)]
struct ErrorBody<'a> {
    #[serde(rename = "__type")]
    code: &'static str,
    message: &'a str,
}

/// A JSON object as a response.
pub(super) fn json(status: u16, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status.try_into().unwrap_or(http::StatusCode::BAD_GATEWAY);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

pub(super) fn error(error: &Error) -> Response {
    let body = ErrorBody { code: error.code.as_str(), message: &error.message };
    // Two texts can be written.
    json(error.code.http_status(), serde_json::to_vec(&body).unwrap_or_default())
}

/// Adds the id of the request.
pub(super) fn complete(response: &mut Response, id: &HeaderValue) {
    response.headers_mut().insert(REQUEST_ID, id.clone());
}

/// The JSON text of a response.
pub(super) fn write(value: &impl Serialize) -> Vec<u8> {
    // What is written here has texts as keys, and no number that JSON lacks.
    serde_json::to_vec(value).unwrap_or_default()
}
