//! Roots that are not the ones that their names say: reused names, swapped roots, aliases that moved,
//! and a root that was removed because it is no longer trusted.

use serde_json::json;

use crate::aws_kms;
use crate::support::kms::{Front, Moto};
use crate::support::{Service, Setup, decrypt_all, pages, until};

use super::{
    RIGHT, at_store, blamed, check, command, encrypts_nothing, good, keks, passphrase, used,
};

/// The roots that wrapped a KEK.
async fn roots_of(service: &Service, kek: &str) -> Vec<String> {
    let items = pages(service, "/v1/chains/default", "items").await;
    let item = items.iter().find(|item| item["kek_id"] == kek).unwrap();
    item["roots"].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_roots_name_that_is_reused_for_another_key_wraps_nothing() {
    let setup = Setup::new();
    let root = |setup: &Setup, index, name, phrase| passphrase(setup.clone(), index, name, phrase);
    let both = |main| root(&root(&setup, 0, "main", main), 1, "dr", "of the safe");
    let service = both(RIGHT).start().await;
    let mut sealed = used(&service, &["default"]).await;
    let last = sealed[1].kek_id();
    service.stop().await;

    // The old key has a name of which no KEK knows: nothing opens.
    let service =
        root(&root(&setup, 0, "main", "a new one"), 1, "old", RIGHT).start_unready().await;
    encrypts_nothing(&service, "default").await;
    assert_eq!(command(&service, &["rotate"]).0, Some(1));
    blamed(&service, "main", &[&last]).await;
    assert_eq!(keks(&service, "default").await.len(), 2);
    service.stop().await;

    // Another root opens them: the chain continues by that one alone.
    let service = both("a new one").start().await;
    decrypt_all(&service, &sealed).await;
    let (code, said) = command(&service, &["rotate"]);
    assert_eq!(code, Some(0), "{said}");
    let made = service.encrypt("default", "AAAA").await;
    assert_eq!(roots_of(&service, &made.kek_id()).await, ["dr"]);
    blamed(&service, "main", &[&last]).await;
    let (code, said) = command(&service, &["root", "rewrap", "--root", "main"]);
    assert!(code == Some(1) && said.contains("has another key than before"), "{code:?} {said}");
    assert_eq!(roots_of(&service, &made.kek_id()).await, ["dr"]);
    sealed.push(made);
    service.stop().await;

    // The name has its key again, and wraps what it missed.
    let service = both(RIGHT).start().await;
    decrypt_all(&service, &sealed).await;
    let (code, said) = command(&service, &["root", "rewrap", "--root", "main"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(service.get("/readyz").await.1["status"], "ok");
    service.stop().await;
    let service = root(&setup, 0, "main", RIGHT).start().await;
    decrypt_all(&service, &sealed).await;
}

#[tokio::test]
async fn two_roots_that_are_swapped_make_no_kek_and_both_are_named() {
    let setup = Setup::new();
    let roots = |a, b| passphrase(passphrase(setup.clone(), 0, "a", a), 1, "b", b);
    let service = roots("of a", "of b").start().await;
    let mut sealed = used(&service, &["default"]).await;
    service.stop().await;
    // With a primary that does not open, and after a restore with none.
    for is_restored in [false, true] {
        if is_restored {
            good(at_store(&roots("of a", "of b")).run(&["store", "restored"]));
        }
        let service = roots("of b", "of a").start_unready().await;
        let before = keks(&service, "default").await;
        encrypts_nothing(&service, "default").await;
        assert_eq!(command(&service, &["rotate"]).0, Some(1));
        let last = sealed.last().unwrap().kek_id();
        for root in ["a", "b"] {
            blamed(&service, root, &[&last]).await;
        }
        assert_eq!(service.get("/readyz").await.0, 503);
        assert_eq!(keks(&service, "default").await, before);
        service.stop().await;
        let service = roots("of a", "of b").start().await;
        decrypt_all(&service, &sealed).await;
        sealed.push(service.encrypt("default", "AAAA").await);
        service.stop().await;
    }
}

#[tokio::test]
async fn nothing_written_after_a_root_was_removed_opens_with_it_and_an_old_copy_of_the_store() {
    for has_standby in [false, true] {
        let setup = Setup::new()
            .set("CHAIN__NAMES", "orders")
            .set("CHAIN__ROTATE_AFTER_USES", 1_000)
            .set("CHAIN__MAX_USES", 100_000);
        let old = passphrase(setup.clone(), 0, "old", "no longer trusted");
        let new = |setup, index| passphrase(setup, index, "new", RIGHT);
        let service = old.start().await;
        let mut before = used(&service, &["default", "orders"]).await;
        service.stop().await;
        let service = new(old.clone(), 1).start().await;
        if has_standby {
            until("a standby", async || {
                before.push(service.encrypt("default", "AAAA").await);
                let (_, chain) = service.get("/v1/chains/default").await;
                chain["standby"].as_str().map(str::to_owned)
            })
            .await;
        }
        let (code, said) = command(&service, &["root", "rewrap", "--root", "new"]);
        assert_eq!(code, Some(0), "{said}");
        service.stop().await;

        // The old root is removed from the configuration. The store is copied at this moment.
        let service = new(setup.clone(), 0).start().await;
        before.push(service.encrypt("default", "AAAA").await);
        service.stop().await;
        let copy = Setup::new();
        std::fs::create_dir_all(copy.data()).unwrap();
        std::fs::copy(setup.data().join("store.redb"), copy.data().join("store.redb")).unwrap();
        let service = new(setup.clone(), 0).start().await;
        let (code, said) = command(&service, &["root", "remove", "--root", "old"]);
        assert!(code == Some(0) && said.contains(" 0 failed"), "{code:?} {said}");
        let mut after = used(&service, &["default", "orders"]).await;
        // As far as a standby that was there before would be promoted.
        for _ in 0..if has_standby { 1_500 } else { 0 } {
            after.push(service.encrypt("default", "AAAA").await);
        }
        decrypt_all(&service, &before).await;
        decrypt_all(&service, &after).await;
        service.stop().await;

        let service = passphrase(copy, 0, "old", "no longer trusted").start().await;
        decrypt_all(&service, &before).await;
        for sealed in &after {
            let body = json!({"ciphertext": sealed.ciphertext, "chain": sealed.chain});
            let (status, problem) = service.post("/v1/decrypt", body).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("unknown_kek")));
        }
        service.stop().await;
        let service = new(setup, 0).start().await;
        decrypt_all(&service, &before).await;
        decrypt_all(&service, &after).await;
    }
}

/// Points the alias at another key.
async fn move_alias(moto: &Moto, key: &str) {
    moto.call("UpdateAlias", json!({"AliasName": "alias/main", "TargetKeyId": key})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_that_moves_to_another_key_wraps_no_kek() {
    let moto = Moto::start();
    let front = Front::start(Some(&moto)).await;
    let (old, new) = (moto.create_key().await, moto.create_key().await);
    moto.call("CreateAlias", json!({"AliasName": "alias/main", "TargetKeyId": old})).await;
    let setup = aws_kms::setup(&front, "alias/main");
    let service = setup.start().await;
    let mut sealed = used(&service, &["default"]).await;

    // While the process runs: it continues with the KEKs that it has.
    move_alias(&moto, &new).await;
    let before = keks(&service, "default").await;
    let (code, said) = command(&service, &["rotate"]);
    assert!(code == Some(1) && said.contains("root_unavailable"), "{code:?} {said}");
    sealed.push(service.encrypt("default", "AAAA").await);
    decrypt_all(&service, &sealed).await;
    let (status, detail) = check(&service, "root:main").await.unwrap();
    assert!(status == "degraded", "{detail}");
    assert!(detail.contains(&old) && detail.contains(&new), "{detail}");
    assert_eq!(keks(&service, "default").await, before);
    service.stop().await;

    // Before a start.
    let service = setup.start_unready().await;
    encrypts_nothing(&service, "default").await;
    assert_eq!(command(&service, &["rotate"]).0, Some(1));
    blamed(&service, "main", &[&sealed[1].kek_id()]).await;
    assert_eq!(keks(&service, "default").await, before);
    assert_eq!(service.get("/readyz").await.0, 503);

    // It is moved back: no restart is needed.
    move_alias(&moto, &old).await;
    let one = until("it encrypts again", async || {
        service.try_encrypt("default", "AAAA").await.unwrap().ok()
    });
    sealed.push(one.await);
    service.ok("/v1/rotate", json!({})).await;
    sealed.push(service.encrypt("default", "AAAA").await);
    decrypt_all(&service, &sealed).await;
    service.stop().await;
    // All of it is under the old key.
    let service = aws_kms::setup(&front, &old);
    let service = with_data_of(service, &setup).start().await;
    decrypt_all(&service, &sealed).await;
}

/// `to` with a copy of the store of a service that is stopped.
fn with_data_of(to: Setup, from: &Setup) -> Setup {
    std::fs::create_dir_all(to.data()).unwrap();
    std::fs::copy(from.data().join("store.redb"), to.data().join("store.redb")).unwrap();
    to
}
