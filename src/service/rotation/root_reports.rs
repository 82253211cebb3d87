//! What a process knows of the reports by which processes say that they have a root configured. A
//! report counts until [`COUNTS_FOR`] after this process first saw it. No wall clock can shorten
//! that time. It calls no store and no root; [`root_users`](super::root_users) does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::status::Replica;
use crate::store::record::{self, Record as _, RootUser};
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
    /// Each of these reports by its key.
    seen: HashMap<String, Seen>,
}

/// A report of another process.
struct Seen {
    revision: Revision,
    /// When this process first saw it.
    at: Monotonic,
    /// Whether the root has another key there, or the report is damaged.
    differs: bool,
}

impl Seen {
    fn new(entry: &Entry, at: Monotonic) -> Self {
        let differs = match RootUser::decode(&entry.key, &entry.value) {
            Ok(user) => user.differs,
            Err(_) => true,
        };
        Self { revision: entry.revision, at, differs }
    }

    fn counts(&self, now: Monotonic) -> bool {
        now.since(self.at) < COUNTS_FOR
    }
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
        let seen = self.seen.entry(entry.key.clone()).or_insert_with(|| Seen::new(entry, now));
        if seen.revision != entry.revision {
            *seen = Seen::new(entry, now);
        }
        seen.counts(now)
    }

    /// Forgets the reports that are not among those that were just read, unless a rollback of the
    /// store may have removed them.
    pub(super) fn keep<'a>(&mut self, read: impl Iterator<Item = &'a str>, now: Monotonic) {
        if self.unsettled(now).is_none() {
            let keys: HashSet<_> = read.collect();
            self.seen.retain(|key, _| keys.contains(&**key));
        }
    }

    /// The other processes whose reports count, as they were last read.
    pub(in crate::service) fn replicas(&self, own: u64, now: Monotonic) -> Vec<Replica> {
        let mut replicas = BTreeMap::<u64, Replica>::new();
        for (key, seen) in self.seen.iter().filter(|(_, seen)| seen.counts(now)) {
            let Some((root, owner)) = record::root_user(key).filter(|(_, it)| *it != own) else {
                continue;
            };
            let ago = now.since(seen.at).as_secs();
            let replica = replicas.entry(owner).or_insert_with(|| Replica {
                id: format!("{owner:016x}"),
                reported_seconds_ago: ago,
                ..Replica::default()
            });
            replica.reported_seconds_ago = replica.reported_seconds_ago.min(ago);
            replica.roots.push(root.to_owned());
            if seen.differs {
                replica.differing.push(root.to_owned());
            }
        }
        let mut replicas: Vec<_> = replicas.into_values().collect();
        for replica in &mut replicas {
            replica.roots.sort();
            replica.differing.sort();
        }
        replicas
    }

    /// The reports that count, each as the process and its root, without roots that have another
    /// key there: of `read`, which was just read, and of those that a rollback of the store may
    /// have removed.
    pub(super) fn counting(&mut self, read: &[Entry], now: Monotonic) -> Vec<(u64, String)> {
        for entry in read {
            self.counts(entry, now);
        }
        let is_unsettled = self.unsettled(now).is_some();
        let is_read = |key: &str| read.iter().any(|entry| entry.key == key);
        let counts = |(key, seen): &(&String, &Seen)| {
            seen.counts(now) && !seen.differs && (is_unsettled || is_read(key))
        };
        let of = |(key, _): (&String, &Seen)| {
            let (root, owner) = record::root_user(key)?;
            Some((owner, root.to_owned()))
        };
        self.seen.iter().filter(counts).filter_map(of).collect()
    }
}
