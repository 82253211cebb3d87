//! The battery on directories, and tests of their crashes, concurrent processes and mounts.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use proptest::prelude::*;

use super::super::settings::MARKER;
use super::super::{Archive as _, contract};
use super::directory::{Directory, version};
use super::write::NEW;
use super::*;
use crate::files;

const PATIENCE: Duration = Duration::from_secs(60);

fn config(path: &Path) -> Config {
    let (name, path) = ("nas".to_owned(), path.to_owned());
    Config { name, path, create: false, timeout: PATIENCE }
}

/// A new archive in `path`.
fn made(path: &Path) -> Archive {
    std::fs::write(path.join(MARKER), "").unwrap();
    Archive::new(&config(path))
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract::all(Arc::new(made(dir.path()))).await;
    assert_eq!(names(&dir.path().join(NEW)), [""; 0]);
    for (path, expected) in [
        ("read", 0o700),
        ("read/a", 0o700),
        ("read/a/b.json", 0o600),
        (NEW, 0o700),
        (".lock", 0o600),
    ] {
        assert_eq!(mode(&dir.path().join(path)), expected, "{path}");
    }
}

/// On another file system than that of temporary files, if the machine has one.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_on_another_file_system_keeps_the_contract() {
    let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
    let here = device(&std::env::temp_dir());
    let shm = Path::new("/dev/shm");
    let other = shm.is_dir() && device(shm) != here;
    let dir = if other { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    println!("the second file system is at {}", dir.path().display());
    contract::all(Arc::new(made(dir.path()))).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..<_>::default() })]

    #[test]
    fn a_directory_agrees_with_the_archive_in_memory(history in contract::history()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(contract::agrees_with_memory(&made(dir.path()), "v1/a/", &history));
    }
}

/// The key of the object in most tests. It has two directories, so that every step happens.
const KEY: &str = "v1/orders/0707.json";

/// A put that ends, as by kill -9, before change number `at` of the file system. Returns whether it
/// ended there.
fn put_and_die(path: &Path, at: usize, bytes: &[u8], condition: &Condition) -> bool {
    let steps = AtomicUsize::new(0);
    let died = Arc::new(AtomicUsize::new(0));
    let before = {
        let died = Arc::clone(&died);
        move |_: &'static str| {
            if steps.fetch_add(1, Relaxed) < at {
                return Ok(());
            }
            died.store(1, Relaxed);
            Err(std::io::Error::other("killed"))
        }
    };
    let directory = Directory::with(path, false, PATIENCE, Box::new(before));
    let written = directory.put(KEY, bytes, condition);
    let died = died.load(Relaxed) == 1;
    assert_eq!(died, written.is_err(), "{written:?}");
    died
}

#[test]
fn a_crash_at_any_step_leaves_the_old_object_or_the_new_one() {
    let old: Vec<u8> = vec![b'a'; 400];
    let new: Vec<u8> = vec![b'b'; 500];
    for replaces in [false, true] {
        let mut survived = [0, 0];
        for at in 0.. {
            let dir = tempfile::tempdir().unwrap();
            made(dir.path());
            let plain = Directory::new(dir.path(), false, PATIENCE);
            if replaces {
                plain.put(KEY, &old, &Condition::Absent).unwrap();
            }
            let condition =
                if replaces { Condition::Unchanged(version(&old)) } else { Condition::Absent };
            let died = put_and_die(dir.path(), at, &new, &condition);

            // Another process finds one of the two, and nothing else.
            let found = plain.get(KEY).unwrap().map(|object| object.bytes);
            let is_new = found.as_ref() == Some(&new);
            assert!(is_new || found == replaces.then(|| old.clone()), "step {at}");
            let listed = plain.list("", None, 9).unwrap();
            assert_eq!(listed, vec![KEY; usize::from(found.is_some())], "step {at}");
            survived[usize::from(is_new)] += 1;

            // It can write, and removes the files that the crash left.
            let condition = match &found {
                Some(bytes) => Condition::Unchanged(version(bytes)),
                None => Condition::Absent,
            };
            let written = plain.put(KEY, b"next", &condition).unwrap();
            assert_eq!(written, Written::Applied(version(b"next")), "step {at}");
            assert_eq!(names(&dir.path().join(NEW)), [""; 0], "step {at}");
            if !died {
                break;
            }
        }
        println!("steps that left the old and the new state: {survived:?}");
        assert!(survived[0] > 5 && survived[1] >= 2, "{survived:?}");
    }
}

/// The other process of the test below: it counts up until it is killed.
#[test]
#[ignore = "it is the other process of another test"]
#[expect(clippy::disallowed_methods, reason = "the other test passes the directory")]
fn count_in_another_process() {
    let Some(path) = std::env::var_os("KMS_PROXY_TEST_ARCHIVE") else { return };
    let directory = Directory::new(Path::new(&path), false, PATIENCE);
    increment(&directory);
    println!("ready");
    loop {
        increment(&directory);
    }
}

/// Adds one to a counter, and returns it.
fn increment(directory: &Directory) -> u64 {
    loop {
        let (condition, count) = match directory.get(KEY).unwrap() {
            None => (Condition::Absent, 0),
            Some(object) => {
                let text = String::from_utf8(object.bytes).unwrap();
                let (count, rest) = text.split_once(' ').unwrap();
                assert_eq!(rest.len(), 2000, "an object is whole");
                (Condition::Unchanged(object.version), count.parse().unwrap())
            }
        };
        let bytes = format!("{} {}", count + 1, "x".repeat(2000)).into_bytes();
        let written = directory.put(KEY, &bytes, &condition).unwrap();
        if matches!(written, Written::Applied(_)) {
            return count + 1;
        }
    }
}

