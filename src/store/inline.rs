//! No store: every envelope carries its KEK inline, and a process counts the uses of its own KEKs
//! in memory, where the count is exact.
//!
//! For the rest of the service this is a store that is not shared and ends with the process. A
//! retired KEK needs no record here: only the last ones are kept, to be shown.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::id::{ChainName, KekId};

use super::record::{self, Kek, Part, Record, State};
use super::{Committed, Entry, Error, Txn, memory};

/// `[store]` with `kind = "inline"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The directory for the key file of a `local` root, and nothing else.
    pub data_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self { data_dir: super::DEFAULT_DATA_DIR.into() }
    }
}

/// How many retired KEKs of a chain are kept: some 10 KB for a chain with two roots.
const KEPT: usize = 16;

/// The records of one process.
#[derive(Default)]
pub struct Store {
    memory: memory::Store,
    /// The retired KEKs of each chain, the oldest first.
    retired: Mutex<HashMap<ChainName, VecDeque<KekId>>>,
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records the KEKs that a transaction retires, and returns a transaction that deletes the
    /// excess.
    fn note_retired(&self, retired: Vec<(ChainName, KekId)>) -> Txn {
        let mut known = self.retired.lock();
        let mut txn = Txn::default();
        for (chain, id) in retired {
            let of_chain = known.entry(chain.clone()).or_default();
            if !of_chain.contains(&id) {
                of_chain.push_back(id);
            }
            if of_chain.len() > KEPT
                && let Some(oldest) = of_chain.pop_front()
            {
                let keys = [record::kek_key(&chain, oldest), record::uses_key(&chain, oldest)];
                txn.deletes.extend(keys);
            }
        }
        txn
    }
}

/// The KEKs that `txn` stores as retired.
fn retired_by(txn: &Txn) -> Vec<(ChainName, KekId)> {
    let retired = txn.puts.iter().filter_map(|(key, value)| {
        let (chain, Part::Kek(id)) = record::parse_key(key)? else { return None };
        let kek = Kek::decode(key, value).ok()?;
        (kek.state == State::Retired).then_some((chain, id))
    });
    retired.collect()
}

#[async_trait]
impl super::Store for Store {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.memory.get(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        self.memory.list(prefix, after, limit).await
    }

    async fn count(&self, prefix: &str) -> Result<u64, Error> {
        self.memory.count(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        let retired = retired_by(&txn);
        let committed = self.memory.commit(txn).await?;
        if let Committed::Applied(_) = committed {
            let forgotten = self.note_retired(retired);
            if !forgotten.deletes.is_empty() {
                // It has no condition, so it is applied.
                let _ = self.memory.commit(forgotten).await?;
            }
        }
        Ok(committed)
    }

    fn kind(&self) -> &'static str {
        "inline"
    }

    fn is_lasting(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::Suite;
    use crate::store::contract;
    use crate::store::record::Uses;
    use crate::store::{Compare, Store as _};

    #[tokio::test]
    async fn it_keeps_the_contract() {
        contract::all(Arc::new(Store::new())).await;
    }

    fn kek(state: State) -> Kek {
        Kek {
            suite: Suite::Aes128Gcm,
            state,
            created_at: 1,
            promoted_at: None,
            disabled_at: None,
            exposed: false,
            wraps: vec![record::Wrap { root: "main".to_owned(), bytes: vec![1; 40] }],
        }
    }

    async fn put(store: &Store, chain: &ChainName, id: u8, state: State) {
        let id = KekId::from_bytes([id; 16]);
        let puts = vec![
            (record::kek_key(chain, id), kek(state).encode().unwrap()),
            (record::uses_key(chain, id), Uses::default().encode().unwrap()),
        ];
        let committed = store.commit(Txn { puts, ..Txn::default() }).await;
        assert!(matches!(committed, Ok(Committed::Applied(_))));
    }

    #[tokio::test]
    async fn the_last_retired_keks_are_kept_and_all_that_are_in_use() {
        let store = Store::new();
        let [one, two] = ["one", "two"].map(|name| ChainName::new(name).unwrap());
        put(&store, &one, 200, State::Primary).await;
        put(&store, &one, 201, State::Standby).await;
        for id in 0..100 {
            put(&store, &one, id, State::Primary).await;
            put(&store, &one, id, State::Retired).await;
            // Writing it again, as when it gets a wrap, adds no second KEK.
            put(&store, &one, id, State::Retired).await;
        }
        put(&store, &two, 0, State::Retired).await;
        let count = async |prefix: &str| store.count(prefix).await.unwrap();
        assert_eq!(count(&record::keks_prefix(&one)).await, 2 + 16);
        assert_eq!(count("chains/one/uses/").await, 2 + 16);
        assert_eq!(count(&record::keks_prefix(&two)).await, 1);
        for id in [84, 99, 200, 201] {
            let key = record::kek_key(&one, KekId::from_bytes([id; 16]));
            assert!(store.get(&key).await.unwrap().is_some(), "{id}");
        }
    }

    #[tokio::test]
    async fn what_is_not_applied_retires_nothing() {
        let store = Store::new();
        let chain = ChainName::new("one").unwrap();
        for id in 0..100 {
            let key = record::kek_key(&chain, KekId::from_bytes([id; 16]));
            let txn = Txn {
                compares: vec![Compare::Unchanged(key.clone(), crate::store::Revision(7_000))],
                puts: vec![(key, kek(State::Retired).encode().unwrap())],
                ..Txn::default()
            };
            assert_eq!(store.commit(txn).await, Ok(Committed::Conflict));
        }
        assert!(store.retired.lock().is_empty());
    }
}
