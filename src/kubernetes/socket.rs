//! The socket: only permitted users ever reach it, it never replaces one that is in use, and it is
//! removed at the end.
//!
//! It is created in a private directory, gets its mode and owner there, and is then moved into
//! place atomically, over a stale one if there is one. A lock file beside it decides which
//! process owns the place: of two processes that find a stale socket, one wins.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown,
};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;

use super::config::{Address, Config};

mod directories;

use directories::check_directories;

/// A listening socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    file: Option<SocketFile>,
}

impl Bound {
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Checks that clients find the socket, and creates its file again if somebody removed it.
    /// Open connections are not affected.
    ///
    /// # Errors
    /// The reason why clients do not find it.
    pub(super) fn keep(&mut self, config: &Config) -> Result<(), String> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let path = file.path.display().to_string();
        match fs::symlink_metadata(&file.path) {
            Ok(found) if inode(&found) == file.inode => Ok(()),
            Ok(_) => Err(format!("another file is at {path}: remove it")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!(socket = path, "the socket's file was removed and is created again");
                self.listener = file
                    .restore(config)
                    .map_err(|error| format!("{path} was removed and can't be created: {error}"))?;
                Ok(())
            }
            Err(error) => Err(format!("{path}: {error}")),
        }
    }
}

/// The file of a socket, and the lock that keeps other processes from it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
    lock: File,
}

