//! The key of the log after the store was copied, restored or lost.

use std::path::Path;

use crate::support::etcd::Etcd;
use crate::support::{Service, Setup, run, until};

/// A service with an audit log and a root whose key is not in the data directory.
fn setup() -> Setup {
    let setup = super::setup();
    let key = setup.file("root.key");
    let setup = setup.set("ROOT__0__NAME", "main").set("ROOT__0__KIND", "local");
    setup.set("ROOT__0__KEY_FILE", key.display()).set("LOG__LEVEL", "info")
}

/// The same with the store of a directory beside the data directory.
fn on(setup: &Setup, store: &str) -> Setup {
    setup.clone().set("STORE__PATH", setup.file(store).display())
}

/// Decrypts something with this AAD.
fn decrypt(service: &Service, aad: &str) {
    let url = service.url();
    let sealed = run(&["encrypt", "--aad", aad, "--server", &url], b"hello");
    let opened = run(&["decrypt", "--aad", aad, "--server", &url], &sealed.stdout);
    assert_eq!(opened.stdout, b"hello", "{opened:?}");
}

/// The exit code of a command, and what it printed.
fn said(setup: &Setup, args: &[&str]) -> (Option<i32>, String) {
    let output = setup.run(args);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said.into_owned())
}

/// The exit code of a search, how many lines it found, and what it printed.
fn find(setup: &Setup, aad: &str, more: &[&str]) -> (Option<i32>, usize, String) {
    let args = [&["audit", "find", "--aad", aad], more, &["audit.jsonl"]].concat();
    let (code, said) = said(setup, &args);
    let found = said.lines().filter(|line| line.contains(" decrypt ")).count();
    (code, found, said)
}

fn copy(setup: &Setup, from: &str, to: &Path, more: &[&str]) -> (Option<i32>, String) {
    let to = format!("dir:{}", to.display());
    said(setup, &[&["store", "copy", "--from", from, "--to", &to], more].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_and_backups_have_the_key_and_nothing_makes_another_one_unnoticed() {
    let base = setup();
    // All settings are in the environment.
    std::fs::write(base.file("empty.toml"), "").unwrap();
    let config = ["--config", "empty.toml"];
    let service = base.start().await;
    decrypt(&service, "row 9");
    let backup = base.file("a.backup");
    let made = run(&["backup", "--server", &service.url(), "--to", backup.to_str().unwrap()], b"");
    assert!(made.status.success(), "{made:?}");
    service.stop().await;
    let old = on(&base, "data");
    let (code, key) = said(&old, &["audit", "key", "--aad-key-file", "aad.key"]);
    assert_eq!(code, Some(0), "{key}");
    assert_eq!(find(&old, "row 9", &config).1, 1);

    let from = format!("dir:{}", base.data().display());
    copy(&base, &from, &base.file("moved"), &["--keep-primary"]);
    std::fs::remove_dir_all(base.data()).unwrap();
    let from = format!("backup:{}", backup.display());
    copy(&base, &from, &base.file("restored"), &[]);
    for store in ["moved", "restored"] {
        let setup = on(&base, store);
        assert_eq!(said(&setup, &["audit", "key"]), (Some(0), key.clone()), "{store}");
        assert_eq!(find(&setup, "row 9", &config).1, 1, "{store}");
        let (code, verified) = said(&setup, &["store", "verify"]);
        assert!(code == Some(0) && verified.contains(" 0 problems"), "{store}: {verified}");
    }

    // A new store. Neither command makes a key in it.
    let new = on(&base, "new");
    let bare = Setup::new().set("ROOT__0__NAME", "main").set("ROOT__0__KIND", "local");
    let bare = bare.set("ROOT__0__KEY_FILE", base.file("root.key").display());
    bare.start().await.stop().await;
    let bare = bare.clone().set("STORE__PATH", bare.data().display());
    for _ in 0..2 {
        let (code, said) = said(&bare, &["audit", "key"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("the store has no key of an audit log"), "{said}");
    }
    // A service makes another key, and says that it continues a log of the first one.
    let service = base.start().await;
    service.logged("the audit log continues a file that another key has signed").await;
    decrypt(&service, "row 10");
    service.stop().await;
    std::fs::rename(base.data(), base.file("new")).unwrap();
    let (code, found, said) = find(&new, "row 9", &config);
    assert_eq!((code, found), (Some(1), 0), "{said}");
    assert!(said.contains(key.trim()), "the key of the earlier lines: {said}");
    assert_eq!(find(&new, "row 10", &config).1, 1);
    // With the file of the first key its lines are found, and the others are named.
    let (code, found, said) = find(&new, "row 9", &["--aad-key-file", "aad.key"]);
    assert_eq!((code, found), (Some(1), 1), "{said}");

    let (code, refused) = copy(&base, &from, &base.file("new"), &[]);
    assert_eq!(code, Some(1), "{refused}");
    assert!(refused.contains("audit/key: the target has another key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_service_writes_the_key_back_into_a_store_that_was_wiped() {
    let mut etcd = Etcd::start().await;
    let setup = setup().on_etcd(&etcd);
    let service = setup.start().await;
    let stored = |etcd: &Etcd| etcd.ctl(&["get", "--print-value-only", "/kms-proxy/audit/key"]);
    let before = stored(&etcd);
    assert!(before.contains("wraps"), "{before}");
    etcd.wipe();
    etcd.healthy().await;
    until("the key in the new etcd", async || (stored(&etcd) == before).then_some(())).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_an_empty_store_takes_the_key_from_the_archive() {
    let base = setup();
    let nas = base.file("nas");
    std::fs::create_dir(&nas).unwrap();
    let marker = nas.join("kms-proxy-archive");
    std::fs::write(&marker, "").unwrap();
    let base = base.set("ARCHIVE__0__KIND", "dir").set("ARCHIVE__0__NAME", "nas");
    let base = base.set("ARCHIVE__0__PATH", nas.display());
    let service = base.start().await;
    decrypt(&service, "row 9");
    let object = nas.join("audit/key.json");
    until("the archived key", async || object.exists().then_some(())).await;
    service.stop().await;
    let data = on(&base, "data");
    let (_, key) = said(&data, &["audit", "key"]);
    std::fs::remove_dir_all(base.data()).unwrap();

    // Nothing is made while it is not known whether the archive has the key.
    std::fs::rename(&marker, nas.join("away")).unwrap();
    let mut service = base.listen().await;
    service.logged("the store is empty; waiting for the archive").await;
    std::fs::rename(nas.join("away"), &marker).unwrap();
    service.ready().await;
    service.logged("which is restored from an archive").await;
    service.stop().await;
    assert_eq!(said(&data, &["audit", "key"]), (Some(0), key.clone()));

    let recovered = on(&base, "recovered");
    let (code, told) = said(&recovered, &["store", "recover"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.ends_with("the key of the audit log: restored\n"), "{told}");
    assert_eq!(said(&recovered, &["audit", "key"]), (Some(0), key));
    let (code, told) = said(&recovered, &["store", "compare"]);
    assert!(code == Some(0) && told.ends_with(" 0 differences\n"), "{told}");
    std::fs::remove_file(&object).unwrap();
    let (code, told) = said(&recovered, &["store", "compare"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("audit/key.json: it is not in the archive"), "{told}");
}
