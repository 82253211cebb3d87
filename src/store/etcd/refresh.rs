//! The task that reads certificates and password again: every two seconds, and after a failure of a
//! member. Unusable files change nothing, and are mentioned in errors.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Config;
use super::credentials::{Credentials, Files, FilesDigest, digest};
use super::members::Members;

/// How often the files are read.
const EVERY: Duration = Duration::from_secs(2);
/// The shortest pause between two readings, however many calls fail.
const PAUSE: Duration = Duration::from_millis(250);

/// Reads the files again until the members are dropped.
pub(super) async fn follow(config: Config, first: FilesDigest, members: Weak<Members>) {
    let mut seen = Seen { now: first, tried: first };
    loop {
        sleep(PAUSE).await;
        let Some(failing) = members.upgrade().map(|members| Arc::clone(&members.failing)) else {
            return;
        };
        // A time-out is the regular case.
        let _ = timeout(EVERY - PAUSE, failing.notified()).await;
        let Some(members) = members.upgrade() else { return };
        seen.look(&config, &members).await;
    }
}

/// The contents of the files at the last reading.
struct Seen {
    /// The digest at the last reading.
    now: FilesDigest,
    /// The digest that was last tried, whether it was usable or not.
    tried: FilesDigest,
}

impl Seen {
    async fn look(&mut self, config: &Config, members: &Members) {
        let config = config.clone();
        let read = tokio::task::spawn_blocking(move || {
            let files = match Files::read(&config) {
                Ok(files) => files,
                Err(wrong) => return (digest(&[wrong.1.as_bytes()]), Err(wrong)),
            };
            (files.digest(), Credentials::new(&config, &files))
        });
        // A panic is reported where it happens.
        let Ok((digest, credentials)) = read.await else { return };
        // If two files are replaced one after the other, only one may be new yet.
        let is_settled = std::mem::replace(&mut self.now, digest) == digest;
        if digest == self.tried || !is_settled && credentials.is_err() {
            return;
        }
        self.tried = digest;
        match credentials {
            Ok(credentials) => {
                let adopted = members.adopt(credentials).await;
                tracing::info!(cert = members.cert(), "the new files for etcd are in use");
                if let Err(error) = adopted {
                    tracing::error!(
                        error,
                        "a member refuses the new files for etcd; its previous connection stays \
                            in use"
                    );
                }
            }
            Err((key, detail)) => {
                let trouble = format!("store.{key}: {detail}");
                tracing::error!(
                    error = trouble,
                    "the new files for etcd are not usable; the previous ones stay in use"
                );
                members.keep(trouble);
            }
        }
    }
}
