//! On which days KEKs were used: what counts, what is stored, and what nothing may lower.

use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use async_trait::async_trait;

use super::replicas::{Replicas, decrypt, default, encrypt, until};
use super::*;
use crate::store::inline;
use crate::store::record::{LastUsed, Record as _, UsedSince};
use crate::store::{Committed, Entry, Txn};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The day at which the clock starts: 2026-01-01.
const FIRST: u32 = 20_454;

/// A chain that is not rotated by age in these tests.
const LONG: Limits = Limits { rotate_after_age: 8_640_000, ..LOW };

const fn used(encrypt: Option<u32>, decrypt: Option<u32>) -> LastUsed {
    LastUsed { encrypt, decrypt }
}

/// What the store has of a KEK of `default`.
async fn stored(store: &dyn Store, id: KekId) -> Option<LastUsed> {
    let key = record::last_used_key(&default(), id);
    records::read::<LastUsed>(store, &key).await.unwrap().map(|read| read.record)
}

async fn since(store: &dyn Store) -> Option<u32> {
    let key = record::used_since_key(&default());
    records::read::<UsedSince>(store, &key).await.unwrap().map(|read| read.record.day)
}

/// What a service shows of a KEK.
async fn shown(service: &KeyService, id: KekId) -> KekInfo {
    let (_, page) = service.chain_with_keks(DEFAULT_CHAIN, None, 1_000).await.unwrap();
    page.items.into_iter().find(|kek| kek.kek_id == id).unwrap()
}

/// Time passes, and the process knows that no KEK was disabled meanwhile.
fn pass(clock: &ManualClock, service: &KeyService, time: Duration) {
    clock.advance(time);
    service.confirm_states();
}

#[tokio::test]
async fn each_kind_of_call_counts_as_what_it_does() {
    let world = World::new(LONG).await;
    let service = &world.service;
    let (envelope, old) = world.encrypt().await.unwrap();
    assert_eq!(shown(service, old).await.last_used, used(Some(FIRST), None));
    service.rotate(None).await.unwrap();
    pass(&world.clock, service, DAY);
    world.decrypt(&envelope).await.unwrap();
    assert_eq!(shown(service, old).await.last_used, used(Some(FIRST), Some(FIRST + 1)));
    // The second decrypt keeps the DEK, and the third one finds it.
    world.decrypt(&envelope).await.unwrap();
    let hits = || service.metrics().dek_cache.hits.get();
    let before = hits();
    for day in 2..5 {
        pass(&world.clock, service, DAY);
        world.decrypt(&envelope).await.unwrap();
        world.decrypt(&envelope).await.unwrap();
        // A DEK of the day before has expired.
        pass(&world.clock, service, Duration::from_secs(200));
        world.decrypt(&envelope).await.unwrap();
        assert_eq!(shown(service, old).await.last_used.decrypt, Some(FIRST + day));
    }
    assert!(hits() > before, "the cache was used");
    // Opened at the end of a day, and found in the cache on the next one.
    let into_day = Duration::from_secs(world.clock.unix_now() % 86_400);
    pass(&world.clock, service, DAY - into_day - Duration::from_secs(10));
    let today = shown(service, old).await.last_used.decrypt.unwrap();
    world.decrypt(&envelope).await.unwrap();
    world.decrypt(&envelope).await.unwrap();
    let before = hits();
    pass(&world.clock, service, Duration::from_secs(20));
    world.decrypt(&envelope).await.unwrap();
    assert_eq!(hits(), before + 1);
    assert_eq!(shown(service, old).await.last_used.decrypt, Some(today + 1));

    pass(&world.clock, service, DAY);
    let rewrapped = service.rewrap(None, envelope.clone()).await.unwrap();
    let primary = rewrapped.kek_id;
    assert_eq!(shown(service, old).await.last_used, used(Some(FIRST), Some(today + 2)));
    assert_eq!(shown(service, primary).await.last_used, used(Some(today + 2), None));
    pass(&world.clock, service, DAY);
    service.datakey(None, 32, b"").await.unwrap();
    assert_eq!(shown(service, primary).await.last_used, used(Some(today + 3), None));
    pass(&world.clock, service, DAY);
    let stream = service.on(None).make_stream_key(b"").await.unwrap();
    assert_eq!(shown(service, primary).await.last_used, used(Some(today + 4), None));
    pass(&world.clock, service, DAY);
    service.on(None).open_stream_key(stream.envelope.as_slice(), b"").await.unwrap();
    let last = used(Some(today + 4), Some(today + 5));
    assert_eq!(shown(service, primary).await.last_used, last);

    // A DEK that opens counts, also if the payload does not; a forged header does not count.
    pass(&world.clock, service, DAY);
    let mut forged = envelope.clone();
    forged[40] ^= 1;
    assert_eq!(kind(world.decrypt(&forged).await), Kind::InvalidCiphertext);
    assert_eq!(shown(service, old).await.last_used.decrypt, Some(today + 2));
    let wrong = service.decrypt(None, envelope, b"another aad").await;
    assert_eq!(kind(wrong), Kind::InvalidCiphertext);
    assert_eq!(shown(service, old).await.last_used.decrypt, Some(today + 6));
}

