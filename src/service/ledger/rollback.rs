//! The transactions of a repair after the store went back to an earlier state.

use crate::id::KekId;
use crate::service::rollback::detect::Rollback;
use crate::service::rollback::retire::retire;
use crate::store::record::{self, Head, Kek, Record, State, Uses};
use crate::store::records::{Versioned, create, missing, read_head};
use crate::store::{Committed, Compare, Error, Txn};

use super::Ledger;

impl Ledger {
    /// Whether the store went back to an earlier state, and something is left to do about it.
    pub(in crate::service) fn is_restored(&self) -> bool {
        self.detector.is_restored()
    }

    /// What is left to do about it.
    pub(in crate::service) fn rollback(&self) -> Option<Rollback> {
        self.detector.rollback()
    }

    /// A record that was read shows it.
    pub(in crate::service) fn set_restored(&mut self) {
        self.detector.suspect();
        self.stale = true;
    }

    /// The store itself reports it, once for each time.
    pub(in crate::service) fn report_restored(&mut self) {
        self.detector.report();
        self.stale = true;
    }

    /// The KEKs that were primary or standby before.
    pub(in crate::service) fn lost(&self) -> &[(KekId, Kek, Uses)] {
        self.detector.lost()
    }

    /// Nothing is left to do about it.
    pub(in crate::service) fn end_rollback(&mut self) {
        self.detector.end();
    }

    /// The head is gone, and it was there: puts one without KEKs in its place.
    pub(super) async fn put_head_again(&mut self) -> Result<Versioned<Head>, Error> {
        let mut detector = std::mem::take(&mut self.detector);
        detector.remember_lost(self.records());
        detector.suspect();
        self.detector = detector;
        let head = Head {
            primary: None,
            standby: None,
            generation: self.head.record.generation + 1,
            ..self.head.record.clone()
        };
        // Any other process makes the same one.
        let _ = create(&*self.store, &self.chain, &head).await?;
        let read = read_head(&*self.store, &self.chain).await?;
        read.ok_or_else(|| missing(&record::head_key(&self.chain)))
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

    /// Stores a KEK that the store lacks, as one that only decrypts. False when it is there.
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
        let txn = Txn {
            // Its uses may be there: they are counted no lower, and it encrypts no more.
            compares: vec![Compare::Absent(kek_key.clone())],
            puts: vec![(kek_key, Kek { state, ..kek }.encode()?), (uses_key, uses.encode()?)],
            deletes: Vec::new(),
        };
        Ok(matches!(self.store.commit(txn).await?, Committed::Applied(_)))
    }
}
