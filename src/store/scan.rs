//! Scans a store's chains and their records, a page at a time.
//!
//! A damaged record is reported along with the others and does not stop the scan. How records
//! relate to each other is not known here.

use crate::id::{ChainName, KekId};

use super::record::{self, AUDIT_KEY, AuditKey, CHAINS, Head, Kek, Part, Record, Uses};
use super::{Entry, Error, Store};

/// KEKs in a page. With the uses of each that is 64 records, and a transaction of a store such as
/// etcd may have 128.
const PAGE: usize = 32;

/// What is wrong at a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key of the record.
    pub key: String,
    /// What is wrong there, for the operator.
    pub detail: String,
}

impl Problem {
    pub(crate) fn new(key: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { key: key.into(), detail: detail.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key, self.detail)
    }
}

/// A record, and the entry that it was read from.
#[derive(Clone, Debug)]
pub(crate) struct Read<R> {
    pub(crate) record: R,
    pub(crate) entry: Entry,
}

/// The contents of a key: nothing, a record, or damage.
pub(crate) type Found<R> = Result<Option<Read<R>>, Problem>;

/// The contents of the two keys of a KEK.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) id: KekId,
    pub(crate) kek: Found<Kek>,
    pub(crate) uses: Found<Uses>,
}

/// The names of all chains, and the keys that belong to no chain.
pub(crate) async fn chains(store: &dyn Store) -> Result<(Vec<ChainName>, Vec<Problem>), Error> {
    let (mut names, mut strays) = (Vec::new(), Vec::new());
    let mut after = None;
    loop {
        let next = store.list(CHAINS, after.as_deref(), 1).await?;
        let Some(entry) = next.first() else { return Ok((names, strays)) };
        let rest = entry.key.strip_prefix(CHAINS).unwrap_or_default();
        let name = rest.split('/').next().unwrap_or_default();
        match ChainName::new(name) {
            Ok(name) => names.push(name),
            Err(error) => strays.push(Problem::new(&entry.key, error.to_string())),
        }
        // '0' follows '/': this is after all keys of this chain, and before those of the next one.
        after = Some(format!("{CHAINS}{name}0"));
    }
}

/// The ids of a chain's KEKs, page by page.
pub(crate) struct Ids<'a> {
    store: &'a dyn Store,
    prefix: String,
    after: Option<String>,
}

impl<'a> Ids<'a> {
    /// The ids of the stored KEK records.
    pub(crate) fn of_keks(store: &'a dyn Store, chain: &ChainName) -> Self {
        Self { store, prefix: record::keks_prefix(chain), after: None }
    }

    /// The ids of the stored records of uses.
    pub(crate) fn of_uses(store: &'a dyn Store, chain: &ChainName) -> Self {
        Self { store, prefix: record::uses_prefix(chain), after: None }
    }

    /// The next page, and its keys that are not those of a record. `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<(Vec<KekId>, Vec<Problem>)>, Error> {
        let page = self.store.list(&self.prefix, self.after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(None) };
        self.after = Some(last.key.clone());
        let (mut ids, mut strays) = (Vec::new(), Vec::new());
        for entry in page {
            match record::parse_key(&entry.key) {
                Some((_, Part::Kek(id) | Part::Uses(id))) => ids.push(id),
                _ => strays.push(Problem::new(entry.key, "this key is not that of a record")),
            }
        }
        Ok(Some((ids, strays)))
    }
}

/// The head of a chain. Invalid limits are damage.
pub(crate) async fn head(store: &dyn Store, chain: &ChainName) -> Result<Found<Head>, Error> {
    let key = record::head_key(chain);
    let found: Found<Head> = decode(entry(store, &key).await?);
    Ok(checked(found))
}

/// The key of the audit log, which belongs to no chain.
pub(crate) async fn audit_key(store: &dyn Store) -> Result<Found<AuditKey>, Error> {
    Ok(decode(entry(store, AUDIT_KEY).await?))
}

/// The head of a chain and the records of a few of its KEKs, as of one moment if the store supports
/// that.
pub(crate) async fn head_and_pairs(
    store: &dyn Store,
    chain: &ChainName,
    ids: &[KekId],
) -> Result<(Found<Head>, Vec<Pair>), Error> {
    let keys = [record::head_key(chain)].into_iter().chain(pair_keys(chain, ids)).collect();
    let mut entries = entries(store, keys).await?.into_iter();
    let head = checked(decode(entries.next().unwrap_or(Ok(None))));
    Ok((head, to_pairs(ids, entries)))
}

/// The records of some KEKs of a chain.
pub(crate) async fn pairs(
    store: &dyn Store,
    chain: &ChainName,
    ids: &[KekId],
) -> Result<Vec<Pair>, Error> {
    let entries = entries(store, pair_keys(chain, ids).collect()).await?;
    Ok(to_pairs(ids, entries.into_iter()))
}

fn pair_keys(chain: &ChainName, ids: &[KekId]) -> impl Iterator<Item = String> {
    ids.iter().flat_map(|&id| [record::kek_key(chain, id), record::uses_key(chain, id)])
}

fn to_pairs(ids: &[KekId], mut entries: impl Iterator<Item = FoundEntry>) -> Vec<Pair> {
    let mut next = || entries.next().unwrap_or(Ok(None));
    ids.iter().map(|&id| Pair { id, kek: decode(next()), uses: decode(next()) }).collect()
}

/// An entry that exists, does not exist, or is damaged.
type FoundEntry = Result<Option<Entry>, Problem>;

/// The entries at `keys`, with damage reported per entry.
async fn entries(store: &dyn Store, keys: Vec<String>) -> Result<Vec<FoundEntry>, Error> {
    match store.get_all(&keys).await {
        Ok(entries) => Ok(entries.into_iter().map(Ok).collect()),
        Err(Error::Corrupt { .. }) => {
            let mut found = Vec::with_capacity(keys.len());
            for key in keys {
                found.push(entry(store, &key).await?);
            }
            Ok(found)
        }
        Err(error) => Err(error),
    }
}

async fn entry(store: &dyn Store, key: &str) -> Result<FoundEntry, Error> {
    match store.get(key).await {
        Ok(entry) => Ok(Ok(entry)),
        Err(Error::Corrupt { key, detail }) => Ok(Err(Problem::new(key, damaged(&detail)))),
        Err(error) => Err(error),
    }
}

fn decode<R: Record>(found: FoundEntry) -> Found<R> {
    let Some(entry) = found? else { return Ok(None) };
    match R::decode(&entry.key, &entry.value) {
        Ok(record) => Ok(Some(Read { record, entry })),
        Err(Error::Corrupt { detail, .. }) => Err(Problem::new(entry.key, damaged(&detail))),
        Err(error) => Err(Problem::new(entry.key, error.to_string())),
    }
}

fn checked(found: Found<Head>) -> Found<Head> {
    match found {
        Ok(Some(Read { record, entry })) => match record.limits.validate() {
            Ok(()) => Ok(Some(Read { record, entry })),
            Err(detail) => Err(Problem::new(entry.key, damaged(detail))),
        },
        other => other,
    }
}

fn damaged(detail: &str) -> String {
    format!("it is damaged: {detail}")
}
