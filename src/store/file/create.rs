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

/// Memory for pages: records are read once and kept by the service, so little is enough.
pub(super) const CACHE: usize = 16 << 20;

/// Opens a file that is a database or empty. Tests put faults in here.
pub(super) type Opener =
    dyn Fn(&Builder, File) -> Result<redb::Database, DatabaseError> + Send + Sync;

/// The opener of all but tests.
pub(super) fn plain(builder: &Builder, file: File) -> Result<redb::Database, DatabaseError> {
    builder.create_with_backend(FileBackend::new(file)?)
}

/// Makes a database at `path` in one step, with what `fill` puts in: by a temporary file, so that
/// a crash or a full disk leaves nothing half-made. It replaces what is there.
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
