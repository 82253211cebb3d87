//! Stores keep the records of key chains: bytes under keys, with conditional writes.
//!
//! This file owns the contract of a store; [`record`] owns what the bytes mean. A store knows
//! nothing about roots, envelopes or keys in memory. The transactions of a chain are built from
//! [`Txn`]s elsewhere, so that every store runs the same protocol.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub mod backup;
pub mod copy;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod file;
pub mod inline;
pub mod memory;
pub mod record;
pub(crate) mod records;
mod scan;
pub(crate) mod settings;
mod txn;

#[cfg(test)]
mod contract;

pub use scan::Problem;
pub(crate) use scan::{Found, Ids, Pair, Read, audit_key, chains, head, head_and_pairs, pairs};
pub use txn::{Committed, Compare, Txn};

/// The revision of an entry: it grows with every write to the store, and is unique per write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// The bytes that were written.
    pub value: Vec<u8>,
    /// The revision of the write, for a [`Compare`].
    pub revision: Revision,
}

/// A store of records. It is linearizable: a read sees every write that was acknowledged before the
/// read began.
///
/// Notes for implementors: bound every wait for the outside world. A commit must be durable before
/// it is acknowledged, against a crash of the process and of the machine. Unless it is certain that
/// a failed commit was *not* applied, return [`Error::Unavailable`] with `maybe_applied`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The entry at `key`.
    ///
    /// # Errors
    /// [`Error`].
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// The entries at `keys`, in their order: as of one moment if the store supports that, and each
    /// at least as new as the call.
    ///
    /// # Errors
    /// [`Error`]; one damaged entry fails the whole call.
    async fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Entry>>, Error> {
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            entries.push(self.get(key).await?);
        }
        Ok(entries)
    }

    /// The first `limit` entries, in the order of their keys' bytes, whose keys start with
    /// `prefix` and come after `after`.
    ///
    /// One damaged record must not hide the others: if a store detects that an entry is damaged,
    /// its value is empty here, which is not a valid record, and [`get`](Self::get) returns the
    /// error.
    ///
    /// # Errors
    /// [`Error`].
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error>;

    /// How many entries have keys that start with `prefix`.
    ///
    /// # Errors
    /// [`Error`].
    async fn count(&self, prefix: &str) -> Result<u64, Error>;

    /// Applies `txn` completely or not at all.
    ///
    /// # Errors
    /// [`Error`].
    async fn commit(&self, txn: Txn) -> Result<Committed, Error>;

    /// How often the store was seen to go back to an earlier state, where it notices that itself.
    /// The call that shows it counts before it returns; [`News::Restored`] follows.
    fn restores(&self) -> u64 {
        0
    }

    /// Follows what other processes write; `None` if no other process can write while this store is
    /// open.
    fn watch(&self) -> Option<Box<dyn Watch>> {
        None
    }

    /// The kind of store as the configuration names it, such as `file`.
    fn kind(&self) -> &'static str;

    /// Whether the records outlive the process. If not, envelopes carry their KEK inline.
    fn is_lasting(&self) -> bool {
        true
    }
}

/// Everything that is written to a store from now on, by any process.
///
/// Notes for implementors: a watch recovers by itself, so there is no error. Return
/// [`News::Missed`] after a reconnect, and when a connection was silent for so long that it may be
/// dead.
#[async_trait]
pub trait Watch: Send {
    /// Waits for the next news. Dropping the call loses none.
    async fn next(&mut self) -> News;
}

/// What a [`Watch`] reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// These keys were written or deleted, by these writes: in order, but possibly late.
    Changed(Vec<(String, Revision)>),
    /// Changes may have been missed: everything must be read again.
    Missed,
    /// The store went back to an earlier state: an old copy was restored.
    Restored,
}

/// Why a call failed: the cases that a caller can act on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The store does not answer, or can't write now. A retry may help.
    #[error("the store is unavailable: {detail}")]
    Unavailable {
        /// The cause, for the log.
        detail: String,
        /// The transaction that failed may have been applied, or be applied later.
        maybe_applied: bool,
    },
    /// The record at `key` is damaged or has an unknown format. A retry does not help.
    #[error("the record {key} is damaged: {detail}")]
    Corrupt {
        /// The key of the record.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// The default data directory.
pub const DEFAULT_DATA_DIR: &str = "./kms-proxy-data";

/// The `[store]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Config {
    /// An embedded store: the default.
    File(file::Config),
    /// An etcd cluster, which replicas share.
    Etcd(Box<settings::Etcd>),
    /// No store: every envelope carries its KEK inline.
    Inline(inline::Config),
}

impl Default for Config {
    fn default() -> Self {
        Self::File(file::Config::default())
    }
}

