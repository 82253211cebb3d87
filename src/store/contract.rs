//! The contract of stores: one battery of tests, to be run on each kind.
//!
//! Every test uses its own prefix, so that they can share a store.

use std::sync::Arc;

use proptest::prelude::*;

use super::memory;
use super::*;

/// The whole battery on an empty store.
pub(crate) async fn all(store: Arc<dyn Store>) {
    entries_read_back(&*store).await;
    lists_are_ordered_and_bounded(&*store).await;
    several_are_read_in_order(&*store).await;
    a_watch_reports_what_others_write(&*store).await;
    compares_decide(&*store).await;
    a_conflict_leaves_nothing(&*store).await;
    a_txn_writes_all_or_nothing(&*store).await;
    deletes_make_absent(&*store).await;
    revisions_grow_and_are_unique(&*store).await;
    values_are_kept_exactly(&*store).await;
    concurrent_increments_lose_nothing(store).await;
}

/// A txn that puts `key` without a condition.
pub(crate) fn put(key: &str, value: &[u8]) -> Txn {
    Txn { puts: vec![(key.to_owned(), value.to_vec())], ..Txn::default() }
}

fn delete(key: &str) -> Txn {
    Txn { deletes: vec![key.to_owned()], ..Txn::default() }
}

fn given(compares: impl IntoIterator<Item = Compare>, txn: Txn) -> Txn {
    Txn { compares: compares.into_iter().collect(), ..txn }
}

/// Commits a txn that must be applied.
pub(crate) async fn applied(store: &dyn Store, txn: Txn) -> Revision {
    match store.commit(txn).await.unwrap() {
        Committed::Applied(revision) => revision,
        Committed::Conflict => panic!("it must be applied"),
    }
}

async fn conflicts(store: &dyn Store, txn: Txn) {
    assert_eq!(store.commit(txn.clone()).await, Ok(Committed::Conflict), "{txn:?}");
}

/// The value at `key`, as text.
pub(crate) async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let entry = store.get(key).await.unwrap()?;
    assert_eq!(entry.key, key);
    Some(String::from_utf8(entry.value).unwrap())
}

async fn keys(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let entries = store.list(prefix, after, limit).await.unwrap();
    entries.into_iter().map(|entry| entry.key).collect()
}

async fn entries_read_back(store: &dyn Store) {
    assert_eq!(store.get("read/a").await, Ok(None));
    let revision = applied(store, put("read/a", b"1")).await;
    let entry = Entry { key: "read/a".into(), value: b"1".to_vec(), revision };
    assert_eq!(store.get("read/a").await, Ok(Some(entry.clone())));
    assert_eq!(store.list("read/", None, 10).await, Ok(vec![entry]));
    for other in ["read/", "read/aa", "read/A", "ead/a"] {
        assert_eq!(store.get(other).await, Ok(None), "{other}");
    }
}

async fn lists_are_ordered_and_bounded(store: &dyn Store) {
    // In the order of bytes: - . / 0 9 : _ a
    let all = ["list/-", "list/.x", "list//", "list/0", "list/9", "list/:", "list/_", "list/a"];
    for key in ["list", "list0", "lisu", "lis"].iter().chain(all.iter().rev()) {
        applied(store, put(key, key.as_bytes())).await;
    }
    assert_eq!(keys(store, "list/", None, 100).await, all);
    assert_eq!(keys(store, "list/", None, 3).await, all[..3]);
    assert_eq!(keys(store, "list/", None, 0).await, [""; 0]);
    assert_eq!(keys(store, "list/none", None, 9).await, [""; 0]);
    // After an entry, after a missing key, before the first and after the last.
    assert_eq!(keys(store, "list/", Some("list/0"), 2).await, ["list/9", "list/:"]);
    assert_eq!(keys(store, "list/", Some("list/00"), 1).await, ["list/9"]);
    assert_eq!(keys(store, "list/", Some("a"), 1).await, ["list/-"]);
    assert_eq!(keys(store, "list/", Some("list/"), 1).await, ["list/-"]);
    assert_eq!(keys(store, "list/", Some("list/a"), 9).await, [""; 0]);
    assert_eq!(keys(store, "list/", Some("z"), 9).await, [""; 0]);
    // Page by page.
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let page = keys(store, "list/", after.as_deref(), 3).await;
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        paged.extend(page);
    }
    assert_eq!(paged, all);
}

async fn several_are_read_in_order(store: &dyn Store) {
    let first = applied(store, put("several/a", b"1")).await;
    let second = applied(store, put("several/b", b"2")).await;
    let keys = ["several/b", "several/none", "several/a", "several/b"].map(str::to_owned);
    let read: Vec<_> = store.get_all(&keys).await.unwrap();
    let read: Vec<_> = read.iter().map(|e| e.as_ref().map(|e| (&*e.key, e.revision))).collect();
    let (a, b) = (Some(("several/a", first)), Some(("several/b", second)));
    assert_eq!(read, [b, None, a, b]);
    assert_eq!(store.get_all(&[]).await, Ok(Vec::new()));
    let many: Vec<_> = (0..300).map(|i| format!("several/many/{i:03}")).collect();
    for key in &many {
        applied(store, put(key, key.as_bytes())).await;
    }
    let read = store.get_all(&many).await.unwrap();
    assert!(read.iter().zip(&many).all(|(e, key)| e.as_ref().unwrap().value == key.as_bytes()));
    assert_eq!(store.count("several/many/").await, Ok(300));
    assert_eq!(store.count("several/many/29").await, Ok(10));
    assert_eq!(store.count("several/none").await, Ok(0));
}

