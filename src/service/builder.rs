//! [`Builder`]: how a program starts a [`KeyService`], with a default for everything but the roots.
//!
//! It opens nothing by itself: roots and stores are given open.

use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::id::ChainName;
use crate::metrics::{Metrics, Registry};
use crate::root::{self, RootKey};
use crate::store::{Store, memory};

use super::{Config, Error, KeyService};

/// The parts of a service that is to be started. See [`KeyService::builder`].
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    config: Config,
    store: Arc<dyn Store>,
    roots: Vec<root::Named>,
    clock: Arc<dyn Clock>,
    registry: Registry,
}

impl KeyService {
    /// A service with the default settings, the chain `default`, a store in memory, the system's
    /// clock, metrics of its own, and no root yet. It needs at least one root to encrypt.
    pub fn builder() -> Builder {
        Builder {
            config: Config::default(),
            store: Arc::new(memory::Store::new()),
            roots: Vec::new(),
            clock: Arc::new(SystemClock::new()),
            registry: Registry::new(),
        }
    }
}

impl Builder {
    /// Replaces all settings.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Adds a chain, which is created at the start if the store does not have it.
    pub fn chain(mut self, name: ChainName) -> Self {
        self.config.chain.names.push(name);
        self
    }

    /// Keeps chains in `store`: [`crate::store::open`] opens one that lasts.
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// Like [`store`](Self::store), with a store that is shared already.
    pub fn shared_store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = store;
        self
    }

    /// Adds a root under the name that records use for it, which must not change. Every root wraps
    /// every KEK; the first one is asked first.
    pub fn root(self, name: &str, root: impl RootKey) -> Self {
        self.named_root(root::Named { name: name.into(), root: Arc::new(root) })
    }

    /// Like [`root`](Self::root), with what [`crate::root::open`] returned.
    pub fn named_root(mut self, root: root::Named) -> Self {
        self.roots.push(root);
        self
    }

    /// Takes the time from `clock`.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Registers the metrics of the service in `registry`, which must not have them yet.
    pub fn metrics(mut self, registry: &Registry) -> Self {
        self.registry = registry.clone();
        self
    }

    /// Starts the service. The configured chains, and `default`, are ready when it returns, or
    /// retried in the background.
    ///
    /// # Errors
    /// When the store does not answer, or `registry` refuses the metrics. Roots may be unavailable.
    pub async fn start(self) -> Result<Arc<KeyService>, Error> {
        let metrics = Metrics::new(&self.registry).map_err(|error| Error::internal(&error))?;
        KeyService::start(self.config, self.store, self.roots, self.clock, metrics).await
    }
}
