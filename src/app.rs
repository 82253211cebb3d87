//! The composition root: what a running service is made of, in the order in which it starts and
//! stops. It decides nothing that a part could decide.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::clock::SystemClock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::service::KeyService;
use crate::{http, root, store};

/// How long background tasks may take to end their current step.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the service until SIGTERM or SIGINT, and then until the requests in flight are done. A
/// second signal ends it at once.
///
/// # Errors
/// When it can't start, when serving fails, and when it was ended by a second signal.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("can't wait for signals")?;
    let app = tokio::select! {
        app = App::start(config) => app?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before it was ready");
            return Ok(());
        }
    };
    let service = Arc::clone(&app.service);
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::select! {
        served = app.serve(async { _ = stopped.await }) => served,
        () = async {
            let name = signals.next().await;
            tracing::info!(signal = name, "finishing what is in flight; a second signal ends at once");
            service.drain();
            _ = stop.send(());
            signals.next().await;
        } => anyhow::bail!("a second signal: ended with requests in flight"),
    }
}

/// A service that is ready to serve.
struct App {
    config: http::Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    registry: Registry,
    service: Arc<KeyService>,
}

impl App {
    /// Starts the parts. The addresses come first: they fail fast, and calls wait instead of
    /// being refused. Then the store, which keeps a second process away from all that follows.
    async fn start(config: Config) -> anyhow::Result<Self> {
        warn_of_exposure(&config);
        let listener = bind("server.listen", config.server.listen).await?;
        let admin = match config.server.admin_listen {
            Some(address) => Some(bind("server.admin_listen", address).await?),
            None => None,
        };
        let registry = Registry::new();
        let metrics = Metrics::new(&registry)?;
        let store = store::open(&config.store).await?;
        let data_dir = config.store.data_dir();
        let mut roots = Vec::new();
        for config in &config.roots {
            roots.push(root::open(config, data_dir).await?);
        }
        let clock = Arc::new(SystemClock::new());
        let service = KeyService::start(config.service, store, roots, clock, metrics).await?;
        Ok(Self { config: config.server, listener, admin, registry, service })
    }

    /// Serves until `stopped`, finishes what is in flight, and stops the tasks behind it.
    async fn serve(self, stopped: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
        let Self { config, listener, admin, registry, service } = self;
        announce(&listener, admin.as_ref())?;
        let served =
            http::serve(config, listener, admin, Arc::clone(&service), registry, stopped).await;
        if tokio::time::timeout(STOP_TIMEOUT, service.stop()).await.is_err() {
            tracing::warn!("a background task did not end in time");
        }
        served.context("serving failed")?;
        tracing::info!("stopped");
        Ok(())
    }
}

async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{key}: something listens on {address} already; is it another kms-proxy?"
        ),
        _ => anyhow::Error::new(error).context(format!("{key}: can't listen on {address}")),
    })
}

/// Says where the service is to be found: in the log, and as the one line on stdout, which comes
/// whatever the log's level is.
fn announce(listener: &TcpListener, admin: Option<&TcpListener>) -> std::io::Result<()> {
    let url = format!("http://{}", listener.local_addr()?);
    let admin = admin.map(TcpListener::local_addr).transpose()?.map(|at| format!("http://{at}"));
    tracing::info!(url, admin = admin.as_deref(), version = env!("CARGO_PKG_VERSION"), "ready");
    // Nobody may be reading; that is no reason to end.
    let beside = admin.map(|admin| format!(", admin on {admin}")).unwrap_or_default();
    _ = writeln!(std::io::stdout(), "kms-proxy is ready on {url}{beside}");
    Ok(())
}

fn warn_of_exposure(config: &Config) {
    if config.is_exposed() {
        let listen = config.server.listen;
        tracing::warn!(
            %listen,
            "server.insecure = true: without TLS and auth, whoever reaches this address can decrypt, \
             and whoever sees the traffic reads the plaintexts"
        );
    }
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
