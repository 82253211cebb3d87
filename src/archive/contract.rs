//! The contract of archives: one battery of tests, to be run on each kind.
//!
//! Every test uses its own prefix, so that they can share an archive.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Archive, Condition, Object, Version, Written, memory};

/// The whole battery on an empty archive.
pub(crate) async fn all(archive: Arc<dyn Archive>) {
    sequential(&*archive).await;
    one_of_many_creates(&archive).await;
    concurrent_increments_lose_nothing(&archive).await;
}

/// The part of the battery that makes one call at a time, for a test server that checks a condition
/// and writes in two steps.
pub(crate) async fn sequential(archive: &dyn Archive) {
    objects_read_back(archive).await;
    conditions_decide(archive).await;
    contents_are_kept_exactly(archive).await;
    lists_are_ordered_and_bounded(archive).await;
}

/// Writes an object; the condition must hold.
pub(crate) async fn applied(
    archive: &dyn Archive,
    key: &str,
    bytes: &[u8],
    condition: Condition,
) -> Version {
    match archive.put(key, bytes.to_vec(), condition.clone()).await.unwrap() {
        Written::Applied(version) => version,
        Written::Conflict => panic!("{key}: {condition:?} must hold"),
    }
}

async fn conflicts(archive: &dyn Archive, key: &str, condition: Condition) {
    let before = archive.get(key).await.unwrap();
    let written = archive.put(key, b"refused".to_vec(), condition.clone()).await;
    assert_eq!(written, Ok(Written::Conflict), "{key}: {condition:?}");
    assert_eq!(archive.get(key).await.unwrap(), before, "{key}");
}

async fn objects_read_back(archive: &dyn Archive) {
    let key = "read/a/b.json";
    assert_eq!(archive.get(key).await, Ok(None));
    let version = applied(archive, key, b"1", Condition::Absent).await;
    let object = Object { bytes: b"1".to_vec(), version };
    assert_eq!(archive.get(key).await, Ok(Some(object)));
    assert_eq!(archive.list("read/", None, 10).await.unwrap(), [key]);
    for other in ["read/a/b", "read/a/b.jso", "read/a/b.json2", "read/a/c", "read/b/b.json"] {
        assert_eq!(archive.get(other).await, Ok(None), "{other}");
    }
}

async fn conditions_decide(archive: &dyn Archive) {
    let key = "cas/a";
    let unchanged = |version: &Version| Condition::Unchanged(version.clone());
    let first = applied(archive, key, b"1", Condition::Absent).await;
    conflicts(archive, key, Condition::Absent).await;
    let second = applied(archive, key, b"22", unchanged(&first)).await;
    assert_ne!(first, second);
    conflicts(archive, key, unchanged(&first)).await;
    let third = applied(archive, key, b"333", unchanged(&second)).await;
    for old in [&first, &second] {
        conflicts(archive, key, unchanged(old)).await;
    }
    assert_eq!(archive.get(key).await.unwrap().unwrap().version, third);
    // A missing object is not unchanged.
    conflicts(archive, "cas/b", unchanged(&third)).await;
    assert_eq!(archive.list("cas/", None, 10).await.unwrap(), [key]);
}

async fn contents_are_kept_exactly(archive: &dyn Archive) {
    let bytes: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
    for (key, contents) in
        [("contents/empty", &[][..]), ("contents/zero", &[0]), ("contents/large", &bytes)]
    {
        let version = applied(archive, key, contents, Condition::Absent).await;
        assert_eq!(archive.get(key).await.unwrap().unwrap().bytes, contents, "{key}");
        // The new object can be shorter.
        applied(archive, key, b"short", Condition::Unchanged(version)).await;
        assert_eq!(archive.get(key).await.unwrap().unwrap().bytes, b"short", "{key}");
    }
}

async fn lists_are_ordered_and_bounded(archive: &dyn Archive) {
    // In the order of bytes: - . / 0 _ a. A name that is part of another one is a trap for kinds
    // that list by directories.
    let all = [
        "list/a-b/x",
        "list/a.b/chain.json",
        "list/a.b/x",
        "list/a/0.json",
        "list/a/chain.json",
        "list/a0/x",
        "list/a_b/x",
        "list/b",
    ];
    for key in ["list0", "lisu/a", "lis/a"].iter().chain(all.iter().rev()) {
        applied(archive, key, key.as_bytes(), Condition::Absent).await;
    }
    let list = async |prefix: &str, after, limit| archive.list(prefix, after, limit).await.unwrap();
    assert_eq!(list("list/", None, 100).await, all);
    assert_eq!(list("list/", None, 3).await, all[..3]);
    assert_eq!(list("list/", None, 0).await, [""; 0]);
    assert_eq!(list("list/none/", None, 9).await, [""; 0]);
    assert_eq!(list("list/a/", None, 9).await, all[3..5]);
    // After a key, after a missing one, before the first and after the last.
    assert_eq!(list("list/", Some("list/a/0.json"), 2).await, all[4..6]);
    assert_eq!(list("list/", Some("list/a/1"), 1).await, all[4..5]);
    assert_eq!(list("list/", Some("a"), 1).await, all[..1]);
    assert_eq!(list("list/", Some("list/"), 1).await, all[..1]);
    assert_eq!(list("list/a/", Some("list/a-b/x"), 1).await, all[3..4]);
    assert_eq!(list("list/", Some("list/b"), 9).await, [""; 0]);
    assert_eq!(list("list/", Some("z"), 9).await, [""; 0]);
    // Page by page.
    let (mut paged, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = archive.list("list/", after.as_deref(), 3).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        paged.extend(page);
    }
    assert_eq!(paged, all);
    // The empty prefix lists everything.
    let keys = list("", None, 1000).await;
    assert!(
        keys.is_sorted() && ["list0", "lisu/a"].iter().all(|key| keys.contains(&(*key).into()))
    );
}

