//! Typed access to the records of chains: reads with revisions, and writes of a single record. The
//! transactions on a whole chain are in the ledger of the service.

use crate::id::{ChainName, KekId};

use super::record::{self, Head, Kek, Record, Uses};
use super::{Committed, Entry, Error, Revision, Store, Txn};

/// The maximum number of records of one read. A transaction of etcd may have 128.
pub(crate) const MANY: usize = 64;

/// A record and the revision that it was read at.
#[derive(Clone, Debug)]
pub(crate) struct Versioned<R> {
    pub(crate) record: R,
    pub(crate) revision: Revision,
}

/// A KEK's two records.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) id: KekId,
    pub(crate) kek: Versioned<Kek>,
    pub(crate) uses: Versioned<Uses>,
}

/// Reads the record at `key`.
pub(crate) async fn read<R: Record>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<Versioned<R>>, Error> {
    store.get(key).await?.map(|entry| decode(&entry)).transpose()
}

/// Reads the head of `chain`. Invalid limits are damage: a KEK must not exceed NIST's bound because
/// a record was modified.
pub(crate) async fn read_head(
    store: &dyn Store,
    chain: &ChainName,
) -> Result<Option<Versioned<Head>>, Error> {
    let entry = store.get(&record::head_key(chain)).await?;
    entry.as_ref().map(head_of).transpose()
}

fn head_of(entry: &Entry) -> Result<Versioned<Head>, Error> {
    let head = decode::<Head>(entry)?;
    match head.record.limits.validate() {
        Ok(()) => Ok(head),
        Err(detail) => Err(Error::Corrupt { key: entry.key.clone(), detail: detail.to_owned() }),
    }
}

/// The records of a chain that one request read: its head, if it exists, and KEKs.
pub(crate) struct Together {
    pub(crate) head: Option<Versioned<Head>>,
    keks: Vec<(KekId, Option<Entry>, Option<Entry>)>,
}

/// Reads the head of `chain` and the records of `keks`, in this order.
pub(crate) async fn read_together(
    store: &dyn Store,
    chain: &ChainName,
    keks: impl Iterator<Item = KekId>,
) -> Result<Together, Error> {
    let (mut keys, ids) = (vec![record::head_key(chain)], keks.collect::<Vec<_>>());
    for &id in &ids {
        keys.extend([record::kek_key(chain, id), record::uses_key(chain, id)]);
    }
    let mut entries = store.get_all(&keys).await?.into_iter();
    let head = entries.next().flatten().as_ref().map(head_of).transpose()?;
    let mut entry = || entries.next().flatten();
    let keks = ids.into_iter().map(|id| (id, entry(), entry())).collect();
    Ok(Together { head, keks })
}

impl Together {
    /// The records of an existing KEK; reads them if they are not among these.
    pub(crate) async fn held(
        &self,
        store: &dyn Store,
        chain: &ChainName,
        id: KekId,
    ) -> Result<Held, Error> {
        match self.keks.iter().find(|(of, ..)| *of == id) {
            Some((_, kek, uses)) => held_of(chain, id, kek.as_ref(), uses.as_ref()),
            None => read_held(store, chain, id).await,
        }
    }
}

/// Reads the head of an existing chain.
#[cfg(test)]
pub(crate) async fn head(store: &dyn Store, chain: &ChainName) -> Result<Head, Error> {
    let head = read_head(store, chain).await?;
    head.map(|head| head.record).ok_or_else(|| missing(&record::head_key(chain)))
}

/// Reads the records of an existing KEK.
pub(crate) async fn read_held(
    store: &dyn Store,
    chain: &ChainName,
    id: KekId,
) -> Result<Held, Error> {
    let keys = [record::kek_key(chain, id), record::uses_key(chain, id)];
    let mut entries = store.get_all(&keys).await?.into_iter();
    let (kek, uses) = (entries.next().flatten(), entries.next().flatten());
    held_of(chain, id, kek.as_ref(), uses.as_ref())
}

fn held_of(
    chain: &ChainName,
    id: KekId,
    kek: Option<&Entry>,
    uses: Option<&Entry>,
) -> Result<Held, Error> {
    let kek = kek.ok_or_else(|| missing(&record::kek_key(chain, id)))?;
    let uses = uses.ok_or_else(|| missing(&record::uses_key(chain, id)))?;
    Ok(Held { id, kek: decode(kek)?, uses: decode(uses)? })
}

pub(crate) fn decode<R: Record>(entry: &Entry) -> Result<Versioned<R>, Error> {
    Ok(Versioned { record: R::decode(&entry.key, &entry.value)?, revision: entry.revision })
}

/// Stores the head of a new chain. Returns false if the chain exists.
pub(crate) async fn create(
    store: &dyn Store,
    chain: &ChainName,
    head: &Head,
) -> Result<bool, Error> {
    let key = record::head_key(chain);
    let txn = Txn::default().create(key, head.encode()?);
    Ok(matches!(store.commit(txn).await?, Committed::Applied(_)))
}

/// Replaces the record of a KEK. Compares: the KEK unchanged.
pub(crate) async fn put_kek(
    store: &dyn Store,
    chain: &ChainName,
    id: KekId,
    read: &Versioned<Kek>,
    kek: &Kek,
) -> Result<bool, Error> {
    let key = record::kek_key(chain, id);
    let txn = Txn::default().replace(key, read.revision, kek.encode()?);
    Ok(matches!(store.commit(txn).await?, Committed::Applied(_)))
}

/// The names of all chains. A key that belongs to no chain is logged and skipped.
pub(crate) async fn chains(store: &dyn Store) -> Result<Vec<ChainName>, Error> {
    let (names, strays) = super::chains(store).await?;
    for stray in strays {
        tracing::error!(key = stray.key, "a record that belongs to no chain is skipped");
    }
    Ok(names)
}

pub(crate) fn missing(key: &str) -> Error {
    Error::Corrupt { key: key.to_owned(), detail: "it is missing".to_owned() }
}
