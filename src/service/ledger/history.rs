//! A store that went back to an earlier state, because somebody restored an old copy: how that is
//! noticed, and what is done. The counters of the copy are too low, and KEKs that were made since
//! are gone from it; so its primary and standby encrypt no more, and what is known is put back.

use crate::id::{ChainName, KekId};
use crate::store::record::{self, Head, Kek, NamedRoot, Record, State, Uses};
use crate::store::{Committed, Compare, Error, Revision, Store, Txn};

use super::{Held, Ledger, Read, Versioned, create, missing, read_head, read_held};

/// How many KEKs are remembered: a copy of the store that is older than the last so many rotations
/// has a generation that is lower.
const KNOWN: usize = 64;

/// How far a KEK was when it was last read or written.
pub(super) struct Known {
    id: KekId,
    reserved: u64,
    kek: Revision,
    uses: Revision,
    role: Role,
}

/// What a head says of a KEK; it only grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Standby,
    Primary,
    Past,
}

impl Known {
    fn new(held: &Held, role: Role) -> Self {
        let Held { id, kek, uses } = held;
        let reserved = uses.record.reserved;
        Self { id: *id, reserved, kek: kek.revision, uses: uses.revision, role }
    }

    fn is_ahead_of(&self, held: &Held, role: Role) -> bool {
        let now = Self::new(held, role);
        now.reserved < self.reserved
            || now.uses < self.uses
            || now.kek < self.kek
            || now.role < self.role
    }
}

/// What a process that notices a rollback of the store has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum Rollback {
    /// Retire the primary and the standby, whose counters are too low, and restore what the store
    /// lacks.
    Unrepaired,
    /// Another process retired them. Only restore what the store lacks.
    Repaired,
}

/// A repair that this process met before the store reported the rollback. The report belongs to that
/// repair, and is no reason for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Early {
    /// Another process made it, and this one has not yet restored what it holds.
    Adopted,
    /// This process has done its part.
    Answered,
}

/// How far a repair raises the generation, so that it passes what any other process saw.
const LEAP: u64 = 1 << 20;

impl Ledger {
    /// Whether the store went back to an earlier state, and something is left to do about it.
    pub(in crate::service) fn is_restored(&self) -> bool {
        self.suspected || self.reported || self.rollback.is_some()
    }

    /// What is left to do about it.
    pub(in crate::service) fn rollback(&self) -> Option<Rollback> {
        self.rollback
    }

    /// A record that was read shows it.
    pub(in crate::service) fn set_restored(&mut self) {
        self.suspected = true;
        self.stale = true;
    }

    /// The store itself reports it, once for each time.
    pub(in crate::service) fn report_restored(&mut self) {
        self.reported = true;
        self.stale = true;
    }

    /// Compares what is read with what was read before. Revisions, generations and counters only
    /// grow within one history, and no KEK goes back in its life.
    pub(super) fn notice_rollback(&mut self, read: &Read) {
        let Read { head, primary, standby, fits, .. } = read;
        let (primary, standby) = (primary.as_ref(), standby.as_ref());
        let older_head = head.revision < self.head.revision
            || head.record.generation < self.head.record.generation
            || head.revision == self.head.revision && head.record != self.head.record;
        let now = primary.map(|held| (held, Role::Primary));
        let mut now = now.into_iter().chain(standby.map(|held| (held, Role::Standby)));
        let older_kek = now.any(|(held, role)| {
            let known = self.known.iter().find(|known| known.id == held.id);
            known.is_some_and(|known| known.is_ahead_of(held, role))
        });
        // No write makes a head and a primary that do not fit, but one that met a revision of another
        // history.
        let is_certain = older_kek || !fits;
        let is_evident = older_head || is_certain;
        let by_another = self.is_repaired(&head.record);
        let early = self
            .early
            .take()
            .filter(|_| !is_evident && head.record.repair == self.head.record.repair);
        let (suspected, reported) =
            (std::mem::take(&mut self.suspected), std::mem::take(&mut self.reported));
        let is_another = reported
            && match self.rollback {
                Some(_) => self.is_reported,
                None => early != Some(Early::Answered),
            };
        let is_suspected = suspected && self.rollback.is_none();
        if is_evident || is_suspected || is_another {
            self.remember_lost();
            self.rollback = Some(Rollback::Unrepaired);
        }
        if self.rollback.is_none() {
            self.early = match early {
                _ if by_another => Some(Early::Adopted),
                early => early.filter(|_| !reported),
            };
            return;
        }
        self.is_reported |= reported;
        if !is_certain && (by_another || early == Some(Early::Adopted)) {
            self.rollback = Some(Rollback::Repaired);
        }
    }

