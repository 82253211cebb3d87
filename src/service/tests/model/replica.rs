//! A replica of the model: what one process knows of the chain, and what it may spend. The detector
//! of rollbacks is the real one.

use crate::id::{KekId, Suite};
use crate::service::rollback::detect::{Detector, Records};
use crate::store::record::{self, Limits, State, Uses};
use crate::store::records::{self, Versioned};

use super::store::{Head, Id, KEKS, Key, Put, Revision, Store, Txn};

/// The records of a KEK as they were read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub(super) id: Id,
    pub(super) state: State,
    pub(super) kek: Revision,
    pub(super) reserved: u8,
    pub(super) uses: Revision,
}

/// A [`Ledger`](crate::service::ledger::Ledger).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ledger {
    pub(super) head: (Head, Revision),
    pub(super) primary: Option<Held>,
    pub(super) standby: Option<Held>,
    pub(super) stale: bool,
    pub(super) detector: Detector,
}

/// The uses in memory, of the primary of the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) left: u8,
    /// When they were granted: see [`State::segment`](super::State::segment).
    pub(super) segment: u8,
}

/// A process; one without a ledger does not run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) ledger: Option<Ledger>,
    /// The primary of the snapshot that requests use.
    pub(super) primary: Option<Id>,
    pub(super) budget: Budget,
    /// The KEKs whose records it has in memory, as bits.
    pub(super) holds: u8,
    /// The KEKs that it knows to be archived, as bits.
    pub(super) archived: u8,
    /// It has claimed the creation of a KEK, when the chain had this primary.
    pub(super) making: Option<Option<Id>>,
    /// It repairs the chain: the KEKs that it has yet to restore, as bits.
    pub(super) repairing: Option<u8>,
    /// It has read this head, and has yet to read KEKs that the head names.
    pub(super) reading: Option<Reading>,
    /// Its store notices the restore, and reports it sooner or later.
    pub(super) unreported: bool,
    /// The highest counters that it has read or written: of no consequence, only checked.
    pub(super) seen: [u8; KEKS],
}

/// A read that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reading {
    head: (Head, Revision),
    known: [Option<Held>; 2],
}

impl Replica {
    /// Renames the processes in what it knows.
    pub(super) fn rename(&mut self, rename: &impl Fn(&mut Head)) {
        self.ledger.iter_mut().for_each(|ledger| rename(&mut ledger.head.0));
        self.reading.iter_mut().for_each(|reading| rename(&mut reading.head.0));
    }
}

pub(super) const fn bit(id: Id) -> u8 {
    1 << id
}

impl Store {
    fn held(&self, id: Id) -> Option<Held> {
        let (state, kek) = self.keks[usize::from(id)]?;
        let (reserved, uses) = self.uses[usize::from(id)]?;
        Some(Held { id, state, kek, reserved, uses })
    }
}

impl Reading {
    /// Reads the head, and the KEKs that a process knew as primary and as standby.
    pub(super) fn begin(store: &Store, before: &Ledger) -> Option<Self> {
        let known = [before.head.0.primary, before.head.0.standby];
        let known = known.map(|id| id.and_then(|id| store.held(id)));
        Some(Self { head: store.head?, known })
    }

    /// Whether the KEKs that the head names were read with it.
    pub(super) fn is_complete(&self) -> bool {
        let named = self.head.0.primary.into_iter().chain(self.head.0.standby);
        named.into_iter().all(|id| self.known(id).is_some())
    }

    fn known(&self, id: Id) -> Option<Held> {
        self.known.into_iter().flatten().find(|held| held.id == id)
    }

    /// Reads those that were not: the head, the primary and the standby. `None` if one of them does
    /// not exist.
    pub(super) fn complete(self, store: &Store) -> Option<Read> {
        let held = |id| self.known(id).or_else(|| store.held(id));
        let Head { primary, standby, .. } = self.head.0;
        let (primary, standby) = (primary.map(held), standby.map(held));
        if primary == Some(None) || standby == Some(None) {
            return None;
        }
        Some((self.head, primary.flatten(), standby.flatten()))
    }
}

pub(super) type Read = ((Head, Revision), Option<Held>, Option<Held>);

impl Ledger {
    /// `Ledger::load`: the KEKs are read when they are first needed.
    pub(super) fn load(head: (Head, Revision)) -> Self {
        Self { head, primary: None, standby: None, stale: true, detector: Detector::default() }
    }

