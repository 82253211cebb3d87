//! The embedded store: a redb database in the data directory, for one process, without setup.
//!
//! A commit is on disk before it is acknowledged. Concurrent commits share one write to the disk.
//! After an I/O error, such as a full disk, the file is reopened automatically. This module knows
//! keys and bytes, and not what records mean.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redb::ReadableDatabase;
use serde::{Deserialize, Serialize};

use crate::files;

use super::{Committed, Entry, Error, Revision, Txn};

mod create;
mod database;
mod error;
mod layout;
mod open;
mod salvage;
mod writer;

#[cfg(test)]
mod tests;

use create::{Opener, plain};
use database::{Database, IfMissing};
use layout::RECORDS;
use writer::Writer;

/// The time-out of a call. It is longer in tests: a busy machine may stop a thread for seconds.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 10 });

/// `[store]` with `kind = "file"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The data directory; created with mode 0700 if it is missing.
    pub path: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self { path: super::DEFAULT_DATA_DIR.into() }
    }
}

impl Config {
    /// The files that belong to the store, whether or not they exist yet.
    #[must_use]
    pub fn files(&self) -> [PathBuf; 2] {
        [open::FILE_NAME, database::LOCK_NAME].map(|name| self.path.join(name))
    }
}

/// Whether there is a store in `directory`, as far as this process can see.
#[must_use]
pub fn is_in(directory: &Path) -> bool {
    directory.join(open::FILE_NAME).exists()
}

/// Fails if `directory` exists and other users could replace the store in it.
pub(super) fn check(directory: &Path) -> Result<(), String> {
    if !directory.is_dir() {
        return Ok(());
    }
    files::check_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))
}

/// A store in a directory that it locks against other processes.
///
/// Dropping it waits for running commits and closes the file.
pub struct Store {
    writer: Option<Writer>,
    database: Arc<Database>,
}

impl Store {
    /// Opens the store in `directory`. Creates both if they are missing, but never replaces a store
    /// that disappeared. Reads the whole file to verify it.
    ///
    /// # Errors
    /// A message for an operator: another process uses the directory, the file is damaged, has a
    /// newer format or disappeared, or it can't be read and written.
    pub async fn open(directory: &Path) -> Result<Self, String> {
        Self::open_with(directory, IfMissing::MakeFirst, Box::new(plain)).await
    }

    /// Like [`open`](Self::open), but also replaces a store that disappeared.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn open_or_make(directory: &Path) -> Result<Self, String> {
        Self::open_with(directory, IfMissing::Make, Box::new(plain)).await
    }

    async fn open_with(
        directory: &Path,
        if_missing: IfMissing,
        opener: Box<Opener>,
    ) -> Result<Self, String> {
        let directory = directory.to_owned();
        let open = move || {
            let database = Arc::new(Database::open(&directory, if_missing, opener)?);
            let writer = Writer::start(Arc::clone(&database))?;
            Ok(Self { writer: Some(writer), database })
        };
        tokio::task::spawn_blocking(open).await.map_err(|error| error.to_string())?
    }

    /// Runs `act` on a blocking thread: the disk may be slow, and the file may have to be reopened.
    async fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Table) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let database = Arc::clone(&self.database);
        let task = tokio::task::spawn_blocking(move || {
            database.with(|database| act(&database.begin_read()?.open_table(RECORDS)?))
        });
        match tokio::time::timeout(PATIENCE, task).await {
            Ok(Ok(result)) => result.map_err(|detail| unavailable(detail, false)),
            Ok(Err(ended)) => Err(unavailable(ended.to_string(), false)),
            Err(_) => Err(unavailable(slow(), false)),
        }
    }
}

type Table = redb::ReadOnlyTable<&'static str, &'static [u8]>;

impl Drop for Store {
    fn drop(&mut self) {
        // The queued transactions first, then the file.
        self.writer = None;
        self.database.close();
    }
}

#[async_trait]
impl super::Store for Store {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let wanted = key.to_owned();
        self.read(move |table| {
            let stored = table.get(&*wanted)?;
            Ok(stored.map(|stored| match layout::read_record(&wanted, stored.value()) {
                Ok((revision, value)) => Ok(entry(&wanted, revision, value)),
                Err(_) => Err(corrupt(&wanted)),
            }))
        })
        .await?
        .transpose()
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.read(move |table| {
            let start = match &after {
                Some(after) if **after >= *prefix => Bound::Excluded(&**after),
                _ => Bound::Included(&*prefix),
            };
            let mut entries = Vec::new();
            for stored in table.range::<&str>((start, Bound::Unbounded))?.take(limit) {
                let (key, stored) = stored?;
                let key = key.value();
                if !key.starts_with(&prefix) {
                    break;
                }
                entries.push(match layout::read_record(key, stored.value()) {
                    Ok((revision, value)) => entry(key, revision, value),
                    Err(_) => entry(key, Revision(0), &[]),
                });
            }
            Ok(entries)
        })
        .await
    }

    async fn count(&self, prefix: &str) -> Result<u64, Error> {
        let prefix = prefix.to_owned();
        self.read(move |table| {
            let mut count = 0;
            for stored in table.range::<&str>(&*prefix..)? {
                if !stored?.0.value().starts_with(&prefix) {
                    break;
                }
                count += 1;
            }
            Ok(count)
        })
        .await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        match &self.writer {
            Some(writer) => writer.commit(txn).await,
            None => Err(unavailable("it is closed".to_owned(), false)),
        }
    }

    fn kind(&self) -> &'static str {
        "file"
    }
}

fn entry(key: &str, revision: Revision, value: &[u8]) -> Entry {
    Entry { key: key.to_owned(), value: value.to_vec(), revision }
}

fn corrupt(key: &str) -> Error {
    Error::Corrupt { key: key.to_owned(), detail: "its checksum does not match".to_owned() }
}

fn unavailable(detail: String, maybe_applied: bool) -> Error {
    Error::Unavailable { detail, maybe_applied }
}

fn slow() -> String {
    format!("the disk did not answer within {} s", PATIENCE.as_secs())
}
