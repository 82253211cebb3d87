//! stdin, stdout and stderr.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use kms_proxy::human_units;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, major, minor};
use zeroize::Zeroizing;

use super::{Failure, Result};

/// The limit on stdin.
#[derive(clap::Args)]
pub(super) struct SizeArgs {
    /// The largest input that is read into memory
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    max_size: usize,
}

/// The bytes that a header and its framing can add to an input.
const OVERHEAD: usize = 1 << 20;

impl SizeArgs {
    /// The largest input in bytes.
    pub(super) fn input(&self) -> usize {
        self.max_size
    }

    /// The largest response to such an input in bytes.
    pub(super) fn response(&self) -> usize {
        self.max_size.saturating_add(OVERHEAD)
    }
}

fn size(text: &str) -> std::result::Result<usize, &'static str> {
    human_units::size::parse(text).ok_or("must be a size such as 64KiB or 64MiB")
}

/// A text for a terminal: without control characters. Texts of errors and of logs come from
/// elsewhere.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Reads stdin, up to `max` bytes.
pub(super) fn read_all(max: usize) -> Result<Vec<u8>> {
    read_within(std::io::stdin().lock(), max)
}

/// The same of a reader that reads stdin.
pub(super) fn read_within(stdin: impl Read, max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    match stdin.take(limit).read_to_end(&mut bytes) {
        Ok(len) if len > max => {
            Err(Failure::refused(format!("stdin has more than {max} bytes (--max-size)")))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(Failure::refused(format!("can't read stdin: {error}"))),
    }
}

/// The largest file with a token, certificates or a key in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Reads a small file or a pipe. One that never ends is refused at the limit.
pub(super) fn read_file(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let len = File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)? as u64;
    if len > MAX_FILE {
        return Err(std::io::Error::other(format!("the file has more than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// Fails if stdout is closed, because the result would be lost.
///
/// Rust's runtime replaces a closed stream by /dev/null, opened for reading and writing, before any
/// code here runs. A shell that discards output with `> /dev/null` opens it only for writing.
pub(super) fn require_stdout() -> Result {
    let stdout = std::io::stdout();
    let (Ok(found), Ok(flags)) = (fstat(&stdout), fcntl_getfl(&stdout)) else {
        return Err(Failure::refused("stdout is closed: the output would be lost"));
    };
    let is_null = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
        && (major(found.st_rdev), minor(found.st_rdev)) == (1, 3);
    if is_null && flags & OFlags::RWMODE == OFlags::RDWR {
        let message = "stdout is closed: the output would be lost; `> /dev/null` discards it";
        return Err(Failure::refused(message));
    }
    Ok(())
}

/// Writes all of `data` to stdout.
pub(super) fn print(data: &[u8]) -> Result {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(data).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        // A reader such as `head` may stop early.
        ErrorKind::BrokenPipe => Failure::Silent,
        _ => Failure::refused(format!("can't write to stdout: {error}")),
    })
}

/// Writes a message to stderr.
pub(super) fn eprint(message: &str) {
    // Without stderr the message is lost.
    _ = writeln!(std::io::stderr(), "kms-proxy: {message}");
}
