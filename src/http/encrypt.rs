//! `POST /v1/encrypt`: a plaintext becomes an envelope.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::envelope::TEXT_PREFIX;
use crate::json::{Encoded, Object, Text};
use crate::keychain::message::Plaintext;
use crate::metrics::Operation;
use crate::service::error::Error;
use crate::service::{Calls, Encrypted};

use super::App;
use super::answer;
use super::body;
use super::data_call::{self, DataCall, Made, RawMade, Received};
use super::media::{Media, Octets};
use super::problem::{Problem, ProblemBody};

/// A plaintext to encrypt; also an item of a batch, which names the chain once for all items.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EncryptRequest<'a> {
    /// The bytes to encrypt, in base64.
    #[serde(borrow)]
    #[schema(value_type = String, format = Byte, example = "aGVsbG8=")]
    plaintext: Encoded<'a>,
    /// Bytes that are authenticated and not stored, in base64; at most 64 KiB.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, format = Byte, example = "cm93IDc=", required = false)]
    aad: Option<Encoded<'a>>,
    /// The key chain; by default, `default`.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        example = "default", required = false)]
    chain: Option<Text<'a>>,
}

/// The envelope of a plaintext.
#[derive(Serialize, ToSchema)]
pub(super) struct EncryptResponse {
    /// The envelope, in its text form.
    #[schema(example = "kp:AQF4...")]
    ciphertext: String,
    /// The key chain.
    #[schema(example = "default")]
    chain: String,
    /// The KEK that wraps the envelope's DEK.
    #[schema(example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    kek_id: String,
}

/// Encrypts a plaintext under a fresh DEK.
///
/// The DEK is wrapped by the chain's primary KEK. With `application/octet-stream` the body is the
/// plaintext itself, chain and AAD come in the headers `kms-proxy-chain` and `kms-proxy-aad`
/// (base64), and the answer is the binary envelope, unless `Accept` asks for JSON.
#[utoipa::path(post, path = "/v1/encrypt", tag = "data",
    params(
        ("kms-proxy-chain" = Option<String>, Header, description = "The key chain of a raw body."),
        ("kms-proxy-aad" = Option<String>, Header,
            description = "The AAD of a raw body, in base64."),
    ),
    request_body(content(
        (EncryptRequest = "application/json"), (Octets = "application/octet-stream"))),
    responses(
        (status = 200, description = "The envelope.", content(
            (EncryptResponse = "application/json"), (Octets = "application/octet-stream"))),
        ProblemBody,
    ))]
pub(super) async fn encrypt(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Problem> {
    let mut received = Received::read(&app, request, app.body(), Plaintext::ROOM).await?;
    let made = match received.media {
        Media::Json => {
            data_call::run::<EncryptRequest<'_>>(&app, &received.caller, &received.body).await?
        }
        Media::Octets => {
            let (service, chain, aad) = received.enter_raw(&app, Operation::Encrypt)?;
            let plaintext = received.body.take_plaintext();
            service.encrypt(chain.as_deref(), plaintext, &aad).await?
        }
    };
    Ok(received.respond(made))
}

impl DataCall for EncryptRequest<'_> {
    const OPERATION: Operation = Operation::Encrypt;
    type Made = Encrypted;

    fn chain(&self) -> Option<&str> {
        self.chain.as_ref().map(Text::as_str)
    }

    async fn run(&self, calls: &mut Calls<'_>) -> Result<Encrypted, Error> {
        let plaintext = body::decode_plaintext(&self.plaintext)?;
        let aad = body::decode_aad(self.aad.as_ref())?;
        calls.encrypt(plaintext, &aad).await
    }
}

impl Made for Encrypted {
    fn write(&self, out: &mut Vec<u8>) {
        let envelope = self.envelope.as_slice();
        Object::start(out, Object::room(envelope.len()))
            .prefixed_base64("ciphertext", TEXT_PREFIX, envelope)
            .plain("chain", self.chain.as_str())
            .plain("kek_id", self.kek_id.to_hex().as_str())
            .end();
    }
}

impl RawMade for Encrypted {
    fn raw(self) -> Response {
        answer::raw(Bytes::from(self.envelope), &self.chain, self.kek_id)
    }
}
