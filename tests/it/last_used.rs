//! The days on which KEKs were last used, of the real binary: what a list, the page of a chain and
//! a destroy show, what a restart keeps, and what replicas on etcd store.

use kms_proxy::clock::{Clock as _, SystemClock};
use kms_proxy::timestamp::{DAY, date};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::etcd::Etcd;
use crate::support::{Sealed, Service, Setup, decrypt_all, pages, run, until};

/// The chain that is used. `default` is on one side only.
const CHAIN: &str = "orders";

fn today() -> String {
    date(u32::try_from(SystemClock::new().unix_now() / DAY).unwrap())
}

async fn kek(service: &Service, id: &str) -> Value {
    let keks = pages(service, &format!("/v1/chains/{CHAIN}"), "items").await;
    keks.into_iter().find(|kek| kek["kek_id"] == id).unwrap()
}

/// The last encrypt and the last decrypt.
async fn days(service: &Service, id: &str) -> [Value; 2] {
    let kek = kek(service, id).await;
    [&kek["last_encrypt"], &kek["last_decrypt"]].map(Value::clone)
}

async fn decrypt(service: &Service, sealed: &Sealed) {
    decrypt_all(service, std::slice::from_ref(sealed)).await;
}

fn command(service: &Service, args: &[&str]) -> (Option<i32>, String, String) {
    let url = service.url();
    let output = run(&[args, &["--chain", CHAIN, "--server", &url]].concat(), b"");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code(), stdout, stderr)
}

#[tokio::test]
async fn an_operator_sees_when_a_kek_was_used_and_a_restart_keeps_it() {
    let setup = Setup::new().set("CHAIN__NAMES", CHAIN);
    let before = today();
    let service = setup.start().await;
    let sealed = service.encrypt(CHAIN, "AAAA").await;
    let id = sealed.kek_id();
    assert_eq!(days(&service, &id).await[1], Value::Null);
    service.ok("/v1/rotate", json!({"chain": CHAIN})).await;
    decrypt(&service, &sealed).await;
    let shown = days(&service, &id).await;
    // The test may run at midnight.
    for day in &shown {
        assert!(*day == json!(before) || *day == json!(today()), "{shown:?}");
    }
    let [encrypt, decrypt] = shown.each_ref().map(|day| day.as_str().unwrap().to_owned());
    service.stop().await;

    let service = setup.start().await;
    assert_eq!(days(&service, &id).await, shown, "the end of the process stored them");
    let (code, table, _) = command(&service, &["kek", "list"]);
    let row = table.lines().find(|line| line.starts_with(&id)).unwrap();
    assert!(code == Some(0) && row.contains(&format!("  {encrypt}  ")), "{table}");
    assert!(row.contains(&format!("  {decrypt}  ")), "{table}");
    let since = until("the first day", async || {
        kek(&service, &id).await["usage_known_since"].as_str().map(str::to_owned)
    })
    .await;
    assert!(since >= before && since <= today(), "{since}");
    let response = service.request(Method::GET, "/status/chains/orders").send().await.unwrap();
    let page = response.text().await.unwrap();
    assert!(page.contains("Last decrypt") && page.contains(&decrypt), "{page}");
    // The primary decrypted nothing.
    let never = format!("<td data-title=\"Last decrypt\">none since {since}</td>");
    assert!(page.contains(&never), "{page}");

    // Without --yes nothing is destroyed, and what would be is shown.
    let (code, said, why) = command(&service, &["kek", "destroy", &id]);
    assert!(code == Some(2) && why.contains("nothing was destroyed"), "{code:?} {why}");
    for line in [
        format!("KEK           {id}"),
        "state         retired".to_owned(),
        format!("last encrypt  {encrypt}"),
        format!("last decrypt  {decrypt}"),
    ] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
    let [none, first] = ["00000000000000000000000000000000", "00000000000000000000000000000001"];
    for unknown in [none, first, "ffffffffffffffffffffffffffffffff"] {
        let (code, _, why) = command(&service, &["kek", "destroy", unknown]);
        assert!(code == Some(1) && why.contains("has no KEK"), "{code:?} {why}");
    }
    let (code, _, why) = command(&service, &["kek", "destroy", &id, "--yes"]);
    let told = format!("; last decrypt under it: {decrypt}");
    assert!(code == Some(1) && why.trim_end().ends_with(&told), "{code:?} {why}");
    let disabled = service.ok(&format!("/v1/chains/orders/keks/{id}/disable"), json!({})).await;
    assert_eq!(disabled["last_decrypt"], json!(decrypt), "{disabled}");
}

#[tokio::test]
async fn replicas_on_etcd_store_a_day_once_and_all_show_it() {
    let etcd = Etcd::start().await;
    let setup = || {
        Setup::new()
            .on_etcd(&etcd)
            .set("CHAIN__NAMES", CHAIN)
            .set("ROOT__0__NAME", "main")
            .set("ROOT__0__KIND", "passphrase")
            .set("ROOT__0__MEMORY", "19MiB")
            .set("ROOT__0__PASSES", 2)
            .set("ROOT__0__PASSPHRASE", "correct horse battery staple")
    };
    let mut services = Vec::new();
    for _ in 0..3 {
        services.push(setup().start().await);
    }
    let last = services.pop().unwrap();
    let sealed = services[0].encrypt(CHAIN, "AAAA").await;
    let id = sealed.kek_id();
    assert_eq!(days(&last, &id).await[0], Value::Null, "it is in the memory of another one");
    for service in &services {
        decrypt(service, &sealed).await;
    }
    let shown = days(&services[0], &id).await;
    for service in services {
        service.stop().await;
    }
    assert_eq!(days(&last, &id).await, shown);
    let key = format!("/kms-proxy/last-used/{CHAIN}/{id}");
    let stored = etcd.ctl(&["get", &key, "--write-out=json"]);
    let stored: Value = serde_json::from_str(&stored).unwrap();
    // Each process knew what it had to store, and the second one found it stored.
    assert_eq!(stored["kvs"][0]["version"], 1, "{stored}");
    // A replica that shows nothing new stores nothing.
    decrypt(&last, &sealed).await;
    assert_eq!(days(&last, &id).await, shown);
    last.stop().await;
    let after: Value = serde_json::from_str(&etcd.ctl(&["get", &key, "--write-out=json"])).unwrap();
    assert_eq!(after["kvs"], stored["kvs"]);
}
