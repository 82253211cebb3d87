//! Detects that a store went back to an earlier state, because someone restored an old copy of it.
//! Pure: it compares what was read with what this process read before, and knows no store.
//!
//! Within one history of a store, revisions, generations and counters only grow, and no KEK returns
//! to an earlier state. [`Detector::compare`] checks that at every read of a chain's records. Other
//! signs of a rollback are reported to [`suspect`](Detector::suspect) and
//! [`report`](Detector::report). The [module](super) says which case each of them covers.

use std::collections::VecDeque;

use crate::id::KekId;
use crate::store::Revision;
use crate::store::record::{Head, Kek, NamedRoot, Uses};
use crate::store::records::{Held, Versioned};

/// How many KEKs are remembered. A copy of the store that is older than that many rotations is
/// detected by its lower generation.
const KNOWN: usize = 64;

/// How far a repair raises the generation, so that it exceeds what any other process has seen.
const LEAP: u64 = 1 << 20;

/// A chain's records as one read found them, or as this process knows them.
#[derive(Clone, Copy)]
pub(in crate::service) struct Records<'a> {
    pub(in crate::service) head: &'a Versioned<Head>,
    pub(in crate::service) primary: Option<&'a Held>,
    pub(in crate::service) standby: Option<&'a Held>,
}

impl<'a> Records<'a> {
    fn held(self) -> impl Iterator<Item = (&'a Held, Role)> {
        let primary = self.primary.into_iter().map(|held| (held, Role::Primary));
        primary.chain(self.standby.map(|held| (held, Role::Standby)))
    }
}

/// What a process that detects a rollback of the store has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(in crate::service) enum Rollback {
    /// Retire the primary and the standby, whose counters are too low, and restore what the store
    /// lacks.
    Unrepaired,
    /// Another process has retired them. Only restore what the store lacks.
    Repaired,
}

/// A repair that this process saw before the store reported the rollback. The report belongs to
/// that repair and must not cause another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum Early {
    /// Another process made it, and this process has not yet restored what it holds.
    Adopted,
    /// This process has done its part.
    Answered,
}

/// The counters of a KEK when it was last read or written.
#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
struct Known {
    id: KekId,
    reserved: u64,
    kek: Revision,
    uses: Revision,
    role: Role,
}

/// The role of a KEK in a head; it only grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(test, derive(Debug, Hash))]
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
        self.reserved > now.reserved
            || self.kek > now.kek
            || self.uses > now.uses
            || self.role > now.role
    }
}

/// The past of one chain as this process has seen it.
#[derive(Default)]
#[cfg_attr(test, derive(Clone, Debug, PartialEq, Eq, Hash))]
pub(in crate::service) struct Detector {
    /// What is left to do about a rollback.
    rollback: Option<Rollback>,
    /// A record shows a rollback; the next read confirms it.
    suspected: bool,
    /// The store reports a rollback; the next read confirms it.
    reported: bool,
    /// The store has reported `rollback`.
    is_reported: bool,
    early: Option<Early>,
    /// The highest generation that was read.
    seen_generation: u64,
    /// The newest set of roots that was read, and what the key id named then.
    seen_roots: (u64, Option<NamedRoot>),
    /// The last KEKs that are or were primary or standby.
    known: VecDeque<Known>,
    /// KEKs that were primary or standby before the rollback.
    lost: Vec<(KekId, Kek, Uses)>,
}

impl Detector {
    /// Whether the store went back to an earlier state and the repair is not complete.
    pub(in crate::service) fn is_restored(&self) -> bool {
        self.suspected || self.reported || self.rollback.is_some()
    }

    /// What is left to do for the repair.
    pub(in crate::service) fn rollback(&self) -> Option<Rollback> {
        self.rollback
    }

    /// Notes that a record shows a rollback.
    pub(in crate::service) fn suspect(&mut self) {
        self.suspected = true;
    }

    /// Notes that the store itself reports a rollback, once for each.
    pub(in crate::service) fn report(&mut self) {
        self.reported = true;
    }

    /// Whether this process has never seen a KEK of the chain.
    pub(in crate::service) fn has_seen_none(&self) -> bool {
        self.known.is_empty() && self.lost.is_empty()
    }

