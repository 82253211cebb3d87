//! Answers as they go out: small JSON objects written by hand into one buffer, or raw bytes.
//!
//! Base64, hex and chain names need no escaping, so the answers of the data calls are written
//! several times faster than a serializer does it.

use axum::body::Body;
use axum::response::Response;
use base64_simd::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;
use zeroize::Zeroize;

use crate::envelope::TEXT_PREFIX;
use crate::id::{ChainName, KekId};
use crate::service::error::{Error, Kind};

const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What an answer is written into. It may hold a plaintext, so every allocation that it had is
/// wiped.
#[derive(Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// The bytes that it takes.
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Adds bytes at the end.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn push_base64(&mut self, bytes: &[u8]) {
        self.reserve(STANDARD.encoded_length(bytes.len()));
        STANDARD.encode_append(bytes, &mut self.0);
    }

    /// Makes room for `len` more bytes. A vector that grows by itself leaves a copy behind.
    fn reserve(&mut self, len: usize) {
        let (used, capacity) = (self.0.len(), self.0.capacity());
        if capacity - used < len {
            let larger = used.saturating_add(len).max(capacity.saturating_mul(2));
            let mut larger = Self(Vec::with_capacity(larger));
            larger.0.extend_from_slice(&self.0);
            *self = larger;
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The slice: a vector is wiped byte by byte, and the room behind was never written.
        self.0.as_mut_slice().zeroize();
    }
}

/// One JSON object at the end of a buffer.
pub(super) struct Object<'a> {
    out: &'a mut Buffer,
    empty: bool,
}

impl<'a> Object<'a> {
    /// Starts an object; `room` bytes are about what will be written.
    pub(super) fn start(out: &'a mut Buffer, room: usize) -> Self {
        out.reserve(room);
        out.push(b"{");
        Self { out, empty: true }
    }

    fn key(&mut self, key: &'static str) {
        self.out.push(if self.empty { b"\"" } else { b",\"" });
        self.out.push(key.as_bytes());
        self.out.push(b"\":\"");
        self.empty = false;
    }

    /// A text that needs no escaping: of letters, digits and `.:_-`.
    pub(super) fn plain(mut self, key: &'static str, text: &str) -> Self {
        self.key(key);
        self.out.push(text.as_bytes());
        self.out.push(b"\"");
        self
    }

    /// Bytes as standard base64.
    pub(super) fn base64(mut self, key: &'static str, bytes: &[u8]) -> Self {
        self.key(key);
        self.out.push_base64(bytes);
        self.out.push(b"\"");
        self
    }

    /// An envelope in its text form.
    pub(super) fn envelope(mut self, key: &'static str, envelope: &[u8]) -> Self {
        self.key(key);
        self.out.push(TEXT_PREFIX.as_bytes());
        self.out.push_base64(envelope);
        self.out.push(b"\"");
        self
    }

    /// The id of a KEK.
    pub(super) fn kek(self, key: &'static str, id: KekId) -> Self {
        self.plain(key, id.to_hex().as_str())
    }

    /// Ends the object.
    pub(super) fn end(self) {
        self.out.push(b"}");
    }
}

/// About how many bytes an answer with `len` binary bytes takes.
pub(super) fn room(len: usize) -> usize {
    STANDARD.encoded_length(len) + 192
}

/// An answer of JSON that is written already. It is wiped when it has been sent.
pub(super) fn written(json: Buffer) -> Response {
    typed(Bytes::from_owner(json), APPLICATION_JSON)
}

/// An answer of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<Response, Error> {
    match serde_json::to_vec(value) {
        Ok(json) => Ok(typed(json.into(), APPLICATION_JSON)),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            Err(Error::new(Kind::Internal, "the answer could not be written"))
        }
    }
}

/// An answer of raw bytes, with chain and KEK in headers.
pub(super) fn raw(bytes: Bytes, chain: &ChainName, kek_id: KekId) -> Response {
    const KEK_ID: HeaderName = HeaderName::from_static("kms-proxy-kek-id");
    const CHAIN: HeaderName = HeaderName::from_static(super::body::CHAIN_HEADER);
    let mut response = typed(bytes, HeaderValue::from_static("application/octet-stream"));
    let texts = [(CHAIN, chain.as_str()), (KEK_ID, kek_id.to_hex().as_str())]
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
pub(super) fn typed(bytes: Bytes, content_type: HeaderValue) -> Response {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_grows_keeps_what_is_in_it() {
        let mut buffer = Buffer::default();
        let mut expected = String::new();
        for text in ["", "a", "bc", "{", "a longer text than what was there before", "}"] {
            buffer.push(text.as_bytes());
            buffer.push_base64(b"hi");
            expected += text;
            expected += "aGk=";
        }
        assert_eq!(buffer.0, expected.as_bytes());
        buffer.reserve(1000);
        assert!(buffer.0.capacity() >= expected.len() + 1000);
        assert_eq!(buffer.0, expected.as_bytes());
    }
}
