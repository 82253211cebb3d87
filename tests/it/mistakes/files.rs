//! Files that disappear while the service runs, and come back: the key of a `local` root, and the
//! directory of the store.

use serde_json::json;

use crate::support::{Service, Setup, decrypt_all, until};

use super::{RIGHT, check, command, passphrase, used};

async fn is_ok(service: &Service) {
    until("all is well", async || (service.get("/readyz").await.1["status"] == "ok").then_some(()))
        .await;
}

/// What a KEK was wrapped by is gone when the process ends, so the key in memory wraps nothing.
#[tokio::test]
async fn while_the_file_of_a_local_root_is_away_or_another_no_kek_is_made() {
    let setup = Setup::new();
    let service = setup.start().await;
    let mut sealed = used(&service, &["default"]).await;
    let (file, aside) = (setup.data().join("root.key"), setup.file("aside"));
    let other = Setup::new();
    other.start().await.stop().await;
    for is_replaced in [false, true] {
        std::fs::rename(&file, &aside).unwrap();
        if is_replaced {
            std::fs::copy(other.data().join("root.key"), &file).unwrap();
        }
        let (code, said) = command(&service, &["rotate"]);
        assert!(code == Some(1) && said.contains("root_unavailable"), "{code:?} {said}");
        let (status, detail) = check(&service, "root:local").await.unwrap();
        let path = file.display().to_string();
        assert!(status == "degraded" && detail.contains(&path), "{status} {detail}");
        assert_eq!(file.exists(), is_replaced, "no key is made");
        // The KEKs that it has are used as before.
        let made = service.encrypt("default", "AAAA").await;
        assert_eq!(made.kek_id(), sealed.last().unwrap().kek_id());
        sealed.push(made);
        decrypt_all(&service, &sealed).await;

        std::fs::rename(&aside, &file).unwrap();
        service.ok("/v1/rotate", json!({})).await;
        sealed.push(service.encrypt("default", "AAAA").await);
        is_ok(&service).await;
    }
    service.stop().await;
    decrypt_all(&setup.start().await, &sealed).await;
}

/// What is written to a file that has no name is gone when the process ends, so nothing is.
#[tokio::test]
async fn while_the_store_directory_is_away_or_another_nothing_is_written() {
    let setup = passphrase(Setup::new(), 0, "main", RIGHT);
    let service = setup.start().await;
    let mut sealed = used(&service, &["default"]).await;
    let (data, aside) = (setup.data(), setup.file("aside"));
    for is_replaced in [false, true] {
        std::fs::rename(&data, &aside).unwrap();
        if is_replaced {
            std::fs::create_dir(&data).unwrap();
            for name in ["store.redb", "store.lock"] {
                std::fs::copy(aside.join(name), data.join(name)).unwrap();
            }
        }
        let (status, problem) = service.post("/v1/rotate", json!({})).await;
        assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("store_unavailable")));
        let (status, detail) = check(&service, "store").await.unwrap();
        let path = data.join("store.redb").display().to_string();
        assert!(status != "ok" && detail.contains(&path), "{status} {detail}");
        // What was written can be read.
        decrypt_all(&service, &sealed).await;

        if is_replaced {
            std::fs::remove_dir_all(&data).unwrap();
        }
        std::fs::rename(&aside, &data).unwrap();
        is_ok(&service).await;
        service.ok("/v1/rotate", json!({})).await;
        sealed.push(service.encrypt("default", "AAAA").await);
    }
    service.stop().await;
    decrypt_all(&setup.start().await, &sealed).await;
}
