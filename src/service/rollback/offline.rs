//! The repair of a store into which an old copy was restored while no service ran. Nothing can
//! detect that, so an operator starts the repair. The copy's counters are too low, so its primaries
//! and standbys must not encrypt any more.

use crate::id::{ChainName, KekId};
use crate::store::record;
use crate::store::records::{Held, missing, read_head, read_held};
use crate::store::{self, Committed, Error, Problem, Store, Txn};

use super::retire::retire;

/// How often a chain is tried when other processes change it at the same time.
const TRIES: usize = 8;

/// The result of the repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Chains that have no primary now.
    pub chains: u64,
    /// The KEKs that only decrypt from now on.
    pub retired: Vec<(ChainName, KekId)>,
    /// Records that could not be read: those of KEKs that were nevertheless removed from their
    /// heads, and those of chains that were not changed.
    pub problems: Vec<Problem>,
}

/// Retires the primary and the standby of every chain in `store`. The services create new ones when
/// they start. It is idempotent. Calls `progress` after each chain.
///
/// # Errors
/// [`Error::Unavailable`] if the store is unavailable; a repetition continues the repair.
pub async fn retire_chains(
    store: &dyn Store,
    mut progress: impl FnMut(&Report),
) -> Result<Report, Error> {
    let mut report = Report::default();
    let (chains, strays) = store::chains(store).await?;
    report.problems.extend(strays);
    for chain in chains {
        let retired = retire_chain(store, &chain).await;
        forget_since(store, &chain).await?;
        match retired {
            Ok(Retired { ids, damaged }) => {
                report.chains += 1;
                report.retired.extend(ids.into_iter().map(|id| (chain.clone(), id)));
                for error in damaged {
                    report.problems.push(problem(error)?);
                }
            }
            Err(error) => report.problems.push(problem(error)?),
        }
        progress(&report);
    }
    Ok(report)
}

/// Forgets since when the uses of the chain's KEKs are known: those after the copy was made are
/// not. The next service that starts begins again.
async fn forget_since(store: &dyn Store, chain: &ChainName) -> Result<(), Error> {
    let key = record::used_since_key(chain);
    match store.get(&key).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(Error::Corrupt { .. }) => {
            store.commit(Txn::default().delete(key)).await.map(drop)
        }
        Err(error) => Err(error),
    }
}

async fn retire_chain(store: &dyn Store, chain: &ChainName) -> Result<Retired, Error> {
    for _ in 0..TRIES {
        if let Some(retired) = retire_all(store, chain).await? {
            return Ok(retired);
        }
    }
    let detail = format!("chain {chain} is being modified: stop all services first");
    Err(Error::Unavailable { detail, maybe_applied: false })
}

/// What [`retire_all`] did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Retired {
    /// The KEKs that it retired.
    ids: Vec<KekId>,
    /// KEKs that the head named and whose records are damaged. They are not changed, but the head
    /// does not name them any more.
    damaged: Vec<Error>,
}

/// Retires primary and standby of a chain that no process serves. `None` if the chain was modified
/// concurrently.
///
/// # Errors
/// [`Error`]; a missing chain is damage.
async fn retire_all(store: &dyn Store, chain: &ChainName) -> Result<Option<Retired>, Error> {
    let key = record::head_key(chain);
    let head = read_head(store, chain).await?.ok_or_else(|| missing(&key))?;
    let mut retired = Retired::default();
    if head.record.primary.or(head.record.standby).is_none() {
        return Ok(Some(retired));
    }
    let mut held = async |id: Option<KekId>| -> Result<Option<Held>, Error> {
        let Some(id) = id else { return Ok(None) };
        match read_held(store, chain, id).await {
            Err(error @ Error::Corrupt { .. }) => {
                retired.damaged.push(error);
                Ok(None)
            }
            held => held.map(Some),
        }
    };
    let (primary, standby) = (held(head.record.primary).await?, held(head.record.standby).await?);
    let held: Vec<_> = primary.iter().chain(&standby).collect();
    let (txn, _) = retire(chain, &head, &held)?;
    retired.ids = held.iter().map(|held| held.id).collect();
    Ok(match store.commit(txn).await? {
        Committed::Applied(_) => Some(retired),
        Committed::Conflict => None,
    })
}

