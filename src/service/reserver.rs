//! Keeps a chain supplied with uses: reserves the next block before the last one is spent, and
//! promotes the standby when its time has come. Store calls only; it never waits for a root.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::envelope::InlineRecord;
use crate::id::KekId;
use crate::keychain::budget::{BLOCK_LIFE, Budget};
use crate::keychain::kek::Kek;
use crate::keychain::rotation::{self, Primary, Reason, Step, Thresholds};
use crate::keychain::{Carried, KeyChain};
use crate::store;

use super::chain::{Chain, exhausted};
use super::core::Core;
use super::error::{Error, Kind};
use super::ledger::Ledger;
use super::{names, recovery};

/// Traffic is over when nothing was spent for this long.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// While there is traffic, the next block is there this long before the last one is void.
const RENEW_BEFORE: Duration = Duration::from_secs(15);
/// While the store answers, a promotion elsewhere is seen within this time.
const SEEN_WITHIN: Duration = Duration::from_secs(60);
/// How far the clocks of two machines may be apart.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60 * 60);
/// Rounds of one drive: more conflicts than this are left to the next one.
const ROUNDS: usize = 16;

/// The records of a chain, and how fast its uses are spent.
pub(super) struct Reserver {
    pub(super) ledger: Ledger,
    /// The size of the last block, and when it is void.
    block: u64,
    void_at: Monotonic,
    /// Uses spent of the current primary when that block was asked for, and when that was.
    spent: u64,
    since: Monotonic,
    /// Uses spent at the last look, and when that number last changed.
    seen: u64,
    active: Option<Monotonic>,
    /// The stored primary, and since when it is known as such.
    known: Option<(KekId, Monotonic)>,
}

/// Does what is due for `chain`, then lets the requests try that wait.
pub(super) async fn drive(core: &Core, chain: &Chain) {
    let mut reserver = chain.reserver.lock().await;
    let result = reserver.drive(core, chain).await;
    chain.set_trouble(result.err());
    let left = chain.snapshot().budget().map_or(0, |budget| budget.left(core.clock.now()));
    chain.wake(left);
}