async fn a_watch_reports_what_others_write(store: &dyn Store) {
    let Some(mut watch) = store.watch() else { return };
    // A watch may begin late. From then on, its reports must be correct.
    let (wait, mut last) = (std::time::Duration::from_millis(200), None);
    let mut begun = false;
    for _ in 0..300 {
        let revision = applied(store, put("watch/a", b"1")).await;
        while let Ok(news) = tokio::time::timeout(wait, watch.next()).await {
            let News::Changed(changes) = news else { continue };
            for (key, at) in changes.into_iter().filter(|(key, _)| key == "watch/a") {
                assert!(at <= revision && Some(at) > last, "{key} {at:?} after {last:?}");
                last = Some(at);
            }
            begun = last == Some(revision);
            if begun {
                break;
            }
        }
        if begun {
            break;
        }
    }
    assert!(begun, "the watch reported nothing");
    let deleted = applied(store, delete("watch/a")).await;
    let told = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        loop {
            match watch.next().await {
                News::Changed(changes) if changes.contains(&("watch/a".into(), deleted)) => return,
                News::Changed(_) | News::Missed => {}
                News::Restored => panic!("nothing was restored"),
            }
        }
    });
    told.await.expect("a deletion is reported");
}

async fn compares_decide(store: &dyn Store) {
    let absent = Compare::Absent("cas/a".to_owned());
    let first = applied(store, given([absent.clone()], put("cas/a", b"1"))).await;
    conflicts(store, given([absent.clone()], put("cas/a", b"2"))).await;

    let unchanged = |revision| Compare::Unchanged("cas/a".to_owned(), revision);
    let second = applied(store, given([unchanged(first)], put("cas/a", b"2"))).await;
    conflicts(store, given([unchanged(first)], put("cas/a", b"3"))).await;
    conflicts(store, given([unchanged(Revision(0))], put("cas/a", b"3"))).await;
    conflicts(store, given([unchanged(Revision(second.0 + 1))], put("cas/a", b"3"))).await;
    // The same value written again is a change.
    let third = applied(store, put("cas/a", b"2")).await;
    conflicts(store, given([unchanged(second)], put("cas/a", b"3"))).await;
    // A missing entry is not unchanged.
    let missing = Compare::Unchanged("cas/b".to_owned(), third);
    conflicts(store, given([missing], put("cas/a", b"3"))).await;
    let never = Compare::Unchanged("cas/b".to_owned(), Revision(0));
    conflicts(store, given([never], put("cas/a", b"3"))).await;
    // All must hold. They may concern keys that are not written.
    let other = Compare::Absent("cas/b".to_owned());
    conflicts(store, given([unchanged(third), absent], put("cas/c", b""))).await;
    applied(store, given([other, unchanged(third)], put("cas/c", b""))).await;
}

async fn a_conflict_leaves_nothing(store: &dyn Store) {
    applied(store, put("conflict/a", b"1")).await;
    let txn = Txn {
        compares: vec![Compare::Absent("conflict/a".into())],
        puts: vec![("conflict/a".into(), b"2".to_vec()), ("conflict/b".into(), b"2".to_vec())],
        deletes: vec!["conflict/a".into()],
    };
    let before = store.list("conflict/", None, 10).await.unwrap();
    conflicts(store, txn).await;
    assert_eq!(store.list("conflict/", None, 10).await.unwrap(), before);
}

async fn a_txn_writes_all_or_nothing(store: &dyn Store) {
    applied(store, put("multi/old", b"1")).await;
    let txn = Txn {
        compares: Vec::new(),
        puts: vec![("multi/a".into(), b"1".to_vec()), ("multi/b".into(), b"2".to_vec())],
        deletes: vec!["multi/old".into(), "multi/never".into()],
    };
    let revision = applied(store, txn).await;
    let entries = store.list("multi/", None, 10).await.unwrap();
    let seen: Vec<_> = entries.iter().map(|e| (&*e.key, &*e.value, e.revision)).collect();
    assert_eq!(seen, [("multi/a", &b"1"[..], revision), ("multi/b", b"2", revision)]);
}

async fn deletes_make_absent(store: &dyn Store) {
    let first = applied(store, put("delete/a", b"1")).await;
    applied(store, delete("delete/a")).await;
    assert_eq!(store.get("delete/a").await, Ok(None));
    assert_eq!(keys(store, "delete/", None, 10).await, [""; 0]);
    let absent = Compare::Absent("delete/a".to_owned());
    applied(store, given([absent], put("delete/a", b"1"))).await;
    // It is another entry now, even with the same value.
    let old = Compare::Unchanged("delete/a".to_owned(), first);
    conflicts(store, given([old], put("delete/a", b"2"))).await;
}

