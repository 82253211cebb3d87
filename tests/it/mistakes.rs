//! Honest mistakes of operators, on a store of files: a restore with a wrong passphrase or an old
//! backup, a key file or a store that is missing. Nothing that was answered with 200 is lost once
//! the mistake is corrected, and health names what is wrong.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::support::{Sealed, Service, Setup, decrypt_all, pages, run, until};

mod clocks;
mod files;
mod removals;
mod replicas;
mod restores;
mod roots;

pub(crate) const RIGHT: &str = "correct horse battery staple";
pub(crate) const WRONG: &str = "correct horse battery stable";

/// Adds a root of kind `passphrase`, as cheap as one may be.
fn passphrase(setup: Setup, index: usize, name: &str, passphrase: &str) -> Setup {
    let settings = [
        ("KIND", "passphrase"),
        ("NAME", name),
        ("PASSPHRASE", passphrase),
        ("MEMORY", "19MiB"),
        ("PASSES", "2"),
    ];
    let set = |setup: Setup, (key, value)| setup.set(&format!("ROOT__{index}__{key}"), value);
    settings.into_iter().fold(setup, set)
}

/// What `/readyz` says of one check: its status and its detail.
async fn check(service: &Service, name: &str) -> Option<(String, String)> {
    let (_, readiness) = service.get("/readyz").await;
    let checks = readiness["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some((text(&check["status"]), text(&check["detail"])))
}

/// Waits until `/readyz` says of a root that it does not open KEKs, and names some of these: it lists
/// the first ones by chain and id.
async fn blamed(service: &Service, root: &str, keks: &[&str]) {
    until("a root that is named with a KEK", async || {
        let (status, detail) = check(service, &format!("root:{root}")).await?;
        let is_named = keks.iter().any(|kek| detail.contains(*kek));
        (status == "degraded" && is_named).then_some(())
    })
    .await;
    let metric = format!("kms_proxy_root_wrong_wraps{{root=\"{root}\"}} ");
    let metrics = service.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&metric)).unwrap();
    assert!(line.parse::<u64>().unwrap() > 0, "{metric}{line}");
}

/// The answer for a caller holds nothing that only an operator can use.
fn without_advice(problem: &Value) {
    let detail = problem["detail"].as_str().unwrap();
    for advice in ["kms-proxy", "/v1/", "rotate", "force", "passphrase", "key file", "configur"] {
        assert!(!detail.contains(advice), "{problem}");
    }
}

/// The chain encrypts nothing because its roots are not the right ones, and the caller learns no more.
async fn encrypts_nothing(service: &Service, chain: &str) {
    let body = json!({"plaintext": "AAAA", "chain": chain});
    let (status, problem) = service.post("/v1/encrypt", body).await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("root_unavailable")), "{problem}");
    without_advice(&problem);
}

/// A command of the binary against a service: its exit code and all that it printed.
fn command(service: &Service, arguments: &[&str]) -> (Option<i32>, String) {
    let url = service.url();
    let output = run(&[arguments, &["--server", &url]].concat(), b"");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// The ids of a chain's KEKs.
async fn keks(service: &Service, chain: &str) -> Vec<String> {
    let items = pages(service, &format!("/v1/chains/{chain}"), "items").await;
    items.iter().map(|kek| kek["kek_id"].as_str().unwrap().to_owned()).collect()
}

/// Envelopes under two KEKs of each chain.
async fn used(service: &Service, chains: &[&str]) -> Vec<Sealed> {
    let mut sealed = Vec::new();
    for chain in chains {
        sealed.push(service.encrypt(chain, "AAEC").await);
        service.ok("/v1/rotate", json!({"chain": chain})).await;
        sealed.push(service.encrypt(chain, "////").await);
    }
    sealed
}

fn good(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn dir(setup: &Setup) -> String {
    format!("dir:{}", setup.data().display())
}

fn backup(path: &Path) -> String {
    format!("backup:{}", path.display())
}

fn copy(from: &str, to: &str) -> String {
    good(run(&["store", "copy", "--from", from, "--to", to], b""))
}

/// What the commands about a store need to find that of `setup`.
fn at_store(setup: &Setup) -> Setup {
    setup.clone().set("STORE__PATH", setup.data().display())
}

/// The value of a metric with these labels.
async fn metric(service: &Service, name: &str) -> u64 {
    let metrics = service.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
}

/// The lines of a log with `part` in them.
fn lines<'a>(log: &'a str, part: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(part)).collect()
}

const CHAINS: [&str; 2] = ["default", "orders"];

