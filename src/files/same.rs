//! Whether two paths name one file, by links or by another way of writing it.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What distinguishes files.
#[derive(PartialEq, Eq)]
enum Identity {
    /// The device and inode of a file that exists.
    There(u64, u64),
    /// The directory that a missing file would be in, and its name there.
    Missing(PathBuf, OsString),
}

impl Identity {
    fn of(path: &Path) -> Self {
        if let Ok(metadata) = std::fs::metadata(path) {
            return Self::There(metadata.dev(), metadata.ino());
        }
        let parent = super::parent(path);
        let parent = std::fs::canonicalize(parent)
            .or_else(|_| std::path::absolute(parent))
            .unwrap_or_else(|_| parent.to_owned());
        Self::Missing(parent, path.file_name().unwrap_or_default().to_owned())
    }
}

/// Whether two paths are the same text, once both are absolute. It calls no file system, so one
/// that hangs does not make it wait, and links are not noticed.
pub(crate) fn is_written_same(one: &Path, other: &Path) -> bool {
    matches!((std::path::absolute(one), std::path::absolute(other)), (Ok(a), Ok(b)) if a == b)
}

/// Whether two paths name the same file, also if it does not exist yet.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    Identity::of(one) == Identity::of(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_by_each_path_that_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("a")).unwrap();
        for name in ["a/file", "a/other"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::os::unix::fs::symlink(at("a/file"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("a"), at("b")).unwrap();
        std::fs::hard_link(at("a/file"), at("hard")).unwrap();
        for same in ["a/file", "a/../a/./file", "link", "b/file", "hard"] {
            assert!(is_same(&at("a/file"), &at(same)), "{same}");
        }
        assert!(!is_same(&at("a/file"), &at("a/other")));
        // Files that do not exist.
        assert!(is_same(&at("a/new"), &at("b/new")));
        assert!(is_same(&at("no/new"), &at("no/./new")));
        for other in ["a/newer", "new", "no/new", "a/file"] {
            assert!(!is_same(&at("a/new"), &at(other)), "{other}");
        }
        assert!(is_same(Path::new("new"), Path::new("./new")));
        // As they are written.
        assert!(is_written_same(Path::new("new"), &std::env::current_dir().unwrap().join("./new")));
        assert!(is_written_same(&at("a/file"), &at("a//./file")));
        for other in ["link", "hard", "b/file", "a/other"] {
            assert!(!is_written_same(&at("a/file"), &at(other)), "{other}");
        }
    }
}
