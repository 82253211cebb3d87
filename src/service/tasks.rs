//! The tasks in the background: two for each chain, the sweep of the DEK cache and the probe of a
//! store that failed. What they do is the business of the modules that they call.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument as _;

use crate::id::ChainName;

use super::DEFAULT_CHAIN;
use super::chain::Chain;
use super::core::Core;
use super::error::Error;
use super::kek_lifecycle;
use super::rotation::{reserver, rotator};

/// How often a chain is looked at without a request.
const TICK: Duration = Duration::from_secs(1);

/// How often expired DEKs are wiped.
const SWEEP: Duration = Duration::from_secs(10);

/// How often a store that failed is probed.
const PROBE: Duration = Duration::from_secs(2);

/// Runs `work` to its end, even when whoever waits for it hangs up: what is stored by then must
/// reach memory as well.
pub(super) async fn run_to_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work.in_current_span()).await.unwrap_or_else(|error| Err(Error::internal(&error)))
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
                kek_lifecycle::settle(&core, &chain).await;
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
        let Ok(chain) = ChainName::new(DEFAULT_CHAIN) else { return };
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
