//! KEKs that no root opens, and damaged records: everything else still works.

use async_trait::async_trait;

use super::*;
use crate::root::{Context, RootKey};
use crate::secret::KeyBytes;
use crate::store::Txn;

/// Two roots, of which the test can lose one.
struct TwoRoots {
    store: Arc<memory::Store>,
    clock: Arc<ManualClock>,
    a: Arc<TestRoot>,
    b: Arc<TestRoot>,
}

impl TwoRoots {
    fn new() -> Self {
        let (store, clock, a, b) = Default::default();
        Self { store, clock, a, b }
    }

    async fn start(&self) -> Arc<KeyService> {
        let store = Arc::clone(&self.store);
        start(store as _, &[("a", &self.a), ("b", &self.b)], &self.clock).await
    }

    /// Encrypts until `done`, while time passes and the chain's tasks work.
    async fn encrypt_until(
        &self,
        service: &KeyService,
        done: impl Fn(Option<KekId>, &record::Head) -> bool,
    ) {
        for _ in 0..400 {
            let _ = encrypt(service).await;
            self.drive(service).await;
            if done(service.primary_id(), &service.known_head().await) {
                return;
            }
        }
        panic!("it did not happen");
    }

    /// Two minutes later.
    async fn drive(&self, service: &KeyService) {
        self.clock.advance(Duration::from_secs(120));
        service.run_reserver().await;
        service.run_rotator().await;
        service.run_reserver().await;
    }
}

async fn encrypt(service: &KeyService) -> Result<KekId, Error> {
    Ok(service.encrypt(None, b"hello"[..].into(), b"").await?.kek_id)
}

async fn states(service: &KeyService) -> HashMap<KekId, State> {
    let (_, page) = service.chain_with_keks(DEFAULT_CHAIN, None, 100).await.unwrap();
    page.items.into_iter().map(|kek| (kek.kek_id, kek.state)).collect()
}

fn chain_check(service: &KeyService) -> Option<Check> {
    service.readiness().checks.into_iter().find(|check| check.name == "chain:default")
}

/// Overwrites the record at `key`.
async fn damage(store: &memory::Store, key: String) {
    let puts = vec![(key, b"{\"format\":1,".to_vec())];
    let _ = store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
}

fn default_chain() -> ChainName {
    ChainName::new(DEFAULT_CHAIN).unwrap()
}

#[tokio::test]
async fn a_standby_that_no_root_opens_is_replaced_when_it_is_due() {
    for by_hand in [false, true] {
        let world = TwoRoots::new();
        let service = world.start().await;
        let first = encrypt(&service).await.unwrap();
        world.a.away.store(true, SeqCst);
        world.encrypt_until(&service, |_, head| head.standby.is_some()).await;
        service.stop().await;
        world.a.away.store(false, SeqCst);
        world.b.away.store(true, SeqCst);
        let service = world.start().await;
        let head = service.chain_with_keks(DEFAULT_CHAIN, None, 1).await.unwrap().0;
        let standby = head.standby.unwrap();
        assert_eq!(head.primary, Some(first));
        assert!(encrypt(&service).await.is_ok(), "the primary is well");
        assert!(chain_check(&service).unwrap().detail.unwrap().contains("wrapped by b"));
        if by_hand {
            service.rotate(None).await.unwrap();
        } else {
            world.encrypt_until(&service, |primary, _| primary != Some(first)).await;
        }
        let states = states(&service).await;
        assert_eq!((states[&first], states[&standby]), (State::Retired, State::Retired));
        assert_eq!(states[&encrypt(&service).await.unwrap()], State::Primary);
    }
}

