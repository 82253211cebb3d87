//! `dir`: an archive in a directory, such as one of another disk or an NFS mount.
//!
//! This file owns when a call is made and how long it may take; `directory` owns what happens in
//! the file system. Several processes can use a directory at the same time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::settings::Dir as Config;
use super::{Condition, Error, Object, Written};

mod directory;
mod walk;
mod write;

#[cfg(test)]
mod tests;

use directory::Directory;

/// Calls of the file system that run at the same time. Those of a mount that hangs occupy threads
/// until it answers, so their number is bounded.
const CALLS: usize = 8;

/// An archive in a directory.
pub struct Archive {
    directory: Arc<Directory>,
    calls: Arc<Semaphore>,
    timeout: Duration,
}

impl Archive {
    /// The archive in the configured directory. It is first used by a call, so a disk that is not
    /// mounted yet stops no process.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            directory: Arc::new(Directory::new(&config.path, config.create, config.timeout)),
            calls: Arc::new(Semaphore::new(CALLS)),
            timeout: config.timeout,
        }
    }

    /// Checks that this process can write to the directory, and without `create` that it is an
    /// archive. It changes nothing. A mount that hangs makes it wait.
    ///
    /// # Errors
    /// What is wrong, with the path.
    pub fn check(config: &Config) -> Result<(), String> {
        Directory::new(&config.path, config.create, config.timeout).check()
    }

    async fn call<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Directory) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (directory, calls) = (Arc::clone(&self.directory), Arc::clone(&self.calls));
        let called = async move {
            let permit = calls.acquire_owned().await;
            let acted = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                act(&directory)
            });
            acted.await.unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
        };
        tokio::time::timeout(self.timeout, called).await.unwrap_or_else(|_| {
            let timeout = crate::human_units::duration::format(self.timeout);
            let path = self.directory.path().display();
            Err(Error::Unavailable(format!("{path}: no answer in {timeout}")))
        })
    }
}

#[async_trait]
impl super::Archive for Archive {
    async fn get(&self, key: &str) -> Result<Option<Object>, Error> {
        let key = key.to_owned();
        self.call(move |directory| directory.get(&key)).await
    }

    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<Written, Error> {
        let key = key.to_owned();
        self.call(move |directory| directory.put(&key, &bytes, &condition)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.call(move |directory| directory.list(&prefix, after.as_deref(), limit)).await
    }

    fn kind(&self) -> &'static str {
        "dir"
    }
}
