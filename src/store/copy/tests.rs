//! Copies between stores in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use proptest::prelude::*;

use super::*;
use crate::store::memory::{self, Fault};
use crate::store::record::{self, Head, Part, Record as _, Uses, parse_key};
use crate::store::{Committed, Entry, Txn};

mod history;

use history::{History, Step, put, read, step};

type Entries = BTreeMap<String, Vec<u8>>;

fn chain(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

async fn entries(store: &memory::Store) -> Entries {
    let all = store.list("", None, 100_000).await.unwrap();
    all.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

async fn copied(from: &dyn Store, to: &dyn Store, primaries: Primaries) -> CopyReport {
    copy(from, to, &[], primaries, |_| {}).await.unwrap()
}

async fn good(from: &dyn Store, to: &dyn Store, primaries: Primaries) -> CopyReport {
    let report = copied(from, to, primaries).await;
    assert_eq!(report.problems, []);
    report
}

/// What the copy of `store` has to be.
async fn expected(store: &memory::Store, primaries: Primaries) -> Entries {
    let mut all = entries(store).await;
    for (key, value) in &mut all {
        match parse_key(key).unwrap().1 {
            Part::Head => {
                let head = Head::decode(key, value).unwrap();
                *value = merge::copied_head(&head, primaries).encode().unwrap();
            }
            Part::Kek(_) => {
                let kek = Kek::decode(key, value).unwrap();
                *value = merge::copied_kek(&kek, primaries).encode().unwrap();
            }
            Part::Uses(_) | Part::Claim => {}
        }
    }
    all
}

/// That every head names KEKs that are there, with their uses, in the states that they must have.
async fn assert_fits(store: &memory::Store) {
    for (key, value) in entries(store).await {
        let (chain, Part::Head) = parse_key(&key).unwrap() else { continue };
        let head = Head::decode(&key, &value).unwrap();
        for (id, state) in [(head.primary, State::Primary), (head.standby, State::Standby)] {
            let Some(id) = id else { continue };
            let kek: Kek = read(store, &record::kek_key(&chain, id)).await.unwrap();
            assert_eq!(kek.state, state, "{key}");
            assert!(read::<Uses>(store, &record::uses_key(&chain, id)).await.is_some());
        }
    }
}

/// A call of a store.
#[derive(Clone, Copy, PartialEq)]
enum Call {
    List,
    Commit,
}

type Hook = Box<dyn FnMut(Call) -> Result<(), Error> + Send>;

/// A store where something happens before a call.
struct Hooked {
    store: Arc<memory::Store>,
    hook: Mutex<Hook>,
}

impl Hooked {
    fn new(
        store: &Arc<memory::Store>,
        hook: impl FnMut(Call) -> Result<(), Error> + Send + 'static,
    ) -> Self {
        Self { store: Arc::clone(store), hook: Mutex::new(Box::new(hook)) }
    }

    fn call(&self, call: Call) -> Result<(), Error> {
        (self.hook.lock().unwrap())(call)
    }
}

#[async_trait]
impl Store for Hooked {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.store.get(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        self.call(Call::List)?;
        self.store.list(prefix, after, limit).await
    }

    async fn count(&self, prefix: &str) -> Result<u64, Error> {
        self.store.count(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        self.call(Call::Commit)?;
        self.store.commit(txn).await
    }

    fn kind(&self) -> &'static str {
        "hooked"
    }
}

/// Runs what waits for nothing, as all of a store in memory does.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

fn unavailable() -> Error {
    Error::Unavailable { detail: "it died".to_owned(), maybe_applied: false }
}

fn primaries() -> impl Strategy<Value = Primaries> {
    prop_oneof![Just(Primaries::Retire), Just(Primaries::Keep)]
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..most)
}

/// Rotations enough for more than one page of KEKs.
fn many() -> Vec<Step> {
    [Step::Standby, Step::Promote, Step::Reserve(9)].repeat(70)
}

async fn two_chains(a: &[Step], b: &[Step]) -> History {
    let mut history = History::new(1);
    history.run(&chain("a"), a).await;
    history.run(&chain("b"), b).await;
    history
}

/// That `after` is `before` or a later state of it.
fn assert_not_backwards(before: &Entries, after: &Entries) {
    for (key, old) in before {
        let new = &after[key];
        match parse_key(key).unwrap().1 {
            Part::Head => {
                let (old, new) = (Head::decode(key, old).unwrap(), Head::decode(key, new).unwrap());
                assert!(old == new || old.generation < new.generation, "{key}");
            }
            Part::Uses(_) => {
                let (old, new) = (Uses::decode(key, old).unwrap(), Uses::decode(key, new).unwrap());
                assert!(old.reserved <= new.reserved, "{key}");
            }
            Part::Kek(_) => {
                let (old, new) = (Kek::decode(key, old).unwrap(), Kek::decode(key, new).unwrap());
                let order = [State::Standby, State::Primary, State::Retired, State::Destroyed];
                let rank = |kek: &Kek| order.iter().position(|&state| state == kek.state);
                // A KEK can be disabled and enabled again. The time shows which state is later.
                let rank = |kek: &Kek| (rank(kek).unwrap_or(2), kek.disabled_at);
                assert!(old.state == State::Destroyed || rank(&old) <= rank(&new), "{key}");
                assert!(old.state != State::Destroyed || new.state == State::Destroyed, "{key}");
                assert_eq!(old.created_at, new.created_at, "{key}");
                assert!(old.promoted_at.is_none() || old.promoted_at == new.promoted_at, "{key}");
            }
            Part::Claim => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_holds_what_the_source_does_and_a_second_one_writes_nothing(
        a in steps(120), b in steps(30), long in any::<bool>(), primaries in primaries(),
    ) {
        now(async {
            let history = two_chains(&a, &b).await;
            if long {
                let mut more = history.fork(1);
                more.run(&chain("a"), &many()).await;
                history.store.restore(more.store.snapshot());
            }
            let target = memory::Store::new();
            let report = good(&*history.store, &target, primaries).await;
            let expected = expected(&history.store, primaries).await;
            prop_assert_eq!(&entries(&target).await, &expected);
            prop_assert_eq!((report.chains, report.added), (2, expected.len() as u64));
            prop_assert_eq!((report.moved, report.same), (0, 0));
            assert_fits(&target).await;
            let revision = target.list("", None, 1_000).await.unwrap();
            let again = good(&*history.store, &target, primaries).await;
            prop_assert_eq!((again.added, again.moved, again.retired), (0, 0, 0));
            prop_assert_eq!(again.same, expected.len() as u64);
            prop_assert_eq!(target.list("", None, 1_000).await.unwrap(), revision);
            Ok(())
        })?;
    }

    #[test]
    fn a_crash_after_any_write_leaves_nothing_wrong_and_a_copy_again_makes_it_whole(
        early in steps(40), late in steps(60), primaries in primaries(), lost in any::<bool>(),
    ) {
        now(async {
            // A target that holds an earlier state, so that records are added and moved.
            let mut history = two_chains(&early, &many()).await;
            let old = memory::Store::new();
            good(&*history.store, &old, primaries).await;
            history.run(&chain("a"), &late).await;
            history.run(&chain("b"), &late).await;
            let expected = expected(&history.store, primaries).await;
            for writes in 0.. {
                let target = Arc::new(memory::Store::new());
                target.restore(old.snapshot());
                let (mut left, inner) = (writes, Arc::clone(&target));
                let dying = Hooked::new(&target, move |call| {
                    if call == Call::List {
                        return Ok(());
                    }
                    if left == 0 {
                        // A lost answer: it was written, and the copy does not know.
                        inner.fail_next(lost.then_some(Fault::AnswerLost));
                        return if lost { Ok(()) } else { Err(unavailable()) };
                    }
                    left -= 1;
                    Ok(())
                });
                let done = copy(&*history.store, &dying, &[], primaries, |_| {}).await;
                assert_fits(&target).await;
                assert_not_backwards(&entries(&old).await, &entries(&target).await);
                good(&*history.store, &*target, primaries).await;
                prop_assert_eq!(&entries(&target).await, &expected);
                if done.is_ok() {
                    break;
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_later_state_of_the_same_chain_moves_a_copy_forward(
        a in steps(80), b in steps(20), more in steps(80), primaries in primaries(),
    ) {
        now(async {
            let mut history = two_chains(&a, &b).await;
            let target = memory::Store::new();
            good(&*history.store, &target, primaries).await;
            let before = entries(&target).await;
            history.run(&chain("a"), &more).await;
            good(&*history.store, &target, primaries).await;
            prop_assert_eq!(entries(&target).await, expected(&history.store, primaries).await);
            assert_not_backwards(&before, &entries(&target).await);
            Ok(())
        })?;
    }

    #[test]
    fn a_copy_never_goes_backwards_and_a_refusal_writes_nothing_of_its_chain(
        a in steps(60), ours in steps(40), theirs in steps(40), primaries in primaries(),
    ) {
        now(async {
            let mut source = two_chains(&a, &[]).await;
            let mut target = source.fork(2);
            source.run(&chain("a"), &ours).await;
            target.run(&chain("a"), &theirs).await;
            target.run(&chain("only-there"), &a).await;
            let before = entries(&target.store).await;
            let report = copied(&*source.store, &*target.store, primaries).await;
            let after = entries(&target.store).await;
            assert_not_backwards(&before, &after);
            assert_fits(&target.store).await;
            let of_a = |all: &Entries| {
                all.iter().filter(|(key, _)| key.starts_with("chains/a/"))
                    .map(|(key, value)| (key.clone(), value.clone())).collect::<Entries>()
            };
            if report.problems.is_empty() {
                let expected = expected(&source.store, primaries).await;
                let (ours, theirs) = (of_a(&after), of_a(&expected));
                prop_assert_eq!(ours.len(), theirs.len());
                assert_not_backwards(&ours, &theirs);
                assert_not_backwards(&theirs, &ours);
            } else {
                prop_assert_eq!(of_a(&before), of_a(&after));
            }
            Ok(())
        })?;
    }
}

/// A chain with a primary, a standby and `retired` older KEKs.
fn usual(retired: usize) -> Vec<Step> {
    let mut steps = [Step::Standby, Step::Promote, Step::Reserve(9)].repeat(retired + 1);
    steps.push(Step::Standby);
    steps
}

#[tokio::test]
async fn primary_and_standby_only_decrypt_in_a_copy_unless_they_are_kept() {
    let history = two_chains(&usual(2), &[]).await;
    let head = history.head(&chain("a")).await.unwrap();
    let (retired, kept) = (memory::Store::new(), memory::Store::new());
    let report = good(&*history.store, &retired, Primaries::Retire).await;
    assert_eq!((report.chains, report.retired), (2, 2));
    let copy: Head = read(&retired, "chains/a/head").await.unwrap();
    assert_eq!((copy.primary, copy.standby), (None, None));
    for id in [head.primary, head.standby].into_iter().flatten() {
        let kek: Kek = read(&retired, &record::kek_key(&chain("a"), id)).await.unwrap();
        assert_eq!(kek.state, State::Retired);
    }
    let report = good(&*history.store, &kept, Primaries::Keep).await;
    assert_eq!((report.chains, report.retired), (2, 0));
    assert_eq!(entries(&kept).await, entries(&history.store).await);
}

#[tokio::test]
async fn a_kept_primary_does_not_replace_a_retired_one() {
    let history = two_chains(&usual(0), &[]).await;
    let target = memory::Store::new();
    good(&*history.store, &target, Primaries::Retire).await;
    let before = entries(&target).await;
    let report = copied(&*history.store, &target, Primaries::Keep).await;
    assert!(report.problems[0].detail.contains("newer"), "{:?}", report.problems);
    assert_eq!(entries(&target).await, before);
}

#[tokio::test]
async fn a_chain_of_the_same_name_is_not_overwritten() {
    let source = two_chains(&usual(1), &usual(1)).await;
    let mut target = History::new(2);
    target.run(&chain("a"), &[]).await;
    target.run(&chain("b"), &[Step::Standby]).await;
    let report = copied(&*source.store, &*target.store, Primaries::Retire).await;
    assert_eq!(report.chains, 1, "an empty chain is an earlier state of any");
    let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert!(problem.key.starts_with("chains/b/keks/"), "{problem}");
    assert!(problem.detail.contains("another chain with the same name"), "{problem}");
}

#[tokio::test]
async fn a_tombstone_stays() {
    let mut history = two_chains(&usual(3), &[]).await;
    let target = memory::Store::new();
    good(&*history.store, &target, Primaries::Retire).await;
    let steps = [Step::Disable(0), Step::Destroy(0)];
    let mut theirs = history.fork(1);
    theirs.store.restore(target.snapshot());
    theirs.run(&chain("a"), &steps).await;
    let report = copied(&*history.store, &*theirs.store, Primaries::Retire).await;
    assert!(report.problems[0].detail.contains("tombstone"), "{:?}", report.problems);
    // The other way it is news.
    history.run(&chain("a"), &steps).await;
    assert_eq!(good(&*history.store, &target, Primaries::Retire).await.moved, 1);
}

#[tokio::test]
async fn damage_is_named_and_what_encrypts_is_needed() {
    let history = two_chains(&usual(2), &usual(0)).await;
    let head = history.head(&chain("a")).await.unwrap();
    let primary = record::kek_key(&chain("a"), head.primary.unwrap());
    let keks = history.store.list("chains/a/keks/", None, 10).await.unwrap();
    let encrypting =
        [head.primary, head.standby].map(|id| record::kek_key(&chain("a"), id.unwrap()));
    let older = keks.iter().find(|kek| !encrypting.contains(&kek.key)).unwrap().key.clone();
    for (key, without_primary) in [(&older, false), (&primary, true)] {
        let source = history.fork(1).store;
        put(&source, key.clone(), b"{".to_vec()).await;
        for (primaries, whole) in [(Primaries::Retire, true), (Primaries::Keep, !without_primary)] {
            let target = memory::Store::new();
            let report = copied(&*source, &target, primaries).await;
            let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
            assert!(problem.key == *key && problem.detail.contains("damaged"), "{problem}");
            let there = target.get("chains/a/head").await.unwrap().is_some();
            assert_eq!(
                (report.chains, there),
                (1 + u64::from(whole), whole),
                "{key} {primaries:?}"
            );
            assert_eq!(target.get(key).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn missing_records_strays_and_unknown_chains_are_named() {
    let history = two_chains(&usual(1), &usual(0)).await;
    let head = history.head(&chain("a")).await.unwrap();
    let uses = record::uses_key(&chain("a"), head.primary.unwrap());
    let txn = Txn { deletes: vec![uses.clone(), "chains/b/head".to_owned()], ..Txn::default() };
    let _ = history.store.commit(txn).await.unwrap();
    for stray in ["chains/A/head", "chains/a/keks/12"] {
        put(&history.store, stray.to_owned(), Vec::new()).await;
    }
    let report = copied(&*history.store, &memory::Store::new(), Primaries::Retire).await;
    let mut keys: Vec<_> = report.problems.iter().map(|problem| &*problem.key).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["chains/A/head", "chains/a/keks/12", &uses, "chains/b/head"]);
    assert_eq!(report.chains, 1);

    let only = [chain("b"), chain("c")];
    let target = memory::Store::new();
    let source = two_chains(&usual(0), &usual(0)).await.store;
    let report = copy(&*source, &target, &only, Primaries::Retire, |_| {}).await.unwrap();
    assert_eq!((report.chains, &*report.problems[0].key), (1, "chains/c/head"));
    assert!(entries(&target).await.keys().all(|key| key.starts_with("chains/b/")));
}

#[tokio::test]
async fn a_store_is_not_copied_onto_itself() {
    let history = two_chains(&usual(0), &[]).await;
    let before = entries(&history.store).await;
    let report = copied(&*history.store, &*history.store, Primaries::Retire).await;
    assert!(report.problems[0].detail.contains("the same store"), "{:?}", report.problems);
    assert_eq!(entries(&history.store).await, before);
}

#[tokio::test]
async fn a_service_at_the_target_is_never_overwritten() {
    let mut history = two_chains(&usual(40), &[]).await;
    let target = History::new(1);
    good(&*history.store, &*target.store, Primaries::Keep).await;
    history.run(&chain("a"), &[Step::Promote, Step::Reserve(9), Step::Reserve(9)]).await;
    // The service there reserves more, right before the head is written.
    let primary = target.head(&chain("a")).await.unwrap().primary.unwrap();
    let uses = record::uses_key(&chain("a"), primary);
    let (store, key) = (Arc::clone(&target.store), uses.clone());
    let theirs = Uses { reserved: 1 << 20, owner: 9, sequence: 9 };
    let live = Hooked::new(&target.store, move |call| {
        if call == Call::Commit {
            now(put(&store, key.clone(), theirs.encode().unwrap()));
        }
        Ok(())
    });
    let report = copied(&*history.store, &live, Primaries::Keep).await;
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert!(report.problems[0].detail.contains("1048576 uses"), "{:?}", report.problems);
    assert_eq!(read::<Uses>(&target.store, &uses).await, Some(theirs));
    assert_eq!(target.head(&chain("a")).await.unwrap().primary, Some(primary));
}

#[tokio::test]
async fn a_source_that_rotates_meanwhile_is_copied_as_it_is_afterwards() {
    let history = two_chains(&usual(80), &[]).await;
    let mut later = history.fork(1);
    later.run(&chain("a"), &[Step::Promote, Step::Standby, Step::Reserve(3)]).await;
    let (store, snapshot) = (Arc::clone(&history.store), later.store.snapshot());
    let mut lists = 0;
    let live = Hooked::new(&history.store, move |call| {
        lists += u32::from(call == Call::List);
        // In the midst of the second pass over the KEKs.
        if lists == 9 {
            store.restore(snapshot.clone());
        }
        Ok(())
    });
    let target = memory::Store::new();
    good(&live, &target, Primaries::Keep).await;
    assert_eq!(entries(&target).await, entries(&later.store).await);
    assert_fits(&target).await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_an_error() {
    let history = two_chains(&usual(0), &[]).await;
    history.store.set_down(true);
    let error = copy(&*history.store, &memory::Store::new(), &[], Primaries::Retire, |_| {}).await;
    assert!(matches!(error, Err(Error::Unavailable { .. })));
}