#[tokio::test]
async fn a_standby_whose_record_is_damaged_stops_nothing_and_is_replaced() {
    type Key = fn(&ChainName, KekId) -> String;
    for key in [record::kek_key as Key, record::uses_key as Key] {
        let world = TwoRoots::new();
        let service = world.start().await;
        let first = encrypt(&service).await.unwrap();
        world.encrypt_until(&service, |_, head| head.standby.is_some()).await;
        service.stop().await;
        let standby =
            service.chain_with_keks(DEFAULT_CHAIN, None, 1).await.unwrap().0.standby.unwrap();
        damage(&world.store, key(&default_chain(), standby)).await;
        let service = world.start().await;
        assert_eq!(encrypt(&service).await, Ok(first));
        assert!(chain_check(&service).unwrap().detail.unwrap().contains("is damaged"));
        let rotated = service.rotate(None).await.unwrap();
        assert_eq!(rotated.previous, Some(first));
        assert_ne!(rotated.primary, standby);
        world.drive(&service).await;
        let detail = chain_check(&service).unwrap().detail.unwrap();
        assert!(detail.contains(&key(&default_chain(), standby)), "the record stays: {detail}");
    }
}

#[tokio::test]
async fn a_primary_that_no_root_opens_is_replaced_by_force_alone() {
    let world = World::new(LOW).await;
    let (_, first) = world.encrypt().await.unwrap();
    world.service.stop().await;
    let other = [("other", &world.root)];
    let service = start(Arc::clone(&world.store) as _, &other, &world.clock).await;
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(86_400));
        service.run_rotator().await;
        service.run_reserver().await;
    }
    assert_eq!(states(&service).await, HashMap::from([(first, State::Primary)]));
    let error = encrypt(&service).await.unwrap_err();
    assert_eq!(error.kind(), Kind::RootUnavailable);
    let readiness = chain_check(&service).unwrap().detail.unwrap();
    for word in [&first.to_string(), "wrapped by main", "configured", "rotate --force"] {
        assert!(readiness.contains(word), "{word}: {readiness}");
    }
    assert_eq!(error.detail(), "no root opens the primary KEK now", "callers get no advice");
    assert_eq!(service.readiness().health, Health::Down, "it can do nothing");
    let refused = service.rotate(None).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::RootUnavailable);
    assert_eq!(states(&service).await, HashMap::from([(first, State::Primary)]));
    let rotated = service.force_rotate(None).await.unwrap();
    assert_eq!(service.readiness().health, Health::Degraded, "the first KEK stays closed");
    assert!(chain_check(&service).unwrap().detail.unwrap().contains(&first.to_string()));
    assert_eq!(rotated.previous, Some(first));
    assert_eq!(encrypt(&service).await, Ok(rotated.primary));
}

/// The standby can be opened: its roots are others.
#[tokio::test]
async fn a_primary_that_no_root_opens_does_not_keep_the_standby_from_being_opened() {
    let world = TwoRoots::new();
    let service = world.start().await;
    let first = encrypt(&service).await.unwrap();
    world.b.away.store(true, SeqCst);
    world.encrypt_until(&service, |_, head| head.standby.is_some()).await;
    service.stop().await;
    // The first KEK's wrap by `a` is lost.
    let key = record::kek_key(&default_chain(), first);
    let read = records::read::<record::Kek>(&*world.store, &key).await.unwrap().unwrap();
    let mut kek = read.record.clone();
    kek.wraps.retain(|wrap| wrap.root == "b");
    assert!(records::put_kek(&*world.store, &default_chain(), first, &read, &kek).await.unwrap());
    let service = world.start().await;
    let standby = service.chain_with_keks(DEFAULT_CHAIN, None, 1).await.unwrap().0.standby.unwrap();
    assert_eq!(service.keks_in_memory(), [standby]);
}

