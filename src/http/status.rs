//! `/status`, `/status.json` and `/status/chains/{name}`: the status for people, and for programs.
//!
//! It decides who sees what, and what a browser may do with the page. The service fills the
//! structure; `page` and `chains` render it. Nothing here changes a state.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::response::{Redirect, Response};
use http::Method;
use http::header::{
    ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
};
use maud::Markup;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::id::KekId;
use crate::metrics::Operation;
use crate::service::error::{Error, Kind};
use crate::status::{Audit, Certificate, Check, Status};

use super::App;
use super::answer;
use super::audited::CHAIN_STATUS;
use super::body;
use super::health;
use super::identity::Caller;
use super::params::path;
use super::problem::{Problem, ProblemBody};

mod chains;
mod chart;
mod components;
pub(super) mod elsewhere;
mod layout;
mod page;
mod refusal;
mod turns;

use turns::Turn;
pub(super) use turns::Turns;

/// Chains of a page, and of a response for programs.
const CHAINS_OF_PAGE: usize = 200;
const CHAINS: usize = 1_000;
/// KEKs of the page of a chain.
const KEKS: usize = 200;

/// The part of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StatusQuery {
    /// The `next` of the previous part.
    #[param(required = false)]
    after: Option<String>,
    /// The page does not refresh.
    #[param(required = false)]
    still: Option<String>,
}

/// The status as the OpenAPI document describes it: docs/status.md has its fields.
pub(super) struct StatusBody;

impl PartialSchema for StatusBody {
    fn schema() -> RefOr<Schema> {
        let word = ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(["ok", "degraded", "unavailable"]))
            .description(Some("As in `/readyz`."));
        let schema: Schema = ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some("The state of a replica; docs/status.md has all fields."))
            .property("status", word)
            .required("status")
            .into();
        schema.into()
    }
}

impl ToSchema for StatusBody {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Status")
    }
}

/// The status as a page for people.
///
/// It has no script, and it refreshes every 10 seconds. `/` leads here.
#[utoipa::path(get, path = "/status", operation_id = "status", tag = "operations",
    params(StatusQuery),
    responses(
        (status = 200, description = "The page.", body = String, content_type = "text/html"),
        ProblemBody,
    ))]
pub(super) async fn page(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let query = parse(query)?;
    let (status, _turn) = status(&app, &caller, query.after.as_deref(), CHAINS_OF_PAGE).await?;
    Ok(html(page::overview(&status, query.still.is_none())))
}

/// The status as JSON, which `kms-proxy status` prints.
///
/// docs/status.md has its fields; later versions may add others. A caller who may not read all
/// chains sees those that it may read, the names of the roots that wrapped their KEKs, and nothing
/// else of roots, store and clients.
#[utoipa::path(get, path = "/status.json", operation_id = "status_json", tag = "operations",
    params(StatusQuery),
    responses(
        (status = 200, description = "The status.", body = StatusBody),
        ProblemBody,
    ))]
pub(super) async fn json(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let query = parse(query)?;
    let (status, _turn) = status(&app, &caller, query.after.as_deref(), CHAINS).await?;
    let mut response = answer::json(&status)?;
    response.headers_mut().insert(RESOURCE_POLICY, SAME_ORIGIN);
    Ok(response)
}

/// The status of one chain with its KEKs, as a page for people.
#[utoipa::path(get, path = "/status/chains/{name}", operation_id = "chain_status",
    tag = "operations",
    params(("name" = String, Path, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
        description = "The chain's name."),
        ("after" = Option<String>, Query, pattern = "^[0-9a-f]{32}$",
            description = "The KEK before the first one.")),
    responses(
        (status = 200, description = "The page.", body = String, content_type = "text/html"),
        ProblemBody,
    ))]
pub(super) async fn chain(
    State(app): State<Arc<App>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let name = path(name)?;
    let service = app.access.enter(&caller, Operation::Read, Some(&name))?;
    let after = parse(query)?.after.as_deref().map(str::parse::<KekId>).transpose();
    let after = after.map_err(|error| body::invalid(format!("after: {error}")))?;
    let (_, keks) = service.chain_with_keks(&name, after, KEKS).await?;
    let unknown = || Error::new(Kind::UnknownChain, "there is no chain of this name");
    let _turn = app.turns.take().await?;
    let (chain, time) = service.chain_status(&name).ok_or_else(unknown)?;
    let next = keks.next.map(|id| id.to_string());
    Ok(html(chains::page(&chain, &time, &keks.items, next.as_deref())))
}

