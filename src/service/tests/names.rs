//! The id that the keys of a chain have for others: the same in all replicas, never an earlier one
//! again, and changed only by a change of the roots.

use super::replicas::{Replicas, default, encrypt, until};
use super::*;

fn key_id(service: &KeyService) -> Option<String> {
    service.key_state(&default()).key_id
}

async fn named(service: &KeyService) -> String {
    service.name_keys(DEFAULT_CHAIN).await.unwrap();
    until("the keys have a name", async || key_id(service).is_some()).await;
    key_id(service).unwrap()
}

/// A service with a root under each of `names`, all with the same key.
async fn on(replicas: &Replicas, names: &[&str]) -> Arc<KeyService> {
    let roots: Vec<_> = names.iter().map(|name| (*name, &replicas.roots[0])).collect();
    start(Arc::clone(&replicas.store) as _, &roots, &replicas.clock).await
}

async fn change_root(service: &KeyService, root: &str, change: RootChange) {
    let done = service.change_root(DEFAULT_CHAIN, root, change, None, 1_000).await.unwrap();
    assert_eq!((done.failed, done.next), (Vec::new(), None));
}

async fn becomes_another(service: &KeyService, before: &str) -> String {
    until("the keys have another name", async || key_id(service).unwrap() != before).await;
    key_id(service).unwrap()
}

#[tokio::test]
async fn replicas_say_the_same_and_no_rotation_and_no_restart_changes_it() {
    let mut replicas = Replicas::new(2).await;
    let (a, b) = (Arc::clone(&replicas.services[0]), Arc::clone(&replicas.services[1]));
    let name = named(&a).await;
    assert!(name.starts_with("kms-proxy/default/1-") && name.ends_with("/test/main"), "{name}");
    assert_eq!(named(&b).await, name);
    for _ in 0..3 {
        a.rotate(None).await.unwrap();
        encrypt(&b).await.unwrap();
        assert_eq!((key_id(&a), key_id(&b)), (Some(name.clone()), Some(name.clone())));
    }
    let fresh = Arc::clone(replicas.join().await);
    assert_eq!(named(&fresh).await, name);
    let other = Replicas::new(1).await;
    assert_ne!(named(&other.services[0]).await, name, "of another store");
}

#[tokio::test]
async fn it_changes_with_the_roots_and_after_the_kek_that_they_are_changed_for() {
    let replicas = Replicas::new(1).await;
    let first = named(&replicas.services[0]).await;
    replicas.services[0].stop().await;
    let service = on(&replicas, &["new", "main"]).await;
    assert_eq!(named(&service).await, first, "nothing is done about the root yet");
    change_root(&service, "new", RootChange::Rewrap).await;
    let second = becomes_another(&service, &first).await;
    assert!(second.ends_with("/test/new"), "{second}");
    // A repetition that finds nothing to do changes nothing.
    let roots_generation =
        || async { records::head(&*replicas.store, &default()).await.unwrap().roots_generation };
    let before = roots_generation().await;
    change_root(&service, "new", RootChange::Rewrap).await;
    assert_eq!(roots_generation().await, before + 1);
    service.run_reserver().await;
    assert_eq!(key_id(&service), Some(second.clone()));

    service.stop().await;
    let service = on(&replicas, &["new"]).await;
    let other = on(&replicas, &["new"]).await;
    assert_eq!((named(&service).await, named(&other).await), (second.clone(), second.clone()));
    change_root(&service, "main", RootChange::Remove).await;
    let third = becomes_another(&service, &second).await;
    assert_eq!(becomes_another(&other, &second).await, third);
}

#[tokio::test]
async fn a_replica_that_encrypts_nothing_follows_a_name_whose_kek_it_never_saw_coming() {
    let replicas = Replicas::new(1).await;
    let first = named(&replicas.services[0]).await;
    replicas.services[0].stop().await;
    let service = on(&replicas, &["new", "main"]).await;
    let idle = on(&replicas, &["new", "main"]).await;
    assert_eq!((named(&service).await, named(&idle).await), (first.clone(), first.clone()));
    let changes = async {
        for _ in 0..2 {
            service.rotate(None).await.unwrap();
        }
        change_root(&service, "new", RootChange::Rewrap).await;
        becomes_another(&service, &first).await
    };
    let second = idle.without_ledger(changes).await;
    assert_eq!(becomes_another(&idle, &first).await, second);
}

