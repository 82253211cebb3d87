//! `/v1/chains`: lists, creates and changes key chains and their KEKs.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::id::{KekId, Suite};
use crate::json::Text;
use crate::metrics::Operation;
use crate::service::error::Error;
use crate::service::{ChainInfo, ChainSettings};

use super::App;
use super::answer;
use super::body;
use super::identity::Caller;
use super::keks::KekBody;
use super::params::path;
use super::problem::{Problem, ProblemBody};

/// Items of a page when no limit is given, and at most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// The page of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// The `next` of the previous part.
    #[param(required = false)]
    after: Option<String>,
    /// The most items to return.
    #[param(required = false, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

impl PageQuery {
    fn limit(&self) -> Result<usize, Error> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if (1..=MAX_LIMIT).contains(&limit) {
            Ok(limit)
        } else {
            Err(body::invalid(format!("limit is 1 to {MAX_LIMIT}")))
        }
    }
}

/// A key chain.
#[derive(Serialize, ToSchema)]
#[schema(as = Chain)]
pub(super) struct ChainBody {
    /// Its name.
    #[schema(example = "orders")]
    chain: String,
    /// The suite of its new KEKs.
    #[schema(example = "aes-128-gcm")]
    suite: &'static str,
    /// The KEK that encrypts; null before the first one is made.
    #[schema(example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    primary: Option<String>,
    /// The KEK that will encrypt next.
    #[schema(example = "0a3f5b7c9d1e2f40516273849506a7b8")]
    standby: Option<String>,
    /// The number of its KEKs, including destroyed ones.
    #[schema(example = 12)]
    keks: u64,
    /// Uses of a KEK that start a rotation.
    #[schema(example = 2_097_152)]
    rotate_after_uses: u64,
    /// The most uses of a KEK.
    #[schema(example = 4_194_304)]
    max_uses: u64,
    /// Age of a KEK since its promotion, in seconds, that starts a rotation.
    #[schema(example = 7_776_000)]
    rotate_after_age: u64,
    /// Whether new envelopes embed the wrapped KEK (version 2 or 4). Unless the service has no
    /// store, the KEK is in the store as well.
    #[schema(example = false)]
    inline: bool,
}

impl From<ChainInfo> for ChainBody {
    fn from(info: ChainInfo) -> Self {
        Self {
            chain: info.chain.to_string(),
            suite: info.suite.as_str(),
            primary: info.primary.map(|id| id.to_string()),
            standby: info.standby.map(|id| id.to_string()),
            keks: info.keks,
            rotate_after_uses: info.limits.rotate_after_uses,
            max_uses: info.limits.max_uses,
            rotate_after_age: info.limits.rotate_after_age,
            inline: info.inline,
        }
    }
}

/// A part of the list of chains.
#[derive(Serialize, ToSchema)]
#[schema(as = Chains)]
pub(super) struct ChainsBody {
    /// Chains, in the order of their names.
    chains: Vec<ChainBody>,
    /// What to give as `after` for the next part; null at the end.
    #[schema(example = "orders")]
    next: Option<String>,
}

/// A key chain with a part of its KEKs.
#[derive(Serialize, ToSchema)]
#[schema(as = ChainWithKeks)]
pub(super) struct ChainWithKeksBody {
    /// The chain itself.
    #[serde(flatten)]
    chain: ChainBody,
    /// KEKs, in the order of their ids.
    items: Vec<KekBody>,
    /// What to give as `after` for the next part; null at the end.
    #[schema(example = "7841c0b3f2a94d1e8c55e02f6b9d1a37")]
    next: Option<String>,
}

/// The settings of a chain. One that is left out does not change; on a new chain it has its
/// default.
#[derive(Deserialize, ToSchema)]
#[schema(as = ChainSettings)]
#[serde(deny_unknown_fields)]
pub(super) struct ChainSettingsBody<'a> {
    /// The suite of its KEKs, which can't be changed later.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, pattern = "^aes-(128|256)-gcm$", example = "aes-128-gcm",
        required = false)]
    suite: Option<Text<'a>>,
    /// Uses of a KEK that start a rotation.
    #[schema(minimum = 1, maximum = 4_294_967_296_u64, example = 2_097_152, required = false)]
    rotate_after_uses: Option<u64>,
    /// The most uses of a KEK.
    #[schema(minimum = 1, maximum = 4_294_967_296_u64, example = 4_194_304, required = false)]
    max_uses: Option<u64>,
    /// Age of a KEK since its promotion, in seconds, that starts a rotation.
    #[schema(minimum = 60, maximum = 3_153_600_000_u64, example = 7_776_000, required = false)]
    rotate_after_age: Option<u64>,
    /// Whether new envelopes embed the wrapped KEK, which the store has as well: they are of
    /// version 2 or 4, and open without the store. Envelopes that exist do not change.
    #[schema(example = false, required = false)]
    inline: Option<bool>,
}

