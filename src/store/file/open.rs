//! How the database's file is made and opened.
//!
//! Every open verifies the checksum of every page (180 ms for 140 MB in the page cache), so that
//! damage is found here and not by a request. A file that fails is rescued if it can be.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::WriteTransaction;
use redb::backends::FileBackend;
use redb::{Builder, DatabaseError, ReadableDatabase};

use crate::files;
use crate::store::Revision;

use super::layout::{self, RECORDS, STATE};
use super::rescue;

/// The name of the database in the data directory.
pub(super) const FILE_NAME: &str = "store.redb";

/// Memory for pages: records are read once and kept by the service, so little is enough.
pub(super) const CACHE: usize = 16 << 20;

/// Why the file could not be opened.
#[derive(Debug)]
pub(super) enum Failure {
    /// It has another format, is damaged beyond rescue, or is not ours. No retry helps.
    Refused(String),
    /// Reading or writing failed: worth a retry.
    Io(String),
}

/// Opens a file that is a database or empty. Tests put faults in here.
pub(super) type Opener =
    dyn Fn(&Builder, File) -> Result<redb::Database, DatabaseError> + Send + Sync;

/// The opener of all but tests.
pub(super) fn plain(builder: &Builder, file: File) -> Result<redb::Database, DatabaseError> {
    builder.create_with_backend(FileBackend::new(file)?)
}

/// Opens the database in `directory`, and makes it when it is missing. The caller holds the
/// directory's lock.
pub(super) fn open(directory: &Path, opener: &Opener) -> Result<redb::Database, Failure> {
    let path = directory.join(FILE_NAME);
    if !path.try_exists().map_err(|error| io_failure(&path, &error))? {
        make(&path, opener, |_| Ok(()))?;
    }
    open_again(directory, opener)
}

/// Opens the database in `directory`, which must be there.
pub(super) fn open_again(directory: &Path, opener: &Opener) -> Result<redb::Database, Failure> {
    let path = directory.join(FILE_NAME);
    match open_existing(&path, opener) {
        Err(Trouble::Damaged(detail)) => {
            rescue::rescue(&path, opener, &detail)?;
            open_existing(&path, opener).map_err(|trouble| trouble.at(&path))
        }
        other => other.map_err(|trouble| trouble.at(&path)),
    }
}

/// What is wrong with a file, before it is named.
pub(super) enum Trouble {
    Damaged(String),
    Refused(String),
    Io(String),
}

impl Trouble {
    pub(super) fn at(self, path: &Path) -> Failure {
        let path = path.display();
        match self {
            Self::Damaged(detail) => Failure::Refused(format!(
                "{path} is damaged ({detail}); put a backup in its place, or move it and store.lock \
                 away to start with an empty store"
            )),
            Self::Refused(detail) => Failure::Refused(format!("{path}: {detail}")),
            Self::Io(detail) => Failure::Io(format!("{path}: {detail}")),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        redb::Error::Io(error).into()
    }
}

impl From<redb::Error> for Trouble {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => {
                Self::Refused("another process has it open".to_owned())
            }
            redb::Error::UpgradeRequired(_) => Self::Refused(error.to_string()),
            // What redb says of a file that is none of its own, or ends too early.
            redb::Error::Io(cause)
                if matches!(
                    cause.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Damaged(cause.to_string())
            }
            redb::Error::Io(_) | redb::Error::PreviousIo => Self::Io(error.to_string()),
            other => Self::Damaged(other.to_string()),
        }
    }
}

pub(super) fn io_failure(path: &Path, error: &io::Error) -> Failure {
    Failure::Io(format!("{}: {error}", path.display()))
}

/// Runs `act` on bytes that may be damaged: redb asserts in places that a file is as it wrote it.
pub(super) fn guarded<T>(act: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(redb::Error::Corrupted(format!("unexpected contents: {}", text.unwrap_or("(unknown)"))))
    })
}

fn open_existing(path: &Path, opener: &Opener) -> Result<redb::Database, Trouble> {
    let file = File::options().read(true).write(true).open(path)?;
    files::check_regular(&file).map_err(|error| Trouble::Refused(error.to_string()))?;
    if file.metadata()?.len() == 0 {
        // Ours never is: a new one gets its name when it is complete.
        return Err(Trouble::Damaged("it is empty".to_owned()));
    }
    file.sync_all()?;
    forget_cached(&file);
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    let database = guarded(|| Ok(opener(&builder, file)?))?;
    let state = guarded(|| Ok(layout::read_state(&database.begin_read()?.open_table(STATE)?)?))?;
    match state {
        Ok(_) => Ok(database),
        Err(detail) => Err(Trouble::Refused(detail)),
    }
}

/// After a failed fsync the page cache may hold what the disk does not; what is read from here on
/// comes from the disk.
fn forget_cached(file: &File) {
    // Where this is not known, it is as good as it was.
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Makes a database at `path` in one step, with what `fill` puts in: by a temporary file, so that
/// a crash or a full disk leaves nothing half-made. It replaces what is there.
pub(super) fn make(
    path: &Path,
    opener: &Opener,
    fill: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), Failure> {
    let temporary = path.with_extension("redb.new");
    let made = || -> Result<(), Trouble> {
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
    made().map_err(|trouble| match trouble {
        Trouble::Io(detail) | Trouble::Damaged(detail) | Trouble::Refused(detail) => {
            Failure::Io(format!("{} can't be written: {detail}", temporary.display()))
        }
    })
}
