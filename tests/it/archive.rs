//! Archives of a running service: the store is lost or an archive is unavailable, and every envelope
//! decrypts.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde_json::json;

use crate::support::{Setup, decrypt_all, until};

mod bucket;
mod commands;
mod destroy;
mod disk;
mod existing;
mod loss;
pub(crate) mod many;
mod outage;

const HELLO: &str = "aGVsbG8=";

/// A service with one archive, the directory `archive`.
fn setup() -> Setup {
    let setup = Setup::new();
    let (key, archive) = (setup.file("root.key"), setup.file("archive"));
    directory(root(setup, &key), 0, &archive)
}

/// `setup` with a local root whose key is in `key`.
pub(crate) fn root(setup: Setup, key: &Path) -> Setup {
    let setup = setup.set("ROOT__0__NAME", "main").set("ROOT__0__KIND", "local");
    setup.set("ROOT__0__KEY_FILE", key.display())
}

/// `setup` with the directory `path` as the archive `nas`, number `index` of the configuration. It
/// is created if it is missing.
pub(crate) fn directory(setup: Setup, index: usize, path: &Path) -> Setup {
    if !path.exists() {
        create(path);
        std::fs::write(path.join("kms-proxy-archive"), "").unwrap();
    }
    let setup = setup.set(&format!("ARCHIVE__{index}__NAME"), "nas");
    let setup = setup.set(&format!("ARCHIVE__{index}__KIND"), "dir");
    setup.set(&format!("ARCHIVE__{index}__PATH"), path.display())
}

/// A directory that other users cannot write to.
fn create(directory: &Path) {
    DirBuilder::new().mode(0o700).create(directory).unwrap();
}

#[tokio::test]
async fn after_the_store_is_lost_a_decrypt_restores_the_keks_from_the_archive() {
    let setup = setup();
    let service = setup.start().await;
    let mut envelopes = Vec::new();
    for _ in 0..3 {
        envelopes.push(service.encrypt("default", HELLO).await);
        service.ok("/v1/rotate", json!({})).await;
    }
    // A crash, and nothing remains of the store.
    service.kill();
    std::fs::remove_dir_all(setup.data()).unwrap();
    let service = setup.start().await;
    decrypt_all(&service, &envelopes).await;
    let new = service.encrypt("default", HELLO).await;
    assert!(envelopes.iter().all(|old| old.kek_id() != new.kek_id()), "its counter is lost");
    let log = service.stop().await;
    assert!(log.contains("restored"), "{log}");
}

#[tokio::test]
async fn a_kek_that_the_archive_does_not_hold_encrypts_nothing() {
    let setup = setup();
    let service = setup.start().await;
    let first = service.encrypt("default", HELLO).await;
    // The disk is not mounted any more: what is there is the directory that it was mounted on.
    let (archive, away) = (setup.file("archive"), setup.file("away"));
    std::fs::rename(&archive, &away).unwrap();
    create(&archive);
    let (status, answer) = service.post("/v1/rotate", json!({})).await;
    assert_eq!((status.as_u16(), &answer["code"]), (503, &json!("archive_unavailable")));
    let second = service.encrypt("default", HELLO).await;
    assert_eq!(second.kek_id(), first.kek_id());
    std::fs::remove_dir(&archive).unwrap();
    std::fs::rename(&away, &archive).unwrap();
    until("a rotation", async || {
        let (status, _) = service.post("/v1/rotate", json!({})).await;
        (status == 200).then_some(())
    })
    .await;
    let third = service.encrypt("default", HELLO).await;
    assert_ne!(third.kek_id(), first.kek_id());
    decrypt_all(&service, &[first, second, third]).await;
}
