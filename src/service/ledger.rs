//! The records of one chain as this process knows them, and the conditional writes that change
//! them: the transactions of the protocol. It contains nothing that is not stored.
//!
//! The records may be out of date. Then a write conflicts, and everything is read again. A write
//! whose response was lost counts as applied, and the uses that it reserved are never spent.

use std::sync::Arc;

use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};
use crate::store::record::{self, Head, Kek, Limits, NamedRoot, Record, State};
use crate::store::records::{Held, Together, Versioned, missing, read_head, read_together};
use crate::store::{Committed, Error, Revision, Store, Txn};

use super::rollback::detect::{Detector, Records};

mod claim;
mod rollback;
mod rotation;
mod staleness;

pub(super) use staleness::Staleness;

/// The records of a chain as one read found them.
struct Read {
    head: Versioned<Head>,
    primary: Option<Held>,
    standby: Option<Held>,
    /// Why the standby's records can't be read.
    damage: Option<Error>,
    /// Whether the primary is in the state that the head says.
    fits: bool,
}

/// The records of one chain.
pub(super) struct Ledger {
    store: Arc<dyn Store>,
    chain: ChainName,
    /// This process, and the number of its last block.
    owner: u64,
    sequence: u64,
    pub(super) head: Versioned<Head>,
    pub(super) primary: Option<Held>,
    /// Also `None` if the records of the standby that the head names are damaged.
    pub(super) standby: Option<Held>,
    /// Why the standby's records can't be read.
    pub(super) standby_damage: Option<Error>,
    stale: bool,
    staleness: Arc<Staleness>,
    /// The claim of another process, and when it was first seen.
    foreign_claim: Option<(Revision, Monotonic)>,
    /// Detects that the store went back to an earlier state.
    detector: Detector,
    /// Whether a missing head is restored even if the chain never had a KEK.
    keeps_head: bool,
    /// Whether the head was deleted and the chain had no KEK.
    deleted: bool,
}

impl Ledger {
    /// Reads a chain; `None` if it does not exist.
    pub(super) async fn load(
        store: Arc<dyn Store>,
        chain: ChainName,
        owner: u64,
    ) -> Result<Option<Self>, Error> {
        let Some(head) = read_head(&*store, &chain).await? else {
            return Ok(None);
        };
        // The KEKs are read when they are first needed.
        Ok(Some(Self {
            store,
            chain,
            owner,
            sequence: 0,
            head,
            primary: None,
            standby: None,
            standby_damage: None,
            stale: true,
            staleness: Arc::default(),
            foreign_claim: None,
            detector: Detector::default(),
            keeps_head: true,
            deleted: false,
        }))
    }

    /// Where changes of the records are reported.
    pub(super) fn staleness(&self) -> Arc<Staleness> {
        Arc::clone(&self.staleness)
    }

    /// The primary and the standby as they were last read.
    pub(super) fn held(&self) -> Vec<(KekId, Kek)> {
        let held = self.primary.iter().chain(&self.standby);
        held.map(|held| (held.id, held.kek.record.clone())).collect()
    }

    /// Reads all records again if they may be out of date.
    pub(super) async fn refresh(&mut self) -> Result<(), Error> {
        self.refresh_if(true).await
    }

    /// The same. Uses that other processes reserved count only if `with_counters`.
    pub(super) async fn refresh_if(&mut self, with_counters: bool) -> Result<(), Error> {
        if !self.staleness.take_outdated(with_counters) && !self.stale {
            return Ok(());
        }
        self.stale = true;
        let read = self.read_all().await?;
        let known = records(&self.head, &self.primary, &self.standby);
        let found = records(&read.head, &read.primary, &read.standby);
        self.detector.compare(known, found, read.fits);
        let Read { head, primary, standby, damage, .. } = read;
        self.head = head;
        (self.primary, self.standby, self.standby_damage) = (primary, standby, damage);
        self.stale = false;
        self.publish_known();
        Ok(())
    }

    /// Reads the head with the primary and the standby as they were known, and then those that it
    /// names instead. Reads again if the results show that they changed in between.
    async fn read_all(&mut self) -> Result<Read, Error> {
        let (mut unfit_at, mut damaged_at) = (None, None);
        loop {
            let Head { primary, standby, .. } = &self.head.record;
            let keks = primary.iter().chain(standby).copied();
            let mut read = match read_together(&*self.store, &self.chain, keks).await {
                // Each by itself: the damage may be in one that does not matter.
                Err(Error::Corrupt { .. }) => {
                    read_together(&*self.store, &self.chain, std::iter::empty()).await?
                }
                read => read?,
            };
            let head = match read.head.take() {
                Some(head) => {
                    self.deleted = false;
                    head
                }
                None if !self.keeps_head && self.has_no_kek() => {
                    self.deleted = true;
                    return Err(missing(&record::head_key(&self.chain)));
                }
                None => self.put_head_again().await?,
            };
            let mut is_news = |damage: &Option<Error>| {
                damage.is_some() && damaged_at.replace(head.revision) != Some(head.revision)
            };
            let (primary, damage) = apart(self.held_of(&read, head.record.primary).await)?;
            if is_news(&damage) {
                continue;
            }
            if let Some(damage) = damage {
                return Err(damage);
            }
            // Damage to a standby must not stop the primary. The standby has no uses and can be
            // replaced.
            let (standby, damage) = apart(self.held_of(&read, head.record.standby).await)?;
            if is_news(&damage) {
                continue;
            }
            let state = primary.as_ref().map(|primary| primary.kek.record.state);
            let fits = state.is_none_or(|state| state == State::Primary);
            if !fits && unfit_at.replace(head.revision) != Some(head.revision) {
                continue;
            }
            return Ok(Read { head, primary, standby, damage, fits });
        }
    }

