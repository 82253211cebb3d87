//! Files that get their name when they are complete, and never replace another one.
//!
//! File systems differ in what they support: NFS has hard links and no `RENAME_NOREPLACE`, exFAT
//! and CIFS have no hard links, and some FUSE file systems have neither.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{PRIVATE, create, create_private, parent};
use crate::random;

/// Makes the file `path` with `contents` unless it exists; false if it does.
///
/// Of several processes that try concurrently, one makes it. A crash leaves the whole file or
/// none, and at worst a temporary file beside it that nobody reads. Where the file system supports
/// neither `RENAME_NOREPLACE` nor hard links, a crash can leave an empty file.
pub(crate) fn write_new(path: &Path, contents: &[u8]) -> io::Result<bool> {
    write_by(&Way::ALL, path, contents)
}

fn write_by(ways: &[Way], path: &Path, contents: &[u8]) -> io::Result<bool> {
    let mut file = NewFile::create(path)?;
    file.write(contents)?;
    file.place_by(ways)
}

/// A file that is written under a temporary name, and gets its own when it is complete. Dropped
/// before, it is removed.
pub struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    is_placed: bool,
}

impl NewFile {
    /// Begins the file `path`, whose directory must exist, with mode 0600.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::create_with(path, PRIVATE)
    }

    /// The same with another mode, of which the umask of the process takes some.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create_with(path: &Path, mode: u32) -> io::Result<Self> {
        let temporary = temporary(path)?;
        let file = create(&temporary, mode)?;
        Ok(Self { file, temporary, path: path.to_owned(), is_placed: false })
    }

    /// Adds to it.
    pub(crate) fn write(&mut self, contents: &[u8]) -> io::Result<()> {
        self.file.write_all(contents)
    }

    /// The open file, to add to it.
    #[must_use]
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// Its temporary name: a process that a signal ends must remove it.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Makes it durable and gives it its name; false if there is a file of this name.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn place(self) -> io::Result<bool> {
        self.place_by(&Way::ALL)
    }

    fn place_by(mut self, ways: &[Way]) -> io::Result<bool> {
        self.file.sync_all()?;
        let placed = place(ways, &self.temporary, &self.path)?;
        self.is_placed = true;
        // A rename has moved it.
        match std::fs::remove_file(&self.temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        sync_parent(&self.path).map(|()| placed)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_placed {
            _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// How a complete file gets its name if the name is free.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// By `renameat2` with `RENAME_NOREPLACE`.
    Rename,
    /// By a hard link.
    Link,
    /// By an empty file, made with `O_EXCL`, that is then replaced.
    Reserve,
}

impl Way {
    /// The best one first.
    const ALL: [Self; 3] = [Self::Rename, Self::Link, Self::Reserve];

    fn place(self, temporary: &Path, path: &Path) -> io::Result<()> {
        match self {
            Self::Rename => rename_new(temporary, path),
            Self::Link => std::fs::hard_link(temporary, path),
            Self::Reserve => {
                drop(create_private(path)?);
                std::fs::rename(temporary, path).inspect_err(|_| {
                    // It is the empty one.
                    _ = std::fs::remove_file(path);
                })
            }
        }
    }
}

/// Tries one way after the other; false if there is a file of this name. Which error says that a
/// way is not supported differs between file systems, so each error leads to the next way.
fn place(ways: &[Way], temporary: &Path, path: &Path) -> io::Result<bool> {
    let mut last = None;
    for way in ways {
        match way.place(temporary, path) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ErrorKind::Unsupported.into()))
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn rename_new(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Keeps the file `path` under the name `other` too, by a hard link or, where the file system has
/// none, by a copy. Fails with [`ErrorKind::AlreadyExists`] if there is a file of that name.
pub(crate) fn keep_as(path: &Path, other: &Path) -> io::Result<()> {
    match std::fs::hard_link(path, other) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => copy_new(path, other),
        done => done,
    }
}

fn copy_new(path: &Path, other: &Path) -> io::Result<()> {
    let mut from = File::open(path)?;
    let mut to = create_private(other)?;
    let copied = io::copy(&mut from, &mut to).and_then(|_| to.sync_all());
    copied.and_then(|()| sync_parent(other)).inspect_err(|_| {
        _ = std::fs::remove_file(other);
    })
}

/// Makes names in the directory of `path` durable, as far as its file system supports that.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(&File::open(parent(path))?)
}

/// The same for an open directory.
pub(crate) fn sync_dir(directory: &File) -> io::Result<()> {
    match directory.sync_all() {
        Err(error) if is_unsupported(&error) => Ok(()),
        other => other,
    }
}

/// Whether a file system says that it has no such operation. CIFS, among others, answers an fsync
/// of a directory with `EINVAL`.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    let unsupported = [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP];
    errno.is_some_and(|errno| unsupported.contains(&errno))
}

/// A name beside `path` that no one else has.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let mut unique = [0; 8];
    random::fill(&mut unique).map_err(io::Error::other)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", u64::from_le_bytes(unique)));
    Ok(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn by_each_way_a_file_is_never_replaced_and_nothing_is_left_over() {
        for ways in [&Way::ALL[..], &[Way::Rename], &[Way::Link], &[Way::Reserve]] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            let made: Vec<bool> = std::thread::scope(|scope| {
                let path = &path;
                let attempt = |i| scope.spawn(move || write_by(ways, path, &[i]).unwrap());
                let tries: Vec<_> = (0..8u8).map(attempt).collect();
                tries.into_iter().map(|made| made.join().unwrap()).collect()
            });
            assert_eq!(made.iter().filter(|&&made| made).count(), 1, "{ways:?}");
            assert_eq!(std::fs::read(&path).unwrap().len(), 1, "{ways:?}");
            assert_eq!(names(dir.path()), 1, "{ways:?}");
            assert!(write_by(ways, &dir.path().join("missing/file"), b"").is_err());
        }
    }

    #[test]
    fn a_file_system_without_noreplace_and_hard_links_gets_the_file_by_another_way() {
        let dir = tempfile::tempdir().unwrap();
        let (temporary, path) = (dir.path().join("temporary"), dir.path().join("file"));
        // The first two fail, as they do where they are not supported.
        for ways in [&Way::ALL[..2], &Way::ALL] {
            let error = place(ways, &temporary, &path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{ways:?}");
            assert_eq!(names(dir.path()), 0, "the reserved name is free again");
        }
        std::fs::write(&temporary, "contents").unwrap();
        assert!(place(&[Way::Reserve], &temporary, &path).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"contents");
    }

    #[test]
    fn a_file_is_kept_by_a_copy_where_there_are_no_hard_links() {
        for keep in [keep_as, copy_new] {
            let dir = tempfile::tempdir().unwrap();
            let (path, kept) = (dir.path().join("file"), dir.path().join("kept"));
            std::fs::write(&path, "contents").unwrap();
            keep(&path, &kept).unwrap();
            assert_eq!(std::fs::read(&kept).unwrap(), b"contents");
            std::fs::write(&path, "changed").unwrap();
            let error = keep(&path, &kept).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
            assert_eq!(names(dir.path()), 2);
        }
    }

    /// A directory of `/proc` answers with `EINVAL`, as one of CIFS does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_directory_that_cannot_be_synced_is_no_failure() {
        let error = File::open("/proc").unwrap().sync_all().unwrap_err();
        assert!(is_unsupported(&error), "{error}");
        sync_parent(Path::new("/proc/file")).unwrap();
        assert!(sync_parent(Path::new("/missing/file")).is_err());
    }
}
