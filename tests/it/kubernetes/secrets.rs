//! A cluster's Secrets over everything that happens to a plugin: nothing becomes unreadable.

use serde_json::{Value, json};

use crate::support::etcd::Etcd;
use crate::support::kms::{Front, Moto, Way};
use crate::support::kube::{Client, hex};
use crate::support::{Setup, run, tell, until};

use super::{bytes, plugin, rotate, seed, with_kms, with_local};

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_secrets_outlive_restarts_rotations_another_root_and_an_outage() {
    const SECRETS: u64 = 10_000;
    let (etcd, moto) = (Etcd::start().await, Moto::shared());
    let front = Front::start(Some(&*moto)).await;
    let key = moto.create_key().await;
    let shared = tempfile::tempdir().unwrap();
    let key_file = shared.path().join("root.key");
    let replica = || plugin(Setup::new().on_etcd(&etcd));
    let ((a, socket_a), (b, socket_b)) = (replica(), replica());
    let local = |setup: &Setup, index: usize| {
        with_local(setup.clone(), index)
            .set(&format!("ROOT__{index}__KEY_FILE"), key_file.display())
    };
    let both = |setup: &Setup| local(&with_kms(setup.clone(), 0, &front, &key), 1);
    let aws = |setup: &Setup| with_kms(setup.clone(), 0, &front, &key);

    let mut on_a = local(&a, 0).start().await;
    let mut on_b = local(&b, 0).start().await;
    let mut client = Client::of(&[&socket_a, &socket_b]);
    let names = [0, 1]
        .map(|plugin| client.good(&json!({"do": "status", "plugin": plugin}))["key_id"].clone());
    assert_eq!(names[0], names[1], "the same on all replicas");
    let written = client.good(&json!({"do": "write", "count": SECRETS}));
    assert_eq!(written["secrets"], SECRETS);
    client.good(&json!({"do": "churn"}));

    // KEKs rotate, one plugin ends in order and one as in a power cut.
    rotate(&on_a).await;
    rotate(&on_b).await;
    on_a.stop().await;
    on_a = local(&a, 0).start().await;
    on_b.kill();
    on_b = local(&b, 0).start().await;
    rotate(&on_b).await;

    // Another root.
    for step in ["rewrap", "remove"] {
        on_a.stop().await;
        on_a = if step == "rewrap" { both(&a) } else { aws(&a) }.start().await;
        on_b.stop().await;
        on_b = if step == "rewrap" { both(&b) } else { aws(&b) }.start().await;
        let root = if step == "rewrap" { "main" } else { "local" };
        if step == "remove" {
            // The report of the plugin that was killed would count for 15 minutes.
            etcd.ctl(&["del", "--prefix", "/kms-proxy/roots/local/users/"]);
        }
        let url = on_a.url();
        let mut command = vec!["root", step, "--root", root, "--server", &url];
        // Otherwise it waits for a replica that may have lost the store.
        command.extend((step == "remove").then_some("--no-wait"));
        let output = run(&command, b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_file(&key_file).unwrap();
    let calm = client.good(&json!({"do": "calm"}));
    assert_eq!(calm["wrong"], 0, "{calm}");
    assert!(calm["writes"].as_u64().unwrap() > 0 && calm["reads"].as_u64().unwrap() > 0, "{calm}");
    let names = until("one key id on both", async || {
        let names = [0, 1].map(|plugin| {
            client.good(&json!({"do": "status", "plugin": plugin}))["key_id"].clone()
        });
        (names[0] == names[1]).then_some(names)
    });
    let name = names.await[0].as_str().unwrap().to_owned();
    assert!(name.ends_with(&format!("/aws-kms/main/{key}")), "{name}");
    let read = client.good(&json!({"do": "read"}));
    assert_eq!(read["wrong"], 0, "{read}");

    // The root is unavailable: KEKs in memory are used.
    front.set(Way::Close);
    client.good(&json!({"do": "churn"}));
    let read = client.good(&json!({"do": "read"}));
    assert_eq!(read["wrong"], 0, "{read}");
    assert!(read["read"].as_u64().unwrap() > SECRETS, "{read}");
    let key_ids = read["key_ids"].as_array().unwrap();
    assert!(key_ids.len() >= 2, "{read}");
    let calm = client.good(&json!({"do": "calm"}));
    assert_eq!((&calm["wrong"], &calm["refused"]), (&json!(0), &json!(0)), "{calm}");
    front.set(Way::Through);
    on_a.stop().await;
    on_b.stop().await;

    // And after a last start, with the new root alone.
    let _on_a = aws(&a).start().await;
    let _on_b = aws(&b).start().await;
    until("both plugins answer", async || {
        let mut up =
            |plugin| client.tell(&json!({"do": "status", "plugin": plugin}))["version"] == "v2";
        (up(0) && up(1)).then_some(())
    })
    .await;
    let read = client.good(&json!({"do": "read"}));
    assert_eq!(read["wrong"], 0, "{read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_decrypts_right_after_a_cold_start_make_one_root_call() {
    const SEEDS: u64 = 3_000;
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let (setup, socket) = plugin(with_kms(Setup::new(), 0, &front, &moto.create_key().await));
    let service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    let made = client.encrypt(&seed());
    let kek_id = hex(&bytes(made["ciphertext"].as_str().unwrap())[2..18]);
    client.good(&json!({"do": "write", "count": SEEDS}));
    // Now it is an older one, which a start does not open.
    rotate(&service).await;
    service.stop().await;
    front.take();
    let service = setup.start().await;
    let burst = client.good(&json!({"do": "burst", "count": SEEDS}));
    assert_eq!((&burst["ok"], &burst["failed"]), (&json!(SEEDS), &json!(0)), "{burst}");
    let of_kek = |call: &crate::support::kms::Call| {
        call.body["EncryptionContext"]["kms-proxy:kek-id"] == kek_id
    };
    let calls = front.take().iter().filter(|call| of_kek(call)).count();
    assert_eq!(calls, 1);
    tell(&format!("3,000 concurrent decrypts after a cold start: {burst}"));
    // And warm, as a second kube-apiserver would ask.
    let burst = client.good(&json!({"do": "burst", "count": SEEDS}));
    assert_eq!(burst["failed"], 0, "{burst}");
    tell(&format!("the same again: {burst}"));
    // The client measures itself as well: all that it sends before it reads. This is the service alone.
    let log = service.stop().await;
    let calls = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let took = calls.filter(|call| call["call"] == "decrypt").filter_map(|call| {
        let took_us = call["took_us"].as_str().map(str::to_owned);
        took_us.unwrap_or_else(|| call["took_us"].to_string()).parse().ok()
    });
    let mut took: Vec<u64> = took.collect();
    // A call without an answer in time was repeated.
    let seeds = usize::try_from(SEEDS).unwrap();
    assert!(took.len() >= 2 * seeds, "{} calls", took.len());
    let mut warm = took.split_off(took.len() - seeds);
    for (what, took) in [("cold", &mut took), ("warm", &mut warm)] {
        took.sort_unstable();
        let p99 = took[took.len() * 99 / 100];
        tell(&format!("in the service, {what}: p99 {p99} us, max {} us", took[took.len() - 1]));
    }
}
