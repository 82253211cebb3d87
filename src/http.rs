//! The HTTP API: its routes, listeners and handlers.
//!
//! It converts requests to typed calls of the [`KeyService`], and results to JSON or raw bytes. It
//! knows no key, no store and no root. [`serve`] runs it; [`openapi`] describes it.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::Method;
use prometheus::Registry;
use tokio::net::TcpListener;
use tower_service::Service;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::audit::{self, Audit};
use crate::auth::Auth;
use crate::metrics::Metrics;
use crate::service::{KeyService, Starting};
use crate::tls;

mod activity;
mod answer;
mod audited;
mod backup;
mod base64;
mod batch;
mod beside;
mod body;
mod budget;
mod calls;
mod chains;
mod config;
mod connection;
mod data_call;
mod datakey;
mod decrypt;
mod docs;
mod encrypt;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod gate;
mod heads;
mod health;
mod identity;
mod keks;
mod media;
mod origins;
mod paced;
mod params;
mod problem;
mod request_id;
mod rewrap;
mod roots;
mod rotate;
mod server;
mod starting;
mod status;
mod stream;
mod strict;
#[cfg(test)]
mod tests;

pub(crate) use audited::Outcome;
pub(crate) use beside::{Beside, Call, Caller as Stranger};
use body::Limit;
use budget::Budget;
pub use config::{Admin, Config};
use identity::GuardedService;
pub(crate) use request_id::RequestId;
use server::Endpoint;
use stream::Limits;

/// What an envelope has beyond its plaintext, with room for base64, longer names of fields, and an
/// inline KEK with the wraps of several roots.
const ENVELOPE_ROOM: usize = 16 * 1024;

/// State that the handlers share.
struct App {
    access: GuardedService,
    registry: Registry,
    max_body: usize,
    budget: Budget,
    streams: Arc<Limits>,
    tls: Option<Arc<tls::Server>>,
    audit: Option<Arc<Audit>>,
    admin: Admin,
    turns: Arc<status::Turns>,
}

/// The listeners of a service.
pub struct Listeners {
    /// For callers.
    pub public: TcpListener,
    /// Serves HTTPS; plain HTTP if not set.
    pub tls: Option<Arc<tls::Server>>,
    /// For health, metrics and the status page alone, by plain HTTP.
    pub admin: Option<TcpListener>,
}

/// Serves `service` on `listeners` to the clients of `auth`, or without it to everybody, until
/// `shutdown` ends; see [`Server::serve`].
///
/// # Errors
/// When a listener has no address.
pub async fn serve(
    config: Config,
    listeners: Listeners,
    service: Arc<KeyService>,
    auth: Option<Arc<Auth>>,
    registry: Registry,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let metrics = Arc::clone(service.metrics());
    let admin = Admin::default();
    let server = Server::new(config, admin, listeners, auth, registry, metrics, Arc::default());
    server.entrance().open(&service);
    server.serve(shutdown).await
}

/// Listeners and their handlers.
pub struct Server {
    config: Config,
    endpoints: Vec<Endpoint>,
    entrance: Entrance,
}