/// Converts damage to a problem to report; other errors end the repair.
fn problem(error: Error) -> Result<Problem, Error> {
    match error {
        Error::Corrupt { key, detail } => Ok(Problem { key, detail }),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Suite;
    use crate::store::Compare;
    use crate::store::record::{Head, Kek, LastUsed, Limits, Record, State, UsedSince, Uses};
    use crate::store::{memory, records};

    fn chain(name: &str) -> ChainName {
        ChainName::new(name).unwrap()
    }

    async fn put(store: &memory::Store, key: String, value: Vec<u8>) {
        let _ = store.commit(Txn { puts: vec![(key, value)], ..Txn::default() }).await.unwrap();
    }

    /// A chain with a primary and a standby.
    async fn make(store: &memory::Store, chain: &ChainName) -> [KekId; 2] {
        let ids = [1, 2].map(|byte| KekId::from_bytes([byte; 16]));
        for (id, state) in ids.into_iter().zip([State::Primary, State::Standby]) {
            let kek = Kek {
                suite: Suite::Aes128Gcm,
                state,
                created_at: 1,
                promoted_at: None,
                disabled_at: None,
                exposed: false,
                wraps: Vec::new(),
            };
            put(store, record::kek_key(chain, id), kek.encode().unwrap()).await;
            put(store, record::uses_key(chain, id), Uses::default().encode().unwrap()).await;
        }
        let head = Head {
            suite: Suite::Aes128Gcm,
            limits: Limits::default(),
            primary: Some(ids[0]),
            standby: Some(ids[1]),
            generation: 5,
            roots_generation: 1,
            named_root: None,
            repair: None,
            inline: false,
        };
        put(store, record::head_key(chain), head.encode().unwrap()).await;
        ids
    }

    #[tokio::test]
    async fn all_that_encrypts_is_retired_once() {
        let store = memory::Store::new();
        let ids = make(&store, &chain("a")).await;
        make(&store, &chain("b")).await;
        let report = retire_chains(&store, |_| {}).await.unwrap();
        assert_eq!((report.chains, report.retired.len(), &report.problems[..]), (2, 4, &[][..]));
        let head = records::head(&store, &chain("a")).await.unwrap();
        assert_eq!((head.primary, head.standby, head.generation), (None, None, 6));
        for id in ids {
            let key = record::kek_key(&chain("a"), id);
            let kek = records::read::<Kek>(&store, &key).await.unwrap().unwrap();
            assert_eq!(kek.record.state, State::Retired);
        }
        let again = retire_chains(&store, |_| {}).await.unwrap();
        assert_eq!((again.chains, &again.retired[..]), (2, &[][..]));
        assert_eq!(records::head(&store, &chain("a")).await.unwrap(), head);
    }

    #[tokio::test]
    async fn uses_are_known_again_from_the_next_start_on() {
        let store = memory::Store::new();
        let [id, _] = make(&store, &chain("a")).await;
        let (since, last) =
            (record::used_since_key(&chain("a")), record::last_used_key(&chain("a"), id));
        for damaged_or_not in [b"{".to_vec(), UsedSince { day: 1 }.encode().unwrap()] {
            put(&store, since.clone(), damaged_or_not).await;
            put(&store, last.clone(), LastUsed::default().encode().unwrap()).await;
            retire_chains(&store, |_| {}).await.unwrap();
            assert_eq!(store.get(&since).await, Ok(None));
            assert!(store.get(&last).await.unwrap().is_some(), "the days of the copy are true");
        }
    }

    #[tokio::test]
    async fn damage_stops_nothing_and_is_named() {
        let store = memory::Store::new();
        let ids = make(&store, &chain("a")).await;
        make(&store, &chain("b")).await;
        let primary = record::kek_key(&chain("a"), ids[0]);
        put(&store, primary.clone(), b"{".to_vec()).await;
        put(&store, record::head_key(&chain("b")), b"{".to_vec()).await;
        make(&store, &chain("c")).await;
        let report = retire_chains(&store, |_| {}).await.unwrap();
        let keys: Vec<_> = report.problems.iter().map(|problem| &*problem.key).collect();
        assert_eq!(keys, [&*primary, "chains/b/head"]);
        assert_eq!((report.chains, report.retired.len()), (2, 3));
        let head = records::head(&store, &chain("a")).await.unwrap();
        assert_eq!((head.primary, head.standby), (None, None));
        // What is damaged was not written over.
        let compares = vec![Compare::Unchanged(
            primary.clone(),
            store.get(&primary).await.unwrap().unwrap().revision,
        )];
        let txn = Txn { compares, ..Txn::default() };
        assert!(matches!(store.commit(txn).await.unwrap(), Committed::Applied(_)));
        assert_eq!(store.get(&primary).await.unwrap().unwrap().value, b"{");
        store.set_down(true);
        assert!(retire_chains(&store, |_| {}).await.is_err());
    }
}
