//! The file store: the contract, crashes, damage, a disk that fails.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use proptest::prelude::*;
use redb::backends::FileBackend;
use redb::{DatabaseError, StorageBackend};
use tempfile::{TempDir, tempdir};

use super::open::FILE_NAME;
use super::*;
use crate::store::contract::{self, applied, put, value};
use crate::store::{Compare, Store as _};

/// Opens a store that this process has closed, if it was open. The child process of another test
/// has a copy of each descriptor, and so of the lock, until it executes its program.
async fn open(dir: &Path) -> Store {
    for _ in 0..6_000 {
        match Store::open(dir).await {
            Err(error) if error.contains("another process uses") => {}
            opened => return opened.unwrap(),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} stays locked", dir.display());
}

async fn refused(dir: &Path) -> String {
    Store::open(dir).await.err().expect("it must not open")
}

/// A closed store with the records `chains/0` to `chains/{count - 1}`, each with a long value.
async fn filled(count: u32) -> TempDir {
    let dir = tempdir().unwrap();
    let store = open(dir.path()).await;
    for i in 0..count {
        applied(&store, put(&format!("chains/{i}"), &contents(i))).await;
    }
    dir
}

fn contents(i: u32) -> Vec<u8> {
    format!("the value of record {i} ").repeat(10).into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_and_what_was_committed() {
    let dir = tempdir().unwrap();
    let store = Arc::new(open(dir.path()).await);
    contract::all(Arc::clone(&store) as _).await;
    let before = store.list("", None, 1000).await.unwrap();
    let last = applied(&*store, put("last", b"")).await;
    drop(store);
    let store = open(dir.path()).await;
    let after = store.list("", None, 1000).await.unwrap();
    assert_eq!(after.iter().filter(|entry| entry.key != "last").collect::<Vec<_>>(), {
        before.iter().collect::<Vec<_>>()
    });
    assert_eq!(applied(&store, put("next", b"")).await, Revision(last.0 + 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn it_agrees_with_the_memory_store(history in contract::history()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let dir = tempdir().unwrap();
            let store = open(dir.path()).await;
            contract::agrees_with_memory(&store, &history).await;
        });
    }
}

#[tokio::test]
async fn the_files_that_it_creates_are_private() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a/data");
    let _store = open(&path).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for entry in std::fs::read_dir(&path).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[tokio::test]
async fn a_directory_that_others_can_write_to_is_refused_and_left_as_it_is() {
    let dir = tempdir().unwrap();
    let set = |mode| std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).unwrap();
    for (mode, repair) in [(0o777, "chmod go-w"), (0o1777, "use a dedicated directory")] {
        set(mode);
        let error = refused(dir.path()).await;
        assert!(error.contains(&format!("{mode:04o}")) && error.contains(repair), "{error}");
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(super::check(dir.path()).unwrap_err(), error);
    }
    set(0o770);
    let _store = open(dir.path()).await;
    assert_eq!(super::check(&dir.path().join("missing")), Ok(()));
}

#[tokio::test]
async fn a_file_that_is_not_regular_is_refused_without_waiting_for_it() {
    let dir = tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    crate::files::mkfifo(&path);
    let error = refused(dir.path()).await;
    assert!(error.contains("store.redb: it is a named pipe"), "{error}");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    let error = refused(dir.path()).await;
    assert!(error.contains("it is a device"), "{error}");
}

#[tokio::test]
async fn a_second_process_is_refused_until_the_first_has_closed() {
    let dir = tempdir().unwrap();
    let store = open(dir.path()).await;
    let error = refused(dir.path()).await;
    assert!(error.contains("another process uses"), "{error}");
    assert!(error.contains(&dir.path().display().to_string()), "{error}");
    applied(&store, put("still", b"mine")).await;
    drop(store);
    assert_eq!(value(&open(dir.path()).await, "still").await.unwrap(), "mine");
}

#[tokio::test]
async fn a_file_of_a_process_that_was_killed_is_complete() {
    let dir = tempdir().unwrap();
    let store = open(dir.path()).await;
    for i in 0..20 {
        applied(&store, put(&format!("k{i}"), b"v")).await;
    }
    // What another process would find if this one were killed now.
    let killed = tempdir().unwrap();
    std::fs::copy(dir.path().join(FILE_NAME), killed.path().join(FILE_NAME)).unwrap();
    let found = open(killed.path()).await.list("", None, 100).await.unwrap();
    assert_eq!(found, store.list("", None, 100).await.unwrap());
}

#[tokio::test]
async fn a_damaged_record_is_reported_and_affects_no_other() {
    let dir = filled(50).await;
    let file = dir.path().join(FILE_NAME);
    let mut bytes = std::fs::read(&file).unwrap();
    let needle = contents(7);
    // Older pages may contain it too: damage all of them.
    let at: Vec<_> = (0..bytes.len()).filter(|&i| bytes[i..].starts_with(&needle)).collect();
    at.iter().for_each(|&i| bytes[i + 3] ^= 0x10);
    std::fs::write(&file, &bytes).unwrap();

    for _ in 0..2 {
        let store = open(dir.path()).await;
        match store.get("chains/7").await {
            Err(Error::Corrupt { key, .. }) => assert_eq!(key, "chains/7"),
            other => panic!("{other:?}"),
        }
        let txn = Txn {
            compares: vec![Compare::Unchanged("chains/7".into(), Revision(8))],
            ..put("chains/7", b"")
        };
        assert!(matches!(store.commit(txn).await, Err(Error::Corrupt { .. })));
        let listed = store.list("chains/", None, 100).await.unwrap();
        assert_eq!(listed.len(), 50);
        assert!(listed.iter().all(|e| e.value.is_empty() == (e.key == "chains/7")));
        assert_eq!(store.get("chains/8").await.unwrap().unwrap().value, contents(8));
    }
    // The damaged file is kept, once.
    let kept = dir.path().join("store.redb.damaged-1");
    assert_eq!(std::fs::read(kept).unwrap(), bytes);
    assert!(!dir.path().join("store.redb.damaged-2").exists());
    // A new value heals it.
    let store = open(dir.path()).await;
    let revision = applied(&store, put("chains/7", b"new")).await;
    assert_eq!(revision, Revision(51));
    assert_eq!(value(&store, "chains/7").await.unwrap(), "new");
}

/// After a clean end and after a crash, with any bit flipped: the store opens, and each record is
/// right or reported as damaged; or the store refuses to open. It never returns to an older state.
#[tokio::test]
async fn no_flipped_bit_goes_unnoticed() {
    let source = filled(40).await;
    let file = source.path().join(FILE_NAME);
    let closed = std::fs::read(&file).unwrap();
    let store = open(source.path()).await;
    applied(&store, put("chains/0", &contents(0))).await;
    let killed = std::fs::read(&file).unwrap();
    for (good, revision) in [(closed, 40), (killed, 41)] {
        let (mut opened, mut refusals) = (0, 0);
        for at in (0..good.len()).step_by(good.len() / 150) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            match opens_right(&bad, revision).await {
                Ok(()) => opened += 1,
                Err(error) => {
                    assert!(error.contains(FILE_NAME), "{error}");
                    refusals += 1;
                }
            }
        }
        assert!(opened > 0 && refusals > 0, "{opened} opened, {refusals} refused");
    }
}

