//! Several services on one store, as replicas are: they share the chains, and do not communicate.

use super::*;
use crate::store::record::{Claim, Record};

/// Replicas with one root each, so that calls can be distinguished.
pub(super) struct Replicas {
    pub(super) store: Arc<memory::Store>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) roots: Vec<Arc<TestRoot>>,
    pub(super) services: Vec<Arc<KeyService>>,
}

impl Replicas {
    pub(super) async fn new(count: usize) -> Self {
        let (store, clock): (Arc<memory::Store>, Arc<ManualClock>) = Default::default();
        let mut replicas = Self { store, clock, roots: Vec::new(), services: Vec::new() };
        for _ in 0..count {
            replicas.join().await;
        }
        replicas
    }

    pub(super) async fn join(&mut self) -> &Arc<KeyService> {
        let root = Arc::<TestRoot>::default();
        let service = start(Arc::clone(&self.store) as _, &[("main", &root)], &self.clock).await;
        self.roots.push(root);
        self.services.push(service);
        self.services.last().unwrap()
    }

    pub(super) fn calls(&self) -> (usize, usize) {
        let sum = |calls: fn(&TestRoot) -> usize| self.roots.iter().map(|root| calls(root)).sum();
        (sum(|root| root.wraps.load(SeqCst)), sum(|root| root.unwraps.load(SeqCst)))
    }

    /// KEKs in the store, with their states and reserved uses.
    pub(super) async fn keks(&self) -> Vec<(KekId, State, u64)> {
        let prefix = record::keks_prefix(&default());
        let mut keks = Vec::new();
        for entry in self.store.list(&prefix, None, 1_000).await.unwrap() {
            let id = entry.key[prefix.len()..].parse().unwrap();
            let kek = record::Kek::decode(&entry.key, &entry.value).unwrap();
            let uses = self.store.get(&record::uses_key(&default(), id)).await.unwrap().unwrap();
            let uses = record::Uses::decode(&uses.key, &uses.value).unwrap();
            keks.push((id, kek.state, uses.reserved));
        }
        keks
    }
}

pub(super) fn default() -> ChainName {
    ChainName::new(DEFAULT_CHAIN).unwrap()
}

pub(super) async fn encrypt(service: &KeyService) -> Result<(Vec<u8>, KekId), Error> {
    let made = service.encrypt(None, b"hello"[..].into(), b"").await?;
    Ok((made.envelope.as_slice().to_vec(), made.kek_id))
}

pub(super) async fn decrypt(service: &KeyService, envelope: &[u8]) -> Result<(), Error> {
    let opened = service.decrypt(None, envelope.to_vec(), b"").await?;
    assert_eq!(opened.plaintext.as_slice(), b"hello");
    Ok(())
}

/// Waits until it holds. The tasks of the services run in the meantime.
pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..6_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kek_is_wrapped_once_however_many_replicas_reach_the_limit() {
    let replicas = Replicas::new(4).await;
    let mut tasks = tokio::task::JoinSet::new();
    for service in replicas.services.iter().cycle().take(40) {
        let service = Arc::clone(service);
        tasks.spawn(async move {
            let mut made = Vec::new();
            while made.len() < 100 {
                made.push(encrypt(&service).await.unwrap());
            }
            made
        });
    }
    let made: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let keks = replicas.keks().await;
    let mut uses = HashMap::<KekId, u64>::new();
    for (_, id) in &made {
        *uses.entry(*id).or_default() += 1;
    }
    for (id, state, reserved) in &keks {
        let made = uses.get(id).copied().unwrap_or(0);
        assert!(made <= *reserved && *reserved <= 200, "{id} {state:?}: {made} <= {reserved}");
    }
    assert!(keks.len() >= 20, "{} KEKs for 4,000 uses", keks.len());
    // A standby that was wrapped may not be stored yet.
    until("one wrap for each KEK", async || replicas.keks().await.len() == replicas.calls().0)
        .await;
    for service in &replicas.services {
        for (envelope, _) in &made {
            decrypt(service, envelope).await.unwrap();
        }
    }
}

