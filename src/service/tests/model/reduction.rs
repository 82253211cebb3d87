//! States that differ in nothing that has a consequence are made one, so that fewer are searched.

use std::hash::{Hash, Hasher};

use super::replica::{Ledger, Replica, bit};
use super::store::Head;
use super::{Fault, Protocol, State};
use crate::store::record;

impl Protocol {
    /// Whether the store may still go back.
    pub(super) fn may_restore(&self, state: &State) -> bool {
        state.restores < self.restores
    }

    /// Removes differences that have no consequence any more, whatever follows. Only for the whole
    /// protocol: each write then compares what it was made from.
    pub(super) fn reduced(&self, mut state: State) -> State {
        if self.fault.is_some_and(Fault::drops_compares) || self.repeats {
            return state;
        }
        let may_restore = self.may_restore(&state);
        if !may_restore {
            state.copy = None;
        }
        let State { store, copy, replicas, .. } = &mut state;
        // A copy that is made later is of this store, or of one that follows it.
        let stores = || std::iter::once(&*store).chain(copy.as_ref());
        let is = |id, states: &[record::State]| {
            stores().all(|it| it.state(id).is_some_and(|state| states.contains(&state)))
        };
        for replica in replicas {
            let Some(ledger) = &mut replica.ledger else { continue };
            for id in 0..self.keks {
                // It is not promoted again,
                if is(id, &[record::State::Primary, record::State::Retired]) {
                    replica.archived &= !bit(id);
                }
                // no uses of it are reserved,
                if is(id, &[record::State::Retired]) {
                    replica.seen[usize::from(id)] = 0;
                }
                // and no store lacks it.
                if stores().all(|it| it.has(id)) && !(self.wipes && may_restore) {
                    replica.holds &= !bit(id);
                }
            }
            // Whatever it writes meets a conflict.
            let known = Some(ledger.head.1);
            let is_outdated = stores().all(|it| it.head.map(|(_, revision)| revision) != known);
            if is_outdated && replica.repairing.is_none() {
                ledger.stale = true;
            }
            if !self.detects && !self.reads_apart && ledger.stale {
                *ledger = Ledger::load((Head::NEW, ledger.head.1));
                store.head.iter().for_each(|(_, revision)| ledger.head.1 = *revision);
            }
        }
        state
    }
}

impl State {
    /// The same state with the replicas in an order that depends on their contents.
    pub(super) fn canonical(mut self) -> Self {
        let rank = |replica: &Replica| {
            let mut hasher = Rank(0);
            let mut replica = replica.clone();
            if let Some(ledger) = &mut replica.ledger {
                let owned = ledger.head.0.repair.as_mut();
                owned.into_iter().for_each(|repair| *repair &= !0xff);
            }
            replica.hash(&mut hasher);
            hasher.finish()
        };
        let mut order: Vec<_> =
            self.replicas.iter().enumerate().map(|(at, it)| (rank(it), at)).collect();
        order.sort_unstable();
        if order.iter().enumerate().all(|(to, (_, from))| to == *from) {
            return self;
        }
        let to = |old: u8| {
            let at = order.iter().position(|(_, from)| *from == usize::from(old));
            u8::try_from(at.unwrap_or_default()).unwrap_or_default()
        };
        // A repair is named after the process, and a generation above its number.
        let rename = |head: &mut Head| {
            if let Some(repair) = &mut head.repair {
                *repair = *repair & !0xff | u64::from(to((*repair & 0xff) as u8));
            }
        };
        for store in [Some(&mut self.store), self.copy.as_mut()].into_iter().flatten() {
            store.head.iter_mut().for_each(|(head, _)| rename(head));
            store.claim.iter_mut().for_each(|(owner, _)| *owner = to(*owner));
        }
        if let Some(late) = &mut self.late {
            late.rename(&rename);
        }
        for replica in &mut self.replicas {
            replica.rename(&rename);
        }
        self.replicas =
            order.iter().map(|(_, at)| std::mem::take(&mut self.replicas[*at])).collect();
        self
    }
}

/// A quick hash.
struct Rank(u64);

impl Hasher for Rank {
    fn write(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}
