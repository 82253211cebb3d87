//! Private files and directories that survive a crash, and secrets read from files.
//!
//! A leaf: it knows nothing of what stands in them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::random;
use crate::secret::SecretBytes;

/// Makes the directory `path`, and those above it, with mode 0700; one that is there stays as it is.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    sync_parent(path)
}

/// Makes the file `path` with mode 0600, to be read and written.
///
/// It fails when there is one.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Makes the file `path` with `contents` unless there is one; false when there is.
///
/// Of several processes that try at once, one makes it. A crash leaves the whole file or none, and
/// at worst a temporary file beside it that nobody reads.
pub(crate) fn write_new(path: &Path, contents: &[u8]) -> io::Result<bool> {
    let temporary = temporary(path)?;
    let written = create_private(&temporary).and_then(|mut file| {
        file.write_all(contents)?;
        file.sync_all()?;
        // A link, not a rename: it never replaces what is there.
        match std::fs::hard_link(&temporary, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    });
    match (std::fs::remove_file(&temporary), written) {
        (Ok(()), Ok(written)) => sync_parent(path).map(|()| written),
        (Err(error), Ok(_)) | (_, Err(error)) => Err(error),
    }
}

/// The largest file that [`read_secret`] takes, in bytes.
const MAX_SECRET: usize = 64 << 10;

/// Who may do what with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// The id of the user that it belongs to.
    pub(crate) owner: u32,
    /// The bits of its mode.
    pub(crate) mode: u32,
}

/// The contents of a file that holds a secret, and who may read it.
pub(crate) fn read_secret(path: &Path) -> io::Result<(SecretBytes, Access)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let access = Access { owner: metadata.uid(), mode: metadata.mode() & 0o7777 };
    // It never grows, so no copy is left behind; a pipe's length is not known beforehand.
    let mut bytes = zeroize::Zeroizing::new(vec![0; MAX_SECRET + 1]);
    let mut len = 0;
    while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if len > MAX_SECRET {
        return Err(io::Error::other("it is longer than a secret is (64 KiB)"));
    }
    Ok((SecretBytes::new(bytes.get(..len).unwrap_or_default().to_vec()), access))
}

/// The largest file that [`read_regular`] takes, in bytes: bundles of authorities have some 250 KB.
const MAX_REGULAR: u64 = 4 << 20;

/// The contents of a regular file without secrets. Others, such as a pipe, could block permanently.
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    check_regular(path)?;
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_REGULAR + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_REGULAR {
        return Err(io::Error::other("it is longer than 4 MiB"));
    }
    Ok(bytes)
}

/// Fails when `path` is not a regular file.
pub(crate) fn check_regular(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_file() {
        return Ok(());
    }
    Err(io::Error::other("it is not a regular file, and it is read more than once"))
}

/// Fails when there is no directory for the file `path`.
pub(crate) fn check_parent(path: &Path) -> io::Result<()> {
    std::fs::read_dir(parent(path)).map(drop)
}

/// Makes names in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// The directory of `path`; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn secrets_are_read_whole_and_have_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        for (len, fits) in [(0, true), (MAX_SECRET, true), (MAX_SECRET + 1, false)] {
            let contents: Vec<u8> = (0..=255).cycle().take(len).collect();
            std::fs::write(&path, &contents).unwrap();
            match read_secret(&path) {
                Ok((secret, _)) => assert!(fits && secret.expose() == contents),
                Err(error) => assert!(!fits, "{error}"),
            }
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        std::fs::write(&path, "x").unwrap();
        assert_eq!(read_secret(&path).unwrap().1.mode, 0o640);
    }

    #[test]
    fn what_is_made_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (nested, file) = (dir.path().join("a/b"), dir.path().join("a/b/file"));
        make_private_dir(&nested).unwrap();
        make_private_dir(&nested).unwrap();
        assert!(write_new(&file, b"hello").unwrap());
        assert_eq!((mode(&nested), mode(&file)), (0o700, 0o600));
        assert_eq!(mode(&dir.path().join("a")), 0o700);
    }

    #[test]
    fn a_file_is_never_replaced_and_nothing_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let made: Vec<bool> = std::thread::scope(|scope| {
            let path = &path;
            let attempt = |i| scope.spawn(move || write_new(path, &[i]).unwrap());
            let tries: Vec<_> = (0..8u8).map(attempt).collect();
            tries.into_iter().map(|made| made.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|&&made| made).count(), 1);
        assert_eq!(std::fs::read(&path).unwrap().len(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_new(&dir.path().join("missing/file"), b"").is_err());
    }
}