#[tokio::test]
async fn replicas_open_the_standby_when_they_first_see_it_so_promotion_needs_no_root() {
    let replicas = Replicas::new(3).await;
    for service in &replicas.services {
        encrypt(service).await.unwrap();
    }
    let first = replicas.keks().await[0].0;
    while replicas.keks().await.iter().all(|(_, state, _)| *state != State::Standby) {
        encrypt(&replicas.services[0]).await.unwrap();
        tokio::task::yield_now().await;
    }
    until("every replica holds two KEKs", async || {
        replicas.services.iter().all(|service| service.keks_in_memory().len() == 2)
    })
    .await;
    assert_eq!(replicas.calls(), (2, 4));
    for root in &replicas.roots {
        root.away.store(true, SeqCst);
    }
    for service in &replicas.services {
        until("the standby encrypts", async || encrypt(service).await.unwrap().1 != first).await;
    }
    assert_eq!(replicas.calls().1, 4);
}

#[tokio::test]
async fn what_one_replica_changes_the_others_see() {
    let replicas = Replicas::new(2).await;
    let (a, b) = (&replicas.services[0], &replicas.services[1]);
    let (envelope, old) = encrypt(a).await.unwrap();
    decrypt(b, &envelope).await.unwrap();
    let rotated = a.rotate(None).await.unwrap();
    assert_eq!(rotated.previous, Some(old));
    until("b encrypts under the new KEK", async || encrypt(b).await.unwrap().1 == rotated.primary)
        .await;
    decrypt(b, &envelope).await.unwrap();

    a.change_kek(DEFAULT_CHAIN, old, Change::Disable).await.unwrap();
    until("b refuses", async || {
        matches!(decrypt(b, &envelope).await, Err(error) if error.kind() == Kind::KekDisabled)
    })
    .await;
    b.change_kek(DEFAULT_CHAIN, old, Change::Enable).await.unwrap();
    until("a decrypts again", async || decrypt(a, &envelope).await.is_ok()).await;

    // This needs no watch: a request for a chain finds it, if another replica created it.
    assert_eq!(kind(b.encrypt(Some("orders"), b"x"[..].into(), b"").await), Kind::UnknownChain);
    a.put_chain("orders", ChainSettings::default()).await.unwrap();
    let made = b.encrypt(Some("invoices"), b"x"[..].into(), b"").await;
    assert_eq!(kind(made), Kind::UnknownChain);
    until("b knows the chain", async || {
        b.encrypt(Some("orders"), b"x"[..].into(), b"").await.is_ok()
    })
    .await;
    let (_, page) = a.chain_with_keks("orders", None, 10).await.unwrap();
    assert_eq!(page.items.len(), 1);
}

