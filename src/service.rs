//! [`KeyService`]: the one door to the key chains, for HTTP, Kubernetes and the command line.
//!
//! It joins key chains in memory, the store and the roots, and keeps the promises of both: a
//! change is stored before it is used. It knows no HTTP and no gRPC.
//!
//! Encrypting is synchronous in all but name: it takes a reserved use from the chain's snapshot.
//! Only an empty budget waits. Decrypting waits only for a KEK that is not in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::clock::Monotonic;
use crate::id::{ChainName, Suite};
use crate::metrics::{Metrics, Operation};
use crate::store::record::Limits;

mod admin;
mod bootstrap;
mod builder;
mod chain;
mod core;
mod data;
mod disabled;
pub mod error;
mod follower;
mod handle;
mod kek_lifecycle;
pub mod key_id;
mod keyring;
mod ledger;
mod limits;
mod monitored_store;
mod readiness;
mod recheck;
mod registry;
mod rollback;
mod rotation;
mod starting;
mod tasks;
pub mod types;
pub mod verify;

#[cfg(test)]
mod tests;

pub use admin::kubernetes_key::KeyState;
pub use admin::roots::RootChange;
pub use builder::Builder;
pub use error::{Error, Kind};
pub use handle::ChainHandle;
pub use limits::lookup_quota::LookupQuota;
pub use rollback::offline;
pub use rotation::continuity::names_root;
pub use starting::Starting;
pub use types::{
    Absence, ChainInfo, ChainSettings, Change, Check, DataKey, Decrypted, Encrypted, Health,
    KekInfo, MissingKek, Page, Readiness, Rewrapped, RootProgress, Rotated,
};

use chain::Chain;
use core::Core;
use keyring::Trust;
use limits::lookup_quota;
use rotation::rotator;

/// The chain that always exists, and that calls without a chain mean.
pub const DEFAULT_CHAIN: &str = "default";

/// A KEK is disabled for at least 2 minutes before it is destroyed: reserved uses are void after
/// one, so no envelope is born under a destroyed KEK.
pub const MIN_DESTROY_DELAY: Duration = Duration::from_secs(120);

/// Settings of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Chains to make at start, besides `default`.
    pub names: Vec<ChainName>,
    /// The suite of new chains.
    pub suite: Suite,
    /// The limits of new chains.
    pub limits: Limits,
    /// How long a KEK must be disabled before it can be destroyed: 24 h, and never less than
    /// [`MIN_DESTROY_DELAY`].
    pub destroy_delay: Duration,
    /// Chains at most; those beyond are not made.
    pub max_chains: usize,
    /// How long a request waits for an empty budget to be filled: `server.request_timeout`.
    pub wait: Duration,
    /// How many requests may wait so at once.
    pub max_waiting: usize,
    /// DEKs in the cache; 0 switches it off.
    pub dek_entries: usize,
    /// How long a DEK stays in the cache.
    pub dek_max_age: Duration,
    /// Retired KEKs in memory.
    pub keks: usize,
    /// How often the roots of a KEK in memory are asked whether they still open it: 24 h. Where they
    /// are away it is used for `offline_grace` longer.
    pub kek_max_age: Duration,
    /// How long decrypts go on while the store is away where others can write to it: 24 h. What
    /// they disable meanwhile is not known here.
    pub offline_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            suite: Suite::default(),
            limits: Limits::default(),
            destroy_delay: Duration::from_secs(24 * 60 * 60),
            max_chains: 10_000,
            wait: Duration::from_secs(10),
            max_waiting: 20_000,
            dek_entries: 10_000,
            dek_max_age: Duration::from_secs(300),
            keks: 10_000,
            kek_max_age: Duration::from_secs(24 * 60 * 60),
            offline_grace: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// The one door.
pub struct KeyService {
    core: Arc<Core>,
    chains: ArcSwap<HashMap<ChainName, Arc<Chain>>>,
    /// Chains whose records are damaged, with what is wrong.
    damaged: Mutex<HashMap<ChainName, String>>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    draining: AtomicBool,
    /// The checks of parts beside the service.
    reports: Mutex<Vec<Check>>,
}

impl KeyService {
    /// Makes a new primary KEK now. A root must open a KEK that the chain has, if it has one.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::Overloaded`] when one is under way or there were many,
    /// [`Kind::RootUnavailable`], [`Kind::StoreUnavailable`], [`Kind::Conflict`].
    pub(crate) async fn rotate(&self, chain: Option<&str>) -> Result<Rotated, Error> {
        self.rotate_with(chain, Trust::Proven).await
    }

    /// The same by any root that answers, whatever the chain's older KEKs are: for an operator whose
    /// root key is lost for good. Other replicas encrypt again only if their roots open the new KEK.
    ///
    /// # Errors
    /// Those of [`rotate`](Self::rotate).
    pub(crate) async fn force_rotate(&self, chain: Option<&str>) -> Result<Rotated, Error> {
        self.rotate_with(chain, Trust::Any).await
    }

    async fn rotate_with(&self, chain: Option<&str>, trust: Trust) -> Result<Rotated, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Rotate, chain).await?;
        let work = {
            let (core, chain) = (Arc::clone(&self.core), Arc::clone(&chain));
            async move { rotator::rotate_by_hand(&core, &chain, trust).await }
        };
        // Each costs a call of every root, and the KEK stays in the store.
        let result = match lookup_quota::charge(started) {
            Ok(()) => tasks::run_to_end(work).await,
            Err(error) => Err(error),
        };
        self.finish(Operation::Rotate, &chain, started, result)
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.core.metrics
    }

    /// The KEKs of `chain` that callers asked this process for and that can't be used, the longest
    /// missed first: ids that the chain does not have, and KEKs that no root opens.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::StoreUnavailable`].
    pub async fn missing_keks(&self, chain: &str) -> Result<Vec<MissingKek>, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Read, Some(chain)).await?;
        let missing = Ok(self.core.keyring.missing(&chain.name));
        self.finish(Operation::Read, &chain, started, missing)
    }

    /// Sets the check of a part beside the service, such as a listener. Readiness shows it.
    pub fn report(&self, check: Check) {
        let mut reports = self.reports.lock();
        reports.retain(|other| other.name != check.name);
        reports.push(check);
    }

    /// From now on [`readiness`](Self::readiness) is down; requests are still answered.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`drain`](Self::drain) was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Stops the background tasks after their current step.
    pub async fn stop(&self) {
        self.core.stopping.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A task that panicked has said so already.
            let _ = task.await;
        }
    }

    /// Counts how a call on `chain` ended.
    fn finish<T>(
        &self,
        operation: Operation,
        chain: &Chain,
        started: Monotonic,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        let metrics = &self.core.metrics;
        match &result {
            Ok(_) => metrics.succeeded(&chain.metrics, operation),
            Err(error) => metrics.failed(operation, chain.name.as_str(), error.kind().code()),
        }
        metrics.took(operation, self.core.clock.now().since(started));
        result.map_err(Error::counted)
    }
}
