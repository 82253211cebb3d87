//! The records of one chain as this process knows them, and the conditional writes that change
//! them: the transactions of the protocol, and nothing that is not stored.
//!
//! What is known may be out of date; then a write conflicts, and everything is read again. A write
//! whose answer was lost counts as made: what it would have given is never used.

use std::sync::Arc;

use crate::id::{ChainName, KekId};
use crate::store::record::{self, Head, Kek, Limits, Record, State, Uses};
use crate::store::{Committed, Compare, Entry, Error, Revision, Store, Txn};

/// A record and the revision that it was read at.
#[derive(Clone, Debug)]
pub(super) struct Versioned<R> {
    pub(super) record: R,
    pub(super) revision: Revision,
}

/// A KEK's two records.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) id: KekId,
    pub(super) kek: Versioned<Kek>,
    pub(super) uses: Versioned<Uses>,
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
    /// None as well when the head names a standby whose records are damaged.
    pub(super) standby: Option<Held>,
    /// What is wrong with the standby's records.
    pub(super) standby_damage: Option<Error>,
    stale: bool,
}

/// Reads the record at `key`.
pub(super) async fn read<R: Record>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<Versioned<R>>, Error> {
    store.get(key).await?.map(|entry| decode(&entry)).transpose()
}

/// Reads the head of `chain`. Limits that nobody could have set are damage: a KEK must not pass
/// NIST's bound because a record was tampered with.
async fn read_head(store: &dyn Store, chain: &ChainName) -> Result<Option<Versioned<Head>>, Error> {
    let key = record::head_key(chain);
    let head = read::<Head>(store, &key).await?;
    if let Some(Err(detail)) = head.as_ref().map(|head| head.record.limits.validate()) {
        return Err(Error::Corrupt { key, detail: detail.to_owned() });
    }
    Ok(head)
}

fn decode<R: Record>(entry: &Entry) -> Result<Versioned<R>, Error> {
    Ok(Versioned { record: R::decode(&entry.key, &entry.value)?, revision: entry.revision })
}

/// Stores the head of a new chain; false when there is one already.
pub(super) async fn create(
    store: &dyn Store,
    chain: &ChainName,
    head: &Head,
) -> Result<bool, Error> {
    let key = record::head_key(chain);
    let txn = Txn {
        compares: vec![Compare::Absent(key.clone())],
        puts: vec![(key, head.encode()?)],
        deletes: Vec::new(),
    };
    Ok(matches!(store.commit(txn).await?, Committed::Applied(_)))
}

