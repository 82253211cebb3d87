//! When the last backup of a store was made, as the store itself records it: every replica and
//! every command that opens the store knows it.
//!
//! The record is not part of a backup, and no promise depends on it.

use crate::store::record::{LAST_BACKUP, LastBackup, Record as _};
use crate::store::{Error, Store, Txn, records};

/// When the last complete backup of `store` began, in seconds since the Unix epoch; `None` if none
/// was ever recorded.
///
/// # Errors
/// [`Error`].
pub async fn last(store: &dyn Store) -> Result<Option<u64>, Error> {
    let found = records::read::<LastBackup>(store, LAST_BACKUP).await?;
    Ok(found.map(|found| found.record.began_at))
}

/// Records that a backup of all chains of `store` is complete that began at `began_at`. The last
/// writer wins, so a time from a wrong clock stays until the next backup only.
///
/// # Errors
/// [`Error`].
pub async fn note(store: &dyn Store, began_at: u64) -> Result<(), Error> {
    let record = LastBackup { began_at }.encode()?;
    let _ = store.commit(Txn::default().put(LAST_BACKUP.to_owned(), record)).await?;
    Ok(())
}
