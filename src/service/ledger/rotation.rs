//! The transactions of a rotation: a new standby, its promotion, and blocks of uses of the primary.

use crate::id::KekId;
use crate::service::archive::permit::Permit;
use crate::store::record::{self, Kek, Record, State, Uses};
use crate::store::records::{Held, Versioned};
use crate::store::{Error, Txn};

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
        let txn = self.retiring(&self.standby, Txn::default())?;
        self.put_new(id, kek, txn).await
    }

    /// Adds to `txn` what stores a new KEK as standby, and commits it.
    async fn put_new(&mut self, id: KekId, kek: Kek, txn: Txn) -> Result<bool, Error> {
        let mut head = self.head.record.clone();
        head.standby = Some(id);
        head.generation += 1;
        let (head_key, kek_key, uses_key) = self.keys(id);
        let txn = txn
            .replace(head_key, self.head.revision, head.encode()?)
            .create(kek_key, kek.encode()?)
            .put(uses_key, Uses::default().encode()?)
            // The claim ends with the creation of the standby.
            .delete(record::claim_key(&self.chain));
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
    /// Only with the permission of the archives. Compares: head, standby, its uses and the old
    /// primary unchanged.
    pub(in crate::service) async fn promote(
        &mut self,
        permit: &Permit,
        now: u64,
        block: u64,
    ) -> Result<bool, Error> {
        let standby = self.standby.clone().filter(|standby| standby.id == permit.id());
        let Some(mut next) = standby else { return Ok(false) };
        let mut head = self.head.record.clone();
        head.primary = Some(next.id);
        head.standby = None;
        head.generation += 1;
        next.kek.record.state = State::Primary;
        next.kek.record.promoted_at = Some(now);
        next.uses.record = self.next_block(&next.uses.record, block);
        let (head_key, kek_key, uses_key) = self.keys(next.id);
        let txn = Txn::default()
            .replace(head_key, self.head.revision, head.encode()?)
            .replace(kek_key, next.kek.revision, next.kek.record.encode()?)
            .replace(uses_key, next.uses.revision, next.uses.record.encode()?);
        let txn = self.retiring(&self.primary, txn)?;
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
        let txn = Txn::default()
            .unchanged(head_key, self.head.revision)
            .unchanged(kek_key, primary.kek.revision)
            .replace(uses_key, primary.uses.revision, uses.encode()?);
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.sequence = uses.sequence;
        if let Some(primary) = &mut self.primary {
            primary.uses = Versioned { record: uses, revision };
        }
        self.publish_known();
        Ok(true)
    }

    /// Adds to `txn` what retires `old`. Compares: its record unchanged.
    fn retiring(&self, old: &Option<Held>, txn: Txn) -> Result<Txn, Error> {
        let Some(old) = old else { return Ok(txn) };
        let retired = Kek { state: State::Retired, ..old.kek.record.clone() };
        let key = record::kek_key(&self.chain, old.id);
        Ok(txn.replace(key, old.kek.revision, retired.encode()?))
    }

    fn next_block(&self, uses: &Uses, block: u64) -> Uses {
        Uses {
            reserved: uses.reserved.saturating_add(block),
            owner: self.owner,
            sequence: self.sequence + 1,
        }
    }
}