/// `default` is looked at when the service starts, `orders` when it is used.
#[tokio::test]
async fn a_store_that_was_made_under_another_root_is_not_ready_before_any_request() {
    let world = World::new(LOW).await;
    world.service.put_chain("orders", ChainSettings::default()).await.unwrap();
    world.service.rotate(Some("orders")).await.unwrap();
    world.service.stop().await;
    let other = [("other", &world.root)];
    let service = start(Arc::clone(&world.store) as _, &other, &world.clock).await;
    assert!(chain_check(&service).unwrap().detail.unwrap().contains("wrapped by main"));
    let told = async {
        while service.readiness().health != Health::Down {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("both chains are looked at");
    let readiness = service.readiness();
    assert!(readiness.checks.iter().any(|check| check.name == "chain:orders"), "{readiness:?}");
}

#[tokio::test]
async fn lists_skip_damaged_records() {
    let world = World::new(LOW).await;
    let (_, first) = world.encrypt().await.unwrap();
    let second = world.service.rotate(None).await.unwrap().primary;
    let third = world.service.rotate(None).await.unwrap().primary;
    let mut ids = [first, second, third];
    ids.sort();
    let [damaged, uncounted, healthy] = ids;
    for name in ["orders", "users"] {
        world.service.put_chain(name, ChainSettings::default()).await.unwrap();
    }
    damage(&world.store, record::kek_key(&default_chain(), damaged)).await;
    damage(&world.store, record::uses_key(&default_chain(), uncounted)).await;
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let (info, page) = world.service.chain_with_keks(DEFAULT_CHAIN, after, 1).await.unwrap();
        assert_eq!(info.keks, 3);
        listed.extend(page.items.into_iter().map(|kek| kek.kek_id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, [healthy]);
    // A chain that is damaged while the service runs is noticed when its records are read again.
    damage(&world.store, record::head_key(&ChainName::new("orders").unwrap())).await;
    assert_eq!(kind(world.service.rotate(Some("orders")).await), Kind::Internal);
    let page = world.service.chains(Some("default"), 1).await.unwrap();
    assert_eq!((page.items.len(), page.next.as_ref().unwrap().as_str()), (0, "orders"));
    let page = world.service.chains(None, 10).await.unwrap();
    let names: Vec<_> = page.items.iter().map(|info| info.chain.as_str()).collect();
    assert_eq!(names, ["default", "users"]);
}

/// A restarted service, and envelopes under two retired KEKs that it does not hold.
async fn two_cold_keks() -> (World, [(Vec<u8>, KekId); 2]) {
    let world = World::new(LOW).await;
    let mut envelopes = Vec::new();
    for _ in 0..2 {
        envelopes.push(world.encrypt().await.unwrap());
        world.service.rotate(None).await.unwrap();
    }
    (world.restarted().await, envelopes.try_into().unwrap())
}

#[tokio::test]
async fn a_root_that_is_away_is_called_once_a_second_and_when_it_is_back() {
    let (world, [(one, _), (other, _)]) = two_cold_keks().await;
    let before = world.root.unwraps.load(SeqCst);
    let calls = || world.root.unwraps.load(SeqCst) - before;
    world.root.away.store(true, SeqCst);
    for expected in [1, 2] {
        for _ in 0..5 {
            assert_eq!(kind(world.decrypt(&one).await), Kind::RootUnavailable);
        }
        assert_eq!(calls(), expected);
        world.clock.advance(Duration::from_secs(1));
    }
    assert_eq!(kind(world.decrypt(&one).await), Kind::RootUnavailable);
    world.root.away.store(false, SeqCst);
    assert_eq!(kind(world.decrypt(&one).await), Kind::RootUnavailable, "no call has shown it yet");
    assert!(world.decrypt(&other).await.is_ok());
    assert!(world.decrypt(&one).await.is_ok(), "the root answered");
    assert_eq!(calls(), 5);
}

#[tokio::test]
async fn a_wrap_that_does_not_open_is_tried_every_thirty_seconds() {
    let (world, [(one, id), (other, _)]) = two_cold_keks().await;
    let read = record::kek_key(&default_chain(), id);
    let read = records::read::<record::Kek>(&*world.store, &read).await.unwrap().unwrap();
    let mut kek = read.record.clone();
    kek.wraps[0].bytes.clear();
    assert!(records::put_kek(&*world.store, &default_chain(), id, &read, &kek).await.unwrap());
    let before = world.root.unwraps.load(SeqCst);
    let calls = || world.root.unwraps.load(SeqCst) - before;
    let fail = async || {
        for _ in 0..5 {
            assert_eq!(kind(world.decrypt(&one).await), Kind::RootUnavailable);
        }
    };
    fail().await;
    assert_eq!(calls(), 1);
    assert!(world.decrypt(&other).await.is_ok(), "the root is well");
    world.clock.advance(Duration::from_secs(29));
    fail().await;
    assert_eq!(calls(), 2);
    world.clock.advance(Duration::from_secs(1));
    fail().await;
    assert_eq!(calls(), 3);
}

#[tokio::test]
async fn a_queue_of_root_calls_delays_neither_the_chains_nor_calls_that_need_no_root() {
    let world = World::new(LOW).await;
    world.service.put_chain("orders", ChainSettings::default()).await.unwrap();
    world.service.rotate(Some("orders")).await.unwrap();
    let (envelope, id) = world.encrypt().await.unwrap();
    let world = world.restarted().await;
    let _crowd = world.service.occupy_roots().await;
    let orders = world.service.encrypt(Some("orders"), b"x"[..].into(), b"");
    assert!(tokio::time::timeout(PATIENCE * 2, orders).await.expect("it is opened").is_ok());
    let mut unknown = envelope;
    let at = unknown.windows(16).position(|window| window == id.as_bytes()).unwrap();
    unknown[at] ^= 1;
    let unknown = tokio::time::timeout(PATIENCE * 2, world.decrypt(&unknown)).await;
    assert_eq!(kind(unknown.expect("it is answered")), Kind::UnknownKek);
}

#[tokio::test]
async fn wraps_that_primaries_and_standbys_lack_are_counted() {
    let world = TwoRoots::new();
    let service = world.start().await;
    service.put_chain("orders", ChainSettings::default()).await.unwrap();
    encrypt(&service).await.unwrap();
    let missing = |root: &str| {
        service.refresh_metrics();
        service.metrics().roots.missing_wraps.with_label_values(&[root]).get()
    };
    assert_eq!([missing("a"), missing("b")], [0, 0]);
    world.b.away.store(true, SeqCst);
    for chain in [None, Some("orders")] {
        service.rotate(chain).await.unwrap();
    }
    assert_eq!([missing("a"), missing("b")], [0, 2]);
}

/// It never answers.
struct Silent;

#[async_trait]
impl RootKey for Silent {
    async fn wrap(&self, _: Context<'_>, _: &KeyBytes) -> Result<Vec<u8>, root::Error> {
        std::future::pending().await
    }

    async fn unwrap(&self, _: Context<'_>, _: &[u8]) -> Result<KeyBytes, root::Error> {
        std::future::pending().await
    }

    fn kind(&self) -> &'static str {
        "silent"
    }
}

/// Time is virtual here.
#[tokio::test(start_paused = true)]
async fn a_start_waits_for_all_chains_concurrently_and_for_a_bounded_time() {
    let slow = Arc::new(TestRoot::default());
    slow.slow.store(true, SeqCst);
    let silent = Arc::new(Silent);
    let named = |name: &str, root: Arc<dyn RootKey>| root::Named { name: name.into(), root };
    for (roots, waits) in [
        (vec![named("slow", slow)], Duration::from_millis(50)),
        (vec![named("a", Arc::clone(&silent) as _), named("b", silent)], Duration::from_secs(20)),
    ] {
        let names = ["x", "y", "z"].map(|name| ChainName::new(name).unwrap()).into();
        let chain = ChainConfig { names, ..ChainConfig::default() };
        let config = Config { chain, ..Config::default() };
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let (store, clock): (Arc<memory::Store>, Arc<ManualClock>) = Default::default();
        let before = tokio::time::Instant::now();
        KeyService::start(config, store, roots, clock, metrics).await.unwrap();
        let waited = before.elapsed();
        assert!(waits <= waited && waited < waits * 2, "{waited:?}");
    }
}

/// All pages of a change; KEKs that were changed, and what failed.
async fn change_root(
    service: &KeyService,
    root: &str,
    change: RootChange,
) -> Result<(u64, Vec<String>), Error> {
    let (mut after, mut changed, mut failed) = (None, 0, Vec::new());
    loop {
        let progress = service.change_root(DEFAULT_CHAIN, root, change, after, 2).await?;
        changed += progress.changed;
        failed.extend(progress.failed.into_iter().map(|(_, detail)| detail));
        match progress.next {
            Some(next) => after = Some(next),
            None => return Ok((changed, failed)),
        }
    }
}

/// The roots that wrapped each KEK of the chain.
async fn wrapped_by(service: &KeyService) -> Vec<Vec<String>> {
    let (_, page) = service.chain_with_keks(DEFAULT_CHAIN, None, 100).await.unwrap();
    page.items.into_iter().map(|kek| kek.roots).collect()
}

#[tokio::test]
async fn a_root_comes_and_another_goes_and_data_stays() {
    let two = TwoRoots::new();
    let only =
        async |name, root| start(Arc::clone(&two.store) as _, &[(name, root)], &two.clock).await;
    let service = only("a", &two.a).await;
    let mut envelopes = Vec::new();
    for _ in 0..5 {
        let made = service.encrypt(None, b"hello"[..].into(), b"").await.unwrap();
        envelopes.push(made.envelope.as_slice().to_vec());
        service.rotate(None).await.unwrap();
    }
    assert_eq!(kind(change_root(&service, "b", RootChange::Rewrap).await), Kind::InvalidRequest);
    assert_eq!(kind(change_root(&service, "a", RootChange::Remove).await), Kind::Conflict);
    service.stop().await;

    let service = two.start().await;
    two.b.away.store(true, SeqCst);
    assert_eq!(kind(change_root(&service, "b", RootChange::Rewrap).await), Kind::RootUnavailable);
    two.b.away.store(false, SeqCst);
    let (changed, failed) = change_root(&service, "b", RootChange::Rewrap).await.unwrap();
    assert!(changed >= 5 && failed.is_empty(), "{changed} {failed:?}");
    assert_eq!(change_root(&service, "b", RootChange::Rewrap).await.unwrap(), (0, Vec::new()));
    assert!(wrapped_by(&service).await.iter().all(|roots| roots == &["a", "b"]));
    service.stop().await;

    let service = only("b", &two.b).await;
    // A KEK that only the old root wrapped, and one whose other wrap opens no more.
    let chain = default_chain();
    let ids: Vec<_> = {
        let (_, page) = service.chain_with_keks(DEFAULT_CHAIN, None, 100).await.unwrap();
        let retired = page.items.iter().filter(|kek| kek.state == State::Retired);
        retired.map(|kek| kek.kek_id).collect()
    };
    for (id, damaged) in [(ids[0], false), (ids[1], true)] {
        let key = record::kek_key(&chain, id);
        let read = records::read::<record::Kek>(&*two.store, &key).await.unwrap().unwrap();
        let mut kek = read.record.clone();
        match damaged {
            false => kek.wraps.retain(|wrap| wrap.root == "a"),
            true => kek.wraps.iter_mut().for_each(|wrap| wrap.bytes.truncate(3)),
        }
        assert!(records::put_kek(&*two.store, &chain, id, &read, &kek).await.unwrap());
    }
    let (changed, failed) = change_root(&service, "a", RootChange::Remove).await.unwrap();
    assert!(changed >= 3 && failed.len() == 2, "{changed} {failed:?}");
    assert!(failed.iter().any(|detail| detail.contains("last wrap")), "{failed:?}");
    let roots = wrapped_by(&service).await;
    assert_eq!(roots.iter().filter(|roots| roots.contains(&"a".to_owned())).count(), 2);
    assert!(roots.iter().all(|roots| !roots.is_empty()));
    let mut opened = 0;
    for envelope in envelopes {
        opened += usize::from(service.decrypt(None, envelope, b"").await.is_ok());
    }
    assert_eq!(opened, 3, "all but the two that were damaged");
}

#[tokio::test]
async fn a_removal_that_fails_replaces_nothing() {
    let two = TwoRoots::new();
    let service = start(Arc::clone(&two.store) as _, &[("a", &two.a)], &two.clock).await;
    let id = encrypt(&service).await.unwrap();
    let key = record::kek_key(&default_chain(), id);
    let read = records::read::<record::Kek>(&*two.store, &key).await.unwrap().unwrap();
    let exposed = record::Kek { exposed: true, ..read.record.clone() };
    let put = records::put_kek(&*two.store, &default_chain(), id, &read, &exposed).await;
    assert!(put.unwrap());
    service.stop().await;

    let service = start(Arc::clone(&two.store) as _, &[("b", &two.b)], &two.clock).await;
    let (changed, failed) = change_root(&service, "a", RootChange::Remove).await.unwrap();
    assert!(changed == 0 && failed.len() == 1, "{changed} {failed:?}");
    let (info, _) = service.chain_with_keks(DEFAULT_CHAIN, None, 1).await.unwrap();
    assert_eq!((info.primary, info.keks), (Some(id), 1), "nothing was made in its place");
}

#[tokio::test]
async fn a_root_that_was_away_gets_its_wraps_when_it_is_back() {
    let two = TwoRoots::new();
    two.b.away.store(true, SeqCst);
    let service = two.start().await;
    encrypt(&service).await.unwrap();
    assert_eq!(wrapped_by(&service).await, [["a"]]);
    service.look_after_keks().await;
    assert_eq!(wrapped_by(&service).await, [["a"]]);
    two.b.away.store(false, SeqCst);
    service.look_after_keks().await;
    assert_eq!(wrapped_by(&service).await, [["a", "b"]]);
    let calls = two.b.wraps.load(SeqCst);
    service.run_reserver().await;
    service.look_after_keks().await;
    assert_eq!(two.b.wraps.load(SeqCst), calls, "nothing is missing any more");
}

#[tokio::test]
async fn keks_in_memory_are_checked_and_dropped_when_no_root_opens_them() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let world = World::new(LOW).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    world.decrypt(&envelope).await.unwrap();
    let unwraps = || world.root.unwraps.load(SeqCst);
    let before = unwraps();
    world.clock.advance(DAY / 2);
    world.service.look_after_keks().await;
    assert_eq!(unwraps(), before, "not due yet");
    world.clock.advance(DAY / 2);
    world.service.look_after_keks().await;
    assert_eq!(unwraps(), before + 2, "the primary and the retired one");
    world.service.look_after_keks().await;
    assert_eq!(unwraps(), before + 2);

    // Away: they are used for the grace period.
    world.root.away.store(true, SeqCst);
    world.service.confirm_states();
    world.clock.advance(DAY + DAY / 2);
    world.service.confirm_states();
    world.service.look_after_keks().await;
    world.decrypt(&envelope).await.unwrap();
    world.clock.advance(DAY);
    world.service.confirm_states();
    world.service.look_after_keks().await;
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::RootUnavailable);
    assert_eq!(kind(world.encrypt().await), Kind::RootUnavailable);
    world.root.away.store(false, SeqCst);
    let mut tries = 0;
    while world.decrypt(&envelope).await.is_err() || world.encrypt().await.is_err() {
        world.clock.advance(Duration::from_secs(30));
        tries += 1;
        assert!(tries < 20, "it comes back by itself");
    }

    // Denied: they are dropped immediately.
    world.root.denied.store(true, SeqCst);
    world.clock.advance(DAY);
    world.service.confirm_states();
    world.service.look_after_keks().await;
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::RootUnavailable);
}