impl Server {
    /// Until [`Entrance::open`] it answers probes with what `starting` waits for, and all other
    /// requests with 503.
    #[must_use]
    pub fn new(
        config: Config,
        settings: Admin,
        listeners: Listeners,
        auth: Option<Arc<Auth>>,
        registry: Registry,
        metrics: Arc<Metrics>,
        starting: Arc<Starting>,
    ) -> Self {
        let Listeners { public, tls, admin } = listeners;
        let at_admin = admin.as_ref().and_then(|admin| admin.local_addr().ok());
        let at_admin = at_admin.is_some_and(|address| settings.is_served_at(address));
        let budget = Budget::new(config.body_memory());
        let slot = audit::Slot::default();
        let handler = |auth: Option<&Arc<Auth>>, has_data, has_status| {
            let router = starting::router(Arc::clone(&starting), auth.is_none());
            Handler(Arc::new(Routes {
                auth: auth.cloned(),
                metrics: Arc::clone(&metrics),
                budget: budget.clone(),
                has_data,
                has_status,
                starting: router,
                started: OnceLock::new(),
                beside: OnceLock::new(),
                audit: audit::Slot::clone(&slot),
            }))
        };
        let (handler, operators) = (
            handler(auth.as_ref(), true, !at_admin),
            admin.map(|it| (it, handler(None, false, at_admin))),
        );
        let entrance = Entrance {
            handler: handler.clone(),
            operators: operators.as_ref().map(|(_, handler)| handler.clone()),
            auth,
            registry,
            max_body: config.max_body,
            budget,
            streams: Arc::new(Limits::new(config.max_streams, config.stream_idle_timeout)),
            tls: tls.clone(),
            audit: audit::Slot::clone(&slot),
            settings,
            is_status_at_admin: at_admin,
        };
        let mut endpoints = vec![Endpoint { listener: public, tls, handler }];
        endpoints.extend(operators.map(|(listener, handler)| Endpoint {
            listener,
            tls: None,
            handler,
        }));
        Self { config, endpoints, entrance }
    }

    /// Lets requests in.
    #[must_use]
    pub fn entrance(&self) -> Entrance {
        self.entrance.clone()
    }

    /// Serves until `shutdown` ends. Then it accepts no connection, completes the requests in
    /// flight within `Config::shutdown_grace`, and closes idle connections.
    ///
    /// # Errors
    /// When a listener has no address.
    pub async fn serve(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        server::run(&self.config, self.endpoints, shutdown).await
    }
}

/// Lets requests in once there is a service for them.
#[derive(Clone)]
pub struct Entrance {
    handler: Handler,
    operators: Option<Handler>,
    auth: Option<Arc<Auth>>,
    registry: Registry,
    max_body: usize,
    budget: Budget,
    streams: Arc<Limits>,
    tls: Option<Arc<tls::Server>>,
    audit: audit::Slot,
    settings: Admin,
    /// Whether the listener of operators serves the status page.
    is_status_at_admin: bool,
}

impl Entrance {
    /// Has requests recorded in an audit log. It comes before [`open`](Self::open); a second call
    /// changes nothing.
    pub fn audit(&self, audit: Arc<Audit>) {
        _ = self.audit.set(audit);
    }

    /// Serves `api` to the same callers. It comes before [`open`](Self::open); a second call
    /// changes nothing.
    pub(crate) fn serve_beside(&self, api: Arc<dyn Beside>) {
        _ = self.handler.0.beside.set(api);
        // They start at 0.
        _ = self.handler.0.metrics.traffic.requests(beside::API);
    }

    /// From now on `service` gets the requests, also those of connections that are open. A second
    /// call changes nothing.
    pub fn open(&self, service: &Arc<KeyService>) {
        let turns = Arc::<status::Turns>::default();
        let app = |access| {
            let (registry, budget, tls) =
                (self.registry.clone(), self.budget.clone(), self.tls.clone());
            let (audit, streams) = (self.audit.get().cloned(), Arc::clone(&self.streams));
            let (max_body, admin) = (self.max_body, self.settings.clone());
            let turns = Arc::clone(&turns);
            Arc::new(App { access, registry, max_body, budget, streams, tls, audit, admin, turns })
        };
        let operators = app(GuardedService::for_operators(Arc::clone(service), self.auth.clone()));
        let app = app(GuardedService::new(Arc::clone(service), self.auth.clone()));
        let data = data_routes().with_state(Arc::clone(&app));
        let with_status = || status_routes().merge(operator_routes());
        let all = match &self.operators {
            None => merge(data, with_status().with_state(Arc::clone(&app))),
            Some(handler) => {
                let is_at_admin = self.is_status_at_admin;
                let (routes, rest) = match is_at_admin {
                    true => (with_status(), OpenApiRouter::new()),
                    false => (operator_routes(), status_routes()),
                };
                let router = Router::from(routes.with_state(Arc::clone(&operators)));
                let all = merge(data, rest.with_state(Arc::clone(&app)));
                let elsewhere = status::elsewhere::routes(is_at_admin, self.settings.status);
                let (router, all) = match is_at_admin {
                    true => (router, all.merge(elsewhere)),
                    false => (router.merge(elsewhere), all),
                };
                handler.open(operators, router.fallback(problem::not_found_for_operators));
                all
            }
        };
        self.handler.open(app, all);
    }
}

