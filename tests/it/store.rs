//! `store copy`, `store verify` and `store restored` on file stores and backups.

use std::path::Path;
use std::process::Output;

use serde_json::json;

use crate::support::etcd::Etcd;
use crate::support::{Sealed, Service, Setup, decrypt_all, run};

/// What a command that goes well writes to stdout.
fn good(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails says.
fn refused(output: Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn dir(path: &Path) -> String {
    format!("dir:{}", path.display())
}

fn backup(path: &Path) -> String {
    format!("backup:{}", path.display())
}

fn copy(from: &str, to: &str, more: &[&str]) -> Output {
    run(&[&["store", "copy", "--from", from, "--to", to], more].concat(), b"")
}

/// A service with a root that has another name than the default one.
fn setup() -> Setup {
    let setup = Setup::new().set("CHAIN__NAMES", "orders").set("LOG__LEVEL", "warn");
    setup.set("ROOT__0__NAME", "main").set("ROOT__0__KIND", "local")
}

/// The same root for another service.
fn share_root(from: &Setup, to: &Setup) {
    std::fs::create_dir_all(to.data()).unwrap();
    std::fs::copy(from.data().join("root.key"), to.data().join("root.key")).unwrap();
}

/// A stopped service, and what it encrypted under several KEKs of two chains.
async fn used(setup: &Setup) -> Vec<Sealed> {
    let service = setup.start().await;
    let mut sealed = Vec::new();
    for _ in 0..3 {
        sealed.push(service.encrypt("default", "AAAA").await);
        sealed.push(service.encrypt("orders", "AAEC").await);
        service.ok("/v1/rotate", json!({"chain": "orders"})).await;
    }
    sealed.push(service.encrypt("orders", "////").await);
    service.stop().await;
    sealed
}

async fn primary(service: &Service, chain: &str) -> String {
    service.encrypt(chain, "AAAA").await.kek_id()
}

#[tokio::test]
async fn what_was_encrypted_decrypts_at_the_copy_which_encrypts_under_a_new_kek() {
    let (old, new) = (setup(), setup());
    let sealed = used(&old).await;
    share_root(&old, &new);
    let said = good(copy(&dir(&old.data()), &dir(&new.data()), &[]));
    assert!(
        said.starts_with("2 chains copied: ") && said.contains("; 2 KEKs only decrypt"),
        "{said}"
    );
    let again = good(copy(&dir(&old.data()), &dir(&new.data()), &[]));
    assert!(again.starts_with("2 chains copied: 0 records new, 0 moved forward, "), "{again}");

    // Both continue at the same time, and never under the same KEK.
    let (old, new) = (old.start().await, new.start().await);
    decrypt_all(&new, &sealed).await;
    decrypt_all(&old, &sealed).await;
    assert_eq!(primary(&old, "orders").await, sealed.last().unwrap().kek_id());
    assert_ne!(primary(&new, "orders").await, sealed.last().unwrap().kek_id());
}

#[tokio::test]
async fn a_move_with_keep_primary_keeps_the_primary() {
    let (old, new) = (setup(), setup());
    let sealed = used(&old).await;
    share_root(&old, &new);
    good(copy(&dir(&old.data()), &dir(&new.data()), &["--keep-primary", "--chain", "orders"]));
    let service = new.start().await;
    assert_eq!(primary(&service, "orders").await, sealed.last().unwrap().kek_id());
    let (of_orders, others): (Vec<_>, Vec<_>) =
        sealed.into_iter().partition(|sealed| sealed.chain == "orders");
    decrypt_all(&service, &of_orders).await;
    let body = json!({"ciphertext": others[0].ciphertext});
    assert_eq!(service.post("/v1/decrypt", body).await.1["code"], "unknown_kek");
}

#[tokio::test]
async fn a_backup_is_private_and_whole_and_brings_all_back() {
    use std::os::unix::fs::PermissionsExt;
    let (old, new) = (setup(), setup());
    let sealed = used(&old).await;
    let file = old.file("backup");
    let said = good(copy(&dir(&old.data()), &backup(&file), &[]));
    assert!(said.contains(": 2 chains, "), "{said}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = std::fs::read(&file).unwrap();
    let said = refused(copy(&dir(&old.data()), &backup(&file), &[]), 1);
    assert!(said.contains("a backup replaces none"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(good(run(&["store", "verify", &backup(&file), "--config", &config(&old)], b"")), {
        good(run(&["store", "verify", "--config", &config(&old)], b""))
    });

    std::fs::remove_file(old.data().join("store.redb")).unwrap();
    let said = refused(run(&["store", "verify", &dir(&old.data())], b""), 1);
    assert!(said.contains("this directory has no store"), "{said}");
    assert!(!old.data().join("store.redb").exists(), "verify creates nothing");
    share_root(&old, &new);
    good(copy(&backup(&file), &dir(&new.data()), &[]));
    decrypt_all(&new.start().await, &sealed).await;
}

/// A file with the settings of `setup`.
fn config(setup: &Setup) -> String {
    let file = setup.file("kms-proxy.toml");
    let text = format!(
        "[store]\nkind = 'file'\npath = '{}'\n[[root]]\nname = 'main'\nkind = 'local'\n",
        setup.data().display()
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_damaged_backup_is_refused_before_anything_is_written() {
    let (old, new) = (setup(), setup());
    used(&old).await;
    let file = old.file("backup");
    good(copy(&dir(&old.data()), &backup(&file), &[]));
    let whole = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<_> = whole.split_inclusive('\n').collect();
    let last = lines.len() - 1;
    let all_but = |line: usize| [&lines[..line], &lines[line + 1..]].concat().concat();
    let damaged = old.file("damaged");
    for (text, part) in [
        (String::new(), "line 1: this is no backup"),
        ("{}\n".to_owned(), "line 1: this is no backup"),
        (whole.replacen(":2,", ":3,", 1), "line 1: its format is 3, this version reads 1 and 2"),
        (lines[..last].concat(), "without a checksum: the rest is cut off"),
        (whole[..whole.len() - 1].to_owned(), "the rest is cut off"),
        (whole[..whole.len() / 2].to_owned(), "the rest is cut off"),
        (all_but(3), "its checksum does not match"),
        (whole.replacen("primary", "primarz", 2), "its checksum does not match"),
        (lines[0].to_owned(), "line 1: it ends here"),
    ] {
        std::fs::write(&damaged, &text).unwrap();
        let said = refused(copy(&backup(&damaged), &dir(&new.data()), &[]), 1);
        assert!(said.contains(part) && said.contains("/damaged: "), "{part}: {said}");
        assert!(!new.data().exists(), "{part}");
    }
}

#[tokio::test]
async fn a_copy_overwrites_no_other_chain_and_no_running_service() {
    let (old, new) = (setup(), setup());
    used(&old).await;
    let theirs = used(&new).await;
    let said = refused(copy(&dir(&old.data()), &dir(&new.data()), &[]), 1);
    assert!(said.contains("another chain with the same name"), "{said}");
    assert!(
        said.contains("chains/orders/keks/") && said.contains("chains/default/keks/"),
        "{said}"
    );
    let service = new.start().await;
    decrypt_all(&service, &theirs).await;
    for (from, to) in [(&old, &new), (&new, &old)] {
        let said = refused(copy(&dir(&from.data()), &dir(&to.data()), &[]), 1);
        assert!(said.contains("another process"), "{said}");
    }
    let from = dir(&old.data());
    assert!(refused(copy(&from, &from, &[]), 2).contains("are the same"));
    let same = format!("config:{}", config(&old));
    assert!(refused(copy(&from, &same, &[]), 2).contains("are the same"));
    let said = refused(copy(&from, &backup(&old.file("b")), &["--keep-primary"]), 2);
    assert!(said.contains("contains the records unchanged"), "{said}");
    let said = refused(copy(&dir(&old.file("none")), &dir(&old.file("other")), &[]), 1);
    assert!(said.contains("this directory has no store"), "{said}");
    assert!(!old.file("none").exists() && !old.file("other").exists());
    let said = refused(copy(&from, &dir(&old.file("third")), &["--chain", "none"]), 1);
    assert!(said.contains("chains/none/head: there is no such chain"), "{said}");
}

#[tokio::test]
async fn verify_finds_a_damaged_kek_and_a_missing_root() {
    let setup = setup();
    used(&setup).await;
    let verify = |config: &str| run(&["store", "verify", "--config", config], b"");
    let file = config(&setup);
    let said = good(verify(&file));
    assert!(said.starts_with("2 chains, 5 KEKs, 5 wraps opened, 0 problems"), "{said}");
    // The same from the directory alone: its key is beside the store, with another name.
    let said = refused(run(&["store", "verify", &dir(&setup.data())], b""), 1);
    assert_eq!(said.matches("none of the roots that wrapped it is configured: main").count(), 5);

    // A wrap that is damaged on its way through a backup, under a good checksum.
    let copied = setup.file("backup");
    good(copy(&dir(&setup.data()), &backup(&copied), &[]));
    let text = std::fs::read_to_string(&copied).unwrap();
    let at = text.find("\\\"bytes\\\":\\\"").unwrap() + 30;
    let other = if &text[at..=at] == "A" { "B" } else { "A" };
    let content = format!("{}{other}{}", &text[..at], &text[at + 1..]);
    let content = content[..content.rfind("{\"sha256\"").unwrap()].to_owned();
    let damaged = setup.file("damaged");
    std::fs::write(&damaged, format!("{content}{{\"sha256\":\"{}\"}}\n", sha256(&content)))
        .unwrap();
    let said = refused(run(&["store", "verify", &backup(&damaged), "--config", &file], b""), 1);
    assert_eq!(said.matches("root main: the wrap does not open").count(), 1, "{said}");

    // No key is made to verify with.
    std::fs::remove_file(setup.data().join("root.key")).unwrap();
    assert!(refused(verify(&file), 2).contains("a new key would open nothing"));
    assert!(!setup.data().join("root.key").exists());
}

fn sha256(text: &str) -> String {
    use std::io::Write;
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("sha256sum is missing: apt-get install coreutils");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    said.split(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn after_a_restore_what_encrypted_only_decrypts() {
    let setup = setup();
    let sealed = used(&setup).await;
    let file = config(&setup);
    let restored = || good(run(&["store", "restored", "--config", &file], b""));
    let said = restored();
    let last = sealed.last().unwrap().kek_id();
    assert!(said.contains(&format!("orders: {last} only decrypts now")), "{said}");
    assert!(said.ends_with("2 chains, 2 KEKs retired\n"), "{said}");
    assert_eq!(restored(), "2 chains, 0 KEKs retired\n");
    let service = setup.start().await;
    decrypt_all(&service, &sealed).await;
    assert_ne!(primary(&service, "orders").await, last);
    let said = refused(run(&["store", "restored", "--config", &file], b""), 1);
    assert!(said.contains("another process"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_move_to_etcd_and_back_into_a_backup() {
    let (old, etcd) = (setup(), Etcd::start().await);
    let sealed = used(&old).await;
    let key = old.data().join("root.key");
    let config = old.file("etcd.toml");
    let text = format!(
        "[server]\nlisten = '127.0.0.1:0'\n[store]\nkind = 'etcd'\nendpoints = ['{}']\ntimeout = '10s'\n\
         [[root]]\nname = 'main'\nkind = 'local'\nkey_file = '{}'\n",
        etcd.url(),
        key.display()
    );
    std::fs::write(&config, text).unwrap();
    let at_etcd = format!("config:{}", config.display());
    let said = good(copy(&dir(&old.data()), &at_etcd, &["--keep-primary"]));
    assert!(said.starts_with("2 chains copied: "), "{said}");
    good(run(&["store", "verify", &at_etcd, "--config", &config.display().to_string()], b""));

    let moved = setup().on_etcd(&etcd).set("ROOT__0__KEY_FILE", key.display());
    let service = moved.start().await;
    decrypt_all(&service, &sealed).await;
    assert_eq!(primary(&service, "orders").await, sealed.last().unwrap().kek_id());
    // A backup of the live store, put into an empty one.
    let file = moved.file("backup");
    good(copy(&at_etcd, &backup(&file), &[]));
    let new = setup();
    share_root(&old, &new);
    good(copy(&backup(&file), &dir(&new.data()), &[]));
    decrypt_all(&new.start().await, &sealed).await;

    // The file store was used meanwhile: it does not replace the records of etcd.
    let went_on = old.start().await;
    went_on.ok("/v1/rotate", json!({"chain": "orders"})).await;
    went_on.stop().await;
    service.ok("/v1/rotate", json!({"chain": "orders"})).await;
    let said = refused(copy(&dir(&old.data()), &at_etcd, &["--keep-primary"]), 1);
    assert!(said.contains("orders"), "{said}");
    decrypt_all(&service, &sealed).await;

    // An old copy was restored while no service was running.
    service.stop().await;
    let config = config.display().to_string();
    let asked = refused(run(&["store", "restored", "--config", &config], b""), 2);
    assert!(asked.contains("--yes"), "{asked}");
    good(run(&["store", "restored", "--config", &config, "--yes"], b""));
    let service = moved.start().await;
    decrypt_all(&service, &sealed).await;
    assert_ne!(primary(&service, "orders").await, sealed.last().unwrap().kek_id());
}