#[tokio::test]
async fn after_a_restore_a_wrong_passphrase_makes_no_kek_and_the_right_one_opens_all() {
    for way in ["store copy", "store restored"] {
        let base = || Setup::new().set("CHAIN__NAMES", "orders");
        let mut setup = base();
        let service = passphrase(setup.clone(), 0, "main", RIGHT).start().await;
        let mut sealed = used(&service, &CHAINS).await;
        service.stop().await;
        if way == "store copy" {
            let (old, file) = (setup.clone(), backup(&setup.file("2026-11-24.backup")));
            setup = base();
            copy(&dir(&old), &file);
            copy(&file, &dir(&setup));
        } else {
            let right = passphrase(at_store(&setup), 0, "main", RIGHT);
            good(right.run(&["store", "restored"]));
        }

        // Restarts change nothing.
        for _ in 0..2 {
            let service = passphrase(setup.clone(), 0, "main", WRONG).start_ready_or_not().await;
            for chain in CHAINS {
                let before = keks(&service, chain).await;
                encrypts_nothing(&service, chain).await;
                let (code, said) = command(&service, &["rotate", "--chain", chain]);
                assert!(code == Some(1) && said.contains("root_unavailable"), "{code:?} {said}");
                encrypts_nothing(&service, chain).await;
                assert_eq!(keks(&service, chain).await, before, "{way}");
                let of_both = [before, keks(&service, "default").await].concat();
                blamed(&service, "main", &of_both.iter().map(String::as_str).collect::<Vec<_>>())
                    .await;
                let (status, detail) = check(&service, &format!("chain:{chain}")).await.unwrap();
                assert!(status == "degraded" && detail.contains("rotate --force"), "{detail}");
            }
            // A new chain gets no KEK either.
            let (status, made) =
                service.send(reqwest::Method::PUT, "/v1/chains/new", json!({})).await;
            assert!(status.is_success(), "{made}");
            encrypts_nothing(&service, "new").await;
            let body = json!({"ciphertext": sealed[0].ciphertext, "chain": sealed[0].chain});
            let (status, problem) = service.post("/v1/decrypt", body).await;
            assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("root_unavailable")));
            without_advice(&problem);
            let (status, readiness) = service.get("/readyz").await;
            let unavailable = (503, &json!("unavailable"));
            assert_eq!((status.as_u16(), &readiness["status"]), unavailable, "{readiness}");
            for ask in ["healthcheck", "status"] {
                let (code, said) = command(&service, &[ask]);
                assert!(code == Some(1) && said.contains("root:main"), "{code:?} {said}");
            }
            let log = service.stop().await;
            assert!(!log.contains("correct horse"), "{log}");
        }

        let service = passphrase(setup, 0, "main", RIGHT).start().await;
        decrypt_all(&service, &sealed).await;
        for chain in ["default", "orders", "new"] {
            sealed.push(service.encrypt(chain, "aGVsbG8=").await);
        }
        decrypt_all(&service, &sealed).await;
        let (_, readiness) = service.get("/readyz").await;
        assert_eq!(readiness["status"], "ok", "{way}: {readiness}");
    }
}