    /// Whether another process repaired the chain, and knew of no less than this one: then the KEKs
    /// that the head names were made after the rollback.
    fn is_repaired(&self, head: &Head) -> bool {
        let named = |named: &Option<NamedRoot>| named.as_ref().map(|named| named.generation);
        let (seen_roots, seen_named) = &self.seen_roots;
        head.repair.is_some()
            && head.repair != self.head.record.repair
            && head.generation > self.seen_generation
            && head.roots_generation >= *seen_roots
            && named(&head.named_root) >= named(seen_named)
    }

    /// Notes how far the KEKs are that encrypt now or next.
    pub(super) fn note_known(&mut self) {
        let held = self.primary.iter().map(|held| (held, Role::Primary));
        let held = held.chain(self.standby.iter().map(|held| (held, Role::Standby)));
        let now: Vec<_> = held.map(|(held, role)| Known::new(held, role)).collect();
        self.known.retain(|known| now.iter().all(|now| now.id != known.id));
        for past in &mut self.known {
            past.role = Role::Past;
        }
        self.known.extend(now);
        while self.known.len() > KNOWN {
            self.known.pop_front();
        }
    }

    /// Notes the newest set of roots.
    pub(super) fn note_roots(&mut self) {
        let Head { roots_generation, named_root, .. } = &self.head.record;
        let (seen, named) = &mut self.seen_roots;
        *seen = (*seen).max(*roots_generation);
        let generation = |named: &Option<NamedRoot>| named.as_ref().map(|named| named.generation);
        if generation(named_root) > generation(named) {
            named.clone_from(named_root);
        }
    }

    /// The head is gone, and it was there: puts one without KEKs in its place.
    pub(super) async fn put_head_again(&mut self) -> Result<Versioned<Head>, Error> {
        self.remember_lost();
        self.suspected = true;
        let head = Head {
            primary: None,
            standby: None,
            generation: self.head.record.generation + 1,
            ..self.head.record.clone()
        };
        // Whoever else does so makes the same.
        let _ = create(&*self.store, &self.chain, &head).await?;
        let read = read_head(&*self.store, &self.chain).await?;
        read.ok_or_else(|| missing(&record::head_key(&self.chain)))
    }

    fn remember_lost(&mut self) {
        for held in self.primary.iter().chain(&self.standby) {
            if self.lost.iter().all(|(id, ..)| *id != held.id) {
                self.lost.push((held.id, held.kek.record.clone(), held.uses.record));
            }
        }
    }

    /// Retires primary and standby after a restore. Compares: head and both KEKs unchanged.
    pub(in crate::service) async fn retire_restored(&mut self) -> Result<bool, Error> {
        // The generation must pass what any process saw before.
        let seen = self.seen_generation.max(self.head.record.generation) + LEAP;
        // What the keys are called outside never becomes what it was before.
        let (roots_generation, named_root) = self.seen_roots.clone();
        let mut before = self.head.clone();
        before.record.roots_generation = roots_generation;
        before.record.named_root = named_root;
        before.record.repair =
            Some(self.owner ^ before.record.generation.max(seen).rotate_left(32));
        let (txn, head) = retire(&self.chain, &before, &self.primary, &self.standby, seen)?;
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        (self.primary, self.standby, self.standby_damage) = (None, None, None);
        self.end_rollback();
        self.tell();
        Ok(true)
    }

