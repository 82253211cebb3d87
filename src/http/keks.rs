//! `/v1/chains/{name}/keks/{id}/...`: a KEK disabled, enabled, destroyed.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::id::KekId;
use crate::metrics::Operation;
use crate::service::error::Error;
use crate::service::{Change, KekInfo, KeyService};
use crate::timestamp::{date, rfc3339};

use super::App;
use super::answer;
use super::body;
use super::identity::Caller;
use super::params::path;
use super::problem::{Problem, ProblemBody};

/// A KEK.
#[derive(Serialize, ToSchema)]
#[schema(as = Kek)]
pub(super) struct KekBody {
    /// Its id.
    #[schema(example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    kek_id: String,
    /// `standby`, `primary`, `retired`, `disabled` or `destroyed`.
    #[schema(example = "primary")]
    state: &'static str,
    /// Its suite.
    #[schema(example = "aes-128-gcm")]
    suite: &'static str,
    /// When it was made (RFC 3339).
    #[schema(format = DateTime, example = "2026-11-23T20:40:00Z")]
    created_at: String,
    /// When it became primary; null before.
    #[schema(format = DateTime, example = "2026-11-23T20:40:00Z")]
    promoted_at: Option<String>,
    /// When it was last disabled; null if never.
    #[schema(format = DateTime)]
    disabled_at: Option<String>,
    /// Its uses that are reserved in the store.
    #[schema(example = 65_536)]
    uses_reserved: u64,
    /// The day in UTC on which it last encrypted; null if that is not known. See
    /// `usage_known_since`.
    #[schema(format = Date, example = "2026-11-29")]
    last_encrypt: Option<String>,
    /// The same for a decrypt.
    #[schema(format = Date, example = "2026-11-30")]
    last_decrypt: Option<String>,
    /// The day from which on encrypts and decrypts are noted. A day that is null then was not since
    /// that day. Null before the first day is stored.
    #[schema(format = Date, example = "2026-11-23")]
    usage_known_since: Option<String>,
    /// Whether a `local` root ever wrapped it.
    #[schema(example = false)]
    exposed: bool,
    /// The names of the roots that wrapped it.
    #[schema(example = json!(["main", "dr"]))]
    roots: Vec<String>,
    /// After `destroy`, and only if there are any: archives that did not answer and still have its
    /// wraps. The service erases them later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!([]))]
    still_archived_in: Vec<String>,
}

impl From<KekInfo> for KekBody {
    fn from(info: KekInfo) -> Self {
        Self {
            kek_id: info.kek_id.to_string(),
            state: info.state.as_str(),
            suite: info.suite.as_str(),
            created_at: rfc3339(info.created_at),
            promoted_at: info.promoted_at.map(rfc3339),
            disabled_at: info.disabled_at.map(rfc3339),
            uses_reserved: info.uses_reserved,
            last_encrypt: info.last_used.encrypt.map(date),
            last_decrypt: info.last_used.decrypt.map(date),
            usage_known_since: info.usage_known_since.map(date),
            exposed: info.exposed,
            roots: info.roots,
            still_archived_in: info.still_archived_in,
        }
    }
}

/// No options.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// The options of a disable.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DisableRequest)]
pub(super) struct Disabling {
    /// Disables the KEK also in a chain that serves Kubernetes.
    #[serde(default)]
    #[schema(example = false)]
    force: bool,
}

/// A confirmation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Confirmation {
    /// The KEK's id again.
    #[schema(pattern = "^[0-9a-f]{32}$", example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    confirm: String,
    /// Destroys the KEK also in a chain that serves Kubernetes.
    #[serde(default)]
    #[schema(example = false)]
    force: bool,
}

/// Where a KEK is found.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct KekPath {
    /// The chain's name.
    #[param(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$")]
    name: String,
    /// The KEK's id.
    #[param(pattern = "^[0-9a-f]{32}$")]
    id: String,
}

/// Disables a retired KEK: it decrypts nothing until it is enabled again.
///
/// In a chain that serves Kubernetes, `force` is required.
#[utoipa::path(post, path = "/v1/chains/{name}/keks/{id}/disable", operation_id = "disable_kek",
    tag = "keys",
    params(KekPath),
    request_body = Disabling,
    responses((status = 200, description = "The KEK.", body = KekBody), ProblemBody))]
pub(super) async fn disable(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: Result<Path<KekPath>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let kek = Named::parse(&app, &caller, path)?;
    let said = kek.body::<Disabling>(&app, request).await?;
    kek.change(if said.force { Change::ForceDisable } else { Change::Disable }).await
}

