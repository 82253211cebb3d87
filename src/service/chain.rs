//! One chain in a running service: the snapshot that requests use, and what its background tasks
//! share. Requests read the snapshot and wait here when its budget is empty.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Notify;

use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};
use crate::keychain::{KekPlacement, KeyChain};
use crate::metrics::ChainMetrics;
use crate::store::record::NamedRoot;

use super::disabled::Disabled;
use super::error::{Error, Kind};
use super::ledger::Staleness;
use super::rotation::reservations::Reservations;
use super::rotation::retry::RetryAt;

mod waiters;

use waiters::Waiters;

/// A chain.
pub(super) struct Chain {
    pub(super) name: ChainName,
    pub(super) metrics: ChainMetrics,
    /// What requests use. Never ahead of the store.
    snapshot: ArcSwap<KeyChain>,
    /// The records, and how fast uses are spent; held for store calls, never for a root's.
    pub(super) reservations: tokio::sync::Mutex<Reservations>,
    /// Whether the records changed since they were read.
    pub(super) staleness: Arc<Staleness>,
    /// Held by whoever makes the next KEK.
    pub(super) rotator: tokio::sync::Mutex<RetryAt>,
    /// Somebody wanted uses since the start.
    pub(super) was_wanted: AtomicBool,
    /// It is `default`, or the configuration names it: it is ready before somebody wants it.
    pub(super) is_named: AtomicBool,
    /// It is deleted: its tasks end.
    pub(super) is_deleted: AtomicBool,
    /// What is wrong with the clock of this machine or of another one.
    pub(super) clock_fault: ArcSwapOption<String>,
    /// Somebody wants uses.
    pub(super) need_uses: Notify,
    /// Somebody wants a KEK to be made or opened.
    pub(super) need_kek: Notify,
    /// Uses left at which the next block is asked for.
    pub(super) low_water: AtomicU64,
    /// The requests that wait for uses.
    waiters: Waiters,
    /// Why the rotator's last try failed.
    pub(super) root_failure: ArcSwapOption<Error>,
    /// How many of the primary and the standby each root has no wrap of, in the order of the roots.
    pub(super) missing_wraps: ArcSwap<Vec<i64>>,
    /// When rotations by hand were made lately; held by the one that is under way.
    pub(super) by_hand: tokio::sync::Mutex<Vec<Monotonic>>,
    /// Whether what its keys are called must be known.
    pub(super) wants_name: AtomicBool,
    /// What they are called, as of the newest set of roots.
    pub(super) named_root: ArcSwapOption<NamedRoot>,
    /// KEKs whose stored state is in doubt, and until when that must be read again; held by
    /// whoever changes the state of a KEK.
    pub(super) doubts: tokio::sync::Mutex<HashMap<KekId, Monotonic>>,
    /// Since when this process has seen KEKs disabled.
    pub(super) disabled: Disabled,
}

impl Chain {
    pub(super) fn new(name: ChainName, metrics: ChainMetrics, reservations: Reservations) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(KeyChain::empty(name.clone())),
            name,
            metrics,
            staleness: reservations.ledger.staleness(),
            reservations: tokio::sync::Mutex::new(reservations),
            rotator: tokio::sync::Mutex::default(),
            was_wanted: false.into(),
            is_named: false.into(),
            is_deleted: false.into(),
            clock_fault: ArcSwapOption::empty(),
            need_uses: Notify::new(),
            need_kek: Notify::new(),
            low_water: AtomicU64::new(0),
            waiters: Waiters::default(),
            root_failure: ArcSwapOption::empty(),
            missing_wraps: ArcSwap::default(),
            by_hand: tokio::sync::Mutex::default(),
            wants_name: AtomicBool::new(false),
            named_root: ArcSwapOption::empty(),
            doubts: tokio::sync::Mutex::default(),
            disabled: Disabled::default(),
        }
    }

    /// The chain as it is now.
    pub(super) fn snapshot(&self) -> Arc<KeyChain> {
        self.snapshot.load_full()
    }

    /// Puts a changed snapshot in the place of the current one. What changes is stored by then.
    pub(super) fn publish(&self, change: impl Fn(&mut KeyChain)) {
        self.snapshot.rcu(|current| {
            let mut next = KeyChain::clone(current);
            change(&mut next);
            next
        });
    }

    /// Asks for the next block when few uses are left.
    pub(super) fn watch_level(&self, snapshot: &KeyChain, now: Monotonic) {
        let left = snapshot.budget().map_or(0, |budget| budget.left(now));
        if left <= self.low_water.load(Ordering::Relaxed) {
            self.need_uses.notify_one();
        }
    }

    /// Waits for uses to come; then it is worth another try.
    ///
    /// # Errors
    /// When none will come soon, when too many wait already, or when `patience` ends.
    pub(super) async fn wait_for_uses(&self, patience: Duration, most: usize) -> Result<(), Error> {
        let waiter = self.waiters.enter(most)?;
        self.was_wanted.store(true, Ordering::Relaxed);
        self.need_uses.notify_one();
        if waiter.turn(patience).await {
            return Ok(());
        }
        Err(self.trouble().unwrap_or_else(|| match self.reservations.try_lock() {
            Ok(_) => Error::exhausted("no use of the KEK came in time"),
            // It is held for calls of the store alone.
            Err(_) => Error::new(Kind::StoreUnavailable, "the store does not answer in time"),
        }))
    }

    /// Whether its first KEK is worth a call of the root. One that ends with the process is not before
    /// it is used.
    pub(super) fn is_wanted(&self, placement: KekPlacement) -> bool {
        self.was_wanted.load(Ordering::Relaxed)
            || placement == KekPlacement::Stored
                && (self.is_named.load(Ordering::Relaxed)
                    || self.wants_name.load(Ordering::Relaxed))
    }

    /// Why no uses come, if that is known.
    pub(super) fn trouble(&self) -> Option<Error> {
        self.waiters.trouble()
    }

    /// The number of completed reservation attempts: an error from before a request arrived is no
    /// answer to it.
    pub(super) fn rounds(&self) -> u64 {
        self.waiters.rounds()
    }

    /// Notes why no uses come, or that they do.
    pub(super) fn set_trouble(&self, trouble: Option<Error>) {
        self.waiters.set_trouble(trouble);
    }

    /// How many requests wait for uses.
    pub(super) fn waiting(&self) -> u64 {
        self.waiters.waiting()
    }

    /// Lets as many waiting requests try as there are uses; all of them when an error is known.
    pub(super) fn wake(&self, uses: u64) {
        self.waiters.wake(uses);
    }
}