#[tokio::test]
async fn where_the_old_passphrase_is_lost_a_forced_rotation_proceeds_and_what_is_lost_is_listed() {
    let setup = Setup::new();
    let service = passphrase(setup.clone(), 0, "main", RIGHT).start().await;
    let lost = service.encrypt("default", "aGVsbG8=").await;
    service.stop().await;
    let setup = passphrase(setup, 0, "main", WRONG);
    let service = setup.start_unready().await;
    encrypts_nothing(&service, "default").await;
    let (code, said) = command(&service, &["rotate"]);
    assert!(code == Some(1) && said.contains("rotate --force"), "{code:?} {said}");
    let (code, said) = command(&service, &["rotate", "--force"]);
    assert_eq!(code, Some(0), "{said}");
    let sealed = [service.encrypt("default", "AAAA").await];
    assert_eq!(sealed[0].kek_id(), said.trim());
    // From here on it rotates by itself and by hand as any other.
    let (code, said) = command(&service, &["rotate"]);
    assert_eq!(code, Some(0), "{said}");
    service.stop().await;
    let service = setup.start().await;
    decrypt_all(&service, &sealed).await;
    service.encrypt("default", "AAAA").await;
    let (status, problem) =
        service.post("/v1/decrypt", json!({"ciphertext": lost.ciphertext})).await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("root_unavailable")), "{problem}");
    let (code, said) = command(&service, &["kek", "missing"]);
    let listed = said.lines().find(|line| line.contains(&lost.kek_id()));
    assert!(code == Some(0) && listed.is_some_and(|it| it.contains("unopenable")), "{said}");
    blamed(&service, "main", &[&lost.kek_id()]).await;
    assert_eq!(metric(&service, r#"kms_proxy_unopenable_keks{chain="default"}"#).await, 1);
    let (status, readiness) = service.get("/readyz").await;
    assert_eq!((status.as_u16(), &readiness["status"]), (200, &json!("degraded")), "{readiness}");
}

#[tokio::test]
async fn a_key_file_that_is_missing_is_not_made_again_and_is_taken_when_it_is_back() {
    let setup = Setup::new().set("CHAIN__NAMES", "orders");
    let service = setup.start().await;
    let mut sealed = used(&service, &CHAINS).await;
    service.stop().await;
    let (file, aside) = (setup.data().join("root.key"), setup.file("aside"));
    std::fs::rename(&file, &aside).unwrap();
    let service = setup.start_unready().await;
    for chain in CHAINS {
        encrypts_nothing(&service, chain).await;
        let (code, said) = command(&service, &["rotate", "--chain", chain]);
        assert!(code == Some(1) && said.contains("root_unavailable"), "{code:?} {said}");
    }
    let (status, detail) = check(&service, "root:local").await.unwrap();
    let path = file.display().to_string();
    assert!(status == "degraded" && detail.contains(&path), "{detail}");
    assert!(detail.contains("is missing") && detail.contains("root init"), "{detail}");
    assert_eq!(service.get("/readyz").await.0, 503);
    assert!(!file.exists(), "no key is made");

    std::fs::rename(&aside, &file).unwrap();
    for chain in CHAINS {
        let one = until("it encrypts again", async || {
            service.try_encrypt(chain, "aGVsbG8=").await.unwrap().ok()
        });
        sealed.push(one.await);
    }
    decrypt_all(&service, &sealed).await;
    until("all is well", async || (service.get("/readyz").await.1["status"] == "ok").then_some(()))
        .await;
}

#[tokio::test]
async fn a_new_key_file_beside_kek_of_another_is_made_by_command_and_encrypts_by_force_alone() {
    let (setup, other) = (Setup::new(), Setup::new());
    let service = setup.start().await;
    let sealed = used(&service, &["default"]).await;
    service.stop().await;
    let last = sealed[1].kek_id();
    let file = setup.data().join("root.key");
    let key = std::fs::read(&file).unwrap();

    // That of another machine, and a new one.
    other.start().await.stop().await;
    std::fs::copy(other.data().join("root.key"), &file).unwrap();
    let service = setup.start_unready().await;
    encrypts_nothing(&service, "default").await;
    blamed(&service, "local", &[&last]).await;
    service.stop().await;
    std::fs::remove_file(&file).unwrap();
    let said = good(at_store(&setup).run(&["root", "init"]));
    assert!(said.contains("a new key is in"), "{said}");
    let made = std::fs::read(&file).unwrap();
    let service = setup.start_unready().await;
    encrypts_nothing(&service, "default").await;
    blamed(&service, "local", &[&last]).await;
    let keks_then = keks(&service, "default").await;
    assert_eq!(keks_then.len(), 2, "{keks_then:?}");
    service.stop().await;

    // The right one is found after all.
    std::fs::write(&file, &key).unwrap();
    let service = setup.start().await;
    decrypt_all(&service, &sealed).await;
    let after = service.encrypt("default", "AAAA").await;
    service.stop().await;
    // It is lost for good.
    std::fs::write(&file, &made).unwrap();
    let service = setup.start_unready().await;
    assert_eq!(command(&service, &["rotate", "--force"]).0, Some(0));
    let under_new = [service.encrypt("default", "AAAA").await];
    assert_ne!(under_new[0].kek_id(), after.kek_id());
    decrypt_all(&service, &under_new).await;
}

#[tokio::test]
async fn keks_that_an_old_backup_lacks_are_named_listed_counted_and_logged_once() {
    let (old, new) = (Setup::new(), Setup::new());
    let service = old.start().await;
    let kept = used(&service, &["default"]).await;
    service.stop().await;
    let file = old.file("backup");
    copy(&dir(&old), &backup(&file));
    let service = old.start().await;
    service.ok("/v1/rotate", json!({})).await;
    let lost = used(&service, &["default"]).await;
    service.stop().await;
    std::fs::create_dir_all(new.data()).unwrap();
    std::fs::copy(old.data().join("root.key"), new.data().join("root.key")).unwrap();
    copy(&backup(&file), &dir(&new));

    let service = new.start().await;
    decrypt_all(&service, &kept).await;
    for _ in 0..2 {
        for sealed in &lost {
            let id = sealed.kek_id();
            let body = json!({"ciphertext": sealed.ciphertext});
            let (status, problem) = service.post("/v1/decrypt", body.clone()).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("unknown_kek")));
            assert!(problem["detail"].as_str().unwrap().contains(&id), "{problem}");
            let answer = service.ok("/v1/batch/decrypt", json!({"items": [body]})).await;
            let error = &answer["results"][0]["error"];
            assert_eq!(error["code"], "unknown_kek", "{answer}");
            assert!(error["detail"].as_str().unwrap().contains(&id), "{answer}");
        }
    }
    let (code, said) = command(&service, &["kek", "missing"]);
    assert_eq!(code, Some(0), "{said}");
    for sealed in &lost {
        let line = said.lines().find(|line| line.contains(&sealed.kek_id())).expect(&said);
        assert!(line.contains("unknown") && line.contains("default"), "{said}");
    }
    assert_eq!(metric(&service, r#"kms_proxy_unknown_keks{chain="default"}"#).await, 2);
    let (_, detail) = check(&service, "chain:default").await.unwrap();
    let log = service.stop().await;
    for sealed in &lost {
        assert!(detail.contains(&sealed.kek_id()), "{detail}");
        let of_kek = lines(&log, "names a KEK that this chain does not have");
        let of_kek: Vec<_> = of_kek.iter().filter(|it| it.contains(&sealed.kek_id())).collect();
        assert_eq!(of_kek.len(), 1, "{log}");
    }
}

#[tokio::test]
async fn a_store_that_disappeared_is_refused_until_it_is_restored_or_given_up() {
    let setup = Setup::new();
    let service = setup.start().await;
    let sealed = used(&service, &["default"]).await;
    service.stop().await;
    let (store, file) = (setup.data().join("store.redb"), setup.file("backup"));
    copy(&dir(&setup), &backup(&file));
    std::fs::remove_file(&store).unwrap();
    for _ in 0..2 {
        let (code, log) = setup.fails().await;
        assert_eq!(code, Some(1), "{log}");
        let path = store.display().to_string();
        assert!(log.contains(&format!("{path} is missing")) && log.contains("store copy"), "{log}");
        assert!(!store.exists(), "no store is made");
    }
    copy(&backup(&file), &dir(&setup));
    let service = setup.start().await;
    decrypt_all(&service, &sealed).await;
    service.encrypt("default", "AAAA").await;
    service.stop().await;

    std::fs::remove_file(&store).unwrap();
    std::fs::remove_file(setup.data().join("store.lock")).unwrap();
    let service = setup.start().await;
    let (status, problem) =
        service.post("/v1/decrypt", json!({"ciphertext": sealed[0].ciphertext})).await;
    assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("unknown_kek")), "{problem}");
    let made = [service.encrypt("default", "AAAA").await];
    decrypt_all(&service, &made).await;
}

