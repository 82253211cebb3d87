//! A destroyed KEK stays destroyed, whatever older copies of it appear.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use kms_proxy::archive::object;
use kms_proxy::id::KekId;
use kms_proxy::store::record::{Kek, State};
use serde_json::{Value, json};

use super::bucket::S3;
use super::many::chain;
use super::{HELLO, directory, root};
use crate::support::{Sealed, Service, Setup, decrypt_all, until};

/// The two archives.
struct Archives {
    s3: S3,
    nas: std::path::PathBuf,
}

impl Archives {
    /// The objects of a KEK in the directory and in the bucket.
    async fn objects(&self, id: KekId) -> [Vec<u8>; 2] {
        let key = object::kek_key(&chain(), id);
        [fs::read(self.nas.join(&key)).unwrap(), self.s3.get(&key).await]
    }

    async fn put(&self, id: KekId, [in_nas, in_bucket]: [Option<Vec<u8>>; 2]) {
        let key = object::kek_key(&chain(), id);
        if let Some(bytes) = in_nas {
            fs::write(self.nas.join(&key), bytes).unwrap();
        }
        if let Some(bytes) = in_bucket {
            self.s3.put(&key, bytes).await;
        }
    }

    async fn keks(&self, id: KekId) -> [Kek; 2] {
        self.objects(id).await.map(|bytes| object::decode_kek(&chain(), id, &bytes).unwrap())
    }

    /// Waits until no archive has a wrap of a KEK.
    async fn erased(&self, id: KekId) {
        until("a KEK that is erased in every archive", async || {
            let keks = self.keks(id).await;
            let is_erased = |kek: &Kek| kek.state == State::Destroyed && kek.wraps.is_empty();
            keks.iter().all(is_erased).then_some(())
        })
        .await;
    }
}

fn id(sealed: &Sealed) -> KekId {
    sealed.kek_id().parse().unwrap()
}

/// Disables or destroys the KEK of an envelope.
async fn change(service: &Service, sealed: &Sealed, change: &str) -> (u16, Value) {
    let id = sealed.kek_id();
    let path = format!("/v1/chains/default/keks/{id}/{change}");
    let body = if change == "destroy" { json!({"confirm": id}) } else { json!({}) };
    let (status, answer) = service.post(&path, body).await;
    (status.as_u16(), answer)
}

async fn refused(service: &Service, sealed: &Sealed) -> bool {
    let (status, answer) =
        service.post("/v1/decrypt", json!({"ciphertext": sealed.ciphertext})).await;
    match status.as_u16() {
        200 => false,
        409 => answer["code"] == "kek_disabled",
        _ => panic!("{status} {answer}"),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroyed_kek_is_erased_in_every_archive_and_no_older_copy_brings_it_back() {
    let setup = Setup::new().set("CHAIN__DESTROY_DELAY", "2m");
    let archives = Archives { s3: S3::start().await, nas: setup.file("archive") };
    let key = setup.file("root.key");
    let setup = archives.s3.archive(directory(root(setup, &key), 0, &archives.nas), 1);
    let service = setup.start().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(service.encrypt("default", HELLO).await);
        service.ok("/v1/rotate", json!({})).await;
    }
    let [first, second, kept] = &made[..] else { panic!() };
    service.stop().await;
    let (data, old) = (setup.data(), setup.file("old"));
    copy(&data, &old);
    let old_objects = archives.objects(id(first)).await;

    let service = setup.start().await;
    for sealed in [first, second] {
        assert_eq!(change(&service, sealed, "disable").await.0, 200);
        let keks = archives.keks(id(sealed)).await;
        assert!(keks.iter().all(|kek| kek.state == State::Disabled), "{keks:?}");
    }
    let began = Instant::now();
    let destroyed = loop {
        let (status, answer) = change(&service, first, "destroy").await;
        if status == 200 {
            break answer;
        }
        assert!(status == 409 && began.elapsed() < Duration::from_secs(300), "{answer}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let left = destroyed["still_archived_in"].as_array();
    assert!(left.is_none_or(Vec::is_empty), "{destroyed}");
    for kek in archives.keks(id(first)).await {
        assert!(kek.state == State::Destroyed && kek.wraps.is_empty(), "{kek:?}");
    }
    assert!(refused(&service, first).await);

    // An archive that is away at that time is named, and erases the wraps when it is back.
    let away = setup.file("away");
    fs::rename(&archives.nas, &away).unwrap();
    let (status, answer) = change(&service, second, "destroy").await;
    assert_eq!((status, &answer["still_archived_in"]), (200, &json!(["nas"])), "{answer}");
    fs::rename(&away, &archives.nas).unwrap();
    archives.erased(id(second)).await;
    service.stop().await;

    // Older objects, and the store has the tombstone.
    archives.put(id(first), old_objects.clone().map(Some)).await;
    let service = setup.start().await;
    assert!(refused(&service, first).await);
    archives.erased(id(first)).await;
    service.stop().await;

    // An older copy of the store, and the archives have the tombstone.
    fs::remove_dir_all(&data).unwrap();
    copy(&old, &data);
    let service = setup.start().await;
    for sealed in [first, second] {
        until("a KEK that is destroyed", async || refused(&service, sealed).await.then_some(()))
            .await;
    }
    archives.erased(id(first)).await;
    service.stop().await;
    let service = setup.start().await;
    assert!(refused(&service, first).await && refused(&service, second).await, "it stays so");
    service.stop().await;

    // No store, and an older object in one of the archives.
    fs::remove_dir_all(&data).unwrap();
    let [_, in_bucket] = old_objects;
    archives.put(id(first), [None, Some(in_bucket)]).await;
    let service = setup.start().await;
    assert!(refused(&service, first).await && refused(&service, second).await);
    archives.erased(id(first)).await;
    decrypt_all(&service, std::slice::from_ref(kept)).await;
}
