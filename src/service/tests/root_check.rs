//! Roots of one name that have different keys in two processes: one process makes KEKs, and the
//! other refuses and is reported.

use super::*;

fn name(root: &str) -> String {
    format!("root:{root}")
}

pub(super) fn health(service: &KeyService, root: &str) -> Health {
    let checks = service.readiness().checks;
    checks.into_iter().find(|check| check.name == name(root)).unwrap().health
}

pub(super) async fn encrypt(service: &KeyService, chain: &str) -> Result<Vec<u8>, Error> {
    let made = service.encrypt(Some(chain), b"hello"[..].into(), b"").await?;
    Ok(made.envelope.as_slice().to_vec())
}

/// Lets a process compare its roots, as it does within a minute.
pub(super) async fn minute(world: (&ManualClock, &KeyService)) {
    world.0.advance(Duration::from_secs(61));
    world.1.look_after_keks().await;
}

#[tokio::test]
async fn of_two_processes_with_different_keys_on_an_empty_store_one_makes_keks() {
    for round in 0..20 {
        let (clock, store): (Arc<ManualClock>, Arc<memory::Store>) = Default::default();
        let roots = [0, 1].map(|key| Arc::new(TestRoot::with_key(key)));
        for root in &roots {
            root.away.store(true, SeqCst);
        }
        let [a, b] = &roots;
        let a = start(Arc::clone(&store) as _, &[("main", a)], &clock).await;
        let b = start(Arc::clone(&store) as _, &[("main", b)], &clock).await;
        for (service, chain) in [(&a, "one"), (&b, "two")] {
            service.put_chain(chain, ChainSettings::default()).await.unwrap();
        }
        for (index, root) in roots.iter().enumerate() {
            root.away.store(false, SeqCst);
            // In most rounds, both are called to wrap before either KEK is stored.
            root.slow.store(round % 3 != index, SeqCst);
        }
        let (one, two) = tokio::join!(encrypt(&a, "one"), encrypt(&b, "two"));
        let ((chain, envelope), error) = match (one, two) {
            (Ok(envelope), Err(error)) => (("one", envelope), error),
            (Err(error), Ok(envelope)) => (("two", envelope), error),
            other => panic!("round {round}: {other:?}"),
        };
        assert_eq!(error.kind(), Kind::RootUnavailable, "{error}");
        let mut opened = 0;
        for service in [a, b] {
            let decrypted = service.decrypt(Some(chain), envelope.clone(), b"").await;
            opened += usize::from(decrypted.is_ok());
            service.stop().await;
        }
        assert_eq!(opened, 1, "the other process has another key");
    }
}

/// Two processes with the root `old`, and `new` with another key in each.
pub(super) struct Rollout {
    pub(super) clock: Arc<ManualClock>,
    pub(super) store: Arc<memory::Store>,
    pub(super) old: Arc<TestRoot>,
    pub(super) right: Arc<KeyService>,
    pub(super) mistyped: Arc<KeyService>,
    pub(super) roots: [Arc<TestRoot>; 2],
}

impl Rollout {
    /// The mistyped one is the first to wrap by `new`, if it may.
    pub(super) async fn new(is_mistyped_first: bool) -> Self {
        let world = World::new(LOW).await;
        world.encrypt().await.unwrap();
        world.service.put_chain("orders", ChainSettings::default()).await.unwrap();
        encrypt(&world.service, "orders").await.unwrap();
        world.service.stop().await;
        let World { store, root: old, clock, .. } = world;
        let roots = [1, 2].map(|key| Arc::new(TestRoot::with_key(key)));
        let [right, mistyped] = &roots;
        let right = [("new", right), ("old", &old)];
        let right = start_named(&store, &right, &clock).await;
        let mistyped = [("new", mistyped), ("old", &old)];
        let mistyped = start_named(&store, &mistyped, &clock).await;
        let first = if is_mistyped_first { &mistyped } else { &right };
        first.rotate(None).await.unwrap();
        Self { clock, store, old, right, mistyped, roots }
    }
}

/// As [`start`]; the test world's root is `main`, so KEKs name it so.
async fn start_named(
    store: &Arc<memory::Store>,
    roots: &[(&str, &Arc<TestRoot>)],
    clock: &Arc<ManualClock>,
) -> Arc<KeyService> {
    let roots: Vec<_> = roots
        .iter()
        .map(|&(name, root)| (if name == "old" { "main" } else { name }, root))
        .collect();
    start(Arc::clone(store) as _, &roots, clock).await
}

#[tokio::test]
async fn a_new_root_that_one_process_has_with_another_key_wraps_nothing_there() {
    let world = Rollout::new(false).await;
    let [_, mistyped] = &world.roots;
    let wraps = mistyped.wraps.load(SeqCst);
    // No KEK of this chain names the new root, so only the check shows it.
    let refused = world.mistyped.change_root("orders", "new", RootChange::Rewrap, None, 100).await;
    assert_eq!(kind(refused), Kind::Conflict);
    // The old root alone wraps what this process makes.
    world.mistyped.rotate(Some("orders")).await.unwrap();
    let envelope = encrypt(&world.mistyped, "orders").await.unwrap();
    assert_eq!(mistyped.wraps.load(SeqCst), wraps);
    world.right.decrypt(Some("orders"), envelope, b"").await.unwrap();
    minute((&world.clock, &world.mistyped)).await;
    assert_eq!(health(&world.mistyped, "new"), Health::Degraded);
    assert_eq!(health(&world.right, "new"), Health::Ok);
}

/// A store of an earlier version has no checks, and a copy of a store lacks them.
#[tokio::test]
async fn a_store_without_checks_gets_them_with_the_next_wraps() {
    let (world, key) = (World::new(LOW).await, record::root_check_key("main"));
    world.encrypt().await.unwrap();
    let check = world.store.get(&key).await.unwrap().unwrap();
    let txn = store::Txn { deletes: vec![check.key], ..store::Txn::default() };
    let _ = world.store.commit(txn).await.unwrap();
    let world = world.restarted().await;
    world.service.rotate(None).await.unwrap();
    assert!(world.store.get(&key).await.unwrap().is_some());
}

/// The check is damaged, and the root opens the KEKs that are stored.
#[tokio::test]
async fn a_damaged_check_stops_no_root_that_opens_the_keks() {
    let (world, key) = (World::new(LOW).await, record::root_check_key("main"));
    world.encrypt().await.unwrap();
    let puts = vec![(key.clone(), b"{}".to_vec())];
    let _ = world.store.commit(store::Txn { puts, ..store::Txn::default() }).await.unwrap();
    let world = world.restarted().await;
    world.service.rotate(None).await.unwrap();
    world.encrypt().await.unwrap();
}
