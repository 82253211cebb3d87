//! Keeps a chain supplied with uses: reserves the next block before the last one is spent, and
//! promotes the standby when a rotation is due. It calls the store only and never waits for a root.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::envelope::InlineRecord;
use crate::keychain::budget::{BLOCK_LIFE, Budget};
use crate::keychain::kek::Kek;
use crate::keychain::rotation::{self, Primary, Reason, Standby, Step, Thresholds};
use crate::keychain::{InlineKek, KekPlacement, KeyChain};
use crate::service::chain::Chain;
use crate::service::chain::facts::{Facts, Mark, StandbyState};
use crate::service::core::Core;
use crate::service::error::{Error, Kind};
use crate::service::key_id;
use crate::service::rollback::repair;
use crate::store;

use super::reservations::Reservations;
use super::{clock_check, retry};

/// The maximum number of rounds of one run; after as many conflicts, the next run continues.
const ROUNDS: usize = 16;

/// The maximum number of conflicts of one run.
const CONFLICTS: u32 = 16;

/// Whether the reserver did all that is due.
enum Progress {
    Done,
    /// Another process reserved uses at the same time.
    Conflict,
}

/// Does what is due for `chain`, then wakes waiting requests.
pub(in crate::service) async fn drive(core: &Core, chain: &Chain) {
    let (mut conflicts, mut result) = (0, Ok(Progress::Conflict));
    while matches!(result, Ok(Progress::Conflict)) && conflicts < CONFLICTS {
        if conflicts > 0 {
            tokio::time::sleep(retry::after_conflicts(conflicts)).await;
        }
        result = chain.reservations.lock().await.drive(core, chain).await;
        conflicts += 1;
    }
    chain.set_last_error(result.err());
    let left = chain.snapshot().budget().map_or(0, |budget| budget.left(core.clock.now()));
    chain.wake(left);
}

impl Reservations {
    async fn drive(&mut self, core: &Core, chain: &Chain) -> Result<Progress, Error> {
        self.ledger.keep_head(chain.is_named.load(Ordering::Relaxed));
        for _ in 0..ROUNDS {
            let wanted = self.wants_uses(core, chain);
            let with_counters = self.needs_counters(wanted, core.clock.now());
            let read = self.ledger.refresh_if(with_counters).await;
            if self.ledger.is_deleted() {
                chain.is_deleted.store(true, Ordering::Relaxed);
                return Err(Error::new(Kind::UnknownChain, "the chain was deleted"));
            }
            read.map_err(|error| core.store_error(&chain.name, error))?;
            if self.ledger.is_restored() {
                let repaired = repair::recover(core, chain, &mut self.ledger).await;
                repaired.map_err(|error| core.store_error(&chain.name, error))?;
                continue;
            }
            clock_check::know_primary(self, core, chain);
            self.report(core, chain);
            self.catch_up(core, chain);
            key_id::keep(core, chain, &mut self.ledger).await?;
            self.publish_inline(core, chain);
            let snapshot = chain.snapshot();
            let wanted = self.wants_uses(core, chain);
            match self.plan(core, chain) {
                // Uses are left. If a block is as large as the limit, each new KEK would otherwise
                // be replaced as soon as it has its first block.
                Some(Step::Promote(Reason::Uses)) if !wanted => {}
                // A process that can't unwrap the primary may have other roots than the others.
                Some(Step::Promote(reason))
                    if self.holds_standby(&snapshot) && self.holds_primary(&snapshot) =>
                {
                    self.promote(core, chain, reason).await?;
                    continue;
                }
                Some(Step::ArchiveStandby) => {
                    if let Some(id) = self.ledger.head.record.standby {
                        core.archives.want_first(&chain.name, id);
                    }
                    if self.lacks_standby(&snapshot)
                        || !self.holds_primary(&snapshot)
                        || self.is_doubtful(core, chain, &snapshot)
                    {
                        chain.need_kek.notify_one();
                    }
                }
                Some(_) => chain.need_kek.notify_one(),
                None if self.is_doubtful(core, chain, &snapshot) => chain.need_kek.notify_one(),
                // Another process created it. It is unwrapped now, so that a promotion needs no
                // root.
                None if self.lacks_standby(&snapshot) => chain.need_kek.notify_one(),
                None => {}
            }
            if !wanted {
                return Ok(Progress::Done);
            }
            if self.ledger.primary.is_none() || snapshot.primary_id() != self.primary_id() {
                if self.awaits_archives(core, chain, &snapshot)? {
                    return Ok(Progress::Done);
                }
                // A root must wrap or unwrap it first.
                chain.need_kek.notify_one();
                return chain.rotator_error(Kind::RootUnavailable).map(|()| Progress::Done);
            }
            match self.next_block_size(core, chain, &snapshot) {
                0 => {
                    if self.awaits_archives(core, chain, &snapshot)? {
                        return Ok(Progress::Done);
                    }
                    return chain.rotator_error(Kind::KekExhausted).map(|()| Progress::Done);
                }
                size => {
                    if !self.reserve(core, chain, &snapshot, size).await? {
                        return Ok(Progress::Conflict);
                    }
                }
            }
        }
        Ok(Progress::Done)
    }