#[tokio::test]
async fn a_stop_stores_the_days_and_another_process_shows_them() {
    let world = World::new(LONG).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    world.decrypt(&envelope).await.unwrap();
    assert_eq!(stored(&*world.store, id).await, None, "each process waits for another time");
    let world = world.restarted().await;
    let both = used(Some(FIRST), Some(FIRST));
    assert_eq!(stored(&*world.store, id).await, Some(both));
    world.clock.advance(DAY);
    assert_eq!(shown(&world.service, id).await.last_used, both);
    world.service.store_days().await;
    assert_eq!(since(&*world.store).await, Some(FIRST + 1));
    assert_eq!(shown(&world.service, id).await.usage_known_since, Some(FIRST + 1));
    let [encrypt, decrypt] = shown(&world.service, id).await.last_used_text();
    assert_eq!((&*encrypt, &*decrypt), ("2026-01-01", "2026-01-01"));
}

#[tokio::test]
async fn what_is_not_known_is_not_shown_as_never() {
    let world = World::new(LONG).await;
    let (_, early) = world.encrypt().await.unwrap();
    pass(&world.clock, &world.service, DAY);
    world.service.store_days().await;
    pass(&world.clock, &world.service, DAY);
    let late = world.service.rotate(None).await.unwrap().primary;
    assert_eq!(shown(&world.service, early).await.last_used_text()[1], "none since 2026-01-02");
    assert_eq!(shown(&world.service, late).await.last_used_text()[1], "never");
}

/// Tasks of the services are stopped: what is stored is stored by the test.
async fn stopped(count: usize) -> (Replicas, Vec<u8>, KekId) {
    let replicas = Replicas::new(count).await;
    let (envelope, id) = encrypt(&replicas.services[0]).await.unwrap();
    for service in &replicas.services {
        decrypt(service, &envelope).await.unwrap();
        service.store_days().await;
        service.stop().await;
    }
    (replicas, envelope, id)
}

#[tokio::test]
async fn eight_replicas_store_a_day_once() {
    let (replicas, envelope, id) = stopped(8).await;
    let both = used(Some(FIRST), Some(FIRST));
    assert_eq!(stored(&*replicas.store, id).await, Some(both));
    for day in 1..4 {
        replicas.clock.advance(DAY);
        let before = replicas.store.revision();
        for service in &replicas.services {
            service.confirm_states();
            for _ in 0..3 {
                decrypt(service, &envelope).await.unwrap();
            }
        }
        // Each waits for its own time within 10 minutes.
        let mut early = 0;
        for _ in 0..11 {
            for service in &replicas.services {
                service.store_days().await;
            }
            early += u64::from(replicas.store.revision() == before);
            replicas.clock.advance(Duration::from_secs(60));
        }
        assert_eq!(replicas.store.revision(), before + 1, "day {day}, {early} minutes later");
        assert_eq!(stored(&*replicas.store, id).await, Some(used(Some(FIRST), Some(FIRST + day))));
    }
}

