//! What must not happen after a restore of an old copy of the store.

use super::replicas::{Replicas, decrypt, default, encrypt, until};
use super::*;
use crate::store::memory::Snapshot;
use crate::store::record::{Head, Record};
use crate::store::{Committed, Entry, Txn};
use std::sync::atomic::AtomicUsize;

/// A chain with a standby, and a copy of that; then the standby became primary and was used.
async fn used_standby() -> (Replicas, Snapshot, [KekId; 2]) {
    let replicas = Replicas::new(1).await;
    let service = &replicas.services[0];
    let (_, first) = encrypt(service).await.unwrap();
    until("there is a standby", async || {
        encrypt(service).await.unwrap();
        replicas.keks().await.iter().any(|(_, state, _)| *state == State::Standby)
    })
    .await;
    let early = replicas.store.snapshot();
    let second = service.rotate(None).await.unwrap().primary;
    assert_eq!(encrypt(service).await.unwrap().1, second);
    (replicas, early, [first, second])
}

async fn states(replicas: &Replicas, ids: [KekId; 2]) -> [Option<State>; 2] {
    let keks = replicas.keks().await;
    ids.map(|id| keks.iter().find(|kek| kek.0 == id).map(|kek| kek.1))
}

async fn head(replicas: &Replicas) -> Head {
    records::head(&*replicas.store, &default()).await.unwrap()
}

#[tokio::test]
async fn a_rotation_by_hand_promotes_no_standby_that_was_used_before_a_restore() {
    let (replicas, early, ids) = used_standby().await;
    replicas.store.restore(early);
    let rotated = replicas.services[0].rotate(None).await.unwrap();
    assert!(!ids.contains(&rotated.primary));
    assert_eq!(states(&replicas, ids).await, [Some(State::Retired); 2]);
}

/// Others wrote so much since then that no revision and no generation shows the restore.
#[tokio::test]
async fn a_standby_that_was_primary_tells_of_a_restore() {
    let (replicas, early, ids) = used_standby().await;
    replicas.store.restore(early);
    let root = [("main", &Arc::default())];
    let fresh = start(Arc::clone(&replicas.store) as _, &root, &replicas.clock).await;
    for more in 1..20 {
        let max_uses = Some(200 + more);
        let settings = ChainSettings { max_uses, ..ChainSettings::default() };
        fresh.put_chain(DEFAULT_CHAIN, settings).await.unwrap();
    }
    until("both encrypt no more", async || {
        states(&replicas, ids).await == [Some(State::Retired); 2]
    })
    .await;
}

/// A chain whose second KEK was disabled, and a copy from before there was one.
async fn disabled_and_restored(and_destroyed: bool) -> (Replicas, Vec<u8>, KekId) {
    let replicas = Replicas::new(1).await;
    let service = &replicas.services[0];
    let early = replicas.store.snapshot();
    service.rotate(None).await.unwrap();
    let (envelope, id) = encrypt(service).await.unwrap();
    service.rotate(None).await.unwrap();
    service.change_kek(DEFAULT_CHAIN, id, Change::Disable).await.unwrap();
    if and_destroyed {
        replicas.clock.advance(Duration::from_secs(24 * 60 * 60));
        service.change_kek(DEFAULT_CHAIN, id, Change::Destroy).await.unwrap();
    }
    replicas.store.restore(early);
    (replicas, envelope, id)
}

#[tokio::test(start_paused = true)]
async fn a_disabled_kek_is_put_back_disabled() {
    let (replicas, envelope, id) = disabled_and_restored(false).await;
    until("it is restored", async || states(&replicas, [id; 2]).await[0].is_some()).await;
    assert_eq!(states(&replicas, [id; 2]).await[0], Some(State::Disabled));
    assert_eq!(kind(decrypt(&replicas.services[0], &envelope).await), Kind::KekDisabled);
}

#[tokio::test(start_paused = true)]
async fn a_destroyed_kek_that_the_store_lacks_is_missed_once() {
    let (replicas, envelope, id) = disabled_and_restored(true).await;
    until("there is a tombstone", async || states(&replicas, [id; 2]).await[0].is_some()).await;
    assert_eq!(states(&replicas, [id; 2]).await[0], Some(State::Destroyed));
    assert_eq!(kind(decrypt(&replicas.services[0], &envelope).await), Kind::KekDisabled);
    until("it encrypts", async || encrypt(&replicas.services[0]).await.is_ok()).await;
    let before = head(&replicas).await;
    // All is read again every 20 s.
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(head(&replicas).await, before, "no further repair");
}

/// The cause is a write that compared a revision of another history with the same number.
#[tokio::test]
async fn a_head_that_names_a_kek_which_is_not_primary_is_repaired() {
    let replicas = Replicas::new(1).await;
    let service = &replicas.services[0];
    let (envelope, old) = encrypt(service).await.unwrap();
    service.rotate(None).await.unwrap();
    let reserved = async || replicas.keks().await.into_iter().find(|kek| kek.0 == old).unwrap().2;
    let before = reserved().await;
    let head = head(&replicas).await;
    let wrong = Head { primary: Some(old), generation: head.generation + 1, ..head };
    let puts = vec![(record::head_key(&default()), wrong.encode().unwrap())];
    let _ = replicas.store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
    until("another KEK encrypts", async || {
        encrypt(service).await.unwrap();
        let head = self::head(&replicas).await;
        head.generation > wrong.generation && head.primary.is_some_and(|id| id != old)
    })
    .await;
    assert_eq!(states(&replicas, [old; 2]).await[0], Some(State::Retired));
    assert_eq!(reserved().await, before, "no use of a retired KEK is reserved");
    decrypt(service, &envelope).await.unwrap();
}

