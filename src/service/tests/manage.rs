//! Chains made, bounded and deleted; clocks that disagree; damage that readiness names.

use std::sync::atomic::AtomicU64;

use super::replicas::{Replicas, default, until};
use super::*;
use crate::store::record::{Kek, Record};
use crate::store::{Committed, Compare, Txn};

#[tokio::test]
async fn a_chain_that_is_made_costs_no_root_call_before_its_first_use() {
    let world = World::new(LOW).await;
    let before = world.root.wraps.load(SeqCst);
    world.service.put_chain("orders", ChainSettings::default()).await.unwrap();
    for _ in 0..3 {
        world.service.run_reserver_of("orders").await;
        world.service.run_rotator_of("orders").await;
    }
    assert_eq!(world.root.wraps.load(SeqCst), before);
    world.service.encrypt(Some("orders"), b"hello"[..].into(), b"").await.unwrap();
    assert_eq!(world.root.wraps.load(SeqCst), before + 1);
}

#[tokio::test]
async fn a_chain_without_keks_is_deleted_and_others_stay() {
    let world = World::new(LOW).await;
    for chain in ["empty", "used"] {
        world.service.put_chain(chain, ChainSettings::default()).await.unwrap();
    }
    world.service.encrypt(Some("used"), b"hello"[..].into(), b"").await.unwrap();
    world.service.delete_chain("empty").await.unwrap();
    for chain in ["used", DEFAULT_CHAIN] {
        assert_eq!(kind(world.service.delete_chain(chain).await), Kind::Conflict, "{chain}");
    }
    assert_eq!(kind(world.service.delete_chain("empty").await), Kind::UnknownChain);
    let lost = world.service.encrypt(Some("empty"), b"hello"[..].into(), b"").await;
    assert_eq!(kind(lost), Kind::UnknownChain);
    let names = world.service.chains(None, 10).await.unwrap().items;
    let names: Vec<_> = names.iter().map(|chain| chain.chain.as_str()).collect();
    assert_eq!(names, [DEFAULT_CHAIN, "used"]);
    // It can be made again.
    world.service.put_chain("empty", ChainSettings::default()).await.unwrap();
    world.service.encrypt(Some("empty"), b"hello"[..].into(), b"").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_another_replica_deleted_is_gone_and_does_not_come_back() {
    let replicas = Replicas::new(2).await;
    let [one, other] = &replicas.services[..] else { panic!("two replicas") };
    one.put_chain("orders", ChainSettings::default()).await.unwrap();
    until("the other has it", async || other.chain_with_keks("orders", None, 1).await.is_ok())
        .await;
    one.delete_chain("orders").await.unwrap();
    until("the other misses it", async || {
        kind(other.encrypt(Some("orders"), b"hello"[..].into(), b"").await) == Kind::UnknownChain
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    for service in [one, other] {
        assert_eq!(kind(service.chain_with_keks("orders", None, 1).await), Kind::UnknownChain);
    }
}

#[tokio::test]
async fn chains_are_bounded_and_making_one_is_charged() {
    let (store, clock): (Arc<memory::Store>, Arc<ManualClock>) = Default::default();
    let chain = ChainConfig { max_chains: 3, ..ChainConfig::default() };
    let config = Config { chain, ..Config::default() };
    let roots = vec![root::Named { name: "main".into(), root: Arc::new(TestRoot::default()) as _ }];
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let started = KeyService::start(config, store, roots, Arc::clone(&clock) as _, metrics).await;
    let service = started.unwrap();
    clock.advance(Duration::from_secs(60));
    let quota = Arc::new(LookupQuota::new(1));
    let put = async |name: &str| service.put_chain(name, ChainSettings::default()).await;
    quota.scope(async { put("a").await.unwrap() }).await;
    let refused = quota.scope(async { put("b").await }).await;
    assert_eq!(kind(refused), Kind::Overloaded);
    put("b").await.unwrap();
    let refused = put("c").await.unwrap_err();
    assert!(refused.kind() == Kind::Conflict && refused.detail().contains("max_chains"));
    // Existing chains can still be changed.
    put("a").await.unwrap();
}

/// A clock whose wall time is ahead.
struct Ahead(Arc<ManualClock>, AtomicU64);

impl crate::clock::Clock for Ahead {
    fn unix_now(&self) -> u64 {
        self.0.unix_now() + self.1.load(SeqCst)
    }

    fn now(&self) -> Monotonic {
        self.0.now()
    }
}

async fn drive(service: &KeyService) {
    service.run_rotator().await;
    service.run_reserver().await;
}

#[tokio::test]
async fn replicas_whose_clocks_disagree_do_not_rotate_each_others_keks() {
    let (store, root): (Arc<memory::Store>, Arc<TestRoot>) = Default::default();
    let clock = Arc::<ManualClock>::default();
    let ahead = Arc::new(Ahead(Arc::clone(&clock), (91 * 86_400).into()));
    let limits = Limits { rotate_after_age: 90 * 86_400, ..LOW };
    let make = async |clock: Arc<dyn crate::clock::Clock>| {
        let config = Config { chain: ChainConfig::with_limits(limits), ..Config::default() };
        let roots = vec![root::Named { name: "main".into(), root: Arc::clone(&root) as _ }];
        let metrics = Metrics::new(&Registry::new()).unwrap();
        KeyService::start(config, Arc::clone(&store) as _, roots, clock, metrics).await.unwrap()
    };
    let (right, wrong) = (make(Arc::clone(&clock) as _).await, make(ahead).await);
    for _ in 0..120 {
        clock.advance(Duration::from_secs(60));
        for service in [&right, &wrong] {
            drive(service).await;
        }
    }
    // To the process that is ahead, the first KEK is old, once.
    let wraps = root.wraps.load(SeqCst);
    assert!((2..=3).contains(&wraps), "{wraps} KEKs in two hours");
    let told = |service: &KeyService| {
        let checks = service.readiness().checks;
        let check = checks.into_iter().find(|check| check.name == "chain:default");
        check.and_then(|check| check.detail).unwrap_or_default()
    };
    assert!(told(&right).contains("one of them is wrong"), "{:?}", told(&right));
}

#[tokio::test]
async fn a_damaged_record_is_named_by_readiness_until_it_is_repaired() {
    let world = World::new(LOW).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    let world = world.restarted().await;
    let key = record::kek_key(&default(), id);
    let whole = world.store.get(&key).await.unwrap().unwrap().value;
    let put = async |value: &[u8]| {
        let puts = vec![(key.clone(), value.to_vec())];
        let committed = world.store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
        assert!(matches!(committed, Committed::Applied(_)));
    };
    put(b"{").await;
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::Internal);
    let readiness = world.service.readiness();
    assert_eq!(readiness.health, Health::Degraded);
    let detail = readiness.checks.into_iter().find(|check| check.name == "chain:default");
    assert!(detail.unwrap().detail.unwrap().contains(&key));
    put(&whole).await;
    world.service.look_after_keks().await;
    assert_eq!(world.service.readiness().health, Health::Ok);
    world.decrypt(&envelope).await.unwrap();
    assert!(Kek::decode(&key, &whole).is_ok());
}

#[tokio::test]
async fn a_chain_whose_head_was_damaged_at_the_start_recovers() {
    let world = World::new(LOW).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    world.service.put_chain("orders", ChainSettings::default()).await.unwrap();
    let made = world.service.encrypt(Some("orders"), b"hello"[..].into(), b"aad").await.unwrap();
    let key = record::head_key(&ChainName::new("orders").unwrap());
    let whole = world.store.get(&key).await.unwrap().unwrap();
    world.service.stop().await;
    let put = async |value: &[u8]| {
        let revision = world.store.get(&key).await.unwrap().unwrap().revision;
        let compares = vec![Compare::Unchanged(key.clone(), revision)];
        let puts = vec![(key.clone(), value.to_vec())];
        let committed = world.store.commit(Txn { compares, puts, ..Txn::default() }).await;
        assert!(matches!(committed.unwrap(), Committed::Applied(_)));
    };
    put(b"{").await;
    let service =
        start(Arc::clone(&world.store) as _, &[("main", &world.root)], &world.clock).await;
    let made = made.envelope.as_slice().to_vec();
    let refused = service.decrypt(Some("orders"), made.clone(), b"aad").await;
    assert_eq!(kind(refused), Kind::Internal);
    assert_eq!(service.readiness().health, Health::Degraded);
    service.decrypt(None, envelope, b"aad").await.unwrap();
    put(&whole.value).await;
    service.look_after_keks().await;
    service.decrypt(Some("orders"), made, b"aad").await.unwrap();
    assert_eq!(service.readiness().health, Health::Ok);
}
