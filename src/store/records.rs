//! The records of chains one by one, as they are in the store: read with their revisions, and written
//! where only one of them changes. A chain as a whole is the ledger's.

use crate::id::{ChainName, KekId};

use super::record::{self, Head, Kek, Record, Uses};
use super::{Committed, Compare, Entry, Error, Revision, Store, Txn};

/// Records that are read at once. A transaction of a store such as etcd may have 128.
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

/// Reads the head of `chain`. Limits that nobody could have set are damage: a KEK must not pass
/// NIST's bound because a record was tampered with.
pub(crate) async fn read_head(
    store: &dyn Store,
    chain: &ChainName,
) -> Result<Option<Versioned<Head>>, Error> {
    let key = record::head_key(chain);
    let head = read::<Head>(store, &key).await?;
    if let Some(Err(detail)) = head.as_ref().map(|head| head.record.limits.validate()) {
        return Err(Error::Corrupt { key, detail: detail.to_owned() });
    }
    Ok(head)
}

/// The head of a chain that is there.
pub(crate) async fn head(store: &dyn Store, chain: &ChainName) -> Result<Head, Error> {
    let head = read_head(store, chain).await?;
    head.map(|head| head.record).ok_or_else(|| missing(&record::head_key(chain)))
}

/// The records of a KEK that is there.
pub(crate) async fn read_held(
    store: &dyn Store,
    chain: &ChainName,
    id: KekId,
) -> Result<Held, Error> {
    let keys = [record::kek_key(chain, id), record::uses_key(chain, id)];
    let mut entries = store.get_all(&keys).await?.into_iter();
    let [kek_key, uses_key] = &keys;
    let kek = entries.next().flatten().ok_or_else(|| missing(kek_key))?;
    let uses = entries.next().flatten().ok_or_else(|| missing(uses_key))?;
    Ok(Held { id, kek: decode(&kek)?, uses: decode(&uses)? })
}

pub(crate) fn decode<R: Record>(entry: &Entry) -> Result<Versioned<R>, Error> {
    Ok(Versioned { record: R::decode(&entry.key, &entry.value)?, revision: entry.revision })
}

/// Stores the head of a new chain; false when there is one already.
pub(crate) async fn create(
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

/// Stores a KEK in another state. Compares: the KEK unchanged.
pub(crate) async fn put_kek(
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

/// The names of all chains. A key that belongs to no chain is logged and left out.
pub(crate) async fn chains(store: &dyn Store) -> Result<Vec<ChainName>, Error> {
    let (names, strays) = super::chains(store).await?;
    for stray in strays {
        tracing::error!(key = stray.key, "a record that belongs to no chain is left out");
    }
    Ok(names)
}

pub(crate) fn missing(key: &str) -> Error {
    Error::Corrupt { key: key.to_owned(), detail: "it is missing".to_owned() }
}
