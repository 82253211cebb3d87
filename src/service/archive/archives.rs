//! What this process knows of each archive: the records that it holds, those that it still has to
//! get, and its last failure. It calls no archive, no store and no root.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::archive::object::{self, Wraps};
use crate::archive::settings::Policy;
use crate::archive::{self, Archive};
use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};
use crate::metrics::Metrics;
use crate::service::limits::rate_limiter::RateLimiter;
use crate::service::types::{Check, Health};
use crate::status::{self, Failure};
use crate::store::record::{Kek, State};
use crate::timestamp::rfc3339;

/// A record that can't be archived for a reason of its own is tried again after this time.
const STUCK_FOR: Duration = Duration::from_secs(60);
/// Damaged objects that are remembered.
const MAX_DAMAGED: usize = 100;
/// Rate limit, per chain, on look-ups of KEKs that no archive has: a burst, then one per interval.
const MISSES: u32 = 100;
const MISSES_EVERY: Duration = Duration::from_secs(1);

/// The archives of a service, in the order of the configuration.
pub(in crate::service) struct Archives {
    list: Vec<Arc<One>>,
    policy: Policy,
    /// The look-ups of each chain that found nothing.
    misses: Mutex<HashMap<ChainName, Arc<RateLimiter>>>,
}

/// One archive.
pub(in crate::service) struct One {
    pub(in crate::service) name: Arc<str>,
    pub(in crate::service) archive: Arc<dyn Archive>,
    /// Wakes its task.
    pub(super) wake: Notify,
    state: Mutex<Known>,
    metrics: Arc<Metrics>,
}

/// What is archived: the settings of a chain, or a KEK. The settings come first.
pub(in crate::service) type Item = (ChainName, Option<KekId>);

#[derive(Default)]
struct Known {
    chains: HashMap<ChainName, OfChain>,
    /// What the archive lacks, or has in an older state.
    due: BTreeMap<Item, Due>,
    /// What the archive has, and this process has not compared yet.
    unchecked: BTreeMap<Item, Due>,
    /// Counts the entries of `due`, so that a record that changes again while it is archived stays.
    entries: u64,
    last_error: Option<LastError>,
    /// Objects that were damaged when they were last read: at most [`MAX_DAMAGED`].
    damaged: BTreeSet<String>,
    /// Whether the store was compared with the archive completely.
    is_compared: bool,
    /// Why the key of the audit log is not archived.
    audit_key: Option<String>,
    wants_sweep: bool,
}

#[derive(Default)]
struct OfChain {
    has_settings: bool,
    keks: HashMap<KekId, Kept>,
}

/// What an archive has of a KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// An object that this process has not read.
    Listed,
    /// A record that opens as the stored one does, of which this is the [`mark`].
    Held(u64),
    /// A tombstone.
    Tombstone,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) wraps: Wraps,
    entry: u64,
    /// A promotion waits for it.
    is_urgent: bool,
    /// It failed for a reason of its own: when it is tried again.
    stuck_until: Option<Monotonic>,
}

struct LastError {
    detail: String,
    /// Unix time in seconds.
    since: u64,
}

/// A number that changes with everything of a KEK that is archived.
pub(super) fn mark(kek: &Kek) -> u64 {
    let live = !matches!(kek.state, State::Disabled | State::Destroyed);
    let mut hasher = DefaultHasher::new();
    (live, kek.state == State::Destroyed, kek.disabled_at, kek.exposed).hash(&mut hasher);
    for wrap in &kek.wraps {
        (&wrap.root, &wrap.bytes).hash(&mut hasher);
    }
    hasher.finish()
}

impl Archives {
    pub(in crate::service) fn new(
        archives: Vec<archive::Named>,
        policy: Policy,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let one = |archive::Named { name, archive }: archive::Named| {
            metrics.archives.up.with_label_values(&[&*name]).set(1);
            metrics.archives.pending.with_label_values(&[&*name]).set(0);
            let (state, wake) = Default::default();
            Arc::new(One { name, archive, wake, state, metrics: Arc::clone(metrics) })
        };
        Self { list: archives.into_iter().map(one).collect(), policy, misses: Mutex::default() }
    }

