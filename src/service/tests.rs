//! The service on the memory store, with a root for tests and a clock that tests move.

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;

use prometheus::Registry;

use super::*;
use crate::clock::Monotonic;
use crate::clock::{Clock as _, ManualClock};
use crate::envelope::{Envelope, Version};
use crate::id::{KekId, Suite};
use crate::keychain::message::Opened;
use crate::keychain::{KekPlacement, KeyChain};
use crate::root;
use crate::root::testing::TestRoot;
use crate::store::memory::{self, Fault};
use crate::store::record::{self, Limits, State};
use crate::store::records;
use crate::store::{self, Store};

mod api;
mod archive;
mod backup;
mod calls;
mod continuity;
mod inline;
mod last_used;
mod lost_stores;
mod manage;
mod model;
mod names;
mod outage;
mod replicas;
mod restores;
mod root_check;
mod root_users;
mod roots;
mod scaling;
mod simulation;
mod states;

/// How long a test waits for what must happen, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    store: Arc<memory::Store>,
    root: Arc<TestRoot>,
    clock: Arc<ManualClock>,
    service: Arc<KeyService>,
}

const LOW: Limits = Limits { rotate_after_uses: 100, max_uses: 200, rotate_after_age: 86_400 };

impl World {
    async fn new(limits: Limits) -> Self {
        let (store, root, clock) = Default::default();
        Self::on(store, root, clock, limits).await
    }

    async fn on(
        store: Arc<memory::Store>,
        root: Arc<TestRoot>,
        clock: Arc<ManualClock>,
        limits: Limits,
    ) -> Self {
        let service = start_with(Arc::clone(&store) as _, &[("main", &root)], &clock, limits).await;
        Self { store, root, clock, service }
    }

    /// Another process on the same store and root.
    async fn restarted(self) -> Self {
        self.service.stop().await;
        Self::on(self.store, self.root, self.clock, LOW).await
    }

    async fn encrypt(&self) -> Result<(Vec<u8>, KekId), Error> {
        let made = self.service.encrypt(None, b"hello"[..].into(), b"aad").await?;
        Ok((made.envelope.as_slice().to_vec(), made.kek_id))
    }

    async fn decrypt(&self, envelope: &[u8]) -> Result<Opened, Error> {
        Ok(self.service.decrypt(None, envelope.to_vec(), b"aad").await?.plaintext)
    }

    /// Encrypts on a service that is stopped, whose reserver runs once when the request waits.
    async fn encrypt_by_hand(&self) -> Result<(Vec<u8>, KekId), Error> {
        tokio::join!(biased; self.encrypt(), self.service.run_reserver()).0
    }

    async fn reserved(&self, id: KekId) -> u64 {
        let key = record::uses_key(&ChainName::new(DEFAULT_CHAIN).unwrap(), id);
        records::read::<record::Uses>(&*self.store, &key).await.unwrap().unwrap().record.reserved
    }
}

/// A service on a store and roots that the test chooses, with low limits.
async fn start(
    store: Arc<dyn Store>,
    roots: &[(&str, &Arc<TestRoot>)],
    clock: &Arc<ManualClock>,
) -> Arc<KeyService> {
    start_with(store, roots, clock, LOW).await
}

async fn start_with(
    store: Arc<dyn Store>,
    roots: &[(&str, &Arc<TestRoot>)],
    clock: &Arc<ManualClock>,
    limits: Limits,
) -> Arc<KeyService> {
    start_waiting(store, roots, clock, limits, PATIENCE).await
}

/// The same, and requests wait for uses no longer than `wait`.
async fn start_waiting(
    store: Arc<dyn Store>,
    roots: &[(&str, &Arc<TestRoot>)],
    clock: &Arc<ManualClock>,
    limits: Limits,
    wait: Duration,
) -> Arc<KeyService> {
    let config = Config { chain: ChainConfig::with_limits(limits), wait, ..Config::default() };
    let named = |&(name, root): &(&str, &Arc<TestRoot>)| root::Named {
        name: name.into(),
        root: Arc::clone(root) as _,
    };
    let roots = roots.iter().map(named).collect();
    let metrics = Metrics::new(&Registry::new()).unwrap();
    KeyService::start(config, store, roots, Arc::clone(clock) as _, metrics).await.unwrap()
}