/// A replica may be behind. It must not refuse a read because of its state in memory.
#[tokio::test]
async fn a_decrypt_does_not_wait_for_a_watch() {
    let replicas = Replicas::new(2).await;
    let (a, b) = (&replicas.services[0], &replicas.services[1]);
    for _ in 0..3 {
        a.rotate(None).await.unwrap();
        // Nothing is awaited in between that would let b receive the change.
        let (envelope, _) = encrypt(a).await.unwrap();
        decrypt(b, &envelope).await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_of_a_process_that_is_gone_is_taken_over() {
    let (store, clock, root): (Arc<memory::Store>, Arc<ManualClock>, Arc<TestRoot>) =
        Default::default();
    let key = record::claim_key(&default());
    let put = |value| store::Txn { puts: vec![(key.clone(), value)], ..Default::default() };
    let _ = store.commit(put(Claim { owner: 1 }.encode().unwrap())).await.unwrap();
    let (roots, wait) = ([("main", &root)], Duration::from_secs(1));
    let service = start_waiting(Arc::clone(&store) as _, &roots, &clock, LOW, wait).await;
    assert_eq!(kind(encrypt(&service).await), Kind::KekExhausted);
    assert_eq!(root.wraps.load(SeqCst), 0, "it is another's turn");
    clock.advance(Duration::from_secs(21));
    until("it is taken over", async || encrypt(&service).await.is_ok()).await;
    assert_eq!(root.wraps.load(SeqCst), 1);
    assert_eq!(store.get(&key).await.unwrap(), None);
}

#[tokio::test]
async fn a_root_that_is_away_from_one_replica_does_not_keep_the_others_from_it() {
    let mut replicas = Replicas::new(0).await;
    let away = Arc::<TestRoot>::default();
    away.away.store(true, SeqCst);
    let stuck = start(Arc::clone(&replicas.store) as _, &[("main", &away)], &replicas.clock).await;
    assert_eq!(kind(encrypt(&stuck).await), Kind::RootUnavailable);
    encrypt(replicas.join().await).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn limits_that_change_while_a_kek_is_wrapped_cause_no_second_wrap() {
    let replicas = Replicas::new(1).await;
    let root = Arc::<TestRoot>::default();
    // Its watch does not report the change.
    let store = Arc::new(Silent(Arc::clone(&replicas.store)));
    let service = start(store, &[("main", &root)], &replicas.clock).await;
    root.slow.store(true, SeqCst);
    let rotating = tokio::spawn(async move { service.rotate(None).await });
    until("it is being wrapped", async || root.wraps.load(SeqCst) == 1).await;
    assert!(!rotating.is_finished(), "the root takes 50 ms");
    let max_uses = Some(300);
    let settings = ChainSettings { max_uses, ..ChainSettings::default() };
    replicas.services[0].put_chain(DEFAULT_CHAIN, settings).await.unwrap();
    rotating.await.unwrap().unwrap();
    assert_eq!(root.wraps.load(SeqCst), 1);
}

#[tokio::test]
async fn a_disabled_kek_encrypts_no_more_where_the_next_one_can_not_be_opened() {
    let replicas = Replicas::new(2).await;
    let (a, b) = (&replicas.services[0], &replicas.services[1]);
    let (envelope, old) = encrypt(b).await.unwrap();
    replicas.roots[1].away.store(true, SeqCst);
    a.rotate(None).await.unwrap();
    assert_eq!(encrypt(b).await.unwrap().1, old, "its block is good for a minute");
    a.change_kek(DEFAULT_CHAIN, old, Change::Disable).await.unwrap();
    until("b sees it", async || {
        matches!(decrypt(b, &envelope).await, Err(error) if error.kind() == Kind::KekDisabled)
    })
    .await;
    assert_eq!(kind(encrypt(b).await), Kind::RootUnavailable);
}

/// Every way in which an old copy of the store can be detected.
#[tokio::test]
async fn a_restored_store_is_noticed_and_repaired() {
    for case in ["counter", "generation", "chain is gone"] {
        let replicas = Replicas::new(2).await;
        let empty = memory::Store::new().snapshot();
        let (a, b) = (&replicas.services[0], &replicas.services[1]);
        let (first, id) = encrypt(a).await.unwrap();
        let early = replicas.store.snapshot();
        let (second, primary) = match case {
            "counter" => {
                replicas.clock.advance(Duration::from_secs(61));
                encrypt(a).await.unwrap()
            }
            _ => {
                a.rotate(None).await.unwrap();
                encrypt(a).await.unwrap()
            }
        };
        replicas.store.restore(if case == "chain is gone" { empty } else { early });
        // The reserved uses are spent or expired, so a asks the store.
        replicas.clock.advance(Duration::from_secs(61));
        until("another KEK encrypts", async || {
            encrypt(a).await.is_ok_and(|(_, next)| next != primary && next != id)
        })
        .await;
        for (kek, state, _) in replicas.keks().await {
            let retired = kek == id || kek == primary;
            assert!(!retired || state == State::Retired, "{case}: {kek} is {state:?}");
        }
        // A process that was never here reads it all.
        let fresh = Arc::<TestRoot>::default();
        let fresh =
            start(Arc::clone(&replicas.store) as _, &[("main", &fresh)], &replicas.clock).await;
        for envelope in [&first, &second] {
            for service in [&fresh, a, b] {
                decrypt(service, envelope).await.unwrap_or_else(|e| panic!("{case}: {e}"));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_is_destroyed_stays_so_after_a_restore() {
    let replicas = Replicas::new(1).await;
    let service = &replicas.services[0];
    let (envelope, id) = encrypt(service).await.unwrap();
    service.rotate(None).await.unwrap();
    let early = replicas.store.snapshot();
    service.change_kek(DEFAULT_CHAIN, id, Change::Disable).await.unwrap();
    replicas.clock.advance(Duration::from_secs(24 * 60 * 60));
    service.change_kek(DEFAULT_CHAIN, id, Change::Destroy).await.unwrap();
    service.rotate(None).await.unwrap();
    replicas.store.restore(early);
    until("it is buried again", async || {
        replicas.keks().await.iter().any(|(kek, state, _)| *kek == id && *state == State::Destroyed)
    })
    .await;
    assert_eq!(kind(decrypt(service, &envelope).await), Kind::KekDisabled);
}

#[tokio::test(start_paused = true)]
async fn a_kek_in_memory_that_the_store_lacks_is_put_back() {
    let (store, clock): (Arc<memory::Store>, Arc<ManualClock>) = Default::default();
    let root = [("main", &Arc::default())];
    let b = start(Arc::new(Silent(Arc::clone(&store))), &root, &clock).await;
    let early = store.snapshot();
    b.rotate(None).await.unwrap();
    let (envelope, id) = encrypt(&b).await.unwrap();
    b.rotate(None).await.unwrap();
    // Another process restored the store and continued, so that no number shows b the restore.
    store.restore(early);
    let fresh = start(Arc::clone(&store) as _, &root, &clock).await;
    for _ in 0..10 {
        fresh.rotate(None).await.unwrap();
    }
    assert_eq!(kind(decrypt(&fresh, &envelope).await), Kind::UnknownKek);
    let key = record::kek_key(&default(), id);
    until("b puts it back", async || store.get(&key).await.unwrap().is_some()).await;
    clock.advance(Duration::from_secs(6));
    decrypt(&fresh, &envelope).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn with_the_store_away_decrypts_go_on_for_the_grace_and_no_longer() {
    let replicas = Replicas::new(1).await;
    let service = &replicas.services[0];
    let (envelope, _) = encrypt(service).await.unwrap();
    replicas.store.set_down(true);
    replicas.clock.advance(Duration::from_secs(24 * 60 * 60 - 60));
    decrypt(service, &envelope).await.unwrap();
    replicas.clock.advance(Duration::from_secs(61));
    assert_eq!(kind(decrypt(service, &envelope).await), Kind::StoreUnavailable);
    replicas.store.set_down(false);
    until("it is back", async || decrypt(service, &envelope).await.is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_missed_what_happened_is_made_up_for() {
    let (store, clock): (Arc<memory::Store>, Arc<ManualClock>) = Default::default();
    let mut services = Vec::new();
    for _ in 0..2 {
        let store = Arc::new(Silent(Arc::clone(&store)));
        services.push(start(store, &[("main", &Arc::default())], &clock).await);
    }
    let (a, b) = (&services[0], &services[1]);
    let (envelope, id) = encrypt(a).await.unwrap();
    decrypt(b, &envelope).await.unwrap();
    a.rotate(None).await.unwrap();
    a.change_kek(DEFAULT_CHAIN, id, Change::Disable).await.unwrap();
    let begin = tokio::time::Instant::now();
    until("b refuses", async || decrypt(b, &envelope).await.is_err()).await;
    assert_eq!(kind(decrypt(b, &envelope).await), Kind::KekDisabled);
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

/// A store whose watch is dead.
struct Silent(Arc<memory::Store>);

#[async_trait::async_trait]
impl Store for Silent {
    async fn get(&self, key: &str) -> Result<Option<store::Entry>, store::Error> {
        self.0.get(key).await
    }
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<store::Entry>, store::Error> {
        self.0.list(prefix, after, limit).await
    }
    async fn count(&self, prefix: &str) -> Result<u64, store::Error> {
        self.0.count(prefix).await
    }
    async fn commit(&self, txn: store::Txn) -> Result<store::Committed, store::Error> {
        self.0.commit(txn).await
    }
    fn watch(&self) -> Option<Box<dyn store::Watch>> {
        struct Dead;
        #[async_trait::async_trait]
        impl store::Watch for Dead {
            async fn next(&mut self) -> store::News {
                std::future::pending().await
            }
        }
        Some(Box::new(Dead))
    }
    fn kind(&self) -> &'static str {
        "silent"
    }
}
