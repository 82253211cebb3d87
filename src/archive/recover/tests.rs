//! Recoveries from archives in memory: what is written, what stays, and what is reported.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;

use super::super::{Condition, memory as archives};
use super::*;
use crate::id::Suite;
use crate::store::record::Wrap;
use crate::store::records;
use crate::store::{Entry, memory};

fn chain() -> ChainName {
    ChainName::new("orders").unwrap()
}

fn id(number: u64) -> KekId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    KekId::from_bytes(bytes)
}

fn kek(state: State, disabled_at: Option<u64>) -> Kek {
    let wraps = match state {
        State::Destroyed => Vec::new(),
        _ => vec![Wrap { root: "main".to_owned(), bytes: vec![7; 60] }],
    };
    Kek {
        suite: Suite::Aes256Gcm,
        state,
        created_at: 1,
        promoted_at: None,
        disabled_at,
        exposed: false,
        wraps,
    }
}

struct Fixture {
    archive: Arc<archives::Archive>,
    named: Named,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let archive = Arc::new(archives::Archive::new());
        let named = Named { name: name.into(), archive: archive.clone() };
        Self { archive, named }
    }

    async fn put(&self, key: String, bytes: Vec<u8>) {
        let written = self.archive.put(&key, bytes, Condition::Absent).await.unwrap();
        assert!(matches!(written, super::super::Written::Applied(_)), "{key}");
    }

    async fn put_kek(&self, number: u64, kek: &Kek) {
        let bytes = object::encode_kek(&chain(), id(number), kek).unwrap();
        self.put(object::kek_key(&chain(), id(number)), bytes).await;
    }

    async fn put_chain(&self) {
        let bytes = object::encode_chain(&chain(), &settings()).unwrap();
        self.put(object::chain_key(&chain()), bytes).await;
    }
}

fn settings() -> Chain {
    let limits = Limits { max_uses: 1000, rotate_after_uses: 500, ..Limits::default() };
    Chain { suite: Suite::Aes256Gcm, limits, inline: true }
}

async fn stored(store: &memory::Store, number: u64) -> Option<Kek> {
    let key = record::kek_key(&chain(), id(number));
    records::read::<Kek>(store, &key).await.unwrap().map(|read| read.record)
}

async fn run(archives: &[Named], store: &memory::Store) -> Report {
    recover(archives, store, |_| {}).await.unwrap()
}

#[tokio::test]
async fn an_empty_store_gets_every_kek_retired_and_a_second_run_writes_nothing() {
    let one = Fixture::new("one");
    one.put_chain().await;
    one.put_kek(1, &kek(State::Primary, None)).await;
    one.put_kek(2, &kek(State::Standby, None)).await;
    one.put_kek(3, &kek(State::Disabled, Some(5))).await;
    one.put_kek(4, &kek(State::Destroyed, Some(5))).await;
    for number in 5..105 {
        one.put_kek(number, &kek(State::Retired, None)).await;
    }
    let store = memory::Store::new();
    let archives = [one.named.clone()];
    let report = run(&archives, &store).await;
    let expected = Report { chains: 1, keks: 104, restored: 104, ..Report::default() };
    assert_eq!(report, expected);
    for (number, state) in
        [(1, State::Retired), (2, State::Retired), (3, State::Disabled), (4, State::Destroyed)]
    {
        assert_eq!(stored(&store, number).await.unwrap().state, state, "{number}");
    }
    let head = records::head(&store, &chain()).await.unwrap();
    assert_eq!(Chain::of(&head), settings());
    assert_eq!((head.primary, head.standby), (None, None));
    // Nothing is known about their uses, so none is left.
    let key = record::uses_key(&chain(), id(7));
    let uses = records::read::<Uses>(&store, &key).await.unwrap().unwrap();
    assert_eq!(uses.record.reserved, 1000);

    let revision = store.revision();
    let again = run(&archives, &store).await;
    assert_eq!(again, Report { chains: 1, keks: 104, same: 104, ..Report::default() });
    assert_eq!(store.revision(), revision);
}

