//! The composition root: the parts of a running service, in the order in which they start and stop.
//! It makes no decision that a part could make.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::config::Config;
use crate::service::KeyService;
use crate::{auth, root, store};

mod audit_key;
mod notify;
mod reload;
mod start;

pub use reload::Load;
use start::Front;

/// How long background tasks may take to end their current step.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the service until SIGTERM or SIGINT, and then until the requests in flight are finished.
/// Further SIGTERMs change nothing; a second SIGINT ends the process immediately. `load` reads the
/// configuration again, on SIGHUP and periodically.
///
/// # Errors
/// When it can't start, when serving fails, and when a second SIGINT ended it.
pub fn run(config: Config, load: Load) -> Pin<Box<dyn Future<Output = anyhow::Result<()>>>> {
    // An `async fn` is compiled by each crate that awaits it: this one would be the whole service,
    // once for the program and once for each test.
    Box::pin(run_until_signal(config, load))
}

async fn run_until_signal(config: Config, load: Load) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("can't wait for signals")?;
    warn_of_exposure(&config);
    warn_of_open_chain(&config);
    warn_of_lone_key(&config);
    let mut front = Front::open(&config, load).await?;
    let (reload, drain_delay) = (front.reload(), config.server.drain_delay);
    let mut first = "";
    let started = tokio::select! {
        started = front.start(config) => started.map(Some),
        name = signals.next_or_reload(&reload) => {
            tracing::info!(signal = name, "stopped before it was ready");
            first = name;
            Ok(None)
        }
    };
    let service = match started {
        Ok(Some(service)) => service,
        // Only probes and refusals can be in flight.
        ended => {
            tokio::select! {
                closed = front.close() => closed?,
                () = signals.second_interrupt(first, &reload) => {}
            }
            return ended.map(drop);
        }
    };
    let app = App { front, service: Arc::clone(&service) };
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::select! {
        served = app.serve(async { _ = stopped.await }) => served,
        () = async {
            let name = signals.next_or_reload(&reload).await;
            tracing::info!(
                signal = name,
                "finishing requests in flight; a second SIGINT ends the process immediately"
            );
            // Load balancers see it in `/readyz` first, and get time to react.
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

/// A service that has started.
struct App {
    front: Front,
    service: Arc<KeyService>,
}

impl App {
    /// Serves until `stopped`, finishes the requests in flight, and stops the background tasks.
    async fn serve(self, stopped: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
        let Self { mut front, service } = self;
        tokio::select! {
            never = front.announce(&service) => match never {},
            () = stopped => {}
        }
        let audit = front.take_audit();
        let served = front.close().await;
        if tokio::time::timeout(STOP_TIMEOUT, service.stop()).await.is_err() {
            tracing::warn!("a background task did not stop in time");
        }
        if let Some(audit) = audit {
            audit.stop().await;
        }
        served.context("serving failed")?;
        tracing::info!("stopped");
        Ok(())
    }
}

fn warn_of_exposure(config: &Config) {
    if config.is_exposed() {
        let listen = config.server.listen;
        tracing::warn!(
            %listen,
            auth = config.auth.mode.as_str(),
            "server.insecure = true: without auth anyone who reaches this address can decrypt, \
             and without TLS anyone who sees the traffic can read the plaintexts and the tokens"
        );
    }
    if let Some(listen) = config.server.admin_listen.filter(|address| !address.ip().is_loopback()) {
        tracing::warn!(
            %listen,
            "server.admin_listen is plain HTTP: anyone who reaches it can read the names of \
                chains, roots and clients, and counts"
        );
    }
}

/// Access to the socket is restricted by its file; access to the listener is not.
fn warn_of_open_chain(config: &Config) {
    if let (Some(kubernetes), auth::Mode::None) = (&config.kubernetes, config.auth.mode) {
        tracing::warn!(
            chain = %kubernetes.chain,
            "auth.mode = none: anyone who reaches server.listen can decrypt what kube-apiserver \
             encrypts"
        );
    }
}

/// Without a store, the root key is the only thing that this machine keeps.
fn warn_of_lone_key(config: &Config) {
    let is_local = |root: &root::Config| matches!(root, root::Config::Local(_));
    if matches!(config.store, store::Config::Inline(_)) && config.roots.iter().all(is_local) {
        tracing::warn!(
            "store.kind is inline and every root is a key file of this machine: every other \
             process needs the same file, and if it is lost, nothing that was encrypted can be \
             decrypted"
        );
    }
}

/// The signals that the process handles.
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

    /// The name of the next signal that ends the process. Meanwhile, SIGHUP is passed on to
    /// `reload`.
    async fn next_or_reload(&mut self, reload: &watch::Sender<()>) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: reading files again");
                    reload.send_replace(());
                }
            }
        }
    }

    /// Waits for the second SIGINT after the signal `first` has begun the shutdown. SIGTERM does
    /// not count, since supervisors repeat it.
    async fn second_interrupt(&mut self, first: &str, reload: &watch::Sender<()>) {
        let mut interrupts = u32::from(first == "SIGINT");
        while interrupts < 2 {
            let name = self.next_or_reload(reload).await;
            interrupts += u32::from(name == "SIGINT");
            tracing::info!(signal = name, "the shutdown has already begun");
        }
    }
}
