//! How a service starts: it binds its addresses first, so that errors show early. Then it opens the
//! store, the roots and the chains, while it already answers probes. It waits for a remote store.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::auth::Auth;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::http::{self, Entrance, Listeners};
use crate::metrics::Metrics;
use crate::service::{self, Health, KeyService, Kind, Starting, names_root};
use crate::store::{self, Store};
use crate::{archive, audit, aws_api, kubernetes, root, tls};

use super::reload::{Load, Reload};
use super::{audit_key, notify};

/// The pause between two attempts to reach the store. An attempt at an etcd that does not answer
/// takes up to 5 seconds itself.
const RETRY: Duration = Duration::from_millis(500);
/// How often a service that has started is asked whether it can work.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The listeners and what they need. They exist before the service starts and after it has stopped.
pub(super) struct Front {
    entrance: Entrance,
    http: JoinHandle<std::io::Result<()>>,
    stop_http: oneshot::Sender<()>,
    kubernetes: Option<kubernetes::Serving>,
    addresses: Addresses,
    clock: Arc<SystemClock>,
    metrics: Arc<Metrics>,
    auth: Option<Arc<Auth>>,
    starting: Arc<Starting>,
    /// Asks every part that reads files to read them again.
    reload: Arc<watch::Sender<()>>,
    /// The audit log, for the parts that report to it.
    audit: audit::Slot,
    /// The same, for its end.
    audit_log: Option<audit::Opened>,
    /// Whether the standard output is the audit log.
    is_stdout_taken: bool,
}

impl Front {
    /// Listens and answers probes. A wrong address or certificate is an error.
    pub(super) async fn open(config: &Config, load: Load) -> anyhow::Result<Self> {
        let clock = Arc::new(SystemClock::new());
        let tls = config.server.tls.clone();
        let tls = tls.map(|tls| tls::Server::open(tls, Arc::clone(&clock) as _)).transpose()?;
        let tls = tls.map(Arc::new);
        let public = bind("server.listen", config.server.listen).await?;
        let admin = match config.server.admin_listen {
            Some(address) => Some(bind("server.admin_listen", address).await?),
            None => None,
        };
        let bound = config.kubernetes.as_ref().map(kubernetes::bind).transpose()?;
        let registry = Registry::new();
        let metrics = Metrics::new(&registry)?;
        let auth = Auth::new(config.auth.clone(), Arc::clone(&clock) as _, Arc::clone(&metrics));
        let reload = Arc::new(watch::Sender::new(()));
        if let Some(tls) = &tls {
            tokio::spawn(Arc::clone(tls).follow(reload.subscribe()));
        }
        let audit = audit::Slot::default();
        let (started, slot) = (config.clone(), Arc::clone(&audit));
        let settings = Reload { load, started, auth: auth.clone(), audit: slot };
        tokio::spawn(reopen_audit(Arc::clone(&audit), reload.subscribe()));
        // It can be aborted at any point, so nothing waits for it.
        tokio::spawn(settings.follow(reload.subscribe()));

        let starting = Arc::<Starting>::default();
        let addresses = Addresses::of(&public, tls.is_some(), admin.as_ref())?;
        let Addresses { url, admin: admin_url } = &addresses;
        tracing::info!(url, admin = admin_url.as_deref(), "listening; the service is starting");
        let (listeners, server) = (Listeners { public, tls, admin }, config.server.clone());
        let server = http::Server::new(
            server,
            config.admin.clone(),
            listeners,
            auth.clone(),
            registry,
            Arc::clone(&metrics),
            Arc::clone(&starting),
        );
        let (entrance, (stop_http, stopped)) = (server.entrance(), oneshot::channel());
        let http = tokio::spawn(server.serve(async { _ = stopped.await }));
        let kubernetes = config.kubernetes.clone().zip(bound).map(|(config, bound)| {
            kubernetes::start(config, bound, Arc::clone(&starting), Arc::clone(&audit))
        });
        Ok(Self {
            entrance,
            http,
            stop_http,
            kubernetes,
            addresses,
            clock,
            metrics,
            auth,
            starting,
            reload,
            audit,
            audit_log: None,
            is_stdout_taken: config.audit.file == Some(audit::Target::Stdout),
        })
    }

    /// The sender that asks every part that reads files to read them again.
    pub(super) fn reload(&self) -> Arc<watch::Sender<()>> {
        Arc::clone(&self.reload)
    }

