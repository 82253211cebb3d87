//! The progress of a stream, in one line that is updated on a terminal, and nowhere else.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The pause between two updates.
const PAUSE: Duration = Duration::from_millis(200);

/// Counts bytes. What it has shown disappears when it is dropped.
pub(super) struct Meter {
    total: Option<u64>,
    done: u64,
    begun: Instant,
    /// Not set: stderr is not a terminal.
    shown: Option<Instant>,
    is_visible: bool,
}

impl Meter {
    /// A meter of `total` bytes, if that is known.
    pub(super) fn new(total: Option<u64>) -> Self {
        let begun = Instant::now();
        let shown = std::io::stderr().is_terminal().then_some(begun);
        Self { total, done: 0, begun, shown, is_visible: false }
    }

    /// Counts `bytes` more.
    pub(super) fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        let Some(shown) = &mut self.shown else { return };
        let now = Instant::now();
        if now - *shown < PAUSE {
            return;
        }
        *shown = now;
        self.is_visible = true;
        let line = line(self.done, self.total, now - self.begun);
        // To the end of the line: the last text may be longer.
        _ = write!(std::io::stderr(), "\r{line}\x1b[K");
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.is_visible {
            _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// `1.5 GiB of 10.0 GiB (15 %), 1.2 GiB/s, 7s left`.
fn line(done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let speed = done as f64 / elapsed.as_secs_f64().max(1e-3);
    let mut line = size(done as f64);
    let total = total.filter(|total| *total >= done && *total > 0);
    if let Some(total) = total {
        let percent = u128::from(done) * 100 / u128::from(total);
        _ = write!(line, " of {} ({percent} %)", size(total as f64));
    }
    _ = write!(line, ", {}/s", size(speed));
    if let Some(total) = total
        && speed >= 1.0
    {
        let left = Duration::from_secs(((total - done) as f64 / speed) as u64);
        _ = write!(line, ", {} left", humantime::format_duration(left));
    }
    line
}

fn size(bytes: f64) -> String {
    let mut bytes = bytes;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if bytes < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{bytes:.digits$} {unit}");
        }
        bytes /= 1024.0;
    }
    format!("{bytes:.1} PiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_bytes_speed_and_percent() {
        let second = Duration::from_secs(1);
        for (done, total, elapsed, expected) in [
            (0, Some(0), second, "0 B, 0 B/s"),
            (1 << 30, Some(10 << 30), second, "1.0 GiB of 10.0 GiB (10 %), 1.0 GiB/s, 9s left"),
            (3 << 29, None, 2 * second, "1.5 GiB, 768.0 MiB/s"),
            // A file that grows while it is read.
            (2048, Some(1024), second, "2.0 KiB, 2.0 KiB/s"),
            (1 << 52, Some(1 << 52), second, "4.0 PiB of 4.0 PiB (100 %), 4.0 PiB/s, 0s left"),
        ] {
            assert_eq!(line(done, total, elapsed), expected);
        }
    }
}
