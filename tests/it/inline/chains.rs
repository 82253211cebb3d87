//! Chains that have a store and are set to `inline`: their envelopes open after the store is lost.

use serde_json::json;

use super::{HELLO, call, good, header};
use crate::support::etcd::Etcd;
use crate::support::{Sealed, Service, Setup, decrypt_all, tell};

/// Envelopes of the chain `orders`, made in every way, and one that was made before it was set to
/// `inline`.
struct Made {
    inline: Vec<Sealed>,
    stored: Sealed,
}

fn sealed(ciphertext: &serde_json::Value, plaintext: &str) -> Sealed {
    Sealed {
        chain: "orders".to_owned(),
        plaintext: plaintext.to_owned(),
        ciphertext: ciphertext.as_str().unwrap().to_owned(),
    }
}

async fn make(service: &Service) -> Made {
    let table = good(call(service, &["chain", "create", "orders"], b""));
    assert!(table.contains("INLINE") && table.contains("  no  "), "{table}");
    let stored = service.encrypt("orders", HELLO).await;
    let table = good(call(service, &["chain", "set", "orders", "--inline"], b""));
    assert!(table.contains("  yes  "), "{table}");
    assert_eq!(service.get("/v1/chains/orders").await.1["inline"], true);

    let mut inline = vec![service.encrypt("orders", HELLO).await];
    let answer = service.ok("/v1/datakey", json!({"chain": "orders", "bytes": 32})).await;
    inline.push(sealed(&answer["ciphertext"], answer["plaintext"].as_str().unwrap()));
    let items = json!([{"plaintext": HELLO}, {"plaintext": HELLO}]);
    let answer = service.ok("/v1/batch/encrypt", json!({"chain": "orders", "items": items})).await;
    for result in answer["results"].as_array().unwrap() {
        inline.push(sealed(&result["ciphertext"], HELLO));
    }
    // A rewrap gives an older envelope the new form.
    let body = json!({"chain": "orders", "ciphertext": stored.ciphertext});
    inline.push(sealed(&service.ok("/v1/rewrap", body).await["ciphertext"], HELLO));
    service.ok("/v1/rotate", json!({"chain": "orders"})).await;
    inline.push(service.encrypt("orders", HELLO).await);
    Made { inline, stored }
}

/// A service that has the same root, and an empty store.
async fn recover(fresh: &Service, made: &Made) {
    let body = json!({"chain": "orders", "ciphertext": made.stored.ciphertext});
    let (status, answer) = fresh.post("/v1/decrypt", body).await;
    assert_eq!((status.as_u16(), &answer["code"]), (400, &json!("unknown_kek")));
    decrypt_all(fresh, &made.inline).await;
    // What is moved to the new store needs no inline record any more.
    let moved = json!({"chain": "orders", "ciphertext": made.inline[0].ciphertext});
    let moved = fresh.ok("/v1/rewrap", moved).await;
    assert_ne!(moved["kek_id"], moved["previous_kek_id"]);
    decrypt_all(fresh, &[sealed(&moved["ciphertext"], HELLO)]).await;
}

fn overhead(kind: &str, made: &Made) {
    let (plain, none) = header(&made.stored.ciphertext);
    assert_eq!(none, None);
    for sealed in &made.inline {
        let (whole, record) = header(&sealed.ciphertext);
        assert_eq!(whole, plain + 2 + record.expect("an inline record"));
    }
    let more = header(&made.inline[0].ciphertext).0 - plain;
    tell(&format!("{kind}: an inline envelope of a local root is {more} bytes longer"));
    assert!(more <= 80, "{more}");
}

fn setup() -> Setup {
    let setup = Setup::new().set("ROOT__0__NAME", "main").set("ROOT__0__KIND", "local");
    let key = setup.file("root.key");
    setup.set("ROOT__0__KEY_FILE", key.display()).set("LOG__LEVEL", "warn")
}

#[tokio::test]
async fn after_the_file_store_is_lost_the_root_alone_opens_the_envelopes() {
    let setup = setup();
    let service = setup.start().await;
    let made = make(&service).await;
    overhead("file", &made);
    decrypt_all(&service, &made.inline).await;
    decrypt_all(&service, std::slice::from_ref(&made.stored)).await;
    service.stop().await;
    std::fs::remove_dir_all(setup.data()).unwrap();
    let fresh = setup.clone().set("CHAIN__NAMES", "orders").set("CHAIN__INLINE", "true");
    let fresh = fresh.start().await;
    recover(&fresh, &made).await;
    assert!(header(&fresh.encrypt("orders", HELLO).await.ciphertext).1.is_some());
    let table = good(call(&fresh, &["chain", "set", "orders", "--inline=false"], b""));
    assert!(table.contains("  no  "), "{table}");
    assert_eq!(header(&fresh.encrypt("orders", HELLO).await.ciphertext).1, None);
    decrypt_all(&fresh, &made.inline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_etcd_is_lost_the_root_alone_opens_the_envelopes() {
    let (etcd, setup) = (Etcd::start().await, setup());
    let at = |etcd: &Etcd| setup.clone().on_etcd(etcd);
    let service = at(&etcd).start().await;
    let made = make(&service).await;
    overhead("etcd", &made);
    service.kill();
    drop(etcd);
    let etcd = Etcd::start().await;
    recover(&at(&etcd).set("CHAIN__NAMES", "orders").start().await, &made).await;
}
