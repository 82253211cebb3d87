//! The database while the store is open: closed after a failure, and opened again by the next call.
//!
//! redb refuses all work after an I/O error until its file is opened again. That happens here, so a
//! disk that was full for a while costs no restart.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};

use crate::files;

use super::create::Opener;
use super::error::{OpenFailure, guarded};
use super::open;

/// The name of the file whose lock says that a process uses the directory. It is never removed:
/// two processes must not lock two files of one name.
const LOCK_NAME: &str = "store.lock";

/// What the lock's file holds once a store was made in the directory. A store that disappears is
/// not replaced by an empty one without a word.
const MADE: &[u8] = b"kms-proxy: a store was made in this directory\n";

/// What to do where the database is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfMissing {
    /// Make one.
    Make,
    /// Make one, unless there was one before.
    MakeFirst,
}

/// How long after a failed attempt the file is opened again at the earliest: the open reads all
/// of it.
const PAUSE: Duration = Duration::from_millis(500);

/// A database in a directory that this process has for itself.
pub(super) struct Database {
    directory: PathBuf,
    opener: Box<Opener>,
    state: RwLock<State>,
}

struct State {
    /// `None` after a failure, and when it is closed.
    open: Option<redb::Database>,
    /// Which of the databases opened one after the other `open` is.
    generation: u64,
    /// Why it is not open, and when that was found.
    failed: Option<(String, Instant)>,
    /// Held until it is closed; reopening never lets another process in.
    lock: Option<File>,
}

impl Database {
    /// Opens the database in `directory`; makes both when they are missing, as `if_missing` allows.
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
            // Without it a lost store is not noticed, which is no reason not to serve this one.
            if let Err(error) = lock.write_all(MADE).and_then(|()| lock.sync_all()) {
                tracing::warn!(directory = %directory.display(), %error, "store.lock can't be \
                    written");
            }
        }
        let state = State { open: Some(database), generation: 0, failed: None, lock: Some(lock) };
        Ok(Self { directory: directory.to_owned(), opener, state: RwLock::new(state) })
    }

    /// Runs `act` on the database. What fails is the caller's to report; the next call opens the
    /// database again. Blocking.
    pub(super) fn with<T>(
        &self,
        act: impl FnOnce(&redb::Database) -> Result<T, redb::Error>,
    ) -> Result<T, String> {
        let state = self.opened()?;
        let Some(database) = &state.open else {
            return Err("the store's file was closed by a failure just now".to_owned());
        };
        let generation = state.generation;
        let result = guarded(|| act(database));
        drop(state);
        result.map_err(|error| {
            self.give_up(generation);
            format!("{}: {error}", self.directory.join(open::FILE_NAME).display())
        })
    }

    /// Closes it for good, and lets other processes in. What is under way is finished first.
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
                tracing::info!(directory = %self.directory.display(), "the store's file is open \
                    again");
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

    /// Closes the database that failed, unless that has been done already.
    fn give_up(&self, generation: u64) {
        let mut state = self.state.write();
        if state.generation == generation {
            close(&mut state);
        }
    }
}

fn close(state: &mut State) {
    if let Some(database) = state.open.take() {
        // All that was answered is on disk; what closing could add is a faster next open.
        let _ = guarded(|| Ok(database.close()?));
    }
}

/// Whether a store was made in the directory before.
fn was_made(lock: &mut File) -> std::io::Result<bool> {
    let mut contents = Vec::new();
    lock.take(MADE.len() as u64).read_to_end(&mut contents)?;
    lock.rewind()?;
    Ok(contents == MADE)
}

/// A store that was there is missing.
fn refuse_missing(directory: &Path) -> Result<(), String> {
    let path = directory.join(open::FILE_NAME);
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "{} is missing, and {} says that there was one: put it back, or restore a backup with \
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
            "another process uses the data directory {}; a file store serves one process, stop \
             the other or give this one a directory of its own",
            directory.display()
        )),
        Err(TryLockError::Error(error)) => {
            Err(format!("{}: {}", path.display(), files::lock_failure(&path, &error)))
        }
    }
}