    pub(in crate::service) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(in crate::service) fn policy(&self) -> Policy {
        self.policy
    }

    pub(in crate::service) fn iter(&self) -> impl Iterator<Item = &Arc<One>> {
        self.list.iter()
    }

    /// Notes that a record has changed, or may have: it is compared with every archive.
    pub(in crate::service) fn want(&self, chain: &ChainName, id: Option<KekId>, wraps: Wraps) {
        for one in &self.list {
            one.want((chain.clone(), id), wraps, false);
        }
    }

    /// Notes that the promotion of a standby waits for the archives that do not hold it.
    pub(in crate::service) fn want_first(&self, chain: &ChainName, id: KekId) {
        for one in self.list.iter().filter(|one| !one.holds(chain, id)) {
            one.want((chain.clone(), None), Wraps::Join, true);
            one.want((chain.clone(), Some(id)), Wraps::Join, true);
        }
    }

    /// Has every archive compared with the store again.
    pub(in crate::service) fn sweep_soon(&self) {
        for one in &self.list {
            one.known().wants_sweep = true;
            one.wake.notify_one();
        }
    }

    /// Takes a look-up of a KEK of `chain` that the archives may not have; returns the limiter, to
    /// give it back if they have it.
    pub(super) fn misses(&self, chain: &ChainName) -> Arc<RateLimiter> {
        let full = || Arc::new(RateLimiter::new(MISSES, MISSES_EVERY));
        Arc::clone(self.misses.lock().entry(chain.clone()).or_insert_with(full))
    }

    /// Sets the gauges.
    pub(in crate::service) fn report(&self) {
        for one in &self.list {
            let pending = i64::try_from(one.known().due.len()).unwrap_or(i64::MAX);
            one.metrics.archives.pending.with_label_values(&[&*one.name]).set(pending);
        }
    }

    /// The checks of readiness.
    pub(in crate::service) fn checks(&self) -> impl Iterator<Item = Check> {
        self.list.iter().map(|one| one.check())
    }
}

