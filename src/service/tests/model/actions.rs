//! The steps of the model, and which of them are possible in a state. What they do is in
//! [`steps`](super::steps).

use super::replica::{Held, Ledger, Reading, Replica, bit};
use super::store::Id;
use super::{Fault, MAX_USES, Protocol, State};
use crate::service::rollback::detect::Rollback;

/// What becomes of a request and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Received,
    /// The request is lost.
    NotApplied,
    /// The answer is lost.
    Unseen,
    /// The answer is lost, and the request arrives later.
    Late,
}

/// The number of a replica comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Start(u8),
    Crash(u8),
    Refresh(u8),
    ReadNamed(u8),
    Claim(u8, Answer),
    PutStandby(u8, Answer),
    Archive(u8, Id, Answer),
    Promote(u8, Answer),
    Reserve(u8, Answer),
    Encrypt(u8),
    Miss(u8),
    Report(u8),
    ReadMissing(u8),
    RestoreOne(u8, Answer),
    RetireRestored(u8, Answer),
    ReadThrough(u8, Id, Answer),
    ArriveLate,
    Copy,
    Restore { empty: bool },
    RestoreStopped { empty: bool },
}

impl Protocol {
    pub(super) fn possible(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        // An encrypt changes nothing that another step depends on, so what may come before it may
        // as well come after it.
        let spends = |replica: &Replica| replica.ledger.is_some() && replica.budget.left > 0;
        if let Some((one, _)) = (0..).zip(&state.replicas).find(|(_, it)| spends(it)) {
            actions.push(Action::Encrypt(one));
            return;
        }
        for (number, replica) in (0..).zip(&state.replicas) {
            match &replica.ledger {
                None => actions.push(Action::Start(number)),
                Some(ledger) => self.of_replica(state, number, replica, ledger, actions),
            }
        }
        if state.late.is_some() {
            actions.push(Action::ArriveLate);
        }
        if state.restores < self.restores {
            if state.copy.is_none() && state.restores == 0 {
                actions.push(Action::Copy);
            }
            let copies = [state.copy.as_ref().map(|_| false), self.wipes.then_some(true)];
            for empty in copies.into_iter().flatten() {
                actions.push(Action::Restore { empty });
                actions.push(Action::RestoreStopped { empty });
            }
        }
    }

    fn of_replica(
        &self,
        state: &State,
        number: u8,
        replica: &Replica,
        ledger: &Ledger,
        actions: &mut Vec<Action>,
    ) {
        let answers = self.answers(state);
        let mut asked = Vec::new();
        let mut ask = |action: fn(u8, Answer) -> Action| asked.push(action);
        let is_restored = ledger.detector.is_restored();
        // A read or a repair that is not complete holds the lock of the ledger.
        if let Some(left) = replica.repairing {
            match left {
                0 if ledger.detector.rollback() == Some(Rollback::Repaired) => {
                    actions.push(Action::RetireRestored(number, Answer::Received));
                }
                0 => ask(Action::RetireRestored),
                _ => ask(Action::RestoreOne),
            }
        } else if replica.reading.is_some() {
            actions.push(Action::ReadNamed(number));
        } else {
            if !ledger.stale {
                if is_restored {
                    actions.push(Action::ReadMissing(number));
                } else {
                    self.of_reserver(replica, ledger, &mut ask);
                }
                let can_make = ledger.head.0.standby.is_none() && state.made < self.keks;
                let is_making = replica.making.is_some() || !self.claims;
                match is_making {
                    _ if !can_make => {}
                    true => ask(Action::PutStandby),
                    false => actions.push(Action::Claim(number, Answer::Received)),
                }
            }
            if ledger.stale || self.is_news(state, replica, ledger) {
                actions.push(Action::Refresh(number));
            }
            let lacks = |id| replica.holds & bit(id) != 0 && !state.store.has(id);
            if self.detects && !is_restored && (0..self.keks).any(lacks) {
                actions.push(Action::Miss(number));
            }
            if replica.unreported {
                actions.push(Action::Report(number));
            }
        }
        for action in asked {
            actions.extend(answers.iter().map(|&answer| action(number, answer)));
        }
        if self.archive {
            self.of_archive(state, number, replica, ledger, actions);
        }
        if state.crashes < self.crashes {
            actions.push(Action::Crash(number));
        }
    }

    /// Whether a read finds something else than what is known.
    fn is_news(&self, state: &State, replica: &Replica, ledger: &Ledger) -> bool {
        let read = Reading::begin(&state.store, ledger).and_then(|it| it.complete(&state.store));
        let primary = ledger.primary.map(|primary| primary.id);
        read != Some((ledger.head, ledger.primary, ledger.standby))
            || !ledger.detector.is_restored() && primary != replica.primary && primary.is_some()
    }

    /// `Reservations::drive`: any step of a rotation may be due, by uses, by age or by hand.
    fn of_reserver(
        &self,
        replica: &Replica,
        ledger: &Ledger,
        ask: &mut impl FnMut(fn(u8, Answer) -> Action),
    ) {
        if let Some(standby) = ledger.standby {
            // `Archives::permit`.
            let is_permitted = !self.archive
                || replica.archived & bit(standby.id) != 0
                || self.has(Fault::UseBeforeArchive);
            if is_permitted {
                ask(Action::Promote);
            }
        }
        let primary = ledger.primary.filter(|primary| replica.primary == Some(primary.id));
        if primary.is_some_and(|it| it.reserved < MAX_USES) {
            ask(Action::Reserve);
        }
    }

    fn of_archive(
        &self,
        state: &State,
        number: u8,
        replica: &Replica,
        ledger: &Ledger,
        actions: &mut Vec<Action>,
    ) {
        if let Some(Held { id, .. }) = ledger.standby
            && replica.archived & bit(id) == 0
        {
            actions.push(Action::Archive(number, id, Answer::Received));
            if state.losses < self.losses {
                actions.push(Action::Archive(number, id, Answer::Unseen));
                if self.has(Fault::ArchivedBeforeAnswer) {
                    actions.push(Action::Archive(number, id, Answer::NotApplied));
                }
            }
        }
        for id in 0..self.keks {
            let is_asked = state.envelopes(id) > 0 && replica.holds & bit(id) == 0;
            if is_asked && !state.store.has(id) && state.archive & bit(id) != 0 {
                let answers = self.answers(state).iter();
                actions.extend(answers.map(|&answer| Action::ReadThrough(number, id, answer)));
            }
        }
    }

    fn answers(&self, state: &State) -> &'static [Answer] {
        const ALL: [Answer; 4] =
            [Answer::Received, Answer::NotApplied, Answer::Unseen, Answer::Late];
        match () {
            () if state.losses >= self.losses => &ALL[..1],
            () if !self.late || state.late.is_some() => &ALL[..3],
            () => &ALL,
        }
    }
}