#[tokio::test]
async fn archives_complete_each_other_and_a_tombstone_wins() {
    let (one, two) = (Fixture::new("one"), Fixture::new("two"));
    one.put_chain().await;
    one.put_kek(1, &kek(State::Retired, None)).await;
    one.put_kek(2, &kek(State::Retired, None)).await;
    two.put_kek(2, &kek(State::Destroyed, Some(5))).await;
    two.put_kek(3, &kek(State::Retired, None)).await;
    // Damaged in one, whole in the other.
    one.put(object::kek_key(&chain(), id(4)), b"{".to_vec()).await;
    two.put_kek(4, &kek(State::Retired, None)).await;
    one.put("v1/orders/notes.txt".to_owned(), b"".to_vec()).await;
    let away = Fixture::new("away");
    away.archive.set_down(true);
    for order in [[&one, &two, &away], [&away, &two, &one]] {
        let store = memory::Store::new();
        let report = run(&order.map(|it| it.named.clone()), &store).await;
        assert_eq!((report.keks, report.restored), (4, 4));
        let mut keys: Vec<_> = report.problems.iter().map(|problem| &*problem.key).collect();
        keys.sort_unstable();
        let damaged = format!("archive:one/v1/orders/{}.json", id(4));
        assert_eq!(keys, ["archive:away/v1/", &*damaged, "archive:one/v1/orders/notes.txt"]);
        assert_eq!(stored(&store, 2).await, Some(kek(State::Destroyed, Some(5))));
        for number in [1, 3, 4] {
            assert_eq!(stored(&store, number).await, Some(kek(State::Retired, None)), "{number}");
        }
    }
}

#[tokio::test]
async fn what_the_store_has_stays_except_for_a_tombstone() {
    let one = Fixture::new("one");
    one.put_chain().await;
    for number in 1..=4 {
        one.put_kek(number, &kek(State::Destroyed, Some(5))).await;
    }
    one.put_kek(5, &kek(State::Retired, None)).await;
    let store = memory::Store::new();
    let states =
        [State::Primary, State::Retired, State::Disabled, State::Destroyed, State::Disabled];
    for (number, state) in (1..).zip(states) {
        let key = record::kek_key(&chain(), id(number));
        let txn = Txn::default().create(key, kek(state, None).encode().unwrap());
        assert!(matches!(store.commit(txn).await.unwrap(), Committed::Applied(_)));
    }
    let report = run(std::slice::from_ref(&one.named), &store).await;
    assert_eq!((report.restored, report.same, report.destroyed), (0, 2, 2));
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert!(report.problems[0].detail.contains("here it encrypts"));
    let mut after = Vec::new();
    for number in 1..=5 {
        after.push(stored(&store, number).await.unwrap().state);
    }
    let destroyed = State::Destroyed;
    assert_eq!(after, [State::Primary, destroyed, destroyed, destroyed, State::Disabled]);
}

/// A store whose commit of one number fails. Pages are written at the same time, so the number is
/// counted here.
struct Failing {
    inner: memory::Store,
    left: AtomicUsize,
    fault: memory::Fault,
}

#[async_trait]
impl Store for Failing {
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
        if self.left.fetch_sub(1, Relaxed) == 0 {
            self.inner.fail_next([self.fault]);
        }
        self.inner.commit(txn).await
    }

    fn kind(&self) -> &'static str {
        "failing"
    }
}

#[tokio::test]
async fn a_recovery_that_is_interrupted_anywhere_continues() {
    let one = Fixture::new("one");
    one.put_chain().await;
    for number in 0..200 {
        one.put_kek(number, &kek(State::Retired, None)).await;
    }
    let archives = [one.named.clone()];
    let whole = memory::Store::new();
    run(&archives, &whole).await;
    let contents = async |store: &memory::Store| {
        let entries = store.list("", None, 1000).await.unwrap();
        entries.into_iter().map(|entry| (entry.key, entry.value)).collect::<Vec<_>>()
    };
    // Seven pages, of which four are written at the same time, and the head.
    for commits in 0..8 {
        for fault in [memory::Fault::AnswerLost, memory::Fault::RequestLost] {
            let (inner, left) = (memory::Store::new(), AtomicUsize::new(commits));
            let store = Failing { inner, left, fault };
            assert!(recover(&archives, &store, |_| {}).await.is_err(), "{commits}");
            run(&archives, &store.inner).await;
            assert_eq!(contents(&store.inner).await, contents(&whole).await, "{commits} {fault:?}");
        }
    }
}

#[tokio::test]
async fn without_its_settings_a_chain_gets_the_default_limits() {
    let one = Fixture::new("one");
    one.put_kek(1, &kek(State::Retired, None)).await;
    let store = memory::Store::new();
    let report = run(std::slice::from_ref(&one.named), &store).await;
    assert_eq!((report.restored, report.problems.len()), (1, 1));
    let head = records::head(&store, &chain()).await.unwrap();
    assert_eq!((head.suite, head.limits), (Suite::Aes256Gcm, Limits::default()));
}
