//! Stores: where the records of key chains live. Bytes under keys, and conditional writes.
//!
//! This file owns the contract of a store; [`record`] owns what the bytes mean. A store knows
//! nothing of roots, envelopes or keys in memory. The transactions of a chain are made of
//! [`Txn`]s elsewhere, so that every store gets the same protocol.

use std::path::PathBuf;

use async_trait::async_trait;

pub mod file;
pub mod memory;
pub mod record;

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

/// The `[store]` of the configuration, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// An embedded store in this directory.
    File {
        /// The data directory; made with mode 0700 when it is missing.
        path: PathBuf,
    },
}
