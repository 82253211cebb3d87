//! New files of mode 0600 that appear together, or not at all, and directories to which one `init`
//! writes at a time. It does not know what the files contain.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kms_proxy::files::{self, NewFile};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::cli::{Failure, Result};

/// Files that have temporary names so far. Dropped, they are removed.
#[derive(Default)]
pub(super) struct NewFiles(Vec<(PathBuf, NewFile)>);

impl NewFiles {
    /// Adds a file with `contents`.
    pub(super) fn add(&mut self, path: &Path, contents: &[u8]) -> Result {
        let file = NewFile::create(path).map_err(|error| write_failed(path, &error))?;
        file.as_file().write_all(contents).map_err(|error| write_failed(path, &error))?;
        self.0.push((path.to_owned(), file));
        Ok(())
    }

    /// Gives each file its name, in the order in which they were added. If one can't have it, the
    /// others are removed.
    pub(super) fn place(self) -> Result {
        let mut placed = Vec::new();
        let done = self.0.into_iter().try_for_each(|(path, file)| match file.place() {
            Ok(true) => {
                placed.push(path);
                Ok(())
            }
            Ok(false) => Err(exists(&path)),
            Err(error) => Err(write_failed(&path, &error)),
        });
        if done.is_err() {
            placed.iter().for_each(|path| _ = std::fs::remove_file(path));
        }
        done
    }
}

/// Directories that are locked against other processes of `init`: what one of them has found to be
/// free, or to exist, stays so. A lock ends with the process.
#[derive(Default)]
pub(super) struct Locks(Vec<File>);

impl Locks {
    /// Locks the directory of `path`, unless it is locked already.
    pub(super) fn lock(&mut self, path: &Path) -> Result {
        let parent = directory(path);
        // One that can't be opened is reported by the attempt to write to it.
        let Ok(directory) = File::open(parent) else { return Ok(()) };
        if self.0.iter().any(|locked| is_same(locked, &directory)) {
            return Ok(());
        }
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(Failure::refused(format!(
                "another `kms-proxy init` is running in the directory {}",
                parent.display()
            ))),
            // Some network file systems lock no directories. No file is replaced there either.
            _ => {
                self.0.push(directory);
                Ok(())
            }
        }
    }
}

fn is_same(one: &File, other: &File) -> bool {
    let identity = |file: &File| file.metadata().map(|it| (it.dev(), it.ino())).ok();
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Fails if there is a file `path`, or if none can be written. It makes none: a signal would leave
/// it.
pub(super) fn check_free(path: &Path) -> Result {
    if path.symlink_metadata().is_ok() {
        return Err(exists(path));
    }
    files::check_writable_dir(directory(path)).map_err(|error| write_failed(path, &error))
}

/// The directory of `path`.
fn directory(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn exists(path: &Path) -> Failure {
    Failure::refused(format!("{} exists already, and is not replaced", path.display()))
}

fn write_failed(path: &Path, error: &io::Error) -> Failure {
    Failure::refused(format!("can't write to {}: {error}", path.display()))
}
