//! Where lines go: a file, the standard output, or a unix socket.
//!
//! It takes bytes and knows no lines, except that it cuts a file off after the last whole one. Its
//! calls may block: only the writer's thread makes them.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};

use super::config::{Config, Target};
use super::line::Before;

/// How long a socket may take no byte before it is asked whether the process ends.
const SOCKET_TIMEOUT: Duration = Duration::from_millis(500);

/// A write that did not take everything.
pub(super) struct Failed {
    /// The bytes that were taken, up to the end of a line.
    pub(super) accepted: usize,
    pub(super) error: io::Error,
}

/// A place for lines.
pub(super) trait Sink: Send {
    /// Takes all of `bytes`, which are whole lines.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failed>;

    /// Has what was taken written to the disk.
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Whether it must be opened again: it failed, or its file was renamed or deleted.
    fn is_stale(&self) -> bool;

    /// Opens it again.
    fn reopen(&mut self) -> io::Result<()>;

    /// What is there already, and whether it does not end with a newline.
    fn before(&self) -> io::Result<(Before, bool)> {
        Ok((Before::Unknown, false))
    }

    /// Whether it is time to rotate.
    fn is_full(&self) -> bool {
        false
    }

    /// Renames the file. `time` distinguishes it from others.
    fn rotate(&mut self, time: &str) -> io::Result<()> {
        _ = time;
        Ok(())
    }
}

/// Opens the sink of a configuration.
pub(super) fn open(
    config: &Config,
    target: &Target,
    stopping: &Arc<AtomicBool>,
) -> io::Result<Box<dyn Sink>> {
    Ok(match target {
        Target::File(path) => Box::new(FileSink::open(path, config.rotate_size, config.keep)?),
        Target::Stdout => {
            let stdout = io::stdout().as_fd().try_clone_to_owned()?;
            let stream = Some(Stream::Stdout(File::from(stdout)));
            Box::new(StreamSink { path: None, stream, stopping: Arc::clone(stopping) })
        }
        Target::Unix(path) => {
            let stream = Some(Stream::connect(path)?);
            let path = Some(path.clone());
            Box::new(StreamSink { path, stream, stopping: Arc::clone(stopping) })
        }
    })
}

/// A file to whose end lines are written.
struct FileSink {
    path: PathBuf,
    file: File,
    size: u64,
    rotate_size: Option<u64>,
    keep: usize,
    /// Part of a line may be at its end.
    is_broken: bool,
}

impl FileSink {
    fn open(path: &Path, rotate_size: Option<usize>, keep: usize) -> io::Result<Self> {
        let file = open_file(path)?;
        let size = file.metadata()?.len();
        let rotate_size = rotate_size.and_then(|size| u64::try_from(size).ok());
        Ok(Self { path: path.to_owned(), file, size, rotate_size, keep, is_broken: false })
    }

    /// Removes the last `excess` bytes, which end in the middle of a line.
    fn cut(&mut self, excess: usize) {
        if excess == 0 {
            return;
        }
        let cut = self.file.metadata().and_then(|metadata| {
            let excess = u64::try_from(excess).unwrap_or(u64::MAX);
            self.file.set_len(metadata.len().saturating_sub(excess))
        });
        self.is_broken = cut.is_err();
    }

    /// Deletes the oldest rotated files beyond those that are kept.
    fn clean(&self) -> io::Result<()> {
        let (Some(dir), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(());
        };
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let prefix = format!("{}.", name.to_string_lossy());
        let mut rotated: Vec<_> = std::fs::read_dir(dir)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.strip_prefix(&prefix).is_some_and(is_stamp))
            .collect();
        rotated.sort_unstable();
        let excess = rotated.len().saturating_sub(self.keep);
        for name in rotated.iter().take(excess) {
            std::fs::remove_file(dir.join(name))?;
        }
        Ok(())
    }
}

/// Whether a name ends as that of a rotated file: `20261128T230639.123Z`.
fn is_stamp(end: &str) -> bool {
    end.len() == 20
        && end.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'T' | b'.' | b'Z'))
}

