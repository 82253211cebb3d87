//! `store recover`, `store verify archive:NAME` and `store compare`.

use std::path::Path;
use std::process::Stdio;

use kms_proxy::archive::object;
use kms_proxy::store::{self, record};
use serde_json::json;

use super::bucket::S3;
use super::many::{chain, fill, objects};
use super::{HELLO, directory, root};
use crate::support::etcd::Etcd;
use crate::support::{Sealed, Setup, decrypt_all, until};

/// KEKs that a service made with both archives, before it ended.
struct Used {
    s3: S3,
    /// Its root key and its archive `nas` are there.
    place: Setup,
    setup: Setup,
    envelopes: Vec<Sealed>,
}

impl Used {
    async fn new() -> Self {
        let (s3, place) = (S3::start().await, Setup::new());
        let setup = s3.archive(dir_archive(&place), 1);
        let service = setup.start().await;
        let mut envelopes = Vec::new();
        for _ in 0..3 {
            envelopes.push(service.encrypt("default", HELLO).await);
            service.ok("/v1/rotate", json!({})).await;
        }
        envelopes.push(service.encrypt("default", HELLO).await);
        until("archives that hold everything", async || {
            let (_, readiness) = service.get("/readyz").await;
            (readiness["status"] == "ok").then_some(())
        })
        .await;
        service.stop().await;
        Self { s3, place, setup, envelopes }
    }
}

/// An empty store, with the root and the archive `nas` in `place`.
fn dir_archive(place: &Setup) -> Setup {
    directory(empty(place), 0, &place.file("archive"))
}

/// An empty store, with the root in `place`.
fn empty(place: &Setup) -> Setup {
    let setup = root(Setup::new(), &place.file("root.key"));
    let data = setup.data();
    setup.set("STORE__PATH", data.display())
}

/// Runs a command of `store`; its exit code, and what it printed on stdout and on stderr.
fn store_command(setup: &Setup, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = setup.run(&[&["store"], arguments].concat());
    let [said, error] = [output.stdout, output.stderr].map(|out| String::from_utf8(out).unwrap());
    (output.status.code(), said, error)
}

