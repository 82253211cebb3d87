//! What the parts of a running service share, and the tasks in the background.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument as _;

use crate::clock::Clock;
use crate::id::{ChainName, KekId};
use crate::keychain::dek_cache::DekCache;
use crate::metrics::Metrics;
use crate::store;

use super::Config;
use super::chain::Chain;
use super::error::{Error, Kind};
use super::keyring::Keyring;
use super::observed::Observed;
use super::{reserver, rotator, states};

/// How often a chain is looked at when nobody asks.
const TICK: Duration = Duration::from_secs(1);

/// How often DEKs are wiped whose time is over.
const SWEEP: Duration = Duration::from_secs(10);

/// The shared parts.
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) store: Arc<Observed>,
    pub(super) keyring: Keyring,
    pub(super) deks: DekCache,
    pub(super) unknown: UnknownKeks,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    /// The last KEK that a chain needed could not be made or opened: then every chain tries its own
    /// primary before it is asked for, so that readiness tells the truth.
    pub(super) in_doubt: AtomicBool,
    /// A random number for this process, in the records that it writes.
    pub(super) owner: u64,
    pub(super) stopping: watch::Sender<bool>,
}

impl Core {
    /// What a client hears of a store's error; the log hears the rest.
    pub(super) fn store_error(&self, chain: &ChainName, error: store::Error) -> Error {
        match error {
            store::Error::Unavailable { .. } => {
                // The store's own trouble is logged once, where it is observed.
                Error::new(Kind::StoreUnavailable, "the store is unavailable")
            }
            store::Error::Corrupt { key, detail } => {
                tracing::error!(%chain, key, detail, "a stored record is damaged");
                Error::new(Kind::Internal, format!("the stored record {key} is damaged"))
            }
        }
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
            while proceed(&mut stop, next(chain.need_uses.notified())).await {
                states::settle(&core, &chain).await;
                reserver::drive(&core, &chain).await;
            }
        }
    };
    let rotating = {
        let (core, chain, mut stop) =
            (Arc::clone(core), Arc::clone(chain), core.stopping.subscribe());
        async move {
            while proceed(&mut stop, chain.need_kek.notified()).await {
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

/// Waits for `news`; false when it is time to stop.
async fn proceed(stop: &mut watch::Receiver<bool>, news: impl Future<Output = ()>) -> bool {
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

/// KEKs that were certainly not there a moment ago: a short and bounded memory, so that nobody can
/// make the store work for envelopes that name no KEK.
pub(super) struct UnknownKeks {
    cache: quick_cache::sync::Cache<(ChainName, KekId), crate::clock::Monotonic>,
}

impl UnknownKeks {
    const ENTRIES: usize = 1024;
    const MAX_AGE: Duration = Duration::from_secs(5);

    pub(super) fn new() -> Self {
        Self { cache: quick_cache::sync::Cache::new(Self::ENTRIES) }
    }

    pub(super) fn insert(&self, chain: &ChainName, id: KekId, now: crate::clock::Monotonic) {
        self.cache.insert((chain.clone(), id), now);
    }

    pub(super) fn contains(
        &self,
        chain: &ChainName,
        id: KekId,
        now: crate::clock::Monotonic,
    ) -> bool {
        self.cache.get(&(chain.clone(), id)).is_some_and(|since| now.since(since) < Self::MAX_AGE)
    }
}
