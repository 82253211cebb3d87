//! The composition root: what a running service is made of, in the order in which it starts and
//! stops. It decides nothing that a part could decide.

use std::io::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::auth::{self, Auth};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::http::Listeners;
use crate::metrics::Metrics;
use crate::service::{KeyService, names_root};
use crate::{http, kubernetes, root, store, tls};

mod notify;
mod reload;

pub use reload::Load;
use reload::Reload;

/// How long background tasks may take to end their current step.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the service until SIGTERM or SIGINT, and then until the requests in flight are done. More
/// SIGTERMs change nothing; a second SIGINT ends it immediately. `load` reads the configuration
/// again, on SIGHUP and now and then.
///
/// # Errors
/// When it can't start, when serving fails, and when a second SIGINT ended it.
pub async fn run(config: Config, load: Load) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("can't wait for signals")?;
    let started = config.clone();
    let app = tokio::select! {
        app = App::start(config) => app?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before it was ready");
            return Ok(());
        }
    };
    let (service, reload) = (Arc::clone(&app.service), app.reload.clone());
    let settings = Reload { load, started, auth: app.auth.clone() };
    // It leaves nothing half done that would have to be waited for.
    tokio::spawn(settings.follow(reload.subscribe()));
    let drain_delay = app.config.drain_delay;
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::select! {
        served = app.serve(async { _ = stopped.await }) => served,
        () = async {
            let name = signals.next_or_reload(&reload).await;
            tracing::info!(
                signal = name,
                "finishing what is in flight; a second SIGINT ends the process immediately"
            );
            // Whoever sends requests here is told first, and gets time to hear it.
            service.drain();
            notify::stopping();
            let mut insisted = pin!(signals.second_interrupt(name, &reload));
            if tokio::time::timeout(drain_delay, insisted.as_mut()).await.is_err() {
                _ = stop.send(());
                insisted.await;
            }
        } => anyhow::bail!("ended by a second SIGINT before the shutdown was complete"),
    }
}

/// A service that is ready to serve.
struct App {
    config: http::Config,
    listeners: Listeners,
    kubernetes: Option<(kubernetes::Config, kubernetes::Bound)>,
    registry: Registry,
    service: Arc<KeyService>,
    auth: Option<Arc<Auth>>,
    /// Tells all that is read from files to read it again.
    reload: Arc<watch::Sender<()>>,
}

impl App {
    /// Starts the parts. The addresses come first: they fail fast, and calls wait instead of
    /// being refused. Then the store, which keeps a second process away from all that follows.
    async fn start(config: Config) -> anyhow::Result<Self> {
        warn_of_exposure(&config);
        warn_of_open_chain(&config);
        warn_of_lone_key(&config);
        let clock = Arc::new(SystemClock::new());
        let tls = config.server.tls.clone();
        let tls = tls.map(|tls| tls::Server::open(tls, Arc::clone(&clock) as _)).transpose()?;
        let public = bind("server.listen", config.server.listen).await?;
        let admin = match config.server.admin_listen {
            Some(address) => Some(bind("server.admin_listen", address).await?),
            None => None,
        };
        let kubernetes = match config.kubernetes {
            Some(config) => Some((config.clone(), kubernetes::bind(&config)?)),
            None => None,
        };
        let registry = Registry::new();
        let metrics = Metrics::new(&registry)?;
        let store = store::open(&config.store).await?;
        let data_dir = config.store.data_dir();
        let mut roots = Vec::new();
        // The only root must open what is there, whatever its name was.
        let is_alone = config.roots.len() == 1;
        for config in &config.roots {
            // A missing key file is made on a first start alone, not beside a store that needs it.
            let name = (!is_alone).then(|| config.name());
            let is_needed = config.is_new(data_dir) && names_root(&*store, name).await?;
            let if_missing = if is_needed { root::IfMissing::Wait } else { root::IfMissing::Make };
            roots.push(root::open_if(config, data_dir, if_missing).await?);
        }
        let auth = Auth::start(config.auth, Arc::clone(&clock) as _, Arc::clone(&metrics)).await;
        let service = KeyService::start(config.service, store, roots, clock, metrics).await?;
        let listeners = Listeners { public, tls: tls.map(Arc::new), admin };
        let reload = Arc::new(watch::Sender::new(()));
        Ok(Self { config: config.server, listeners, kubernetes, registry, service, auth, reload })
    }

    /// Serves until `stopped`, finishes what is in flight, and stops the tasks behind it.
    async fn serve(self, stopped: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
        let Self { config, listeners, kubernetes, registry, service, auth, reload } = self;
        if let Some(tls) = &listeners.tls {
            tokio::spawn(Arc::clone(tls).follow(reload.subscribe()));
        }
        let kubernetes = match kubernetes {
            Some((config, bound)) => {
                Some(kubernetes::serve(config, bound, Arc::clone(&service)).await?)
            }
            None => None,
        };
        announce(&listeners)?;
        notify::ready();
        let serving = http::serve(config, listeners, Arc::clone(&service), auth, registry, stopped);
        let served = serving.await;
        // To the last: without it a kube-apiserver can't start.
        if let Some(kubernetes) = kubernetes {
            kubernetes.stop().await;
        }
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
fn announce(listeners: &Listeners) -> std::io::Result<()> {
    let scheme = if listeners.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listeners.public.local_addr()?);
    let admin = listeners
        .admin
        .as_ref()
        .map(TcpListener::local_addr)
        .transpose()?
        .map(|at| format!("http://{at}"));
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
            auth = config.auth.mode.as_str(),
            "server.insecure = true: without auth whoever reaches this address can decrypt, \
             and without TLS whoever sees the traffic reads the plaintexts and the tokens"
        );
    }
    if let Some(listen) = config.server.admin_listen.filter(|address| !address.ip().is_loopback()) {
        tracing::warn!(
            %listen,
            "server.admin_listen is plain HTTP: anyone who reaches it can read the names of chains, roots \
             and clients, and counts"
        );
    }
}

/// The socket's file keeps others out; the listener does not.
fn warn_of_open_chain(config: &Config) {
    if let (Some(kubernetes), auth::Mode::None) = (&config.kubernetes, config.auth.mode) {
        tracing::warn!(
            chain = %kubernetes.chain,
            "auth.mode is none: whoever reaches server.listen can decrypt what kube-apiserver encrypts"
        );
    }
}

/// Without a store nothing of a KEK is kept here but the root key.
fn warn_of_lone_key(config: &Config) {
    let is_local = |root: &root::Config| matches!(root, root::Config::Local(_));
    if matches!(config.store, store::Config::Inline(_)) && config.roots.iter().all(is_local) {
        tracing::warn!(
            "store.kind is inline and every root is a key file of this machine: every other process \
             needs the same file, and once it is lost nothing that was encrypted opens"
        );
    }
}

/// The signals that the process hears.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The name of the next one that ends it; until then SIGHUP is passed on to `reload`.
    async fn next_or_reload(&mut self, reload: &watch::Sender<()>) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: files are read again");
                    reload.send_replace(());
                }
            }
        }
    }

    /// Waits for the second SIGINT, after the signal `first` has begun the shutdown. Supervisors
    /// repeat SIGTERM, so it never ends anything by itself.
    async fn second_interrupt(&mut self, first: &str, reload: &watch::Sender<()>) {
        let mut interrupts = u32::from(first == "SIGINT");
        while interrupts < 2 {
            let name = self.next_or_reload(reload).await;
            interrupts += u32::from(name == "SIGINT");
            tracing::info!(signal = name, "the shutdown has begun already");
        }
    }

    /// The name of the next one that ends it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
