//! The API of Kubernetes KMS plugins, version 2, on a dedicated unix socket, and the
//! settings of `[kubernetes]`.
//!
//! It turns three gRPC calls into calls of the [`KeyService`], as the HTTP face does with JSON: the
//! same chains, limits and metrics. What kube-apiserver demands of a plugin is kept here; it knows
//! no key, no store and no root. gRPC and its messages go no further down.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

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

/// The API version that `Status` tells.
const VERSION: &str = "v2";
/// The longest ciphertext that kube-apiserver takes, in bytes.
const MAX_CIPHERTEXT: usize = 1024;
/// The longest key id that it takes, in bytes.
const MAX_KEY_ID: usize = 1024;
/// How long a call may take here: kube-apiserver waits for 3 seconds, if nobody sets less.
const DEADLINE: Duration = Duration::from_millis(2_500);
/// How long calls in flight may take when the service stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A plugin that serves.
pub struct Serving {
    config: Config,
    plugin: Arc<OnceLock<Arc<Plugin>>>,
    stop: watch::Sender<()>,
    tasks: Vec<JoinHandle<()>>,
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
    let mut serving = start(config, bound, Arc::default());
    serving.open(&service).await?;
    Ok(serving)
}

/// Takes calls on the socket. Until [`Serving::open`] each of them fails with what `starting` waits
/// for: kube-apiserver tries again, and its log says why. Must be called in a runtime.
#[must_use]
pub fn start(config: Config, bound: Bound, starting: Arc<Starting>) -> Serving {
    let (stop, plugin) = (watch::Sender::new(()), Arc::<OnceLock<_>>::default());
    let running =
        server::run(bound, config.clone(), Arc::clone(&plugin), starting, stop.subscribe());
    let tasks = vec![tokio::spawn(running)];
    Serving { config, plugin, stop, tasks }
}

impl Serving {
    /// From now on calls are answered by `service`.
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
        let plugin = Plugin::new(Arc::clone(service), chain.clone(), *on_root_outage);
        // Readiness has the check from now on; the server corrects it within two seconds.
        plugin.report_socket(None);
        _ = self.plugin.set(Arc::new(plugin));
        Ok(())
    }

    /// Takes no call any more, finishes those in flight, and removes the socket.
    pub async fn stop(self) {
        drop(self.stop);
        for task in self.tasks {
            // A task that panicked has said so already.
            let _ = task.await;
        }
    }
}
