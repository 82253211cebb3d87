//! Reloads what can change while the service runs: clients and permissions, when the configuration
//! file changes and on SIGHUP. Other changes need a restart, and are logged.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::audit;
use crate::auth::Auth;
use crate::config::{Config, Error};

/// How often the file is read again.
const EVERY: Duration = Duration::from_secs(2);

/// Reads the configuration again: the same file, environment and flags.
pub type Load = Arc<dyn Fn() -> Result<Config, Error> + Send + Sync>;

/// The configuration that is in force, and how it is read again.
pub(super) struct Reload {
    pub(super) load: Load,
    /// What the service was started with.
    pub(super) started: Config,
    /// Without it, nothing can change.
    pub(super) auth: Option<Arc<Auth>>,
    /// The audit log, once it is open.
    pub(super) audit: audit::Slot,
}

impl Reload {
    /// Reloads periodically, and on each `request`, until its sender is gone.
    pub(super) async fn follow(self, mut request: watch::Receiver<()>) {
        // Changes that need a restart are logged once.
        let mut known = self.started.clone();
        loop {
            let requested = tokio::select! {
                changed = request.changed() => changed,
                () = tokio::time::sleep(EVERY), if self.auth.is_some() => Ok(()),
            };
            if requested.is_err() {
                return;
            }
            self.once(&mut known).await;
        }
    }

    async fn once(&self, known: &mut Config) {
        // A disk may be slow.
        let load = Arc::clone(&self.load);
        let config = match tokio::task::spawn_blocking(move || load()).await {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => return self.refuse(error.to_string()),
            Err(_) => return self.refuse("reading it panicked".to_owned()),
        };
        if config.auth.mode != self.started.auth.mode {
            return self.refuse("auth.mode: another mode needs a restart".to_owned());
        }
        let others = Config { auth: self.started.auth.clone(), ..config.clone() };
        if others != *known {
            if others == self.started {
                tracing::info!(
                    "settings other than the clients are the same as at the start again"
                );
            } else {
                let settings = self.started.differences(&others).join(", ");
                tracing::warn!(
                    settings,
                    "settings other than the clients have changed and need a restart"
                );
            }
            *known = others;
        }
        if let Some(auth) = &self.auth {
            let (is_new, clients) = (!auth.is(&config.auth), config.auth.clients.len());
            auth.replace(config.auth).await;
            if is_new && let Some(audit) = self.audit.get() {
                let change: [(&str, &audit::record::Value<'_>); 1] = [("clients", &clients)];
                let written = audit.system(&audit::System::new("reload", &change));
                _ = written.await;
            }
        }
    }

    fn refuse(&self, reason: String) {
        match &self.auth {
            Some(auth) => auth.refuse(reason),
            None => tracing::error!(reason, "the new configuration is not usable"),
        }
    }
}
