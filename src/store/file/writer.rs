//! The one thread that writes. It commits all queued transactions together, so that a thousand
//! concurrent transactions share one wait for the disk.

use std::cell::Cell;
use std::sync::Arc;
use std::thread::JoinHandle;

use redb::{ReadableTable, Table};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::store::{Committed, Compare, Error, Revision, Txn};

use super::database::Database;
use super::layout::{self, RECORDS, STATE};
use super::{PATIENCE, corrupt, unavailable};

/// The largest number of transactions in the queue, and in one commit.
const QUEUE: usize = 1024;

/// A handle of the thread.
pub(super) struct Writer {
    /// `None` while it is dropped.
    queue: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    txn: Txn,
    answer: oneshot::Sender<Result<Committed, Error>>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(database: Arc<Database>) -> Result<Self, String> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || run(&database, jobs))
            .map_err(|error| format!("can't start a thread: {error}"))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Commits `txn` together with other queued transactions.
    pub(super) async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        let (answer, answered) = oneshot::channel();
        let Some(queue) = &self.queue else { return Err(ended(false)) };
        match timeout(PATIENCE, queue.send(Job { txn, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(ended(false)),
            Err(_) => return Err(late(false)),
        }
        match timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ended(true)),
            Err(_) => Err(late(true)),
        }
    }
}

impl Drop for Writer {
    /// Waits until the queue is committed.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches panics, so the result carries no information.
            let _ = thread.join();
        }
    }
}

fn ended(maybe_applied: bool) -> Error {
    unavailable("its writer has ended".to_owned(), maybe_applied)
}

fn late(maybe_applied: bool) -> Error {
    unavailable(super::slow(), maybe_applied)
}

fn run(database: &Database, mut jobs: mpsc::Receiver<Job>) {
    let mut batch = Vec::with_capacity(QUEUE);
    while jobs.blocking_recv_many(&mut batch, QUEUE) > 0 {
        // Nothing was applied for callers that are gone by now.
        batch.retain(|job: &Job| !job.answer.is_closed());
        let committing = Cell::new(false);
        let committed = database
            .check_in_place()
            .and_then(|()| database.with(|database| commit(database, &batch, &committing)));
        match committed {
            Ok(answers) => {
                for (job, answer) in batch.drain(..).zip(answers) {
                    // A caller that is gone treats it as possibly applied.
                    let _ = job.answer.send(answer);
                }
            }
            Err(detail) => {
                for job in batch.drain(..) {
                    let _ = job.answer.send(Err(unavailable(detail.clone(), committing.get())));
                }
            }
        }
    }
}

/// Applies the batch, one transaction after the other, and makes it durable. Sets `committing` as
/// soon as the batch may have been applied.
fn commit(
    database: &redb::Database,
    batch: &[Job],
    committing: &Cell<bool>,
) -> Result<Vec<Result<Committed, Error>>, redb::Error> {
    let mut write = database.begin_write()?;
    // This is redb's default, but correctness depends on it.
    write.set_durability(redb::Durability::Immediate).map_err(redb::Error::from)?;
    // With one phase, redb can't distinguish damage in the newest pages from a commit that a crash
    // interrupted, and silently goes back by one commit: uses would be reserved twice.
    write.set_two_phase_commit(true);
    let mut answers = Vec::with_capacity(batch.len());
    let written = {
        let mut records = write.open_table(RECORDS)?;
        let mut state = write.open_table(STATE)?;
        let before = layout::read_state(&state)?.map_err(redb::Error::Corrupted)?;
        let mut revision = before;
        for job in batch {
            answers.push(apply(&mut records, &mut revision, &job.txn)?);
        }
        if revision != before {
            state.insert((), &*layout::write_state(revision))?;
        }
        revision != before
    };
    if written {
        committing.set(true);
        write.commit()?;
    } else {
        write.abort()?;
    }
    Ok(answers)
}

fn apply(
    records: &mut Table<'_, &'static str, &'static [u8]>,
    revision: &mut Revision,
    txn: &Txn,
) -> Result<Result<Committed, Error>, redb::Error> {
    for compare in &txn.compares {
        match holds(records, compare)? {
            Ok(true) => {}
            Ok(false) => return Ok(Ok(Committed::Conflict)),
            Err(error) => return Ok(Err(error)),
        }
    }
    *revision = Revision(revision.0 + 1);
    for key in &txn.deletes {
        records.remove(&**key)?;
    }
    for (key, value) in &txn.puts {
        records.insert(&**key, &*layout::write_record(key, *revision, value))?;
    }
    Ok(Ok(Committed::Applied(*revision)))
}

fn holds(
    records: &Table<'_, &'static str, &'static [u8]>,
    compare: &Compare,
) -> Result<Result<bool, Error>, redb::Error> {
    Ok(match compare {
        Compare::Absent(key) => Ok(records.get(&**key)?.is_none()),
        Compare::Unchanged(key, revision) => match records.get(&**key)? {
            None => Ok(false),
            Some(stored) => match layout::read_record(key, stored.value()) {
                Ok((current, _)) => Ok(current == *revision),
                Err(_) => Err(corrupt(key)),
            },
        },
    })
}
