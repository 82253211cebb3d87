//! The three streams: data in, data out, messages for people.

use std::io::{ErrorKind, Read, Write};

use super::{Failure, Result};

/// All of stdin.
pub(super) fn read_all() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match std::io::stdin().lock().read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Failure::refused(format!("can't read stdin: {error}"))),
    }
}

/// Writes data to stdout, whole.
pub(super) fn print(data: &[u8]) -> Result {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(data).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        // A reader such as `head` has seen enough; that is nothing to complain about.
        ErrorKind::BrokenPipe => Failure::Silent,
        _ => Failure::refused(format!("can't write to stdout: {error}")),
    })
}

/// Writes a message to stderr.
pub(super) fn tell(message: &str) {
    // Where there is no stderr there is nobody to tell.
    _ = writeln!(std::io::stderr(), "kms-proxy: {message}");
}