    /// The end of `Ledger::refresh_if`: compares what was read with what was known.
    pub(super) fn adopt(&mut self, (head, primary, standby): Read, detects: bool) {
        if detects {
            let fits = primary.is_none_or(|held| held.state == State::Primary);
            let (known, read) = (self.records(), Real::new(head, primary, standby));
            self.detector.compare(known.records(), read.records(), fits);
        }
        (self.head, self.primary, self.standby) = (head, primary, standby);
        self.stale = false;
        self.note();
    }

    /// `Ledger::publish_known`.
    pub(super) fn note(&mut self) {
        let known = self.records();
        self.detector.note(known.records());
    }

    /// The first half of `Ledger::put_head_again`: the head is missing.
    pub(super) fn lost_head(&mut self) -> Head {
        let known = self.records();
        self.detector.remember_lost(known.records());
        self.detector.suspect();
        let Head { generation, repair, .. } = self.head.0;
        Head { primary: None, standby: None, generation: generation + 1, repair }
    }

    /// The records of KEKs that were primary or standby before a rollback, and their counters.
    pub(super) fn lost(&self) -> impl Iterator<Item = (Id, u8)> {
        let number = |id: &KekId| id.as_bytes()[0];
        self.detector.lost().iter().map(move |(id, _, uses)| (number(id), uses.reserved as u8))
    }

    /// `Ledger::retire_restored`: the transaction, and the head that it leaves.
    pub(super) fn retirement(&self, owner: u8) -> (Txn, Head) {
        let head = Real::new(self.head, None, None).head.record;
        let head = self.detector.repaired(&head, owner.into());
        let next = Head {
            primary: None,
            standby: None,
            generation: u32::try_from(head.generation).unwrap() + 1,
            repair: head.repair,
        };
        let txn = Txn::default().replace(self.head.1, Put::Head(next)).delete(Key::Claim);
        (retire(txn, self.primary.iter().chain(&self.standby)), next)
    }

    fn records(&self) -> Real {
        Real::new(self.head, self.primary, self.standby)
    }
}

/// The part of `rollback::retire::retire` that concerns the KEKs.
pub(super) fn retire<'a>(mut txn: Txn, held: impl Iterator<Item = &'a Held>) -> Txn {
    for held in held {
        txn = match held.state {
            State::Standby | State::Primary => {
                txn.replace(held.kek, Put::Kek(held.id, State::Retired))
            }
            _ => txn.unchanged(Key::Kek(held.id), held.kek),
        };
    }
    txn
}

/// `rollback::offline::retire_all`: no process runs.
pub(super) fn retire_offline(store: &mut Store) {
    let Some((head, revision)) = store.head else { return };
    if head.primary.or(head.standby).is_none() {
        return;
    }
    let next = Head { primary: None, standby: None, generation: head.generation + 1, ..head };
    let txn = Txn::default().replace(revision, Put::Head(next)).delete(Key::Claim);
    let held = [head.primary, head.standby].map(|id| id.and_then(|id| store.held(id)));
    let txn = retire(txn, held.iter().flatten());
    store.commit(&txn, false).unwrap();
}

/// The records as the real detector takes them.
struct Real {
    head: Versioned<record::Head>,
    primary: Option<records::Held>,
    standby: Option<records::Held>,
}

impl Real {
    fn new(head: (Head, Revision), primary: Option<Held>, standby: Option<Held>) -> Self {
        let (Head { primary: first, standby: second, generation, repair }, revision) = head;
        let record = record::Head {
            suite: Suite::Aes128Gcm,
            limits: Limits::default(),
            primary: first.map(real_id),
            standby: second.map(real_id),
            generation: generation.into(),
            roots_generation: 1,
            named_root: None,
            repair,
            inline: false,
        };
        Self {
            head: Versioned { record, revision: real(revision) },
            primary: primary.map(real_held),
            standby: standby.map(real_held),
        }
    }

    fn records(&self) -> Records<'_> {
        let Self { head, primary, standby } = self;
        Records { head, primary: primary.as_ref(), standby: standby.as_ref() }
    }
}

fn real_id(id: Id) -> KekId {
    KekId::from_bytes([id; KekId::LEN])
}

fn real(revision: Revision) -> crate::store::Revision {
    crate::store::Revision(revision.number.into())
}

fn real_held(held: Held) -> records::Held {
    let record = record::Kek {
        suite: Suite::Aes128Gcm,
        state: held.state,
        created_at: 0,
        promoted_at: None,
        disabled_at: None,
        exposed: false,
        wraps: Vec::new(),
    };
    let uses = Uses { reserved: held.reserved.into(), ..Uses::default() };
    records::Held {
        id: real_id(held.id),
        kek: Versioned { record, revision: real(held.kek) },
        uses: Versioned { record: uses, revision: real(held.uses) },
    }
}
