//! How the database's file is created: in one step, under another name until it is complete.

use std::fs::File;
use std::io;
use std::path::Path;

use redb::WriteTransaction;
use redb::backends::FileBackend;
use redb::{Builder, DatabaseError};

use crate::files;
use crate::store::Revision;

use super::error::{FileError, OpenFailure, guarded};
use super::layout::{self, RECORDS, STATE};

/// The size of the page cache. A small one is enough, since the service keeps what it has read.
pub(super) const CACHE: usize = 16 << 20;

/// Opens a file that is a database or empty. Tests inject faults here.
pub(super) type Opener =
    dyn Fn(&Builder, File) -> Result<redb::Database, DatabaseError> + Send + Sync;

/// The regular opener.
pub(super) fn plain(builder: &Builder, file: File) -> Result<redb::Database, DatabaseError> {
    builder.create_with_backend(FileBackend::new(file)?)
}

/// Creates a database at `path` atomically, with the contents from `fill`. It uses a temporary
/// file, so that a crash or a full disk leaves no partial one, and replaces an existing file.
pub(super) fn make(
    path: &Path,
    opener: &Opener,
    fill: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), OpenFailure> {
    let temporary = path.with_extension("redb.new");
    let made = || -> Result<(), FileError> {
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let file = files::create_private(&temporary)?;
        guarded(|| {
            let database = opener(Builder::new().set_cache_size(CACHE), file)?;
            let mut write = database.begin_write()?;
            write.set_two_phase_commit(true);
            write.open_table(RECORDS)?;
            write.open_table(STATE)?.insert((), &*layout::write_state(Revision(0)))?;
            fill(&write)?;
            write.commit()?;
            Ok(database.close()?)
        })?;
        std::fs::rename(&temporary, path)?;
        Ok(files::sync_parent(path)?)
    };
    made().map_err(|error| match error {
        FileError::Io(detail) | FileError::Damaged(detail) | FileError::Refused(detail) => {
            OpenFailure::Io(format!("{} can't be written: {detail}", temporary.display()))
        }
    })
}
