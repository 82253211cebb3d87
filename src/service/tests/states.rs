//! States of KEKs when responses are lost, callers disconnect and changes are concurrent.

use std::sync::atomic::{AtomicBool, AtomicU64};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::*;
use crate::store::{Committed, Entry, Txn};

/// A store that delays the response to one commit until the test releases it.
#[derive(Default)]
struct Held {
    inner: Arc<memory::Store>,
    holding: AtomicBool,
    /// The commit is applied.
    made: Notify,
    answer: Notify,
}

#[async_trait]
impl Store for Held {
    async fn get(&self, key: &str) -> Result<Option<Entry>, store::Error> {
        self.inner.get(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, store::Error> {
        self.inner.list(prefix, after, limit).await
    }

    async fn count(&self, prefix: &str) -> Result<u64, store::Error> {
        self.inner.count(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, store::Error> {
        let result = self.inner.commit(txn).await;
        if self.holding.swap(false, SeqCst) {
            self.made.notify_one();
            self.answer.notified().await;
        }
        result
    }

    fn kind(&self) -> &'static str {
        "held"
    }
}

/// A service on such a store, with an envelope under a retired KEK.
struct HeldWorld {
    store: Arc<Held>,
    clock: Arc<ManualClock>,
    service: Arc<KeyService>,
    envelope: Vec<u8>,
    id: KekId,
}

impl HeldWorld {
    async fn new() -> Self {
        let (store, clock): (Arc<Held>, Arc<ManualClock>) = Default::default();
        let root = [("main", &Arc::<TestRoot>::default())];
        let service = start(Arc::clone(&store) as _, &root, &clock).await;
        let made = service.encrypt(None, b"hello"[..].into(), b"").await.unwrap();
        let (envelope, id) = (made.envelope.as_slice().to_vec(), made.kek_id);
        service.rotate(None).await.unwrap();
        Self { store, clock, service, envelope, id }
    }

    async fn change(&self, change: Change) -> Result<State, Error> {
        self.service.change_kek(DEFAULT_CHAIN, self.id, change).await.map(|kek| kek.state)
    }

    /// Starts a change, and returns when it is stored and its response is delayed.
    async fn hold(&self, change: Change) -> tokio::task::JoinHandle<Result<State, Error>> {
        self.store.holding.store(true, SeqCst);
        let (service, id) = (Arc::clone(&self.service), self.id);
        let call = async move { service.change_kek(DEFAULT_CHAIN, id, change).await };
        let call = tokio::spawn(async move { call.await.map(|kek| kek.state) });
        self.store.made.notified().await;
        call
    }

    async fn decrypt(&self) -> Result<(), Kind> {
        let decrypted = self.service.decrypt(None, self.envelope.clone(), b"").await;
        decrypted.map(|_| ()).map_err(|error| error.kind())
    }

    async fn stored(&self) -> State {
        let (_, page) = self.service.chain_with_keks(DEFAULT_CHAIN, None, 10).await.unwrap();
        page.items.iter().find(|kek| kek.kek_id == self.id).unwrap().state
    }

    async fn settle(&self) {
        self.service.settle_doubts().await;
    }
}

const REFUSED: Result<(), Kind> = Err(Kind::KekDisabled);

#[tokio::test]
async fn a_kek_that_is_disabled_is_refused_though_the_answer_is_lost() {
    let world = HeldWorld::new().await;
    assert_eq!(world.decrypt().await, Ok(()));
    for change in [Change::Disable, Change::Destroy] {
        world.store.inner.fail_next([Fault::AnswerLost]);
        assert_eq!(kind(world.change(change).await), Kind::StoreUnavailable);
        assert_eq!(world.decrypt().await, REFUSED);
        assert_eq!(kind(world.change(change).await), Kind::Conflict, "it is so already");
        assert_eq!(world.decrypt().await, REFUSED);
        world.clock.advance(Duration::from_secs(86_400));
    }
    assert_eq!(world.stored().await, State::Destroyed);
}

#[tokio::test]
async fn a_kek_that_is_enabled_is_used_though_the_answer_is_lost() {
    let world = HeldWorld::new().await;
    world.change(Change::Disable).await.unwrap();
    world.store.inner.fail_next([Fault::AnswerLost]);
    assert_eq!(kind(world.change(Change::Enable).await), Kind::StoreUnavailable);
    assert_eq!((world.decrypt().await, world.stored().await), (Ok(()), State::Retired));
}

#[tokio::test]
async fn a_change_is_completed_when_its_caller_disconnects() {
    let world = HeldWorld::new().await;
    let call = world.hold(Change::Disable).await;
    assert_eq!(world.decrypt().await, REFUSED, "before the response");
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    world.store.answer.notify_one();
    // Changes are made one after the other: this one waits for the abandoned one.
    assert_eq!(world.change(Change::Enable).await, Ok(State::Retired));
    assert_eq!(world.decrypt().await, Ok(()));
    let call = world.hold(Change::Disable).await;
    call.abort();
    world.store.answer.notify_one();
    world.settle().await;
    assert_eq!((world.decrypt().await, world.stored().await), (REFUSED, State::Disabled));
}

#[tokio::test]
async fn a_kek_in_doubt_is_refused_until_the_store_shows_its_state() {
    for (fault, then) in [(Fault::AnswerLost, REFUSED), (Fault::RequestLost, Ok(()))] {
        let world = HeldWorld::new().await;
        world.store.inner.fail_next([fault]);
        let call = world.hold(Change::Disable).await;
        world.store.inner.set_down(true);
        world.store.answer.notify_one();
        assert_eq!(kind(call.await.unwrap()), Kind::StoreUnavailable);
        world.settle().await;
        assert_eq!(world.decrypt().await, REFUSED, "the outcome is not known yet");
        world.store.inner.set_down(false);
        world.settle().await;
        assert_eq!(world.decrypt().await, then, "{fault:?}");
    }
}

#[tokio::test]
async fn a_commit_that_is_applied_late_is_followed() {
    let world = HeldWorld::new().await;
    world.store.inner.fail_next([Fault::RequestLost]);
    assert_eq!(kind(world.change(Change::Disable).await), Kind::StoreUnavailable);
    assert_eq!(world.decrypt().await, Ok(()), "it was not applied");
    let name = ChainName::new(DEFAULT_CHAIN).unwrap();
    let key = record::kek_key(&name, world.id);
    let read = records::read::<record::Kek>(&*world.store, &key).await.unwrap().unwrap();
    let disabled = record::Kek { state: State::Disabled, ..read.record.clone() };
    assert!(records::put_kek(&*world.store, &name, world.id, &read, &disabled).await.unwrap());
    world.settle().await;
    assert_eq!(world.decrypt().await, REFUSED);
}

#[tokio::test]
async fn concurrent_changes_leave_memory_and_store_equal() {
    let world = HeldWorld::new().await;
    let disable = world.hold(Change::Disable).await;
    let enable = world.change(Change::Enable);
    let (_, enabled) = tokio::join!(
        async {
            tokio::task::yield_now().await;
            world.store.answer.notify_one();
        },
        enable
    );
    assert_eq!((disable.await.unwrap(), enabled), (Ok(State::Disabled), Ok(State::Retired)));
    assert_eq!((world.decrypt().await, world.stored().await), (Ok(()), State::Retired));
}

#[tokio::test]
async fn a_chain_whose_creator_disconnected_exists() {
    let world = HeldWorld::new().await;
    world.store.holding.store(true, SeqCst);
    let service = Arc::clone(&world.service);
    let call =
        tokio::spawn(async move { service.put_chain("orders", ChainSettings::default()).await });
    world.store.made.notified().await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    world.store.answer.notify_one();
    let made = async {
        while world.service.chain_with_keks("orders", None, 1).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, made).await.expect("the chain is created");
}

#[tokio::test]
async fn a_rotation_whose_caller_disconnected_is_completed() {
    let world = HeldWorld::new().await;
    world.store.holding.store(true, SeqCst);
    let service = Arc::clone(&world.service);
    let before = service.primary_id();
    let call = tokio::spawn(async move { service.rotate(None).await });
    world.store.made.notified().await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    world.store.answer.notify_one();
    world.service.manual_rotation_ended().await;
    assert_ne!(world.service.primary_id(), before);
}

/// A clock whose wall time is ahead of its monotonic time.
struct Skewed {
    inner: Arc<ManualClock>,
    ahead: AtomicU64,
}

impl crate::clock::Clock for Skewed {
    fn unix_now(&self) -> u64 {
        self.inner.unix_now() + self.ahead.load(SeqCst)
    }

    fn now(&self) -> Monotonic {
        self.inner.now()
    }
}

/// Two processes of one store; the clock of the first is `ahead`.
async fn skewed(ahead: u64) -> (Arc<KeyService>, Arc<KeyService>, Arc<Skewed>) {
    let (store, root, inner): (Arc<memory::Store>, Arc<TestRoot>, Arc<ManualClock>) =
        Default::default();
    let clock = Arc::new(Skewed { inner: Arc::clone(&inner), ahead: ahead.into() });
    let make = async |clock: Arc<dyn crate::clock::Clock>| {
        let config = Config { chain: ChainConfig::with_limits(LOW), ..Config::default() };
        let roots = vec![root::Named { name: "main".into(), root: Arc::clone(&root) as _ }];
        let metrics = Metrics::new(&Registry::new()).unwrap();
        KeyService::start(config, Arc::clone(&store) as _, roots, clock, metrics).await.unwrap()
    };
    (make(Arc::clone(&clock) as _).await, make(inner as _).await, clock)
}

async fn disabled_by(service: &KeyService) -> KekId {
    let id = service.encrypt(None, b"hello"[..].into(), b"").await.unwrap().kek_id;
    service.rotate(None).await.unwrap();
    service.change_kek(DEFAULT_CHAIN, id, Change::Disable).await.unwrap();
    id
}

#[tokio::test]
async fn a_wall_clock_that_jumps_does_not_shorten_the_delay_of_a_destroy() {
    let (service, _, clock) = skewed(0).await;
    let id = disabled_by(&service).await;
    clock.ahead.store(10 * 86_400, SeqCst);
    let destroy = async || service.change_kek(DEFAULT_CHAIN, id, Change::Destroy).await;
    for wait in [0, 60, 86_000] {
        clock.inner.advance(Duration::from_secs(wait));
        assert_eq!(kind(destroy().await), Kind::Conflict);
    }
    clock.inner.advance(Duration::from_secs(400));
    assert_eq!(destroy().await.unwrap().state, State::Destroyed);
}

#[tokio::test]
async fn a_replica_whose_clock_is_ahead_waits_until_no_block_is_left() {
    let (ahead, other, clock) = skewed(2 * 86_400).await;
    let id = disabled_by(&other).await;
    let destroy = async || ahead.change_kek(DEFAULT_CHAIN, id, Change::Destroy).await;
    assert_eq!(kind(destroy().await), Kind::Conflict);
    clock.inner.advance(MIN_DESTROY_DELAY - Duration::from_secs(1));
    assert_eq!(kind(destroy().await), Kind::Conflict);
    clock.inner.advance(Duration::from_secs(2));
    assert_eq!(destroy().await.unwrap().state, State::Destroyed);
}

/// The clock was ahead when the KEK was disabled, and is right again.
#[tokio::test]
async fn a_kek_that_was_disabled_in_the_future_can_be_destroyed_after_the_delay() {
    let (ahead, other, clock) = skewed(30 * 86_400).await;
    let id = disabled_by(&ahead).await;
    let destroy = async || other.change_kek(DEFAULT_CHAIN, id, Change::Destroy).await;
    assert_eq!(kind(destroy().await), Kind::Conflict);
    clock.inner.advance(Duration::from_secs(86_401));
    assert_eq!(destroy().await.unwrap().state, State::Destroyed);
}
