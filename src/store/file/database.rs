//! The database while the store is open: closed after a failure, and opened again by the next call.
//!
//! redb refuses all work after an I/O error until its file is opened anew. That happens here, so a
//! disk that was full for a while costs no restart.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::files;

use super::open::{self, Failure, Opener, guarded};

/// The name of the file whose lock says that a process uses the directory. It is never removed:
/// two processes must not lock two files of one name.
const LOCK_NAME: &str = "store.lock";

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
    /// Opens the database in `directory`; makes both when they are missing.
    pub(super) fn open(directory: &Path, opener: Box<Opener>) -> Result<Self, String> {
        let at = |error: std::io::Error| format!("{}: {error}", directory.display());
        files::make_private_dir(directory).map_err(at)?;
        let lock = lock(directory)?;
        let database = open::open(directory, &*opener).map_err(|failure| match failure {
            Failure::Refused(detail) | Failure::Io(detail) => detail,
        })?;
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
        let mut state = self.write();
        close(&mut state);
        state.failed = None;
        state.lock = None;
    }

    fn opened(&self) -> Result<RwLockReadGuard<'_, State>, String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if state.open.is_some() {
            return Ok(state);
        }
        drop(state);
        self.reopen(&mut self.write())?;
        Ok(self.state.read().unwrap_or_else(PoisonError::into_inner))
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
                tracing::info!(directory = %self.directory.display(), "the store's file is open again");
                (state.open, state.failed) = (Some(database), None);
                state.generation += 1;
                Ok(())
            }
            Err(Failure::Refused(detail) | Failure::Io(detail)) => {
                state.failed = Some((detail.clone(), Instant::now()));
                Err(detail)
            }
        }
    }

    /// Closes the database that failed, unless that has been done already.
    fn give_up(&self, generation: u64) {
        let mut state = self.write();
        if state.generation == generation {
            close(&mut state);
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn close(state: &mut State) {
    if let Some(database) = state.open.take() {
        // All that was answered is on disk; what closing could add is a faster next open.
        let _ = guarded(|| Ok(database.close()?));
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
