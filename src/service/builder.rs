//! [`Builder`]: how a program starts a [`KeyService`], with a default for everything but the roots.
//!
//! It opens nothing by itself: roots and stores are given open.

use std::sync::Arc;

use crate::archive::{self, Archive};
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
    archives: Vec<archive::Named>,
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
            archives: Vec::new(),
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

    /// Adds an archive, which holds each KEK before it encrypts. See [`Config::archive_policy`].
    pub fn archive(mut self, name: &str, archive: Arc<dyn Archive>) -> Self {
        self.archives.push(archive::Named { name: name.into(), archive });
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
        let Self { config, store, archives, roots, clock, .. } = self;
        KeyService::start_archived(config, store, archives, roots, clock, metrics).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::local;
    use crate::service::Kind;

    #[tokio::test]
    async fn a_service_has_the_chains_the_roots_and_the_metrics_that_it_is_built_with() {
        let (registry, root) = (Registry::new(), local::Root::generate().unwrap());
        let builder = KeyService::builder().chain(ChainName::new("orders").unwrap());
        let service = builder.root("main", root).metrics(&registry).start().await.unwrap();
        for (name, known) in [("default", true), ("orders", true), ("others", false)] {
            let chain = service.chain(name).unwrap();
            let encrypted = chain.encrypt(b"hello", b"row 7").await;
            assert_eq!(encrypted.as_ref().err().map(Error::kind).is_none(), known, "{name}");
            let Ok(encrypted) = encrypted else { continue };
            assert_eq!(encrypted.chain.as_str(), name);
            let rewrapped = chain.rewrap_inline(encrypted.envelope).await.unwrap();
            let decrypted = chain.decrypt(rewrapped.envelope, b"row 7").await.unwrap();
            assert_eq!(decrypted.plaintext.as_slice(), b"hello");
        }
        assert_eq!(service.chain("Orders").unwrap_err().kind(), Kind::InvalidRequest);
        let names = registry.gather().into_iter().map(|family| family.name().to_owned());
        assert!(names.into_iter().any(|name| name == "kms_proxy_root_calls_total"));
        service.stop().await;
        let again = KeyService::builder().metrics(&registry).start().await;
        assert_eq!(again.err().map(|error| error.kind()), Some(Kind::Internal), "already there");
    }
}
