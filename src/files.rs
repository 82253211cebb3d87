//! Private files and directories that survive a crash, and secrets read from files.
//!
//! A leaf: it knows nothing of their contents.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::secret::SecretBytes;

mod access;
mod mount;
mod place;
mod same;

pub(crate) use access::{FileAccess, check_dir};
pub use access::{check_writable, check_writable_dir, mode_for_others};
pub(crate) use mount::lock_failure;
pub use place::NewFile;
pub(crate) use place::{keep_as, sync_dir, sync_parent, write_new};
pub(crate) use same::{is_same, is_written_same};

/// Makes the directory `path`, and those above it, with mode 0700. One that exists stays as it is.
///
/// It fails if other users can replace files in it.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return check_dir(path);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    sync_parent(path)
}

/// Makes the file `path` with mode 0600, to be read and written.
///
/// It fails when there is one.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    create(path, PRIVATE)
}

/// The mode of a file that its owner alone may read and write.
pub const PRIVATE: u32 = 0o600;

/// The same with another mode, of which the umask of the process takes some.
fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
}

/// Opens the file `path` for reading.
///
/// It fails for what may never answer or never end: a named pipe waits for a writer, and devices
/// have no end, except `/dev/null`. A pipe that this process inherited (`/dev/stdin`,
/// `<(command)` of a shell) is read, since it has a writer.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    if kind.is_fifo() && is_inherited(path)? {
        rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
        return Ok(file);
    }
    let is_null = || std::fs::metadata("/dev/null").is_ok_and(|it| it.rdev() == metadata.rdev());
    if kind.is_char_device() && is_null() {
        return Ok(file);
    }
    Err(not_regular(&metadata))
}

/// Fails if `file` is a pipe, a device or a directory.
pub(crate) fn check_regular(file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok(()) } else { Err(not_regular(&metadata)) }
}

fn not_regular(metadata: &std::fs::Metadata) -> io::Error {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_fifo() => "named pipe",
        () => "device",
    };
    io::Error::other(format!("it is a {kind}, not a regular file"))
}

/// Whether a pipe has no name of its own: what resolves to it is a descriptor of this process.
fn is_inherited(path: &Path) -> io::Result<bool> {
    // Linux shows such a descriptor as a link to `pipe:[4711]`, which is no path.
    Ok(match std::fs::canonicalize(path) {
        Ok(resolved) => resolved.starts_with("/dev/fd"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(error),
    })
}

/// The whole contents of the file `path`, if [`open`] opens it.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The largest file that [`read_secret`] takes, in bytes.
const MAX_SECRET: usize = 64 << 10;

/// The contents of a file that holds a secret, and who may read it.
pub(crate) fn read_secret(path: &Path) -> io::Result<(SecretBytes, FileAccess)> {
    let mut file = open(path)?;
    let access = FileAccess::of(&file.metadata()?);
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
    check_rereadable(path)?;
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_REGULAR + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_REGULAR {
        return Err(io::Error::other("it is longer than 4 MiB"));
    }
    Ok(bytes)
}

/// Fails when `path` is not a regular file: what is read more than once must be one.
pub(crate) fn check_rereadable(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_file() { Ok(()) } else { Err(not_regular(&metadata)) }
}

/// Fails when there is no directory for the file `path`.
pub(crate) fn check_parent(path: &Path) -> io::Result<()> {
    std::fs::read_dir(parent(path)).map(drop)
}

/// The directory of `path`; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a named pipe.
#[cfg(test)]
pub(crate) fn mkfifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
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
    fn a_named_pipe_and_a_device_are_refused_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mkfifo(&pipe);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for (path, kind) in [
            (&*pipe, "a named pipe"),
            (&*link, "a named pipe"),
            (Path::new("/dev/zero"), "a device"),
            (dir.path(), "a directory"),
        ] {
            let error = read_secret(path).expect_err("refused").to_string();
            assert!(error.contains(kind), "{error}");
            assert_eq!(read(path).unwrap_err().to_string(), error);
        }
        assert_eq!(read(Path::new("/dev/null")).unwrap(), b"");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_that_the_process_inherited_is_read_to_its_end() {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        let (pipe, mut writer) = std::io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        let reader = std::thread::spawn(move || read(Path::new(&path)).unwrap());
        // More than a pipe holds, so that both sides wait for each other.
        for _ in 0..3 {
            writer.write_all(&[7; 50_000]).unwrap();
        }
        drop(writer);
        assert_eq!(reader.join().unwrap(), [7; 150_000]);
    }
}