#[tokio::test]
async fn two_replicas_store_the_later_day_of_each() {
    let store = Arc::<memory::Store>::default();
    let clocks: [Arc<ManualClock>; 2] = Default::default();
    let root = Arc::default();
    let roots = [("main", &root)];
    let one = start(Arc::clone(&store) as _, &roots, &clocks[0]).await;
    let two = start(Arc::clone(&store) as _, &roots, &clocks[1]).await;
    let (envelope, id) = encrypt(&one).await.unwrap();
    pass(&clocks[1], &two, DAY);
    decrypt(&two, &envelope).await.unwrap();
    two.stop().await;
    assert_eq!(stored(&*store, id).await, Some(used(None, Some(FIRST + 1))));
    // Its day is earlier, and changes nothing; its encrypt is new.
    decrypt(&one, &envelope).await.unwrap();
    one.stop().await;
    let both = used(Some(FIRST), Some(FIRST + 1));
    assert_eq!(stored(&*store, id).await, Some(both));
    assert_eq!(shown(&one, id).await.last_used, both);
}

#[tokio::test]
async fn an_outage_of_the_store_delays_a_day_and_fails_no_call() {
    let (replicas, envelope, id) = stopped(1).await;
    let service = &replicas.services[0];
    for fault in [Fault::NotSent, Fault::RequestLost, Fault::AnswerLost] {
        pass(&replicas.clock, service, DAY);
        decrypt(service, &envelope).await.unwrap();
        replicas.store.fail_next([fault]);
        replicas.clock.advance(Duration::from_secs(600));
        service.store_days().await;
        let before = stored(&*replicas.store, id).await.unwrap().decrypt;
        let today = Some(u32::try_from(replicas.clock.unix_now() / 86_400).unwrap());
        assert_eq!(before == today, fault == Fault::AnswerLost, "{fault:?}");
        // While the store is down nothing is asked.
        service.store_days().await;
        assert_eq!(stored(&*replicas.store, id).await.unwrap().decrypt, before);
        service.is_store_back().await;
        service.store_days().await;
        assert_eq!(stored(&*replicas.store, id).await.unwrap().decrypt, today, "{fault:?}");
    }
    replicas.store.set_down(true);
    pass(&replicas.clock, service, DAY);
    decrypt(service, &envelope).await.unwrap();
    service.stop().await;
}

#[tokio::test]
async fn a_kek_that_is_disabled_has_its_days_before_it_can_be_destroyed() {
    let world = World::new(LONG).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    world.service.rotate(None).await.unwrap();
    world.service.store_days().await;
    pass(&world.clock, &world.service, DAY);
    world.decrypt(&envelope).await.unwrap();
    let change = async |change| world.service.change_kek(DEFAULT_CHAIN, id, change).await;
    let refused = change(Change::Destroy).await.unwrap_err().to_string();
    assert!(refused.ends_with("; last decrypt under it: 2026-01-02"), "{refused}");
    let disabled = change(Change::Disable).await.unwrap();
    assert_eq!(disabled.last_used, used(Some(FIRST), Some(FIRST + 1)));
    world.clock.advance(Duration::from_secs(30));
    world.service.store_days().await;
    assert_eq!(stored(&*world.store, id).await, Some(disabled.last_used));
    let refused = change(Change::Destroy).await.unwrap_err().to_string();
    let is_told = refused.contains("it can be destroyed from 2026-01-03T")
        && refused.ends_with("; last decrypt under it: 2026-01-02");
    assert!(is_told, "{refused}");
    pass(&world.clock, &world.service, DAY);
    let destroyed = change(Change::Destroy).await.unwrap();
    assert_eq!((destroyed.state, destroyed.last_used), (State::Destroyed, disabled.last_used));
    let world = world.restarted().await;
    assert_eq!(shown(&world.service, id).await.last_used, disabled.last_used, "it keeps its days");
}

