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

/// What this process reported, and what it read of the others.
#[derive(Default)]
pub(in crate::service) struct Reports {
    /// When the reports of this process were last stored.
    pub(super) stored: Option<Monotonic>,
    /// The roots of this process that have another key.
    pub(super) differing: BTreeSet<Arc<str>>,
    /// When the reports of other processes were last read.
    pub(super) read: Option<Monotonic>,
    /// Each of these reports by its key, with the time at which this process first saw it.
    seen: HashMap<String, (Revision, Monotonic)>,
}

impl Reports {
    /// Whether a report that was just read still counts.
    pub(super) fn counts(&mut self, entry: &Entry, now: Monotonic) -> bool {
        let seen = self.seen.entry(entry.key.clone()).or_insert((entry.revision, now));
        if seen.0 != entry.revision {
            *seen = (entry.revision, now);
        }
        now.since(seen.1) < COUNTS_FOR
    }

    /// Forgets the reports that are not among those that were just read.
    pub(super) fn keep(&mut self, read: &[Entry]) {
        let keys: HashSet<_> = read.iter().map(|entry| &*entry.key).collect();
        self.seen.retain(|key, _| keys.contains(&**key));
    }
}
