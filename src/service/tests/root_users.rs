//! The reports by which processes say which roots they have: a root is not removed, and a KEK not
//! replaced, if that stops another process or loses data.

use super::replicas::{default, until};
use super::root_check::{Rollout, encrypt, health, minute};
use super::*;
use crate::store::Txn;
use crate::store::record::{Record as _, RootUser};

#[tokio::test]
async fn while_processes_have_different_keys_for_a_new_root_the_old_one_is_not_removed() {
    let world = Rollout::new(true).await;
    let envelope = encrypt(&world.mistyped, DEFAULT_CHAIN).await.unwrap();
    let rewrapped =
        world.mistyped.change_root(DEFAULT_CHAIN, "new", RootChange::Rewrap, None, 100).await;
    assert_eq!(rewrapped.unwrap().failed, []);
    minute((&world.clock, &world.right)).await;
    assert_eq!(health(&world.right, "new"), Health::Degraded);
    world.mistyped.stop().await;
    // It starts again without the old root, as before every removal. What it wrapped opens there.
    let [right, mistyped] = &world.roots;
    let service = start(Arc::clone(&world.store) as _, &[("new", mistyped)], &world.clock).await;
    service.decrypt(None, envelope.clone(), b"").await.unwrap();
    let remove = || service.change_root(DEFAULT_CHAIN, "main", RootChange::Remove, None, 100);
    let error = remove().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.detail().contains("root new has another key"), "{error}");
    // The mistake is corrected. The wraps by the mistyped key go, and nothing is lost.
    service.stop().await;
    world.right.stop().await;
    let old = [("main", &world.old)];
    let service = start(Arc::clone(&world.store) as _, &old, &world.clock).await;
    let removed = service.change_root(DEFAULT_CHAIN, "new", RootChange::Remove, None, 100).await;
    assert_eq!(removed.unwrap().failed, []);
    service.stop().await;
    let both = [("new", right), ("main", &world.old)];
    let service = start(Arc::clone(&world.store) as _, &both, &world.clock).await;
    let rewrapped = service.change_root(DEFAULT_CHAIN, "new", RootChange::Rewrap, None, 100).await;
    assert_eq!(rewrapped.unwrap().failed, []);
    service.stop().await;
    let service = start(Arc::clone(&world.store) as _, &[("new", right)], &world.clock).await;
    let removed = service.change_root(DEFAULT_CHAIN, "main", RootChange::Remove, None, 100).await;
    assert_eq!(removed.unwrap().failed, []);
    service.decrypt(None, envelope, b"").await.unwrap();
    assert_eq!(service.readiness().health, Health::Ok);
}

#[tokio::test]
async fn a_dispute_ends_a_quarter_of_an_hour_after_its_last_report() {
    let world = Rollout::new(true).await;
    world.mistyped.change_root(DEFAULT_CHAIN, "new", RootChange::Rewrap, None, 9).await.unwrap();
    minute((&world.clock, &world.right)).await;
    world.right.stop().await;
    world.mistyped.stop().await;
    let [_, mistyped] = &world.roots;
    let service = start(Arc::clone(&world.store) as _, &[("new", mistyped)], &world.clock).await;
    for (seconds, expected) in [(14 * 60, Some(Kind::Conflict)), (61, None)] {
        world.clock.advance(Duration::from_secs(seconds));
        let removed = service.change_root(DEFAULT_CHAIN, "main", RootChange::Remove, None, 9).await;
        assert_eq!(removed.err().map(|error| error.kind()), expected);
    }
}

/// Two processes have the root `main`; a third has `new` too, wrapped everything by it and was
/// restarted without `main`.
struct Removal {
    clock: Arc<ManualClock>,
    store: Arc<memory::Store>,
    old: [Option<Arc<KeyService>>; 2],
    service: Arc<KeyService>,
    envelope: Vec<u8>,
}

impl Removal {
    async fn new() -> Self {
        let World { store, root: old, clock, service } = World::new(LOW).await;
        let other = start(Arc::clone(&store) as _, &[("main", &old)], &clock).await;
        let root = Arc::new(TestRoot::with_key(1));
        let both = [("new", &root), ("main", &old)];
        let third = start(Arc::clone(&store) as _, &both, &clock).await;
        let envelope = encrypt(&third, DEFAULT_CHAIN).await.unwrap();
        let rewrapped = third.change_root(DEFAULT_CHAIN, "new", RootChange::Rewrap, None, 9).await;
        assert_eq!(rewrapped.unwrap().failed, []);
        third.stop().await;
        let third = start(Arc::clone(&store) as _, &[("new", &root)], &clock).await;
        Self { clock, store, old: [Some(service), Some(other)], service: third, envelope }
    }

