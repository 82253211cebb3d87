//! Roots other than those that wrapped the chain's KEKs: they create no KEK, and readiness names
//! the KEKs that do not open.

use super::*;

/// A chain with a KEK under the right root, and its envelope.
async fn founded() -> (World, Vec<u8>, KekId) {
    let world = World::new(LOW).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    (world, envelope, id)
}

async fn keks(service: &KeyService) -> Vec<KekId> {
    let (_, page) = service.chain_with_keks(DEFAULT_CHAIN, None, 100).await.unwrap();
    page.items.into_iter().map(|kek| kek.kek_id).collect()
}

async fn drive(service: &KeyService) {
    for _ in 0..3 {
        service.run_rotator().await;
        service.run_reserver().await;
    }
}

fn check(service: &KeyService, name: &str) -> Check {
    service.readiness().checks.into_iter().find(|check| check.name == name).unwrap()
}

/// What `store restored` leaves: KEKs that only decrypt.
async fn retired(world: &World) {
    world.service.stop().await;
    offline::retire_chains(&*world.store, |_| {}).await.unwrap();
}

#[tokio::test]
async fn after_a_restore_a_wrong_root_makes_no_kek_and_the_right_one_does() {
    let (world, envelope, id) = founded().await;
    retired(&world).await;
    let wrong = Arc::new(TestRoot::with_key(1));
    let service = start(Arc::clone(&world.store) as _, &[("main", &wrong)], &world.clock).await;
    world.clock.advance(Duration::from_secs(60));
    drive(&service).await;
    assert_eq!(wrong.wraps.load(SeqCst), 0);
    assert_eq!(keks(&service).await, [id]);
    let error = service.encrypt(None, b"hello"[..].into(), b"aad").await.err().unwrap();
    assert_eq!(
        (error.kind(), error.detail()),
        (Kind::RootUnavailable, "no root opens the KEKs of this chain")
    );
    assert_ne!(service.readiness().health, Health::Ok);
    let root = check(&service, "root:main");
    assert_eq!(root.health, Health::Degraded);
    assert!(root.detail.unwrap().contains(&id.to_string()));
    let advice = check(&service, "chain:default").detail.unwrap();
    assert!(advice.contains("rotate --force"), "{advice}");
    assert_eq!(kind(service.rotate(None).await), Kind::RootUnavailable);
    assert_eq!(keks(&service).await, [id]);
    service.stop().await;

    let service =
        start(Arc::clone(&world.store) as _, &[("main", &world.root)], &world.clock).await;
    let made = service.encrypt(None, b"hello"[..].into(), b"aad").await.unwrap();
    assert_ne!(made.kek_id, id);
    service.decrypt(None, envelope, b"aad").await.unwrap();
    assert_eq!(service.readiness().health, Health::Ok);
}

#[tokio::test]
async fn two_roots_that_are_swapped_make_no_kek() {
    let (clock, store): (Arc<ManualClock>, Arc<memory::Store>) = Default::default();
    let [a, b] = [0, 1].map(|key| Arc::new(TestRoot::with_key(key)));
    let service = start(Arc::clone(&store) as _, &[("a", &a), ("b", &b)], &clock).await;
    let made = service.encrypt(None, b"hello"[..].into(), b"aad").await.unwrap();
    service.stop().await;
    offline::retire_chains(&*store, |_| {}).await.unwrap();
    let service = start(Arc::clone(&store) as _, &[("a", &b), ("b", &a)], &clock).await;
    drive(&service).await;
    assert_eq!(keks(&service).await, [made.kek_id]);
    for root in ["root:a", "root:b"] {
        assert_eq!(check(&service, root).health, Health::Degraded);
    }
}

/// The other root opens what is there, so the chain continues without the wrong one.
#[tokio::test]
async fn of_two_roots_the_one_with_another_key_wraps_nothing() {
    let (clock, store): (Arc<ManualClock>, Arc<memory::Store>) = Default::default();
    let [a, b, wrong] = [0, 1, 2].map(|key| Arc::new(TestRoot::with_key(key)));
    let service = start(Arc::clone(&store) as _, &[("a", &a), ("b", &b)], &clock).await;
    service.encrypt(None, b"hello"[..].into(), b"aad").await.unwrap();
    service.stop().await;
    let roots = [("a", &wrong), ("b", &b)];
    let service = start(Arc::clone(&store) as _, &roots, &clock).await;
    service.rotate(None).await.unwrap();
    service.look_after_keks().await;
    assert_eq!(wrong.wraps.load(SeqCst), 0);
    assert_eq!(check(&service, "root:a").health, Health::Degraded);
    assert_eq!(check(&service, "root:b").health, Health::Ok);
    let refused = service.change_root(DEFAULT_CHAIN, "a", RootChange::Rewrap, None, 100).await;
    assert_eq!(kind(refused), Kind::Conflict);
    assert_eq!(wrong.wraps.load(SeqCst), 0);
}

