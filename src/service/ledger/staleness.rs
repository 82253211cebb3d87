//! Whether a chain's records have changed since the ledger read them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::store::record::Head;
use crate::store::records::{Versioned, decode};
use crate::store::{Entry, Revision};

/// Whether the records of the ledger are out of date. Usable without the ledger's lock.
#[derive(Default)]
pub(in crate::service) struct Staleness {
    /// The newest revision that the ledger has read or written.
    newest: AtomicU64,
    /// The mark of the ledger's head.
    head: AtomicU64,
    outdated: AtomicBool,
    /// Whether other processes have reserved uses, and nothing else that is new is known.
    counter: AtomicBool,
}

impl Staleness {
    /// Reports that a record was written at `revision`. Returns whether that is new to the ledger.
    pub(in crate::service) fn written(&self, revision: Revision) -> bool {
        let is_new = revision.0 > self.newest.load(Ordering::Relaxed);
        if is_new {
            self.outdate();
        }
        is_new
    }

    /// Reports that uses were reserved at `revision`. The records are read again before this
    /// process reserves uses, or after a while: with many processes, each write of a counter
    /// would otherwise cause a read by every process.
    pub(in crate::service) fn counted(&self, revision: Revision) {
        if revision.0 > self.newest.load(Ordering::Relaxed) {
            self.counter.store(true, Ordering::Relaxed);
        }
    }

    /// Reports the stored head, if there is one. Returns whether it differs from the ledger's.
    pub(in crate::service) fn head_is(&self, head: Option<&Entry>) -> bool {
        let mark = head.and_then(|head| Some(mark(&decode(head).ok()?)));
        let is_new = mark != Some(self.head.load(Ordering::Relaxed));
        if is_new {
            self.outdate();
        }
        is_new
    }

    /// Marks the ledger's records as out of date.
    pub(in crate::service) fn outdate(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }

    /// Returns whether the records are out of date, and clears the mark. Counters count only if
    /// `with_counters`.
    pub(super) fn take_outdated(&self, with_counters: bool) -> bool {
        let is_outdated = self.outdated.swap(false, Ordering::Relaxed);
        let is_counted =
            (with_counters || is_outdated) && self.counter.swap(false, Ordering::Relaxed);
        is_outdated || is_counted
    }

    /// Sets the ledger's head and its newest revision.
    pub(super) fn know(&self, head: &Versioned<Head>, newest: Revision) {
        self.newest.store(newest.0, Ordering::Relaxed);
        self.head.store(mark(head), Ordering::Relaxed);
    }
}

/// A number that distinguishes heads. The revision alone is not enough: after an old copy of the
/// store was restored, revisions repeat.
fn mark(Versioned { record, revision }: &Versioned<Head>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (revision, record.generation, record.primary, record.standby).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_who_asks_for_them_and_with_everything_else() {
        let staleness = Staleness::default();
        staleness.counted(Revision(7));
        assert!(!staleness.take_outdated(false));
        assert!(staleness.take_outdated(true));
        assert!(!staleness.take_outdated(true));
        staleness.counted(Revision(8));
        assert!(staleness.written(Revision(9)));
        assert!(staleness.take_outdated(false));
        assert!(!staleness.take_outdated(true), "one read was of both");
    }
}