#[tokio::test]
async fn a_restore_never_brings_an_older_name_back() {
    let replicas = Replicas::new(1).await;
    let first = named(&replicas.services[0]).await;
    replicas.services[0].stop().await;
    let early = replicas.store.snapshot();
    let service = on(&replicas, &["new", "main"]).await;
    named(&service).await;
    change_root(&service, "new", RootChange::Rewrap).await;
    let second = becomes_another(&service, &first).await;
    replicas.store.restore(early);
    until("the chain is repaired", async || {
        encrypt(&service).await.is_ok()
            && records::head(&*replicas.store, &default()).await.unwrap().generation > 3
            && service.known_head().await.named_root.is_some()
    })
    .await;
    assert_eq!(key_id(&service), Some(second.clone()));
    let fresh = on(&replicas, &["new", "main"]).await;
    assert_eq!(named(&fresh).await, second, "it is in the store again");
}

#[tokio::test]
async fn a_chain_that_others_depend_on_loses_no_kek_without_force() {
    let replicas = Replicas::new(1).await;
    let service = &replicas.services[0];
    named(service).await;
    let (_, id) = encrypt(service).await.unwrap();
    service.rotate(None).await.unwrap();
    let refused = service.change_kek(DEFAULT_CHAIN, id, Change::Disable).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Conflict);
    assert!(refused.detail().contains("Kubernetes") && refused.detail().contains("force"));
    service.change_kek(DEFAULT_CHAIN, id, Change::ForceDisable).await.unwrap();
    replicas.clock.advance(Duration::from_secs(86_400));
    // One that does not serve Kubernetes knows it too.
    let other = on(&replicas, &["main"]).await;
    for service in [service, &other] {
        let refused = service.change_kek(DEFAULT_CHAIN, id, Change::Destroy).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Conflict);
        assert!(refused.detail().contains("Kubernetes") && refused.detail().contains("force"));
    }
    // It has only the wall clock for what was before it started, so it waits a little.
    let early = other.change_kek(DEFAULT_CHAIN, id, Change::ForceDestroy).await.unwrap_err();
    assert!(early.detail().contains("it can be destroyed from"), "{early}");
    replicas.clock.advance(Duration::from_secs(121));
    let destroyed = other.change_kek(DEFAULT_CHAIN, id, Change::ForceDestroy).await.unwrap();
    assert_eq!(destroyed.state, State::Destroyed);
}

#[tokio::test]
async fn an_outage_of_all_roots_is_told_once_they_were_asked() {
    let replicas = Replicas::new(1).await;
    let (service, root) = (&replicas.services[0], &replicas.roots[0]);
    named(service).await;
    assert_eq!(service.key_state(&default()).root_outage, None);
    let calls = replicas.calls();
    root.away.store(true, SeqCst);
    assert_eq!(service.key_state(&default()).root_outage, None, "no call has shown it yet");
    assert_eq!(replicas.calls(), calls, "reading the state calls no root");
    service.check_primary(&default()).await;
    let outage = service.key_state(&default()).root_outage.unwrap();
    assert!(outage.starts_with("root main: the root is away"), "{outage}");
    root.away.store(false, SeqCst);
    service.check_primary(&default()).await;
    assert_eq!(service.key_state(&default()).root_outage, None);
}

#[tokio::test]
async fn a_check_asks_every_root_so_one_that_is_away_is_noticed_beside_one_that_is_not() {
    let clock = Arc::<ManualClock>::default();
    let (first, second) = (Arc::<TestRoot>::default(), Arc::<TestRoot>::default());
    let roots = [("first", &first), ("second", &second)];
    let store = Arc::<memory::Store>::default();
    let service = start(store as _, &roots, &clock).await;
    named(&service).await;
    let up = |root: &str| service.metrics().roots.up.with_label_values(&[root]).get();
    for root in [&first, &second] {
        root.away.store(true, SeqCst);
        service.check_primary(&default()).await;
        let expected = if Arc::ptr_eq(root, &first) { (0, 1) } else { (1, 0) };
        assert_eq!((up("first"), up("second")), expected);
        assert_eq!(service.key_state(&default()).root_outage, None, "one root is enough");
        root.away.store(false, SeqCst);
        service.check_primary(&default()).await;
        assert_eq!((up("first"), up("second")), (1, 1));
    }
}

#[tokio::test]
async fn a_new_name_on_request_comes_with_a_new_kek_and_reaches_every_replica() {
    let replicas = Replicas::new(2).await;
    let (a, b) = (&replicas.services[0], &replicas.services[1]);
    let refused = a.rotate_key_id(None).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Conflict, "{refused}");
    let first = named(a).await;
    assert_eq!(named(b).await, first);
    let (_, before) = encrypt(a).await.unwrap();
    let (rotated, second) = a.rotate_key_id(None).await.unwrap();
    assert_eq!(rotated.previous, Some(before));
    assert_ne!(second, first);
    for service in [a, b] {
        assert_eq!(becomes_another(service, &first).await, second);
        assert_eq!(encrypt(service).await.unwrap().1, rotated.primary);
    }
    let (_, third) = b.rotate_key_id(None).await.unwrap();
    assert!(![first, second].contains(&third));
}