/// The root of the service leads to the page.
pub(super) async fn redirect() -> Redirect {
    Redirect::temporary("status")
}

fn parse(query: Result<Query<StatusQuery>, QueryRejection>) -> Result<StatusQuery, Error> {
    query.map(|Query(query)| query).map_err(|_| body::invalid("the query takes after and still"))
}

/// The status as `caller` may see it, and the turn in which it is written.
async fn status<'a>(
    app: &'a App,
    caller: &Caller,
    after: Option<&str>,
    limit: usize,
) -> Result<(Status, Turn<'a>), Error> {
    let (service, visible) = app.access.enter_to_list(caller)?;
    let is_whole = app.access.reads_all(caller);
    let scope = service.status_scope(visible, is_whole, after, limit).await;
    let turn = app.turns.take().await?;
    let mut status = service.status(&scope);
    let readiness = health::readiness(app, Some(caller));
    health::status(readiness.health).clone_into(&mut status.status);
    let check = |check: crate::service::Check| Check {
        name: check.name,
        status: health::status(check.health).to_owned(),
        detail: check.detail,
    };
    status.checks = readiness.checks.into_iter().map(check).collect();
    if is_whole {
        status.audit = app.audit.as_deref().map(audit);
        status.certificate = app.tls.as_ref().map(|tls| {
            let certificate = tls.certificate_status();
            let expires_in_seconds = certificate.expires_in;
            Certificate { expires_in_seconds, warning: certificate.warning }
        });
    }
    if let Some(savings) = &mut status.savings {
        savings.value_at(app.admin.root_call_price, &app.admin.currency);
    }
    status.conclude();
    Ok((status, turn))
}

fn audit(audit: &crate::audit::Audit) -> Audit {
    let detail = audit.trouble();
    let state = match &detail {
        None => "ok",
        Some(_) if audit.refuses() => "refusing",
        Some(_) => "losing",
    };
    Audit { state: state.to_owned(), detail, public_key: audit.public_key().to_owned() }
}

/// What a browser may do with the page: apply its one style block, and nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = base64_simd::STANDARD.encode_to_string(Sha256::digest(layout::STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    // Base64 and words are valid in a header.
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

fn html(markup: Markup) -> Response {
    let content_type = HeaderValue::from_static("text/html; charset=utf-8");
    let mut response = answer::typed(markup.into_string(), content_type);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    // The links to the documentation must not tell where this service is.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(RESOURCE_POLICY, SAME_ORIGIN);
    response
}

/// Keeps the status out of the process of a page of another origin, which could include it as an
/// image or a script.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const SAME_ORIGIN: HeaderValue = HeaderValue::from_static("same-origin");

/// Whether the status is at this path, as a page or as JSON.
pub(super) fn is_at(path: &str) -> bool {
    matches!(path, "/" | "/status" | "/status.json") || path.starts_with(CHAIN_STATUS)
}

/// Whether a person asks for a page with a browser: then an error is a page too.
pub(super) fn is_for_people(request: &Request) -> bool {
    let path = request.uri().path();
    path != "/status.json"
        && is_at(path)
        && request.method() == Method::GET
        && request.headers().get_all(ACCEPT).iter().any(|accept| {
            let accept = accept.to_str().unwrap_or_default();
            accept.split(',').any(|one| one.trim_start().starts_with("text/html"))
        })
}

/// The page for an error, with the status and the headers of `problem`.
pub(super) fn refused(error: &Error, request_id: &str, problem: Response) -> Response {
    let (mut parts, body) = html(refusal::page(error, request_id)).into_parts();
    let (of_problem, _) = problem.into_parts();
    parts.status = of_problem.status;
    for (name, value) in of_problem.headers.iter().filter(|(name, _)| **name != CONTENT_TYPE) {
        parts.headers.append(name, value.clone());
    }
    Response::from_parts(parts, body)
}