    /// Nothing is left to do about a rollback.
    pub(in crate::service) fn end_rollback(&mut self) {
        self.rollback = None;
        self.lost.clear();
        let is_reported = std::mem::take(&mut self.is_reported);
        self.early = (!is_reported).then_some(Early::Answered);
    }

    /// The KEKs that were primary or standby before a restore.
    pub(in crate::service) fn lost(&self) -> &[(KekId, Kek, Uses)] {
        &self.lost
    }

    /// Stores a KEK that the store lacks, as one that only decrypts. False when it is there.
    pub(in crate::service) async fn put_back(
        &self,
        id: KekId,
        kek: Kek,
        uses: Uses,
    ) -> Result<bool, Error> {
        let (_, kek_key, uses_key) = self.keys(id);
        let state = match kek.state {
            State::Standby | State::Primary => State::Retired,
            state => state,
        };
        let txn = Txn {
            // Its uses may be there: they are counted no lower, and it encrypts no more.
            compares: vec![Compare::Absent(kek_key.clone())],
            puts: vec![(kek_key, Kek { state, ..kek }.encode()?), (uses_key, uses.encode()?)],
            deletes: Vec::new(),
        };
        Ok(matches!(self.store.commit(txn).await?, Committed::Applied(_)))
    }
}

/// What [`retire_all`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::service) struct Retired {
    /// The KEKs that it retired.
    pub(in crate::service) ids: Vec<KekId>,
    /// KEKs that the head named and whose records are damaged: they stay as they are, and the head
    /// names them no more.
    pub(in crate::service) damaged: Vec<Error>,
}

/// Retires primary and standby of a chain that no process serves. `None` when others changed the
/// chain meanwhile.
///
/// # Errors
/// [`Error`]; a chain that is not there is damage.
pub(in crate::service) async fn retire_all(
    store: &dyn Store,
    chain: &ChainName,
) -> Result<Option<Retired>, Error> {
    let key = record::head_key(chain);
    let head = read_head(store, chain).await?.ok_or_else(|| missing(&key))?;
    let mut retired = Retired::default();
    if head.record.primary.or(head.record.standby).is_none() {
        return Ok(Some(retired));
    }
    let mut held = async |id: Option<KekId>| -> Result<Option<Held>, Error> {
        let Some(id) = id else { return Ok(None) };
        match read_held(store, chain, id).await {
            Err(error @ Error::Corrupt { .. }) => {
                retired.damaged.push(error);
                Ok(None)
            }
            held => held.map(Some),
        }
    };
    let (primary, standby) = (held(head.record.primary).await?, held(head.record.standby).await?);
    let (txn, _) = retire(chain, &head, &primary, &standby, 0)?;
    retired.ids = primary.iter().chain(&standby).map(|held| held.id).collect();
    Ok(match store.commit(txn).await? {
        Committed::Applied(_) => Some(retired),
        Committed::Conflict => None,
    })
}

/// The txn that retires primary and standby, and the head that it leaves.
fn retire(
    chain: &ChainName,
    head: &Versioned<Head>,
    primary: &Option<Held>,
    standby: &Option<Held>,
    seen_generation: u64,
) -> Result<(Txn, Head), Error> {
    let next = Head {
        primary: None,
        standby: None,
        generation: head.record.generation.max(seen_generation) + 1,
        ..head.record.clone()
    };
    let key = record::head_key(chain);
    let mut txn = Txn {
        compares: vec![Compare::Unchanged(key.clone(), head.revision)],
        puts: vec![(key, next.encode()?)],
        deletes: vec![record::claim_key(chain)],
    };
    for held in primary.iter().chain(standby) {
        let key = record::kek_key(chain, held.id);
        txn.compares.push(Compare::Unchanged(key.clone(), held.kek.revision));
        // One that was disabled or destroyed since stays so.
        if matches!(held.kek.record.state, State::Standby | State::Primary) {
            let retired = Kek { state: State::Retired, ..held.kek.record.clone() };
            txn.puts.push((key, retired.encode()?));
        }
    }
    Ok((txn, next))
}