/// The OpenAPI 3.1 document made from the code, as pretty JSON with a newline at its end.
#[must_use]
pub fn openapi() -> String {
    let api = data_routes().merge(status_routes()).merge(operator_routes()).into_openapi();
    // A document that is made of plain strings and numbers can be written.
    let mut text = docs::complete(api).to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// The routes of callers.
fn data_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(encrypt::encrypt))
        .routes(routes!(decrypt::decrypt))
        .routes(routes!(rewrap::rewrap))
        .routes(routes!(datakey::datakey))
        .routes(routes!(stream::encrypt))
        .routes(routes!(stream::decrypt))
        .routes(routes!(batch::encrypt))
        .routes(routes!(batch::decrypt))
        .routes(routes!(batch::rewrap))
        .routes(routes!(rotate::rotate))
        .routes(routes!(chains::list))
        .routes(routes!(chains::read, chains::put, chains::delete))
        .routes(routes!(keks::disable))
        .routes(routes!(keks::enable))
        .routes(routes!(keks::destroy))
        .routes(routes!(keks::missing))
        .routes(routes!(roots::rewrap))
        .routes(routes!(roots::remove))
        .routes(routes!(backup::backup))
}

/// The routes of the status page.
fn status_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(status::page))
        .routes(routes!(status::json))
        .routes(routes!(status::chain))
        .route("/", get(status::redirect))
}

/// The routes of probes and Prometheus.
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

/// Handles the requests of a listener.
#[derive(Clone)]
struct Handler(Arc<Routes>);

struct Routes {
    /// Identifies callers, if they must be known.
    auth: Option<Arc<Auth>>,
    metrics: Arc<Metrics>,
    budget: Budget,
    /// Whether it serves calls on data, some of which bypass the router.
    has_data: bool,
    /// Whether it serves the status page.
    has_status: bool,
    /// Responds until there is a service.
    starting: Router,
    started: OnceLock<(Arc<App>, Router)>,
    /// Another API for the same callers.
    beside: OnceLock<Arc<dyn Beside>>,
    /// The audit log; empty until it is open, and if it is not configured.
    audit: audit::Slot,
}

impl Handler {
    fn open(&self, app: Arc<App>, router: Router) {
        let router = router.method_not_allowed_fallback(problem::method_not_allowed);
        _ = self.0.started.set((app, router));
    }

    fn is_starting(&self) -> bool {
        self.0.started.get().is_none()
    }

    /// Whether a request for the status page is for another listener, from any caller.
    fn lacks_status(&self, path: &str) -> bool {
        !self.0.has_status && status::is_at(path)
    }

    /// Whether the service is shutting down.
    fn is_draining(&self) -> bool {
        self.0.started.get().is_some_and(|(app, _)| app.access.is_draining())
    }

    /// Responds to a request. Encrypt and decrypt, which nearly all requests are, bypass the
    /// router, since routing costs about as much as sealing a short message. Boxed, since a large
    /// future is copied from layer to layer.
    async fn answer(self, request: Request) -> Response {
        let started = self.0.started.get();
        if let Some((app, _)) = started
            && self.0.has_data
            && request.method() == Method::POST
        {
            let app = Arc::clone(app);
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
        let mut router = started.map_or(&self.0.starting, |(_, router)| router).clone();
        router.call(request).await.unwrap_or_else(|never| match never {})
    }
}

impl App {
    /// The limit of a body.
    fn body(&self) -> Limit<'_> {
        Limit { len: self.max_body, budget: &self.budget }
    }

    /// The same for one that holds an envelope: what could be encrypted can be decrypted.
    fn envelope(&self) -> Limit<'_> {
        Limit { len: self.max_body.saturating_add(ENVELOPE_ROOM), budget: &self.budget }
    }
}
