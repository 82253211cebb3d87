//! A store in memory, two roots of the tests' own, and one thing wrong at a time.

use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::id::Suite;
use crate::root::testing::TestRoot;
use crate::secret::KeyBytes;
use crate::store::record::{AuditKey, Kek, Limits, Record, Uses, Wrap};
use crate::store::{Txn, memory};

struct World {
    store: memory::Store,
    main: Arc<TestRoot>,
    roots: Vec<root::Named>,
    chain: ChainName,
    /// Primary, standby, retired, destroyed.
    ids: [KekId; 4],
}

impl World {
    async fn new() -> Self {
        let (main, dr) = (Arc::new(TestRoot::default()), Arc::new(TestRoot::default()));
        let named = |name: &str, root: &Arc<TestRoot>| root::Named {
            name: name.into(),
            root: Arc::clone(root) as _,
        };
        let roots = vec![named("main", &main), named("dr", &dr)];
        let chain = ChainName::new("orders").unwrap();
        let ids = [1, 2, 3, 4].map(|byte| KekId::of_key(&[byte; 16]));
        let world = Self { store: memory::Store::new(), main, roots, chain, ids };
        let states = [State::Primary, State::Standby, State::Retired, State::Destroyed];
        for (index, state) in states.into_iter().enumerate() {
            let kek = world.kek(index, state).await;
            world.put_kek(index, &kek).await;
            world.put_uses(index, 100).await;
        }
        world.put_head(Some(ids[0]), Some(ids[1])).await;
        world
    }

    async fn kek(&self, index: usize, state: State) -> Kek {
        let key = KeyBytes::from_slice(&[u8::try_from(index + 1).unwrap(); 16]).unwrap();
        let (id, suite) = (self.ids[index], Suite::Aes128Gcm);
        let mut wraps = Vec::new();
        for named in self.roots.iter().filter(|_| state != State::Destroyed) {
            let context = Context { chain: &self.chain, kek_id: id, suite };
            let bytes = named.root.wrap(context, &key).await.unwrap();
            wraps.push(Wrap { root: named.name.to_string(), bytes });
        }
        Kek {
            suite,
            state,
            created_at: 1,
            promoted_at: None,
            disabled_at: None,
            exposed: false,
            wraps,
        }
    }

    async fn put(&self, key: String, value: Vec<u8>) {
        let txn = Txn { puts: vec![(key, value)], ..Txn::default() };
        let _ = self.store.commit(txn).await.unwrap();
    }

    async fn put_kek(&self, index: usize, kek: &Kek) {
        self.put(self.kek_key(index), kek.encode().unwrap()).await;
    }

    async fn put_uses(&self, index: usize, reserved: u64) {
        let uses = Uses { reserved, ..Uses::default() };
        self.put(record::uses_key(&self.chain, self.ids[index]), uses.encode().unwrap()).await;
    }

    async fn put_head(&self, primary: Option<KekId>, standby: Option<KekId>) {
        let limits = Limits { rotate_after_uses: 100, max_uses: 200, rotate_after_age: 60 };
        let suite = Suite::Aes128Gcm;
        let head = Head {
            suite,
            limits,
            primary,
            standby,
            generation: 1,
            roots_generation: 1,
            named_root: None,
            repair: None,
            inline: false,
        };
        self.put(record::head_key(&self.chain), head.encode().unwrap()).await;
    }

    async fn delete(&self, key: String) {
        let txn = Txn { deletes: vec![key], ..Txn::default() };
        let _ = self.store.commit(txn).await.unwrap();
    }

    fn kek_key(&self, index: usize) -> String {
        record::kek_key(&self.chain, self.ids[index])
    }

    async fn verify(&self) -> Report {
        verify(&self.store, &self.roots, |_| {}).await.unwrap()
    }

    /// The reported problems, in order.
    async fn told(&self) -> Vec<String> {
        let problems = self.verify().await.problems;
        let mut told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        told.sort();
        told
    }

    async fn tells_one(&self, key: &str, part: &str) {
        let told = self.told().await;
        let [one] = &told[..] else { panic!("{told:?}") };
        assert!(one.starts_with(&format!("{key}: ")) && one.contains(part), "{one}");
    }
}

#[tokio::test]
async fn every_wrap_is_opened_and_nothing_is_changed() {
    let world = World::new().await;
    let before = world.store.list("", None, 100).await.unwrap();
    let report = world.verify().await;
    assert_eq!(report, Report { chains: 1, keks: 4, opened: 6, problems: Vec::new() });
    assert_eq!(world.main.unwraps.load(SeqCst), 3);
    assert_eq!(world.store.list("", None, 100).await.unwrap(), before);
}

#[tokio::test]
async fn a_kek_that_opens_to_another_or_not_at_all_is_named_with_the_root() {
    let world = World::new().await;
    let key = world.kek_key(2);
    let good = world.kek(2, State::Retired).await;
    // A wrap for another chain or id.
    let mut bad = good.clone();
    bad.wraps[1].bytes = world.kek(0, State::Retired).await.wraps[1].bytes.clone();
    world.put_kek(2, &bad).await;
    world.tells_one(&key, "root dr: the wrap does not open").await;
    // The right context, and another key.
    let mut bad = good.clone();
    *bad.wraps[0].bytes.last_mut().unwrap() ^= 1;
    world.put_kek(2, &bad).await;
    world
        .tells_one(&key, "root main: the wrap does not open: it unwraps to a key with another id")
        .await;
    world.put_kek(2, &good).await;
    world.main.away.store(true, SeqCst);
    let told = world.told().await;
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|it| it.contains("root main: the root is away")), "{told:?}");
}

