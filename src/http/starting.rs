//! The responses until there is a service: probes, and 503 to every other request.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;

use crate::auth::Client;
use crate::metrics::Operation;
use crate::service::{Health, Readiness, Starting};

use super::health;
use super::problem::Problem;

/// State that the handlers share.
#[derive(Clone)]
struct Shared {
    starting: Arc<Starting>,
    /// Whether every caller may see details, not only clients that may read all chains.
    is_open: bool,
}

/// The routes of a listener; `is_open` when it recognises no callers.
pub(super) fn router(starting: Arc<Starting>, is_open: bool) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(readyz))
        .fallback(refuse)
        .method_not_allowed_fallback(refuse)
        .with_state(Shared { starting, is_open })
}

async fn readyz(State(shared): State<Shared>, request: Request) -> Result<Response, Problem> {
    let client = request.extensions().get::<Arc<Client>>();
    let may_see = shared.is_open || client.is_some_and(|it| it.may_with_all(Operation::Read));
    let checks = if may_see { vec![shared.starting.check()] } else { Vec::new() };
    health::respond(Readiness { health: Health::Down, checks })
}

async fn refuse(State(shared): State<Shared>) -> Problem {
    Problem(shared.starting.error())
}
