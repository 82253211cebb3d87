//! What can change while the service runs: clients and permissions, when the configuration's file
//! changes and on SIGHUP. All else needs a restart, and the log says so.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::auth::Auth;
use crate::config::{Config, Error};

/// How often the file is read.
const EVERY: Duration = Duration::from_secs(2);

/// Reads the configuration again: the same file, environment and flags.
pub type Load = Arc<dyn Fn() -> Result<Config, Error> + Send + Sync>;

/// The configuration that is in force, and how it is read again.
pub(super) struct Reload {
    pub(super) load: Load,
    /// What the service was started with.
    pub(super) started: Config,
    /// Without it nothing can change.
    pub(super) auth: Option<Arc<Auth>>,
}

impl Reload {
    /// Reloads now and then, and when `told` to, until its sender is gone.
    pub(super) async fn follow(self, mut told: watch::Receiver<()>) {
        // A change that needs a restart is logged once.
        let mut known = self.started.clone();
        loop {
            let told = tokio::select! {
                told = told.changed() => told,
                () = tokio::time::sleep(EVERY), if self.auth.is_some() => Ok(()),
            };
            if told.is_err() {
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
            Err(_) => return self.refuse("it panicked while the file was read".to_owned()),
        };
        if config.auth.mode != self.started.auth.mode {
            return self.refuse("auth.mode: another mode needs a restart".to_owned());
        }
        let others = Config { auth: self.started.auth.clone(), ..config.clone() };
        if others != *known {
            if others == self.started {
                tracing::info!("settings beside the clients are as they were at the start");
            } else {
                let settings = self.started.differences(&others).join(", ");
                tracing::warn!(settings, "what has changed beside the clients needs a restart");
            }
            *known = others;
        }
        if let Some(auth) = &self.auth {
            auth.replace(config.auth).await;
        }
    }

    fn refuse(&self, reason: String) {
        match &self.auth {
            Some(auth) => auth.refuse(reason),
            None => tracing::error!(reason, "the configuration can't be used any more"),
        }
    }
}
