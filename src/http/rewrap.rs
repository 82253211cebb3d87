//! `POST /v1/rewrap`: the DEK of an envelope moves to the primary KEK.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::envelope::TEXT_PREFIX;
use crate::json::{Encoded, Object, Text};
use crate::keychain::KekPlacement;
use crate::metrics::Operation;
use crate::service::error::Error;
use crate::service::{Calls, Rewrapped};

use super::App;
use super::body;
use super::data_call::{self, DataCall, Made};
use super::identity::Caller;
use super::problem::{Problem, ProblemBody};

/// An envelope to rewrap; also an item of a batch, which names the chain once for all items.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RewrapRequest<'a> {
    /// The envelope, or its header alone, in its text form.
    #[serde(borrow)]
    #[schema(value_type = String, example = "kp:AQF4...")]
    ciphertext: Encoded<'a>,
    /// The key chain; by default, `default`.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        example = "default", required = false)]
    chain: Option<Text<'a>>,
    /// Whether to embed the wrapped KEK: the result is of version 2 or 4, and opens wherever one of
    /// its roots and the chain's name are configured. In a chain that is set to `inline`, and
    /// without a store, it always is.
    #[serde(default)]
    #[schema(required = false)]
    inline: bool,
}

/// The envelope under the primary KEK.
#[derive(Serialize, ToSchema)]
pub(super) struct RewrapResponse {
    /// An envelope or a header alone, as in the request.
    #[schema(example = "kp:AQF4...")]
    ciphertext: String,
    /// The key chain.
    #[schema(example = "default")]
    chain: String,
    /// The KEK that wraps the DEK now.
    #[schema(example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    kek_id: String,
    /// The KEK that wrapped it before; the same one if nothing had to be changed.
    #[schema(example = "0a3f5b7c9d1e2f40516273849506a7b8")]
    previous_kek_id: String,
}

/// Rewraps an envelope's DEK under the primary KEK.
///
/// The header alone is enough: the payload does not change, so a new header can be put before the
/// old payload. A payload that is passed along is not verified. An envelope that is under the
/// primary already, in the version that is asked for, comes back unchanged and costs no use.
#[utoipa::path(post, path = "/v1/rewrap", tag = "data", request_body = RewrapRequest,
    responses((status = 200, description = "The envelope or header.", body = RewrapResponse),
        ProblemBody))]
pub(super) async fn rewrap(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let body = body::read_json(request, app.envelope()).await?;
    Ok(data_call::json(&data_call::run::<RewrapRequest<'_>>(&app, &caller, &body).await?))
}

impl DataCall for RewrapRequest<'_> {
    const OPERATION: Operation = Operation::Rewrap;
    type Made = Rewrapped;

    fn chain(&self) -> Option<&str> {
        self.chain.as_ref().map(Text::as_str)
    }

    async fn run(&self, calls: &mut Calls<'_>) -> Result<Rewrapped, Error> {
        let envelope = body::decode_envelope(&self.ciphertext)?;
        calls.rewrap(self.inline.then_some(KekPlacement::Inline), envelope).await
    }
}

impl Made for Rewrapped {
    fn write(&self, out: &mut Vec<u8>) {
        Object::start(out, Object::room(self.envelope.len()))
            .prefixed_base64("ciphertext", TEXT_PREFIX, &self.envelope)
            .plain("chain", self.chain.as_str())
            .plain("kek_id", self.kek_id.to_hex().as_str())
            .plain("previous_kek_id", self.previous_kek_id.to_hex().as_str())
            .end();
    }
}
