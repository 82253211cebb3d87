//! A model of the protocol of chains, whose states are searched exhaustively: replicas on one store
//! and an archive, with crashes, lost answers, and old copies of the store that are restored.
//!
//! Where the simulation runs the real code through random histories, the model runs through all
//! histories within its bounds. Its steps are the transactions of the ledger; the detector of
//! rollbacks is the real one. There is no time: whatever may be due at some time may happen at any
//! time, and a block never ends, which only adds histories. There are no states of operators
//! (disable, destroy) and no roots.
//!
//! Each rule that protects a promise can be left out ([`Fault`]): then the search must find a
//! history that breaks the promise.
//!
//! | file | owns |
//! | --- | --- |
//! | [`store`] | the records, and the transactions |
//! | [`replica`] | what a process knows |
//! | [`actions`] | which steps are possible |
//! | [`steps`] | what they do |
//! | [`reduction`] | which states are one |
//! | [`properties`] | the promises |
//! | [`search`] | the searches of the whole protocol |
//! | [`faults`] | the searches without a rule |

use stateright::{Model, Property};

mod actions;
mod faults;
mod properties;
mod reduction;
mod replica;
mod search;
mod steps;
mod store;

use actions::Action;
use replica::{Budget, Ledger, Replica, bit};
use store::{Head, Id, KEKS, Store, Txn};

use super::simulation::variable;

/// The limit of uses of a KEK, and the size of a block.
const MAX_USES: u8 = 4;
const BLOCK: u8 = 2;

/// The most restores, and one.
const SEGMENTS: usize = 3;

/// The bounds of a search, and the rule that is left out.
#[derive(Clone, Copy, Debug)]
struct Protocol {
    replicas: u8,
    keks: u8,
    crashes: u8,
    /// Requests or answers that are lost.
    losses: u8,
    /// Whether requests whose answer was given up may arrive later.
    late: bool,
    restores: u8,
    /// Whether an empty store may be restored.
    wipes: bool,
    archive: bool,
    /// Whether the store reports restores.
    reports: bool,
    /// Whether a process claims a KEK before it makes it; without claims, every process may.
    claims: bool,
    /// Whether a claim may expire while its process still runs.
    takeovers: bool,
    /// Whether the KEKs that a head names are read after it.
    reads_apart: bool,
    /// Whether a store takes a revision of another history for its own.
    repeats: bool,
    /// Whether what is read is compared with what was known. It changes nothing without restores.
    detects: bool,
    /// Whether states that differ in the numbers of replicas are one.
    is_symmetric: bool,
    fault: Option<Fault>,
}

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The claim does not compare.
    ClaimWithoutCompare,
    /// A new standby does not compare the head.
    StandbyWithoutCompare,
    /// A promotion compares nothing.
    PromotionWithoutCompare,
    /// A reservation does not compare the counter.
    ReservationWithoutCompare,
    /// A reservation compares neither the head nor the state of the KEK.
    ReservationOfRetired,
    /// A promotion needs no permit of the archives.
    UseBeforeArchive,
    /// An archive counts as holding a KEK before it has answered.
    ArchivedBeforeAnswer,
    /// A repair leaves the primary and the standby as they are.
    RepairWithoutRetirement,
    /// A repair does not restore what its process holds.
    RepairWithoutRestoring,
    /// A KEK that the store lacked is restored as one that may encrypt.
    RestoredAsStandby,
    /// Nobody runs `store restored`.
    NotRetiredOffline,
    /// A lost answer counts as a success.
    BlockSpentAfterLostAnswer,
    /// A process that starts again continues with its last block.
    BlockReusedAfterCrash,
    /// A promotion is published before it is stored.
    PublishedBeforeStored,
}

impl Fault {
    /// Whether a transaction may be applied that was made from old records.
    fn drops_compares(self) -> bool {
        [
            Self::ClaimWithoutCompare,
            Self::StandbyWithoutCompare,
            Self::PromotionWithoutCompare,
            Self::ReservationWithoutCompare,
            Self::ReservationOfRetired,
        ]
        .contains(&self)
    }
}