/// No call needs the second root, so no call would show that it is wrong.
#[tokio::test]
async fn a_root_that_is_not_needed_is_compared_too() {
    let (clock, store): (Arc<ManualClock>, Arc<memory::Store>) = Default::default();
    let [a, b, wrong] = [0, 1, 2].map(|key| Arc::new(TestRoot::with_key(key)));
    let service = start(Arc::clone(&store) as _, &[("a", &a), ("b", &b)], &clock).await;
    service.encrypt(None, b"hello"[..].into(), b"aad").await.unwrap();
    service.stop().await;
    let service = start(Arc::clone(&store) as _, &[("a", &a), ("b", &wrong)], &clock).await;
    service.look_after_keks().await;
    assert_eq!(check(&service, "root:b").health, Health::Degraded);
    assert_eq!(service.readiness().health, Health::Degraded);
    let asked = wrong.unwraps.load(SeqCst);
    service.look_after_keks().await;
    assert_eq!(wrong.unwraps.load(SeqCst), asked, "once is enough");
}

/// With another name in the configuration no KEK opens, and none is created.
#[tokio::test]
async fn a_root_that_was_renamed_founds_no_chain_in_a_store_of_another() {
    let (world, _, id) = founded().await;
    world.service.stop().await;
    let renamed = [("renamed", &world.root)];
    let service = start(Arc::clone(&world.store) as _, &renamed, &world.clock).await;
    service.put_chain("orders", ChainSettings::default()).await.unwrap();
    let error = service.encrypt(Some("orders"), b"hello"[..].into(), b"").await.err().unwrap();
    assert_eq!(error.kind(), Kind::RootUnavailable);
    assert_eq!(keks(&service).await, [id]);
    assert_eq!(world.root.wraps.load(SeqCst), 1);
}

#[tokio::test]
async fn a_new_chain_is_founded_by_roots_that_open_the_others() {
    let (world, ..) = founded().await;
    world.service.stop().await;
    let wrong = Arc::new(TestRoot::with_key(1));
    let service = start(Arc::clone(&world.store) as _, &[("main", &wrong)], &world.clock).await;
    service.put_chain("orders", ChainSettings::default()).await.unwrap();
    let error = service.encrypt(Some("orders"), b"hello"[..].into(), b"").await.err().unwrap();
    assert_eq!((error.kind(), wrong.wraps.load(SeqCst)), (Kind::RootUnavailable, 0));
    service.stop().await;
    let service =
        start(Arc::clone(&world.store) as _, &[("main", &world.root)], &world.clock).await;
    service.encrypt(Some("orders"), b"hello"[..].into(), b"").await.unwrap();
}

/// A new root may wrap beside one that opens what is there, and not by itself.
#[tokio::test]
async fn a_root_that_is_new_wraps_beside_the_old_one_alone() {
    let (world, ..) = founded().await;
    world.service.stop().await;
    let new = Arc::new(TestRoot::with_key(1));
    let both = [("new", &new), ("main", &world.root)];
    let service = start(Arc::clone(&world.store) as _, &both, &world.clock).await;
    world.root.away.store(true, SeqCst);
    assert_eq!(kind(service.rotate(None).await), Kind::RootUnavailable);
    world.root.away.store(false, SeqCst);
    world.clock.advance(Duration::from_secs(60));
    let rotated = service.rotate(None).await.unwrap();
    let (_, page) = service.chain_with_keks(DEFAULT_CHAIN, None, 100).await.unwrap();
    let kek = page.items.iter().find(|kek| kek.kek_id == rotated.primary).unwrap();
    assert_eq!(kek.roots, ["new", "main"]);
}