    /// Starts the service and admits requests. If etcd does not answer, or refuses the credentials,
    /// this waits without a limit; a file store that can't be opened is an error.
    pub(super) async fn start(&mut self, config: Config) -> anyhow::Result<Arc<KeyService>> {
        // The store's lock keeps a second process from doing what follows.
        let store = store::connect(&config.store).await?;
        let waits = matches!(config.store, store::Config::Etcd(_));
        let store = Awaited { store, waits, starting: Arc::clone(&self.starting) };
        let roots = self.open_roots(&config, &store).await?;
        let archives: Vec<_> =
            config.archives.iter().map(archive::open).collect::<Result<_, _>>()?;
        if config.audit.file.is_some() {
            let restore =
                async || audit_key::restore(&*store.store, &archives, &self.starting).await;
            store.patiently(restore).await.context("audit")?;
        }
        let roots = self.open_audit(&config, &store, roots).await?;
        self.starting.report("service", "the chains are being loaded");
        if let Some(auth) = &self.auth {
            auth.settled().await;
        }
        let started = store.patiently(async || {
            let (config, store, roots) =
                (config.service.clone(), Arc::clone(&store.store), roots.clone());
            let (archives, clock) = (archives.clone(), Arc::clone(&self.clock) as _);
            let metrics = Arc::clone(&self.metrics);
            KeyService::start_archived(config, store, archives, roots, clock, metrics).await
        });
        let service = started.await?;
        if let Some(kubernetes) = &mut self.kubernetes {
            let kubernetes = tokio::sync::Mutex::new(kubernetes);
            let opened = store.patiently(async || kubernetes.lock().await.open(&service).await);
            opened.await?;
        }
        self.serve_aws_api(&config, &service)?;
        self.entrance.open(&service);
        Ok(service)
    }

    /// Opens the audit log, if there is one. Calls of the roots that this returns are in it.
    async fn open_audit(
        &mut self,
        config: &Config,
        store: &Awaited,
        roots: Vec<root::Named>,
    ) -> anyhow::Result<Vec<root::Named>> {
        let Some(target) = &config.audit.file else { return Ok(roots) };
        self.starting.report("audit", "the keys of the audit log are unwrapped");
        let keys = async || audit_key::keys(&*store.store, &roots, &self.starting).await;
        let keys = store.patiently(keys).await.context("audit")?;
        let (clock, metrics) = (Arc::clone(&self.clock) as _, Arc::clone(&self.metrics));
        let opened = audit::open(&config.audit, keys, clock, metrics);
        let opened = opened.with_context(|| format!("audit.file: can't write to {target}"))?;
        let Some(opened) = opened else { return Ok(roots) };
        let log = Arc::clone(&opened.audit);
        tracing::info!(%target, key = log.public_key(), "the audit log is open");
        let version: &str = env!("CARGO_PKG_VERSION");
        let started = log.system(&audit::System::new(
            "start",
            &[("version", &version), ("pid", &std::process::id())],
        ));
        _ = started.await;
        _ = self.audit.set(Arc::clone(&log));
        self.entrance.audit(Arc::clone(&log));
        self.audit_log = Some(opened);
        Ok(roots.into_iter().map(|root| audit::audited(root, &log)).collect())
    }

    /// Serves the AWS KMS API, if it is enabled.
    fn serve_aws_api(&self, config: &Config, service: &Arc<KeyService>) -> anyhow::Result<()> {
        if !config.aws_api.enabled {
            return Ok(());
        }
        let kms = config.aws_api.kms(&config.roots);
        let kms = kms.map(|settings| root::open_kms(&settings)).transpose();
        let kms = kms.map_err(|error| anyhow::anyhow!("aws_api.forward: {}", error.detail))?;
        let (service, clock) = (Arc::clone(service), Arc::clone(&self.clock) as _);
        let api = aws_api::Api::new(&config.aws_api, service, self.auth.clone(), clock, kms);
        self.entrance.serve_beside(api);
        Ok(())
    }

    async fn open_roots(
        &self,
        config: &Config,
        store: &Awaited,
    ) -> anyhow::Result<Vec<root::Named>> {
        let data_dir = config.store.data_dir();
        let mut roots = Vec::new();
        // A lone root must open the KEKs that exist, whatever name it had.
        let is_alone = config.roots.len() == 1;
        for config in &config.roots {
            // A missing key file is only created if no KEK in the store needs it.
            let name = (!is_alone).then(|| config.name());
            let asked = async || names_root(&*store.store, name).await;
            let is_needed = config.is_new(data_dir) && store.patiently(asked).await?;
            let if_missing = if is_needed { root::IfMissing::Wait } else { root::IfMissing::Make };
            self.starting.report(&format!("root:{}", config.name()), "it is set up");
            roots.push(root::open_if(config, data_dir, if_missing).await?);
        }
        Ok(roots)
    }