impl SocketFile {
    /// Creates the socket's file again. The lock file may be missing too: then another process may
    /// hold a new one.
    fn restore(&mut self, config: &Config) -> Result<UnixListener, String> {
        check_directories(self.path.parent().unwrap_or(Path::new("/")))?;
        let shown = |error: io::Error| error.to_string();
        let held = inode(&self.lock.metadata().map_err(shown)?);
        if !fs::symlink_metadata(lock_path(&self.path)).is_ok_and(|now| inode(&now) == held) {
            self.lock = lock(&self.path)?;
        }
        let (listener, inode) = create(&self.path, config).map_err(shown)?;
        self.inode = inode;
        Ok(listener)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A file that replaced the socket is not removed.
        if fs::symlink_metadata(&self.path).is_ok_and(|now| inode(&now) == self.inode) {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket that could not be created, with its path and the reason.
#[derive(Debug, thiserror::Error)]
#[error("kubernetes.socket: {0}")]
pub struct Error(String);

/// Listens on the socket of `config`. Must be called in a runtime.
///
/// # Errors
/// [`Error`]: a process listens there, another kind of file is there, or users other than root and
/// this process' user could replace the socket.
pub fn bind(config: &Config) -> Result<Bound, Error> {
    let path = match &config.socket {
        Address::Path(path) => path,
        Address::Abstract(_) => {
            let listener = UnixListener::bind(config.socket.to_path()).map_err(|error| {
                Error(match error.kind() {
                    ErrorKind::AddrInUse => {
                        format!("{}: another process listens there", config.socket)
                    }
                    _ => format!("{}: {error}", config.socket),
                })
            })?;
            return Ok(Bound { listener, file: None });
        }
    };
    let failed = |detail: String| Error(format!("{}: {detail}", path.display()));
    let directory = path.parent().unwrap_or(Path::new("/"));
    check_directories(directory).map_err(&failed)?;
    let lock = lock(path).map_err(&failed)?;
    check_stale(path).map_err(&failed)?;
    let (listener, inode) = create(path, config).map_err(|error| failed(error.to_string()))?;
    Ok(Bound { listener, file: Some(SocketFile { path: path.clone(), inode, lock }) })
}

/// Checks that [`bind`] can use the directory of the socket, without creating anything.
///
/// # Errors
/// [`Error`]: the directory does not exist, this process can't write to it, or other users could
/// replace files in it.
pub fn check(config: &Config) -> Result<(), Error> {
    let Address::Path(path) = &config.socket else { return Ok(()) };
    let directory = path.parent().unwrap_or(Path::new("/"));
    let failed = |detail: String| Error(format!("{}: {detail}", path.display()));
    check_directories(directory).map_err(failed)?;
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let flags = rustix::fs::AtFlags::EACCESS;
    rustix::fs::accessat(rustix::fs::CWD, directory, access, flags)
        .map_err(|error| failed(format!("{}: {}", directory.display(), io::Error::from(error))))
}

/// Takes the lock beside `path`. Its file is never removed: that would let two processes hold it.
fn lock(path: &Path) -> Result<File, String> {
    let at = lock_path(path);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    // In a directory such as /tmp, others can create a link with this name.
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    let file = options.open(&at).map_err(|error| format!("{}: {error}", at.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err("another kms-proxy has this socket".to_owned()),
        Err(error) => Err(format!("{}: {error}", at.display())),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    path.with_file_name(name)
}

/// Checks that `path` does not exist or is a socket that nobody listens on.
fn check_stale(path: &Path) -> Result<(), String> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if found.is_symlink() {
        return Err("a symbolic link is there, and is not followed".to_owned());
    }
    if !found.is_socket() {
        return Err("another kind of file is there".to_owned());
    }
    match UnixStream::connect(path) {
        Ok(_) => Err("another process listens there already; is it another plugin?".to_owned()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "a socket that nobody listens on is replaced");
            Ok(())
        }
        Err(error) => Err(format!("can't check whether another process listens there: {error}")),
    }
}

/// Creates the socket with its mode and owner, and moves it to `path`.
fn create(path: &Path, config: &Config) -> io::Result<(UnixListener, (u64, u64))> {
    let mut unique = [0; 4];
    crate::random::fill(&mut unique).map_err(io::Error::other)?;
    // Short, because a socket's path has at most 108 bytes.
    let private = path.with_file_name(format!(".{:08x}", u32::from_le_bytes(unique)));
    DirBuilder::new().mode(0o700).create(&private)?;
    let made = private.join("s");
    let moved = UnixListener::bind(&made).and_then(|listener| {
        fs::set_permissions(&made, PermissionsExt::from_mode(config.socket_mode.0))?;
        if let Some(owner) = config.owner {
            lchown(&made, Some(owner.uid), owner.gid).map_err(|error| {
                let detail = format!("can't set its owner to {owner} (kubernetes.owner): {error}");
                io::Error::new(error.kind(), detail)
            })?;
        }
        let inode = inode(&fs::symlink_metadata(&made)?);
        fs::rename(&made, path)?;
        Ok((listener, inode))
    });
    if moved.is_err() {
        _ = fs::remove_file(&made);
    }
    _ = fs::remove_dir(&private);
    moved
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    fn config(path: &Path) -> Config {
        toml::from_str(&format!("socket = 'unix://{}'", path.display())).unwrap()
    }

    /// Binds a socket that this process has closed. The child process of another test has a copy
    /// of each descriptor, and so of lock and listener, until it executes its program.
    fn bind_again(config: &Config) -> Bound {
        for _ in 0..6_000 {
            match bind(config) {
                Err(Error(detail))
                    if detail.contains("another kms-proxy")
                        || detail.contains("another process") =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                bound => return bound.unwrap(),
            }
        }
        panic!("{} stays in use", config.socket);
    }

    fn refused(path: &Path) -> String {
        bind(&config(path)).unwrap_err().to_string()
    }

    fn entries(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn it_has_the_configured_mode_and_is_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        for (mode, expected) in [("0600", 0o600), ("0660", 0o660)] {
            let mut config = config(&path);
            config.socket_mode = mode.parse().unwrap();
            let bound = bind_again(&config);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, expected);
            assert_eq!(entries(dir.path()), ["kms.sock", "kms.sock.lock"]);
            drop(bound);
            assert_eq!(entries(dir.path()), ["kms.sock.lock"]);
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        // The socket of a process that was killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = bind_again(&config(&path));
        assert!(refused(&path).contains("another kms-proxy has this socket"));
        let client = tokio::net::UnixStream::connect(&path).await.unwrap();
        drop((first, client));

        let path = dir.path().join("other.sock");
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(refused(&path).contains("another process listens there already"));
        drop(other);
        bind_again(&config(&path));
    }

    #[tokio::test]
    async fn another_kind_of_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        fs::write(&path, "precious").unwrap();
        assert!(refused(&path).contains("another kind of file"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = dir.path().join("link.sock");
        symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert!(refused(&link).contains("a symbolic link"));
        let locked = dir.path().join("l.sock");
        symlink(dir.path().join("elsewhere"), dir.path().join("l.sock.lock")).unwrap();
        assert!(refused(&locked).contains("l.sock.lock"), "{}", refused(&locked));
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[tokio::test]
    async fn directories_in_which_others_could_replace_it_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, inner) = (dir.path().join("a"), dir.path().join("a/b"));
        fs::create_dir_all(&inner).unwrap();
        let path = inner.join("kms.sock");
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        for directory in [&outer, &inner] {
            for (mode, is_safe) in [(0o777, false), (0o775, false), (0o1777, true), (0o755, true)] {
                set(directory, mode).unwrap();
                if is_safe {
                    bind_again(&config(&path));
                } else {
                    let error = refused(&path);
                    assert!(error.contains(&format!("has mode {mode:04o}")), "{error}");
                }
            }
        }
        // The target of a link is checked as well.
        let link = dir.path().join("link");
        symlink(&inner, &link).unwrap();
        set(&outer, 0o777).unwrap();
        assert!(refused(&link.join("kms.sock")).contains("has mode 0777"));
        assert!(refused(&dir.path().join("none/kms.sock")).contains("does not exist"));
    }

    #[tokio::test]
    async fn a_removed_socket_is_created_again_unless_another_file_is_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        let config = config(&path);
        let mut bound = bind(&config).unwrap();
        assert_eq!(bound.keep(&config), Ok(()));
        for lock_goes_too in [false, true] {
            fs::remove_file(&path).unwrap();
            if lock_goes_too {
                fs::remove_file(lock_path(&path)).unwrap();
            }
            assert_eq!(bound.keep(&config), Ok(()));
            tokio::net::UnixStream::connect(&path).await.unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            assert_eq!(entries(dir.path()), ["kms.sock", "kms.sock.lock"]);
            assert!(refused(&path).contains("another kms-proxy has this socket"));
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(bound.keep(&config).unwrap_err().contains("another file is at"));
        fs::remove_file(&path).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let error = bound.keep(&config).unwrap_err();
        assert!(error.contains("was removed") && error.contains("has mode 0777"), "{error}");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        assert_eq!(bound.keep(&config), Ok(()));
        drop(bound);
        assert_eq!(entries(dir.path()), ["kms.sock.lock"]);
    }

    #[tokio::test]
    async fn an_abstract_socket_is_bound_once() {
        let name = format!("kms-proxy-test-{}", std::process::id());
        let text = format!("socket = 'unix:///@{name}'\nallowed_uids = [0]");
        let config: Config = toml::from_str(&text).unwrap();
        let bound = bind(&config).unwrap();
        assert!(bind(&config).unwrap_err().to_string().contains("another process listens there"));
        drop(bound);
        bind_again(&config);
    }
}