/// Whether a file with records 0 to 39 opens. Then all must be right but one that is reported.
async fn opens_right(bytes: &[u8], revision: u64) -> Result<(), String> {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join(FILE_NAME), bytes).unwrap();
    let store = Store::open(dir.path()).await?;
    let mut damaged = 0;
    for i in 0..40 {
        let key = format!("chains/{i}");
        match store.get(&key).await {
            Ok(entry) => assert_eq!(entry.unwrap().value, contents(i)),
            Err(Error::Corrupt { key: named, .. }) => {
                assert_eq!(named, key);
                damaged += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(damaged <= 1);
    assert_eq!(applied(&store, put("new", b"")).await, Revision(revision + 1));
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_cut_or_foreign_is_refused_by_name() {
    let source = filled(10).await;
    let good = std::fs::read(source.path().join(FILE_NAME)).unwrap();
    let garbage = vec![0xA5; good.len()];
    let cuts = [0, 1, 64, 4096, good.len() / 2, good.len() - 1].map(|len| &good[..len]);
    for bytes in cuts.into_iter().chain([&garbage[..], b"hello"]) {
        let dir = tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        std::fs::write(&file, bytes).unwrap();
        let error = refused(dir.path()).await;
        assert!(error.contains(&file.display().to_string()), "{error}");
        assert!(error.contains("damaged"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "the file is not changed");
    }
}

#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let dir = filled(1).await;
    let database = redb::Database::open(dir.path().join(FILE_NAME)).unwrap();
    let write = database.begin_write().unwrap();
    let mut state = layout::write_state(Revision(1));
    state[3] += 1;
    write.open_table(layout::STATE).unwrap().insert((), &*state).unwrap();
    write.commit().unwrap();
    drop(database);
    let error = refused(dir.path()).await;
    assert!(error.contains("its format is 2, this version reads 1"), "{error}");
}

/// A disk whose faults are switched on and off.
#[derive(Debug, Default)]
struct Disk {
    full: AtomicBool,
    sync_fails: AtomicBool,
    reads_fail: AtomicBool,
    syncs: AtomicUsize,
    /// A sync waits while this is held.
    gate: Mutex<()>,
}

#[derive(Debug)]
struct Faulty(FileBackend, Arc<Disk>);

fn fault(on: &AtomicBool, kind: std::io::ErrorKind) -> std::io::Result<()> {
    if on.load(SeqCst) { Err(kind.into()) } else { Ok(()) }
}

impl StorageBackend for Faulty {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        fault(&self.1.reads_fail, std::io::ErrorKind::Other)?;
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        drop(self.1.gate.lock());
        self.1.syncs.fetch_add(1, SeqCst);
        fault(&self.1.sync_fails, std::io::ErrorKind::Other)?;
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        fault(&self.1.full, std::io::ErrorKind::StorageFull)?;
        self.0.write(offset, data)
    }
}

async fn open_on(dir: &Path, disk: &Arc<Disk>) -> Store {
    let disk = Arc::clone(disk);
    let opener = move |builder: &redb::Builder, file| -> Result<_, DatabaseError> {
        builder.create_with_backend(Faulty(FileBackend::new(file)?, Arc::clone(&disk)))
    };
    Store::open_with(dir, IfMissing::MakeFirst, Box::new(opener)).await.unwrap()
}

/// Reads until a read succeeds.
async fn recovers(store: &Store, key: &str) {
    for _ in 0..3_000 {
        if store.get(key).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("reads still fail");
}

fn both(value: &str) -> Txn {
    let puts = ["a", "b"].map(|key| (key.to_owned(), value.as_bytes().to_vec()));
    Txn { puts: puts.into(), ..Txn::default() }
}

/// For every fault: the commit fails, all or nothing of it is written, what was committed before
/// stays, and the store recovers by itself when the fault is over.
#[tokio::test]
async fn it_recovers_from_a_failing_disk() {
    let faults: [fn(&Disk) -> &AtomicBool; 2] = [|disk| &disk.full, |disk| &disk.sync_fails];
    for fault in faults {
        let (dir, disk) = (tempdir().unwrap(), Arc::new(Disk::default()));
        let store = open_on(dir.path(), &disk).await;
        applied(&store, put("kept", b"1")).await;
        applied(&store, both("1")).await;
        fault(&disk).store(true, SeqCst);
        match store.commit(both("2")).await {
            Err(Error::Unavailable { maybe_applied, .. }) => assert!(maybe_applied),
            other => panic!("{other:?}"),
        }
        match store.commit(both("3")).await {
            Err(Error::Unavailable { maybe_applied, .. }) => assert!(!maybe_applied),
            other => panic!("{other:?}"),
        }
        assert!(Store::open(dir.path()).await.is_err(), "the directory is still locked");
        fault(&disk).store(false, SeqCst);
        recovers(&store, "kept").await;
        assert_eq!(value(&store, "kept").await.unwrap(), "1");
        let (a, b) = (value(&store, "a").await.unwrap(), value(&store, "b").await.unwrap());
        assert!(a == b && a != "3", "{a} {b}");
        let revision = applied(&store, both("4")).await;
        drop(store);
        let store = open(dir.path()).await;
        assert_eq!(value(&store, "b").await.unwrap(), "4");
        assert!(applied(&store, both("5")).await > revision);
    }
}

#[tokio::test]
async fn a_missing_file_is_not_replaced_by_an_empty_one() {
    let (source, disk) = (filled(1).await, Arc::new(Disk::default()));
    let store = open_on(source.path(), &disk).await;
    disk.full.store(true, SeqCst);
    assert!(store.commit(put("new", b"")).await.is_err());
    disk.full.store(false, SeqCst);
    let (file, away) = (source.path().join(FILE_NAME), source.path().join("away"));
    std::fs::rename(&file, &away).unwrap();
    match store.get("chains/0").await {
        Err(Error::Unavailable { detail, .. }) => assert!(detail.contains(FILE_NAME), "{detail}"),
        other => panic!("{other:?}"),
    }
    assert!(!file.exists());
    std::fs::rename(&away, &file).unwrap();
    recovers(&store, "chains/0").await;
}

#[tokio::test]
async fn a_failed_read_is_unavailable_and_later_reads_succeed() {
    let (source, disk) = (filled(200).await, Arc::new(Disk::default()));
    let store = open_on(source.path(), &disk).await;
    disk.reads_fail.store(true, SeqCst);
    // The check at opening may have left pages in memory; a failure makes it open the file again.
    disk.full.store(true, SeqCst);
    assert!(store.commit(put("new", b"")).await.is_err());
    match store.get("chains/7").await {
        Err(Error::Unavailable { maybe_applied, .. }) => assert!(!maybe_applied),
        other => panic!("{other:?}"),
    }
    disk.reads_fail.store(false, SeqCst);
    disk.full.store(false, SeqCst);
    recovers(&store, "chains/7").await;
}

#[expect(clippy::await_holding_lock, reason = "the writer has to wait until all are queued")]
#[tokio::test]
async fn a_thousand_concurrent_commits_share_a_few_syncs() {
    let (dir, disk) = (tempdir().unwrap(), Arc::new(Disk::default()));
    let store = Arc::new(open_on(dir.path(), &disk).await);
    let before = disk.syncs.load(SeqCst);
    let held = disk.gate.lock();
    let begun = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..1000)
        .map(|i| {
            let (store, begun) = (Arc::clone(&store), Arc::clone(&begun));
            tokio::spawn(async move {
                begun.fetch_add(1, SeqCst);
                applied(&*store, put(&format!("k{i}"), b"")).await
            })
        })
        .collect();
    // On one thread every call that has begun is queued.
    while begun.load(SeqCst) < 1000 {
        tokio::task::yield_now().await;
    }
    drop(held);
    let mut revisions = Vec::new();
    for task in tasks {
        revisions.push(task.await.unwrap().0);
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=1000).collect::<Vec<_>>());
    let syncs = disk.syncs.load(SeqCst) - before;
    assert!(syncs <= 8, "{syncs} syncs");
}

#[tokio::test]
async fn commits_in_progress_are_finished_when_it_is_dropped() {
    let dir = tempdir().unwrap();
    let store = Arc::new(open(dir.path()).await);
    let commit = tokio::spawn({
        let store = Arc::clone(&store);
        async move { applied(&*store, put("k", b"v")).await }
    });
    commit.await.unwrap();
    drop(store);
    assert_eq!(value(&open(dir.path()).await, "k").await.unwrap(), "v");
}
