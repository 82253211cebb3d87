//! The simulated replicas: real services whose clients spend uses in bulk, as batches do, without
//! sealing anything. They know no figure.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prometheus::Registry;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::super::simulation::Rng;
use super::super::simulation::process::SimClock;
use super::cluster::Cluster;
use super::connection::Connection;
use super::kms::Kms;
use crate::id::{ChainName, KekId};
use crate::keychain::KeyChain;
use crate::metrics::Metrics;
use crate::root;
use crate::service::chain::Chain;
use crate::service::{CacheConfig, ChainConfig, Config, KeyService};
use crate::store::record::Limits;

/// How often a client spends the uses that are due.
const STEP: Duration = Duration::from_millis(500);
/// How often the number of waiting requests is adjusted to the traffic.
const JOINING: Duration = Duration::from_millis(250);
/// The largest number of waiting requests that are simulated one by one.
const MOST_WAITING: u64 = 256;
/// The time that a request waits for uses.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause of a client after an error.
const AFTER_ERROR: Duration = Duration::from_millis(500);

/// What clients saw.
#[derive(Default)]
pub(super) struct Seen {
    /// The uses that were spent of each KEK.
    pub(super) spent: BTreeMap<(ChainName, KekId), u64>,
    /// Steps of clients, those that had to wait for uses, and the longest wait.
    pub(super) steps: u64,
    pub(super) waited: u64,
    pub(super) longest: Duration,
    pub(super) failed: u64,
    /// When the clients of each chain of each replica encrypted for the first time.
    pub(super) first: Vec<Instant>,
}

/// What all replicas share.
pub(super) struct Region {
    pub(super) cluster: Arc<Cluster>,
    pub(super) root: Arc<Kms>,
    /// `default` is the first.
    pub(super) chains: Vec<ChainName>,
    pub(super) limits: Limits,
    /// Encrypts a second of each replica.
    pub(super) rate: f64,
    pub(super) metrics: Arc<Metrics>,
    pub(super) rng: Rng,
    seen: Mutex<Seen>,
}

impl Region {
    pub(super) fn new(
        cluster: &Arc<Cluster>,
        (chains, limits): (Vec<ChainName>, Limits),
        rate: f64,
        rng: Rng,
    ) -> Arc<Self> {
        let root = Kms::new(cluster, rng.fork());
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let (cluster, seen) = (Arc::clone(cluster), Mutex::default());
        Arc::new(Self { cluster, root, chains, limits, rate, metrics, rng, seen })
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Forgets what clients saw, except what they spent.
    pub(super) fn look_again(&self) -> Seen {
        let mut seen = self.seen();
        let spent = std::mem::take(&mut seen.spent);
        std::mem::replace(&mut *seen, Seen { spent, ..Seen::default() })
    }
}

/// A replica, which may still be starting.
pub(super) struct Replica {
    region: Arc<Region>,
    life: JoinHandle<()>,
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    service: Option<Arc<KeyService>>,
    clients: Vec<JoinHandle<()>>,
}

impl Replica {
    /// Starts a replica after a random time of up to `within`.
    pub(super) fn start(region: &Arc<Region>, within: Duration) -> Self {
        let running = Arc::new(Mutex::new(Running::default()));
        let pause = region.rng.up_to(within);
        let life = tokio::spawn(live(Arc::clone(region), pause, Arc::clone(&running)));
        Self { region: Arc::clone(region), life, running }
    }

    pub(super) fn service(&self) -> Option<Arc<KeyService>> {
        self.running.lock().unwrap().service.clone()
    }