fn recovered(setup: &Setup, expected: &str) {
    let (code, said, error) = store_command(setup, &["recover"]);
    assert!(code == Some(0) && said.contains(expected), "{said}{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_recovered_from_either_archive_and_a_second_time_changes_nothing() {
    let used = Used::new().await;
    let from_dir = dir_archive(&used.place);
    let from_s3 = used.s3.archive(empty(&used.place), 0);
    for setup in [from_dir, from_s3] {
        recovered(&setup, "1 chain whole, 4 KEKs: 4 restored, 0 the same, 0 destroyed");
        recovered(&setup, "1 chain whole, 4 KEKs: 0 restored, 4 the same, 0 destroyed");
        let (code, said, error) = store_command(&setup, &["verify"]);
        assert_eq!(code, Some(0), "{said}{error}");
        let service = setup.start().await;
        decrypt_all(&service, &used.envelopes).await;
        let made = service.encrypt("default", HELLO).await;
        let is_new = |old: &Sealed| old.kek_id() != made.kek_id();
        assert!(used.envelopes.iter().all(is_new), "how often it was used is not known");
        service.stop().await;
        // The service has archived what it made.
        let (code, said, error) = store_command(&setup, &["compare"]);
        assert_eq!(code, Some(0), "{said}{error}");
    }
}

/// Kills a recovery of `count` KEKs when the store has some of them, and repeats it.
async fn interrupted(setup: Setup, count: u64) {
    let etcd = Etcd::start().await;
    // A recovery that is complete before it is killed is repeated in an empty store.
    for attempt in 0..20 {
        let prefix = format!("/{attempt}");
        let setup = setup.clone().on_etcd(&etcd).set("STORE__PREFIX", &prefix);
        let config = format!(
            "kind = 'etcd'\nendpoints = ['{}']\nprefix = '{prefix}'\ntimeout = '10s'",
            etcd.url()
        );
        let config: store::Config = toml::from_str(&config).unwrap();
        let store = store::open(&config).await.unwrap();
        let mut command = setup.tool(&["store", "recover"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let stored = async || store.count(&record::keks_prefix(&chain())).await.unwrap();
        while stored().await == 0 && child.try_wait().unwrap().is_none() {}
        // It may have ended already.
        _ = child.kill();
        child.wait().unwrap();
        let some = stored().await;
        if (1..count).contains(&some) {
            let left = count - some;
            recovered(&setup, &format!("{left} restored, {some} the same, 0 destroyed"));
            assert_eq!(stored().await, count);
            return;
        }
        assert_eq!(some, count, "it ended and restored nothing");
    }
    panic!("no recovery was interrupted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_is_killed_continues_where_it_was() {
    let place = Setup::new();
    let setup = root(Setup::new(), &place.file("root.key"));
    let nas = place.file("archive");
    let from_dir = directory(setup.clone(), 0, &nas);
    fill(&nas, 999);
    interrupted(from_dir, 999).await;

    let s3 = S3::start().await;
    for (key, bytes) in objects(200) {
        s3.put(&key, bytes).await;
    }
    interrupted(s3.archive(setup, 0), 200).await;
}

/// The file of the object of a KEK in the archive `nas`.
fn file(place: &Setup, sealed: &Sealed) -> std::path::PathBuf {
    place.file("archive").join(object::kek_key(&chain(), sealed.kek_id().parse().unwrap()))
}

fn damage(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, text.replace("created_at", "created_by")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_opens_every_archived_kek_and_compare_lists_what_an_archive_lacks() {
    let used = Used::new().await;
    for archive in ["archive:nas", "archive:bucket"] {
        let (code, said, error) = store_command(&used.setup, &["verify", archive]);
        assert_eq!(code, Some(0), "{said}{error}");
    }
    let (code, said, _) = store_command(&used.setup, &["compare"]);
    assert_eq!(code, Some(0), "{said}");
    for name in ["nas", "bucket"] {
        let line = format!("archive {name}: 1 chain, 4 KEKs, 0 differences");
        assert!(said.contains(&line), "{said}");
    }

    let (lost, damaged) = (&used.envelopes[0], &used.envelopes[1]);
    std::fs::remove_file(file(&used.place, lost)).unwrap();
    damage(&file(&used.place, damaged));
    let (code, _, error) = store_command(&used.setup, &["compare"]);
    assert_eq!(code, Some(1));
    for sealed in [lost, damaged] {
        let names = |line: &&str| line.contains("nas") && line.contains(&sealed.kek_id());
        assert!(error.lines().any(|line| names(&line)), "{}: {error}", sealed.kek_id());
    }
    assert!(!error.contains("archive bucket"), "{error}");
    let (code, _, error) = store_command(&used.setup, &["verify", "archive:nas"]);
    assert!(code == Some(1) && error.contains(&damaged.kek_id()), "{error}");
    assert_eq!(store_command(&used.setup, &["verify", "archive:bucket"]).0, Some(0));
    assert_eq!(store_command(&used.setup, &["verify", "archive:other"]).0, Some(2));

    // The roots of another deployment open none of them.
    let elsewhere = Setup::new();
    let foreign = used.s3.archive(empty(&elsewhere), 0);
    // It makes its key, and no KEK, since it opens none of those in the archive.
    foreign.start_unready().await.kill();
    let (code, _, error) = store_command(&foreign, &["verify", "archive:bucket"]);
    assert!(code == Some(1) && error.contains(&lost.kek_id()), "{error}");

    // A recovery names what is damaged, and takes it from the other archive.
    let again = used.s3.archive(dir_archive(&used.place), 1);
    let (code, said, error) = store_command(&again, &["recover"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(error.contains(&damaged.kek_id()) && said.contains("4 restored"), "{said}{error}");
    let service = again.start().await;
    decrypt_all(&service, &used.envelopes).await;
}
