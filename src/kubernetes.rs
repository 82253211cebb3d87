//! The API of Kubernetes KMS plugins, version 2, on a dedicated unix socket, and the settings of
//! `[kubernetes]`.
//!
//! It translates three gRPC calls into calls of the [`KeyService`], with the same chains, limits
//! and metrics as HTTP. It owns the requirements of kube-apiserver and must not know keys, stores
//! or roots. No other module knows gRPC or its messages.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::audit;
use crate::service::{Error, KeyService, Starting};

mod config;
mod connection;
pub mod doctor;
mod inline;
mod plugin;
mod proto;
mod server;
mod socket;
#[cfg(test)]
mod tests;

pub use config::{Address, Config, OnRootOutage, Owner, SocketMode};
pub use socket::{Bound, Error as BindError, bind, check};

use plugin::Plugin;

/// The API version that `Status` returns.
const VERSION: &str = "v2";
/// The longest ciphertext that kube-apiserver accepts, in bytes.
const MAX_CIPHERTEXT: usize = 1024;
/// The longest key id that it accepts, in bytes.
const MAX_KEY_ID: usize = 1024;
/// The longest time for a call: kube-apiserver waits for 3 seconds by default.
const DEADLINE: Duration = Duration::from_millis(2_500);
/// How long a shutdown waits for calls in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running plugin.
pub struct Serving {
    config: Config,
    plugin: Arc<OnceLock<Arc<Plugin>>>,
    stop: watch::Sender<()>,
    tasks: Vec<JoinHandle<()>>,
    /// The audit log; empty if it is not configured.
    audit: audit::Slot,
}

/// Serves the chain of `config` on its socket.
///
/// # Errors
/// When the chain can't be found; see [`KeyService::name_keys`].
pub async fn serve(
    config: Config,
    bound: Bound,
    service: Arc<KeyService>,
) -> Result<Serving, Error> {
    let mut serving = start(config, bound, Arc::default(), audit::Slot::default());
    serving.open(&service).await?;
    Ok(serving)
}

/// Accepts calls on the socket. Until [`Serving::open`], each of them fails with what `starting`
/// waits for; kube-apiserver logs that and retries. Must be called in a runtime.
#[must_use]
pub fn start(config: Config, bound: Bound, starting: Arc<Starting>, audit: audit::Slot) -> Serving {
    let (stop, plugin) = (watch::Sender::new(()), Arc::<OnceLock<_>>::default());
    let running =
        server::run(bound, config.clone(), Arc::clone(&plugin), starting, stop.subscribe());
    let tasks = vec![tokio::spawn(running)];
    Serving { config, plugin, stop, tasks, audit }
}

impl Serving {
    /// Serves all further calls from `service`.
    ///
    /// # Errors
    /// When the chain can't be found; see [`KeyService::name_keys`].
    pub async fn open(&mut self, service: &Arc<KeyService>) -> Result<(), Error> {
        let Config { chain, on_root_outage, socket, .. } = &self.config;
        service.name_keys(chain.as_str()).await?;
        let stopped = self.stop.subscribe();
        let watching =
            plugin::watch_roots(Arc::clone(service), chain.clone(), *on_root_outage, stopped);
        self.tasks.push(tokio::spawn(watching));
        tracing::info!(%socket, %chain, "Kubernetes is served");
        let audit = self.audit.get().cloned();
        let plugin = Plugin::new(Arc::clone(service), chain.clone(), *on_root_outage, audit);
        // Adds the check to readiness; the server corrects it within two seconds.
        plugin.report_socket(None);
        _ = self.plugin.set(Arc::new(plugin));
        Ok(())
    }

    /// Stops accepting calls, finishes those in flight, and removes the socket.
    pub async fn stop(self) {
        drop(self.stop);
        for task in self.tasks {
            // A panic of the task was already logged.
            let _ = task.await;
        }
    }
}
