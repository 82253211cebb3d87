//! Writes of objects: complete files that get their name in one step.
//!
//! A write holds the lock of the archive. A new object gets its name by a hard link, or where there
//! are none by a rename that replaces nothing, so it replaces no other object even where the file
//! system ignores locks. A crash at any point leaves the old object or the new one, and at worst a
//! file in `.new`, which the next write removes.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, linkat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use crate::archive::{Condition, Error, Written};
use crate::{files, random};

use super::directory::{Directory, read, version};

/// The file whose lock serializes writes. It is never removed: otherwise two processes could lock
/// two files of the same name.
const LOCK: &str = ".lock";

/// The directory of incomplete files.
pub(super) const NEW: &str = ".new";

/// The pause between two attempts to lock.
const PAUSE: Duration = Duration::from_millis(5);

impl Directory {
    /// Writes the object at `key` if `condition` holds.
    pub(super) fn put(
        &self,
        key: &str,
        bytes: &[u8],
        condition: &Condition,
    ) -> Result<Written, Error> {
        let root = self.open()?;
        files::check_dir(self.path()).map_err(|error| self.failed("", &error))?;
        let _lock = self.lock(&root)?;
        self.put_locked(&root, key, bytes, condition).map_err(|error| self.failed(key, &error))
    }

    fn put_locked(
        &self,
        root: &OwnedFd,
        key: &str,
        bytes: &[u8],
        condition: &Condition,
    ) -> io::Result<Written> {
        let new = self.make_dir(root, NEW)?;
        self.clean(&new)?;
        let current = match self.parent(root, key).and_then(|(parent, name)| read(&parent, name)) {
            Ok(bytes) => Some(version(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let holds = match condition {
            Condition::Absent => current.is_none(),
            Condition::Unchanged(version) => current.as_ref() == Some(version),
        };
        if !holds {
            return Ok(Written::Conflict);
        }
        let (parent, name) = self.make_parent(root, key)?;
        let temporary = self.write_temporary(&new, bytes)?;
        let placed = match condition {
            Condition::Absent => self.create(&new, &temporary, &parent, name)?,
            Condition::Unchanged(_) => {
                self.step("replace")?;
                renameat(&new, &*temporary, &parent, name)?;
                true
            }
        };
        if !placed {
            return Ok(Written::Conflict);
        }
        self.step("sync of the name")?;
        files::sync_dir(&File::from(parent))?;
        Ok(Written::Applied(version(bytes)))
    }

    /// Writes a complete file in `.new`, durably, and returns its name.
    fn write_temporary(&self, new: &OwnedFd, bytes: &[u8]) -> io::Result<String> {
        let mut unique = [0; 8];
        random::fill(&mut unique).map_err(io::Error::other)?;
        let temporary = format!("{:016x}", u64::from_le_bytes(unique));
        self.step("create")?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(openat(new, &*temporary, flags, Mode::RUSR | Mode::WUSR)?);
        self.step("write")?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first)?;
        self.step("write of the second half")?;
        file.write_all(second)?;
        self.step("sync")?;
        file.sync_all()?;
        Ok(temporary)
    }

    /// Names a new object. False if there is one of this name.
    fn create(
        &self,
        new: &OwnedFd,
        temporary: &str,
        parent: &OwnedFd,
        name: &str,
    ) -> io::Result<bool> {
        self.step("link")?;
        let linked = linkat(new, temporary, parent, name, AtFlags::empty());
        let placed = match linked {
            Ok(()) => true,
            // A server of NFS whose answer was lost reports its own first attempt.
            Err(Errno::EXIST) => statat(new, temporary, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| stat.st_nlink > 1),
            Err(_) => return rename_new(new, temporary, parent, name),
        };
        self.step("unlink")?;
        unlinkat(new, temporary, AtFlags::empty())?;
        Ok(placed)
    }

    /// Removes what processes that were killed left: each is a wrapped KEK, which the destruction
    /// of a KEK must not leave behind.
    fn clean(&self, new: &OwnedFd) -> io::Result<()> {
        for entry in Dir::read_from(new)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.step("clean")?;
                unlinkat(new, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Locks the archive until the file is dropped.
    fn lock(&self, root: &OwnedFd) -> Result<File, Error> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(root, LOCK, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(opened.map_err(|error| self.failed(LOCK, &error.into()))?);
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if began.elapsed() < self.patience => {
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let path = self.path().join(LOCK);
                    let detail = format!("{}: other processes hold the lock", path.display());
                    return Err(Error::Unavailable(detail));
                }
                Err(TryLockError::Error(error)) => {
                    let path = self.path().join(LOCK);
                    let detail = files::lock_failure(&path, &error);
                    return Err(Error::Unavailable(format!("{}: {detail}", path.display())));
                }
            }
        }
    }
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn rename_new(new: &OwnedFd, temporary: &str, parent: &OwnedFd, name: &str) -> io::Result<bool> {
    use rustix::fs::{RenameFlags, renameat_with};
    let flags = RenameFlags::NOREPLACE;
    match renameat_with(new, temporary, parent, name, flags) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn rename_new(_: &OwnedFd, _: &str, _: &OwnedFd, _: &str) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}
