//! The HTTP face: routes, and the settings of `[server]`.
//!
//! It turns requests into typed calls of the [`KeyService`] and its answers into JSON or raw
//! bytes. It knows no key, no store and no root. [`serve`] runs it; [`openapi`] describes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::Method;
use prometheus::Registry;
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_service::Service;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::metrics::Operation;
use crate::service::KeyService;
use crate::service::error::Error;
use crate::units;

mod answer;
mod batch;
mod body;
mod chains;
mod datakey;
mod decrypt;
mod docs;
mod encrypt;
mod gate;
mod health;
mod keks;
mod problem;
mod rewrap;
mod rotate;
mod server;
#[cfg(test)]
mod tests;

/// `[server]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where health and metrics are served alone; without it they are served on `listen`.
    pub admin_listen: Option<SocketAddr>,
    /// Allows plain HTTP without auth beyond loopback.
    pub insecure: bool,
    /// The largest body in bytes.
    #[serde(deserialize_with = "units::size::deserialize")]
    pub max_body: usize,
    /// How long a request may take.
    #[serde(deserialize_with = "units::duration::deserialize")]
    pub request_timeout: Duration,
    /// Connections at once, on each listener.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: None,
            insecure: false,
            max_body: 4 << 20,
            request_timeout: Duration::from_secs(10),
            max_connections: 10_000,
        }
    }
}

/// What an envelope has beyond its plaintext, with room for base64 and longer names of fields.
const ENVELOPE_ROOM: usize = 1024;

/// What the handlers share.
struct App {
    service: Arc<KeyService>,
    registry: Registry,
    max_body: usize,
}

/// Serves `service` on `listener`, and health and metrics on `admin` if it is given, until
/// `shutdown` ends. Then no connection is taken any more, what is in flight is finished, for
/// [`Config::request_timeout`] at most, and idle connections are closed.
///
/// # Errors
/// When a listener has no address.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    service: Arc<KeyService>,
    registry: Registry,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let app = Arc::new(App { service, registry, max_body: config.max_body });
    let data = data_routes().with_state(Arc::clone(&app));
    let operators = operator_routes().with_state(Arc::clone(&app));
    let faces = match admin {
        None => vec![(listener, Face::new(Some(app), merge(data, operators)))],
        Some(admin) => {
            let operators = Router::from(operators).fallback(problem::not_found_for_operators);
            vec![
                (listener, Face::new(Some(app), merge(data, OpenApiRouter::new()))),
                (admin, Face::new(None, operators)),
            ]
        }
    };
    server::run(&config, faces, shutdown).await
}

/// The OpenAPI 3.1 document made from the code, as pretty JSON with a newline at its end.
#[must_use]
pub fn openapi() -> String {
    let api = data_routes().merge(operator_routes()).into_openapi();
    // A document that is made of plain strings and numbers can be written.
    let mut text = docs::complete(api).to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// What callers use.
fn data_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(encrypt::encrypt))
        .routes(routes!(decrypt::decrypt))
        .routes(routes!(rewrap::rewrap))
        .routes(routes!(datakey::datakey))
        .routes(routes!(batch::encrypt))
        .routes(routes!(batch::decrypt))
        .routes(routes!(batch::rewrap))
        .routes(routes!(rotate::rotate))
        .routes(routes!(chains::list))
        .routes(routes!(chains::read, chains::put))
        .routes(routes!(keks::disable))
        .routes(routes!(keks::enable))
        .routes(routes!(keks::destroy))
}

/// What probes and Prometheus use.
fn operator_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
}

fn merge(data: OpenApiRouter, operators: OpenApiRouter) -> Router {
    let documented = Router::new()
        .route("/openapi.json", get(docs::document))
        .route("/docs", get(docs::redirect))
        .route("/docs/", get(docs::index))
        .route("/docs/{file}", get(docs::file));
    Router::from(data.merge(operators)).merge(documented).fallback(problem::not_found)
}

/// Where the requests of a listener go.
#[derive(Clone)]
struct Face {
    /// For the calls that go straight to their handlers.
    data: Option<Arc<App>>,
    router: Router,
}

impl Face {
    fn new(data: Option<Arc<App>>, router: Router) -> Self {
        Self { data, router: router.method_not_allowed_fallback(problem::method_not_allowed) }
    }

    /// Answers a request. The two calls that nearly all requests are do not go through the router:
    /// its way costs about as much as sealing a short message. Boxed, since a large future is
    /// copied from layer to layer.
    async fn answer(self, request: Request) -> Response {
        if let Some(app) = self.data.filter(|_| request.method() == Method::POST) {
            match request.uri().path() {
                "/v1/encrypt" => {
                    return Box::pin(encrypt::encrypt(State(app), request)).await.into_response();
                }
                "/v1/decrypt" => {
                    return Box::pin(decrypt::decrypt(State(app), request)).await.into_response();
                }
                _ => {}
            }
        }
        let mut router = self.router;
        router.call(request).await.unwrap_or_else(|never| match never {})
    }
}

impl App {
    /// The largest body that holds an envelope: what could be encrypted can be decrypted.
    fn max_envelope(&self) -> usize {
        self.max_body.saturating_add(ENVELOPE_ROOM)
    }

    /// Counts a request that did not come to the service.
    fn refuse(&self, operation: Operation, error: Error) -> Error {
        self.service.metrics().failed(operation, "", error.kind().code());
        error
    }
}
