//! What the steps of the model do. Each names the function that it models.

use super::actions::{Action, Answer};
use super::replica::{Budget, Held, Ledger, Reading, Replica, bit, retire_offline};
use super::store::{Head, Id, Key, Put, Revision, Store, Txn};
use super::{BLOCK, Fault, MAX_USES, Protocol, State, Wrong};
use crate::service::rollback::detect::Rollback;
use crate::store::record::State as KekState;

/// The result of a transaction, as its process sees it.
enum Sent {
    Applied(Revision),
    Conflict,
    Lost,
}

impl Protocol {
    /// The state after `action`; `None` if nothing changes.
    pub(super) fn step(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Start(one) => self.start(&mut state, one),
            Action::Crash(one) => self.crash(&mut state, one),
            Action::Refresh(one) => self.refresh(&mut state, one),
            Action::ReadNamed(one) => self.read_named(&mut state, one),
            Action::Claim(one, _) => self.claim(&mut state, one),
            Action::PutStandby(one, answer) => self.put_standby(&mut state, one, answer)?,
            Action::Archive(one, id, answer) => self.archive(&mut state, one, id, answer),
            Action::Promote(one, answer) => self.promote(&mut state, one, answer)?,
            Action::Reserve(one, answer) => self.reserve(&mut state, one, answer)?,
            Action::Encrypt(one) => self.encrypt(&mut state, one),
            Action::Miss(one) => {
                let ledger = state.ledger(one);
                ledger.detector.suspect();
                ledger.stale = true;
            }
            Action::Report(one) => {
                state.replicas[usize::from(one)].unreported = false;
                let ledger = state.ledger(one);
                ledger.detector.report();
                ledger.stale = true;
            }
            Action::ReadMissing(one) => self.read_missing(&mut state, one),
            Action::RestoreOne(one, answer) => self.restore_one(&mut state, one, answer)?,
            Action::RetireRestored(one, answer) => self.retire_restored(&mut state, one, answer)?,
            Action::ReadThrough(one, id, answer) => {
                self.read_through(&mut state, one, id, answer)?;
            }
            Action::ArriveLate => {
                if let Some(txn) = state.late.take() {
                    self.commit(&mut state, &txn);
                }
            }
            Action::Copy => state.copy = Some(state.store.clone()),
            Action::Restore { empty } => self.restore(&mut state, empty),
            Action::RestoreStopped { empty } => {
                state.replicas.fill(Replica::default());
                self.restore(&mut state, empty);
            }
        }
        Some(state)
    }

    /// `Core::load_chains`: the chain is created if the store lacks it, and loaded.
    fn start(&self, state: &mut State, one: u8) {
        if state.store.head.is_none() {
            let txn = Txn::default().create(Put::Head(Head::NEW));
            self.commit(state, &txn);
        }
        let kept = std::mem::take(&mut state.replicas[usize::from(one)]);
        let ledger = state.store.head.map(Ledger::load);
        // Nothing is kept over a crash, except by a fault.
        state.replicas[usize::from(one)] = Replica { ledger, ..kept };
        self.refresh(state, one);
    }

    /// `kill -9`. What is in flight arrives or not.
    fn crash(&self, state: &mut State, one: u8) {
        state.crashes += 1;
        let replica = std::mem::take(&mut state.replicas[usize::from(one)]);
        if self.has(Fault::BlockReusedAfterCrash) && replica.primary.is_some() {
            let (primary, mut budget) = (replica.primary, replica.budget);
            budget.left = BLOCK;
            let holds = replica.holds;
            state.replicas[usize::from(one)] =
                Replica { primary, budget, holds, ..Replica::default() };
        }
        state.forget_lost();
    }

    /// `Ledger::refresh_if`, at any time: a watch reports changes, and may report them late or not
    /// at all. One request reads the head with the KEKs that were known.
    fn refresh(&self, state: &mut State, one: u8) {
        let ledger = state.replicas[usize::from(one)].ledger.as_mut();
        let ledger = ledger.expect("it runs");
        if state.store.head.is_none() {
            // `Ledger::put_head_again`.
            let head = match !self.detects {
                true => Head { primary: None, standby: None, ..ledger.head.0 },
                false => ledger.lost_head(),
            };
            let txn = Txn::default().create(Put::Head(head));
            self.commit(state, &txn);
        }
        let replica = &mut state.replicas[usize::from(one)];
        let ledger = replica.ledger.as_ref().expect("it runs");
        let reading = Reading::begin(&state.store, ledger);
        replica.reading = reading;
        if !self.reads_apart || reading.is_some_and(|reading| reading.is_complete()) {
            self.read_named(state, one);
        }
    }

    /// The second half of `Ledger::read_all`: the KEKs that the head names now. Then
    /// `Reservations::catch_up`. The roots answer, so the KEKs are in memory.
    fn read_named(&self, state: &mut State, one: u8) {
        let number = usize::from(one);
        let replica = &mut state.replicas[number];
        let Replica { ledger: Some(ledger), reading, .. } = replica else { return };
        let Some(reading) = reading.take() else { return };
        let was_apart = !reading.is_complete();
        let read = reading.complete(&state.store);
        // If they do not fit, they changed in between: read again.
        let read = read.filter(|(_, primary, _)| {
            !self.reads_apart
                || !was_apart
                || primary.is_none_or(|held| held.state == KekState::Primary)
        });
        let Some(read) = read else {
            ledger.stale = true;
            return;
        };
        ledger.adopt(read, self.detects);
        for held in ledger.primary.iter().chain(&ledger.standby) {
            replica.holds |= bit(held.id);
            let seen = &mut replica.seen[usize::from(held.id)];
            *seen = (*seen).max(held.reserved);
        }
        if let Some(primary) = ledger.primary
            && !ledger.detector.is_restored()
            && replica.primary != Some(primary.id)
        {
            (replica.primary, replica.budget) = (Some(primary.id), Budget::default());
        }
        // `make_claimed` gives up.
        let Head { primary, standby, .. } = ledger.head.0;
        if replica.making.is_some_and(|before| standby.is_some() || before != primary) {
            replica.making = None;
            state.wasted(self.takeovers);
        }
    }

    /// `Ledger::claim`. A claim of a process that does not run has expired; with `takeovers`, any
    /// claim may have.
    fn claim(&self, state: &mut State, one: u8) {
        let is_down = |owner: u8| state.replicas[usize::from(owner)].ledger.is_none();
        let may_claim = |owner| owner == one || is_down(owner) || self.takeovers;
        let head = state.replicas[usize::from(one)].ledger.as_ref().expect("it runs").head.1;
        let txn = Txn::default().unchanged(Key::Head, head);
        let txn = match state.store.claim {
            _ if self.has(Fault::ClaimWithoutCompare) => txn.put(Put::Claim(one)),
            None => txn.create(Put::Claim(one)),
            Some((owner, revision)) if may_claim(owner) => txn.replace(revision, Put::Claim(one)),
            Some(_) => return,
        };
        if self.commit(state, &txn).is_some() {
            let replica = &mut state.replicas[usize::from(one)];
            replica.making = replica.ledger.as_ref().map(|ledger| ledger.head.0.primary);
        } else {
            state.ledger(one).stale = true;
        }
    }

    /// `Ledger::put_standby`.
    fn put_standby(&self, state: &mut State, one: u8, answer: Answer) -> Option<()> {
        let (id, ledger) = (state.made, state.ledger(one));
        let (head, revision) = ledger.head;
        let head = Head { standby: Some(id), generation: head.generation + 1, ..head };
        let mut txn = Txn::default()
            .replace(revision, Put::Head(head))
            .create(Put::Kek(id, KekState::Standby))
            .put(Put::Uses(id, 0))
            .delete(Key::Claim);
        if self.has(Fault::StandbyWithoutCompare) {
            txn = txn.without(|key| key == Key::Head);
        }
        state.made += u8::from(answer != Answer::NotApplied);
        match self.send(state, one, txn, answer)? {
            Sent::Applied(revision) => {
                let replica = &mut state.replicas[usize::from(one)];
                replica.making = None;
                replica.holds |= bit(id);
                let ledger = replica.ledger.as_mut()?;
                ledger.head = (head, revision);
                let (kek, uses) = (revision, revision);
                ledger.standby =
                    Some(Held { id, state: KekState::Standby, kek, reserved: 0, uses });
                ledger.note();
            }
            Sent::Conflict => state.made -= 1,
            Sent::Lost => {
                // `make_standby` releases the claim.
                state.replicas[usize::from(one)].making = None;
                state.store.claim = state.store.claim.filter(|(owner, _)| *owner != one);
            }
        }
        Some(())
    }

    /// `archive::sync::kek`: the stored record is written to the archive, and then noted.
    fn archive(&self, state: &mut State, one: u8, id: Id, answer: Answer) {
        if !state.store.has(id) {
            state.ledger(one).stale = true;
            return;
        }
        if answer != Answer::NotApplied {
            state.archive |= bit(id);
        }
        if answer == Answer::Received || self.has(Fault::ArchivedBeforeAnswer) {
            state.replicas[usize::from(one)].archived |= bit(id);
        }
        state.losses += u8::from(answer != Answer::Received);
    }

    /// `Reservations::promote`: stored first, published after. The first block comes with it.
    fn promote(&self, state: &mut State, one: u8, answer: Answer) -> Option<()> {
        let ledger = state.ledger(one);
        let next = ledger.standby?;
        let (head, revision) = ledger.head;
        let head =
            Head { primary: Some(next.id), standby: None, generation: head.generation + 1, ..head };
        let reserved = next.reserved + BLOCK;
        let txn = Txn::default()
            .replace(revision, Put::Head(head))
            .replace(next.kek, Put::Kek(next.id, KekState::Primary))
            .replace(next.uses, Put::Uses(next.id, reserved));
        let mut txn = match ledger.primary {
            Some(old) => txn.replace(old.kek, Put::Kek(old.id, KekState::Retired)),
            None => txn,
        };
        if self.has(Fault::PromotionWithoutCompare) {
            txn = txn.without(|_| true);
        }
        let sent = self.send(state, one, txn, answer)?;
        if let Sent::Applied(revision) = sent {
            let ledger = state.ledger(one);
            ledger.head = (head, revision);
            let (kek, uses) = (revision, revision);
            ledger.primary = Some(Held { state: KekState::Primary, kek, reserved, uses, ..next });
            ledger.standby = None;
            ledger.note();
        }
        if matches!(sent, Sent::Applied(_)) || self.has(Fault::PublishedBeforeStored) {
            state.replicas[usize::from(one)].primary = Some(next.id);
            state.granted(one, next.id, next.reserved, BLOCK);
        }
        Some(())
    }

    /// `Ledger::reserve`: the next block.
    fn reserve(&self, state: &mut State, one: u8, answer: Answer) -> Option<()> {
        let ledger = state.ledger(one);
        let primary = ledger.primary?;
        let block = BLOCK.min(MAX_USES - primary.reserved);
        let reserved = primary.reserved + block;
        let mut txn = Txn::default()
            .unchanged(Key::Head, ledger.head.1)
            .unchanged(Key::Kek(primary.id), primary.kek)
            .replace(primary.uses, Put::Uses(primary.id, reserved));
        if self.has(Fault::ReservationWithoutCompare) {
            txn = txn.without(|key| matches!(key, Key::Uses(_)));
        }
        if self.has(Fault::ReservationOfRetired) {
            txn = txn.without(|key| matches!(key, Key::Head | Key::Kek(_)));
        }
        let sent = self.send(state, one, txn, answer)?;
        if let Sent::Applied(uses) = sent {
            let ledger = state.ledger(one);
            ledger.primary = Some(Held { reserved, uses, ..primary });
            ledger.note();
        }
        let spends = matches!(sent, Sent::Lost) && self.has(Fault::BlockSpentAfterLostAnswer);
        if matches!(sent, Sent::Applied(_)) || spends {
            state.granted(one, primary.id, primary.reserved, block);
        }
        Some(())
    }

    /// `Budget::take` and `KeyChain::encrypt`, until the block is spent: from memory alone. A block
    /// of which a part is spent allows nothing that one allows not that is whole, or spent.
    fn encrypt(&self, state: &mut State, one: u8) {
        let replica = &mut state.replicas[usize::from(one)];
        let Some(id) = replica.primary else { return };
        let Budget { left, segment } = std::mem::take(&mut replica.budget);
        state.envelopes[usize::from(id)][usize::from(segment)] += left;
    }

    /// `repair::recover` begins: which of the KEKs that it holds the store lacks.
    fn read_missing(&self, state: &mut State, one: u8) {
        let replica = &mut state.replicas[usize::from(one)];
        let lost = replica.ledger.iter().flat_map(Ledger::lost);
        let held = lost.fold(replica.holds, |held, (id, _)| held | bit(id));
        let lacking = (0..self.keks).filter(|&id| held & bit(id) != 0 && !state.store.has(id));
        let lacking = lacking.fold(0, |lacking, id| lacking | bit(id));
        let restores = !self.has(Fault::RepairWithoutRestoring);
        replica.repairing = Some(if restores { lacking } else { 0 });
    }

    /// `Ledger::restore`, of the first KEK that is left.
    fn restore_one(&self, state: &mut State, one: u8, answer: Answer) -> Option<()> {
        let replica = &mut state.replicas[usize::from(one)];
        let left = replica.repairing?;
        let id = left.trailing_zeros() as Id;
        let lost = replica.ledger.iter().flat_map(Ledger::lost).find(|(lost, _)| *lost == id);
        // The uses of a retired KEK are not known.
        let reserved = lost.map_or(MAX_USES, |(_, reserved)| reserved);
        let txn = self.restoring(id, reserved);
        // After an error, the repair begins again.
        let stale = replica.ledger.as_ref()?.stale;
        let sent = self.send(state, one, txn, answer)?;
        state.ledger(one).stale = stale;
        let repairing = (!matches!(sent, Sent::Lost)).then_some(left & !bit(id));
        state.replicas[usize::from(one)].repairing = repairing;
        Some(())
    }

    fn restoring(&self, id: Id, reserved: u8) -> Txn {
        let (kek, reserved) = match self.has(Fault::RestoredAsStandby) {
            true => (KekState::Standby, 0),
            false => (KekState::Retired, reserved),
        };
        Txn::default().create(Put::Kek(id, kek)).put(Put::Uses(id, reserved))
    }

    /// The end of `repair::recover`: `Ledger::retire_restored`, unless another process did that.
    fn retire_restored(&self, state: &mut State, one: u8, answer: Answer) -> Option<()> {
        state.replicas[usize::from(one)].repairing = None;
        let ledger = state.ledger(one);
        let is_repaired = ledger.detector.rollback() == Some(Rollback::Repaired);
        if is_repaired || self.has(Fault::RepairWithoutRetirement) {
            ledger.detector.end();
            state.repaired(one, self.archive);
            return Some(());
        }
        let (txn, head) = ledger.retirement(one);
        if let Sent::Applied(revision) = self.send(state, one, txn, answer)? {
            let ledger = state.ledger(one);
            ledger.head = (head, revision);
            (ledger.primary, ledger.standby) = (None, None);
            ledger.detector.end();
            ledger.note();
            state.repaired(one, self.archive);
        }
        Some(())
    }

    /// `archive::find::kek` and `archive::restore::kek`: a decrypt finds what the store lacks.
    fn read_through(&self, state: &mut State, one: u8, id: Id, answer: Answer) -> Option<()> {
        let stale = state.ledger(one).stale;
        let txn = self.restoring(id, MAX_USES);
        self.send(state, one, txn, answer)?;
        state.ledger(one).stale = stale;
        state.replicas[usize::from(one)].holds |= bit(id);
        Some(())
    }

    /// An operator replaces the store by the copy, or by an empty one. No request that was sent
    /// before arrives. If no process runs, `store restored` follows.
    fn restore(&self, state: &mut State, empty: bool) {
        state.restores += 1;
        state.store = state.copy.clone().filter(|_| !empty).unwrap_or_default();
        state.store.history = state.restores;
        state.late = None;
        let mut runs = false;
        for replica in state.replicas.iter_mut().filter(|replica| replica.ledger.is_some()) {
            replica.unreported = self.reports && self.detects;
            runs = true;
        }
        state.segment += u8::from(runs);
        if !runs && !self.has(Fault::NotRetiredOffline) {
            retire_offline(&mut state.store);
        }
        state.forget_lost();
    }

    /// `Ledger::commit`. `None` if the step is the same as one with another answer.
    fn send(&self, state: &mut State, one: u8, txn: Txn, answer: Answer) -> Option<Sent> {
        state.losses += u8::from(answer != Answer::Received);
        let sent = match answer {
            Answer::Received => match self.commit(state, &txn) {
                Some(revision) => return Some(Sent::Applied(revision)),
                None => Sent::Conflict,
            },
            Answer::NotApplied => Sent::Lost,
            // A conflict whose answer is lost changes nothing, like a request that is lost.
            Answer::Unseen => self.commit(state, &txn).map(|_| Sent::Lost)?,
            Answer::Late => {
                state.late = Some(txn);
                Sent::Lost
            }
        };
        state.ledger(one).stale = true;
        Some(sent)
    }

    /// Applies a transaction, and checks what it changes.
    fn commit(&self, state: &mut State, txn: &Txn) -> Option<Revision> {
        let before: Store = state.store.clone();
        let revision = state.store.commit(txn, self.repeats)?;
        for put in &txn.puts {
            let Put::Uses(id, uses) = *put else { continue };
            let (reserved, now) = (before.reserved(id), state.store.state(id));
            if uses < reserved {
                state.wrong = Some(Wrong::CounterFell);
            } else if uses > MAX_USES {
                state.wrong = Some(Wrong::CounterPastLimit);
            } else if uses > reserved && before.has(id) && now != Some(KekState::Primary) {
                state.wrong = Some(Wrong::UsesOfRetired);
            }
        }
        Some(revision)
    }
}