    async fn remove(&self) -> Result<RootProgress, Error> {
        self.service.change_root(DEFAULT_CHAIN, "main", RootChange::Remove, None, 9).await
    }

    async fn is_refused(&self) {
        let error = self.remove().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.detail().contains("has root main configured"), "{error}");
    }

    /// Removes all reports from the store.
    async fn lose_reports(&self) {
        let reports = self.store.list("roots/", None, 100).await.unwrap();
        let deletes = reports.into_iter().map(|entry| entry.key);
        let deletes = deletes.filter(|key| record::root_user(key).is_some()).collect();
        let _ = self.store.commit(store::Txn { deletes, ..store::Txn::default() }).await.unwrap();
    }

    /// Goes back to a copy of the store without the reports of the processes that run. Each of
    /// them has read newer records of the chain.
    async fn restore(&self) {
        self.lose_reports().await;
        let copy = self.store.snapshot();
        self.pass(Duration::from_secs(6 * 60)).await;
        for (more, service) in self.old.iter().flatten().chain([&self.service]).enumerate() {
            let max_uses = Some(200 + more as u64);
            let settings = ChainSettings { max_uses, ..ChainSettings::default() };
            service.put_chain(DEFAULT_CHAIN, settings).await.unwrap();
        }
        self.store.restore(copy);
    }

    /// Time passes, and every process does what is due.
    async fn pass(&self, time: Duration) {
        let end = self.clock.now() + time;
        while self.clock.now() < end {
            self.clock.advance(Duration::from_secs(30));
            for service in self.old.iter().flatten().chain([&self.service]) {
                service.look_after_keks().await;
            }
        }
    }
}

#[tokio::test]
async fn a_root_is_not_removed_while_another_process_has_it_configured() {
    let mut world = Removal::new().await;
    world.is_refused().await;
    world.pass(Duration::from_secs(20 * 60)).await;
    world.is_refused().await;
    world.old[0].take().unwrap().stop().await;
    world.is_refused().await;
    let other = world.old[1].take().unwrap();
    other.decrypt(None, world.envelope.clone(), b"").await.unwrap();
    other.stop().await;
    let removed = world.remove().await.unwrap();
    assert_eq!((removed.failed, removed.next), (Vec::new(), None));
    // A replica that lost the store before the rotation has a block for as long.
    assert_eq!(removed.settles_in, Duration::from_secs(60));
    world.service.decrypt(None, world.envelope.clone(), b"").await.unwrap();
    world.clock.advance(Duration::from_secs(59));
    encrypt(&world.service, DEFAULT_CHAIN).await.unwrap();
}

/// It can not withdraw its report.
#[tokio::test]
async fn the_report_of_a_process_that_was_killed_counts_for_a_quarter_of_an_hour() {
    let mut world = Removal::new().await;
    for service in &mut world.old {
        // Its tasks never run again, and it is never stopped.
        drop(service.take());
    }
    world.pass(Duration::from_secs(14 * 60)).await;
    world.is_refused().await;
    world.pass(Duration::from_secs(2 * 60)).await;
    assert_eq!(world.remove().await.unwrap().failed, []);
}

/// The wall clock of the process that reports is decades behind.
#[tokio::test]
async fn no_wall_clock_ends_a_report() {
    let mut world = Removal::new().await;
    for service in &mut world.old {
        service.take().unwrap().stop().await;
    }
    let user = record::RootUser { reported_at: 0, differs: false };
    let puts = vec![(record::root_user_key("main", 1), user.encode().unwrap())];
    let _ = world.store.commit(store::Txn { puts, ..store::Txn::default() }).await.unwrap();
    world.is_refused().await;
}

#[tokio::test]
async fn readiness_is_degraded_while_the_primary_opens_by_a_root_that_is_not_configured() {
    let mut world = Removal::new().await;
    let chain = |service: &KeyService| {
        let checks = service.readiness().checks;
        checks.into_iter().find(|check| check.name == "chain:default")
    };
    world.service.decrypt(None, world.envelope.clone(), b"").await.unwrap();
    let check = chain(&world.service).unwrap();
    assert_eq!(check.health, Health::Degraded);
    assert!(check.detail.unwrap().contains("kms-proxy root remove --root main"));
    for service in &mut world.old {
        service.take().unwrap().stop().await;
    }
    world.remove().await.unwrap();
    world.pass(Duration::from_secs(30)).await;
    assert_eq!(chain(&world.service), None);
}

