//! Responses of JSON or of raw bytes.
//!
//! Their buffers contain plaintexts. The allocator wipes them, like all buffers of HTTP, when they
//! grow and when they are freed.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;

use crate::id::{ChainName, KekId};
use crate::service::error::{Error, Kind};

use super::media::CHAIN_HEADER;

const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer of JSON that is written already.
pub(super) fn written(json: Vec<u8>) -> Response {
    typed(json, APPLICATION_JSON)
}

/// An answer of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<Response, Error> {
    match serde_json::to_vec(value) {
        Ok(json) => Ok(typed(json, APPLICATION_JSON)),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            Err(Error::new(Kind::Internal, "the answer could not be written"))
        }
    }
}

/// An answer of raw bytes, with chain and KEK in headers.
pub(super) fn raw(bytes: impl Into<Body>, chain: &ChainName, kek_id: KekId) -> Response {
    const KEK_ID: HeaderName = HeaderName::from_static("kms-proxy-kek-id");
    let mut response = typed(bytes, HeaderValue::from_static("application/octet-stream"));
    let texts = [(CHAIN_HEADER, chain.as_str()), (KEK_ID, kek_id.to_hex().as_str())]
        .map(|(name, text)| (name, HeaderValue::from_str(text)));
    for (name, value) in texts {
        // Both are of letters, digits and `._-`.
        if let Ok(value) = value {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// An answer with this content type.
pub(super) fn typed(bytes: impl Into<Body>, content_type: HeaderValue) -> Response {
    let mut response = Response::new(bytes.into());
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
