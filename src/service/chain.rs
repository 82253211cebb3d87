//! One chain of a running service: the snapshot that requests use, the requests that wait for uses,
//! and the state that the chain's tasks share. It calls no store and no root.

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

pub(super) mod facts;
mod waiters;

use facts::Published;
use waiters::Waiters;

/// A chain.
pub(super) struct Chain {
    pub(super) name: ChainName,
    pub(super) metrics: ChainMetrics,
    /// What requests use. It never contains a change that is not stored.
    snapshot: ArcSwap<KeyChain>,
    /// The records, and how fast uses are spent. Locked during store calls, never during root
    /// calls.
    pub(super) reservations: tokio::sync::Mutex<Reservations>,
    /// Whether the records have changed since they were read.
    pub(super) staleness: Arc<Staleness>,
    /// Locked by the task that creates the next KEK.
    pub(super) rotator: tokio::sync::Mutex<RetryAt>,
    /// Whether a request has needed uses since the start.
    pub(super) was_wanted: AtomicBool,
    /// Whether it is `default` or named by the configuration. Then it has a primary before the
    /// first request.
    pub(super) is_named: AtomicBool,
    /// Whether it is deleted. Then its tasks end.
    pub(super) is_deleted: AtomicBool,
    /// Why the clock of this machine, or of another one, must be wrong.
    pub(super) clock_fault: ArcSwapOption<String>,
    /// Wakes the reserver.
    pub(super) need_uses: Notify,
    /// Wakes the rotator.
    pub(super) need_kek: Notify,
    /// The number of uses left at which the next block is reserved.
    pub(super) low_water: AtomicU64,
    /// The requests that wait for uses.
    waiters: Waiters,
    /// Why the rotator's last attempt failed.
    pub(super) root_failure: ArcSwapOption<Error>,
    /// How many wraps each root lacks of the primary and the standby, in the order of the roots.
    pub(super) missing_wraps: ArcSwap<Vec<i64>>,
    /// The times of recent manual rotations; locked while one is in progress.
    pub(super) by_hand: tokio::sync::Mutex<Vec<Monotonic>>,
    /// Whether a client needs the key id.
    pub(super) wants_name: AtomicBool,
    /// What the key id is derived from, as of the newest set of roots.
    pub(super) named_root: ArcSwapOption<NamedRoot>,
    /// KEKs whose stored state is in doubt, and until when it must be read again. Locked while the
    /// state of a KEK is changed.
    pub(super) doubts: tokio::sync::Mutex<HashMap<KekId, Monotonic>>,
    /// When this process first saw each disabled KEK.
    pub(super) disabled: Disabled,
    /// What its status shows.
    pub(super) published: Published,
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
            published: Published::default(),
        }
    }

    /// The current snapshot.
    pub(super) fn snapshot(&self) -> Arc<KeyChain> {
        self.snapshot.load_full()
    }

    /// Replaces the snapshot by a changed one. The change must be stored already.
    pub(super) fn publish(&self, change: impl Fn(&mut KeyChain)) {
        self.snapshot.rcu(|current| {
            let mut next = KeyChain::clone(current);
            change(&mut next);
            next
        });
    }

    /// Wakes the reserver if few uses are left.
    pub(super) fn watch_level(&self, snapshot: &KeyChain, now: Monotonic) {
        let left = snapshot.budget().map_or(0, |budget| budget.left(now));
        if left <= self.low_water.load(Ordering::Relaxed) {
            self.need_uses.notify_one();
        }
    }

    /// Waits until the request should try again to take a use.
    ///
    /// # Errors
    /// When no uses will be available soon, when too many requests wait, or after `patience`.
    pub(super) async fn wait_for_uses(&self, patience: Duration, most: usize) -> Result<(), Error> {
        let waiter = self.waiters.enter(most)?;
        self.was_wanted.store(true, Ordering::Relaxed);
        self.need_uses.notify_one();
        if waiter.turn(patience).await {
            return Ok(());
        }
        Err(self.last_error().unwrap_or_else(|| match self.reservations.try_lock() {
            Ok(_) => Error::exhausted("no use of the KEK became available in time"),
            // It is locked during store calls only.
            Err(_) => Error::new(Kind::StoreUnavailable, "the store did not respond in time"),
        }))
    }

    /// Whether to create its first KEK. With inline KEKs, that waits for the first request.
    pub(super) fn is_wanted(&self, placement: KekPlacement) -> bool {
        self.was_wanted.load(Ordering::Relaxed)
            || placement == KekPlacement::Stored
                && (self.is_named.load(Ordering::Relaxed)
                    || self.wants_name.load(Ordering::Relaxed))
    }

    /// Why no uses can be reserved, if that is known.
    pub(super) fn last_error(&self) -> Option<Error> {
        self.waiters.last_error()
    }

    /// The number of completed reservation attempts. An error of an attempt before a request
    /// arrived does not concern it.
    pub(super) fn rounds(&self) -> u64 {
        self.waiters.rounds()
    }

    /// Notes the result of a reservation attempt.
    pub(super) fn set_last_error(&self, error: Option<Error>) {
        self.waiters.set_last_error(error);
    }

    /// How many requests wait for uses.
    pub(super) fn waiting(&self) -> u64 {
        self.waiters.waiting()
    }

    /// Wakes as many waiting requests as there are uses, or all of them to return an error.
    pub(super) fn wake(&self, uses: u64) {
        self.waiters.wake(uses);
    }
}
