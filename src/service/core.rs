//! What the parts of a running service share, and the tasks in the background.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tracing::Instrument as _;

use crate::clock::{Clock, Monotonic};
use crate::id::{ChainName, KekId};
use crate::keychain::Form;
use crate::keychain::dek_cache::DekCache;
use crate::metrics::Metrics;
use crate::store::record::{self, Head, Kek, Part, Record as _, Uses};
use crate::store::{self, Store as _};

use super::Config;
use super::bucket::Bucket;
use super::chain::Chain;
use super::error::{Error, Kind};
use super::keyring::Keyring;
use super::observed::Observed;
use super::{recovery, reserver, rotator, states};

/// How often a chain is looked at when nobody asks.
const TICK: Duration = Duration::from_secs(1);

/// How often DEKs are wiped whose time is over.
const SWEEP: Duration = Duration::from_secs(10);

/// How often a store that failed is asked whether it is back.
const PROBE: Duration = Duration::from_secs(2);

/// How many names that are not known here may be looked up in the store at once.
pub(super) const CONCURRENT_LOOKUPS: usize = 64;

/// The shared parts.
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) store: Arc<Observed>,
    /// What is encrypted here: where the store ends with the process, KEKs travel along.
    pub(super) form: Form,
    pub(super) keyring: Keyring,
    pub(super) deks: DekCache,
    pub(super) unknown: Unknown<(ChainName, KekId)>,
    pub(super) unknown_chains: Unknown<ChainName>,
    /// Reads of names that are not known here.
    pub(super) lookups: Semaphore,
    /// Others can write to the store as well.
    pub(super) shared: bool,
    /// When the states in memory were last found to be those of the store, in nanoseconds.
    pub(super) confirmed: AtomicU64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    /// The last KEK that a chain needed could not be made or opened: then every chain tries its own
    /// primary before it is asked for, so that readiness tells the truth.
    pub(super) in_doubt: AtomicBool,
    /// A random number for this process, in the records that it writes.
    pub(super) owner: u64,
    pub(super) stopping: watch::Sender<bool>,
    /// Stored records that are damaged, by their keys, with their chains.
    pub(super) damage: Mutex<BTreeMap<String, ChainName>>,
    /// How often KEKs are tried again that no root opened.
    pub(super) retries: Bucket,
    /// What was done about a rollback of the store and is not logged yet.
    pub(super) rollbacks: recovery::Summary,
}

impl Core {
    /// What all replicas must know of can only be changed where there is a store.
    pub(super) fn needs_store(&self, what: &str) -> Result<(), Error> {
        if self.form == Form::Stored {
            return Ok(());
        }
        let detail = format!(
            "{what} with store.kind = \"inline\": nothing is stored, so nobody else would hear of it"
        );
        Err(Error::new(Kind::Conflict, detail))
    }

    /// What a client hears of a store's error; the log hears the rest.
    pub(super) fn store_error(&self, chain: &ChainName, error: store::Error) -> Error {
        match error {
            store::Error::Unavailable { .. } => {
                // The store's own trouble is logged once, where it is observed.
                Error::new(Kind::StoreUnavailable, "the store is unavailable")
            }
            store::Error::Corrupt { key, detail } => {
                tracing::error!(%chain, key, detail, "a stored record is damaged");
                self.note_damage(chain, &key);
                Error::new(Kind::Internal, format!("the stored record {key} is damaged"))
            }
        }
    }
}

/// Damaged records that are remembered of all chains.
const MAX_DAMAGED: usize = 1_000;

impl Core {
    /// A record was read that is damaged: readiness names it until it is read whole.
    pub(super) fn note_damage(&self, chain: &ChainName, key: &str) {
        let mut damage = self.damage();
        if damage.len() < MAX_DAMAGED {
            damage.insert(key.to_owned(), chain.clone());
        }
    }

    /// The damaged records of a chain, for readiness.
    pub(super) fn damage_of(&self, chain: &ChainName) -> Option<String> {
        const NAMED: usize = 3;
        let damage = self.damage();
        let keys: Vec<_> =
            damage.iter().filter(|(_, of)| *of == chain).map(|(key, _)| key).collect();
        let named: Vec<_> = keys.iter().take(NAMED).map(|key| key.as_str()).collect();
        (!keys.is_empty())
            .then(|| format!("{} of its records are damaged ({})", keys.len(), named.join(", ")))
    }