#[tokio::test]
async fn a_kek_without_a_configured_root_is_a_problem_of_its_own_kind() {
    let mut world = World::new().await;
    world.roots.pop();
    assert_eq!(world.verify().await.problems, []);
    let mut kek = world.kek(2, State::Retired).await;
    kek.wraps[0].root = "gone".to_owned();
    world.put_kek(2, &kek).await;
    let problem =
        Problem { key: world.kek_key(2), defect: Defect::NoRoot(vec!["gone".to_owned()]) };
    assert_eq!(world.verify().await.problems, [problem]);
    kek.wraps.clear();
    world.put_kek(2, &kek).await;
    world.tells_one(&world.kek_key(2), "no root wrapped it").await;
}

#[tokio::test]
async fn records_that_do_not_fit_together_are_named() {
    let world = World::new().await;
    let head = record::head_key(&world.chain);
    let [primary, standby, retired, _] = world.ids;
    for (first, second, parts) in [
        (Some(retired), Some(standby), &["the head does not name it", "is retired"][..]),
        (None, Some(standby), &["it is primary, and the head does not name it"]),
        (Some(primary), None, &["it is standby, and the head does not name it"]),
        (Some(standby), Some(primary), &["its primary", "its standby"]),
        (Some(KekId::from_bytes([9; 16])), Some(standby), &["does not name it", "is missing"]),
    ] {
        world.put_head(first, second).await;
        let told = world.told().await.join("\n");
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    }
    world.put_head(Some(primary), Some(standby)).await;
    assert_eq!(world.told().await, Vec::<String>::new());

    world.put_uses(0, 201).await;
    world
        .tells_one(&record::uses_key(&world.chain, primary), "201 uses are more than max_uses")
        .await;
    world.put_uses(0, 200).await;
    // A chain's limits may have been higher once.
    world.put_uses(2, 1 << 32).await;
    assert_eq!(world.told().await, Vec::<String>::new());
    world.put_uses(2, (1 << 32) + 1).await;
    world.tells_one(&record::uses_key(&world.chain, retired), "more than 2^32").await;
    world.delete(record::uses_key(&world.chain, retired)).await;
    world.tells_one(&record::uses_key(&world.chain, retired), "it is missing").await;
    world.put_uses(2, 1).await;

    world.delete(world.kek_key(2)).await;
    world.tells_one(&world.kek_key(2), "it is missing, and its uses are there").await;
    world.put(world.kek_key(2), b"{".to_vec()).await;
    world.tells_one(&world.kek_key(2), "it is damaged").await;
    world.put_kek(2, &world.kek(2, State::Retired).await).await;

    let tombstone = Kek { state: State::Destroyed, ..world.kek(2, State::Retired).await };
    world.put_kek(3, &tombstone).await;
    world.tells_one(&world.kek_key(3), "it is destroyed, and has wraps").await;
    world.put_kek(3, &world.kek(3, State::Destroyed).await).await;

    world.put(head.clone(), b"{".to_vec()).await;
    world.tells_one(&head, "it is damaged").await;
    world.delete(head.clone()).await;
    world.tells_one(&head, "it is missing").await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_an_error() {
    let world = World::new().await;
    world.store.set_down(true);
    assert!(verify(&world.store, &world.roots, |_| {}).await.is_err());
}

#[tokio::test]
async fn the_key_of_the_audit_log_is_opened_too() {
    let world = World::new().await;
    let opened = world.verify().await.opened;
    let secret = KeyBytes::from_slice(&[9; 32]).unwrap();
    let chain = ChainName::new(AUDIT_LOG).unwrap();
    let id = KekId::of_key(secret.expose());
    let context = Context { chain: &chain, kek_id: id, suite: Suite::Aes256Gcm };
    let bytes = world.roots[0].root.wrap(context, &secret).await.unwrap();
    let put = async |id, root: &str| {
        let wraps = vec![Wrap { root: root.to_owned(), bytes: bytes.clone() }];
        world.put(AUDIT_KEY.to_owned(), AuditKey { id, wraps }.encode().unwrap()).await;
    };
    put(id, "main").await;
    let report = world.verify().await;
    assert_eq!((report.opened, report.problems), (opened + 1, Vec::new()));
    put(KekId::of_key(&[8; 32]), "main").await;
    let told = world.told().await;
    assert!(told.len() == 1 && told[0].starts_with("audit/key: root main: "), "{told:?}");
    put(id, "gone").await;
    let told = world.told().await;
    assert_eq!(told, ["audit/key: none of the roots that wrapped it is configured: gone"]);
    world.put(AUDIT_KEY.to_owned(), b"{".to_vec()).await;
    assert!(world.told().await[0].starts_with("audit/key: it is damaged"));
}
