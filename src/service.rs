//! [`KeyService`]: all access to the key chains, for HTTP, Kubernetes and the command line.
//!
//! It combines the key chains in memory with the store and the roots. A change is stored before it
//! is used. It knows no HTTP and no gRPC.
//!
//! Encrypting takes a reserved use from the chain's snapshot and waits only if no use is left.
//! Decrypting waits only for a KEK that is not in memory.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::audit;
use crate::clock::Monotonic;
use crate::id::ChainName;
use crate::metrics::{Metrics, Operation};

mod admin;
mod archive;
mod audit_key;
pub(crate) mod backup;
mod bootstrap;
mod builder;
mod call_stats;
mod calls;
mod chain;
mod config;
mod core;
mod data;
mod deks;
mod disabled;
pub mod error;
mod follower;
mod handle;
mod kek_lifecycle;
pub mod key_id;
mod keyring;
mod last_used;
mod ledger;
mod limits;
mod monitored_store;
mod readiness;
mod recheck;
mod registry;
mod rollback;
mod rotation;
mod starting;
mod status;
pub(crate) mod streams;
mod tasks;
pub mod types;
pub mod verify;

#[cfg(test)]
mod tests;

pub use admin::kubernetes_key::KeyState;
pub use admin::roots::RootChange;
pub use builder::Builder;
pub use config::{CacheConfig, ChainConfig, Config};
pub use error::{Error, Kind};
pub use handle::ChainHandle;
pub use limits::lookup_quota::LookupQuota;
pub use rollback::offline;
pub use rotation::continuity::names_root;
pub use starting::Starting;
pub use status::StatusScope;
pub use types::{
    Absence, ChainInfo, ChainSettings, Change, Check, DataKey, Decrypted, Encrypted, Health,
    KekInfo, MissingKek, Page, Readiness, Rewrapped, RootProgress, Rotated,
};

pub(crate) use calls::Calls;
use chain::Chain;
use core::Core;
use keyring::Trust;
use limits::lookup_quota;
use rotation::rotator;

/// The chain that always exists. Calls that name no chain use it.
pub const DEFAULT_CHAIN: &str = "default";

/// The sizes of a data key in bytes.
pub(crate) const DATA_KEY_SIZES: RangeInclusive<usize> = 16..=64;

/// A KEK must be disabled for at least 2 minutes before it can be destroyed. Reserved uses expire
/// after one minute, so no envelope is created under a destroyed KEK.
pub const MIN_DESTROY_DELAY: Duration = Duration::from_secs(120);

/// A running service; see the [module](self).
pub struct KeyService {
    core: Arc<Core>,
    chains: ArcSwap<HashMap<ChainName, Arc<Chain>>>,
    /// Chains whose records are damaged, with what is wrong.
    damaged: Mutex<HashMap<ChainName, String>>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    draining: AtomicBool,
    /// Checks of components outside the service.
    reports: Mutex<Vec<Check>>,
}

impl KeyService {
    /// Creates a new primary KEK. If the chain has KEKs, a root must unwrap one of them first.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::Overloaded`] if one is in progress or there were too many,
    /// [`Kind::RootUnavailable`], [`Kind::StoreUnavailable`], [`Kind::Conflict`].
    pub(crate) async fn rotate(&self, chain: Option<&str>) -> Result<Rotated, Error> {
        self.rotate_with(chain, Trust::Proven).await
    }

    /// As [`rotate`](Self::rotate), but by any root that answers, even if it unwraps none of the
    /// chain's KEKs: for an operator whose root key is permanently lost. Other replicas encrypt
    /// again only if their roots unwrap the new KEK.
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
        // Each rotation calls every root, and its KEK stays in the store.
        let result = match lookup_quota::charge(started) {
            Ok(()) => tasks::run_to_end(work).await,
            Err(error) => Err(error),
        };
        let primary = result.as_ref().ok().map(|rotated| rotated.primary);
        let previous = result.as_ref().ok().and_then(|rotated| rotated.previous);
        let previous = previous.map_or_else(String::new, |id| id.to_string());
        let is_forced = trust == Trust::Any;
        let change: [(&str, &crate::audit::record::Value); 3] =
            [("call", &"rotate"), ("forced", &is_forced), ("previous", &previous)];
        let event = audit::Event { kek_id: primary, change: &change, ..Default::default() };
        self.finish_with(Operation::Rotate, &chain, started, event, result)
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.core.metrics
    }

    /// The KEKs of `chain` that callers requested from this process and that can't be used: ids
    /// that the chain does not have, and KEKs that no root unwraps. The one that was missed first
    /// comes first.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::StoreUnavailable`].
    pub async fn missing_keks(&self, chain: &str) -> Result<Vec<MissingKek>, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Read, Some(chain)).await?;
        let missing = Ok(self.core.keyring.missing(&chain.name));
        self.finish(Operation::Read, &chain, started, missing)
    }

    /// Sets the check of a component outside the service, such as a listener. Readiness shows it.
    pub fn report(&self, check: Check) {
        let mut reports = self.reports.lock();
        reports.retain(|other| other.name != check.name);
        reports.push(check);
    }

    /// Makes [`readiness`](Self::readiness) report `Down`; requests are still served.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`drain`](Self::drain) was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Stops the background tasks after their current step. Other processes learn that this one
    /// uses its roots no longer.
    pub async fn stop(&self) {
        self.core.stopping.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // The panic of a task is logged already.
            let _ = task.await;
        }
        last_used::storing::store_all(&self.core).await;
        rotation::root_users::withdraw(&self.core).await;
    }

    /// Counts and reports the outcome of a call on `chain`.
    fn finish<T>(
        &self,
        operation: Operation,
        chain: &Chain,
        started: Monotonic,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        self.finish_with(operation, chain, started, audit::Event::default(), result)
    }

    /// The same for a call that has more to report: the other fields of `event`.
    fn finish_with<T>(
        &self,
        operation: Operation,
        chain: &Chain,
        started: Monotonic,
        event: audit::Event<'_>,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        let metrics = &self.core.metrics;
        match &result {
            Ok(_) => metrics.succeeded(&chain.metrics, operation),
            Err(error) => metrics.failed(operation, chain.name.as_str(), error.kind().code()),
        }
        metrics.took(operation, self.core.clock.now().since(started));
        Self::report_outcome(operation, chain, event, result)
    }

    /// Reports the outcome of a call, which is counted.
    fn report_outcome<T>(
        operation: Operation,
        chain: &Chain,
        event: audit::Event<'_>,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        audit::record::report(&audit::Event {
            operation: Some(operation),
            chain: audit::ChainRef::Known(&chain.name),
            outcome: result
                .as_ref()
                .map_or_else(|error| error.kind().code(), |_| audit::record::OK),
            ..event
        });
        result.map_err(Error::counted)
    }
}
