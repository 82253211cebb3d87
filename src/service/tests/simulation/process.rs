//! The processes of a run, with their roots and clocks: how they start and how they are killed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::hub::Hub;
use super::store::Net;
use crate::clock::{Clock, Monotonic};
use crate::id::KekId;
use crate::metrics::Metrics;
use crate::root::{self, Context, RootKey};
use crate::secret::KeyBytes;
use crate::service::{CacheConfig, ChainConfig, Config, Error, KeyService, MIN_DESTROY_DELAY};
use crate::store::record::Wrap;

/// 2026-01-01T00:00:00Z.
const EPOCH: u64 = 1_767_225_600;
/// The clocks of two machines differ by at most twice this number of seconds.
pub(super) const SKEW: u64 = 20;

/// The clock of one machine.
pub(in crate::service::tests) struct SimClock {
    began: Instant,
    epoch: u64,
}

impl SimClock {
    /// A clock whose machine has been running since `began`.
    pub(in crate::service::tests) const fn since(began: Instant) -> Self {
        Self { began, epoch: EPOCH }
    }
}

impl Clock for SimClock {
    fn unix_now(&self) -> u64 {
        self.epoch + self.began.elapsed().as_secs()
    }

    fn now(&self) -> Monotonic {
        Monotonic::default() + Duration::from_secs(3600) + self.began.elapsed()
    }
}

/// What an operator got wrong in the configuration of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    /// Every root has another key.
    AllWrong,
    /// The first root has another key.
    FirstWrong,
    /// Each root has the key of the next one.
    Swapped,
}

/// The key of a root; the right one has the root's name.
fn key_of(roots: &[&str], index: usize, mistake: Option<Mistake>) -> String {
    let wrong = format!("not {}", roots[index]);
    match mistake {
        None => roots[index].to_owned(),
        Some(Mistake::AllWrong) => wrong,
        Some(Mistake::FirstWrong) if index == 0 => wrong,
        Some(Mistake::FirstWrong) => roots[index].to_owned(),
        Some(Mistake::Swapped) if roots.len() == 1 => wrong,
        Some(Mistake::Swapped) => roots[(index + 1) % roots.len()].to_owned(),
    }
}

/// Whether the right key of its root made a wrap.
pub(super) fn is_right(wrap: &Wrap) -> bool {
    is_by(wrap, &wrap.root)
}

/// Whether `key` made a wrap.
fn is_by(wrap: &Wrap, key: &str) -> bool {
    wrap.bytes.starts_with(format!("{key}kms-proxy kek v1").as_bytes())
}

/// Whether a wrap has the name of one of `roots`, each with its key, and another key made it. A
/// wrong key that was the first under its name made all of them, so the process that has it cannot
/// notice it: the others do.
fn contradicts<'a>(wraps: &[Wrap], mut roots: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
    roots.any(|(name, key)| wraps.iter().any(|wrap| wrap.root == name && !is_by(wrap, key)))
}

/// A root, and the connection of one process to it.
pub(super) struct Root {
    name: Arc<str>,
    key: String,
    net: Net,
    away: Mutex<Instant>,
}

impl Root {
    fn set_away(&self, until: Instant) {
        *self.away.lock().unwrap() = until;
    }

    /// Sends a request or a response, which may fail.
    async fn way(&self) -> Result<(), root::Error> {
        let (rng, hub) = (&self.net.rng, &self.net.hub);
        if rng.one_in(3) {
            sleep(rng.up_to(hub.conditions.root_delay)).await;
        }
        // The service gives up after 15 s.
        if !hub.is_calm() && rng.per_mille(hub.conditions.hangs) {
            sleep(Duration::from_secs(60)).await;
        }
        self.net.alive().await;
        let away = *self.away.lock().unwrap() > Instant::now();
        if away { Err(root::Error::Away("simulated".to_owned())) } else { Ok(()) }
    }
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, root::Error> {
        self.way().await?;
        let hub = &self.net.hub;
        hub.checker().wrapped(self.net.process, hub.now(), context.kek_id, &self.name);
        let wrap = [self.key.as_bytes(), &context.aad(), kek.expose()].concat();
        self.way().await?;
        Ok(wrap)
    }

    async fn unwrap(&self, context: Context<'_>, wrap: &[u8]) -> Result<KeyBytes, root::Error> {
        self.way().await?;
        let before = [self.key.as_bytes(), &context.aad()].concat();
        let kek = wrap.strip_prefix(&*before).and_then(KeyBytes::from_slice);
        self.way().await?;
        kek.ok_or_else(|| root::Error::Wrong("another key or context".to_owned()))
    }

    fn kind(&self) -> &'static str {
        "simulated"
    }
}

/// A process: a service with its own connections.
pub(super) struct Process {
    pub(super) net: Net,
    pub(super) roots: Vec<Arc<Root>>,
    pub(super) mistake: Option<Mistake>,
    pub(super) service: Arc<KeyService>,
    /// The calls of its clients.
    pub(super) calls: Vec<JoinHandle<()>>,
}