impl Ledger {
    /// Reads a chain; `None` when there is none of this name.
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
        }))
    }

    /// Reads everything again if it may be out of date.
    pub(super) async fn refresh(&mut self) -> Result<(), Error> {
        if !self.stale {
            return Ok(());
        }
        let head = read_head(&*self.store, &self.chain).await?;
        self.head = head.ok_or_else(|| missing(&record::head_key(&self.chain)))?;
        self.primary = self.read_held(self.head.record.primary).await?;
        // A standby has no uses: damage to it must not stop the primary, since it can be replaced.
        (self.standby, self.standby_damage) = match self.read_held(self.head.record.standby).await {
            Err(error @ Error::Corrupt { .. }) => (None, Some(error)),
            standby => (standby?, None),
        };
        self.stale = false;
        Ok(())
    }

    async fn read_held(&self, id: Option<KekId>) -> Result<Option<Held>, Error> {
        let Some(id) = id else { return Ok(None) };
        let (kek_key, uses_key) =
            (record::kek_key(&self.chain, id), record::uses_key(&self.chain, id));
        let kek = read(&*self.store, &kek_key).await?.ok_or_else(|| missing(&kek_key))?;
        let uses = read(&*self.store, &uses_key).await?.ok_or_else(|| missing(&uses_key))?;
        Ok(Some(Held { id, kek, uses }))
    }

    /// Commits, and says whether it was applied. Unless it was, what is known is out of date.
    async fn commit(&mut self, txn: Txn) -> Result<Option<Revision>, Error> {
        // Until the answer is here, and for good if this future is dropped before.
        self.stale = true;
        match self.store.commit(txn).await? {
            Committed::Applied(revision) => {
                self.stale = false;
                Ok(Some(revision))
            }
            Committed::Conflict => Ok(None),
        }
    }

    /// Stores a new KEK as standby. Compares: head unchanged, without a standby.
    pub(super) async fn put_standby(&mut self, id: KekId, kek: Kek) -> Result<bool, Error> {
        if self.head.record.standby.is_some() {
            return Ok(false);
        }
        self.put_new(id, kek, Txn::default()).await
    }

    /// Stores a new KEK in the place of a standby that can't be opened; that is retired, unless its
    /// record is damaged: then it stays as it is. Compares: head and old standby unchanged.
    pub(super) async fn replace_standby(&mut self, id: KekId, kek: Kek) -> Result<bool, Error> {
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
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        self.standby = Some(Held {
            id,
            kek: Versioned { record: kek, revision },
            uses: Versioned { record: Uses::default(), revision },
        });
        self.standby_damage = None;
        Ok(true)
    }

    /// Makes the standby primary and reserves its first block, so that nobody waits for it.
    /// Compares: head, standby, its uses and the old primary unchanged.
    pub(super) async fn promote(&mut self, now: u64, block: u64) -> Result<bool, Error> {
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
        Ok(true)
    }

    /// Reserves `block` uses of the primary. Compares: its uses unchanged, its state still
    /// primary, and the head unchanged, since a lower `max_uses` may stand there by now.
    pub(super) async fn reserve(&mut self, block: u64) -> Result<bool, Error> {
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
        Ok(true)
    }

    /// Changes the limits. Compares: head and the primary's uses unchanged.
    pub(super) async fn set_limits(&mut self, limits: Limits) -> Result<bool, Error> {
        let mut head = self.head.record.clone();
        head.limits = limits;
        head.generation += 1;
        let head_key = record::head_key(&self.chain);
        let mut txn = Txn {
            compares: vec![Compare::Unchanged(head_key.clone(), self.head.revision)],
            puts: vec![(head_key, head.encode()?)],
            deletes: Vec::new(),
        };
        if let Some(primary) = &self.primary {
            let key = record::uses_key(&self.chain, primary.id);
            txn.compares.push(Compare::Unchanged(key, primary.uses.revision));
        }
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        Ok(true)
    }

    fn next_block(&self, uses: &Uses, block: u64) -> Uses {
        Uses {
            reserved: uses.reserved.saturating_add(block),
            owner: self.owner,
            sequence: self.sequence + 1,
        }
    }

    fn keys(&self, id: KekId) -> (String, String, String) {
        let chain = &self.chain;
        (record::head_key(chain), record::kek_key(chain, id), record::uses_key(chain, id))
    }
}

/// Stores a KEK in another state. Compares: the KEK unchanged.
pub(super) async fn put_kek(
    store: &dyn Store,
    chain: &ChainName,
    id: KekId,
    read: &Versioned<Kek>,
    kek: &Kek,
) -> Result<bool, Error> {
    let key = record::kek_key(chain, id);
    let txn = Txn {
        compares: vec![Compare::Unchanged(key.clone(), read.revision)],
        puts: vec![(key, kek.encode()?)],
        deletes: Vec::new(),
    };
    Ok(matches!(store.commit(txn).await?, Committed::Applied(_)))
}

/// The names of all chains. KEKs are skipped, not read.
pub(super) async fn chains(store: &dyn Store) -> Result<Vec<ChainName>, Error> {
    const PREFIX: &str = "chains/";
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let next = store.list(PREFIX, after.as_deref(), 1).await?;
        let Some(entry) = next.first() else { return Ok(names) };
        let name = entry.key.strip_prefix(PREFIX).and_then(|rest| rest.split('/').next());
        let name = name.unwrap_or_default();
        match ChainName::new(name) {
            Ok(name) => names.push(name),
            Err(error) => {
                return Err(Error::Corrupt { key: entry.key.clone(), detail: error.to_string() });
            }
        }
        // '0' follows '/': no key of this chain comes after it, every other chain's does.
        after = Some(format!("{PREFIX}{name}0"));
    }
}

fn missing(key: &str) -> Error {
    Error::Corrupt { key: key.to_owned(), detail: "it is missing".to_owned() }
}
