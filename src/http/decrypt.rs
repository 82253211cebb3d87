//! `POST /v1/decrypt`: an envelope becomes the plaintext again.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::json::{Encoded, Object, Text};
use crate::metrics::Operation;
use crate::service::error::Error;
use crate::service::{Calls, Decrypted};

use super::App;
use super::answer;
use super::body;
use super::data_call::{self, DataCall, Made, RawMade, Received};
use super::media::{Media, Octets};
use super::problem::{Problem, ProblemBody};

/// An envelope to decrypt; also an item of a batch, which names the chain once for all items.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DecryptRequest<'a> {
    /// The envelope, in its text form.
    #[serde(borrow)]
    #[schema(value_type = String, example = "kp:AQF4...")]
    ciphertext: Encoded<'a>,
    /// The AAD that the envelope was made with, in base64.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, format = Byte, example = "cm93IDc=", required = false)]
    aad: Option<Encoded<'a>>,
    /// The key chain; by default, `default`.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        example = "default", required = false)]
    chain: Option<Text<'a>>,
    /// Whether `ciphertext` is the start of a stream (an envelope of version 3 or 4): header, salt
    /// and commitment, and no chunk. The answer is the DEK of the stream then, and you open the
    /// chunks yourself. Chain and AAD are verified as always.
    #[serde(default)]
    #[schema(required = false)]
    stream_key: bool,
}

/// The plaintext of an envelope.
#[derive(Serialize, ToSchema)]
pub(super) struct DecryptResponse {
    /// The plaintext, in base64; with `stream_key` the DEK of the stream.
    #[schema(format = Byte, example = "aGVsbG8=")]
    plaintext: String,
    /// The key chain.
    #[schema(example = "default")]
    chain: String,
    /// The KEK that wrapped the envelope's DEK.
    #[schema(example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    kek_id: String,
}

/// Decrypts an envelope.
///
/// Chain and AAD must be those that it was made with; an envelope that is malformed or tampered
/// with gets the same answer as one with another AAD. With `application/octet-stream` the body is
/// the binary envelope, chain and AAD come in the headers `kms-proxy-chain` and `kms-proxy-aad`
/// (base64), and the answer is the plaintext itself, unless `Accept` asks for JSON.
#[utoipa::path(post, path = "/v1/decrypt", tag = "data",
    params(
        ("kms-proxy-chain" = Option<String>, Header, description = "The key chain of a raw body."),
        ("kms-proxy-aad" = Option<String>, Header,
            description = "The AAD of a raw body, in base64."),
    ),
    request_body(content(
        (DecryptRequest = "application/json"), (Octets = "application/octet-stream"))),
    responses(
        (status = 200, description = "The plaintext.", content(
            (DecryptResponse = "application/json"), (Octets = "application/octet-stream"))),
        ProblemBody,
    ))]
pub(super) async fn decrypt(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Problem> {
    let mut received = Received::read(&app, request, app.envelope(), (0, 0)).await?;
    let made = match received.media {
        Media::Json => {
            data_call::run::<DecryptRequest<'_>>(&app, &received.caller, &received.body).await?
        }
        Media::Octets => {
            body::check_raw_envelope(&received.body)?;
            let (service, chain, aad) = received.enter_raw(&app, Operation::Decrypt)?;
            let envelope = received.body.take_bytes();
            service.decrypt(chain.as_deref(), envelope, &aad).await?
        }
    };
    Ok(received.respond(made))
}

impl DataCall for DecryptRequest<'_> {
    const OPERATION: Operation = Operation::Decrypt;
    type Made = Decrypted;

    fn chain(&self) -> Option<&str> {
        self.chain.as_ref().map(Text::as_str)
    }

    async fn run(&self, calls: &mut Calls<'_>) -> Result<Decrypted, Error> {
        let envelope = body::decode_envelope(&self.ciphertext)?;
        let aad = body::decode_aad(self.aad.as_ref())?;
        if self.stream_key {
            return calls.open_stream_key(&envelope, &aad).await;
        }
        calls.decrypt(envelope, &aad).await
    }
}

impl Made for Decrypted {
    fn write(&self, out: &mut Vec<u8>) {
        let plaintext = self.plaintext.as_slice();
        Object::start(out, Object::room(plaintext.len()))
            .base64("plaintext", plaintext)
            .plain("chain", self.chain.as_str())
            .plain("kek_id", self.kek_id.to_hex().as_str())
            .end();
    }
}

impl RawMade for Decrypted {
    fn raw(self) -> Response {
        answer::raw(Bytes::from_owner(self.plaintext), &self.chain, self.kek_id)
    }
}