/// Each of three replicas notices it, and one of them repairs the chain.
#[tokio::test(start_paused = true)]
async fn a_rollback_costs_one_new_kek_however_many_replicas_notice_it() {
    let replicas = Replicas::new(3).await;
    let early = replicas.store.snapshot();
    for service in &replicas.services {
        service.rotate(None).await.unwrap();
        encrypt(service).await.unwrap();
    }
    let before: Vec<_> = replicas.keks().await.into_iter().map(|kek| kek.0).collect();
    replicas.store.restore(early);
    // All is read again every 20 s, by each of them.
    tokio::time::sleep(Duration::from_secs(120)).await;
    let mut envelopes = Vec::new();
    for service in &replicas.services {
        envelopes.push(encrypt(service).await.unwrap().0);
    }
    let keks = replicas.keks().await;
    let new = keks.iter().filter(|kek| !before.contains(&kek.0)).count();
    assert_eq!(new, 1, "{keks:?}");
    for id in before {
        assert!(keks.iter().any(|kek| kek.0 == id), "{id} is restored");
    }
    for service in &replicas.services {
        let noticed = service.rollbacks();
        assert!((1..=2).contains(&noticed), "{noticed}");
        for envelope in &envelopes {
            decrypt(service, envelope).await.unwrap();
        }
    }
}

/// What the follower does when the store itself reports a rollback.
async fn report(service: &KeyService) {
    service.report_rollback().await;
    until("nothing is left to do", async || !service.is_repairing().await).await;
}

/// Each process gets the report once, before or after it met the repair.
#[tokio::test]
async fn a_rollback_that_the_store_reports_late_is_repaired_once_and_a_second_one_again() {
    let replicas = Replicas::new(3).await;
    let services = &replicas.services;
    let agreed = async || {
        until("all know the newest head", async || {
            let head = head(&replicas).await;
            for service in services {
                if service.current_head().await.ok().as_ref() != Some(&head) {
                    return false;
                }
            }
            head.primary.is_some()
        })
        .await;
    };
    let early = replicas.store.snapshot();
    services[1].rotate(None).await.unwrap();
    agreed().await;
    let mut repairs = vec![head(&replicas).await.repair];
    for snapshot in [Some(early), None] {
        replicas.store.restore(snapshot.unwrap_or_else(|| replicas.store.snapshot()));
        report(&services[2]).await;
        agreed().await;
        let repair = head(&replicas).await.repair;
        assert!(!repairs.contains(&repair), "{repair:?} is a repair of this rollback");
        repairs.push(repair);
        for late in &services[..2] {
            report(late).await;
            assert!(encrypt(late).await.is_ok());
            assert_eq!(head(&replicas).await.repair, repair);
        }
        agreed().await;
    }
}

/// A store where other processes change the chain each time that this one stores a standby.
#[derive(Default)]
struct Busy {
    inner: Arc<memory::Store>,
    /// How often that will happen.
    conflicts: AtomicUsize,
}

#[async_trait::async_trait]
impl Store for Busy {
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
        let key = record::head_key(&default());
        let head = txn.puts.iter().find(|(put, _)| *put == key);
        let stores_standby =
            head.is_some_and(|(key, value)| Head::decode(key, value).unwrap().standby.is_some());
        let left = |left: usize| left.checked_sub(1);
        if stores_standby && self.conflicts.fetch_update(SeqCst, SeqCst, left).is_ok() {
            let head = self.inner.get(&key).await?.unwrap();
            let puts = vec![(key, head.value)];
            let _ = self.inner.commit(Txn { puts, ..Txn::default() }).await?;
        }
        self.inner.commit(txn).await
    }

    fn kind(&self) -> &'static str {
        "busy"
    }
}

/// The replicas that notice a restore change the chain at the same time, and the KEK that one of
/// them creates is not stored. The request waits for the next attempt.
#[tokio::test]
async fn an_encrypt_after_a_restore_waits_while_other_processes_change_the_chain() {
    let (store, clock): (Arc<Busy>, Arc<ManualClock>) = Default::default();
    let root = Arc::default();
    let service = start(Arc::clone(&store) as _, &[("main", &root)], &clock).await;
    let (_, before) = encrypt(&service).await.unwrap();
    let early = store.inner.snapshot();
    service.rotate(None).await.unwrap();
    // Only what is called here happens from now on.
    service.stop().await;
    store.inner.restore(early);
    // As often as one attempt writes.
    store.conflicts.store(4, SeqCst);
    clock.advance(Duration::from_secs(61));
    let steps = async {
        service.run_reserver().await;
        assert_eq!(service.rollbacks(), 1, "the restore is noticed");
        service.run_rotator().await;
        assert_eq!(store.conflicts.load(SeqCst), 0, "no KEK could be stored");
        service.run_reserver().await;
        // The request would receive an error of that now.
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(2));
        service.run_rotator().await;
        service.run_reserver().await;
    };
    let (encrypted, ()) = tokio::join!(biased; encrypt(&service), steps);
    let (envelope, id) = encrypted.expect("the request met no conflict");
    assert_ne!(id, before);
    decrypt(&service, &envelope).await.unwrap();
}
