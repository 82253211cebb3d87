//! The transactions of a repair after the store went back to an earlier state.

use crate::id::KekId;
use crate::service::rollback::detect::Rollback;
use crate::service::rollback::retire::retire;
use crate::store::record::{Head, Kek, Record, State, Uses};
use crate::store::records::{Versioned, create, read_head};
use crate::store::{Committed, Error, Txn};

use super::{Ledger, records};

impl Ledger {
    /// Whether the store went back to an earlier state and the repair is not complete.
    pub(in crate::service) fn is_restored(&self) -> bool {
        self.detector.is_restored()
    }

    /// What is left to do for the repair.
    pub(in crate::service) fn rollback(&self) -> Option<Rollback> {
        self.detector.rollback()
    }

    /// Notes that a record shows a rollback.
    pub(in crate::service) fn set_restored(&mut self) {
        self.detector.suspect();
        self.stale = true;
    }

    /// Notes that the store itself reports a rollback, once for each.
    pub(in crate::service) fn report_restored(&mut self) {
        self.detector.report();
        self.stale = true;
    }

    /// The KEKs that were primary or standby before the rollback.
    pub(in crate::service) fn lost(&self) -> &[(KekId, Kek, Uses)] {
        self.detector.lost()
    }

    /// Notes that the repair is complete.
    pub(in crate::service) fn end_rollback(&mut self) {
        self.detector.end();
    }

    /// Restores a head that is missing, without KEKs.
    pub(super) async fn put_head_again(&mut self) -> Result<Versioned<Head>, Error> {
        self.detector.remember_lost(records(&self.head, &self.primary, &self.standby));
        self.detector.suspect();
        let head = Head {
            primary: None,
            standby: None,
            generation: self.head.record.generation + 1,
            ..self.head.record.clone()
        };
        // Another process would restore the same one.
        let _ = create(&*self.store, &self.chain, &head).await?;
        let read = read_head(&*self.store, &self.chain).await?;
        // No record is damaged: the next attempt restores the head again.
        read.ok_or_else(|| Error::Unavailable {
            detail: "the store was lost while it was repaired".to_owned(),
            maybe_applied: false,
        })
    }

    /// Retires the primary and the standby. Compares: head and both KEKs unchanged.
    pub(in crate::service) async fn retire_restored(&mut self) -> Result<bool, Error> {
        let head = Versioned {
            record: self.detector.repaired(&self.head.record, self.owner),
            revision: self.head.revision,
        };
        let held: Vec<_> = self.primary.iter().chain(&self.standby).collect();
        let (txn, head) = retire(&self.chain, &head, &held)?;
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        (self.primary, self.standby, self.standby_damage) = (None, None, None);
        self.detector.end();
        self.publish_known();
        Ok(true)
    }

    /// Stores a KEK that the store lacks, as one that only decrypts. Returns false if it exists.
    pub(in crate::service) async fn restore(
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
        let txn = Txn::default()
            .create(kek_key, Kek { state, ..kek }.encode()?)
            // They may exist. They are not counted lower, and it does not encrypt any more.
            .put(uses_key, uses.encode()?);
        Ok(matches!(self.store.commit(txn).await?, Committed::Applied(_)))
    }
}