fn kind<T>(result: Result<T, Error>) -> Kind {
    result.err().expect("it must fail").kind()
}

#[tokio::test]
async fn a_new_service_encrypts_and_a_restarted_one_decrypts() {
    let world = World::new(LOW).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    assert_eq!(world.decrypt(&envelope).await.unwrap().as_slice(), b"hello");
    let world = world.restarted().await;
    assert_eq!(world.decrypt(&envelope).await.unwrap().as_slice(), b"hello");
    assert_eq!((world.root.wraps.load(SeqCst), world.root.unwraps.load(SeqCst)), (1, 1));
}

/// Every one of them succeeds, and no KEK exceeds its limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_concurrent_encrypts_pass_no_limit() {
    let world = Arc::new(World::new(LOW).await);
    let tasks: Vec<_> = (0..10_000)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.encrypt().await })
        })
        .collect();
    let (mut uses, mut envelopes) = (HashMap::<KekId, u64>::new(), Vec::new());
    for task in tasks {
        let (envelope, id) = task.await.unwrap().unwrap();
        *uses.entry(id).or_default() += 1;
        envelopes.push(envelope);
    }
    for (id, made) in uses {
        let reserved = world.reserved(id).await;
        assert!(made <= reserved && reserved <= 200, "{made} <= {reserved} <= 200");
    }
    let world = Arc::into_inner(world).unwrap().restarted().await;
    for envelope in envelopes {
        assert_eq!(world.decrypt(&envelope).await.unwrap().as_slice(), b"hello");
    }
}

#[tokio::test]
async fn a_lost_answer_counts_as_spent_and_is_never_used() {
    let world = World::new(LOW).await;
    let (_, id) = world.encrypt().await.unwrap();
    world.service.stop().await;
    let before = world.reserved(id).await;
    // The block expires, so the next request must reserve.
    world.clock.advance(Duration::from_secs(61));
    world.store.fail_next([Fault::AnswerLost]);
    assert_eq!(kind(world.encrypt_by_hand().await), Kind::StoreUnavailable);
    let lost = world.reserved(id).await;
    assert!(lost >= before + 16, "it was applied");
    let (_, same) = world.encrypt_by_hand().await.unwrap();
    assert_eq!(same, id);
    let reserved = world.reserved(id).await;
    assert!(reserved >= lost + 16, "another block was reserved");
    assert_eq!(world.service.uses_left(), reserved - lost - 1, "of the block that was answered");
}

#[tokio::test]
async fn a_good_read_does_not_end_an_outage_of_writes() {
    let world = World::new(LOW).await;
    world.service.stop().await;
    world.clock.advance(Duration::from_secs(61));
    world.store.fail_next([Fault::NotSent]);
    assert_eq!(kind(world.encrypt_by_hand().await), Kind::StoreUnavailable);
    assert!(world.service.chain_with_keks(DEFAULT_CHAIN, None, 1).await.is_ok());
    assert_eq!(world.service.store_health(), Health::Degraded);
    assert!(world.encrypt_by_hand().await.is_ok());
    assert_eq!(world.service.store_health(), Health::Ok);
}

#[tokio::test]
async fn an_idle_chain_reserves_nothing() {
    let world = World::new(LOW).await;
    let (_, id) = world.encrypt().await.unwrap();
    let before = world.reserved(id).await;
    for _ in 0..300 {
        world.clock.advance(Duration::from_secs(1));
        world.service.run_reserver().await;
    }
    assert!(world.reserved(id).await <= before + 16, "one more block at most while traffic fades");
}

#[tokio::test]
async fn a_block_as_large_as_the_limit_causes_no_rotation_before_it_is_spent() {
    let world = World::new(Limits { rotate_after_uses: 16, max_uses: 16, ..LOW }).await;
    for _ in 0..20 {
        world.service.run_reserver().await;
        world.service.run_rotator().await;
    }
    assert_eq!(world.root.wraps.load(SeqCst), 2, "the primary and a standby");
    let mut uses = HashMap::<KekId, u64>::new();
    for _ in 0..48 {
        *uses.entry(world.encrypt().await.unwrap().1).or_default() += 1;
    }
    assert!(uses.values().all(|&made| made <= 16), "{uses:?}");
    assert!(uses.len() <= 7, "each KEK is half spent at least: {uses:?}");
}

