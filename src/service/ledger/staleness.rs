//! What a process hears of a chain's records between two reads of the ledger.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::store::record::Head;
use crate::store::records::{Versioned, decode};
use crate::store::{Entry, Revision};

/// What is heard of a chain's records between two reads; it is asked without the ledger's lock.
#[derive(Default)]
pub(in crate::service) struct Staleness {
    /// The newest revision that the ledger knows of.
    newest: AtomicU64,
    /// The mark of the head that the ledger knows.
    head: AtomicU64,
    outdated: AtomicBool,
}

impl Staleness {
    /// A record was written at `revision`. True when that is news.
    pub(in crate::service) fn written(&self, revision: Revision) -> bool {
        let news = revision.0 > self.newest.load(Ordering::Relaxed);
        if news {
            self.outdate();
        }
        news
    }

    /// This head was read, or none. True when that is news.
    pub(in crate::service) fn head_is(&self, head: Option<&Entry>) -> bool {
        let mark = head.and_then(|head| Some(mark(&decode(head).ok()?)));
        let news = mark != Some(self.head.load(Ordering::Relaxed));
        if news {
            self.outdate();
        }
        news
    }

    /// What the ledger knows must be read again.
    pub(in crate::service) fn outdate(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }

    /// Whether it must, and that it is being done.
    pub(super) fn take_outdated(&self) -> bool {
        self.outdated.swap(false, Ordering::Relaxed)
    }

    /// The ledger knows this head, and no revision after `newest`.
    pub(super) fn know(&self, head: &Versioned<Head>, newest: Revision) {
        self.newest.store(newest.0, Ordering::Relaxed);
        self.head.store(mark(head), Ordering::Relaxed);
    }
}

/// A number that tells heads apart. Where an old copy of the store was restored, the numbers of
/// revisions come again: then two heads may share one.
fn mark(Versioned { record, revision }: &Versioned<Head>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (revision, record.generation, record.primary, record.standby).hash(&mut hasher);
    hasher.finish()
}
