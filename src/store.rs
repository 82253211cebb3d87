//! Stores: where the records of key chains live. Bytes under keys, and conditional writes.
//!
//! This file owns the contract of a store; [`record`] owns what the bytes mean. A store knows
//! nothing of roots, envelopes or keys in memory. The transactions of a chain are made of
//! [`Txn`]s elsewhere, so that every store gets the same protocol.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

pub mod file;
pub mod memory;
pub mod record;

#[cfg(test)]
mod contract;

/// The revision of an entry: it grows with every write to the store, and no two writes share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub key: String,
    /// What was written, exactly.
    pub value: Vec<u8>,
    /// The write that made it: what a [`Compare`] names.
    pub revision: Revision,
}

/// What must hold for a [`Txn`] to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// There is no entry at this key.
    Absent(String),
    /// The entry at this key is the one of this revision.
    Unchanged(String, Revision),
}

/// A conditional write: all of `puts` and `deletes` when every one of `compares` holds, else
/// nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// Keys and their new values.
    pub puts: Vec<(String, Vec<u8>)>,
    /// Keys that shall be gone.
    pub deletes: Vec<String>,
}

/// What became of a [`Txn`] that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Committed {
    /// It is durable, and all entries that it put have this revision.
    Applied(Revision),
    /// A condition did not hold; nothing was written.
    Conflict,
}

/// Where records live. All of it is linearizable: a read sees every write that was answered before
/// it began.
///
/// To an implementor: bound every wait on the outside world. A commit is durable before it is
/// answered, against a crash of the process and of the machine. When it is not certain that a
/// commit was *not* applied, say [`Error::Unavailable`] with `maybe_applied`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The entry at `key`.
    ///
    /// # Errors
    /// [`Error`].
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// The first `limit` entries, in the order of their keys' bytes, whose keys start with
    /// `prefix` and come after `after`.
    ///
    /// One damaged record must not hide the others: where a store notices that an entry's value is
    /// damaged, the entry has no value here, which is no record, and [`get`](Self::get) names it.
    ///
    /// # Errors
    /// [`Error`].
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error>;

    /// Applies `txn` or leaves everything as it is.
    ///
    /// # Errors
    /// [`Error`].
    async fn commit(&self, txn: Txn) -> Result<Committed, Error>;

    /// The kind of store as the configuration names it, such as `file`.
    fn kind(&self) -> &'static str;
}

/// Why a store did not answer: what a caller can act on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not answer, or can't write now. Worth a retry.
    #[error("the store is unavailable: {detail}")]
    Unavailable {
        /// The cause, for the log.
        detail: String,
        /// The transaction that failed may have been applied, or be applied later.
        maybe_applied: bool,
    },
    /// What is stored at `key` is damaged or of an unknown format. No retry helps.
    #[error("the record {key} is damaged: {detail}")]
    Corrupt {
        /// The key of the record.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// The data directory when none is configured.
pub const DEFAULT_DATA_DIR: &str = "./kms-proxy-data";

/// The `[store]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Config {
    /// An embedded store: the default.
    File(file::Config),
}

impl Default for Config {
    fn default() -> Self {
        Self::File(file::Config::default())
    }
}

impl Config {
    /// The directory for what this machine alone keeps, such as the key file of a `local` root.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        match self {
            Self::File(config) => &config.path,
        }
    }
}

/// A store that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("store {kind}: {detail}")]
pub struct OpenError {
    /// The kind of store.
    pub kind: &'static str,
    /// What is wrong, for the operator; without secrets.
    pub detail: String,
}

/// Opens the store that is configured.
///
/// # Errors
/// [`OpenError`].
pub async fn open(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    match config {
        Config::File(config) => match file::Store::open(&config.path).await {
            Ok(store) => Ok(Arc::new(store)),
            Err(detail) => Err(OpenError { kind: "file", detail }),
        },
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
    fn a_wrong_configuration_is_told_what_there_is() {
        let error = parse("kind = 'files'").unwrap_err();
        assert!(error.contains("`files`") && error.contains("`file`"), "{error}");
        let error = parse("kind = 'file'\npaht = '/data'").unwrap_err();
        assert!(error.contains("`paht`") && error.contains("`path`"), "{error}");
        let error = parse("path = '/data'").unwrap_err();
        assert!(error.contains("`kind`"), "{error}");
    }
}
