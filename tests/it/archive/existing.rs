//! An archive that is enabled on a store with KEKs: they are archived in the background, also after
//! kill -9 in the middle, and readiness is degraded until that is complete.

use std::fs::File;
use std::path::Path;

use kms_proxy::archive::object;
use kms_proxy::store::{self, Committed};

use super::many::chain;
use super::{HELLO, directory, root};
use crate::replicas::old_keks;
use crate::support::{Service, Setup, decrypt_all, until};

const KEKS: u64 = 600;

/// Readiness, and the detail of the archive.
async fn readiness(service: &Service) -> (String, String) {
    let (_, readiness) = service.get("/readyz").await;
    let checks = readiness["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "archive:nas").unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    (text(&readiness["status"]), text(&check["detail"]))
}

/// The KEKs in the archive in `path`.
fn archived(path: &Path) -> u64 {
    let objects = std::fs::read_dir(path.join(object::chain_prefix(&chain())));
    objects.map_or(0, |objects| objects.count().saturating_sub(1) as u64)
}

/// Holds the lock of the archive, so that no process writes to it.
fn hold(path: &Path) -> File {
    let lock = File::options().create(true).append(true).open(path.join(".lock")).unwrap();
    lock.lock().unwrap();
    lock
}

/// Waits until the service reports how many records are not archived.
async fn pending(service: &Service) -> u64 {
    until("records that are not archived yet", async || {
        let (status, detail) = readiness(service).await;
        assert_eq!(status, "degraded", "{detail}");
        let metrics = service.metrics().await;
        let name = "kms_proxy_archive_pending{archive=\"nas\"} ";
        let pending = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        detail.contains("records are not archived yet").then(|| pending.parse().unwrap())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_is_enabled_later_gets_every_kek_also_after_a_kill() {
    let setup = Setup::new();
    let (key, nas) = (setup.file("root.key"), setup.file("archive"));
    let setup = root(setup, &key);
    let service = setup.start().await;
    let mut envelopes = vec![service.encrypt("default", HELLO).await];
    service.stop().await;
    {
        let config = format!("kind = 'file'\npath = '{}'", setup.data().display());
        let config: store::Config = toml::from_str(&config).unwrap();
        let store = store::open(&config).await.unwrap();
        for start in (0..KEKS).step_by(200) {
            let stored = store.commit(old_keks(&chain(), start..start + 200)).await.unwrap();
            assert!(matches!(stored, Committed::Applied(_)));
        }
    }

    // An archive that is complete before the service is killed is enabled again, empty.
    let (setup, some, lock) = until("a service that is killed in the middle", async || {
        _ = std::fs::remove_dir_all(&nas);
        let setup = directory(setup.clone(), 0, &nas);
        let lock = hold(&nas);
        let service = setup.start().await;
        until("all records", async || (pending(&service).await > KEKS).then_some(())).await;
        drop(lock);
        while archived(&nas) < 50 {
            tokio::task::yield_now().await;
        }
        let lock = hold(&nas);
        service.kill();
        let some = archived(&nas);
        (some < KEKS).then_some((setup, some, lock))
    })
    .await;

    // What is archived already is not written again.
    let service = setup.start().await;
    until("the other records", async || {
        let pending = pending(&service).await;
        (pending > 0 && pending <= KEKS + 2 - some).then_some(())
    })
    .await;
    drop(lock);
    until("a complete archive", async || (readiness(&service).await.0 == "ok").then_some(())).await;
    assert!(archived(&nas) > KEKS);
    envelopes.push(service.encrypt("default", HELLO).await);
    decrypt_all(&service, &envelopes).await;
    let setup = setup.clone().set("STORE__PATH", setup.data().display());
    service.stop().await;
    let compared = setup.run(&["store", "compare"]);
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stderr));
}
