//! `POST /v1/rotate`: a new primary KEK now.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::json::Text;
use crate::metrics::Operation;

use super::App;
use super::answer;
use super::body;
use super::identity::Caller;
use super::problem::{Problem, ProblemBody};

/// The chain to rotate.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateRequest<'a> {
    /// The key chain; by default, `default`.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        example = "default", required = false)]
    chain: Option<Text<'a>>,
    /// Rotates although no root opens the chain's KEKs: what is under them stays closed, and other
    /// replicas must open the new KEK. It needs the permission `manage` too.
    #[serde(default)]
    #[schema(example = false)]
    force: bool,
    /// Whether the chain also gets a new Kubernetes key id: then kube-apiserver makes a new seed,
    /// and a storage migration encrypts every object again. Only for a chain that serves
    /// Kubernetes.
    #[serde(default)]
    #[schema(required = false)]
    new_key_id: bool,
}

/// A rotation that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct RotateResponse {
    /// The key chain.
    #[schema(example = "default")]
    chain: String,
    /// The KEK that encrypts now.
    #[schema(example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    primary: String,
    /// The KEK that encrypted before; null for the first KEK of a chain.
    #[schema(example = "0a3f5b7c9d1e2f40516273849506a7b8")]
    previous: Option<String>,
    /// The new Kubernetes key id; null if none was asked for.
    #[schema(example = "kms-proxy/kubernetes/7-5c4f0a9d27b1e8c3/aws-kms/main")]
    key_id: Option<String>,
}

/// Makes a new primary KEK now.
///
/// Older envelopes still decrypt. One rotation at a time, and at most ten within a
/// minute for each chain. It is refused while this process can't open the primary KEK.
#[utoipa::path(post, path = "/v1/rotate", tag = "keys", request_body = RotateRequest,
    responses((status = 200, description = "The new primary.", body = RotateResponse),
        ProblemBody))]
pub(super) async fn rotate(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let body = body::read_json(request, app.body()).await?;
    let request: RotateRequest<'_> = body::parse(&body)?;
    let chain = request.chain.as_ref().map(Text::as_str);
    let service = app.access.enter(&caller, Operation::Rotate, chain)?;
    let (rotated, key_id) = match (request.force, request.new_key_id) {
        (true, true) => {
            let error = body::invalid("force and new_key_id can't be given together");
            return Err(error.into());
        }
        (true, false) => {
            let service = app.access.enter(&caller, Operation::Manage, chain)?;
            (service.force_rotate(chain).await?, None)
        }
        (false, true) => {
            let (rotated, key_id) = service.rotate_key_id(chain).await?;
            (rotated, Some(key_id))
        }
        (false, false) => (service.rotate(chain).await?, None),
    };
    Ok(answer::json(&RotateResponse {
        chain: rotated.chain.to_string(),
        primary: rotated.primary.to_string(),
        previous: rotated.previous.map(|id| id.to_string()),
        key_id,
    })?)
}
