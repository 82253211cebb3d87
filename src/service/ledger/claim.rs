//! The claim: which of several processes has the next KEK wrapped. It only saves root calls.
//! Without it, the first process that stores a standby wins, and the wraps of the others are
//! wasted.

use std::time::Duration;

use crate::clock::Monotonic;
use crate::store::record::{self, Claim, Record};
use crate::store::records::read;
use crate::store::{Committed, Error, Revision, Txn};

use super::Ledger;

/// A claim that has not changed for this long belongs to a process that ended: a root call takes at
/// most 15 s.
const LIFE: Duration = Duration::from_secs(20);

impl Ledger {
    /// Claims the creation of the next KEK. Returns `None` if another process holds the claim, or
    /// if the head has changed: then a standby may exist already. Compares: no live claim, head
    /// unchanged.
    pub(in crate::service) async fn claim(
        &mut self,
        now: Monotonic,
    ) -> Result<Option<Revision>, Error> {
        let key = record::claim_key(&self.chain);
        let value = Claim { owner: self.owner }.encode()?;
        let txn = Txn::default().unchanged(record::head_key(&self.chain), self.head.revision);
        let txn = match read::<Claim>(&*self.store, &key).await? {
            None => txn.create(key, value),
            Some(claim)
                if claim.record.owner == self.owner || self.is_dead(claim.revision, now) =>
            {
                txn.replace(key, claim.revision, value)
            }
            Some(_) => return Ok(None),
        };
        match self.store.commit(txn).await? {
            Committed::Applied(revision) => {
                self.foreign_claim = None;
                Ok(Some(revision))
            }
            Committed::Conflict => {
                self.stale = true;
                Ok(None)
            }
        }
    }

    /// Releases a claim whose KEK could not be created. If this fails, the claim expires.
    pub(in crate::service) async fn unclaim(&self, revision: Revision) -> Result<(), Error> {
        let key = record::claim_key(&self.chain);
        let txn = Txn::default().unchanged(key.clone(), revision).delete(key);
        self.store.commit(txn).await.map(drop)
    }

    /// Whether the claim of another process has expired: it was unchanged for [`LIFE`].
    fn is_dead(&mut self, revision: Revision, now: Monotonic) -> bool {
        match self.foreign_claim {
            Some((seen, since)) if seen == revision => now.since(since) >= LIFE,
            _ => {
                self.foreign_claim = Some((revision, now));
                false
            }
        }
    }
}