/// Lists the key chains.
#[utoipa::path(get, path = "/v1/chains", operation_id = "list_chains", tag = "keys",
    params(PageQuery),
    responses((status = 200, description = "A part of the list.", body = ChainsBody), ProblemBody))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let query = page(query)?;
    let limit = query.limit()?;
    let (service, visible) = app.access.enter_to_list(&caller)?;
    let page = service.chains_that(visible, query.after.as_deref(), limit).await?;
    Ok(answer::json(&ChainsBody {
        chains: page.items.into_iter().map(ChainBody::from).collect(),
        next: page.next.map(|name| name.to_string()),
    })?)
}

/// Returns one key chain and its KEKs.
#[utoipa::path(get, path = "/v1/chains/{name}", operation_id = "read_chain", tag = "keys",
    params(("name" = String, Path, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        description = "The chain's name."),
        ("after" = Option<String>, Query, pattern = "^[0-9a-f]{32}$",
            description = "The `next` of the previous part."),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000,
            description = "The most KEKs to return; 100 by default.")),
    responses((status = 200, description = "The chain.", body = ChainWithKeksBody), ProblemBody))]
pub(super) async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let name = path(name)?;
    let service = app.access.enter(&caller, Operation::Read, Some(&name))?;
    let query = page(query)?;
    let limit = query.limit()?;
    let after = query.after.as_deref().map(str::parse::<KekId>).transpose();
    let after = after.map_err(|error| body::invalid(format!("after: {error}")))?;
    let (chain, page) = service.chain_with_keks(&name, after, limit).await?;
    Ok(answer::json(&ChainWithKeksBody {
        chain: chain.into(),
        items: page.items.into_iter().map(KekBody::from).collect(),
        next: page.next.map(|id| id.to_string()),
    })?)
}

/// Creates a key chain, or changes the settings of one.
#[utoipa::path(put, path = "/v1/chains/{name}", operation_id = "put_chain", tag = "keys",
    params(("name" = String, Path, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        description = "The chain's name.")),
    request_body = ChainSettingsBody,
    responses(
        (status = 200, description = "The chain existed. It has the settings of the request.",
            body = ChainBody),
        (status = 201, description = "The chain was created.", body = ChainBody),
        ProblemBody,
    ))]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let name = path(name)?;
    let service = app.access.enter(&caller, Operation::Manage, Some(&name))?;
    let body = body::read_json(request, app.body()).await?;
    let settings: ChainSettingsBody<'_> = body::parse(&body)?;
    let suite = settings.suite.map(|suite| suite.as_str().parse::<Suite>()).transpose();
    let settings = ChainSettings {
        suite: suite.map_err(|error| body::invalid(error.to_string()))?,
        rotate_after_uses: settings.rotate_after_uses,
        max_uses: settings.max_uses,
        rotate_after_age: settings.rotate_after_age,
        inline: settings.inline,
    };
    let (created, chain) = service.put_chain(&name, settings).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, answer::json(&ChainBody::from(chain))?).into_response())
}

/// Deletes a key chain that has no KEK.
///
/// `default` and the chains that the configuration names stay.
#[utoipa::path(delete, path = "/v1/chains/{name}", operation_id = "delete_chain", tag = "keys",
    params(("name" = String, Path, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        description = "The chain's name.")),
    responses((status = 204, description = "The chain was deleted."), ProblemBody))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let name = path(name)?;
    let service = app.access.enter(&caller, Operation::Manage, Some(&name))?;
    service.delete_chain(&name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn page(query: Result<Query<PageQuery>, QueryRejection>) -> Result<PageQuery, Error> {
    query
        .map(|Query(query)| query)
        .map_err(|_| body::invalid("the query takes after (a text) and limit (a number) alone"))
}
