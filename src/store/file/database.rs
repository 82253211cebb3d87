//! The database of an open store: closed after a failure, and reopened by the next call.
//!
//! After an I/O error, redb refuses all calls until its file is reopened. That happens here, so
//! that a temporarily full disk needs no restart.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};

use crate::files;

use super::create::Opener;
use super::error::{OpenFailure, guarded};
use super::open;

/// The name of the file whose lock marks the directory as in use. It is never removed: otherwise
/// two processes could lock two files of the same name.
pub(super) const LOCK_NAME: &str = "store.lock";

/// The contents of the lock file once a store was created in the directory. A store that disappears
/// is not silently replaced by an empty one.
const MADE: &[u8] = b"kms-proxy: a store was made in this directory\n";

/// What to do if the database is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfMissing {
    /// Create one.
    Make,
    /// Create one, unless there was one before.
    MakeFirst,
}

/// The shortest pause after a failed attempt to reopen the file, since opening reads all of it.
const PAUSE: Duration = Duration::from_millis(500);

/// A database in a directory that this process has locked.
pub(super) struct Database {
    directory: PathBuf,
    opener: Box<Opener>,
    state: RwLock<State>,
}

struct State {
    /// `None` after a failure and after closing.
    open: Option<redb::Database>,
    /// The file that was opened: its device and inode.
    file: Option<(u64, u64)>,
    /// Counts how often the database was opened.
    generation: u64,
    /// Why reopening failed, and when.
    failed: Option<(String, Instant)>,
    /// Held until the store is closed, also while the file is reopened.
    lock: Option<File>,
}

impl Database {
    /// Opens the database in `directory`. Creates both if they are missing, as `if_missing` allows.
    pub(super) fn open(
        directory: &Path,
        if_missing: IfMissing,
        opener: Box<Opener>,
    ) -> Result<Self, String> {
        let at = |error: std::io::Error| format!("{}: {error}", directory.display());
        files::make_private_dir(directory).map_err(at)?;
        let mut lock = lock(directory)?;
        let was_made = was_made(&mut lock).map_err(at)?;
        if was_made && if_missing == IfMissing::MakeFirst {
            refuse_missing(directory)?;
        }
        let database = open::open(directory, &*opener).map_err(|failure| match failure {
            OpenFailure::Refused(detail) | OpenFailure::Io(detail) => detail,
        })?;
        if !was_made {
            // Without it, a lost store is not detected later; this one can be used all the same.
            if let Err(error) = lock.write_all(MADE).and_then(|()| lock.sync_all()) {
                let directory = directory.display();
                tracing::warn!(%directory, %error, "store.lock can't be written");
            }
        }
        let file = inode(&directory.join(open::FILE_NAME)).map_err(at)?;
        let state = State {
            open: Some(database),
            file: Some(file),
            generation: 0,
            failed: None,
            lock: Some(lock),
        };
        Ok(Self { directory: directory.to_owned(), opener, state: RwLock::new(state) })
    }

    /// Runs `act` on the database. Blocking. After a failure, which the caller reports, the next
    /// call reopens the database.
    pub(super) fn with<T>(
        &self,
        act: impl FnOnce(&redb::Database) -> Result<T, redb::Error>,
    ) -> Result<T, String> {
        let state = self.opened()?;
        let Some(database) = &state.open else {
            return Err("the store's file was just closed by a failure".to_owned());
        };
        let generation = state.generation;
        let result = guarded(|| act(database));
        drop(state);
        result.map_err(|error| {
            self.give_up(generation);
            format!("{}: {error}", self.directory.join(open::FILE_NAME).display())
        })
    }

    /// Fails if the directory does not have the open file any more: what is written to it would be
    /// lost when it is closed. It can still be read.
    pub(super) fn check_in_place(&self) -> Result<(), String> {
        let state = self.state.read();
        let (Some(file), true) = (state.file, state.open.is_some()) else { return Ok(()) };
        let path = self.directory.join(open::FILE_NAME);
        let what = match inode(&path) {
            Ok(found) if found == file => return Ok(()),
            Ok(_) => "was replaced by another file: stop the service before a store is restored",
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "was moved or deleted: nothing that is written would be kept. Move it back, or \
                 stop the service and restore a backup"
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        Err(format!("while the service runs, {} {what}", path.display()))
    }

    /// Closes the database permanently and releases the lock, after the running calls.
    pub(super) fn close(&self) {
        let mut state = self.state.write();
        close(&mut state);
        state.failed = None;
        state.lock = None;
    }

    fn opened(&self) -> Result<RwLockReadGuard<'_, State>, String> {
        let state = self.state.read();
        if state.open.is_some() {
            return Ok(state);
        }
        drop(state);
        self.reopen(&mut self.state.write())?;
        Ok(self.state.read())
    }

    fn reopen(&self, state: &mut State) -> Result<(), String> {
        if state.open.is_some() {
            return Ok(());
        }
        if state.lock.is_none() {
            return Err("it is closed".to_owned());
        }
        if let Some((detail, since)) = &state.failed
            && since.elapsed() < PAUSE
        {
            return Err(detail.clone());
        }
        match open::open_again(&self.directory, &*self.opener) {
            Ok(database) => {
                state.file = inode(&self.directory.join(open::FILE_NAME)).ok();
                let directory = self.directory.display();
                tracing::info!(%directory, "the store's file is open again");
                (state.open, state.failed) = (Some(database), None);
                state.generation += 1;
                Ok(())
            }
            Err(OpenFailure::Refused(detail) | OpenFailure::Io(detail)) => {
                state.failed = Some((detail.clone(), Instant::now()));
                Err(detail)
            }
        }
    }

    /// Closes the failed database, unless that has already happened.
    fn give_up(&self, generation: u64) {
        let mut state = self.state.write();
        if state.generation == generation {
            close(&mut state);
        }
    }
}

fn close(state: &mut State) {
    if let Some(database) = state.open.take() {
        // Everything acknowledged is on disk; closing only makes the next open faster.
        let _ = guarded(|| Ok(database.close()?));
    }
}

/// The device and the inode of the file that has this name now.
fn inode(path: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Whether a store was created in the directory before.
fn was_made(lock: &mut File) -> std::io::Result<bool> {
    let mut contents = Vec::new();
    lock.take(MADE.len() as u64).read_to_end(&mut contents)?;
    lock.rewind()?;
    Ok(contents == MADE)
}

/// The error for a store that is missing.
fn refuse_missing(directory: &Path) -> Result<(), String> {
    let path = directory.join(open::FILE_NAME);
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "{} is missing, and {} says that there was one: restore it, or restore a backup with \
             `kms-proxy store copy`. To start with an empty store, where nothing decrypts that was \
             encrypted before, remove {LOCK_NAME}",
            path.display(),
            directory.join(LOCK_NAME).display()
        )),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Locks the directory for this process, as long as the file is open.
fn lock(directory: &Path) -> Result<File, String> {
    let path = directory.join(LOCK_NAME);
    let at = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = match files::create_private(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            File::options().read(true).write(true).open(&path).map_err(at)?
        }
        other => other.map_err(at)?,
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(format!(
            "another process uses the data directory {}; a file store serves one process; stop \
             the other one or use another directory",
            directory.display()
        )),
        Err(TryLockError::Error(error)) => {
            Err(format!("{}: {}", path.display(), files::lock_failure(&path, &error)))
        }
    }
}
