//! Progress of a long command: shown often on a terminal, else only when it takes long.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::stdio::tell;

/// When it was last told how far a command is.
pub(super) struct Progress {
    pause: Duration,
    told: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let seconds = if std::io::stderr().is_terminal() { 1 } else { 10 };
        Self { pause: Duration::from_secs(seconds), told: Instant::now() }
    }

    /// Tells what `message` makes, if it is time to.
    pub(super) fn tell(&mut self, message: impl FnOnce() -> String) {
        if self.told.elapsed() >= self.pause {
            self.told = Instant::now();
            tell(&message());
        }
    }
}