/// Enables a disabled KEK again.
#[utoipa::path(post, path = "/v1/chains/{name}/keks/{id}/enable", operation_id = "enable_kek",
    tag = "keys",
    params(KekPath),
    request_body = Nothing,
    responses((status = 200, description = "The KEK.", body = KekBody), ProblemBody))]
pub(super) async fn enable(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: Result<Path<KekPath>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let kek = Named::parse(&app, &caller, path)?;
    kek.body::<Nothing>(&app, request).await?;
    kek.change(Change::Enable).await
}

/// Destroys a KEK permanently, with everything that was encrypted under it.
///
/// It must have been disabled for `destroy_delay`. In a chain that serves Kubernetes, `force` is
/// required. Old copies of the store still contain its wraps: delete them too.
#[utoipa::path(post, path = "/v1/chains/{name}/keks/{id}/destroy", operation_id = "destroy_kek",
    tag = "keys",
    params(KekPath),
    request_body = Confirmation,
    responses((status = 200, description = "The KEK: a tombstone.", body = KekBody), ProblemBody))]
pub(super) async fn destroy(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: Result<Path<KekPath>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let kek = Named::parse(&app, &caller, path)?;
    let said = kek.body::<Confirmation>(&app, request).await?;
    if said.confirm != kek.id.to_string() {
        let error = body::invalid("confirm must be the id of the KEK");
        return Err(error.into());
    }
    kek.change(if said.force { Change::ForceDestroy } else { Change::Destroy }).await
}

/// KEKs of a chain that were requested and can't be used.
#[derive(Serialize, ToSchema)]
#[schema(as = MissingKeks)]
pub(super) struct MissingBody {
    /// The key chain.
    #[schema(example = "orders")]
    chain: String,
    /// At most 1,000 KEKs, the one that was first missed first.
    items: Vec<MissingKekBody>,
}

/// A KEK that was requested and can't be used.
#[derive(Serialize, ToSchema)]
#[schema(as = MissingKek)]
pub(super) struct MissingKekBody {
    /// Its id.
    #[schema(example = "0a3f5b7c9d1e2f40516273849506a7b8")]
    kek_id: String,
    /// `unknown`: the chain does not have it. `unopenable`: it is stored, and no root opens it.
    #[schema(example = "unknown")]
    reason: &'static str,
    /// When this process first missed it (RFC 3339).
    #[schema(format = DateTime, example = "2026-11-24T08:00:00Z")]
    first_seen: String,
    /// When this process last missed it (RFC 3339).
    #[schema(format = DateTime, example = "2026-11-24T08:10:00Z")]
    last_seen: String,
}

/// Lists the KEKs of a chain that callers requested from this process and that it could not use.
///
/// Ids come from ciphertexts, and a ciphertext can be forged. The list is in memory: each process
/// has its own, and it starts empty.
#[utoipa::path(get, path = "/v1/chains/{name}/missing", operation_id = "missing_keks", tag = "keys",
    params(("name" = String, Path, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        description = "The chain's name.")),
    responses((status = 200, description = "The KEKs.", body = MissingBody), ProblemBody))]
pub(super) async fn missing(
    State(app): State<Arc<App>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let name = path(name)?;
    let service = app.access.enter(&caller, Operation::Read, Some(&name))?;
    let missing = service.missing_keks(&name).await?;
    let items = missing.into_iter().map(|kek| MissingKekBody {
        kek_id: kek.kek_id.to_string(),
        reason: kek.absence.as_str(),
        first_seen: rfc3339(kek.first_seen),
        last_seen: rfc3339(kek.last_seen),
    });
    Ok(answer::json(&MissingBody { chain: name, items: items.collect() })?)
}

/// The KEK that a path names.
struct Named<'a> {
    service: &'a KeyService,
    chain: String,
    id: KekId,
}

impl<'a> Named<'a> {
    fn parse(
        app: &'a App,
        caller: &Caller,
        found: Result<Path<KekPath>, PathRejection>,
    ) -> Result<Self, Error> {
        let KekPath { name: chain, id } = path(found)?;
        let service = app.access.enter(caller, Operation::Manage, Some(&chain))?;
        let id = id.parse().map_err(|error| body::invalid(format!("{error}")))?;
        Ok(Self { service, chain, id })
    }

    /// Reads the body, which must be a `T`.
    async fn body<T: serde::de::DeserializeOwned>(
        &self,
        app: &App,
        request: Request,
    ) -> Result<T, Error> {
        let body = body::read_json(request, app.body()).await?;
        body::parse(&body)
    }

    async fn change(&self, change: Change) -> Result<Response, Problem> {
        let kek = self.service.change_kek(&self.chain, self.id, change).await?;
        Ok(answer::json(&KekBody::from(kek))?)
    }
}
