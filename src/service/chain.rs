//! One chain in a running service: the snapshot that requests use, and what its background tasks
//! share. Requests read the snapshot and wait here when its budget is empty.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, Semaphore};

use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};
use crate::keychain::{Form, KeyChain};
use crate::metrics::ChainMetrics;
use crate::store::record::NamedRoot;

use super::error::{Error, Kind};
use super::ledger::Tidings;
use super::reserver::Reserver;
use super::rotator::RetryAt;
use super::states::Disabled;

/// A chain.
pub(super) struct Chain {
    pub(super) name: ChainName,
    pub(super) metrics: ChainMetrics,
    /// What requests use. Never ahead of the store.
    snapshot: ArcSwap<KeyChain>,
    /// The records, and how fast uses are spent; held for store calls, never for a root's.
    pub(super) reserver: tokio::sync::Mutex<Reserver>,
    /// What is heard of the records meanwhile.
    pub(super) tidings: Arc<Tidings>,
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
    /// Why no uses come, when that is known.
    trouble: ArcSwapOption<Error>,
    /// How often it was found out whether there is trouble.
    rounds: AtomicU64,
    /// Why the rotator's last try failed.
    pub(super) root_failure: ArcSwapOption<Error>,
    /// How many of the primary and the standby each root has no wrap of, in the order of the roots.
    pub(super) missing_wraps: ArcSwap<Vec<i64>>,
    /// A fair queue for the requests that wait: one permit, one try.
    turns: Semaphore,
    waiting: AtomicU64,
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
    pub(super) fn new(name: ChainName, metrics: ChainMetrics, reserver: Reserver) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(KeyChain::empty(name.clone())),
            name,
            metrics,
            tidings: reserver.ledger.tidings(),
            reserver: tokio::sync::Mutex::new(reserver),
            rotator: tokio::sync::Mutex::default(),
            was_wanted: false.into(),
            is_named: false.into(),
            is_deleted: false.into(),
            clock_fault: ArcSwapOption::empty(),
            need_uses: Notify::new(),
            need_kek: Notify::new(),
            low_water: AtomicU64::new(0),
            trouble: ArcSwapOption::empty(),
            rounds: AtomicU64::new(0),
            root_failure: ArcSwapOption::empty(),
            missing_wraps: ArcSwap::default(),
            turns: Semaphore::new(0),
            waiting: AtomicU64::new(0),
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
        let _place = Place::take(self, most)?;
        self.was_wanted.store(true, Ordering::Relaxed);
        self.need_uses.notify_one();
        let Ok(Ok(turn)) = tokio::time::timeout(patience, self.turns.acquire()).await else {
            return Err(self.trouble().unwrap_or_else(|| match self.reserver.try_lock() {
                Ok(_) => exhausted("no use of the KEK came in time"),
                // It is held for calls of the store alone.
                Err(_) => Error::new(Kind::StoreUnavailable, "the store does not answer in time"),
            }));
        };
        turn.forget();
        Ok(())
    }

    /// Whether its first KEK is worth a call of the root. One that ends with the process is not before
    /// it is used.
    pub(super) fn is_wanted(&self, form: Form) -> bool {
        self.was_wanted.load(Ordering::Relaxed)
            || form == Form::Stored
                && (self.is_named.load(Ordering::Relaxed)
                    || self.wants_name.load(Ordering::Relaxed))
    }

    /// Why no uses come, if that is known.
    pub(super) fn trouble(&self) -> Option<Error> {
        self.trouble.load().as_deref().cloned()
    }

    /// How often it was found out whether there is trouble: what is known from before a request
    /// came is no answer to it.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Acquire)
    }

    /// Notes why no uses come, or that they do.
    pub(super) fn set_trouble(&self, trouble: Option<Error>) {
        self.trouble.store(trouble.map(Arc::new));
        self.rounds.fetch_add(1, Ordering::Release);
    }

    /// How many requests wait for uses.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lets as many waiting requests try as there are uses; all of them when there is trouble to
    /// tell of.
    pub(super) fn wake(&self, uses: u64) {
        let wanted =
            if self.trouble().is_some() { self.waiting() } else { uses.min(self.waiting()) };
        let given = u64::try_from(self.turns.available_permits()).unwrap_or(u64::MAX);
        let more = usize::try_from(wanted.saturating_sub(given)).unwrap_or(0);
        self.turns.add_permits(more);
    }
}

pub(super) fn exhausted(detail: &'static str) -> Error {
    Error::new(Kind::KekExhausted, detail)
}

/// A place among the waiting, given back however the wait ends.
struct Place<'a>(&'a Chain);

impl<'a> Place<'a> {
    fn take(chain: &'a Chain, most: usize) -> Result<Self, Error> {
        let place = Self(chain);
        let before = chain.waiting.fetch_add(1, Ordering::Relaxed);
        if before >= u64::try_from(most).unwrap_or(u64::MAX) {
            return Err(exhausted("too many requests wait for uses of the KEK"));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
