//! The kind of file system that holds a path: messages about what it does not support name it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// What to say of a file that could not be locked.
pub(crate) fn lock_failure(path: &Path, error: &io::Error) -> String {
    let is_unsupported =
        super::place::is_unsupported(error) || Errno::from_io_error(error) == Some(Errno::NOLCK);
    if !is_unsupported {
        return error.to_string();
    }
    let kind = file_system(path).map(|kind| format!(" ({kind})")).unwrap_or_default();
    format!(
        "its file system{kind} does not support locks ({error}); use a directory on one that \
         does, such as ext4 or XFS"
    )
}

/// The kind of the file system that holds `path`, such as `ext4`; `None` where it is not known.
fn file_system(path: &Path) -> Option<String> {
    let path = std::fs::canonicalize(path).ok()?;
    kind_in(&std::fs::read("/proc/self/mountinfo").ok()?, &path)
}

/// The same by the lines of `mountinfo`, which proc(5) describes.
fn kind_in(mounts: &[u8], path: &Path) -> Option<String> {
    let mounts = mounts.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let point = unescaped(fields.nth(4)?);
        let kind = fields.skip_while(|&field| field != b"-").nth(1)?;
        path.starts_with(&point).then_some((point.as_os_str().len(), kind))
    });
    // Of two that are mounted over each other, the later one is in use.
    let (_, kind) = mounts.max_by_key(|(len, _)| *len)?;
    Some(String::from_utf8_lossy(kind).into_owned())
}

/// A path whose blanks and backslashes are written as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut path, mut rest) = (Vec::with_capacity(field.len()), field);
    while let [first, after @ ..] = rest {
        let code = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        path.push(code.unwrap_or(*first));
        rest = if code.is_some() { rest.get(4..).unwrap_or_default() } else { after };
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
30 21 0:5 / /proc rw - proc proc rw\n\
41 21 0:44 / /mnt/share rw,relatime shared:9 master:2 - cifs //server/share rw,vers=3.1.1\n\
42 41 0:45 / /mnt/share/my\\040data rw - fuse.sshfs host: rw\n\
43 21 0:46 / /mnt/share/twice rw - tmpfs none rw\n\
44 43 0:47 / /mnt/share/twice rw - vfat /dev/sda1 rw\n";

    #[test]
    fn the_file_system_of_a_path_is_the_one_mounted_closest_above_it() {
        for (path, kind) in [
            ("/var/lib/kms-proxy", "ext4"),
            ("/mnt/sharepoint", "ext4"),
            ("/mnt/share/data", "cifs"),
            ("/mnt/share/my data/store.lock", "fuse.sshfs"),
            ("/mnt/share/twice", "vfat"),
        ] {
            assert_eq!(kind_in(MOUNTS, Path::new(path)).as_deref(), Some(kind), "{path}");
        }
        assert_eq!(kind_in(b"nonsense\n1 2 3", Path::new("/")), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_error_of_an_unsupported_lock_names_the_file_system() {
        let path = Path::new("/proc/self");
        for errno in [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL] {
            let said = lock_failure(path, &errno.into());
            assert!(said.contains("its file system (proc) does not support locks"), "{said}");
        }
        let said = lock_failure(path, &Errno::IO.into());
        assert!(!said.contains("support"), "{said}");
    }
}
