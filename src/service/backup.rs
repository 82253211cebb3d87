//! A backup of the store of a running service, a part at a time, and when the last one was made.
//!
//! It knows no HTTP. `store::backup` owns the format.
//!
//! What it may cost: each process makes one backup at a time, reads a page of the store only after
//! the client has taken the one before, and charges each start to the client's quota of look-ups.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::Instrument as _;

use crate::metrics::Operation;
use crate::store::backup::{self, Stream};
use crate::timestamp::rfc3339;

use super::KeyService;
use super::core::Core;
use super::error::{Error, Kind};
use super::limits::lookup_quota;
use super::types::{Check, Health};

/// Backups that may be in progress concurrently.
const CONCURRENT: usize = 1;

/// How long a part may wait until the client has taken the one before.
pub(super) const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// How long a whole backup may take: a client that reads slowly must not hold up the others.
pub(super) const DEADLINE: Duration = Duration::from_secs(60 * 60);

/// A backup that is in progress. It ends with [`Part::End`] if it is complete, and without it if it
/// failed.
pub struct HotBackup {
    parts: mpsc::Receiver<Part>,
    /// Told when the end was taken.
    taken: Option<oneshot::Sender<()>>,
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
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Part>> {
        let part = ready!(self.parts.poll_recv(context));
        if matches!(part, Some(Part::End))
            && let Some(taken) = self.taken.take()
        {
            // Without a receiver the deadline has passed.
            _ = taken.send(());
        }
        Poll::Ready(part)
    }
}

impl KeyService {
    /// Starts a backup of all chains. A part is read when the one before was taken, so memory is
    /// bounded. Dropping the result ends the reading.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if nothing is stored, [`Kind::Overloaded`] if another one is in progress,
    /// or the caller used up their quota, [`Kind::StoreUnavailable`].
    pub async fn backup(&self) -> Result<HotBackup, Error> {
        let begun = self.begin_backup().await;
        begun.map_err(|error| self.count(Operation::Manage, "", None, error))
    }

    async fn begin_backup(&self) -> Result<HotBackup, Error> {
        let core = Arc::clone(&self.core);
        core.needs_store("there is nothing to back up")?;
        lookup_quota::charge(core.clock.now())?;
        let permit = Arc::clone(&core.backups).try_acquire_owned();
        let permit = permit.map_err(|_| {
            Error::new(Kind::Overloaded, "another backup is in progress in this process")
        })?;
        let (sender, parts) = mpsc::channel(1);
        let (started, start) = oneshot::channel();
        let (taken, end) = oneshot::channel();
        let reader = Reader { core, parts: sender, end };
        // If the request ends, the channel closes, and so does the task.
        tokio::spawn(reader.run(started, permit).in_current_span());
        match start.await {
            Ok(Ok(())) => Ok(HotBackup { parts, taken: Some(taken) }),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(Error::internal(&error)),
        }
    }
}

/// The task that reads the store.
struct Reader {
    core: Arc<Core>,
    parts: mpsc::Sender<Part>,
    end: oneshot::Receiver<()>,
}

impl Reader {
    /// Reads the store and sends the parts. The first read decides whether the backup starts.
    async fn run(
        mut self,
        started: oneshot::Sender<Result<(), Error>>,
        _permit: OwnedSemaphorePermit,
    ) {
        let core = Arc::clone(&self.core);
        let began_at = core.clock.unix_now();
        let mut stream = match Stream::begin(&*core.store, &[], began_at).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a backup could not be started");
                let error = Error::new(Kind::StoreUnavailable, "the store is unavailable");
                _ = started.send(Err(error));
                return;
            }
        };
        _ = started.send(Ok(()));
        let mut stop = core.stopping.subscribe();
        let sent = tokio::select! {
            biased;
            _ = stop.wait_for(|&stopping| stopping) => Err("the service is stopping".to_owned()),
            sent = tokio::time::timeout(DEADLINE, self.send_all(&mut stream)) => {
                sent.unwrap_or_else(|_| Err(format!("it took longer than {DEADLINE:?}")))
            }
        };
        if let Err(why) = sent {
            tracing::warn!(why, "a backup was not completed");
            return;
        }
        let report = stream.report();
        for problem in &report.problems {
            let (key, detail) = (&problem.key, &problem.detail);
            tracing::error!(key, detail, "a damaged record is not in the backup");
        }
        let (chains, records, left_out) = (report.chains, report.added, report.problems.len());
        tracing::info!(chains, records, left_out, "a backup was sent");
        if left_out == 0 {
            core.note_backup(began_at).await;
        }
    }

    async fn send_all(&mut self, stream: &mut Stream<'_>) -> Result<(), String> {
        while let Some(part) = stream.next().await.map_err(|error| error.to_string())? {
            self.send(Part::Bytes(part)).await?;
        }
        self.send(Part::End).await?;
        match tokio::time::timeout(TAKEN_WITHIN, &mut self.end).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("the client closed the connection".to_owned()),
            Err(_) => Err("the client does not read the response".to_owned()),
        }
    }

    /// Waits until the part before was taken.
    async fn send(&self, part: Part) -> Result<(), String> {
        match tokio::time::timeout(TAKEN_WITHIN, self.parts.send(part)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("the client closed the connection".to_owned()),
            Err(_) => Err("the client does not read the response".to_owned()),
        }
    }
}

impl Core {
    /// Records that a complete backup began at `began_at`. It is complete even if that fails.
    async fn note_backup(&self, began_at: u64) {
        match backup::note(&*self.store, began_at).await {
            Ok(()) => self.last_backup.store(began_at, Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(%error, "the time of a backup could not be stored");
            }
        }
    }

    /// Reads when the last backup was made: by this process, another one, or a command.
    pub(super) async fn read_last_backup(&self) {
        match backup::last(&*self.store).await {
            Ok(at) => self.last_backup.store(at.unwrap_or_default(), Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "the time of the last backup can't be read"),
        }
    }

    /// When the last backup began, in seconds since the Unix epoch; 0 if none is recorded.
    pub(super) fn last_backup(&self) -> u64 {
        self.last_backup.load(Ordering::Relaxed)
    }

    /// The line of readiness about the last backup, if one was ever made.
    pub(super) fn backup_check(&self) -> Option<Check> {
        let at = self.last_backup();
        (at > 0).then(|| Check {
            name: "backup".to_owned(),
            health: Health::Ok,
            detail: Some(format!("the last one is of {}", rfc3339(at))),
        })
    }
}

/// Limits concurrent backups.
pub(super) fn permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONCURRENT))
}