/// The key of a root moved while the service ran; what it opened a day ago proves nothing.
#[tokio::test]
async fn a_successful_unwrap_proves_a_root_for_a_day() {
    let (world, ..) = founded().await;
    world.root.key.store(1, SeqCst);
    world.clock.advance(Duration::from_secs(86_401));
    let asked = world.root.wraps.load(SeqCst);
    assert_eq!(kind(world.service.rotate(None).await), Kind::RootUnavailable);
    assert_eq!(world.root.wraps.load(SeqCst), asked);
}

#[tokio::test]
async fn an_unknown_kek_is_named_listed_and_counted() {
    let (world, _, id) = founded().await;
    let (_, before) = world.service.chain_with_keks(DEFAULT_CHAIN, None, 100).await.unwrap();
    assert_eq!(before.items.len(), 1);
    let chain = ChainName::new(DEFAULT_CHAIN).unwrap();
    let lost = KeyChain::generate(chain, Suite::Aes128Gcm).unwrap();
    let envelope = lost.encrypt(b"hello", b"aad").unwrap();
    let lost = lost.primary_id().unwrap();
    for _ in 0..2 {
        let error = world.decrypt(&envelope).await.err().unwrap();
        assert_eq!(error.kind(), Kind::UnknownKek);
        assert!(error.detail().contains(&lost.to_string()), "{error}");
    }
    let missing = world.service.missing_keks(DEFAULT_CHAIN).await.unwrap();
    let [kek] = &missing[..] else { panic!("{missing:?}") };
    assert_eq!((kek.kek_id, kek.absence), (lost, Absence::Unknown));
    assert_ne!(kek.kek_id, id);
    let check = check(&world.service, "chain:default");
    assert!(check.detail.unwrap().contains(&lost.to_string()));
    assert_eq!(world.service.readiness().health, Health::Ok, "callers can forge ids");
}

/// The next KEK would open by this root only, and other replicas may have it with another key.
#[tokio::test]
async fn a_wrap_of_this_process_does_not_prove_a_new_root() {
    let (world, ..) = founded().await;
    world.service.stop().await;
    let new = Arc::new(TestRoot::with_key(1));
    let both = [("new", &new), ("main", &world.root)];
    let service = start(Arc::clone(&world.store) as _, &both, &world.clock).await;
    service.rotate(None).await.unwrap();
    world.clock.advance(Duration::from_secs(2 * 86_400));
    world.root.away.store(true, SeqCst);
    let wraps = new.wraps.load(SeqCst);
    assert_eq!(kind(service.rotate(None).await), Kind::RootUnavailable);
    assert_eq!(new.wraps.load(SeqCst), wraps);
}

#[tokio::test]
async fn a_forced_rotation_proves_the_root_for_no_other_chain() {
    let (world, ..) = founded().await;
    world.service.stop().await;
    let wrong = Arc::new(TestRoot::with_key(1));
    let service = start(Arc::clone(&world.store) as _, &[("main", &wrong)], &world.clock).await;
    drive(&service).await;
    for chain in ["test", "orders"] {
        service.put_chain(chain, ChainSettings::default()).await.unwrap();
    }
    service.force_rotate(Some("test")).await.unwrap();
    service.encrypt(Some("test"), b"hello"[..].into(), b"").await.unwrap();
    let error = service.encrypt(Some("orders"), b"hello"[..].into(), b"").await.err().unwrap();
    assert_eq!(error.kind(), Kind::RootUnavailable);
    // The chain itself continues.
    service.rotate(Some("test")).await.unwrap();
}

#[tokio::test]
async fn a_root_with_another_key_is_called_rarely() {
    let (clock, store): (Arc<ManualClock>, Arc<memory::Store>) = Default::default();
    let [a, b, wrong] = [0, 1, 2].map(|key| Arc::new(TestRoot::with_key(key)));
    let service = start(Arc::clone(&store) as _, &[("a", &a), ("b", &b)], &clock).await;
    service.encrypt(None, b"hello"[..].into(), b"aad").await.unwrap();
    service.stop().await;
    let service = start(Arc::clone(&store) as _, &[("a", &a), ("b", &wrong)], &clock).await;
    service.rotate(None).await.unwrap();
    let asked = wrong.unwraps.load(SeqCst);
    for _ in 0..40 {
        clock.advance(Duration::from_secs(5));
        service.look_after_keks().await;
        drive(&service).await;
    }
    let more = wrong.unwraps.load(SeqCst) - asked;
    assert!(more <= 2, "{more} calls in 200 s");
}
