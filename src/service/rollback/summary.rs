//! Summarizes the repairs after a rollback of the store in one log line.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Monotonic;

/// The summary is logged when no further chain was repaired for this long.
const SETTLED: Duration = Duration::from_secs(5);

/// The repairs after a rollback that are not logged yet.
#[derive(Default)]
pub(in crate::service) struct Summary(Mutex<Option<Done>>);

struct Done {
    chains: u32,
    retired: u32,
    restored: u32,
    last: Monotonic,
}

impl Summary {
    pub(super) fn add(&self, retired: u32, restored: u32, now: Monotonic) {
        let mut done = self.0.lock();
        let before = done.take();
        let before = before.map_or((0, 0, 0), |it| (it.chains, it.retired, it.restored));
        *done = Some(Done {
            chains: before.0 + 1,
            retired: before.1 + retired,
            restored: before.2 + restored,
            last: now,
        });
    }

    /// Logs the summary, if the repairs are over.
    pub(in crate::service) fn report(&self, now: Monotonic) {
        let mut done = self.0.lock();
        let is_over = |done: &Done| now.since(done.last) >= SETTLED;
        if !done.as_ref().is_some_and(is_over) {
            return;
        }
        if let Some(Done { chains, retired, restored, .. }) = done.take() {
            tracing::error!(
                chains,
                retired,
                restored,
                "the store went back to an earlier state: an old copy was restored. Primary and \
                 standby KEKs of the copy are retired, and KEKs that it lacked and this process \
                 held are restored. Values under KEKs that no process held answer unknown_kek: \
                 kms-proxy kek missing"
            );
        }
    }
}