#[tokio::test]
async fn a_chain_rotates_by_age_and_an_idle_chain_creates_no_standby_early() {
    let world = World::new(LOW).await;
    let (_, first) = world.encrypt().await.unwrap();
    assert_eq!(world.root.wraps.load(SeqCst), 1);
    let drive = async || {
        world.service.run_reserver().await;
        world.service.run_rotator().await;
        world.service.run_reserver().await;
    };
    world.clock.advance(Duration::from_secs(43_200));
    drive().await;
    assert_eq!(world.root.wraps.load(SeqCst), 1);
    world.clock.advance(Duration::from_secs(2));
    drive().await;
    assert_eq!(world.root.wraps.load(SeqCst), 2, "a standby past half of its age");
    assert_eq!(world.service.primary_id(), Some(first));
    world.clock.advance(Duration::from_secs(43_200));
    world.root.away.store(true, SeqCst);
    drive().await;
    assert_ne!(world.service.primary_id(), Some(first), "promotion needs no root");
}

#[tokio::test]
async fn with_the_root_away_uses_continue_to_the_limit_and_then_are_exhausted() {
    let world = World::new(LOW).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    world.root.away.store(true, SeqCst);
    let mut made = 1;
    let error = loop {
        match world.encrypt().await {
            Ok((_, same)) => assert_eq!(same, id),
            Err(error) => break error,
        }
        made += 1;
    };
    assert_eq!((error.kind(), made, world.reserved(id).await), (Kind::KekExhausted, 200, 200));
    assert!(world.decrypt(&envelope).await.is_ok(), "decrypts continue");
    assert_eq!(world.service.readiness().health, Health::Degraded);
    world.root.away.store(false, SeqCst);
    world.clock.advance(Duration::from_secs(120));
    let (_, next) = loop {
        match world.encrypt().await {
            Ok(made) => break made,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_ne!(next, id);
    assert_eq!(world.service.readiness().health, Health::Ok);
}

#[tokio::test]
async fn with_the_store_away_the_block_is_spent_and_decrypts_go_on() {
    let world = World::new(LOW).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    world.store.set_down(true);
    let mut made = 0;
    let error = loop {
        match world.encrypt().await {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), Kind::StoreUnavailable);
    assert!((1..=32).contains(&made), "{made}");
    assert!(world.decrypt(&envelope).await.is_ok());
    assert_eq!(world.service.readiness().health, Health::Degraded);
    world.store.set_down(false);
    assert!(world.encrypt().await.is_ok(), "it recovers by itself");
}

#[tokio::test]
async fn one_root_call_for_many_decrypts_under_one_cold_kek() {
    let world = World::new(LOW).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    let world = world.restarted().await;
    let before = world.root.unwraps.load(SeqCst);
    world.root.slow.store(true, SeqCst);
    let world = Arc::new(world);
    let tasks: Vec<_> = (0..3_000)
        .map(|_| {
            let (world, envelope) = (Arc::clone(&world), envelope.clone());
            tokio::spawn(async move { world.decrypt(&envelope).await.map(|_| ()) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(world.root.unwraps.load(SeqCst) - before, 1);
}

#[tokio::test]
async fn rotations_by_hand_are_reported_and_limited() {
    let world = World::new(LOW).await;
    let (old, first) = world.encrypt().await.unwrap();
    let rotated = world.service.rotate(None).await.unwrap();
    assert_eq!(rotated.previous, Some(first));
    let (_, now) = world.encrypt().await.unwrap();
    assert_eq!(now, rotated.primary);
    let moved = world.service.rewrap(None, old.clone()).await.unwrap();
    assert_eq!((moved.kek_id, moved.previous_kek_id), (now, first));
    assert_eq!(world.decrypt(&moved.envelope).await.unwrap().as_slice(), b"hello");
    let error = loop {
        if let Err(error) = world.service.rotate(None).await {
            break error;
        }
    };
    assert_eq!(error.kind(), Kind::Overloaded);
    world.clock.advance(Duration::from_secs(61));
    assert!(world.service.rotate(None).await.is_ok());
    assert!(world.decrypt(&old).await.is_ok());
}

#[tokio::test]
async fn a_kek_is_disabled_enabled_and_destroyed() {
    let world = World::new(LOW).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    let change = async |change| world.service.change_kek(DEFAULT_CHAIN, id, change).await;
    assert_eq!(kind(change(Change::Disable).await), Kind::Conflict, "it is primary");
    world.service.rotate(None).await.unwrap();
    assert!(world.decrypt(&envelope).await.is_ok(), "its DEK is cached now");
    assert_eq!(kind(change(Change::Destroy).await), Kind::Conflict);
    assert_eq!(change(Change::Disable).await.unwrap().state, State::Disabled);
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::KekDisabled);
    assert_eq!(kind(world.service.rewrap(None, envelope.clone()).await), Kind::KekDisabled);
    assert_eq!(kind(change(Change::Disable).await), Kind::Conflict);
    assert_eq!(change(Change::Enable).await.unwrap().state, State::Retired);
    assert!(world.decrypt(&envelope).await.is_ok());
    change(Change::Disable).await.unwrap();
    assert_eq!(kind(change(Change::Destroy).await), Kind::Conflict, "too early");
    world.clock.advance(Duration::from_secs(86_400));
    let destroyed = change(Change::Destroy).await.unwrap();
    assert_eq!((destroyed.state, destroyed.roots.len()), (State::Destroyed, 0));
    assert_eq!(kind(change(Change::Enable).await), Kind::Conflict);
    let world = world.restarted().await;
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::KekDisabled);
}

#[tokio::test]
async fn chains_are_created_changed_and_listed() {
    let world = World::new(LOW).await;
    let set = ChainSettings { suite: Some(Suite::Aes256Gcm), ..ChainSettings::default() };
    let (created, info) = world.service.put_chain("orders", set).await.unwrap();
    assert!(created && info.primary.is_none() && info.suite == Suite::Aes256Gcm);
    assert!(!world.service.put_chain("orders", set).await.unwrap().0);
    let other = ChainSettings { suite: Some(Suite::Aes128Gcm), ..ChainSettings::default() };
    assert_eq!(kind(world.service.put_chain("orders", other).await), Kind::Conflict);
    assert_eq!(kind(world.service.put_chain("Orders", set).await), Kind::InvalidRequest);
    let too_many = ChainSettings { max_uses: Some((1 << 32) + 1), ..ChainSettings::default() };
    assert_eq!(kind(world.service.put_chain("new", too_many).await), Kind::InvalidRequest);
    let made = world.service.encrypt(Some("orders"), b"x"[..].into(), b"").await.unwrap();
    assert_eq!(made.envelope.as_slice().len(), 78 + 1 + 16);
    let below = ChainSettings {
        rotate_after_uses: Some(1),
        max_uses: Some(15),
        ..ChainSettings::default()
    };
    assert_eq!(kind(world.service.put_chain("orders", below).await), Kind::Conflict);
    let page = world.service.chains(None, 1).await.unwrap();
    assert_eq!((page.items[0].chain.as_str(), page.items[0].keks), ("default", 1));
    let page = world.service.chains(page.next.as_ref().map(ChainName::as_str), 1).await.unwrap();
    assert_eq!((page.items[0].chain.as_str(), page.next), ("orders", None));
    world.service.rotate(Some("orders")).await.unwrap();
    let (info, page) = world.service.chain_with_keks("orders", None, 1).await.unwrap();
    assert_eq!((info.keks, page.items.len()), (2, 1));
    let (_, rest) = world.service.chain_with_keks("orders", page.next, 1).await.unwrap();
    assert_eq!((rest.items.len(), rest.next), (1, None));
    assert_eq!(
        kind(world.service.encrypt(Some("nobody"), b"x"[..].into(), b"").await),
        Kind::UnknownChain
    );
}

#[tokio::test]
async fn damaged_records_stop_nothing_else() {
    let world = World::new(LOW).await;
    world.service.put_chain("orders", ChainSettings::default()).await.unwrap();
    let key = record::head_key(&ChainName::new("orders").unwrap());
    let damaged = b"{\"format\":1,".to_vec();
    let puts = vec![(key, damaged.clone()), ("chains/No Name/head".to_owned(), damaged)];
    let damage = crate::store::Txn { puts, ..Default::default() };
    let _ = world.store.commit(damage).await.unwrap();
    let world = world.restarted().await;
    assert!(world.encrypt().await.is_ok());
    assert_eq!(
        kind(world.service.encrypt(Some("orders"), b"x"[..].into(), b"").await),
        Kind::Internal
    );
    let readiness = world.service.readiness();
    assert_eq!(readiness.health, Health::Degraded);
    assert!(readiness.checks.iter().any(|check| check.name == "chain:orders"));
}

#[tokio::test]
async fn a_service_starts_with_its_root_away_and_serves_when_it_is_back() {
    let world = World::new(LOW).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    world.root.away.store(true, SeqCst);
    let world = world.restarted().await;
    assert_eq!(kind(world.encrypt().await), Kind::RootUnavailable);
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::RootUnavailable);
    assert_eq!(world.service.readiness().health, Health::Down);
    world.root.away.store(false, SeqCst);
    world.clock.advance(Duration::from_secs(1));
    assert!(world.decrypt(&envelope).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn callers_that_disconnect_leave_no_root_call_behind() {
    let world = World::new(LOW).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    let world = world.restarted().await;
    world.root.slow.store(true, SeqCst);
    let decrypted = tokio::time::timeout(Duration::from_millis(5), world.decrypt(&envelope)).await;
    assert!(decrypted.is_err(), "the root takes 50 ms");
    assert_eq!(world.service.root_calls_in_progress(), 0);
    assert!(world.decrypt(&envelope).await.is_ok());
    assert_eq!(world.service.root_calls_in_progress(), 0);
}

#[tokio::test]
async fn a_record_with_limits_that_cannot_be_set_is_damaged() {
    let world = World::new(LOW).await;
    let key = record::head_key(&ChainName::new(DEFAULT_CHAIN).unwrap());
    let head = world.store.get(&key).await.unwrap().unwrap();
    let text = String::from_utf8(head.value).unwrap();
    let value = text.replace("\"max_uses\":200", "\"max_uses\":8589934592").into_bytes();
    assert_ne!(value, text.as_bytes());
    let raise = crate::store::Txn { puts: vec![(key, value)], ..Default::default() };
    let _ = world.store.commit(raise).await.unwrap();
    let world = world.restarted().await;
    assert_eq!(kind(world.encrypt().await), Kind::Internal);
}

#[tokio::test]
async fn the_age_of_a_primary_from_the_future_counts_from_when_it_was_first_seen() {
    for (ahead, is_reported) in [(3_600, false), (3_700, true)] {
        let world = World::new(LOW).await;
        let (_, first) = world.encrypt().await.unwrap();
        let name = ChainName::new(DEFAULT_CHAIN).unwrap();
        let key = record::kek_key(&name, first);
        let read = records::read::<record::Kek>(&*world.store, &key).await.unwrap().unwrap();
        let promoted_at = Some(world.clock.unix_now() + 1_000 * 86_400 + ahead);
        let kek = record::Kek { promoted_at, ..read.record.clone() };
        assert!(records::put_kek(&*world.store, &name, first, &read, &kek).await.unwrap());
        world.clock.advance(Duration::from_secs(1_000 * 86_400));
        let world = world.restarted().await;
        let replaced = async || {
            for _ in 0..2 {
                world.service.run_rotator().await;
                world.service.run_reserver().await;
            }
            world.service.primary_id() != Some(first)
        };
        assert!(!replaced().await, "{ahead} s");
        assert_eq!(world.service.readiness().health == Health::Degraded, is_reported);
        // LOW rotates after a day; by then its promotion is no longer in the future.
        world.clock.advance(Duration::from_secs(LOW.rotate_after_age + ahead));
        assert!(replaced().await, "{ahead} s");
    }
}

#[tokio::test]
async fn a_permit_that_is_left_over_reports_no_error_of_an_earlier_attempt() {
    let world = World::new(LOW).await;
    world.clock.advance(Duration::from_secs(61));
    assert_eq!(world.service.leave_permit_over(&Error::exhausted("old")).await, Ok(()));
    assert!(world.encrypt().await.is_ok());
}
