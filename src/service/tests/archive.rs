//! Archives: no KEK encrypts before they hold it, and what the store lost comes back from them.

use super::*;
use crate::archive::memory::Archive;
use crate::archive::{self, Archive as _, Condition, OnFailure, Policy, Require, object};
use crate::keychain::kek::Kek;
use crate::service::types::{ChainSettings, Change};
use crate::store::Txn;
use crate::store::record::{AuditKey, Record as _, Wrap};

/// A service with archives, on a store that other processes share.
struct Archived {
    store: Arc<memory::Store>,
    archives: Vec<Arc<Archive>>,
    root: Arc<TestRoot>,
    clock: Arc<ManualClock>,
    policy: Policy,
    service: Arc<KeyService>,
}

impl Archived {
    async fn new(archives: usize, policy: Policy) -> Self {
        let archives = (0..archives).map(|_| Arc::default()).collect();
        Self::on(Arc::default(), archives, Arc::default(), Arc::default(), policy).await
    }

    async fn on(
        store: Arc<memory::Store>,
        archives: Vec<Arc<Archive>>,
        root: Arc<TestRoot>,
        clock: Arc<ManualClock>,
        policy: Policy,
    ) -> Self {
        let config = Config {
            chain: ChainConfig::with_limits(LOW),
            archive_policy: policy,
            wait: Duration::from_secs(2),
            ..Config::default()
        };
        let named = archives.iter().zip(["first", "second", "third"]);
        let named = named.map(|(archive, name)| archive::Named {
            name: name.into(),
            archive: Arc::clone(archive) as _,
        });
        let roots = vec![root::Named { name: "main".into(), root: Arc::clone(&root) as _ }];
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let (on, named) = (Arc::clone(&store) as _, named.collect());
        let time = Arc::clone(&clock) as _;
        let started = KeyService::start_archived(config, on, named, roots, time, metrics);
        let service = started.await.unwrap();
        Self { store, archives, root, clock, policy, service }
    }

    /// Another process, on another store if one is given.
    async fn restarted(self, store: Option<Arc<memory::Store>>) -> Self {
        self.service.stop().await;
        let store = store.unwrap_or(self.store);
        Self::on(store, self.archives, self.root, self.clock, self.policy).await
    }

    async fn encrypt(&self) -> Result<(Vec<u8>, KekId), Error> {
        let made = self.service.encrypt(None, b"hello"[..].into(), b"").await?;
        Ok((made.envelope.as_slice().to_vec(), made.kek_id))
    }

    async fn decrypt(&self, envelope: &[u8]) -> Result<(), Error> {
        let opened = self.service.decrypt(None, envelope.to_vec(), b"").await?;
        assert_eq!(opened.plaintext.as_slice(), b"hello");
        Ok(())
    }