/// Opens a file to append to it. Two processes can't write to one file: their lines would mix.
fn open_file(path: &Path) -> io::Result<File> {
    // A named pipe would wait for a reader.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let mut options = OpenOptions::new();
    let options = options.read(true).append(true).create(true).mode(0o640).custom_flags(flags);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::other("another process writes to it")),
        // Some network file systems have no locks.
        _ => Ok(file),
    }
}

impl Sink for FileSink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let written = write_all(bytes, |rest| self.file.write(rest));
        match written {
            Ok(()) => {
                self.size = self.size.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
                Ok(())
            }
            Err((written, error)) => {
                let accepted = whole_lines(bytes, written);
                self.cut(written - accepted);
                Err(Failed { accepted, error })
            }
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_stale(&self) -> bool {
        let same = |open: std::fs::Metadata, named: std::fs::Metadata| {
            open.dev() == named.dev() && open.ino() == named.ino()
        };
        let open = self.file.metadata();
        let named = std::fs::metadata(&self.path);
        self.is_broken || !open.and_then(|open| Ok(same(open, named?))).unwrap_or(false)
    }

    fn reopen(&mut self) -> io::Result<()> {
        // The lock belongs to the open file: it would keep out this process, too.
        _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
        self.file = open_file(&self.path)?;
        self.size = self.file.metadata()?.len();
        self.is_broken = false;
        Ok(())
    }

    fn before(&self) -> io::Result<(Before, bool)> {
        Before::of_file(&self.file)
    }

    fn is_full(&self) -> bool {
        self.rotate_size.is_some_and(|most| self.size >= most)
    }

    fn rotate(&mut self, time: &str) -> io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{}", time.replace(['-', ':'], "")));
        let name = PathBuf::from(name);
        if name.exists() {
            return Err(io::Error::other("a file of this name is there already"));
        }
        std::fs::rename(&self.path, name)?;
        self.reopen()?;
        self.clean()
    }
}

/// A stream that others read.
struct StreamSink {
    /// The socket; none for the standard output.
    path: Option<PathBuf>,
    /// `None` after a failure.
    stream: Option<Stream>,
    /// Whether the process ends: a stream that takes nothing is given up then.
    stopping: Arc<AtomicBool>,
}

enum Stream {
    Stdout(File),
    Socket(UnixStream),
}

impl Stream {
    fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
        Ok(Self::Socket(stream))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(file) => file.write(bytes),
            Self::Socket(stream) => stream.write(bytes),
        }
    }
}

impl Sink for StreamSink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let Some(stream) = &mut self.stream else {
            let error = io::Error::from(ErrorKind::NotConnected);
            return Err(Failed { accepted: 0, error });
        };
        let stopping = &self.stopping;
        let written = write_all(bytes, |rest| {
            loop {
                match stream.write(rest) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if stopping.load(Ordering::Relaxed) {
                            return Err(error);
                        }
                        // The standard output may be a pipe that does not block.
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    result => return result,
                }
            }
        });
        written.map_err(|(written, error)| {
            // The reader has part of a line: nothing may follow it on this connection.
            if self.path.is_some() {
                self.stream = None;
            }
            Failed { accepted: whole_lines(bytes, written), error }
        })
    }

    fn is_stale(&self) -> bool {
        self.stream.is_none()
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.stream = Some(Stream::connect(path)?);
        }
        Ok(())
    }
}

/// Writes all bytes, or says how many were written.
fn write_all(
    bytes: &[u8],
    mut write: impl FnMut(&[u8]) -> io::Result<usize>,
) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match write(rest) {
            Ok(0) => return Err((written, ErrorKind::WriteZero.into())),
            Ok(some) => written += some,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// The length of the whole lines in the first `written` bytes.
fn whole_lines(bytes: &[u8], written: usize) -> usize {
    let written = bytes.get(..written).unwrap_or_default();
    written.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
}
