//! The task that reads certificates and password again: every two seconds, and when a member
//! failed. Files that can't be used change nothing, and failures say so.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Config;
use super::credentials::{Credentials, Files, FilesDigest, digest};
use super::members::Members;

/// How often the files are read.
const EVERY: Duration = Duration::from_secs(2);
/// The least pause between two readings, however many calls fail.
const PAUSE: Duration = Duration::from_millis(250);

/// Follows the files until the members are gone.
pub(super) async fn follow(config: Config, first: FilesDigest, members: Weak<Members>) {
    let mut seen = Seen { now: first, tried: first };
    loop {
        sleep(PAUSE).await;
        let Some(failing) = members.upgrade().map(|members| Arc::clone(&members.failing)) else {
            return;
        };
        // Silence is what the pause is for.
        let _ = timeout(EVERY - PAUSE, failing.notified()).await;
        let Some(members) = members.upgrade() else { return };
        seen.look(&config, &members).await;
    }
}

/// What was last seen of the files.
struct Seen {
    /// When they were last read.
    now: FilesDigest,
    /// When they were last used, or could not be.
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
        // Of two files that are written one after the other, half may have been read.
        let is_settled = std::mem::replace(&mut self.now, digest) == digest;
        if digest == self.tried || !is_settled && credentials.is_err() {
            return;
        }
        self.tried = digest;
        match credentials {
            Ok(credentials) => {
                let adopted = members.adopt(credentials).await;
                tracing::info!(cert = members.cert(), "the files for etcd were read again");
                if let Err(error) = adopted {
                    tracing::error!(
                        error,
                        "a member refuses the new files for etcd; its connection from before stays"
                    );
                }
            }
            Err((key, detail)) => {
                let trouble = format!("store.{key}: {detail}");
                tracing::error!(
                    error = trouble,
                    "the new files for etcd can't be used; what was read before stays in use"
                );
                members.keep(trouble);
            }
        }
    }
}
