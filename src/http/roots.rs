//! `/v1/chains/{name}/roots/{root}/...`: a root comes to a chain or goes from it, a page of KEKs at
//! a time.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::id::{KekId, RootName};
use crate::metrics::Operation;
use crate::service::{RootChange, RootProgress};

use super::App;
use super::answer;
use super::body;
use super::identity::Caller;
use super::params::path;
use super::problem::{Problem, ProblemBody};

/// KEKs of a page when no limit is given, and at most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// The KEKs to process.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RootRequest)]
pub(super) struct RequestBody {
    /// The `next` of the previous part.
    #[schema(pattern = "^[0-9a-f]{32}$", example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    after: Option<String>,
    /// The most KEKs to process.
    #[schema(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// The result.
#[derive(Serialize, ToSchema)]
#[schema(as = RootProgress)]
pub(super) struct ProgressBody {
    /// The number of KEKs that were examined.
    #[schema(example = 100)]
    looked_at: u64,
    /// The KEKs that were changed.
    #[schema(example = 12)]
    changed: u64,
    /// The KEKs that could not be changed.
    failed: Vec<FailedBody>,
    /// What to give as `after` for the next part; null at the end.
    #[schema(example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    next: Option<String>,
    /// Seconds until no replica encrypts under a KEK that the removed root opens: a replica that
    /// has lost the store may do so until then. 0 before the last part, and where no other process
    /// can use the store.
    #[schema(example = 0, maximum = 60)]
    settles_in_seconds: u64,
}

/// A KEK that could not be changed.
#[derive(Serialize, ToSchema)]
#[schema(as = RootFailure)]
pub(super) struct FailedBody {
    /// Its id.
    #[schema(example = "0a3f5b7c9d1e2f40516273849506a7b8")]
    kek_id: String,
    /// Why.
    #[schema(example = "this is its last wrap")]
    detail: String,
}

impl From<RootProgress> for ProgressBody {
    fn from(progress: RootProgress) -> Self {
        let failed = |(id, detail): (KekId, String)| FailedBody { kek_id: id.to_string(), detail };
        Self {
            looked_at: progress.looked_at,
            changed: progress.changed,
            failed: progress.failed.into_iter().map(failed).collect(),
            next: progress.next.map(|id| id.to_string()),
            settles_in_seconds: progress
                .settles_in
                .as_millis()
                .div_ceil(1_000)
                .try_into()
                .unwrap_or(u64::MAX),
        }
    }
}

/// A root of a chain.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct RootPath {
    /// The chain's name.
    #[param(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$")]
    name: String,
    /// The root's name.
    #[param(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$")]
    root: String,
}

/// Wraps KEKs of the chain with the root: those that it has not wrapped, or would wrap differently
/// now.
///
/// Each call processes a part of the KEKs; repeat it with `next` until that is null.
#[utoipa::path(post, path = "/v1/chains/{name}/roots/{root}/rewrap", operation_id = "rewrap_root",
    tag = "keys",
    params(RootPath),
    request_body = RequestBody,
    responses((status = 200, description = "The result.", body = ProgressBody), ProblemBody))]
pub(super) async fn rewrap(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: Result<Path<RootPath>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    change(&app, &caller, path, request, RootChange::Rewrap).await
}

/// Erases the root's wraps of KEKs of the chain, each after another root has opened the KEK; never
/// the last wrap. The root must not be configured any more.
///
/// Each call processes a part of the KEKs; repeat it with `next` until that is null. The first one
/// replaces the primary and the standby if the root wrapped them, or if a `local` root ever did and
/// none is configured. Old copies of the store still contain the wraps.
#[utoipa::path(post, path = "/v1/chains/{name}/roots/{root}/remove", operation_id = "remove_root",
    tag = "keys",
    params(RootPath),
    request_body = RequestBody,
    responses((status = 200, description = "The result.", body = ProgressBody), ProblemBody))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: Result<Path<RootPath>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    change(&app, &caller, path, request, RootChange::Remove).await
}

async fn change(
    app: &App,
    caller: &Caller,
    found: Result<Path<RootPath>, PathRejection>,
    request: Request,
    change: RootChange,
) -> Result<Response, Problem> {
    let RootPath { name: chain, root } = path(found)?;
    let service = app.access.enter(caller, Operation::Manage, Some(&chain))?;
    if RootName::new(&root).is_err() {
        return Err(body::invalid("no root can have this name").into());
    }
    let bytes = body::read_json(request, app.body()).await?;
    let RequestBody { after, limit } = body::parse(&bytes)?;
    let after = after.map(|id| id.parse::<KekId>()).transpose();
    let after = after.map_err(|error| body::invalid(format!("after: {error}")))?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(body::invalid(format!("limit is 1 to {MAX_LIMIT}")).into());
    }
    let progress = service.change_root(&chain, &root, change, after, limit).await?;
    Ok(answer::json(&ProgressBody::from(progress))?)
}
