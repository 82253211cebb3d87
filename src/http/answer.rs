//! Responses: small JSON objects written into one buffer, or raw bytes.
//!
//! Base64, hex and chain names need no escaping, so this writes the responses of the data calls
//! several times faster than a serializer. The buffer contains plaintexts. The allocator wipes it,
//! like all buffers of HTTP, when it grows and when it is freed.

use axum::body::Body;
use axum::response::Response;
use base64_simd::STANDARD;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;

use crate::envelope::TEXT_PREFIX;
use crate::id::{ChainName, KekId};
use crate::service::error::{Error, Kind};

use super::media::CHAIN_HEADER;

const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

/// One JSON object at the end of a buffer.
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Object<'a> {
    /// Starts an object; `room` bytes are about what will be written.
    pub(super) fn start(out: &'a mut Vec<u8>, room: usize) -> Self {
        out.reserve(room);
        out.push(b'{');
        Self { out, empty: true }
    }

    fn key(&mut self, key: &'static str) {
        self.out.extend_from_slice(if self.empty { b"\"" } else { b",\"" });
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":\"");
        self.empty = false;
    }

    /// A text that needs no escaping: of letters, digits and `.:_-`.
    pub(super) fn plain(mut self, key: &'static str, text: &str) -> Self {
        self.key(key);
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'"');
        self
    }

    /// Bytes as standard base64.
    pub(super) fn base64(mut self, key: &'static str, bytes: &[u8]) -> Self {
        self.key(key);
        STANDARD.encode_append(bytes, self.out);
        self.out.push(b'"');
        self
    }

    /// An envelope in its text form.
    pub(super) fn envelope(mut self, key: &'static str, envelope: &[u8]) -> Self {
        self.key(key);
        self.out.extend_from_slice(TEXT_PREFIX.as_bytes());
        STANDARD.encode_append(envelope, self.out);
        self.out.push(b'"');
        self
    }

    /// The id of a KEK.
    pub(super) fn kek(self, key: &'static str, id: KekId) -> Self {
        self.plain(key, id.to_hex().as_str())
    }

    /// Ends the object.
    pub(super) fn end(self) {
        self.out.push(b'}');
    }
}

/// About how many bytes an answer with `len` binary bytes takes.
pub(super) fn room(len: usize) -> usize {
    STANDARD.encoded_length(len) + 192
}

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