    /// The KEKs that were primary or standby before the rollback.
    pub(in crate::service) fn lost(&self) -> &[(KekId, Kek, Uses)] {
        &self.lost
    }

    /// Compares what was just read with what was known before. `fits` is whether the primary is in
    /// the state that the head says: no write makes records that do not fit, except one that met a
    /// revision of another history.
    pub(in crate::service) fn compare(
        &mut self,
        before: Records<'_>,
        read: Records<'_>,
        fits: bool,
    ) {
        self.seen_generation = self.seen_generation.max(before.head.record.generation);
        let (head, known_head) = (read.head, before.head);
        let older_head = head.revision < known_head.revision
            || head.record.generation < known_head.record.generation
            || head.revision == known_head.revision && head.record != known_head.record;
        let older_kek = read.held().any(|(held, role)| {
            let known = self.known.iter().find(|known| known.id == held.id);
            known.is_some_and(|known| known.is_ahead_of(held, role))
        });
        let is_certain = older_kek || !fits;
        let is_evident = older_head || is_certain;
        let by_another = self.is_repaired(&known_head.record, &head.record);
        let is_same_repair = head.record.repair == known_head.record.repair;
        let early = self.early.take().filter(|_| !is_evident && is_same_repair);
        let (suspected, reported) =
            (std::mem::take(&mut self.suspected), std::mem::take(&mut self.reported));
        let is_another = reported
            && match self.rollback {
                Some(_) => self.is_reported,
                None => early != Some(Early::Answered),
            };
        let is_suspected = suspected && self.rollback.is_none();
        if is_evident || is_suspected || is_another {
            self.remember_lost(before);
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

    /// Whether another process repaired the chain and had seen at least as much as this one. Then
    /// the KEKs that the head names were created after the rollback.
    fn is_repaired(&self, before: &Head, head: &Head) -> bool {
        let (seen_roots, seen_named) = &self.seen_roots;
        head.repair.is_some()
            && head.repair != before.repair
            && head.generation > self.seen_generation
            && head.roots_generation >= *seen_roots
            && generation(&head.named_root) >= generation(seen_named)
    }

    /// Notes the current records: the counters of primary and standby, and the newest set of roots.
    pub(in crate::service) fn note(&mut self, now: Records<'_>) {
        let held: Vec<_> = now.held().map(|(held, role)| Known::new(held, role)).collect();
        self.known.retain(|known| held.iter().all(|now| now.id != known.id));
        for past in &mut self.known {
            past.role = Role::Past;
        }
        self.known.extend(held);
        while self.known.len() > KNOWN {
            self.known.pop_front();
        }
        let Head { roots_generation, named_root, .. } = &now.head.record;
        let (seen, named) = &mut self.seen_roots;
        *seen = (*seen).max(*roots_generation);
        if generation(named_root) > generation(named) {
            named.clone_from(named_root);
        }
    }

    /// Keeps the records of the KEKs that were primary or standby.
    pub(in crate::service) fn remember_lost(&mut self, before: Records<'_>) {
        for (held, _) in before.held() {
            if self.lost.iter().all(|(id, ..)| *id != held.id) {
                self.lost.push((held.id, held.kek.record.clone(), held.uses.record));
            }
        }
    }

    /// The head that a repair by the process `owner` starts from. Its generation exceeds what any
    /// process has seen, and the key id never becomes an earlier one.
    pub(in crate::service) fn repaired(&self, head: &Head, owner: u64) -> Head {
        let seen = self.seen_generation.max(head.generation) + LEAP;
        let (roots_generation, named_root) = self.seen_roots.clone();
        let repair = Some(owner ^ head.generation.max(seen).rotate_left(32));
        Head {
            generation: head.generation.max(seen),
            roots_generation,
            named_root,
            repair,
            ..head.clone()
        }
    }

    /// Notes that the repair is complete.
    pub(in crate::service) fn end(&mut self) {
        self.rollback = None;
        self.lost.clear();
        let is_reported = std::mem::take(&mut self.is_reported);
        self.early = (!is_reported).then_some(Early::Answered);
    }
}

fn generation(named: &Option<NamedRoot>) -> Option<u64> {
    named.as_ref().map(|named| named.generation)
}