    /// Kills it, and starts another one after a random time of up to `within`.
    pub(super) fn replace(&mut self, within: Duration) {
        self.life.abort();
        let Running { service, clients } = std::mem::take(&mut *self.running.lock().unwrap());
        for client in clients {
            client.abort();
        }
        if let Some(service) = service {
            service.abort_tasks();
        }
        *self = Self::start(&self.region, within);
    }
}

async fn live(region: Arc<Region>, pause: Duration, running: Arc<Mutex<Running>>) {
    sleep(pause).await;
    let config = Config {
        chain: ChainConfig {
            names: region.chains.iter().skip(1).cloned().collect(),
            ..ChainConfig::with_limits(region.limits)
        },
        cache: CacheConfig { dek_entries: 0, keks: 256, ..CacheConfig::default() },
        ..Config::default()
    };
    let service = loop {
        let cluster = Arc::clone(&region.cluster);
        let connection = Arc::new(Connection { cluster, rng: region.rng.fork() });
        let root = root::Named { name: "main".into(), root: Arc::clone(&region.root) as _ };
        let clock = Arc::new(SimClock::since(Instant::now()));
        let metrics = Arc::clone(&region.metrics);
        match KeyService::start(config.clone(), connection, vec![root], clock, metrics).await {
            Ok(service) => break service,
            Err(_) => sleep(AFTER_ERROR).await,
        }
    };
    let chains: Vec<_> =
        region.chains.iter().map(|name| service.chain_named(name.as_str())).collect();
    #[expect(clippy::cast_precision_loss, reason = "a few chains")]
    let rate = region.rate / chains.len() as f64;
    let mut running = running.lock().unwrap();
    for chain in chains {
        let client =
            Client { region: Arc::clone(&region), chain, service: Arc::clone(&service), rate };
        running.clients.push(tokio::spawn(client.encrypt()));
    }
    running.service = Some(service);
}

/// The clients of a chain at one replica.
struct Client {
    region: Arc<Region>,
    chain: Arc<Chain>,
    service: Arc<KeyService>,
    rate: f64,
}

impl Client {
    async fn encrypt(self) {
        sleep(self.region.rng.up_to(STEP)).await;
        let (mut due, mut last, mut is_first) = (1.0, Instant::now(), true);
        loop {
            due += self.rate * last.elapsed().as_secs_f64();
            last = Instant::now();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is small"
            )]
            let uses = due as u64;
            if uses > 0 {
                #[expect(clippy::cast_precision_loss, reason = "it is small")]
                let taken = uses as f64;
                due -= taken;
                let is_done = self.spend(uses, &mut is_first).await;
                if !is_done {
                    sleep(AFTER_ERROR).await;
                    // Clients that got an error do not send the request again here.
                    last = Instant::now();
                }
            }
            sleep(STEP).await;
        }
    }

    /// Spends `uses`. Returns false after an error.
    async fn spend(&self, mut uses: u64, is_first: &mut bool) -> bool {
        let began = Instant::now();
        let mut has_waited = false;
        loop {
            let spent = self.take(uses);
            uses -= spent;
            if spent > 0 && std::mem::take(is_first) {
                self.region.seen().first.push(Instant::now());
            }
            if uses == 0 {
                let mut seen = self.region.seen();
                seen.steps += 1;
                seen.waited += u64::from(has_waited);
                seen.longest = seen.longest.max(began.elapsed());
                return true;
            }
            has_waited = true;
            let is_late = began.elapsed() > PATIENCE;
            if is_late || !self.wait(uses).await && self.chain.last_error().is_some() {
                self.region.seen().failed += uses;
                return false;
            }
        }
    }

    /// Takes up to `uses` of the primary.
    fn take(&self, uses: u64) -> u64 {
        let (snapshot, now) = (self.chain.snapshot(), self.service.core.clock.now());
        let mut spent = 0;
        if let Some(mut many) = snapshot.take_many(uses, now) {
            while spent < uses && many.next(now).is_some() {
                spent += 1;
            }
        }
        while spent < uses && snapshot.take(now).is_some() {
            spent += 1;
        }
        self.chain.watch_level(&snapshot, now);
        self.note(&snapshot, spent);
        spent
    }

    fn note(&self, snapshot: &KeyChain, spent: u64) {
        if let Some(id) = snapshot.primary_id().filter(|_| spent > 0) {
            let mut seen = self.region.seen();
            *seen.spent.entry((self.chain.name.clone(), id)).or_default() += spent;
        }
    }

    /// Has requests wait for `uses`. Returns true when one of them may try again.
    async fn wait(&self, uses: u64) -> bool {
        let mut waiting = JoinSet::new();
        for _ in 0..uses.min(MOST_WAITING) {
            let chain = Arc::clone(&self.chain);
            let most = self.service.core.config.max_waiting;
            waiting.spawn(async move { chain.wait_for_uses(JOINING, most).await.is_ok() });
        }
        waiting.join_next().await.is_some_and(|turn| turn.is_ok_and(|is_turn| is_turn))
    }
}
