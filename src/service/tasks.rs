//! The background tasks: two for each chain, the sweep of the DEK cache, and the probe of a store
//! that failed. The steps themselves are in the modules that the tasks call.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument as _;

use crate::audit;
use crate::id::ChainName;

use super::DEFAULT_CHAIN;
use super::chain::Chain;
use super::core::Core;
use super::error::Error;
use super::kek_lifecycle;
use super::rotation::{reserver, rotator};

/// How often the reserver of a chain runs when nothing wakes it.
const TICK: Duration = Duration::from_secs(1);

/// How often expired DEKs are wiped.
const SWEEP: Duration = Duration::from_secs(10);

/// How often a store that failed is probed.
const PROBE: Duration = Duration::from_secs(2);

/// Runs `work` to its end even if the caller disconnects: a change that is stored must reach
/// memory.
pub(super) async fn run_to_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let work = audit::record::within(audit::record::current(), work);
    tokio::spawn(work.in_current_span()).await.unwrap_or_else(|error| Err(Error::internal(&error)))
}

/// Starts the tasks of a chain. When the service stops, they end after their current step.
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

/// Starts the task that removes expired DEKs from the cache.
pub(super) fn spawn_sweep(core: &Arc<Core>) -> tokio::task::JoinHandle<()> {
    let (core, mut stop) = (Arc::clone(core), core.stopping.subscribe());
    tokio::spawn(async move {
        while proceed(&mut stop, tokio::time::sleep(SWEEP)).await {
            core.deks.expire(core.clock.now());
        }
    })
}

/// Starts the task that checks whether a store that failed is available again.
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

/// Waits for `event`; returns false if the service stops first.
pub(super) async fn proceed(
    stop: &mut watch::Receiver<bool>,
    event: impl Future<Output = ()>,
) -> bool {
    tokio::select! {
        biased;
        _ = stop.wait_for(|&stopping| stopping) => false,
        () = event => true,
    }
}

/// Waits for `event`, but no longer than [`TICK`].
async fn next(event: impl Future<Output = ()>) {
    let _ = tokio::time::timeout(TICK, event).await;
}
