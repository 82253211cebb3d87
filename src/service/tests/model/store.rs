//! The store of the model: the records of one chain, and conditional transactions on them. A
//! transaction is one atomic step, as the contract of [`Store`](crate::store::Store) demands.

use crate::store::record::State;

/// The number of a KEK, in the order in which they are stored.
pub(super) type Id = u8;

/// The most KEKs of a history.
pub(super) const KEKS: usize = 3;

/// A revision. Its number repeats after a restore, and is all that a process sees of it. The
/// history is that of the write: a store notices by it, or by the value, that the revision is not
/// the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Revision {
    pub(super) number: u8,
    pub(super) history: u8,
}

/// What the model has of [`Head`](crate::store::record::Head): the rest never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Head {
    pub(super) primary: Option<Id>,
    pub(super) standby: Option<Id>,
    pub(super) generation: u32,
    pub(super) repair: Option<u64>,
}

impl Head {
    /// That of a new chain.
    pub(super) const NEW: Self = Self { primary: None, standby: None, generation: 1, repair: None };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Head,
    Kek(Id),
    Uses(Id),
    Claim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Put {
    Head(Head),
    Kek(Id, State),
    Uses(Id, u8),
    /// The number of the process that claims.
    Claim(u8),
}

impl Put {
    fn key(self) -> Key {
        match self {
            Self::Head(_) => Key::Head,
            Self::Kek(id, _) => Key::Kek(id),
            Self::Uses(id, _) => Key::Uses(id),
            Self::Claim(_) => Key::Claim,
        }
    }
}

/// A [`Txn`](crate::store::Txn).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Txn {
    /// `None` is an absent record.
    compares: Vec<(Key, Option<Revision>)>,
    pub(super) puts: Vec<Put>,
    deletes: Vec<Key>,
}

impl Txn {
    pub(super) fn unchanged(mut self, key: Key, revision: Revision) -> Self {
        self.compares.push((key, Some(revision)));
        self
    }

    pub(super) fn replace(self, revision: Revision, put: Put) -> Self {
        self.unchanged(put.key(), revision).put(put)
    }

    pub(super) fn create(mut self, put: Put) -> Self {
        self.compares.push((put.key(), None));
        self.put(put)
    }

    pub(super) fn put(mut self, put: Put) -> Self {
        self.puts.push(put);
        self
    }

    pub(super) fn delete(mut self, key: Key) -> Self {
        self.deletes.push(key);
        self
    }

    /// Removes compares: a deliberate fault.
    pub(super) fn without(mut self, is_dropped: impl Fn(Key) -> bool) -> Self {
        self.compares.retain(|(key, _)| !is_dropped(*key));
        self
    }

    /// Renames the processes in it.
    pub(super) fn rename(&mut self, rename: &impl Fn(&mut Head)) {
        for put in &mut self.puts {
            if let Put::Head(head) = put {
                rename(head);
            }
        }
    }
}

/// The records of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Store {
    /// The number of the last revision.
    number: u8,
    pub(super) history: u8,
    pub(super) head: Option<(Head, Revision)>,
    pub(super) keks: [Option<(State, Revision)>; KEKS],
    pub(super) uses: [Option<(u8, Revision)>; KEKS],
    pub(super) claim: Option<(u8, Revision)>,
}

impl Store {
    /// Applies `txn` if its compares hold. With `repeats`, a revision of another history that has
    /// the same number is taken for the one that was read.
    pub(super) fn commit(&mut self, txn: &Txn, repeats: bool) -> Option<Revision> {
        let holds =
            txn.compares.iter().all(|&(key, expected)| match (self.revision(key), expected) {
                (Some(now), Some(read)) if repeats => now.number == read.number,
                (now, read) => now == read,
            });
        if !holds {
            return None;
        }
        self.number += 1;
        let revision = Revision { number: self.number, history: self.history };
        for put in &txn.puts {
            match *put {
                Put::Head(head) => self.head = Some((head, revision)),
                Put::Kek(id, state) => self.keks[usize::from(id)] = Some((state, revision)),
                Put::Uses(id, uses) => self.uses[usize::from(id)] = Some((uses, revision)),
                Put::Claim(owner) => self.claim = Some((owner, revision)),
            }
        }
        if txn.deletes.contains(&Key::Claim) {
            self.claim = None;
        }
        Some(revision)
    }

    fn revision(&self, key: Key) -> Option<Revision> {
        match key {
            Key::Head => self.head.map(|(_, revision)| revision),
            Key::Kek(id) => self.keks[usize::from(id)].map(|(_, revision)| revision),
            Key::Uses(id) => self.uses[usize::from(id)].map(|(_, revision)| revision),
            Key::Claim => self.claim.map(|(_, revision)| revision),
        }
    }

    pub(super) fn has(&self, id: Id) -> bool {
        self.keks[usize::from(id)].is_some()
    }

    pub(super) fn state(&self, id: Id) -> Option<State> {
        self.keks[usize::from(id)].map(|(state, _)| state)
    }

    pub(super) fn reserved(&self, id: Id) -> u8 {
        self.uses[usize::from(id)].map_or(0, |(uses, _)| uses)
    }

    /// Whether the head and the records of the KEKs agree.
    pub(super) fn agrees(&self) -> bool {
        let Some((head, _)) = self.head else { return true };
        let names = |id: Option<Id>, state| id.is_none_or(|id| self.state(id) == Some(state));
        let alone = |state, id: Option<Id>| {
            (0..)
                .zip(&self.keks)
                .all(|(other, kek)| kek.is_none_or(|(is, _)| is != state || id == Some(other)))
        };
        names(head.primary, State::Primary)
            && names(head.standby, State::Standby)
            && alone(State::Primary, head.primary)
            && alone(State::Standby, head.standby)
    }
}
