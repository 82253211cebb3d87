//! New files of mode 0600 that appear together, or not at all. It does not know what they contain.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kms_proxy::files::NewFile;

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

/// Fails if there is a file `path`, or if none can be written.
pub(super) fn check_free(path: &Path) -> Result {
    if path.symlink_metadata().is_ok() {
        return Err(exists(path));
    }
    // It is removed again.
    NewFile::create(path).map(drop).map_err(|error| write_failed(path, &error))
}

fn exists(path: &Path) -> Failure {
    Failure::refused(format!("{} exists already, and is not replaced", path.display()))
}

fn write_failed(path: &Path, error: &io::Error) -> Failure {
    Failure::refused(format!("can't write to {}: {error}", path.display()))
}