/// What a step found to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wrong {
    KnownUses,
    CounterFell,
    CounterPastLimit,
    UsesOfRetired,
    Wasted,
    NotRestored,
}

/// A state of the whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    store: Store,
    /// The operator's copy of the store.
    copy: Option<Store>,
    /// The KEKs that are archived, as bits.
    archive: u8,
    replicas: Vec<Replica>,
    /// A request whose answer was given up.
    late: Option<Txn>,
    /// The KEKs that were stored, or may be.
    made: u8,
    crashes: u8,
    losses: u8,
    restores: u8,
    /// The envelopes of each KEK, by the segment of their use.
    envelopes: [[u8; SEGMENTS]; KEKS],
    /// A restore while processes run begins a new segment: the limit of uses holds in each. A
    /// restore that is followed by `store restored` does not.
    segment: u8,
    /// KEKs that were neither in a copy that was restored, nor in an archive, nor held, as bits.
    lost: u8,
    wrong: Option<Wrong>,
}

impl State {
    fn ledger(&mut self, one: u8) -> &mut Ledger {
        self.replicas[usize::from(one)].ledger.as_mut().expect("it runs")
    }

    fn envelopes(&self, id: Id) -> u8 {
        self.envelopes[usize::from(id)].iter().sum::<u8>()
    }

    fn primary(&self) -> Option<Id> {
        self.store.head.and_then(|(head, _)| head.primary)
    }

    fn is_held(&self, id: Id) -> bool {
        self.replicas.iter().any(|it| it.ledger.is_some() && it.holds & bit(id) != 0)
    }

    /// A process received `block` uses from `reserved` on.
    fn granted(&mut self, one: u8, id: Id, reserved: u8, block: u8) {
        let replica = &mut self.replicas[usize::from(one)];
        let seen = &mut replica.seen[usize::from(id)];
        if *seen > reserved {
            self.wrong = Some(Wrong::KnownUses);
        }
        *seen = reserved + block;
        replica.budget = Budget { left: block, segment: self.segment };
    }

    /// A process made a KEK that is not stored.
    fn wasted(&mut self, takeovers: bool) {
        if !takeovers && self.crashes + self.losses + self.restores == 0 {
            self.wrong = Some(Wrong::Wasted);
        }
    }

    /// A process ended a repair. With an archive, it may have found one more KEK there meanwhile.
    fn repaired(&mut self, one: u8, archive: bool) {
        let holds = self.replicas[usize::from(one)].holds;
        let lacks = (0..self.made).any(|id| holds & bit(id) != 0 && !self.store.has(id));
        if lacks && self.restores == 1 && !archive {
            self.wrong = Some(Wrong::NotRestored);
        }
    }

    /// Notes the KEKs that nobody has any more.
    fn forget_lost(&mut self) {
        for id in (0..self.made).filter(|&id| !self.store.has(id)) {
            if !self.is_held(id) {
                self.lost |= bit(id);
            }
        }
    }
}

impl Protocol {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    /// All replicas have just started on a new chain.
    fn init_states(&self) -> Vec<State> {
        let mut store = Store::default();
        store.commit(&Txn::default().create(store::Put::Head(Head::NEW)), false).unwrap();
        let replica = Replica { ledger: store.head.map(Ledger::load), ..Replica::default() };
        vec![State {
            store,
            copy: None,
            archive: 0,
            replicas: vec![replica; self.replicas.into()],
            late: None,
            made: 0,
            crashes: 0,
            losses: 0,
            restores: 0,
            envelopes: Default::default(),
            segment: 0,
            lost: 0,
            wrong: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.possible(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let next = self.step(last, action).filter(|next| next != last)?;
        let next = self.reduced(next);
        Some(if self.is_symmetric { next.canonical() } else { next })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self)
    }
}
