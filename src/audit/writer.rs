//! The thread that writes: it numbers lines, hands them to the sink, lets the calls continue, and
//! adds lines to the tree and checkpoints to the log.
//!
//! It is the only part that touches the sink, so a disk that hangs holds up no request.

use std::io::BufRead as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::config::Sync;
use super::format;
use super::line::{self, Before};
use super::queue::{Missing, Work};
use super::sealer::{MAX_UNSEALED, Sealer, rfc3339_millis};
use super::sink::{Failed, Sink};
use super::system::System;
use super::{Audit, queue};

/// How often the writer does what no call waits for: counts, checkpoints, a look at the file.
const TICK: Duration = Duration::from_secs(1);
/// The pause between two attempts to write to a sink that failed.
const RETRY: Duration = Duration::from_millis(500);
/// How often a failure is logged, and a checkpoint.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What the thread owns.
pub(super) struct Writer {
    audit: Arc<Audit>,
    sink: Box<dyn Sink>,
    sealer: Sealer,
    sync: Sync,
    stopping: Arc<AtomicBool>,
    /// Whole lines, as they are written, and where each ends.
    out: Vec<u8>,
    ends: Vec<usize>,
    /// The sink failed: nothing is written until it is opened again.
    failed: bool,
    ticked: Instant,
    synced: Instant,
    is_dirty: bool,
    logged: Option<Instant>,
    checkpoint_logged: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        audit: Arc<Audit>,
        sink: Box<dyn Sink>,
        sealer: Sealer,
        sync: Sync,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        Self {
            audit,
            sink,
            sealer,
            sync,
            stopping,
            out: Vec::new(),
            ends: Vec::new(),
            failed: false,
            ticked: now,
            synced: now,
            is_dirty: false,
            logged: None,
            checkpoint_logged: None,
        }
    }

    /// Writes the opening line: the first one of the process.
    pub(super) fn begin(&mut self) -> std::io::Result<()> {
        self.open().map_err(|failed| failed.error)
    }

    /// Marks the sink as failed, so that the thread opens it.
    pub(super) fn begin_failed(&mut self, why: &std::io::Error) {
        let work = self.audit.queue.take(Vec::new(), Duration::ZERO);
        self.fail(&work.batch, 0, why);
    }

    /// Writes until the process ends.
    pub(super) fn run(mut self) {
        let mut spare = Vec::new();
        loop {
            let wait = if self.failed { RETRY } else { self.wait() };
            let Work { mut lines, count, batch, orders } = self.audit.queue.take(spare, wait);
            let is_last = orders.stop;
            if self.failed {
                // No line was taken meanwhile.
                match self.recover() {
                    Ok(()) => self.done(&batch),
                    Err(failed) => {
                        self.audit.queue.rest();
                        self.log_failure(&failed.error);
                    }
                }
            } else {
                let is_due = self.ticked.elapsed() >= TICK || is_last;
                let written = self.step(&mut lines, count, &batch, orders.reopen, is_due);
                match written {
                    Ok(()) => self.done(&batch),
                    Err((missing, error)) => self.fail(&batch, missing, &error),
                }
            }
            if is_last {
                self.finish();
                return;
            }
            spare = lines;
        }
    }

    /// How long the writer may wait for lines.
    fn wait(&self) -> Duration {
        let tick = TICK.saturating_sub(self.ticked.elapsed());
        match self.sync {
            Sync::Every(every) if self.is_dirty => {
                tick.min(every.saturating_sub(self.synced.elapsed()))
            }
            _ => tick,
        }
    }

    /// Writes `count` lines, and what is due. On an error: how many lines were not written.
    fn step(
        &mut self,
        lines: &mut Vec<u8>,
        mut count: u64,
        batch: &queue::Batch,
        reopen: bool,
        is_due: bool,
    ) -> Result<(), (u64, std::io::Error)> {
        if (reopen || is_due) && self.sink.is_stale() {
            // The old file ends with a checkpoint, if it takes one.
            if self.sealer.unsealed() > 0 {
                _ = self.checkpoint();
            }
            let opened = self.sink.reopen().map_err(|error| Failed { accepted: 0, error });
            opened.and_then(|()| self.open()).map_err(|failed| (count, failed.error))?;
            tracing::info!("the audit log was opened again");
        }
        if is_due {
            let (counted, more) = self.audit.counted_lines();
            lines.extend_from_slice(&counted);
            count += more;
            self.ticked = Instant::now();
        }
        self.write(lines, count, batch)?;
        let is_overdue = is_due && self.sealer.unsealed() > 0;
        if is_overdue {
            self.checkpoint().map_err(|failed| (0, failed.error))?;
        }
        self.sync_if_due().map_err(|error| (0, error))?;
        if self.sink.is_full() {
            self.rotate().map_err(|failed| (0, failed.error))?;
        }
        Ok(())
    }

    /// Writes lines in pieces, with a checkpoint after each piece of the longest length.
    fn write(
        &mut self,
        lines: &[u8],
        count: u64,
        batch: &queue::Batch,
    ) -> Result<(), (u64, std::io::Error)> {
        let mut left = count;
        let mut rest = lines;
        while left > 0 {
            let most = MAX_UNSEALED.saturating_sub(self.sealer.unsealed()).max(1);
            self.out.clear();
            let piece = left.min(most);
            self.ends.clear();
            for seq in self.sealer.size()..self.sealer.size() + piece {
                begin_line(&mut self.out, seq);
                self.out.extend_from_slice(next_line(&mut rest));
                self.ends.push(self.out.len());
            }
            let written = self.hand_over();
            if written.is_ok() && piece == left {
                // No call waits for the tree.
                self.audit.queue.release(batch);
            }
            let accepted = self.seal(written.as_ref().err());
            self.audit.queue.wrote(accepted);
            if let Err(failed) = written {
                return Err((left - accepted, failed.error));
            }
            left -= piece;
            if self.sealer.unsealed() >= MAX_UNSEALED {
                self.checkpoint().map_err(|failed| (left, failed.error))?;
            }
        }
        Ok(())
    }

    /// Adds the lines of `out` that the sink has to the tree; returns how many.
    fn seal(&mut self, failed: Option<&Failed>) -> u64 {
        let accepted = failed.map_or(self.out.len(), |failed| failed.accepted);
        let (mut start, mut count) = (0, 0);
        for &end in self.ends.iter().take_while(|&&end| end <= accepted) {
            let line = self.out.get(start..end).unwrap_or_default();
            self.sealer.append(line.strip_suffix(b"\n").unwrap_or(line));
            (start, count) = (end, count + 1);
        }
        count
    }

    /// Gives `out` to the sink, and to the disk if each line must be there.
    fn hand_over(&mut self) -> Result<(), Failed> {
        self.sink.write(&self.out)?;
        self.is_dirty = true;
        if self.sync == Sync::Each {
            // The bytes are in the file, so they stay part of the log.
            self.sink.sync().map_err(|error| Failed { accepted: self.out.len(), error })?;
            self.is_dirty = false;
        }
        Ok(())
    }

    /// Writes one line that the sealer made, and that it has added to the tree.
    fn write_proof(&mut self, line: &[u8]) -> Result<(), Failed> {
        self.out.clear();
        self.out.extend_from_slice(line);
        self.out.push(b'\n');
        self.hand_over()
    }

    fn checkpoint(&mut self) -> Result<(), Failed> {
        let line = self.sealer.checkpoint(self.now());
        let written = self.write_proof(&line);
        if self.checkpoint_logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            self.log_checkpoint();
        }
        written
    }

    /// A checkpoint that is kept elsewhere shows whether the end of the log was cut off.
    fn log_checkpoint(&mut self) {
        self.checkpoint_logged = Some(Instant::now());
        if let Some(signed) = self.sealer.last() {
            tracing::info!(checkpoint = %signed, "the audit log up to here is proved");
        }
    }

    /// Writes the opening line of a file or a connection.
    fn open(&mut self) -> Result<(), Failed> {
        let failed = |error| Failed { accepted: 0, error };
        let (before, is_cut) = self.sink.before().map_err(failed)?;
        let is_other = self.is_of_another_key(&before);
        if is_cut {
            tracing::warn!("the audit log ended in the middle of a line");
            self.sink.write(b"\n")?;
        }
        let line = self.sealer.opening(before, self.now());
        self.write_proof(&line)?;
        if is_other {
            let key = self.sealer.public_key();
            tracing::warn!(%key, "the audit log continues a file that another key has signed: the \
                key in the store was lost or replaced, and AADs of the lines before are not found \
                with this one");
        }
        Ok(())
    }

    /// Whether another key signed the last checkpoint that a file contains.
    fn is_of_another_key(&self, before: &Before) -> bool {
        let Before::Log(end) = before else { return false };
        let key = self.sealer.public_key();
        end.signed.as_ref().is_some_and(|signed| !signed.is_signed_by(&key))
    }

    fn rotate(&mut self) -> Result<(), Failed> {
        if self.sealer.unsealed() > 0 {
            self.checkpoint()?;
        }
        self.sync_now().map_err(|error| Failed { accepted: 0, error })?;
        let time = rfc3339_millis(self.now());
        self.sink.rotate(&time).map_err(|error| Failed { accepted: 0, error })?;
        self.log_checkpoint();
        self.open()
    }

    fn sync_if_due(&mut self) -> std::io::Result<()> {
        match self.sync {
            Sync::Every(every) if self.is_dirty && self.synced.elapsed() >= every => {
                self.sync_now()
            }
            _ => Ok(()),
        }
    }

    fn sync_now(&mut self) -> std::io::Result<()> {
        if self.sync != Sync::None && self.is_dirty {
            self.sink.sync()?;
            self.is_dirty = false;
        }
        self.synced = Instant::now();
        Ok(())
    }

    /// Tries a sink that failed again. The first line that it takes is an opening.
    fn recover(&mut self) -> Result<(), Failed> {
        self.sink.reopen().map_err(|error| Failed { accepted: 0, error })?;
        self.open()
    }

    /// The sink has everything. Lines that are missing are reported now.
    fn done(&mut self, batch: &queue::Batch) {
        self.failed = false;
        let Some(missing) = self.audit.queue.done(batch) else { return };
        self.logged = None;
        let line = self.audit.system_line(&System {
            outcome: "audit_unavailable",
            ..System::new(
                "lines_missing",
                &[("lost", &missing.lost), ("refused", &missing.refused)],
            )
        });
        if let Err((_, error)) = self.write(&line, 1, &queue::Batch::default()) {
            self.report_later(missing);
            self.fail(&queue::Batch::default(), 0, &error);
        }
    }

    fn report_later(&self, missing: Missing) {
        self.audit.queue.still_missing(missing);
    }

    fn fail(&mut self, batch: &queue::Batch, missing: u64, error: &std::io::Error) {
        self.failed = true;
        self.audit.queue.fail(batch, missing, error.to_string());
        self.log_failure(error);
    }

    /// Logs a failure, once a minute while it lasts.
    fn log_failure(&mut self, error: &std::io::Error) {
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            self.logged = Some(Instant::now());
            let refuses = self.audit.queue.refuses();
            tracing::error!(%error, refuses, "the audit log can't be written");
        }
    }

    /// The last lines of the process.
    fn finish(&mut self) {
        if !self.failed {
            if self.sealer.unsealed() > 0 {
                _ = self.checkpoint();
            }
            _ = self.sync_now();
            self.log_checkpoint();
        }
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.audit.clock.unix_millis())
    }
}

/// Takes the first line of `rest`, with its newline.
fn next_line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let all = *rest;
    // The standard library searches faster than an iterator. A slice can be read.
    let len = rest.skip_until(b'\n').unwrap_or_default();
    all.get(..len).unwrap_or_default()
}

/// Writes how each line begins.
fn begin_line(out: &mut Vec<u8>, seq: u64) {
    out.extend_from_slice(BEGINNING);
    format::decimal(out, seq);
    out.push(b',');
}

const BEGINNING: &[u8] = b"{\"v\":1,\"seq\":";
const _: () = assert!(line::VERSION == 1, "BEGINNING names it");