    /// Reads records again that were damaged.
    pub(super) async fn check_damage(&self) {
        let keys: Vec<_> = self.damage().keys().take(MAX_DAMAGED / 10).cloned().collect();
        for key in keys {
            let is_whole = match self.store.get(&key).await {
                Ok(Some(entry)) => match record::parse_key(&key).map(|(_, part)| part) {
                    Some(Part::Head) => Head::decode(&key, &entry.value).is_ok(),
                    Some(Part::Kek(_)) => Kek::decode(&key, &entry.value).is_ok(),
                    Some(Part::Uses(_)) => Uses::decode(&key, &entry.value).is_ok(),
                    Some(Part::Claim) | None => true,
                },
                // One that is missing is damage too.
                Ok(None) | Err(_) => false,
            };
            if is_whole {
                tracing::info!(key, "a stored record that was damaged is whole again");
                self.damage().remove(&key);
            }
        }
    }

    fn damage(&self) -> MutexGuard<'_, BTreeMap<String, ChainName>> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` to its end, even when whoever waits for it hangs up: what is stored by then must
/// reach memory as well.
pub(super) async fn run_to_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work.in_current_span()).await.unwrap_or_else(|error| Err(super::internal(&error)))
}

/// Starts the tasks of a chain. They end, between two steps, when the service stops.
pub(super) fn spawn(core: &Arc<Core>, chain: &Arc<Chain>) -> [tokio::task::JoinHandle<()>; 2] {
    let reserving = {
        let (core, chain, mut stop) =
            (Arc::clone(core), Arc::clone(chain), core.stopping.subscribe());
        async move {
            while proceed(&mut stop, next(chain.need_uses.notified())).await
                && !chain.is_deleted.load(Ordering::Relaxed)
            {
                states::settle(&core, &chain).await;
                reserver::drive(&core, &chain).await;
            }
        }
    };
    let rotating = {
        let (core, chain, mut stop) =
            (Arc::clone(core), Arc::clone(chain), core.stopping.subscribe());
        async move {
            while proceed(&mut stop, chain.need_kek.notified()).await
                && !chain.is_deleted.load(Ordering::Relaxed)
            {
                rotator::drive(&core, &chain).await;
            }
        }
    };
    [tokio::spawn(reserving), tokio::spawn(rotating)]
}

/// Starts the task that wipes DEKs whose time in the cache is over.
pub(super) fn spawn_sweep(core: &Arc<Core>) -> tokio::task::JoinHandle<()> {
    let (core, mut stop) = (Arc::clone(core), core.stopping.subscribe());
    tokio::spawn(async move {
        while proceed(&mut stop, tokio::time::sleep(SWEEP)).await {
            core.deks.expire(core.clock.now());
        }
    })
}

/// Starts the task that asks a store that failed whether it is back.
pub(super) fn spawn_probe(core: &Arc<Core>) -> tokio::task::JoinHandle<()> {
    let (core, mut stop) = (Arc::clone(core), core.stopping.subscribe());
    tokio::spawn(async move {
        let Ok(chain) = ChainName::new(super::DEFAULT_CHAIN) else { return };
        while proceed(&mut stop, tokio::time::sleep(PROBE)).await {
            if !core.store.is_up() {
                core.store.probe(&chain, core.owner).await;
            }
        }
    })
}

/// Waits for `news`; false when it is time to stop.
pub(super) async fn proceed(
    stop: &mut watch::Receiver<bool>,
    news: impl Future<Output = ()>,
) -> bool {
    tokio::select! {
        biased;
        _ = stop.wait_for(|&stopping| stopping) => false,
        () = news => true,
    }
}

/// News, or the next tick without.
async fn next(news: impl Future<Output = ()>) {
    // Silence is what a tick is for.
    let _ = tokio::time::timeout(TICK, news).await;
}

/// What was certainly not there a moment ago: a short and bounded memory, so that nobody can make
/// the store work for names that he makes up.
pub(super) struct Unknown<K> {
    cache: quick_cache::sync::Cache<K, Monotonic>,
}

impl<K: Clone + Eq + std::hash::Hash> Unknown<K> {
    const ENTRIES: usize = 1024;
    const MAX_AGE: Duration = Duration::from_secs(5);

    pub(super) fn new() -> Self {
        Self { cache: quick_cache::sync::Cache::new(Self::ENTRIES) }
    }

    pub(super) fn insert(&self, key: K, now: Monotonic) {
        self.cache.insert(key, now);
    }

    /// There is news of it.
    pub(super) fn remove(&self, key: &K) {
        self.cache.remove(key);
    }

    pub(super) fn contains(&self, key: &K, now: Monotonic) -> bool {
        self.cache.get(key).is_some_and(|since| now.since(since) < Self::MAX_AGE)
    }
}
