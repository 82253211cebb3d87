//! `/healthz`, `/readyz` and `/metrics`: for probes, operators and Prometheus.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderValue;
use serde::Serialize;
use utoipa::ToSchema;

use crate::service::error::{Error, Kind};
use crate::service::{Check, Health, Readiness};

use super::App;
use super::answer;
use super::audited;
use super::identity::Caller;
use super::problem::{Problem, ProblemBody};

/// The readiness of the service.
#[derive(Serialize, ToSchema)]
#[schema(as = Readiness)]
pub(super) struct ReadinessBody {
    /// `ok`, `degraded` (it works, and an operator should examine it) or `unavailable`.
    #[schema(example = "degraded")]
    status: &'static str,
    /// The checks.
    checks: Vec<CheckBody>,
}

/// A check of readiness.
#[derive(Serialize, ToSchema)]
#[schema(as = Check)]
pub(super) struct CheckBody {
    /// `store`, `root:{name}`, `backup`, `chain:{name}`, `kubernetes`, `tls`, `config`, `jwks` or
    /// `service`.
    #[schema(example = "root:main")]
    name: String,
    /// `ok`, `degraded` or `unavailable`.
    #[schema(example = "degraded")]
    status: &'static str,
    /// A text for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "the root is away: throttled, since 2026-11-23T20:41:07Z")]
    detail: Option<String>,
}

/// The process answers.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub(super) struct HealthBody {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: &'static str,
}

/// Whether the process answers.
#[utoipa::path(get, path = "/healthz", tag = "operations", security(()),
    responses((status = 200, description = "It answers.", body = HealthBody), ProblemBody))]
pub(super) async fn healthz() -> Result<Response, Problem> {
    Ok(answer::json(&HealthBody { status: status(Health::Ok) })?)
}

/// Whether the service should receive requests, and what is degraded.
///
/// The status is 503 only while the service shuts down, or can neither encrypt nor decrypt. While
/// it continues during an outage, the status is 200 and the body says `degraded`. If clients must
/// authenticate, only those who may read all chains see the checks.
#[utoipa::path(get, path = "/readyz", tag = "operations", security(()),
    responses(
        (status = 200, description = "The service should receive requests.", body = ReadinessBody),
        (status = 503, description = "The service should receive none.", body = ReadinessBody),
    ))]
pub(super) async fn readyz(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Problem> {
    let caller = app.access.caller(request.extensions()).ok();
    respond(readiness(&app, caller.as_ref()))
}

/// The readiness as a caller may see it.
pub(super) fn readiness(app: &App, caller: Option<&Caller>) -> Readiness {
    let certificate = app.tls.as_ref().map(|tls| {
        let detail = tls.certificate_status().warning;
        let health = if detail.is_some() { Health::Degraded } else { Health::Ok };
        Check { name: "tls".to_owned(), health, detail }
    });
    let audit = app.audit.as_deref().map(audited::check);
    app.access.readiness(caller, certificate, audit)
}

/// The answer of `/readyz`.
pub(super) fn respond(readiness: Readiness) -> Result<Response, Problem> {
    let Readiness { health, checks } = readiness;
    let checks = checks.into_iter().map(|check| CheckBody {
        name: check.name,
        status: status(check.health),
        detail: check.detail,
    });
    let body = ReadinessBody { status: status(health), checks: checks.collect() };
    let mut response = answer::json(&body)?;
    if health == Health::Down {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

/// The metrics in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses(
        (status = 200, description = "The Prometheus text format.", body = String,
            content_type = "text/plain"),
        ProblemBody,
    ))]
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Response, Problem> {
    let service = app.access.enter_for_all(&caller)?;
    service.refresh_metrics();
    if let Some(tls) = &app.tls {
        service.metrics().callers.certificate_expires_in(tls.certificate_status().expires_in);
    }
    let text = prometheus::TextEncoder::new().encode_to_string(&app.registry.gather());
    let text = text.map_err(|error| {
        tracing::error!(%error, "the metrics could not be written");
        Error::new(Kind::Internal, "the metrics could not be written")
    })?;
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(answer::typed(Bytes::from(text), content_type))
}

/// The word for a health.
pub(super) fn status(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        Health::Down => "unavailable",
    }
}
