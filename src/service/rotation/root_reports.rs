//! What a process knows of the reports by which processes say that they have a root configured. A
//! report counts until [`COUNTS_FOR`] after this process first saw it. No wall clock can shorten
//! that time. It calls no store and no root; [`root_users`](super::root_users) does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::store::{Entry, Revision};

/// How long a report counts that is not repeated.
const COUNTS_FOR: Duration = Duration::from_secs(15 * 60);

/// How long processes may need to report again after the store went back to an earlier state: each
/// checks once a minute whether its reports are stored.
const SETTLED_AFTER: Duration = Duration::from_secs(2 * 60);

/// What this process reported, and what it read of the others.
#[derive(Default)]
pub(in crate::service) struct Reports {
    /// When the reports of this process were last stored.
    pub(super) stored: Option<Monotonic>,
    /// The roots of this process that have another key.
    pub(super) differing: BTreeSet<Arc<str>>,
    /// When this process last found that the store went back to an earlier state.
    rolled_back: Option<Monotonic>,
    /// How often the store itself had noticed that.
    restores: u64,
    /// When the reports of other processes were last read.
    pub(super) read: Option<Monotonic>,
    /// Each of these reports by its key, with the time at which this process first saw it.
    seen: HashMap<String, (Revision, Monotonic)>,
}

impl Reports {
    /// The store went back to an earlier state: this process reports again.
    pub(super) fn rolled_back(&mut self, now: Monotonic) {
        self.stored = None;
        self.rolled_back = Some(now);
    }

    /// The store noticed so many rollbacks so far.
    pub(super) fn store_went_back(&mut self, restores: u64, now: Monotonic) {
        if restores != self.restores {
            self.restores = restores;
            self.rolled_back(now);
        }
    }

    /// How long other processes may need to report again after a rollback of the store.
    pub(super) fn unsettled(&self, now: Monotonic) -> Option<Duration> {
        let since = now.since(self.rolled_back?);
        SETTLED_AFTER.checked_sub(since).filter(|left| !left.is_zero())
    }

    /// Whether a report that was just read still counts.
    pub(super) fn counts(&mut self, entry: &Entry, now: Monotonic) -> bool {
        let seen = self.seen.entry(entry.key.clone()).or_insert((entry.revision, now));
        if seen.0 != entry.revision {
            *seen = (entry.revision, now);
        }
        now.since(seen.1) < COUNTS_FOR
    }

    /// Forgets the reports that are not among those that were just read.
    pub(super) fn keep<'a>(&mut self, read: impl Iterator<Item = &'a str>) {
        let keys: HashSet<_> = read.collect();
        self.seen.retain(|key, _| keys.contains(&**key));
    }
}
