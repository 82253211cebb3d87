//! Who can read or replace a file: its owner, its group and everyone else.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

/// Who may do what with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileAccess {
    /// The id of the user that it belongs to.
    pub(crate) owner: u32,
    /// The bits of its mode.
    pub(crate) mode: u32,
    /// The id of the group that it belongs to.
    pub(crate) group: u32,
}

impl FileAccess {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let (owner, group) = (metadata.uid(), metadata.gid());
        Self { owner, mode: metadata.mode() & 0o7777, group }
    }

    /// The bits of the mode that give rights to other users.
    ///
    /// The bits of the group do not count if this process is a member of it: kubelet gives the
    /// files of a volume to the group of the pod (`fsGroup`) and makes them accessible to it.
    pub(crate) fn of_others(self) -> u32 {
        let mut own = rustix::process::getgroups().unwrap_or_default();
        own.push(rustix::process::getegid());
        self.beyond(|group| own.iter().any(|own| own.as_raw() == group))
    }

    fn beyond(self, is_own: impl Fn(u32) -> bool) -> u32 {
        self.mode & if is_own(self.group) { 0o007 } else { 0o077 }
    }
}

/// The mode of the file `path` if other users can read or change it: users other than its owner,
/// and other than the groups of this process.
///
/// # Errors
/// Those of the file system.
pub fn mode_for_others(path: &Path) -> io::Result<Option<u32>> {
    let access = FileAccess::of(&std::fs::metadata(path)?);
    Ok((access.of_others() & 0o066 != 0).then_some(access.mode))
}

/// Fails unless `path` is a directory in which this process can make files. It makes none.
///
/// # Errors
/// Those of the file system, such as one for a directory that does not exist.
pub fn check_writable_dir(path: &Path) -> io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    check_access(path, Access::WRITE_OK | Access::EXEC_OK)
}

/// Fails unless this process can write a file `path`: a regular file that exists, or a new one. It
/// opens and makes none.
///
/// # Errors
/// Those of the file system, such as one for a directory that does not exist.
pub fn check_writable(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => check_access(path, Access::WRITE_OK),
        Ok(metadata) => Err(super::not_regular(&metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            check_writable_dir(super::parent(path))
        }
        Err(error) => Err(error),
    }
}

fn check_access(path: &Path, access: Access) -> io::Result<()> {
    // By the effective user, who opens it.
    Ok(accessat(CWD, path, access, AtFlags::EACCESS)?)
}

/// Fails if other users can replace files in the directory `path`.
pub(crate) fn check_dir(path: &Path) -> io::Result<()> {
    check_writers(path, FileAccess::of(&std::fs::metadata(path)?))
}

fn check_writers(path: &Path, access: FileAccess) -> io::Result<()> {
    if access.of_others() & 0o022 == 0 {
        return Ok(());
    }
    let (mode, path) = (access.mode, path.display());
    // A shared directory such as /tmp must stay as it is.
    let repair = match mode & 0o1000 {
        0 => format!("run `chmod go-w {path}`"),
        _ => format!("use a dedicated directory, such as {path}/kms-proxy"),
    };
    let detail = format!("its mode is {mode:04o}, so other users can replace its files; {repair}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, detail))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn rights_of_a_group_of_this_process_are_not_rights_of_others() {
        for (mode, group, others) in [
            (0o600, 7, 0),
            (0o440, 7, 0),
            (0o660, 7, 0),
            (0o2770, 7, 0),
            (0o440, 8, 0o040),
            (0o660, 8, 0o060),
            (0o604, 7, 0o004),
            (0o1777, 7, 0o007),
            (0o1777, 8, 0o077),
        ] {
            let access = FileAccess { owner: 0, mode, group };
            assert_eq!(access.beyond(|group| group == 7), others, "{mode:o} {group}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_change_has_its_mode_reported() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, is_open) in
            [(0o600, false), (0o660, false), (0o711, false), (0o604, true), (0o602, true)]
        {
            std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(mode_for_others(file.path()).unwrap(), is_open.then_some(mode), "{mode:o}");
        }
        assert!(mode_for_others(Path::new("/no/such/file")).is_err());
    }

    #[test]
    fn a_place_for_a_new_file_must_be_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        for good in ["file", "new"] {
            check_writable(&at(good)).unwrap();
        }
        check_writable_dir(dir.path()).unwrap();
        for (path, kind) in [
            ("no/new", io::ErrorKind::NotFound),
            ("file/new", io::ErrorKind::NotADirectory),
            (".", io::ErrorKind::Other),
        ] {
            assert_eq!(check_writable(&at(path)).unwrap_err().kind(), kind, "{path}");
        }
        for (path, kind) in
            [("file", io::ErrorKind::NotADirectory), ("no", io::ErrorKind::NotFound)]
        {
            assert_eq!(check_writable_dir(&at(path)).unwrap_err().kind(), kind, "{path}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is made");
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_with_its_repair() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let set = |mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        for mode in [0o700, 0o755, 0o770, 0o2770] {
            set(mode);
            check_dir(path).unwrap_or_else(|error| panic!("{mode:o}: {error}"));
        }
        for (mode, repair) in [
            (0o777, format!("chmod go-w {}", path.display())),
            (0o702, format!("chmod go-w {}", path.display())),
            (0o1777, format!("such as {}/kms-proxy", path.display())),
        ] {
            set(mode);
            let error = check_dir(path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains(&repair), "{error}");
        }
        set(0o770);
        // Only root can give it to a group that this process is not a member of.
        let access = FileAccess::of(&std::fs::metadata(path).unwrap());
        check_writers(path, access).unwrap();
        let error = check_writers(path, FileAccess { group: 12_345, ..access }).unwrap_err();
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }
}