    /// Announces the service as soon as it is ready, that is when `/readyz` is 200.
    pub(super) async fn announce(&self, service: &KeyService) -> Infallible {
        let mut told = false;
        loop {
            let readiness = service.readiness();
            if readiness.health != Health::Down {
                self.addresses.announce(self.is_stdout_taken);
                notify::ready();
                return std::future::pending().await;
            }
            if !told && !service.is_draining() {
                let trouble = readiness.checks.into_iter().filter(|it| it.health != Health::Ok);
                let trouble: Vec<_> = trouble
                    .map(|it| format!("{}: {}", it.name, it.detail.unwrap_or_default()))
                    .collect();
                tracing::warn!(error = trouble.join("; "), "the service is not ready yet");
                told = true;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Takes the audit log, which ends last.
    pub(super) fn take_audit(&mut self) -> Option<audit::Opened> {
        self.audit_log.take()
    }

    /// Stops accepting requests and finishes those in flight.
    pub(super) async fn close(self) -> std::io::Result<()> {
        // If the receiver is gone, the server has already ended.
        _ = self.stop_http.send(());
        let served = self.http.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        // Last, since kube-apiserver can't start without it.
        if let Some(kubernetes) = self.kubernetes {
            kubernetes.stop().await;
        }
        served
    }
}

/// Opens the file of the audit log again on SIGHUP.
async fn reopen_audit(audit: audit::Slot, mut request: watch::Receiver<()>) {
    while request.changed().await.is_ok() {
        if let Some(audit) = audit.get() {
            audit.reopen();
        }
    }
}

/// A store, and whether the start waits for it.
struct Awaited {
    store: Arc<dyn Store>,
    waits: bool,
    starting: Arc<Starting>,
}

impl Awaited {
    /// Repeats `step` as long as it fails because of the store.
    async fn patiently<T, E: Failure>(&self, step: impl AsyncFn() -> Result<T, E>) -> Result<T, E> {
        loop {
            self.answers().await;
            match step().await {
                Err(error) if self.waits => match error.of_store() {
                    Some(detail) => self.report(&detail),
                    None => return Err(error),
                },
                result => return result,
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits until the store answers; its own error is the best description of what is wrong.
    async fn answers(&self) {
        while self.waits
            && let Err(store::Error::Unavailable { detail, .. }) = self.store.get("").await
        {
            self.report(&detail);
            tokio::time::sleep(RETRY).await;
        }
    }

    fn report(&self, detail: &str) {
        if self.starting.report("store", detail) {
            tracing::warn!(
                store = self.store.kind(),
                error = detail,
                "the store is not usable yet; waiting for it"
            );
        }
    }
}

/// An error that the store may have caused.
trait Failure {
    /// What is wrong with the store, if a later attempt may succeed.
    fn of_store(&self) -> Option<String>;
}

impl Failure for store::Error {
    fn of_store(&self) -> Option<String> {
        match self {
            Self::Unavailable { detail, .. } => Some(detail.clone()),
            Self::Corrupt { .. } => None,
        }
    }
}

impl Failure for audit::secret::Error {
    fn of_store(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.of_store(),
            _ => None,
        }
    }
}

impl Failure for service::Error {
    fn of_store(&self) -> Option<String> {
        (self.kind() == Kind::StoreUnavailable).then(|| self.for_operators())
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

/// The URLs of the service.
struct Addresses {
    url: String,
    admin: Option<String>,
}

impl Addresses {
    fn of(public: &TcpListener, is_tls: bool, admin: Option<&TcpListener>) -> anyhow::Result<Self> {
        let scheme = if is_tls { "https" } else { "http" };
        let at = |listener: &TcpListener| listener.local_addr().context("a listener's address");
        let admin = admin.map(|admin| Ok::<_, anyhow::Error>(format!("http://{}", at(admin)?)));
        Ok(Self { url: format!("{scheme}://{}", at(public)?), admin: admin.transpose()? })
    }

    /// Writes them to the log, and as one line to stdout, whatever the log level is, unless stdout
    /// has another use.
    fn announce(&self, is_stdout_taken: bool) {
        let Self { url, admin } = self;
        tracing::info!(url, admin = admin.as_deref(), version = env!("CARGO_PKG_VERSION"), "ready");
        let beside = admin.as_ref().map(|admin| format!(", admin on {admin}")).unwrap_or_default();
        if is_stdout_taken {
            return;
        }
        // Continue if stdout is closed.
        _ = writeln!(std::io::stdout(), "kms-proxy is ready on {url}{beside}");
    }
}
