//! The records of chains one by one, as they are in the store: read, and written where no more than
//! one is at stake. What is known of a chain as a whole is the ledger's.

use crate::id::{ChainName, KekId};
use crate::store::record::{self, CHAINS, Head, Kek, Record, Uses};
use crate::store::{Committed, Compare, Entry, Error, Revision, Store, Txn};

/// A record and the revision that it was read at.
#[derive(Clone, Debug)]
pub(in crate::service) struct Versioned<R> {
    pub(in crate::service) record: R,
    pub(in crate::service) revision: Revision,
}

/// A KEK's two records.
#[derive(Clone, Debug)]
pub(in crate::service) struct Held {
    pub(in crate::service) id: KekId,
    pub(in crate::service) kek: Versioned<Kek>,
    pub(in crate::service) uses: Versioned<Uses>,
}

/// Reads the record at `key`.
pub(in crate::service) async fn read<R: Record>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<Versioned<R>>, Error> {
    store.get(key).await?.map(|entry| decode(&entry)).transpose()
}

/// Reads the head of `chain`. Limits that nobody could have set are damage: a KEK must not pass
/// NIST's bound because a record was tampered with.
pub(super) async fn read_head(
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
pub(in crate::service) async fn head(store: &dyn Store, chain: &ChainName) -> Result<Head, Error> {
    let head = read_head(store, chain).await?;
    head.map(|head| head.record).ok_or_else(|| missing(&record::head_key(chain)))
}

/// The records of a KEK that is there.
pub(super) async fn read_held(
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

pub(super) fn decode<R: Record>(entry: &Entry) -> Result<Versioned<R>, Error> {
    Ok(Versioned { record: R::decode(&entry.key, &entry.value)?, revision: entry.revision })
}

/// Stores the head of a new chain; false when there is one already.
pub(in crate::service) async fn create(
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
pub(in crate::service) async fn put_kek(
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

/// The names of all chains. KEKs are skipped, not read. A name that is none belongs to nobody's chain, and
/// takes nothing from the others.
pub(in crate::service) async fn chains(store: &dyn Store) -> Result<Vec<ChainName>, Error> {
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let next = store.list(CHAINS, after.as_deref(), 1).await?;
        let Some(entry) = next.first() else { return Ok(names) };
        let name = entry.key.strip_prefix(CHAINS).and_then(|rest| rest.split('/').next());
        let name = name.unwrap_or_default();
        match ChainName::new(name) {
            Ok(name) => names.push(name),
            Err(_) => tracing::error!(key = entry.key, "a record that is no chain's is left out"),
        }
        // '0' follows '/': no key of this chain comes after it, every other chain's does.
        after = Some(format!("{CHAINS}{name}0"));
    }
}

pub(super) fn missing(key: &str) -> Error {
    Error::Corrupt { key: key.to_owned(), detail: "it is missing".to_owned() }
}
