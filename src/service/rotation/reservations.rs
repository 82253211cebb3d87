//! The state of the reserver: the records of a chain, and how fast its uses are spent. The
//! [`reserver`](super::reserver) updates it. It calls no store and no root.

use std::time::Duration;

use crate::clock::Monotonic;
use crate::id::KekId;
use crate::keychain::KeyChain;
use crate::keychain::budget::BLOCK_LIFE;
use crate::service::ledger::Ledger;

/// A chain is idle if no use was spent for this long.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// With traffic, the next block is reserved this long before the last one expires.
const RENEW_BEFORE: Duration = Duration::from_secs(15);

/// A process that reserves no uses reads this often how many others have reserved.
const COUNTED_EVERY: Duration = Duration::from_secs(10);

/// The records of a chain, and how fast its uses are spent.
pub(in crate::service) struct Reservations {
    pub(in crate::service) ledger: Ledger,
    pub(super) pace: Pace,
    /// The stored primary, and when this process first saw it.
    pub(super) known: Option<(KekId, Monotonic)>,
    /// When the counters were last read, if they had changed.
    counted: Option<Monotonic>,
}

impl Reservations {
    pub(in crate::service) fn new(ledger: Ledger) -> Self {
        Self { ledger, pace: Pace::default(), known: None, counted: None }
    }

    /// Whether to read how many uses other processes reserved: before this process reserves some,
    /// or after a while.
    pub(super) fn needs_counters(&mut self, wanted: bool, now: Monotonic) -> bool {
        let is_due = self.counted.is_none_or(|at| now.since(at) >= COUNTED_EVERY);
        if wanted || is_due {
            self.counted = Some(now);
        }
        wanted || is_due
    }

    pub(super) fn known_for(&self, now: Monotonic) -> Duration {
        self.known.map_or(Duration::ZERO, |(_, since)| now.since(since))
    }

    /// How long a process that has lost the store may still encrypt under an earlier primary: to
    /// the end of a block that it reserved just before the current one was promoted.
    pub(in crate::service) fn settles_in(&self, now: Monotonic) -> Duration {
        let known = self.known.filter(|(id, _)| Some(*id) == self.primary_id());
        BLOCK_LIFE - known.map_or(Duration::ZERO, |(_, since)| now.since(since).min(BLOCK_LIFE))
    }

    pub(super) fn primary_id(&self) -> Option<KekId> {
        self.ledger.primary.as_ref().map(|held| held.id)
    }

    pub(in crate::service) fn holds_standby(&self, snapshot: &KeyChain) -> bool {
        self.ledger.standby.as_ref().is_some_and(|held| snapshot.kek(held.id).is_some())
    }

    /// Whether the stored primary is in memory, or no primary is stored.
    pub(super) fn holds_primary(&self, snapshot: &KeyChain) -> bool {
        self.primary_id().is_none_or(|id| snapshot.kek(id).is_some())
    }

    /// Whether a standby is stored that this process, which encrypts, does not hold yet.
    pub(super) fn lacks_standby(&self, snapshot: &KeyChain) -> bool {
        self.ledger.standby.is_some()
            && !self.holds_standby(snapshot)
            && self.primary_id().is_some_and(|id| snapshot.kek(id).is_some())
    }
}

/// How fast the uses of a chain are spent.
#[derive(Default)]
pub(super) struct Pace {
    /// The size of the last block, and when it expires.
    block: u64,
    void_at: Monotonic,
    /// Uses spent of the current primary when that block was requested, and when that was.
    spent: u64,
    since: Monotonic,
    /// Uses spent at the last look, and when that number last changed.
    seen: u64,
    active: Option<Monotonic>,
}

impl Pace {
    /// Resets the measurement for another primary.
    pub(super) fn reset(&mut self) {
        (self.spent, self.seen, self.block) = (0, 0, 0);
    }

    /// Measures the rate from `spent` on.
    pub(super) fn measure_from(&mut self, spent: u64) {
        self.spent = spent;
    }

    /// A block of `size` uses was requested at `asked`. Returns the number of uses left at which
    /// the next one is due.
    pub(super) fn block_added(&mut self, size: u64, asked: Monotonic) -> u64 {
        (self.block, self.since, self.void_at) = (size, asked, asked + BLOCK_LIFE);
        size / 2
    }

    /// Uses per second since the last block was requested. `spent` is the total of the primary.
    pub(super) fn rate(&self, spent: u64, now: Monotonic) -> f64 {
        let elapsed = now.since(self.since).max(Duration::from_millis(1));
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
        let rate = spent.saturating_sub(self.spent) as f64 / elapsed.as_secs_f64();
        rate
    }

    /// Whether to reserve the next block: if requests wait, or if there is traffic and the last
    /// block is half spent or expires soon. An idle chain reserves none.
    pub(super) fn wants_uses(
        &mut self,
        (left, spent): (u64, u64),
        waiting: u64,
        now: Monotonic,
    ) -> bool {
        if spent != self.seen {
            (self.seen, self.active) = (spent, Some(now));
        }
        let active = self.active.is_some_and(|at| now.since(at) < IDLE_AFTER);
        left < waiting
            || active && (left <= self.block / 2 || self.void_at.since(now) < RENEW_BEFORE)
    }
}
