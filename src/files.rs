//! Private files and directories that survive a crash.
//!
//! A leaf: it knows nothing of what stands in them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (nested, file) = (dir.path().join("a/b"), dir.path().join("a/b/file"));
        make_private_dir(&nested).unwrap();
        make_private_dir(&nested).unwrap();
        create_private(&file).unwrap();
        assert!(create_private(&file).is_err());
        assert_eq!((mode(&nested), mode(&file)), (0o700, 0o600));
        assert_eq!(mode(&dir.path().join("a")), 0o700);
    }
}
