//! The directory of an archive: how it is recognized, and how objects are read.
//!
//! # Layout
//!
//! ```text
//! kms-proxy-archive     the marker: this directory is an archive
//! .lock                 held while an object is written
//! .new/                 objects that are being written
//! v1/CHAIN/KEKID.json   an object
//! ```
//!
//! While a disk is not mounted, its mount point is an empty directory. Without the marker that
//! looks like an empty archive, and wrapped KEKs would be written below the mount point. So the
//! marker must exist, and an operator creates it once.
//!
//! Every call opens the directory and works relative to it: a mount that comes or goes during the
//! call changes nothing. Links in the archive are not followed.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, statat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::archive::settings::MARKER;
use crate::archive::{Error, Object, Version};
use crate::files;

/// The longest object that is read, in bytes. One of a KEK with many roots has a few KB.
const LONGEST: u64 = 1 << 20;

/// A directory by its path, which may not be there now.
pub(super) struct Directory {
    path: PathBuf,
    create: bool,
    pub(super) patience: Duration,
    /// Called before each change of the file system, with its name.
    before: Box<Before>,
}

/// Tests inject faults here.
pub(super) type Before = dyn Fn(&'static str) -> io::Result<()> + Send + Sync;

impl Directory {
    pub(super) fn new(path: &Path, create: bool, patience: Duration) -> Self {
        Self::with(path, create, patience, Box::new(|_| Ok(())))
    }

    pub(super) fn with(path: &Path, create: bool, patience: Duration, before: Box<Before>) -> Self {
        Self { path: path.to_owned(), create, patience, before }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Marks a change of the file system that follows.
    pub(super) fn step(&self, name: &'static str) -> io::Result<()> {
        (self.before)(name)
    }

    /// Checks that objects can be written, as far as that shows without a write.
    pub(super) fn check(&self) -> Result<(), String> {
        let wrong = |path: &Path, error: &io::Error| format!("{}: {error}", path.display());
        if self.create && matches!(self.path.try_exists(), Ok(false)) {
            // Directories above it are made too.
            let above = self.path.ancestors().skip(1);
            let above = above.map(|it| if it.as_os_str().is_empty() { Path::new(".") } else { it });
            let found = above.into_iter().find(|path| path.exists()).unwrap_or(&self.path);
            return files::check_writable_dir(found).map_err(|error| wrong(found, &error));
        }
        files::check_writable_dir(&self.path).map_err(|error| wrong(&self.path, &error))?;
        if self.create {
            return Ok(());
        }
        self.open().map(drop).map_err(|error| error.to_string())
    }

    /// Opens the directory of the archive, if it is one.
    pub(super) fn open(&self) -> Result<OwnedFd, Error> {
        if self.create {
            self.make().map_err(|error| self.failed("", &error))?;
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match openat(CWD, &self.path, flags, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Err(self.no_archive()),
            Err(error) => return Err(self.failed("", &error.into())),
        };
        match statat(&root, MARKER, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(root),
            Ok(_) | Err(Errno::NOENT) => Err(self.no_archive()),
            Err(error) => Err(self.failed(MARKER, &error.into())),
        }
    }

    /// Creates the directory and its marker unless they exist.
    fn make(&self) -> io::Result<()> {
        let marker = self.path.join(MARKER);
        if marker.try_exists()? {
            return Ok(());
        }
        files::make_private_dir(&self.path)?;
        files::write_new(&marker, b"kms-proxy: this directory is an archive\n").map(drop)
    }

    fn no_archive(&self) -> Error {
        let path = self.path.display();
        Error::Unavailable(format!(
            "{path}/{MARKER} does not exist: mount the disk. If this is to be a new archive, run \
             `mkdir -p -m 700 {path} && touch {path}/{MARKER}` as the user of the service"
        ))
    }

    /// The object at `key`.
    pub(super) fn get(&self, key: &str) -> Result<Option<Object>, Error> {
        let root = self.open()?;
        let read = match self.parent(&root, key) {
            Ok((parent, name)) => read(&parent, name),
            Err(error) => Err(error),
        };
        match read {
            Ok(bytes) => Ok(Some(Object { version: version(&bytes), bytes })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(key, &error)),
        }
    }

    /// The directory of the object at `key`, and the name within it.
    pub(super) fn parent<'k>(
        &self,
        root: &OwnedFd,
        key: &'k str,
    ) -> io::Result<(OwnedFd, &'k str)> {
        let (parents, name) = split(key)?;
        let mut parent = root.try_clone()?;
        for component in parents {
            parent = open_dir(&parent, component)?;
        }
        Ok((parent, name))
    }

    /// Like [`parent`](Self::parent), but creates directories that are missing, durably.
    pub(super) fn make_parent<'k>(
        &self,
        root: &OwnedFd,
        key: &'k str,
    ) -> io::Result<(OwnedFd, &'k str)> {
        let (parents, name) = split(key)?;
        let mut parent = root.try_clone()?;
        for component in parents {
            parent = self.make_dir(&parent, component)?;
        }
        Ok((parent, name))
    }

    /// Opens a directory, and creates it durably if it is missing.
    pub(super) fn make_dir(&self, parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
        self.step("mkdir")?;
        match mkdirat(parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // Also if it exists: the process that created it may have been killed here.
        self.step("sync of a parent")?;
        files::sync_dir(&File::from(parent.try_clone()?))?;
        open_dir(parent, name)
    }

    /// The error for a failure at `key`.
    pub(super) fn failed(&self, key: &str, error: &io::Error) -> Error {
        let path = self.path.join(key);
        let detail = format!("{}: {error}", path.display());
        match Errno::from_io_error(error) {
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::LOOP) => Error::Denied(detail),
            _ if error.kind() == io::ErrorKind::PermissionDenied => Error::Denied(detail),
            _ => Error::Unavailable(detail),
        }
    }
}

/// The names of a key: its directories, and its last one.
fn split(key: &str) -> io::Result<(std::str::Split<'_, char>, &str)> {
    if !key.split('/').all(is_name) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is not a key"));
    }
    Ok(match key.rsplit_once('/') {
        Some((parents, name)) => (parents.split('/'), name),
        None => {
            // A split of nothing has one empty item.
            let mut none = "".split('/');
            none.next();
            (none, key)
        }
    })
}

/// Whether this can be a name of a key. Those of this kind's own files, except the marker, cannot.
pub(super) fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = name.bytes();
    bytes.next().is_some_and(is_plain)
        && bytes.all(|byte| is_plain(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

pub(super) fn open_dir(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// The contents of a file in `parent`.
pub(super) fn read(parent: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    // NONBLOCK: opening a named pipe must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(parent, name, flags, Mode::empty())?);
    files::check_regular(&file)?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other("it is longer than an object is (1 MiB)"));
    }
    Ok(bytes)
}

/// The version of an object: the SHA-256 of its bytes.
pub(super) fn version(bytes: &[u8]) -> Version {
    Version(base16ct::lower::encode_string(&Sha256::digest(bytes)))
}