async fn revisions_grow_and_are_unique(store: &dyn Store) {
    let mut last = Revision(0);
    for i in 0..20 {
        let key = format!("revision/{}", i % 3);
        let revision = match i % 4 {
            3 => applied(store, delete(&key)).await,
            _ => applied(store, put(&key, b"")).await,
        };
        assert!(revision > last, "{revision:?} after {last:?}");
        last = revision;
    }
}

async fn values_are_kept_exactly(store: &dyn Store) {
    let bytes: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
    for (key, value) in [("value/empty", &[][..]), ("value/zero", &[0]), ("value/large", &bytes)] {
        applied(store, put(key, value)).await;
        assert_eq!(store.get(key).await.unwrap().unwrap().value, value, "{key}");
    }
}

async fn concurrent_increments_lose_nothing(store: Arc<dyn Store>) {
    const TASKS: u64 = 8;
    const EACH: u64 = 25;
    let increment = |store: Arc<dyn Store>| async move {
        for _ in 0..EACH {
            loop {
                let key = "counter".to_owned();
                let (compare, count) = match store.get(&key).await.unwrap() {
                    None => (Compare::Absent(key.clone()), 0),
                    Some(entry) => {
                        let count = String::from_utf8(entry.value).unwrap().parse::<u64>().unwrap();
                        (Compare::Unchanged(key.clone(), entry.revision), count)
                    }
                };
                let txn = given([compare], put(&key, (count + 1).to_string().as_bytes()));
                if let Committed::Applied(_) = store.commit(txn).await.unwrap() {
                    break;
                }
            }
        }
    };
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(increment(Arc::clone(&store)))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(value(&*store, "counter").await, Some((TASKS * EACH).to_string()));
}

/// A step of a random history; keys are few, so that steps meet.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    compares: Vec<(u8, Expectation)>,
    puts: Vec<(u8, Vec<u8>)>,
    deletes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Expectation {
    Absent,
    /// The current revision, or an impossible one.
    Current,
    /// The revision of this earlier step.
    Of(prop::sample::Index),
}

/// Random histories.
pub(crate) fn history() -> impl Strategy<Value = Vec<Step>> {
    let expectation = prop_oneof![
        Just(Expectation::Absent),
        Just(Expectation::Current),
        any::<prop::sample::Index>().prop_map(Expectation::Of),
    ];
    let key = || 0..5u8;
    let step = (
        prop::collection::vec((key(), expectation), 0..3),
        prop::collection::vec((key(), prop::collection::vec(any::<u8>(), 0..4)), 0..3),
        prop::collection::vec(key(), 0..2),
    );
    let step = step.prop_map(|(compares, puts, deletes)| Step { compares, puts, deletes });
    prop::collection::vec(step, 1..25)
}

/// Plays a history on an empty memory store and on `store`, which must return the same results and
/// hold the same entries after each step. Each store has its own revisions.
pub(crate) async fn agrees_with_memory(store: &dyn Store, history: &[Step]) {
    let reference = memory::Store::new();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for step in history {
        let expected = play(&reference, step, &mut left).await;
        assert_eq!(play(store, step, &mut right).await, expected, "{step:?}");
        let (expected, entries) =
            (contents(&reference, &left).await, contents(store, &right).await);
        assert_eq!(entries, expected, "after {step:?}");
    }
}

/// Commits a step, records its revision, and returns whether it was applied. A step that changes
/// nothing need not have its own revision, so it is not recorded.
async fn play(store: &dyn Store, step: &Step, revisions: &mut Vec<Revision>) -> bool {
    let name = |key: &u8| format!("history/{key}");
    let mut txn = Txn {
        compares: Vec::new(),
        puts: step.puts.iter().map(|(key, value)| (name(key), value.clone())).collect(),
        deletes: step.deletes.iter().map(name).collect(),
    };
    for (key, expectation) in &step.compares {
        let key = name(key);
        let current = store.get(&key).await.unwrap().map(|entry| entry.revision);
        txn.compares.push(match expectation {
            Expectation::Absent => Compare::Absent(key),
            Expectation::Of(step) if !revisions.is_empty() => {
                Compare::Unchanged(key, *step.get(revisions))
            }
            _ => Compare::Unchanged(key, current.unwrap_or(Revision(u64::MAX >> 1))),
        });
    }
    let mut changes = !txn.puts.is_empty();
    for key in &txn.deletes {
        changes |= store.get(key).await.unwrap().is_some();
    }
    match store.commit(txn).await.unwrap() {
        Committed::Applied(revision) => {
            if changes {
                revisions.push(revision);
            }
            true
        }
        Committed::Conflict => false,
    }
}

/// All entries, with the number of the step that wrote each.
async fn contents(store: &dyn Store, revisions: &[Revision]) -> Vec<(String, Vec<u8>, usize)> {
    let entries = store.list("history/", None, 100).await.unwrap();
    let step = |revision| revisions.iter().position(|&r| r == revision).unwrap();
    entries.into_iter().map(|e| (e.key, e.value, step(e.revision))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_store_keeps_the_contract() {
    all(Arc::new(memory::Store::new())).await;
}
