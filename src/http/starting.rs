//! The responses until there is a service: probes, and 503 to every other request. The response for
//! the status page says what the start waits for, to those who may see that.

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
        .route("/", get(status))
        .route("/status", get(status))
        .route("/status.json", get(status))
        .route("/status/chains/{name}", get(status))
        .fallback(refuse)
        .method_not_allowed_fallback(refuse)
        .with_state(Shared { starting, is_open })
}

impl Shared {
    /// Whether the sender of a request may see what the start waits for.
    fn shows_details(&self, request: &Request) -> bool {
        let client = request.extensions().get::<Arc<Client>>();
        self.is_open || client.is_some_and(|it| it.may_with_all(Operation::Read))
    }
}

async fn readyz(State(shared): State<Shared>, request: Request) -> Result<Response, Problem> {
    let may_see = shared.shows_details(&request);
    let checks = if may_see { vec![shared.starting.check()] } else { Vec::new() };
    health::respond(Readiness { health: Health::Down, checks })
}

async fn status(State(shared): State<Shared>, request: Request) -> Problem {
    Problem(match shared.shows_details(&request) {
        true => shared.starting.explained(),
        false => shared.starting.error(),
    })
}

async fn refuse(State(shared): State<Shared>) -> Problem {
    Problem(shared.starting.error())
}