impl One {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.state.lock()
    }

    pub(super) fn want(&self, item: Item, wraps: Wraps, is_urgent: bool) {
        let known = &mut *self.known();
        known.entries += 1;
        let new = Due { wraps, entry: known.entries, is_urgent, stuck_until: None };
        let due = known.due.entry(item).or_insert(new);
        // A promotion that waits asks again each second: that changes nothing.
        if due.entry != new.entry && !is_urgent {
            due.entry = new.entry;
            due.stuck_until = None;
        }
        due.is_urgent |= is_urgent;
        if wraps == Wraps::Replace {
            due.wraps = wraps;
        }
        self.wake.notify_one();
    }

    /// Whether the archive holds a KEK with a wrap of the stored record, and its chain's settings.
    pub(super) fn holds(&self, chain: &ChainName, id: KekId) -> bool {
        let known = self.known();
        let Some(of_chain) = known.chains.get(chain) else { return false };
        of_chain.has_settings && matches!(of_chain.keks.get(&id), Some(Kept::Held(_)))
    }

    /// The same for a record that is due.
    pub(super) fn holds_item(&self, (chain, id): &Item) -> bool {
        id.map_or_else(|| self.has_settings(chain), |id| self.holds(chain, id))
    }

    /// Whether the archive is known to have an object of a KEK.
    pub(super) fn lists(&self, chain: &ChainName, id: KekId) -> bool {
        self.known().chains.get(chain).is_some_and(|of_chain| of_chain.keks.contains_key(&id))
    }

    /// Whether the archive is known to hold this state of a KEK.
    pub(super) fn has(&self, chain: &ChainName, id: KekId, kek: &Kek) -> bool {
        let known = self.known();
        match known.chains.get(chain).and_then(|of_chain| of_chain.keks.get(&id)) {
            Some(Kept::Held(held)) => *held == mark(kek),
            Some(Kept::Tombstone) => kek.state == State::Destroyed,
            Some(Kept::Listed) | None => false,
        }
    }

    /// Notes that the archive holds what `kek`, a stored record, says.
    pub(super) fn note_kek(&self, chain: &ChainName, id: KekId, kek: &Kek) {
        let kept = match kek.state {
            State::Destroyed => Kept::Tombstone,
            _ => Kept::Held(mark(kek)),
        };
        self.known().chains.entry(chain.clone()).or_default().keks.insert(id, kept);
    }

    pub(super) fn note_settings(&self, chain: &ChainName) {
        self.known().chains.entry(chain.clone()).or_default().has_settings = true;
    }

    /// Notes all objects of a chain, as they were listed since `before`.
    pub(super) fn note_listed(
        &self,
        chain: &ChainName,
        before: &HashSet<KekId>,
        listed: &HashSet<KekId>,
        has_settings: bool,
    ) {
        let known = &mut *self.known();
        let of_chain = known.chains.entry(chain.clone()).or_default();
        of_chain.has_settings &= has_settings;
        // What was archived during the listing may be missing in it.
        of_chain.keks.retain(|id, _| listed.contains(id) || !before.contains(id));
        for &id in listed {
            of_chain.keks.entry(id).or_insert(Kept::Listed);
        }
    }

    /// The KEKs of a chain that the archive is known to have.
    pub(super) fn keks(&self, chain: &ChainName) -> HashSet<KekId> {
        let known = self.known();
        known.chains.get(chain).into_iter().flat_map(|it| it.keks.keys().copied()).collect()
    }

    pub(super) fn has_settings(&self, chain: &ChainName) -> bool {
        self.known().chains.get(chain).is_some_and(|of_chain| of_chain.has_settings)
    }

    /// Notes that the archive has a record which was not compared yet.
    pub(super) fn want_check(&self, item: Item) {
        let known = &mut *self.known();
        if !known.due.contains_key(&item) {
            let (wraps, entry) = (Wraps::Join, 0);
            let due = Due { wraps, entry, is_urgent: false, stuck_until: None };
            known.unchecked.insert(item, due);
        }
    }

    /// At most `most` records to archive or to compare now: those that a promotion waits for come
    /// first. They remain due until [`done`](Self::done).
    pub(super) fn next(&self, most: usize, now: Monotonic) -> Vec<(Item, Due)> {
        let known = self.known();
        let ready = |(_, due): &(&Item, &Due)| due.stuck_until.is_none_or(|until| now >= until);
        let urgent = known.due.iter().filter(|(_, due)| due.is_urgent);
        let others = known.due.iter().filter(|(_, due)| !due.is_urgent);
        let all = urgent.chain(others).chain(&known.unchecked).filter(ready);
        all.take(most).map(|(item, due)| (item.clone(), *due)).collect()
    }

    /// Notes that a record is archived.
    pub(super) fn done(&self, item: &Item, done: Due) {
        let known = &mut *self.known();
        known.unchecked.remove(item);
        if known.due.get(item).is_some_and(|due| due.entry == done.entry) {
            known.due.remove(item);
        }
    }

    /// Notes that a record can't be archived, for a reason that other records do not have.
    pub(super) fn note_stuck(&self, item: Item, now: Monotonic) {
        let known = &mut *self.known();
        let checked = known.unchecked.remove(&item);
        known.entries += 1;
        let entry = known.entries;
        let due = known.due.entry(item);
        let due = due.or_insert(Due {
            wraps: checked.map_or(Wraps::Join, |due| due.wraps),
            entry,
            is_urgent: false,
            stuck_until: None,
        });
        due.stuck_until = Some(now + STUCK_FOR);
    }

    /// Whether the last attempt to archive a KEK, or its chain's settings, failed.
    pub(super) fn fails(&self, chain: &ChainName, id: KekId) -> bool {
        let known = self.known();
        let is_stuck = |id| {
            let due = known.due.get(&(chain.clone(), id));
            due.is_some_and(|due| due.stuck_until.is_some())
        };
        known.last_error.is_some() || is_stuck(None) || is_stuck(Some(id))
    }

    /// Notes the result of a call.
    pub(super) fn note<T>(&self, result: &Result<T, archive::Error>, unix_now: u64) {
        let known = &mut *self.known();
        match result {
            Ok(_) => {
                if known.last_error.take().is_some() {
                    tracing::info!(archive = %self.name, "the archive is available again");
                    known.wants_sweep = true;
                }
                self.metrics.archives.up.with_label_values(&[&*self.name]).set(1);
            }
            Err(error) => {
                if known.last_error.is_none() {
                    tracing::error!(archive = %self.name, %error, "an archive fails");
                    let detail = error.to_string();
                    known.last_error = Some(LastError { detail, since: unix_now });
                }
                self.metrics.archives.up.with_label_values(&[&*self.name]).set(0);
            }
        }
    }

    /// Notes that an object is damaged, or whole again.
    pub(super) fn note_damaged(&self, key: &str, is_damaged: bool) {
        let damaged = &mut self.known().damaged;
        if !is_damaged {
            damaged.remove(key);
        } else if damaged.len() < MAX_DAMAGED {
            damaged.insert(key.to_owned());
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.known().last_error.is_none()
    }

    /// Why the archive fails.
    pub(super) fn last_error(&self) -> Option<String> {
        self.known().last_error.as_ref().map(|error| error.detail.clone())
    }

    /// Whether a comparison of the store with the archive was requested; clears the request.
    pub(super) fn take_sweep(&self) -> bool {
        std::mem::take(&mut self.known().wants_sweep)
    }

    pub(super) fn note_compared(&self) {
        self.known().is_compared = true;
    }

    /// Notes that the key of the audit log is archived, or why not.
    pub(super) fn note_audit_key(&self, detail: Option<String>) {
        let known = &mut *self.known();
        if let Some(detail) = detail.as_ref().filter(|_| known.audit_key != detail) {
            let archive = &self.name;
            tracing::error!(%archive, detail, "the key of the audit log can't be archived");
        }
        known.audit_key = detail;
    }

    /// What its status shows.
    pub(in crate::service) fn status(&self) -> status::Archive {
        let known = self.known();
        let state = match &known.last_error {
            Some(_) => "away",
            None if !known.is_compared => "not_compared",
            None if !known.due.is_empty() || known.audit_key.is_some() => "behind",
            None => "ok",
        };
        let since = known.last_error.as_ref().map(|error| rfc3339(error.since));
        status::Archive {
            name: self.name.to_string(),
            state: state.to_owned(),
            pending: known.due.len() as u64,
            last_error: known.last_error.as_ref().map(|error| Failure {
                detail: error.detail.clone(),
                since: rfc3339(error.since),
                until: None,
            }),
            since,
        }
    }

    fn check(&self) -> Check {
        let known = self.known();
        let mut details = Vec::new();
        if let Some(LastError { detail, since }) = &known.last_error {
            details.push(format!("{detail} since {}", rfc3339(*since)));
        } else if !known.is_compared {
            details.push("it has not been compared with the store yet".to_owned());
        }
        if !known.due.is_empty() {
            details.push(format!("{} records are not archived yet", known.due.len()));
        }
        if let Some(detail) = &known.audit_key {
            details.push(format!("the key of the audit log is not archived: {detail}"));
        }
        let stuck = known.due.iter().find(|(_, due)| due.stuck_until.is_some());
        if let Some(((chain, id), _)) = stuck {
            let key = id.map_or(object::chain_key(chain), |id| object::kek_key(chain, id));
            details.push(format!("one of them can't be archived: see the log for {key}"));
        }
        if let Some(key) = known.damaged.first() {
            details.push(format!("the object {key} is damaged: restore an earlier version of it"));
        }
        Check {
            name: format!("archive:{}", self.name),
            health: if details.is_empty() { Health::Ok } else { Health::Degraded },
            detail: (!details.is_empty()).then(|| details.join("; ")),
        }
    }
}