/// A process that is starting.
pub(super) struct Starting {
    net: Net,
    roots: Vec<Arc<Root>>,
    pub(super) mistake: Option<Mistake>,
    starting: JoinHandle<Result<Arc<KeyService>, Error>>,
}

impl Starting {
    pub(super) fn new(hub: &Arc<Hub>, rng: super::Rng) -> Self {
        Self::with(hub, rng, None)
    }

    /// A process with a mistake in its configuration.
    pub(super) fn with(hub: &Arc<Hub>, rng: super::Rng, mistake: Option<Mistake>) -> Self {
        let number = hub.checker().process(hub.now());
        let net = Net::new(Arc::clone(hub), number, rng);
        let roots: Vec<_> = hub
            .conditions
            .roots
            .iter()
            .enumerate()
            .map(|(index, &name)| {
                let key = key_of(hub.conditions.roots, index, mistake);
                let away = Mutex::new(Instant::now());
                Arc::new(Root { name: name.into(), key, net: net.clone(), away })
            })
            .collect();
        let named = roots
            .iter()
            .map(|root| root::Named { name: Arc::clone(&root.name), root: Arc::clone(root) as _ })
            .collect();
        let clock = SimClock {
            began: Instant::now(),
            epoch: EPOCH + hub.now().as_secs() + net.rng.below(2 * SKEW + 1) - SKEW,
        };
        let config = Config {
            chain: ChainConfig {
                destroy_delay: MIN_DESTROY_DELAY,
                ..ChainConfig::with_limits(hub.conditions.limits)
            },
            cache: CacheConfig { dek_entries: 64, keks: 1_000, ..CacheConfig::default() },
            archive_policy: hub.conditions.policy,
            wait: Duration::from_secs(1 + net.rng.below(10)),
            ..Config::default()
        };
        let (store, archives) = (Arc::new(net.clone()), hub.archives_of(&net));
        let starting = tokio::spawn(async move {
            let metrics = Metrics::new(&Registry::new()).unwrap();
            let clock = Arc::new(clock);
            KeyService::start_archived(config, store, archives, named, clock, metrics).await
        });
        Self { net, roots, mistake, starting }
    }

    pub(super) fn is_over(&self) -> bool {
        self.starting.is_finished()
    }

    /// Kills it.
    pub(super) fn abandon(self) {
        self.net.kill();
        self.starting.abort();
        let hub = &self.net.hub;
        hub.checker().crashed(self.net.process, hub.now());
    }

    /// The process; an error if the store was not available.
    pub(super) async fn finish(self) -> Result<Process, Error> {
        let service = self.starting.await.expect("a start panicked")?;
        let Self { net, roots, mistake, .. } = self;
        Ok(Process { net, roots, mistake, service, calls: Vec::new() })
    }
}

impl Process {
    /// Kills it: its calls never end.
    pub(super) fn kill(self) {
        self.net.kill();
        for call in &self.calls {
            call.abort();
        }
        self.service.abort_tasks();
        let hub = &self.net.hub;
        hub.checker().crashed(self.net.process, hub.now());
    }

    /// Makes all its roots unavailable.
    pub(super) fn lose_roots(&self, until: Instant) {
        for root in &self.roots {
            root.set_away(until);
        }
    }

    /// Makes one of its roots unavailable.
    pub(super) fn lose_root(&self, until: Instant) {
        self.roots[self.net.rng.index(self.roots.len())].set_away(until);
    }

    pub(super) fn mend(&self) {
        self.net.mend();
        self.lose_roots(Instant::now());
    }

    /// Whether it has a root that does not open the primary's wrap of its name.
    pub(super) fn must_complain(&self) -> bool {
        let checker = self.net.hub.checker();
        let primary = checker.head.as_ref().and_then(|head| head.primary);
        let kek = primary.and_then(|id| checker.keks.get(&id)?.kek.as_ref());
        let roots = self.roots.iter().map(|root| (&*root.name, &*root.key));
        kek.is_some_and(|kek| contradicts(&kek.wraps, roots))
    }

    /// Whether all its background tasks run: a task that panicked does not.
    pub(super) fn is_whole(&self) -> bool {
        self.service.has_all_tasks()
    }

    /// The KEKs whose records it remembers.
    pub(super) fn records(&self) -> BTreeSet<KekId> {
        self.service.remembered_keks().into_iter().collect()
    }
}

#[test]
fn a_process_must_complain_about_a_wrap_of_another_key_and_not_about_its_own_wrong_key() {
    let wrap = |key: &str| Wrap {
        root: "main".to_owned(),
        bytes: [key.as_bytes(), b"kms-proxy kek v1", b"the rest"].concat(),
    };
    let (right, wrong) = ([("main", "main")], [("main", "not main")]);
    for (made_by, roots, expected) in
        [("main", right, false), ("main", wrong, true), ("not main", right, true)]
    {
        assert_eq!(contradicts(&[wrap(made_by)], roots.into_iter()), expected, "{made_by}");
    }
    // The wrong key was the first under the name.
    assert!(!contradicts(&[wrap("not main")], wrong.into_iter()));
    assert!(!contradicts(&[wrap("not main")], [("spare", "spare")].into_iter()));
}
