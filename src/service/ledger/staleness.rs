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

    /// Returns whether the records are out of date, and clears the mark.
    pub(super) fn take_outdated(&self) -> bool {
        self.outdated.swap(false, Ordering::Relaxed)
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