#[tokio::test]
async fn an_old_copy_of_the_store_gets_the_days_that_a_process_knows() {
    let replicas = Replicas::new(1).await;
    let service = &replicas.services[0];
    let (envelope, id) = encrypt(service).await.unwrap();
    replicas.clock.advance(Duration::from_secs(600));
    service.store_days().await;
    let early = replicas.store.snapshot();
    assert_eq!(stored(&*replicas.store, id).await, Some(used(Some(FIRST), None)));
    pass(&replicas.clock, service, DAY);
    decrypt(service, &envelope).await.unwrap();
    replicas.clock.advance(Duration::from_secs(600));
    service.store_days().await;
    let both = used(Some(FIRST), Some(FIRST + 1));
    assert_eq!(stored(&*replicas.store, id).await, Some(both));
    assert_eq!(since(&*replicas.store).await, Some(FIRST));

    replicas.store.restore(early);
    service.report_rollback().await;
    let before = service.rollbacks();
    until("the repair", async || service.rollbacks() > before && !service.is_repairing().await)
        .await;
    replicas.clock.advance(Duration::from_secs(30));
    service.store_days().await;
    assert_eq!(stored(&*replicas.store, id).await, Some(both));
    assert_eq!(since(&*replicas.store).await, Some(FIRST + 1), "the others' days are lost");
}

#[tokio::test]
async fn inline_keks_that_the_store_does_not_have_are_not_stored() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let roots = [("main", &root)];
    let elsewhere = start(Arc::new(inline::Store::new()), &roots, &clock).await;
    let made = elsewhere.encrypt(None, b"hello"[..].into(), b"").await.unwrap();
    let envelope = made.envelope.as_slice();
    let info = shown(&elsewhere, made.kek_id).await;
    assert_eq!((info.last_used, info.usage_known_since), (used(Some(FIRST), None), Some(FIRST)));
    elsewhere.store_days().await;
    elsewhere.stop().await;
    let info = shown(&elsewhere, made.kek_id).await;
    assert_eq!(info.last_used, used(Some(FIRST), None), "in memory alone");

    let store = Arc::<memory::Store>::default();
    let service = start(Arc::clone(&store) as _, &roots, &clock).await;
    decrypt(&service, envelope).await.unwrap();
    service.stop().await;
    assert_eq!(stored(&*store, made.kek_id).await, None);
}

#[tokio::test]
async fn a_record_that_can_not_be_read_is_kept_and_what_it_says_is_not_known() {
    let newer = br#"{"format":2,"record":{"days":[]}}"#;
    for unreadable in [&b"{"[..], newer] {
        let (replicas, envelope, id) = stopped(1).await;
        let service = &replicas.services[0];
        let keys = [record::last_used_key(&default(), id), record::used_since_key(&default())];
        let write = async |key: &String, value: &[u8]| {
            let puts = vec![(key.clone(), value.to_vec())];
            let _ = replicas.store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
        };
        let is_kept = async |key: &String| {
            replicas.store.get(key).await.unwrap().is_some_and(|entry| entry.value == unreadable)
        };
        write(&keys[0], unreadable).await;
        let info = shown(service, id).await;
        assert_eq!((info.last_used, info.usage_known_since), (used(None, None), None));
        assert_eq!(info.last_used_text(), ["not known", "not known"]);
        pass(&replicas.clock, service, DAY);
        decrypt(service, &envelope).await.unwrap();
        replicas.clock.advance(Duration::from_secs(600));
        service.store_days().await;
        assert!(is_kept(&keys[0]).await);
        assert_eq!(shown(service, id).await.last_used_text(), ["not known", "not known"]);
        // Another KEK of the chain is not affected.
        let later = service.rotate(None).await.unwrap().primary;
        assert_eq!(shown(service, later).await.usage_known_since, Some(FIRST));

        write(&keys[1], unreadable).await;
        let root = [("main", &replicas.roots[0])];
        let next = start(Arc::clone(&replicas.store) as _, &root, &replicas.clock).await;
        next.store_days().await;
        assert!(is_kept(&keys[1]).await);
        assert_eq!(shown(&next, later).await.last_used_text()[1], "not known");
        next.report_rollback().await;
        replicas.clock.advance(DAY);
        next.store_days().await;
        assert!(is_kept(&keys[0]).await && is_kept(&keys[1]).await);
        next.stop().await;
    }
}