    /// Passes the current records to the detector and to the staleness.
    fn publish_known(&mut self) {
        self.detector.note(records(&self.head, &self.primary, &self.standby));
        let held = self.primary.iter().chain(&self.standby);
        let revisions = held.flat_map(|held| [held.kek.revision, held.uses.revision]);
        let newest = revisions.fold(self.head.revision, Revision::max);
        self.staleness.know(&self.head, newest);
    }

    async fn held_of(&self, read: &Together, id: Option<KekId>) -> Result<Option<Held>, Error> {
        let Some(id) = id else { return Ok(None) };
        read.held(&*self.store, &self.chain, id).await.map(Some)
    }

    /// Commits `txn`. Returns its revision if it was applied; otherwise the records are out of
    /// date.
    async fn commit(&mut self, txn: Txn) -> Result<Option<Revision>, Error> {
        // Until the response arrives, and permanently if this future is dropped before.
        self.stale = true;
        match self.store.commit(txn).await? {
            Committed::Applied(revision) => {
                self.stale = false;
                Ok(Some(revision))
            }
            Committed::Conflict => Ok(None),
        }
    }

    /// Changes the limits, and whether envelopes embed the KEK. Compares: head and the primary's
    /// uses unchanged.
    pub(super) async fn set_settings(
        &mut self,
        limits: Limits,
        inline: bool,
    ) -> Result<bool, Error> {
        let mut txn = Txn::default();
        if let Some(primary) = &self.primary {
            let key = record::uses_key(&self.chain, primary.id);
            txn = txn.unchanged(key, primary.uses.revision);
        }
        self.put_head(Head { limits, inline, ..self.head.record.clone() }, txn).await
    }

    /// Stores that the set of roots changed, with the root that the key id names, if that changed,
    /// too. Compares: head unchanged.
    pub(super) async fn roots_changed(&mut self, named: Option<NamedRoot>) -> Result<bool, Error> {
        let mut head = self.head.record.clone();
        head.roots_generation += 1;
        if let Some(named) = named {
            head.named_root = Some(NamedRoot { generation: head.roots_generation, ..named });
        }
        self.put_head(head, Txn::default()).await
    }

    /// Stores the root that the key id names, for a chain that had no key id. Compares: head
    /// unchanged.
    pub(super) async fn name_root(&mut self, named: NamedRoot) -> Result<bool, Error> {
        let mut head = self.head.record.clone();
        head.named_root = Some(NamedRoot { generation: head.roots_generation, ..named });
        self.put_head(head, Txn::default()).await
    }

    /// Sets whether a missing head is restored even if the chain never had a KEK: a chain that the
    /// configuration names always exists.
    pub(super) fn keep_head(&mut self, keep: bool) {
        self.keeps_head = keep;
    }

    /// Whether the chain was deleted.
    pub(super) fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// Whether this process never read a KEK of the chain.
    fn has_no_kek(&self) -> bool {
        let Head { primary, standby, .. } = &self.head.record;
        primary.or(*standby).is_none() && self.detector.has_seen_none()
    }

    /// Deletes the head of a chain without KEKs. Compares: head unchanged. Creating a KEK
    /// concurrently conflicts, since that changes the head.
    pub(super) async fn delete(&mut self) -> Result<bool, Error> {
        let key = record::head_key(&self.chain);
        let txn = Txn::default()
            .unchanged(key.clone(), self.head.revision)
            .delete(key)
            .delete(record::claim_key(&self.chain));
        let deleted = self.commit(txn).await?.is_some();
        self.deleted |= deleted;
        Ok(deleted)
    }

    /// Adds to `txn` what stores the head, and commits it. Compares: head unchanged.
    async fn put_head(&mut self, mut head: Head, txn: Txn) -> Result<bool, Error> {
        head.generation += 1;
        let key = record::head_key(&self.chain);
        let txn = txn.replace(key, self.head.revision, head.encode()?);
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        self.publish_known();
        Ok(true)
    }

    fn keys(&self, id: KekId) -> (String, String, String) {
        let chain = &self.chain;
        (record::head_key(chain), record::kek_key(chain, id), record::uses_key(chain, id))
    }
}

/// The records of a read, for the detector.
fn records<'a>(
    head: &'a Versioned<Head>,
    primary: &'a Option<Held>,
    standby: &'a Option<Held>,
) -> Records<'a> {
    Records { head, primary: primary.as_ref(), standby: standby.as_ref() }
}

/// Separates damage from other errors of a read.
fn apart(read: Result<Option<Held>, Error>) -> Result<(Option<Held>, Option<Error>), Error> {
    match read {
        Err(damage @ Error::Corrupt { .. }) => Ok((None, Some(damage))),
        read => Ok((read?, None)),
    }
}