    /// Encrypts as soon as that succeeds.
    async fn encrypt_soon(&self) -> (Vec<u8>, KekId) {
        for _ in 0..100 {
            if let Ok(made) = self.encrypt().await {
                return made;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.clock.advance(Duration::from_secs(1));
        }
        self.encrypt().await.unwrap()
    }

    /// The archived record of a KEK of `default`.
    fn record(&self, archive: usize, id: KekId) -> Option<record::Kek> {
        let chain = default();
        let bytes = self.archives[archive].peek(&object::kek_key(&chain, id))?;
        Some(object::decode_kek(&chain, id, &bytes).unwrap())
    }

    async fn stored(&self, id: KekId) -> Option<record::Kek> {
        let key = record::kek_key(&default(), id);
        let read = records::read::<record::Kek>(&*self.store, &key).await.unwrap();
        read.map(|read| read.record)
    }

    /// Replaces an object of the first archive.
    async fn overwrite(&self, key: &str, bytes: Vec<u8>) {
        let archive = &self.archives[0];
        let version = archive.get(key).await.unwrap().unwrap().version;
        archive.put(key, bytes, Condition::Unchanged(version)).await.unwrap();
    }

    fn check(&self, name: &str) -> Health {
        let checks = self.service.readiness().checks;
        checks.iter().find(|check| check.name == name).unwrap().health
    }

    async fn destroy(&self, id: KekId) -> crate::service::KekInfo {
        let change = |change| self.service.change_kek(DEFAULT_CHAIN, id, change);
        change(Change::Disable).await.unwrap();
        self.clock.advance(Duration::from_secs(25 * 3_600));
        change(Change::Destroy).await.unwrap()
    }
}

fn default() -> ChainName {
    ChainName::new(DEFAULT_CHAIN).unwrap()
}

#[tokio::test(start_paused = true)]
async fn no_kek_encrypts_before_the_archives_hold_it() {
    let world = Archived::new(2, Policy::default()).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    for archive in [0, 1] {
        assert_eq!(world.record(archive, id).unwrap().wraps, world.stored(id).await.unwrap().wraps);
        assert!(world.archives[archive].peek("v1/default/chain.json").is_some());
    }
    world.archives[1].set_down(true);
    assert_eq!(kind(world.service.rotate(None).await), Kind::ArchiveUnavailable);
    // The old KEK continues up to its limit, and then nothing encrypts.
    let mut made = 1;
    let error = loop {
        match world.encrypt().await {
            Ok((_, same)) => assert_eq!(same, id),
            Err(error) => break error,
        }
        made += 1;
    };
    assert_eq!((error.kind(), made), (Kind::ArchiveUnavailable, LOW.max_uses));
    assert_eq!(world.check("archive:second"), Health::Degraded);
    world.decrypt(&envelope).await.unwrap();
    world.archives[1].set_down(false);
    let (_, next) = world.encrypt_soon().await;
    assert_ne!(next, id);
    assert!(world.record(0, next).is_some() && world.record(1, next).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_first_kek_of_a_chain_waits_for_the_archives() {
    let archive = Arc::new(Archive::new());
    archive.set_down(true);
    let (store, root, clock) = Default::default();
    let world = Archived::on(store, vec![archive], root, clock, Policy::default()).await;
    assert_eq!(kind(world.encrypt().await), Kind::ArchiveUnavailable);
    world.archives[0].set_down(false);
    let (_, id) = world.encrypt_soon().await;
    assert!(world.record(0, id).is_some());
}

#[tokio::test(start_paused = true)]
async fn with_require_any_one_archive_is_enough() {
    let world = Archived::new(2, Policy { require: Require::Any, ..Policy::default() }).await;
    world.archives[0].set_down(true);
    world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    let (_, id) = world.encrypt().await.unwrap();
    assert!(world.record(0, id).is_none() && world.record(1, id).is_some());
    world.archives[1].set_down(true);
    assert_eq!(kind(world.service.rotate(None).await), Kind::ArchiveUnavailable);
}

#[tokio::test(start_paused = true)]
async fn on_failure_continue_uses_the_kek_and_archives_it_later() {
    let policy = Policy { on_failure: OnFailure::Continue, ..Policy::default() };
    let world = Archived::new(1, policy).await;
    let unarchived = || world.service.metrics().archives.unarchived.get();
    world.encrypt().await.unwrap();
    assert_eq!(unarchived(), 0);
    world.archives[0].set_down(true);
    world.service.rotate(None).await.unwrap();
    let (_, id) = world.encrypt().await.unwrap();
    assert!(world.record(0, id).is_none());
    assert_eq!(unarchived(), 1);
    world.archives[0].set_down(false);
    world.service.archive_once().await;
    assert!(world.record(0, id).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lost_store_loses_no_envelope_and_no_chain() {
    let world = Archived::new(2, Policy::default()).await;
    let settings = ChainSettings {
        suite: Some(Suite::Aes256Gcm),
        rotate_after_uses: Some(7),
        max_uses: Some(70),
        rotate_after_age: None,
        inline: Some(true),
    };
    world.service.put_chain("orders", settings).await.unwrap();
    let orders = world.service.encrypt(Some("orders"), b"order"[..].into(), b"").await.unwrap();
    let mut envelopes = Vec::new();
    for _ in 0..3 {
        envelopes.push(world.encrypt().await.unwrap());
        world.service.rotate(None).await.unwrap();
    }
    // All processes are gone, and the store is empty.
    let world = world.restarted(Some(Arc::default())).await;
    let (_, id) = world.encrypt_soon().await;
    assert!(envelopes.iter().all(|(_, old)| *old != id), "a counter is lost, so a KEK is new");
    for (envelope, old) in &envelopes {
        world.decrypt(envelope).await.unwrap();
        assert_eq!(world.stored(*old).await.unwrap().state, State::Retired);
        assert!(world.service.metrics().archives.restored.get() > 0);
    }
    let orders = orders.envelope.as_slice().to_vec();
    let opened = world.service.decrypt(Some("orders"), orders, b"").await.unwrap();
    assert_eq!(opened.plaintext.as_slice(), b"order");
    let (created, info) =
        world.service.put_chain("orders", ChainSettings::default()).await.unwrap();
    assert!(!created);
    assert_eq!((info.suite, info.limits.max_uses, info.inline), (Suite::Aes256Gcm, 70, true));
    assert_eq!(kind(world.service.delete_chain("orders").await), Kind::Conflict);
    let unknown = world.service.encrypt(Some("others"), b"x"[..].into(), b"").await;
    assert_eq!(kind(unknown), Kind::UnknownChain);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_lost_under_a_running_service_loses_nothing() {
    let world = Archived::new(1, Policy::default()).await;
    let empty = memory::Store::new().snapshot();
    let (envelope, id) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    let (second, _) = world.encrypt().await.unwrap();
    world.service.drop_kek(id);
    world.store.restore(empty);
    world.service.report_rollback().await;
    let (_, new) = world.encrypt_soon().await;
    assert!(world.record(0, new).is_some());
    for envelope in [envelope, second] {
        world.decrypt(&envelope).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_with_another_key_does_not_take_over_archived_chains() {
    let world = Archived::new(1, Policy::default()).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    world.service.stop().await;
    let Archived { archives, clock, policy, root, .. } = world;
    let other = Arc::new(TestRoot::with_key(9));
    let (store, archives_too) = (Arc::<memory::Store>::default(), archives.clone());
    let wrong = Archived::on(Arc::clone(&store), archives, other, Arc::clone(&clock), policy).await;
    assert_eq!(kind(wrong.encrypt().await), Kind::RootUnavailable);
    wrong.service.stop().await;
    let right = Archived::on(store, archives_too, root, clock, policy).await;
    right.encrypt_soon().await;
    right.decrypt(&envelope).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_is_destroyed_is_erased_in_every_archive() {
    let world = Archived::new(2, Policy::default()).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    world.archives[1].set_down(true);
    let info = world.destroy(id).await;
    assert_eq!(info.still_archived_in, ["second"]);
    assert_eq!(world.record(0, id).unwrap().state, State::Destroyed);
    assert!(!world.record(1, id).unwrap().wraps.is_empty());
    world.archives[1].set_down(false);
    world.service.archive_once().await;
    assert_eq!(world.record(1, id).unwrap().state, State::Destroyed);
    let world = world.restarted(Some(Arc::default())).await;
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::KekDisabled);
    assert_eq!(world.stored(id).await.unwrap().state, State::Destroyed);
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_wins_over_older_copies() {
    let world = Archived::new(2, Policy::default()).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    let old = (world.store.snapshot(), world.archives[1].snapshot());
    world.destroy(id).await;
    world.service.archive_once().await;
    // In one archive it is destroyed; the store and the other archive are old copies.
    world.service.stop().await;
    world.store.restore(old.0);
    world.archives[1].restore(old.1);
    let world = world.restarted(None).await;
    world.service.archive_once().await;
    assert_eq!(world.stored(id).await.unwrap().state, State::Destroyed);
    world.service.archive_once().await;
    for archive in [0, 1] {
        assert_eq!(world.record(archive, id).unwrap().state, State::Destroyed, "{archive}");
    }
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::KekDisabled);
}

#[tokio::test(start_paused = true)]
async fn a_disabled_kek_stays_disabled_when_the_store_is_lost() {
    let world = Archived::new(1, Policy::default()).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    world.service.change_kek(DEFAULT_CHAIN, id, Change::Disable).await.unwrap();
    let world = world.restarted(Some(Arc::default())).await;
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::KekDisabled);
    world.service.change_kek(DEFAULT_CHAIN, id, Change::Enable).await.unwrap();
    world.decrypt(&envelope).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_only_an_archive_has_can_be_disabled() {
    let world = Archived::new(2, Policy::default()).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    let world = world.restarted(Some(Arc::default())).await;
    world.encrypt_soon().await;
    assert_eq!(world.stored(id).await, None);
    world.service.change_kek(DEFAULT_CHAIN, id, Change::Disable).await.unwrap();
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::KekDisabled);
    for record in [world.stored(id).await, world.record(0, id), world.record(1, id)] {
        assert_eq!(record.unwrap().state, State::Disabled);
    }
    let unknown = KekId::from_bytes([7; 16]);
    let refused = world.service.change_kek(DEFAULT_CHAIN, unknown, Change::Disable).await;
    assert_eq!(kind(refused), Kind::UnknownKek);
}

#[tokio::test(start_paused = true)]
async fn forged_ids_cost_a_bounded_number_of_archive_calls() {
    let world = Archived::new(1, Policy::default()).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    world.service.archive_once().await;
    let mut kinds = HashMap::<Kind, usize>::new();
    for _ in 0..500 {
        let kek = Kek::generate(&default(), Suite::Aes128Gcm).unwrap();
        let forged = replaced(&envelope, id, kek.id());
        *kinds.entry(kind(world.decrypt(&forged).await)).or_default() += 1;
    }
    assert_eq!(kinds[&Kind::UnknownKek], 100, "{kinds:?}");
    assert_eq!(kinds[&Kind::Overloaded], 400, "{kinds:?}");
    // A KEK that is known to be archived is still found.
    world.service.drop_kek(id);
    world.store.restore(memory::Store::new().snapshot());
    world.decrypt(&envelope).await.unwrap();
}

/// The envelope with the id of another KEK.
fn replaced(envelope: &[u8], id: KekId, other: KekId) -> Vec<u8> {
    let at = envelope.windows(16).position(|bytes| bytes == id.as_bytes()).unwrap();
    let mut forged = envelope.to_vec();
    forged[at..at + 16].copy_from_slice(other.as_bytes());
    forged
}

#[tokio::test(start_paused = true)]
async fn an_archive_that_does_not_answer_makes_no_kek_unknown() {
    let world = Archived::new(1, Policy::default()).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    world.archives[0].set_down(true);
    let world = world.restarted(Some(Arc::default())).await;
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::ArchiveUnavailable);
    world.archives[0].set_down(false);
    world.decrypt(&envelope).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_existing_store_is_archived_in_the_background() {
    let world = Archived::new(0, Policy::default()).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.encrypt().await.unwrap().1);
        world.service.rotate(None).await.unwrap();
    }
    world.service.stop().await;
    let Archived { store, root, clock, policy, .. } = world;
    let archive = Arc::new(Archive::new());
    archive.set_down(true);
    let world = Archived::on(store, vec![archive], root, clock, policy).await;
    world.encrypt().await.unwrap();
    assert_eq!(world.check("archive:first"), Health::Degraded);
    world.archives[0].set_down(false);
    while world.check("archive:first") != Health::Ok {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for id in ids {
        assert!(world.record(0, id).is_some(), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_archive_is_filled_again() {
    let world = Archived::new(1, Policy::default()).await;
    let (_, id) = world.encrypt().await.unwrap();
    world.archives[0].restore(archive::memory::Snapshot::default());
    world.service.archive_once().await;
    assert!(world.record(0, id).is_some());
    assert!(world.archives[0].peek("v1/default/chain.json").is_some());
}

#[tokio::test(start_paused = true)]
async fn lost_and_late_answers_of_an_archive_lose_nothing() {
    use archive::memory::Fault;
    let world = Archived::new(1, Policy::default()).await;
    world.encrypt().await.unwrap();
    for fault in [Fault::RequestLost, Fault::AnswerLost, Fault::Late, Fault::Denied] {
        world.archives[0].fail_next([fault]);
        while world.service.rotate(None).await.is_err() {
            tokio::time::sleep(Duration::from_secs(10)).await;
            world.clock.advance(Duration::from_secs(10));
        }
        let (_, id) = world.encrypt().await.unwrap();
        assert!(world.record(0, id).is_some(), "{fault:?}");
        world.archives[0].deliver();
        assert!(!world.record(0, id).unwrap().wraps.is_empty(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_object_is_named_until_it_is_whole_again() {
    let world = Archived::new(1, Policy::default()).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    let key = object::kek_key(&default(), id);
    let whole = world.archives[0].peek(&key).unwrap();
    world.overwrite(&key, whole[..whole.len() / 2].to_vec()).await;
    let world = world.restarted(Some(Arc::default())).await;
    let error = world.decrypt(&envelope).await.unwrap_err();
    let named = format!("the archived object {key} is damaged in first");
    assert_eq!(error.kind(), Kind::ArchiveUnavailable);
    assert!(error.to_string().contains(&named), "{error}");
    assert_eq!(world.check("archive:first"), Health::Degraded);
    world.overwrite(&key, whole).await;
    world.decrypt(&envelope).await.unwrap();
    let checks = world.service.readiness().checks;
    let detail = checks.into_iter().find(|it| it.name == "archive:first").unwrap().detail;
    assert!(!detail.is_some_and(|it| it.contains("damaged")));
}

fn audit_key(secret: u8, roots: &[&str]) -> AuditKey {
    let wrap = |root: &&str| Wrap { root: (*root).to_owned(), bytes: vec![secret] };
    AuditKey { id: KekId::of_key(&[secret; 32]), wraps: roots.iter().map(wrap).collect() }
}

/// A service on a store and an archive that have these keys of the audit log.
async fn with_audit_keys(stored: &AuditKey, archived: Option<&AuditKey>) -> Archived {
    let key = record::AUDIT_KEY.to_owned();
    let store = memory::Store::holding(Txn::default().create(key, stored.encode().unwrap()));
    let archive = Arc::<Archive>::default();
    if let Some(archived) = archived {
        let bytes = object::encode_audit_key(archived).unwrap();
        let put = archive.put(object::AUDIT_KEY, bytes, archive::Condition::Absent);
        let _ = put.await.unwrap();
    }
    let (root, clock) = Default::default();
    let archived = Archived::on(store.into(), vec![archive], root, clock, Policy::default()).await;
    archived.service.archive_once().await;
    archived
}

#[tokio::test]
async fn the_key_of_the_audit_log_is_archived_and_another_one_is_not_replaced() {
    let main = audit_key(1, &["main"]);
    // The root `gone` was removed while an archive was unavailable.
    for archived in [None, Some(audit_key(1, &["gone"])), Some(audit_key(1, &["main", "gone"]))] {
        let world = with_audit_keys(&main, archived.as_ref()).await;
        let bytes = world.archives[0].peek(object::AUDIT_KEY).unwrap();
        assert_eq!(object::decode_audit_key(&bytes), Ok(main.clone()));
        assert_eq!(world.check("archive:first"), Health::Ok);
    }
    let other = audit_key(2, &["main"]);
    let world = with_audit_keys(&main, Some(&other)).await;
    let bytes = world.archives[0].peek(object::AUDIT_KEY).unwrap();
    assert_eq!(object::decode_audit_key(&bytes), Ok(other));
    assert_eq!(world.check("archive:first"), Health::Degraded);
}
