//! `POST /v1/decrypt`: an envelope becomes the plaintext again.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::metrics::Operation;
use crate::service::Decrypted;
use crate::service::KeyService;
use crate::service::error::Error;

use super::App;
use super::answer::{self, Object};
use super::batch::Item;
use super::body::{self, Encoded, Media, Octets, Text};
use super::identity::Access;
use super::problem::{Problem, ProblemBody};

/// What to decrypt; also an item of a batch, where the chain is given once for all.
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
    /// The key chain; `default` when it is left out.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$", example = "default", required = false)]
    chain: Option<Text<'a>>,
}

/// The plaintext of an envelope.
#[derive(Serialize, ToSchema)]
pub(super) struct DecryptResponse {
    /// The plaintext, in base64.
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
        ("kms-proxy-aad" = Option<String>, Header, description = "The AAD of a raw body, in base64."),
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
    let refuse = |error| app.access.refuse(Operation::Decrypt, error);
    let (head, body) = request.into_parts();
    let caller = app.access.caller(&head.extensions)?;
    let enter = |chain: Option<&str>| app.access.enter(&caller, Operation::Decrypt, chain);
    let came = Media::of(&head.headers).map_err(refuse)?;
    let wanted = Media::wanted(&head.headers, came);
    let body = body::read(body, app.envelope()).await.map_err(refuse)?;
    let made = match came {
        Media::Json => {
            let request: DecryptRequest<'_> = body::parse(&body).map_err(refuse)?;
            let chain = request.chain();
            request.run(&app.access, enter(chain)?, chain).await?
        }
        Media::Octets => {
            let (chain, aad) = body::raw_context(&head.headers).map_err(refuse)?;
            body::check_raw_envelope(&body).map_err(refuse)?;
            enter(chain.as_deref())?.decrypt(chain.as_deref(), body.into(), &aad).await?
        }
    };
    Ok(match wanted {
        Media::Json => {
            let mut out = Vec::new();
            write(&made, &mut out);
            answer::written(out)
        }
        Media::Octets => answer::raw(Bytes::from_owner(made.plaintext), &made.chain, made.kek_id),
    })
}

impl DecryptRequest<'_> {
    async fn run(
        &self,
        access: &Access,
        service: &KeyService,
        chain: Option<&str>,
    ) -> Result<Decrypted, Error> {
        let refuse = |error| access.refuse(Operation::Decrypt, error);
        let envelope = body::decode_envelope(&self.ciphertext).map_err(refuse)?;
        let aad = body::decode_aad(self.aad.as_ref()).map_err(refuse)?;
        service.decrypt(chain, envelope, &aad).await
    }
}

impl Item for DecryptRequest<'_> {
    const OPERATION: Operation = Operation::Decrypt;

    fn chain(&self) -> Option<&str> {
        self.chain.as_ref().map(Text::as_str)
    }

    async fn call(
        &self,
        access: &Access,
        service: &KeyService,
        chain: Option<&str>,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        write(&self.run(access, service, chain).await?, out);
        Ok(())
    }
}

fn write(made: &Decrypted, out: &mut Vec<u8>) {
    let plaintext = made.plaintext.as_slice();
    Object::start(out, answer::room(plaintext.len()))
        .base64("plaintext", plaintext)
        .plain("chain", made.chain.as_str())
        .kek("kek_id", made.kek_id)
        .end();
}
