//! Errors of the database's file, and how redb's errors map to them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Why the file could not be opened.
#[derive(Debug)]
pub(super) enum OpenFailure {
    /// It has another format, is damaged beyond repair, or is not a store. A retry does not help.
    Refused(String),
    /// Reading or writing failed. A retry may help.
    Io(String),
}

/// What is wrong with a file, without its path.
pub(super) enum FileError {
    Damaged(String),
    Refused(String),
    Io(String),
}

impl FileError {
    pub(super) fn at(self, path: &Path) -> OpenFailure {
        let path = path.display();
        match self {
            Self::Damaged(detail) => OpenFailure::Refused(format!(
                "{path} is damaged ({detail}); restore a backup in its place, or move it and \
                    store.lock away to start with an empty store"
            )),
            Self::Refused(detail) => OpenFailure::Refused(format!("{path}: {detail}")),
            Self::Io(detail) => OpenFailure::Io(format!("{path}: {detail}")),
        }
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        redb::Error::Io(error).into()
    }
}

impl From<redb::Error> for FileError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => {
                Self::Refused("another process has it open".to_owned())
            }
            redb::Error::UpgradeRequired(_) => Self::Refused(error.to_string()),
            // redb's error for a file that is not a database, or is truncated.
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

pub(super) fn io_failure(path: &Path, error: &io::Error) -> OpenFailure {
    OpenFailure::Io(format!("{}: {error}", path.display()))
}

/// Runs `act` on a file that may be damaged: redb has assertions that fail on such files.
pub(super) fn guarded<T>(act: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(redb::Error::Corrupted(format!("unexpected contents: {}", text.unwrap_or("(unknown)"))))
    })
}