impl Reserver {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            block: 0,
            void_at: Monotonic::default(),
            spent: 0,
            since: Monotonic::default(),
            seen: 0,
            active: None,
            known: None,
        }
    }

    async fn drive(&mut self, core: &Core, chain: &Chain) -> Result<(), Error> {
        self.ledger.keep_head(chain.is_named.load(Ordering::Relaxed));
        for _ in 0..ROUNDS {
            let read = self.ledger.refresh().await;
            if self.ledger.is_deleted() {
                chain.is_deleted.store(true, Ordering::Relaxed);
                return Err(Error::new(Kind::UnknownChain, "the chain was deleted"));
            }
            read.map_err(|error| core.store_error(&chain.name, error))?;
            if self.ledger.is_restored() {
                let repaired = recovery::recover(core, chain, &mut self.ledger).await;
                repaired.map_err(|error| core.store_error(&chain.name, error))?;
                continue;
            }
            self.know_primary(core, chain);
            self.report(core, chain);
            self.catch_up(core, chain);
            names::keep(core, chain, &mut self.ledger).await?;
            self.tell_wraps(chain);
            let snapshot = chain.snapshot();
            let wanted = self.wants_uses(&snapshot, chain.waiting(), core.clock.now());
            match self.plan(core, chain) {
                // Uses are left: where a block is as large as the limit, each new KEK would be
                // replaced as soon as it has its first block, without an end.
                Some(Step::Promote(Reason::Uses)) if !wanted => {}
                // A process that does not open the primary may have other roots than the rest.
                Some(Step::Promote(reason))
                    if self.holds_standby(&snapshot) && self.holds_primary(&snapshot) =>
                {
                    self.promote(core, chain, reason).await?;
                    continue;
                }
                Some(_) => chain.need_kek.notify_one(),
                None if self.is_doubtful(core, chain, &snapshot) => chain.need_kek.notify_one(),
                // Somebody else made it: it is opened now, so that its promotion needs no root.
                None if self.lacks_standby(&snapshot) => chain.need_kek.notify_one(),
                None => {}
            }
            if !wanted {
                return Ok(());
            }
            if self.ledger.primary.is_none() || snapshot.primary_id() != self.primary_id() {
                // It must be made, or opened by a root, first.
                chain.need_kek.notify_one();
                return chain.root_trouble(Kind::RootUnavailable);
            }
            match self.next_block_size(core, chain, &snapshot) {
                0 => return chain.root_trouble(Kind::KekExhausted),
                size => self.reserve(core, chain, &snapshot, size).await?,
            }
        }
        Ok(())
    }

    /// The next step of a rotation.
    pub(super) fn plan(&self, core: &Core, chain: &Chain) -> Option<Step> {
        // A KEK that nobody encrypts with is worth no root call.
        let is_first = self.ledger.primary.is_none();
        if is_first && !chain.is_wanted(core.form) {
            return None;
        }
        let limits = self.ledger.head.record.limits;
        let thresholds = Thresholds {
            rotate_after_uses: limits.rotate_after_uses,
            max_uses: limits.max_uses,
            rotate_after_age: Duration::from_secs(limits.rotate_after_age),
        };
        let snapshot = chain.snapshot();
        let left = snapshot.budget().map_or(0, |budget| budget.left(core.clock.now()));
        let primary = self.ledger.primary.as_ref().map(|held| Primary {
            reserved: held.uses.record.reserved,
            unspent: if snapshot.primary_id() == Some(held.id) { left } else { 0 },
            age: self.age(core, held.kek.record.promoted_at),
            known_for: self.known_for(core),
        });
        rotation::plan(&thresholds, primary.as_ref(), self.ledger.head.record.standby.is_some())
    }

    /// The age of the primary since its promotion. One that was promoted in the future, by a clock
    /// that was wrong, is as old as it is known here.
    fn age(&self, core: &Core, promoted_at: Option<u64>) -> Duration {
        let now = core.clock.unix_now();
        match promoted_at {
            Some(at) if at <= now => Duration::from_secs(now - at),
            Some(_) => self.known_for(core),
            None => Duration::ZERO,
        }
    }

    fn known_for(&self, core: &Core) -> Duration {
        self.known.map_or(Duration::ZERO, |(_, since)| core.clock.now().since(since))
    }

    /// Notes since when the primary is known, and whether the clock of its promotion and the clock of
    /// this process agree.
    fn know_primary(&mut self, core: &Core, chain: &Chain) {
        let Some(held) = &self.ledger.primary else { return };
        let (id, promoted_at) = (held.id, held.kek.record.promoted_at);
        let before = self.known;
        if before.is_some_and(|(known, _)| known == id) {
            return;
        }
        let now = core.clock.now();
        self.known = Some((id, now));
        let Some(at) = promoted_at else { return };
        let unix_now = core.clock.unix_now();
        let is_ahead = at.saturating_sub(unix_now) > CLOCKS_DIFFER.as_secs();
        // A promotion that was just seen did not happen long ago. At a start, and after the store was
        // away, it may have.
        let is_recent = before.is_some() && core.confirmed_within(now, SEEN_WITHIN);
        let is_behind = is_recent && unix_now.saturating_sub(at) > CLOCKS_DIFFER.as_secs();
        let detail = (is_ahead || is_behind).then(|| {
            let promoted = super::rfc3339(at);
            let here = super::rfc3339(unix_now);
            format!("its primary KEK was promoted at {promoted} by one clock, and the clock of this machine says {here}: one of them is wrong")
        });
        if let Some(detail) = &detail {
            tracing::error!(chain = %chain.name, primary = %id, detail, "clocks disagree");
        }
        chain.clock_fault.store(detail.map(Arc::new));
    }

    /// Whether a KEK failed, or may fail, that nobody asks for at the moment.
    fn is_doubtful(&self, core: &Core, chain: &Chain, snapshot: &KeyChain) -> bool {
        chain.root_failure.load().is_some()
            || core.in_doubt.load(Ordering::Relaxed)
                && self.primary_id().is_some_and(|id| snapshot.kek(id).is_none())
    }

    fn primary_id(&self) -> Option<KekId> {
        self.ledger.primary.as_ref().map(|held| held.id)
    }

    pub(super) fn holds_standby(&self, snapshot: &KeyChain) -> bool {
        self.ledger.standby.as_ref().is_some_and(|held| snapshot.kek(held.id).is_some())
    }

    /// Whether the stored primary is in memory, or there is none.
    fn holds_primary(&self, snapshot: &KeyChain) -> bool {
        self.primary_id().is_none_or(|id| snapshot.kek(id).is_some())
    }

    /// Whether a standby is stored that this process, which encrypts, does not hold yet.
    fn lacks_standby(&self, snapshot: &KeyChain) -> bool {
        self.ledger.standby.is_some()
            && !self.holds_standby(snapshot)
            && self.primary_id().is_some_and(|id| snapshot.kek(id).is_some())
    }

    /// Makes the stored primary the one in memory, where its KEK is held already.
    fn catch_up(&mut self, core: &Core, chain: &Chain) {
        let snapshot = chain.snapshot();
        let Some(id) = self.primary_id().filter(|&id| snapshot.primary_id() != Some(id)) else {
            return;
        };
        if let Some(kek) = snapshot.kek(id) {
            self.take_over(core, chain, Arc::clone(kek), Budget::empty());
        }
    }

    /// Publishes how the primary travels along, where it got another wrap or lost one.
    fn tell_wraps(&self, chain: &Chain) {
        let snapshot = chain.snapshot();
        let (Some(held), Some(id)) = (&self.ledger.primary, snapshot.primary_id()) else { return };
        let record = record_of(&held.kek.record);
        let known = snapshot.carried().map(Carried::record);
        if held.id == id && record.to_bytes().as_deref() != known {
            let carried = snapshot.kek(id).and_then(|kek| Carried::new(kek, &record));
            let carried = carried.map(Arc::new);
            chain.publish(|next| {
                if next.primary_id() == Some(id) {
                    next.set_carried(carried.clone());
                }
            });
        }
    }

    /// Publishes what is stored: `kek` encrypts from now on, the others only decrypt.
    fn take_over(&mut self, core: &Core, chain: &Chain, kek: Arc<Kek>, budget: Budget) {
        let budget = Arc::new(budget);
        let record = self.ledger.primary.as_ref().map(|held| record_of(&held.kek.record));
        let carried = record.and_then(|record| Carried::new(&kek, &record)).map(Arc::new);
        let standby = self.ledger.standby.as_ref().map(|held| held.id);
        let old: Vec<_> = chain
            .snapshot()
            .keks()
            .filter(|old| old.id() != kek.id() && Some(old.id()) != standby)
            .cloned()
            .collect();
        for old in &old {
            core.keyring.keep(&chain.name, Arc::clone(old));
        }
        chain.publish(|next| {
            next.set_primary(Arc::clone(&kek), Arc::clone(&budget));
            next.set_carried(carried.clone());
            for old in &old {
                next.release(old.id());
            }
        });
        // One may have been disabled meanwhile.
        let snapshot = chain.snapshot();
        for old in old.iter().filter(|old| snapshot.allows(old.id()).is_err()) {
            core.keyring.drop_kek(&chain.name, old.id());
        }
        self.measure_anew();
    }

    /// Stores the standby as primary, then publishes it with its first block.
    pub(super) async fn promote(
        &mut self,
        core: &Core,
        chain: &Chain,
        reason: Reason,
    ) -> Result<bool, Error> {
        let snapshot = chain.snapshot();
        let Some(kek) = self.ledger.standby.as_ref().and_then(|held| snapshot.kek(held.id)) else {
            return Ok(false);
        };
        let now = core.clock.now();
        let rate = self.rate(&snapshot, now);
        let max_uses = self.ledger.head.record.limits.max_uses;
        let block = rotation::block_size(max_uses, 0, rate, chain.waiting());
        let promoted = self.ledger.promote(core.clock.unix_now(), block).await;
        if !promoted.map_err(|error| self.failed(core, chain, error))? {
            return Ok(false);
        }
        let budget = Budget::empty();
        budget.add(block, now + BLOCK_LIFE, now);
        let old = snapshot.primary_id();
        self.take_over(core, chain, Arc::clone(kek), budget);
        self.block_added(chain, block, now);
        if let Some(reason) = reason.as_str() {
            core.metrics.rotated(&chain.name, reason);
        }
        self.report(core, chain);
        tracing::info!(
            chain = %chain.name, primary = %kek.id(), previous = old.map(|old| old.to_string()),
            reason = reason.as_str().unwrap_or("first"), "a new primary KEK",
        );
        Ok(true)
    }

    async fn reserve(
        &mut self,
        core: &Core,
        chain: &Chain,
        snapshot: &KeyChain,
        size: u64,
    ) -> Result<(), Error> {
        let asked = core.clock.now();
        match self.ledger.reserve(size).await {
            Ok(true) => {
                let spent = snapshot.budget().map_or(0, |budget| {
                    budget.add(size, asked + BLOCK_LIFE, core.clock.now());
                    budget.spent()
                });
                self.spent = spent;
                self.block_added(chain, size, asked);
                core.metrics.reserved(&chain.name, "ok");
                self.report(core, chain);
                Ok(())
            }
            Ok(false) => {
                core.metrics.reserved(&chain.name, "conflict");
                Ok(())
            }
            Err(error) => {
                let lost = matches!(error, store::Error::Unavailable { maybe_applied: true, .. });
                core.metrics.reserved(&chain.name, if lost { "lost" } else { "error" });
                Err(core.store_error(&chain.name, error))
            }
        }
    }

    fn failed(&self, core: &Core, chain: &Chain, error: store::Error) -> Error {
        chain.metrics.rotation_failures.inc();
        core.store_error(&chain.name, error)
    }

    fn block_added(&mut self, chain: &Chain, size: u64, asked: Monotonic) {
        (self.block, self.since, self.void_at) = (size, asked, asked + BLOCK_LIFE);
        chain.low_water.store(size / 2, Ordering::Relaxed);
    }

    fn measure_anew(&mut self) {
        (self.spent, self.seen, self.block) = (0, 0, 0);
    }

    fn next_block_size(&self, core: &Core, chain: &Chain, snapshot: &KeyChain) -> u64 {
        let reserved = self.ledger.primary.as_ref().map_or(0, |held| held.uses.record.reserved);
        let rate = self.rate(snapshot, core.clock.now());
        rotation::block_size(
            self.ledger.head.record.limits.max_uses,
            reserved,
            rate,
            chain.waiting(),
        )
    }

    /// Uses a second since the last block was asked for.
    fn rate(&self, snapshot: &KeyChain, now: Monotonic) -> f64 {
        let spent = snapshot.budget().map_or(0, |budget| budget.spent()).saturating_sub(self.spent);
        let elapsed = now.since(self.since).max(Duration::from_millis(1));
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
        let rate = spent as f64 / elapsed.as_secs_f64();
        rate
    }

    /// Whether the next block is to be asked for: somebody waits, or there is traffic and the last
    /// block is half spent or void soon. An idle chain asks for none.
    fn wants_uses(&mut self, snapshot: &KeyChain, waiting: u64, now: Monotonic) -> bool {
        let (left, spent) =
            snapshot.budget().map_or((0, 0), |budget| (budget.left(now), budget.spent()));
        if spent != self.seen {
            (self.seen, self.active) = (spent, Some(now));
        }
        let active = self.active.is_some_and(|at| now.since(at) < IDLE_AFTER);
        left < waiting
            || active && (left <= self.block / 2 || self.void_at.since(now) < RENEW_BEFORE)
    }

    /// Sets the chain's gauges.
    fn report(&self, core: &Core, chain: &Chain) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let limits = self.ledger.head.record.limits;
        chain.metrics.rotate_after_uses.set(gauge(limits.rotate_after_uses));
        chain.metrics.max_uses.set(gauge(limits.max_uses));
        let keks = self.ledger.primary.iter().chain(&self.ledger.standby);
        let missing = core.keyring.roots.missing(keks.map(|held| &held.kek.record));
        chain.missing_wraps.store(Arc::new(missing));
        if let Some(primary) = &self.ledger.primary {
            chain.metrics.uses.set(gauge(primary.uses.record.reserved));
            chain.metrics.age.set(self.age(core, primary.kek.record.promoted_at).as_secs_f64());
        }
    }
}

/// What travels along of a KEK: its wraps.
fn record_of(kek: &store::record::Kek) -> InlineRecord<'_> {
    let wraps = kek.wraps.iter().map(|wrap| (wrap.root.as_str().into(), (&*wrap.bytes).into()));
    InlineRecord { wraps: wraps.collect() }
}

impl Chain {
    /// No use can be had until the rotator is done; an error when it is known to have failed.
    fn root_trouble(&self, kind: Kind) -> Result<(), Error> {
        match (&*self.root_failure.load(), kind) {
            (None, _) => Ok(()),
            // Another process changed the chain: it is tried again, so the request waits.
            (Some(error), _) if error.kind() == Kind::Conflict => Ok(()),
            (Some(_), Kind::KekExhausted) => {
                Err(exhausted("no use of the KEK is left, and the next one could not be made yet"))
            }
            (Some(error), _) => Err(Error::clone(error)),
        }
    }
}
