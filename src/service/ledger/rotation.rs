//! The transactions of a rotation: a new standby, its promotion, and blocks of uses of the primary.

use crate::id::KekId;
use crate::store::record::{self, Kek, Record, State, Uses};
use crate::store::records::{Held, Versioned};
use crate::store::{Compare, Error, Txn};

use super::Ledger;

impl Ledger {
    /// Stores a new KEK as standby. Compares: head unchanged, without a standby.
    pub(in crate::service) async fn put_standby(
        &mut self,
        id: KekId,
        kek: Kek,
    ) -> Result<bool, Error> {
        if self.head.record.standby.is_some() {
            return Ok(false);
        }
        self.put_new(id, kek, Txn::default()).await
    }

    /// Replaces a standby that can't be unwrapped by a new KEK. The old one is retired, unless its
    /// record is damaged: then that is left as it is. Compares: head and old standby unchanged.
    pub(in crate::service) async fn replace_standby(
        &mut self,
        id: KekId,
        kek: Kek,
    ) -> Result<bool, Error> {
        if self.head.record.standby.is_none() {
            return Ok(false);
        }
        let (mut compares, mut puts) = (Vec::new(), Vec::new());
        if let Some(old) = &self.standby {
            let key = record::kek_key(&self.chain, old.id);
            let retired = Kek { state: State::Retired, ..old.kek.record.clone() };
            compares.push(Compare::Unchanged(key.clone(), old.kek.revision));
            puts.push((key, retired.encode()?));
        }
        self.put_new(id, kek, Txn { compares, puts, deletes: Vec::new() }).await
    }

    /// Adds to `txn` what stores a new KEK as standby, and commits it.
    async fn put_new(&mut self, id: KekId, kek: Kek, mut txn: Txn) -> Result<bool, Error> {
        let mut head = self.head.record.clone();
        head.standby = Some(id);
        head.generation += 1;
        let (head_key, kek_key, uses_key) = self.keys(id);
        txn.compares.extend([
            Compare::Unchanged(head_key.clone(), self.head.revision),
            Compare::Absent(kek_key.clone()),
        ]);
        txn.puts.extend([
            (head_key, head.encode()?),
            (kek_key, kek.encode()?),
            (uses_key, Uses::default().encode()?),
        ]);
        // The claim ends with the creation of the standby.
        txn.deletes.push(record::claim_key(&self.chain));
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        self.standby = Some(Held {
            id,
            kek: Versioned { record: kek, revision },
            uses: Versioned { record: Uses::default(), revision },
        });
        self.standby_damage = None;
        self.publish_known();
        Ok(true)
    }

    /// Makes the standby primary and reserves its first block, so that no request waits for that.
    /// Compares: head, standby, its uses and the old primary unchanged.
    pub(in crate::service) async fn promote(
        &mut self,
        now: u64,
        block: u64,
    ) -> Result<bool, Error> {
        let Some(mut next) = self.standby.clone() else { return Ok(false) };
        let mut head = self.head.record.clone();
        head.primary = Some(next.id);
        head.standby = None;
        head.generation += 1;
        next.kek.record.state = State::Primary;
        next.kek.record.promoted_at = Some(now);
        next.uses.record = self.next_block(&next.uses.record, block);
        let (head_key, kek_key, uses_key) = self.keys(next.id);
        let mut txn = Txn {
            compares: vec![
                Compare::Unchanged(head_key.clone(), self.head.revision),
                Compare::Unchanged(kek_key.clone(), next.kek.revision),
                Compare::Unchanged(uses_key.clone(), next.uses.revision),
            ],
            puts: vec![
                (head_key, head.encode()?),
                (kek_key, next.kek.record.encode()?),
                (uses_key, next.uses.record.encode()?),
            ],
            deletes: Vec::new(),
        };
        if let Some(old) = &self.primary {
            let key = record::kek_key(&self.chain, old.id);
            let retired = Kek { state: State::Retired, ..old.kek.record.clone() };
            txn.compares.push(Compare::Unchanged(key.clone(), old.kek.revision));
            txn.puts.push((key, retired.encode()?));
        }
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        next.kek.revision = revision;
        next.uses.revision = revision;
        self.primary = Some(next);
        self.standby = None;
        self.publish_known();
        Ok(true)
    }

    /// Reserves `block` uses of the primary. Compares: its uses unchanged, its state still primary,
    /// and the head unchanged, since `max_uses` may have been lowered.
    pub(in crate::service) async fn reserve(&mut self, block: u64) -> Result<bool, Error> {
        let Some(primary) = &self.primary else { return Ok(false) };
        let uses = self.next_block(&primary.uses.record, block);
        if uses.reserved > self.head.record.limits.max_uses {
            return Ok(false);
        }
        let (head_key, kek_key, uses_key) = self.keys(primary.id);
        let txn = Txn {
            compares: vec![
                Compare::Unchanged(head_key, self.head.revision),
                Compare::Unchanged(kek_key, primary.kek.revision),
                Compare::Unchanged(uses_key.clone(), primary.uses.revision),
            ],
            puts: vec![(uses_key, uses.encode()?)],
            deletes: Vec::new(),
        };
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.sequence = uses.sequence;
        if let Some(primary) = &mut self.primary {
            primary.uses = Versioned { record: uses, revision };
        }
        self.publish_known();
        Ok(true)
    }

    fn next_block(&self, uses: &Uses, block: u64) -> Uses {
        Uses {
            reserved: uses.reserved.saturating_add(block),
            owner: self.owner,
            sequence: self.sequence + 1,
        }
    }
}