async fn one_of_many_creates(archive: &Arc<dyn Archive>) {
    for key in ["create/0", "create/1", "create/2"] {
        let tries: Vec<_> = (0..8u8)
            .map(|task| {
                let archive = Arc::clone(archive);
                tokio::spawn(async move {
                    archive.put(key, vec![task; 1000], Condition::Absent).await.unwrap()
                })
            })
            .collect();
        let mut creators = Vec::new();
        for (task, attempt) in tries.into_iter().enumerate() {
            if let Written::Applied(version) = attempt.await.unwrap() {
                creators.push((vec![u8::try_from(task).unwrap(); 1000], version));
            }
        }
        let object = archive.get(key).await.unwrap().unwrap();
        assert_eq!(creators, [(object.bytes, object.version)], "{key}");
    }
}

async fn concurrent_increments_lose_nothing(archive: &Arc<dyn Archive>) {
    const TASKS: u64 = 4;
    const EACH: u64 = 10;
    let increment = |archive: Arc<dyn Archive>| async move {
        for _ in 0..EACH {
            loop {
                let (condition, count) = match archive.get("counter").await.unwrap() {
                    None => (Condition::Absent, 0),
                    Some(object) => {
                        let count: u64 = String::from_utf8(object.bytes).unwrap().parse().unwrap();
                        (Condition::Unchanged(object.version), count)
                    }
                };
                let bytes = (count + 1).to_string().into_bytes();
                let written = archive.put("counter", bytes, condition).await.unwrap();
                if matches!(written, Written::Applied(_)) {
                    break;
                }
            }
        }
    };
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(increment(Arc::clone(archive)))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    let count = archive.get("counter").await.unwrap().unwrap().bytes;
    assert_eq!(String::from_utf8(count).unwrap(), (TASKS * EACH).to_string());
}

/// A step of a random history: one write. Keys are few, so that steps meet.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    key: u8,
    bytes: Vec<u8>,
    expectation: Expectation,
}

#[derive(Clone, Copy, Debug)]
enum Expectation {
    Absent,
    /// The version that is there now.
    Current,
    /// The version of this earlier step.
    Of(prop::sample::Index),
}

/// Random histories. Each step writes other bytes, since equal bytes may have the same version.
pub(crate) fn history() -> impl Strategy<Value = Vec<Step>> {
    let expectation = prop_oneof![
        Just(Expectation::Absent),
        Just(Expectation::Current),
        any::<prop::sample::Index>().prop_map(Expectation::Of),
    ];
    let step = (0..4u8, prop::collection::vec(any::<u8>(), 0..4), expectation);
    prop::collection::vec(step, 1..20).prop_map(|steps| {
        let number = |(index, (key, mut bytes, expectation)): (usize, (u8, Vec<u8>, _))| {
            bytes.extend(index.to_be_bytes());
            Step { key, bytes, expectation }
        };
        steps.into_iter().enumerate().map(number).collect()
    })
}

/// Plays a history below `prefix` on a new archive in memory and on `archive`: both must give the
/// same results and hold the same objects after each step.
pub(crate) async fn agrees_with_memory(archive: &dyn Archive, prefix: &str, history: &[Step]) {
    let reference = memory::Archive::new();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for step in history {
        let expected = play(&reference, prefix, step, &mut left).await;
        assert_eq!(play(archive, prefix, step, &mut right).await, expected, "{step:?}");
        let keys = archive.list(prefix, None, 100).await.unwrap();
        assert_eq!(keys, reference.list(prefix, None, 100).await.unwrap(), "after {step:?}");
        for key in keys {
            let bytes = archive.get(&key).await.unwrap().unwrap().bytes;
            assert_eq!(Some(bytes), reference.peek(&key), "{key} after {step:?}");
        }
    }
}

/// Plays a step, and reports whether it was applied.
async fn play(
    archive: &dyn Archive,
    prefix: &str,
    step: &Step,
    versions: &mut Vec<Version>,
) -> bool {
    let key = format!("{prefix}{}", step.key);
    let condition = match step.expectation {
        Expectation::Absent => Condition::Absent,
        Expectation::Of(step) if !versions.is_empty() => {
            Condition::Unchanged(step.get(versions).clone())
        }
        _ => match archive.get(&key).await.unwrap() {
            Some(object) => Condition::Unchanged(object.version),
            None => Condition::Absent,
        },
    };
    match archive.put(&key, step.bytes.clone(), condition).await.unwrap() {
        Written::Applied(version) => {
            versions.push(version);
            true
        }
        Written::Conflict => false,
    }
}