    /// Whether to reserve the next block.
    fn wants_uses(&mut self, core: &Core, chain: &Chain) -> bool {
        let (snapshot, now) = (chain.snapshot(), core.clock.now());
        let left = snapshot.budget().map_or(0, |budget| budget.left(now));
        self.pace.wants_uses((left, spent_of(&snapshot)), chain.waiting(), now)
    }

    /// The next step of a rotation.
    pub(in crate::service) fn plan(&self, core: &Core, chain: &Chain) -> Option<Step> {
        // A KEK that no request needs is not worth a root call.
        let is_first = self.ledger.primary.is_none();
        if is_first && !chain.is_wanted(core.placement) {
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
            age: clock_check::age(self, core, held.kek.record.promoted_at),
            known_for: self.known_for(core.clock.now()),
        });
        rotation::plan(&thresholds, primary.as_ref(), self.standby(core, chain))
    }

    fn standby(&self, core: &Core, chain: &Chain) -> Standby {
        match self.ledger.head.record.standby {
            None => Standby::None,
            Some(id) if core.archives.permit(&chain.name, id).is_some() => Standby::Ready,
            Some(_) => Standby::NotArchived,
        }
    }

    /// Whether requests wait only for the archives to hold the standby; an error if they can't.
    fn awaits_archives(
        &self,
        core: &Core,
        chain: &Chain,
        snapshot: &KeyChain,
    ) -> Result<bool, Error> {
        let standby = self.ledger.standby.as_ref().filter(|it| snapshot.kek(it.id).is_some());
        let Some(standby) = standby.filter(|_| self.holds_primary(snapshot)) else {
            return Ok(false);
        };
        match core.archives.obstacle(&chain.name, standby.id) {
            Some(error) => Err(error),
            None => Ok(core.archives.permit(&chain.name, standby.id).is_none()),
        }
    }

    /// Whether the rotator should try a KEK that no request needs at the moment, since it failed or
    /// may fail.
    fn is_doubtful(&self, core: &Core, chain: &Chain, snapshot: &KeyChain) -> bool {
        chain.root_failure.load().is_some()
            || core.in_doubt.load(Ordering::Relaxed)
                && self.primary_id().is_some_and(|id| snapshot.kek(id).is_none())
    }

    /// Makes the stored primary the primary in memory, if its KEK is held already.
    fn catch_up(&mut self, core: &Core, chain: &Chain) {
        let snapshot = chain.snapshot();
        let Some(id) = self.primary_id().filter(|&id| snapshot.primary_id() != Some(id)) else {
            return;
        };
        if let Some(kek) = snapshot.kek(id) {
            self.take_over(core, chain, Arc::clone(kek), Budget::empty());
        }
    }

    /// Publishes the inline record of the primary, if its wraps changed, and whether new envelopes
    /// embed it.
    pub(in crate::service) fn publish_inline(&self, core: &Core, chain: &Chain) {
        let snapshot = chain.snapshot();
        let (Some(held), Some(id)) = (&self.ledger.primary, snapshot.primary_id()) else { return };
        let record = record_of(&held.kek.record);
        let known = snapshot.inline().map(InlineKek::record);
        let placement = self.placement(core);
        let is_known = snapshot.placement() == placement && record.to_bytes().as_deref() == known;
        if held.id == id && !is_known {
            let inline = snapshot.kek(id).and_then(|kek| inline_kek(kek, &record));
            let inline = inline.map(Arc::new);
            chain.publish(|next| {
                if next.primary_id() == Some(id) {
                    next.set_inline(inline.clone());
                    next.set_placement(placement);
                }
            });
        }
    }

    /// Where new envelopes of the chain find their KEK.
    fn placement(&self, core: &Core) -> KekPlacement {
        if self.ledger.head.record.inline { KekPlacement::Inline } else { core.placement }
    }

    /// Publishes the stored state: `kek` encrypts from now on, the others only decrypt.
    fn take_over(&mut self, core: &Core, chain: &Chain, kek: Arc<Kek>, budget: Budget) {
        let budget = Arc::new(budget);
        let record = self.ledger.primary.as_ref().map(|held| record_of(&held.kek.record));
        let inline = record.and_then(|record| inline_kek(&kek, &record)).map(Arc::new);
        let placement = self.placement(core);
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
            next.set_inline(inline.clone());
            next.set_placement(placement);
            for old in &old {
                next.release(old.id());
            }
        });
        // An older KEK may have been disabled meanwhile.
        let snapshot = chain.snapshot();
        for old in old.iter().filter(|old| snapshot.allows(old.id()).is_err()) {
            core.keyring.drop_kek(&chain.name, old.id());
        }
        self.pace.reset();
    }

    /// Stores the standby as primary, then publishes it with its first block.
    pub(in crate::service) async fn promote(
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
        let rate = self.pace.rate(spent_of(&snapshot), now);
        let max_uses = self.ledger.head.record.limits.max_uses;
        let block = rotation::block_size(max_uses, 0, rate, chain.waiting());
        let Some(permit) = core.archives.permit(&chain.name, kek.id()) else { return Ok(false) };
        let promoted = self.ledger.promote(&permit, core.clock.unix_now(), block).await;
        if !promoted.map_err(|error| self.failed(core, chain, error))? {
            return Ok(false);
        }
        let budget = Budget::empty();
        budget.add(block, now + BLOCK_LIFE, now);
        let old = snapshot.primary_id();
        self.take_over(core, chain, Arc::clone(kek), budget);
        chain.low_water.store(self.pace.block_added(block, now), Ordering::Relaxed);
        if let Some(reason) = reason.as_str() {
            core.metrics.rotated(&chain.name, reason);
        }
        if permit.is_waived() {
            core.metrics.archives.unarchived.inc();
            tracing::warn!(chain = %chain.name, primary = %kek.id(), "a KEK becomes primary \
                although the required archives do not hold it: on_failure = \"continue\"");
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
    ) -> Result<bool, Error> {
        let asked = core.clock.now();
        match self.ledger.reserve(size).await {
            Ok(true) => {
                let spent = snapshot.budget().map_or(0, |budget| {
                    budget.add(size, asked + BLOCK_LIFE, core.clock.now());
                    budget.spent()
                });
                self.pace.measure_from(spent);
                chain.low_water.store(self.pace.block_added(size, asked), Ordering::Relaxed);
                core.metrics.reserved(&chain.name, "ok");
                self.report(core, chain);
                Ok(true)
            }
            Ok(false) => {
                core.metrics.reserved(&chain.name, "conflict");
                Ok(false)
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

    fn next_block_size(&self, core: &Core, chain: &Chain, snapshot: &KeyChain) -> u64 {
        let reserved = self.ledger.primary.as_ref().map_or(0, |held| held.uses.record.reserved);
        let rate = self.pace.rate(spent_of(snapshot), core.clock.now());
        rotation::block_size(
            self.ledger.head.record.limits.max_uses,
            reserved,
            rate,
            chain.waiting(),
        )
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
            chain
                .metrics
                .age
                .set(clock_check::age(self, core, primary.kek.record.promoted_at).as_secs_f64());
        }
        self.publish_facts(core, chain);
    }

    /// Publishes what the status of the chain shows.
    fn publish_facts(&self, core: &Core, chain: &Chain) {
        let (head, primary) = (&self.ledger.head, self.ledger.primary.as_ref());
        let standby = match self.standby(core, chain) {
            Standby::None => StandbyState::None,
            _ if !self.holds_standby(&chain.snapshot()) => StandbyState::NotLoaded,
            Standby::NotArchived => StandbyState::NotArchived,
            Standby::Ready => StandbyState::Ready,
        };
        let mark = Mark {
            head: head.revision,
            primary: primary.map(|held| (held.id, held.kek.revision)),
            reserved: primary.map_or(0, |held| held.uses.record.reserved),
            standby,
        };
        chain.published.note(mark, |mark| Facts {
            mark,
            suite: head.record.suite,
            limits: head.record.limits,
            inline: self.placement(core) == KekPlacement::Inline,
            standby: head.record.standby,
            promoted_at: primary.and_then(|held| held.kek.record.promoted_at),
            exposed: primary.is_some_and(|held| held.kek.record.exposed),
            roots: primary.map_or_else(Vec::new, |held| {
                held.kek.record.wraps.iter().map(|wrap| wrap.root.clone()).collect()
            }),
        });
    }
}

fn spent_of(snapshot: &KeyChain) -> u64 {
    snapshot.budget().map_or(0, |budget| budget.spent())
}

fn inline_kek(kek: &Kek, record: &InlineRecord<'_>) -> Option<InlineKek> {
    InlineKek::new(kek.suite(), kek.id(), kek.chain(), record)
}

/// The inline record of a KEK: its wraps.
fn record_of(kek: &store::record::Kek) -> InlineRecord<'_> {
    let wraps = kek.wraps.iter().map(|wrap| (wrap.root.as_str().into(), (&*wrap.bytes).into()));
    InlineRecord { wraps: wraps.collect() }
}

impl Chain {
    /// No use is available until the rotator succeeds. Returns an error if its last attempt failed.
    fn rotator_error(&self, kind: Kind) -> Result<(), Error> {
        match (&*self.root_failure.load(), kind) {
            (None, _) => Ok(()),
            // Another process changed the chain. The rotator tries again, so the request waits.
            (Some(error), _) if error.kind() == Kind::Conflict => Ok(()),
            (Some(_), Kind::KekExhausted) => Err(Error::exhausted(
                "no use of the KEK is left, and the next KEK could not be created yet",
            )),
            (Some(error), _) => Err(Error::clone(error)),
        }
    }
}