/// An old copy of the store still has the wraps, and the root opens them.
#[tokio::test]
async fn envelopes_made_after_the_removal_of_a_root_do_not_open_with_it() {
    let world = TwoRoots::new();
    let service = world.start().await;
    encrypt(&service).await.unwrap();
    let (_, page) = service.chain_with_keks(DEFAULT_CHAIN, None, 10).await.unwrap();
    let old = page.items[0].kek_id;
    service.stop().await;
    let one = [("b", &world.b)];
    let service = start(Arc::clone(&world.store) as _, &one, &world.clock).await;
    let progress = service.change_root(DEFAULT_CHAIN, "a", RootChange::Remove, None, 100).await;
    assert!(progress.unwrap().failed.is_empty());
    let new = encrypt(&service).await.unwrap();
    assert_ne!(new, old, "the primary was replaced");
    let (_, page) = service.chain_with_keks(DEFAULT_CHAIN, None, 10).await.unwrap();
    for kek in page.items {
        assert_eq!(kek.roots, ["b"], "{}", kek.kek_id);
    }
    // Nothing is left to do.
    let again = service.change_root(DEFAULT_CHAIN, "a", RootChange::Remove, None, 100).await;
    assert_eq!(again.unwrap().changed, 0);
    assert_eq!(encrypt(&service).await.unwrap(), new);
}
