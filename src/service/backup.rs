//! A backup of the store of a running service, a part at a time.
//!
//! It knows no HTTP. `store::backup` owns the format.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::Instrument as _;

use crate::metrics::Operation;
use crate::store::backup::{Stream, WriteError};

use super::KeyService;
use super::core::Core;
use super::error::{Error, Kind};

/// Backups that may be in progress concurrently.
pub(super) const CONCURRENT: usize = 2;

/// How long a part may wait until the client has read the one before.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// A backup that is in progress. It ends with [`Part::End`] if it is complete, and without it if it
/// failed.
pub struct HotBackup {
    parts: mpsc::Receiver<Part>,
}

/// What a [`HotBackup`] consists of.
pub enum Part {
    /// The next bytes.
    Bytes(Vec<u8>),
    /// The backup is complete.
    End,
}

impl HotBackup {
    /// Polls for the next part; `None` if the backup failed, which the log reports.
    pub fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Part>> {
        self.parts.poll_recv(context)
    }
}

impl KeyService {
    /// Starts a backup of all chains. The parts are read while they are sent, so memory is bounded.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if nothing is stored, [`Kind::Overloaded`] if too many are in progress,
    /// [`Kind::StoreUnavailable`].
    pub async fn backup(&self) -> Result<HotBackup, Error> {
        let begun = self.begin_backup().await;
        begun.map_err(|error| self.count(Operation::Manage, "", None, error))
    }

    async fn begin_backup(&self) -> Result<HotBackup, Error> {
        let core = &self.core;
        core.needs_store("there is nothing to back up")?;
        let permit = Arc::clone(&core.backups).try_acquire_owned().map_err(|_| {
            Error::new(Kind::Overloaded, format!("{CONCURRENT} backups are in progress"))
        })?;
        let (sender, parts) = mpsc::channel(1);
        let (started, start) = tokio::sync::oneshot::channel();
        let core = Arc::clone(core);
        // If the request ends, the channel closes, and so does the task.
        tokio::spawn(async move { run(&core, started, sender, permit).await }.in_current_span());
        match start.await {
            Ok(Ok(())) => Ok(HotBackup { parts }),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(Error::internal(&error)),
        }
    }
}

/// Reads the store and sends the parts. The first read decides whether the backup starts.
async fn run(
    core: &Core,
    started: tokio::sync::oneshot::Sender<Result<(), Error>>,
    parts: mpsc::Sender<Part>,
    _permit: OwnedSemaphorePermit,
) {
    let now = core.clock.unix_now();
    let mut stream = match Stream::begin(&*core.store, &[], now).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "a backup could not be started");
            let error = Error::new(Kind::StoreUnavailable, "the store is unavailable");
            _ = started.send(Err(error));
            return;
        }
    };
    _ = started.send(Ok(()));
    if let Err(why) = send_all(&mut stream, &parts).await {
        tracing::warn!(why, "a backup was not completed");
        return;
    }
    let report = stream.report();
    for problem in &report.problems {
        tracing::error!(
            key = problem.key,
            detail = problem.detail,
            "a damaged record is not in \
            the backup"
        );
    }
    let (chains, records, left_out) = (report.chains, report.added, report.problems.len());
    if send(&parts, Part::End).await.is_ok() {
        tracing::info!(chains, records, left_out, "a backup was sent");
    }
}

async fn send_all(stream: &mut Stream<'_>, parts: &mpsc::Sender<Part>) -> Result<(), String> {
    loop {
        match stream.next().await {
            Ok(Some(part)) => send(parts, Part::Bytes(part)).await?,
            Ok(None) => return Ok(()),
            Err(WriteError::Store(error)) => return Err(error.to_string()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Waits until the part before was taken.
async fn send(parts: &mpsc::Sender<Part>, part: Part) -> Result<(), String> {
    match tokio::time::timeout(TAKEN_WITHIN, parts.send(part)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("the client closed the connection".to_owned()),
        Err(_) => Err("the client does not read the response".to_owned()),
    }
}

/// Limits concurrent backups.
pub(super) fn permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONCURRENT))
}