/// Of the processes on one store, one has another root than the rest.
#[tokio::test]
async fn a_process_without_the_roots_of_the_others_replaces_no_kek_of_theirs() {
    let world = Removal::new().await;
    let refused = world.service.rotate(None).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::RootUnavailable);
    assert!(
        refused
            .for_operators()
            .contains("2 of 3 replicas would not open a new KEK, such as one whose roots are main"),
        "{refused}"
    );
    // The majority can replace it.
    for service in world.old.iter().flatten() {
        encrypt(service, DEFAULT_CHAIN).await.unwrap();
    }
    world.old[0].as_ref().unwrap().rotate(None).await.unwrap();
    for service in world.old.iter().flatten() {
        encrypt(service, DEFAULT_CHAIN).await.unwrap();
    }
}

#[tokio::test]
async fn once_the_others_ended_a_process_with_other_roots_replaces_their_kek() {
    let mut world = Removal::new().await;
    // The others end, and so does the reason.
    for service in &mut world.old {
        service.take().unwrap().stop().await;
    }
    world.service.rotate(None).await.unwrap();
    encrypt(&world.service, DEFAULT_CHAIN).await.unwrap();
}

/// An old copy of the store has no reports of the processes that run.
#[tokio::test]
async fn after_a_rollback_of_the_store_no_root_is_removed_before_all_have_reported_again() {
    let mut world = Removal::new().await;
    world.lose_reports().await;
    // The process detects that its own report is missing.
    let error = world.remove().await.unwrap_err();
    assert!(error.detail().contains("went back to an earlier state"), "{error}");
    // Each process finds by itself that its reports are missing.
    world.pass(Duration::from_secs(3 * 60)).await;
    world.is_refused().await;
    for service in &mut world.old {
        service.take().unwrap().stop().await;
    }
    assert_eq!(world.remove().await.unwrap().failed, []);
}

/// No KEK encrypts after the rollback, and the copy lacks the reports.
#[tokio::test(start_paused = true)]
async fn after_a_rollback_a_process_without_the_roots_of_most_makes_no_kek() {
    let world = Removal::new().await;
    let before = records::head(&*world.store, &default()).await.unwrap().primary.unwrap();
    world.restore().await;
    let refused = world.service.rotate(None).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::RootUnavailable);
    assert!(refused.for_operators().contains("2 of 3 replicas"), "{refused}");
    // The others make one, and don't wait for anything.
    let primary = async || records::head(&*world.store, &default()).await.unwrap().primary;
    until("a new KEK", async || primary().await.is_some_and(|id| id != before)).await;
    let made = primary().await.unwrap();
    for service in world.old.iter().flatten() {
        until("it encrypts under the new KEK", async || {
            service.encrypt(None, b"hello"[..].into(), b"").await.unwrap().kek_id == made
        })
        .await;
    }
    // They report again within two minutes, so that what is remembered is not needed any more.
    world.pass(Duration::from_secs(3 * 60)).await;
    assert_eq!(world.service.rotate(None).await.unwrap_err().kind(), Kind::RootUnavailable);
    world.old[1].as_ref().unwrap().rotate(None).await.unwrap();
    for service in world.old.iter().flatten() {
        encrypt(service, DEFAULT_CHAIN).await.unwrap();
    }
}

/// As many processes would open the KEK as would not. If neither created one, all would be
/// unavailable.
#[tokio::test]
async fn after_a_rollback_one_of_two_processes_with_different_roots_makes_a_kek() {
    let mut world = Removal::new().await;
    world.old[1].take().unwrap().stop().await;
    world.restore().await;
    world.service.rotate(None).await.unwrap();
    encrypt(&world.service, DEFAULT_CHAIN).await.unwrap();
}

/// The reports of processes that ended before the copy was restored don't stop the only one.
#[tokio::test]
async fn after_a_rollback_a_process_alone_makes_a_kek() {
    let mut world = Removal::new().await;
    world.restore().await;
    world.old.iter_mut().for_each(|service| drop(service.take()));
    world.pass(Duration::from_secs(16 * 60)).await;
    world.service.rotate(None).await.unwrap();
    encrypt(&world.service, DEFAULT_CHAIN).await.unwrap();
}

#[tokio::test]
async fn a_process_reads_the_reports_of_more_than_a_thousand_others() {
    let (clock, store): (Arc<ManualClock>, Arc<memory::Store>) = Default::default();
    let root = Arc::new(TestRoot::with_key(1));
    let service = start(Arc::clone(&store) as _, &[("main", &root)], &clock).await;
    let report = RootUser { reported_at: clock.unix_now(), differs: false }.encode().unwrap();
    let puts = (0..1_100).map(|owner| (record::root_user_key("main", owner), report.clone()));
    let stored = store.commit(Txn { puts: puts.collect(), ..Txn::default() }).await.unwrap();
    assert_ne!(stored, store::Committed::Conflict);
    minute((&clock, &service)).await;
    let replicas = service.core.root_reports.lock().replicas(service.core.owner, clock.now());
    assert_eq!(replicas.len(), 1_100);
}
