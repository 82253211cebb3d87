//! Archives keep a copy of every wrapped KEK outside of the store, so that the loss of the store
//! loses no data.
//!
//! This file owns the contract of an archive: objects under keys, with conditional writes. An
//! archive contains wrapped keys only, and knows nothing about roots, chains in memory or when an
//! object has to be written.

use std::sync::Arc;

use async_trait::async_trait;

#[cfg(feature = "archive-cloud")]
pub mod cloud;
pub mod compare;
pub mod dir;
pub mod memory;
pub mod object;
pub mod recover;
pub mod settings;

#[cfg(test)]
pub(crate) mod contract;

pub use settings::{Config, OnFailure, Policy, Require};

/// The version of an object, as the archive names it: an entity tag, or a digest of the object.
/// Two versions are equal only if the bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub String);

/// An object and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The bytes that were written.
    pub bytes: Vec<u8>,
    /// The version, for [`Condition::Unchanged`].
    pub version: Version,
}

/// What a write requires. There is no unconditional write, so that a slow process never replaces a
/// newer object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no object at the key.
    Absent,
    /// The object still has this version.
    Unchanged(Version),
}

/// The result of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The object was written, and has this version.
    Applied(Version),
    /// The condition did not hold. Read the object again before the next attempt: a kind that
    /// retries within a call can find what its own first attempt has written.
    Conflict,
}

/// An archive of objects.
///
/// Notes for implementors: bound every wait for the outside world. A write must be durable before
/// it is acknowledged, and readers see it completely or not at all. Keys consist of names with `/`
/// between them; a name consists of the characters `a-z0-9._-` and starts with a letter or digit.
#[async_trait]
pub trait Archive: Send + Sync + 'static {
    /// The object at `key`.
    ///
    /// # Errors
    /// [`Error`].
    async fn get(&self, key: &str) -> Result<Option<Object>, Error>;

    /// Writes the object at `key` if `condition` holds.
    ///
    /// # Errors
    /// [`Error`]. After [`Error::Unavailable`] the object may have been written, or be written
    /// later.
    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<Written, Error>;

    /// The first `limit` keys, in the order of their bytes, that start with `prefix` and come
    /// after `after`. The prefix is empty or ends with `/`: cloud stores list by whole names only.
    ///
    /// # Errors
    /// [`Error`].
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error>;

    /// The kind of archive as the configuration names it, such as `s3`.
    fn kind(&self) -> &'static str;
}

/// Why a call failed: the cases that a caller can act on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The archive does not answer. A retry may help.
    #[error("the archive is unavailable: {0}")]
    Unavailable(String),
    /// The archive refuses access. An operator has to act.
    #[error("the archive denies access: {0}")]
    Denied(String),
}

/// An archive, and its name in the configuration.
#[derive(Clone)]
pub struct Named {
    /// Its name, for metrics, logs and commands.
    pub name: Arc<str>,
    /// The archive.
    pub archive: Arc<dyn Archive>,
}

impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.archive.kind())
    }
}

/// An archive that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("archive {name}: {detail}")]
pub struct OpenError {
    /// Its name.
    pub name: String,
    /// What is wrong, for the operator; without secrets.
    pub detail: String,
}

/// Opens a configured archive. This makes no call, so an archive that is unavailable stops no
/// process.
///
/// # Errors
/// [`OpenError`]: wrong settings, or credentials in the environment that can't be used.
pub fn open(config: &Config) -> Result<Named, OpenError> {
    let wrong = |detail| OpenError { name: config.name().to_owned(), detail };
    config.check().map_err(|(key, detail)| wrong(format!("{key}: {detail}")))?;
    let archive: Arc<dyn Archive> = match config {
        Config::Dir(dir) => Arc::new(dir::Archive::new(dir)),
        #[cfg(feature = "archive-cloud")]
        Config::S3(_) | Config::Gcs(_) | Config::Azure(_) => {
            Arc::new(cloud::Archive::new(config).map_err(wrong)?)
        }
        #[allow(unreachable_patterns, reason = "reachable where the feature is off")]
        _ => return Err(wrong(settings::LEFT_OUT.to_owned())),
    };
    Ok(Named { name: config.name().into(), archive })
}