impl Config {
    /// The directory for local files, such as the key file of a `local` root.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        match self {
            Self::File(config) => &config.path,
            Self::Etcd(config) => &config.data_dir,
            Self::Inline(config) => &config.data_dir,
        }
    }

    /// Sets that directory.
    pub fn set_data_dir(&mut self, path: PathBuf) {
        match self {
            Self::File(config) => config.path = path,
            Self::Etcd(config) => config.data_dir = path,
            Self::Inline(config) => config.data_dir = path,
        }
    }

    /// Checks that the directory of a file store is safe to use, without creating anything.
    ///
    /// # Errors
    /// What is wrong with it, for an operator.
    pub fn check(&self) -> Result<(), OpenError> {
        let Self::File(config) = self else { return Ok(()) };
        file::check(&config.path).map_err(|detail| OpenError { kind: "file", detail })
    }

    /// Whether the settings can be used together, and their kind is part of this build.
    ///
    /// # Errors
    /// The key within `[store]`, and what is wrong with it.
    pub fn check_settings(&self) -> Result<(), (&'static str, String)> {
        match self {
            Self::File(_) | Self::Inline(_) => Ok(()),
            #[cfg(feature = "etcd")]
            Self::Etcd(config) => config.check(),
            #[allow(unreachable_patterns, reason = "reachable where the feature is off")]
            _ => Err(("kind", LEFT_OUT.to_owned())),
        }
    }

    /// Whether opening the store would create it.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::File(config) => !file::is_in(&config.path),
            // A cluster exists as soon as it answers.
            Self::Etcd(_) => false,
            // Each process has a new one.
            Self::Inline(_) => true,
        }
    }
}

/// The error for a store that is not part of this build.
const LEFT_OUT: &str =
    "stores of kind etcd are not part of this build: it needs the Cargo feature etcd";

/// A store that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("store {kind}: {detail}")]
pub struct OpenError {
    /// The kind of store.
    pub kind: &'static str,
    /// What is wrong, for the operator; without secrets.
    pub detail: String,
}

/// Opens the configured store.
///
/// # Errors
/// [`OpenError`].
pub async fn open(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    match config {
        Config::File(config) => match file::Store::open(&config.path).await {
            Ok(store) => Ok(Arc::new(store)),
            Err(detail) => Err(OpenError { kind: "file", detail }),
        },
        Config::Inline(_) => Ok(Arc::new(inline::Store::new())),
        #[cfg(feature = "etcd")]
        Config::Etcd(config) => match etcd::Store::open(config).await {
            Ok(store) => Ok(Arc::new(store)),
            Err(detail) => Err(OpenError { kind: "etcd", detail }),
        },
        #[allow(unreachable_patterns, reason = "reachable where the feature is off")]
        _ => Err(OpenError { kind: "etcd", detail: LEFT_OUT.to_owned() }),
    }
}

/// Like [`open`], but without waiting for etcd: if it does not answer, or refuses the credentials,
/// the first read fails.
///
/// # Errors
/// Those of [`open`]; for etcd, only errors in its settings.
pub async fn connect(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    match config {
        #[cfg(feature = "etcd")]
        Config::Etcd(config) => match etcd::Store::connect(config) {
            Ok(store) => Ok(Arc::new(store)),
            Err(detail) => Err(OpenError { kind: "etcd", detail }),
        },
        _ => open(config).await,
    }
}

/// Like [`open`], but also creates a file store in place of one that disappeared: for commands that
/// fill it.
///
/// # Errors
/// Those of [`open`].
pub async fn open_or_make(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    match config {
        Config::File(config) => match file::Store::open_or_make(&config.path).await {
            Ok(store) => Ok(Arc::new(store)),
            Err(detail) => Err(OpenError { kind: "file", detail }),
        },
        Config::Etcd(_) | Config::Inline(_) => open(config).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_configuration_names_a_kind() {
        let file = |path: &str| Config::File(file::Config { path: path.into() });
        assert_eq!(parse("kind = 'file'").unwrap(), Config::default());
        assert_eq!(Config::default(), file(DEFAULT_DATA_DIR));
        assert_eq!(parse("kind = 'file'\npath = '/data'").unwrap(), file("/data"));
        assert_eq!(file("/data").data_dir(), Path::new("/data"));
    }

    #[test]
    fn inline_has_a_directory_for_a_key_file_alone() {
        let inline = |path: &str| Config::Inline(inline::Config { data_dir: path.into() });
        assert_eq!(parse("kind = 'inline'").unwrap(), inline(DEFAULT_DATA_DIR));
        let mut config = parse("kind = 'inline'\ndata_dir = '/keys'").unwrap();
        assert_eq!(config.data_dir(), Path::new("/keys"));
        config.set_data_dir("/other".into());
        assert_eq!(config, inline("/other"));
        let error = parse("kind = 'inline'\npath = '/data'").unwrap_err();
        assert!(error.contains("`path`") && error.contains("`data_dir`"), "{error}");
    }

    #[test]
    fn a_wrong_configuration_is_told_what_there_is() {
        let error = parse("kind = 'files'").unwrap_err();
        assert!(error.contains("`files`") && error.contains("`file`"), "{error}");
        let error = parse("kind = 'file'\npaht = '/data'").unwrap_err();
        assert!(error.contains("`paht`") && error.contains("`path`"), "{error}");
        let error = parse("path = '/data'").unwrap_err();
        assert!(error.contains("`kind`"), "{error}");
    }
}
