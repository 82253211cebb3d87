//! How the database's file is opened.
//!
//! Opening verifies the checksum of every page (180 ms for 140 MB in the page cache), so that
//! damage is found here and not by a request. A damaged file is salvaged if possible.

use std::fs::File;
use std::path::Path;

use redb::{Builder, ReadableDatabase};

use crate::files;

use super::create::{CACHE, Opener, make};
use super::error::{FileError, OpenFailure, guarded, io_failure};
use super::layout::{self, STATE};
use super::salvage;

/// The name of the database in the data directory.
pub(super) const FILE_NAME: &str = "store.redb";

/// Opens the database in `directory`, and creates it if it is missing. The caller holds the
/// directory's lock.
pub(super) fn open(directory: &Path, opener: &Opener) -> Result<redb::Database, OpenFailure> {
    let path = directory.join(FILE_NAME);
    if !path.try_exists().map_err(|error| io_failure(&path, &error))? {
        make(&path, opener, |_| Ok(()))?;
    }
    open_again(directory, opener)
}

/// Opens the existing database in `directory`.
pub(super) fn open_again(directory: &Path, opener: &Opener) -> Result<redb::Database, OpenFailure> {
    let path = directory.join(FILE_NAME);
    match open_existing(&path, opener) {
        Err(FileError::Damaged(detail)) => {
            salvage::salvage(&path, opener, &detail)?;
            open_existing(&path, opener).map_err(|error| error.at(&path))
        }
        other => other.map_err(|error| error.at(&path)),
    }
}

fn open_existing(path: &Path, opener: &Opener) -> Result<redb::Database, FileError> {
    let file = File::options().read(true).write(true).open(path)?;
    files::check_regular(&file).map_err(|error| FileError::Refused(error.to_string()))?;
    if file.metadata()?.len() == 0 {
        // A new file only gets its name when it is complete, so a store is never empty.
        return Err(FileError::Damaged("it is empty".to_owned()));
    }
    file.sync_all()?;
    forget_cached(&file);
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    let database = guarded(|| Ok(opener(&builder, file)?))?;
    let state = guarded(|| Ok(layout::read_state(&database.begin_read()?.open_table(STATE)?)?))?;
    match state {
        Ok(_) => Ok(database),
        Err(detail) => Err(FileError::Refused(detail)),
    }
}

/// After a failed fsync the page cache may differ from the disk; this makes reads come from the
/// disk.
fn forget_cached(file: &File) {
    // Best effort: other systems have no equivalent.
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}