#[tokio::test]
async fn a_clock_that_is_years_behind_stores_no_first_day() {
    let replicas = Replicas::new(1).await;
    let service = &replicas.services[0];
    encrypt(service).await.unwrap();
    replicas.clock.advance(Duration::from_secs(600));
    service.store_days().await;
    assert_eq!(since(&*replicas.store).await, Some(FIRST));
    service.stop().await;
    let key = record::used_since_key(&default());
    let deletes = vec![key];
    let _ = replicas.store.commit(Txn { deletes, ..Txn::default() }).await.unwrap();

    let behind = Arc::new(ManualClock::at(ManualClock::new().unix_now() - 10 * 365 * 86_400));
    let root = [("main", &replicas.roots[0])];
    let next = start(Arc::clone(&replicas.store) as _, &root, &behind).await;
    let has_facts = || next.chains.load().values().any(|chain| chain.published.facts().is_some());
    until("the first reading of the chain", async || has_facts()).await;
    next.store_days().await;
    assert_eq!(since(&*replicas.store).await, None);
    behind.advance(Duration::from_secs(10 * 365 * 86_400 + 600));
    next.store_days().await;
    assert_eq!(since(&*replicas.store).await, Some(FIRST));
}

/// A store that counts reads.
#[derive(Default)]
struct Counting {
    inner: memory::Store,
    reads: AtomicUsize,
}

#[async_trait]
impl Store for Counting {
    async fn get(&self, key: &str) -> Result<Option<Entry>, store::Error> {
        self.reads.fetch_add(1, SeqCst);
        self.inner.get(key).await
    }

    async fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Entry>>, store::Error> {
        self.reads.fetch_add(1, SeqCst);
        self.inner.get_all(keys).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, store::Error> {
        self.reads.fetch_add(1, SeqCst);
        self.inner.list(prefix, after, limit).await
    }

    async fn count(&self, prefix: &str) -> Result<u64, store::Error> {
        self.reads.fetch_add(1, SeqCst);
        self.inner.count(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, store::Error> {
        self.inner.commit(txn).await
    }

    fn kind(&self) -> &'static str {
        "counting"
    }
}

#[tokio::test]
async fn a_list_of_ten_thousand_keks_takes_a_few_reads_for_each_page() {
    const KEKS: u16 = 10_000;
    let (store, clock) = (Arc::new(Counting::default()), Arc::default());
    let service = start(Arc::clone(&store) as _, &[("main", &Arc::default())], &clock).await;
    service.stop().await;
    let mut txn = Txn::default();
    let kek = record::Kek {
        suite: Suite::Aes128Gcm,
        state: State::Retired,
        created_at: 1,
        promoted_at: None,
        disabled_at: None,
        exposed: false,
        wraps: Vec::new(),
    };
    let id = |number: u16| KekId::of_key(&number.to_be_bytes().repeat(8));
    for number in 0..KEKS {
        let id = id(number);
        txn = txn
            .put(record::kek_key(&default(), id), kek.encode().unwrap())
            .put(record::uses_key(&default(), id), record::Uses::default().encode().unwrap());
        if number % 3 > 0 {
            let days = used(Some(number.into()), None).encode().unwrap();
            txn = txn.put(record::last_used_key(&default(), id), days);
        }
    }
    let _ = store.commit(txn).await.unwrap();
    let days: HashMap<_, _> =
        (0..KEKS).map(|number| (id(number), (number % 3 > 0).then(|| number.into()))).collect();
    let (mut after, mut listed) = (None, 0);
    let (before, began) = (store.reads.load(SeqCst), Instant::now());
    loop {
        let (_, page) = service.chain_with_keks(DEFAULT_CHAIN, after, 1_000).await.unwrap();
        let made_here = page.items.iter().filter(|kek| !days.contains_key(&kek.kek_id)).count();
        listed += page.items.len() - made_here;
        for kek in page.items.iter().filter(|kek| days.contains_key(&kek.kek_id)) {
            assert_eq!(kek.last_used, used(days[&kek.kek_id], None));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, usize::from(KEKS));
    let reads = store.reads.load(SeqCst) - before;
    println!("10,000 KEKs: {reads} reads in {:?}", began.elapsed());
    // Head, number, KEKs, uses, first day, and one or two of the days.
    assert!(reads <= 11 * 7, "{reads}");
}
