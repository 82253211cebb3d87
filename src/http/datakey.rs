//! `POST /v1/datakey`: a fresh key for the caller's own cryptography, with its envelope.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::envelope::TEXT_PREFIX;
use crate::json::{Encoded, Object, Text};
use crate::metrics::Operation;
use crate::service::error::{Error, Kind};
use crate::service::{Calls, DATA_KEY_SIZES, DataKey};

use super::App;
use super::body;
use super::data_call::{self, DataCall, Made};
use super::identity::Caller;
use super::problem::{Problem, ProblemBody};

/// The size of a data key in bytes when none is asked for.
const DEFAULT_BYTES: usize = 32;

/// The key to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DatakeyRequest<'a> {
    /// The size of the key in bytes. Not with `stream_key`: the suite of the chain determines it.
    #[schema(value_type = Option<u8>, minimum = 16, maximum = 64, default = 32, required = false)]
    bytes: Option<usize>,
    /// Bytes that are authenticated and not stored, in base64; at most 64 KiB.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, format = Byte, example = "cm93IDc=", required = false)]
    aad: Option<Encoded<'a>>,
    /// The key chain; by default, `default`.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        example = "default", required = false)]
    chain: Option<Text<'a>>,
    /// Whether the key is the DEK of a new stream (an envelope of version 3 or 4), which you seal
    /// yourself. `ciphertext` is the start of the envelope then: header, salt and commitment. The
    /// chunks follow it.
    #[serde(default)]
    #[schema(required = false)]
    stream_key: bool,
}

/// A fresh key and its envelope.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what the handler writes; a test compares the two")]
pub(super) struct DatakeyResponse {
    /// The key, in base64. Do not store it.
    #[schema(format = Byte, example = "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=")]
    plaintext: String,
    /// The key's envelope, in its text form. Keep it: `decrypt` returns the key. With `stream_key`,
    /// it is the start of the stream, and `decrypt` with `stream_key` returns the key.
    #[schema(example = "kp:AQF4...")]
    ciphertext: String,
    /// The key chain.
    #[schema(example = "default")]
    chain: String,
    /// The KEK that wraps the envelope's DEK.
    #[schema(example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    kek_id: String,
}

/// Makes a random key and its envelope.
#[utoipa::path(post, path = "/v1/datakey", tag = "data", request_body = DatakeyRequest,
    responses((status = 200, description = "The key.", body = DatakeyResponse), ProblemBody))]
pub(super) async fn datakey(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let body = body::read_json(request, app.body()).await?;
    Ok(data_call::json(&data_call::run::<DatakeyRequest<'_>>(&app, &caller, &body).await?))
}

impl DataCall for DatakeyRequest<'_> {
    const OPERATION: Operation = Operation::Datakey;
    type Made = DataKey;

    fn chain(&self) -> Option<&str> {
        self.chain.as_ref().map(Text::as_str)
    }

    async fn run(&self, calls: &mut Calls<'_>) -> Result<DataKey, Error> {
        let aad = body::decode_aad(self.aad.as_ref())?;
        if !self.stream_key {
            return calls.datakey(self.bytes.unwrap_or(DEFAULT_BYTES), DATA_KEY_SIZES, &aad).await;
        }
        if self.bytes.is_some() {
            let detail = "bytes and stream_key exclude each other: the suite determines the size";
            return Err(Error::new(Kind::InvalidRequest, detail));
        }
        calls.make_stream_key(&aad).await
    }
}

impl Made for DataKey {
    fn write(&self, out: &mut Vec<u8>) {
        let (key, envelope) = (self.plaintext.expose(), self.envelope.as_slice());
        Object::start(out, Object::room(key.len() + envelope.len()))
            .base64("plaintext", key)
            .prefixed_base64("ciphertext", TEXT_PREFIX, envelope)
            .plain("chain", self.chain.as_str())
            .plain("kek_id", self.kek_id.to_hex().as_str())
            .end();
    }
}