/// The rule of the documents: a backup in the second half of a KEK's lifetime holds the next KEK.
#[tokio::test]
async fn a_backup_in_the_second_half_of_a_kek_opens_what_the_next_one_encrypts() {
    let setup = Setup::new()
        .set("CHAIN__ROTATE_AFTER_USES", 200)
        .set("CHAIN__MAX_USES", 400)
        .set("CHAIN__ROTATE_AFTER_AGE", "30d");
    let service = setup.start().await;
    let mut sealed = Vec::new();
    let standby = until("a standby, from half of the uses on", async || {
        sealed.push(service.encrypt("default", "AAAA").await);
        let (_, chain) = service.get("/v1/chains/default").await;
        chain["standby"].as_str().map(str::to_owned)
    })
    .await;
    assert!(sealed.iter().all(|one| one.kek_id() != standby));
    service.stop().await;
    let file = setup.file("backup");
    copy(&dir(&setup), &backup(&file));

    let service = setup.start().await;
    until("values of the next KEK", async || {
        sealed.push(service.encrypt("default", "AAAA").await);
        (sealed.last().unwrap().kek_id() == standby).then_some(())
    })
    .await;
    service.stop().await;

    // The store is lost, but for its root key.
    for name in ["store.redb", "store.lock"] {
        std::fs::remove_file(setup.data().join(name)).unwrap();
    }
    copy(&backup(&file), &dir(&setup));
    let service = setup.start().await;
    decrypt_all(&service, &sealed).await;
}
