//! The start of a service: loads the stored chains, creates those that the configuration names, and
//! starts their tasks. An unavailable root does not prevent a start.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::archive;
use crate::clock::Clock;
use crate::id::{ChainName, Suite};
use crate::keychain::KekPlacement;
use crate::keychain::dek_cache::DekCache;
use crate::metrics::Metrics;
use crate::root;
use crate::store::record::{Head, Limits};
use crate::store::{self, Store, records};

use super::archive::archives::Archives;
use super::chain::Chain;
use super::core::{CONCURRENT_LOOKUPS, Core};
use super::error::Error;
use super::keyring::Keyring;
use super::last_used::UsedKeks;
use super::ledger::Ledger;
use super::limits::rate_limiter::RateLimiter;
use super::limits::unknown::Unknown;
use super::monitored_store::MonitoredStore;
use super::rollback::summary::Summary;
use super::rotation::reservations::Reservations;
use super::rotation::{reserver, root_users, rotator};
use super::status::history::History;
use super::{Config, DEFAULT_CHAIN, KeyService, backup, recheck, tasks};

/// How long a start waits for the chains that it names: longer than one call of a root.
const READY_WITHIN: Duration = Duration::from_secs(20);

impl KeyService {
    /// Starts a service without archives.
    #[cfg(test)]
    pub(crate) async fn start(
        config: Config,
        store: Arc<dyn Store>,
        roots: Vec<root::Named>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, Error> {
        Self::start_archived(config, store, Vec::new(), roots, clock, metrics).await
    }

    /// Starts a service on `store`, `archives` and `roots`, the preferred root first. When it
    /// returns, `default` and the chains that `config` names are ready, or are retried in the
    /// background.
    ///
    /// # Errors
    /// When the store does not answer. Roots and archives may be unavailable.
    pub(crate) async fn start_archived(
        config: Config,
        store: Arc<dyn Store>,
        archives: Vec<archive::Named>,
        roots: Vec<root::Named>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, Error> {
        let mut owner = [0; 8];
        crate::random::fill(&mut owner).map_err(|error| Error::internal(&error))?;
        let (owner, shared) = (u64::from_le_bytes(owner), store.watch().is_some());
        let placement =
            if store.is_lasting() { KekPlacement::Stored } else { KekPlacement::Inline };
        let core = Arc::new(Core {
            placement,
            store: Arc::new(MonitoredStore::new(store, Arc::clone(&clock), Arc::clone(&metrics))),
            keyring: Keyring::new(
                roots,
                config.cache.keks,
                Arc::clone(&clock),
                Arc::clone(&metrics),
            ),
            archives: Archives::new(archives, config.archive_policy, &metrics),
            audit_key: Default::default(),
            deks: DekCache::new(config.cache.dek_entries, config.cache.dek_max_age),
            used: UsedKeks::new(Arc::clone(&clock), owner, shared),
            unknown: Unknown::new(),
            unknown_chains: Unknown::new(),
            lookups: Semaphore::new(CONCURRENT_LOOKUPS),
            backups: backup::permits(),
            last_backup: 0.into(),
            shared,
            confirmed: clock.now().as_nanos().into(),
            config,
            started_at: clock.unix_now(),
            history: Mutex::new(History::new(clock.now())),
            counting: Default::default(),
            clock,
            metrics,
            in_doubt: false.into(),
            owner,
            stopping: watch::Sender::new(false),
            damage: Mutex::default(),
            retries: RateLimiter::new(1, recheck::RETRY),
            wrap_log: RateLimiter::new(1, recheck::RETRY),
            rollbacks: Summary::default(),
            root_reports: Mutex::default(),
        });
        let (chains, damaged) = core.load_chains().await?;
        core.read_last_backup().await;
        core.audit_key.look_after(&*core.store).await;
        let named: Vec<_> =
            core.named_chains().filter_map(|name| chains.get(&name).cloned()).collect();
        for chain in &named {
            chain.is_named.store(true, Ordering::Relaxed);
        }
        let tasks = vec![tasks::spawn_sweep(&core), tasks::spawn_probe(&core)];
        let service = Arc::new(Self {
            core,
            chains: ArcSwap::from_pointee(chains),
            damaged: Mutex::new(damaged),
            tasks: Mutex::new(tasks),
            draining: false.into(),
            reports: Mutex::default(),
        });
        for chain in service.chains.load().values() {
            service.spawn(chain);
        }
        let others = [service.keep_up(), service.keep_history(), service.keep_days()];
        let others = service.follow().into_iter().chain(others);
        service.tasks.lock().extend(others.chain(service.archive()));
        service.make_ready(named).await;
        root_users::look_after(&service.core).await;
        Ok(service)
    }

    /// Runs the first steps of all `chains` concurrently, and waits for them with a limit.
    async fn make_ready(&self, chains: Vec<Arc<Chain>>) {
        let mut driven = JoinSet::new();
        for chain in chains {
            let core = Arc::clone(&self.core);
            // A failure is logged, and the chain's tasks try again.
            driven.spawn(async move {
                rotator::drive(&core, &chain).await;
                reserver::drive(&core, &chain).await;
            });
        }
        let all = async { while driven.join_next().await.is_some() {} };
        if tokio::time::timeout(READY_WITHIN, all).await.is_err() {
            tracing::warn!(
                "some chains are not ready yet: a root or the store is slow; their tasks continue"
            );
        }
        driven.detach_all();
    }

    /// Starts the tasks of a chain.
    pub(super) fn spawn(&self, chain: &Arc<Chain>) {
        let tasks = tasks::spawn(&self.core, chain);
        self.tasks.lock().extend(tasks);
    }
}

type Chains = HashMap<ChainName, Arc<Chain>>;

impl Core {
    /// `default`, then those of the configuration.
    fn named_chains(&self) -> impl Iterator<Item = ChainName> {
        ChainName::new(DEFAULT_CHAIN).into_iter().chain(self.config.chain.names.iter().cloned())
    }

    /// The head of a chain as it is made.
    pub(super) fn new_head(&self, suite: Suite, limits: Limits, inline: bool) -> Head {
        Head {
            suite,
            limits,
            primary: None,
            standby: None,
            generation: 1,
            roots_generation: 1,
            named_root: None,
            repair: None,
            inline,
        }
    }

    /// Creates the named chains that are missing, and loads all chains.
    async fn load_chains(self: &Arc<Self>) -> Result<(Chains, HashMap<ChainName, String>), Error> {
        let chain = &self.config.chain;
        let head = self.new_head(chain.suite, chain.limits(), chain.inline);
        for name in self.named_chains() {
            if let Err(error) = self.look_in_archives(&name).await {
                tracing::warn!(chain = %name, %error, "no archive could say whether it has \
                    settings of the chain; those of the \
                    configuration count if the store has none");
            }
            records::create(&*self.store, &name, &head).await.map_err(|error| {
                let why = error.to_string();
                self.store_error(&name, error).with_advice(why)
            })?;
        }
        let names = records::chains(&*self.store).await.map_err(|error| {
            tracing::error!(%error, "the store can not be listed");
            Error::new(super::Kind::StoreUnavailable, error.to_string())
        })?;
        let (mut chains, mut damaged) = (Chains::new(), HashMap::new());
        for name in names {
            match self.load(&name).await {
                Ok(Some(chain)) => {
                    chains.insert(name, chain);
                }
                Ok(None) => {}
                Err(store::Error::Corrupt { key, detail }) => {
                    tracing::error!(chain = %name, key, detail, "a chain is not loaded: its \
                        record is damaged");
                    damaged.insert(name, format!("the record {key} is damaged: {detail}"));
                }
                Err(error) => return Err(self.store_error(&name, error)),
            }
        }
        Ok((chains, damaged))
    }

    /// Founds a chain again that the store lacks and the archives have.
    async fn look_in_archives(self: &Arc<Self>, name: &ChainName) -> Result<(), Error> {
        if self.archives.is_empty() {
            return Ok(());
        }
        match records::read_head(&*self.store, name).await {
            Ok(None) => self.found_archived(name).await.map(drop),
            // What follows reports an error.
            Ok(Some(_)) | Err(_) => Ok(()),
        }
    }

    /// Loads one chain; `None` if it is not stored.
    pub(super) async fn load(&self, name: &ChainName) -> Result<Option<Arc<Chain>>, store::Error> {
        let store: Arc<dyn Store> = Arc::clone(&self.store) as _;
        let ledger = Ledger::load(store, name.clone(), self.owner).await?;
        Ok(ledger.map(|ledger| {
            Arc::new(Chain::new(name.clone(), self.metrics.chain(name), Reservations::new(ledger)))
        }))
    }
}