#[test]
fn processes_that_are_killed_leave_whole_objects_and_lose_no_write() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let directory = Directory::new(dir.path(), false, PATIENCE);
    let mut last = 0;
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "archive::dir::tests::count_in_another_process"])
            .args(["--ignored", "--nocapture", "--test-threads=1"])
            .env("KMS_PROXY_TEST_ARCHIVE", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.ends_with("ready")));
        // Both count, until this process has done its part.
        for _ in 0..5 + round * 3 {
            let count = increment(&directory);
            assert!(count > last, "{count} after {last}");
            last = count;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let count = increment(&directory);
    let mine: u64 = 1 + (0..8).map(|round| 5 + round * 3).sum::<u64>();
    println!("{count} increments, {mine} of them by this process");
    assert!(count >= mine + 8, "each of the other processes wrote as well");
}

#[tokio::test]
async fn a_disk_that_is_not_mounted_is_not_an_empty_archive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nas");
    let archive = Archive::new(&config(&path));
    let is_away = async |archive: &Archive| {
        let errors = [
            archive.get(KEY).await.unwrap_err(),
            archive.put(KEY, vec![1], Condition::Absent).await.unwrap_err(),
            archive.list("", None, 1).await.unwrap_err(),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(matches!(error, Error::Unavailable(_)), "{text}");
            assert!(text.contains("mount the disk") && text.contains("touch "), "{text}");
        }
    };
    // The directory is missing, then it is an empty mount point.
    is_away(&archive).await;
    std::fs::create_dir(&path).unwrap();
    is_away(&archive).await;
    assert_eq!(names(&path), [""; 0], "nothing was written there");
    std::fs::write(path.join(MARKER), "").unwrap();
    contract::applied(&archive, KEY, b"1", Condition::Absent).await;
    // The disk is unmounted and mounted again while the process runs.
    std::fs::rename(&path, dir.path().join("away")).unwrap();
    std::fs::create_dir(&path).unwrap();
    is_away(&archive).await;
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(dir.path().join("away"), &path).unwrap();
    assert_eq!(archive.get(KEY).await.unwrap().unwrap().bytes, b"1");
    // A marker must be a regular file.
    std::fs::remove_file(path.join(MARKER)).unwrap();
    symlink("/etc/hostname", path.join(MARKER)).unwrap();
    is_away(&archive).await;
}

#[tokio::test]
async fn with_create_the_directory_is_created_at_the_first_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let archive = Archive::new(&Config { create: true, ..config(&path) });
    assert!(!path.exists());
    assert_eq!(archive.list("", None, 9).await.unwrap(), [""; 0]);
    assert_eq!((mode(&path), names(&path)), (0o700, vec![MARKER.to_owned()]));
    contract::applied(&archive, KEY, b"1", Condition::Absent).await;
    assert_eq!(archive.list("", None, 9).await.unwrap(), [KEY]);
}

#[tokio::test]
async fn links_and_foreign_files_are_not_objects() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("archive"), dir.path().join("other"));
    std::fs::create_dir(&path).unwrap();
    std::fs::create_dir_all(other.join("orders")).unwrap();
    std::fs::write(other.join("orders/0707.json"), "planted").unwrap();
    let archive = made(&path);
    symlink(&other, path.join("v1")).unwrap();
    let denied = |error| assert!(matches!(error, Error::Denied(_) | Error::Unavailable(_)));
    denied(archive.get(KEY).await.unwrap_err());
    denied(archive.put(KEY, vec![1], Condition::Absent).await.unwrap_err());
    assert_eq!(archive.list("", None, 9).await.unwrap(), [""; 0]);
    assert_eq!(names(&other.join("orders")), ["0707.json"]);

    std::fs::remove_file(path.join("v1")).unwrap();
    contract::applied(&archive, KEY, b"1", Condition::Absent).await;
    let orders = path.join("v1/orders");
    symlink(other.join("orders/0707.json"), orders.join("0808.json")).unwrap();
    std::fs::write(orders.join(".DS_Store"), "").unwrap();
    std::fs::write(orders.join("Not A Key"), "").unwrap();
    files::mkfifo(&orders.join("0909.json"));
    assert_eq!(archive.list("v1/", None, 9).await.unwrap(), [KEY]);
    denied(archive.get("v1/orders/0808.json").await.unwrap_err());
    denied(archive.get("v1/orders/0909.json").await.unwrap_err());
    for key in ["", "/", "../other/orders/0707.json", "v1//x", ".new/x", "v1/Orders/x", "v1/a/../x"]
    {
        denied(archive.get(key).await.unwrap_err());
        denied(archive.put(key, vec![1], Condition::Absent).await.unwrap_err());
    }
}

#[tokio::test]
async fn a_directory_that_others_can_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let archive = made(dir.path());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = archive.put(KEY, vec![1], Condition::Absent).await.unwrap_err();
    assert!(matches!(&error, Error::Denied(detail) if detail.contains("chmod go-w")), "{error}");
}

/// A process that holds the lock and does not continue delays others no longer than their time-out.
#[tokio::test]
async fn a_lock_that_is_held_ends_in_an_error() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let archive =
        Archive::new(&Config { timeout: Duration::from_millis(50), ..config(dir.path()) });
    let lock = std::fs::File::create(dir.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let error = archive.put(KEY, vec![1], Condition::Absent).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    let archive = Archive::new(&config(dir.path()));
    // Reads need no lock.
    assert_eq!(archive.get(KEY).await, Ok(None));
    drop(lock);
    // The thread of the first put may get the lock now, so KEY may exist.
    contract::applied(&archive, "v1/orders/0808.json", b"1", Condition::Absent).await;
}
