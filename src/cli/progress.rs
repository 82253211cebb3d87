//! Progress of a long command: shown often on a terminal, otherwise only if it takes long.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::stdio::eprint;

/// When progress was last shown.
pub(super) struct Progress {
    pause: Duration,
    shown: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let seconds = if std::io::stderr().is_terminal() { 1 } else { 10 };
        Self { pause: Duration::from_secs(seconds), shown: Instant::now() }
    }

    /// Shows `message`, if it is time to.
    pub(super) fn show(&mut self, message: impl FnOnce() -> String) {
        if self.shown.elapsed() >= self.pause {
            self.shown = Instant::now();
            eprint(&message());
        }
    }
}
