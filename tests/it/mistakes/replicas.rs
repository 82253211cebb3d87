//! Honest mistakes with a store that replicas share: one replica with other roots than the rest, an
//! old copy of etcd restored under all of them, a restore that lost a record, and the prefix of
//! another deployment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::etcd::Etcd;
use crate::support::{Sealed, Service, Setup, decrypt_all, tell, until};

use super::{
    RIGHT, WRONG, blamed, check, command, encrypts_nothing, keks, lines, metric, passphrase, used,
    without_advice,
};

pub(super) fn on(etcd: &Etcd) -> Setup {
    Setup::new().on_etcd(etcd)
}

/// What the clients of all replicas saw.
#[derive(Default)]
struct Seen {
    sealed: Mutex<Vec<Sealed>>,
    refusals: Mutex<u64>,
    stop: AtomicBool,
}

impl Seen {
    fn is_running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

const LOADED: [&str; 2] = ["default", "constant"];

/// Encrypts on a replica that is configured well: every answer is a 200.
async fn client(service: Arc<Service>, seen: Arc<Seen>) {
    while seen.is_running() {
        for chain in LOADED {
            let sealed = service.try_encrypt(chain, "AAAA").await.unwrap();
            let sealed = sealed.unwrap_or_else(|error| panic!("an encrypt failed: {error:?}"));
            seen.sealed.lock().unwrap().push(sealed);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks a replica whose roots open nothing.
async fn client_of_wrong(service: Arc<Service>, seen: Arc<Seen>) {
    while seen.is_running() {
        for chain in LOADED {
            encrypts_nothing(&service, chain).await;
            *seen.refusals.lock().unwrap() += 1;
        }
        let one = seen.sealed.lock().unwrap().last().cloned();
        if let Some(one) = one {
            let body = json!({"ciphertext": one.ciphertext, "chain": one.chain});
            let (status, problem) = service.post("/v1/decrypt", body).await;
            assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("root_unavailable")));
            without_advice(&problem);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How often the chain was rotated on any of `services`, by reason.
async fn rotations(services: &[Arc<Service>], chain: &str) -> BTreeMap<String, u64> {
    let mut rotations = BTreeMap::new();
    for service in services {
        let metrics = service.metrics().await;
        let prefix = format!("kms_proxy_rotations_total{{chain=\"{chain}\",reason=\"");
        for line in metrics.lines().filter_map(|line| line.strip_prefix(&prefix)) {
            let (reason, count) = line.split_once("\"} ").unwrap();
            *rotations.entry(reason.to_owned()).or_default() += count.parse::<u64>().unwrap();
        }
    }
    rotations
}

/// Rotates by hand on every replica, until `is_over`: the first two do, and `wrong` refuses.
async fn rotate_until(
    services: &[Arc<Service>],
    wrong: &Arc<Service>,
    is_over: impl AsyncFn() -> bool,
) {
    let mut done = 0;
    until("the end of a phase", async || {
        // A replica accepts ten manual rotations in a minute.
        if done < 6 {
            for service in services {
                let (status, answer) = service.post("/v1/rotate", json!({})).await;
                let is_late = ["conflict", "overloaded"].map(Value::from).contains(&answer["code"]);
                assert!(status == 200 || is_late, "{answer}");
            }
            let (code, said) = command(wrong, &["rotate"]);
            assert!(code == Some(1) && said.contains("root_unavailable"), "{code:?} {said}");
            done += 1;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        (done == 6 && is_over().await).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_with_wrong_roots_stops_no_other_and_rotates_nothing() {
    let etcd = Etcd::start().await;
    let replica = |a, b| {
        let setup =
            on(&etcd).set("CHAIN__ROTATE_AFTER_USES", 500).set("CHAIN__MAX_USES", 1_000_000);
        passphrase(passphrase(setup, 0, "a", a), 1, "b", b)
    };
    let right = || replica("of a", "of b");
    let healthy = [Arc::new(right().start().await), Arc::new(right().start().await)];
    // A chain that is not rotated.
    let settings = json!({"rotate_after_uses": 1_000_000});
    let (status, made) = healthy[0].send(Method::PUT, "/v1/chains/constant", settings).await;
    assert_eq!(status, 201, "{made}");

    let seen = Arc::<Seen>::default();
    let mut clients = JoinSet::new();
    for service in &healthy {
        clients.spawn(client(Arc::clone(service), Arc::clone(&seen)));
    }
    // A wrong passphrase of each root, then the right ones at the wrong names.
    for (what, a, b) in [("wrong", WRONG, RIGHT), ("swapped", "of b", "of a")] {
        let wrong = Arc::new(replica(a, b).start_ready_or_not().await);
        let of_wrong = Arc::new(Seen::default());
        of_wrong.sealed.lock().unwrap().extend(seen.sealed.lock().unwrap().last().cloned());
        let asking = tokio::spawn(client_of_wrong(Arc::clone(&wrong), Arc::clone(&of_wrong)));
        let before = rotations(&healthy, "default").await;
        rotate_until(&healthy, &wrong, async || {
            let now = rotations(&healthy, "default").await;
            let more = |reason: &str| now.get(reason) > before.get(reason);
            more("uses") && more("manual") && *of_wrong.refusals.lock().unwrap() > 10
        })
        .await;
        of_wrong.stop.store(true, Ordering::Relaxed);
        asking.await.unwrap();
        for chain in LOADED {
            let by_wrong = rotations(&[Arc::clone(&wrong)], chain).await;
            assert!(by_wrong.values().all(|&count| count == 0), "{what}: {by_wrong:?}");
        }
        let (status, readiness) = wrong.get("/readyz").await;
        assert_eq!(status, 503, "{readiness}");
        for root in ["root:a", "root:b"] {
            let (status, detail) = check(&wrong, root).await.unwrap();
            assert!(status == "degraded" && detail.contains("it does not open"), "{detail}");
        }
        let Ok(wrong) = Arc::try_unwrap(wrong) else { panic!("a client still runs") };
        wrong.stop().await;
    }
    seen.stop.store(true, Ordering::Relaxed);
    clients.join_all().await;

    let corrected = Arc::new(right().start().await);
    let sealed = std::mem::take(&mut *seen.sealed.lock().unwrap());
    let keks: BTreeSet<_> = sealed.iter().map(Sealed::kek_id).collect();
    assert!(sealed.len() > 1_000 && keks.len() > 10, "a load that did nothing");
    for service in healthy.iter().chain([&corrected]) {
        decrypt_all(service, &sealed).await;
        service.encrypt("default", "AAAA").await;
        until("all is well", async || {
            (service.get("/readyz").await.1["status"] == "ok").then_some(())
        })
        .await;
    }
    tell(&format!(
        "{} envelopes under {} KEKs; rotations: {:?}, {:?}",
        sealed.len(),
        keks.len(),
        rotations(&healthy, "default").await,
        rotations(&healthy, "constant").await
    ));
}

/// A KEK that it makes has one wrap less, which opens everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_one_wrong_root_of_two_makes_keks_that_all_open() {
    let etcd = Etcd::start().await;
    let replica = |a| passphrase(passphrase(on(&etcd), 0, "a", a), 1, "b", "of b");
    let (one, other) = (replica("of a").start().await, replica(WRONG).start().await);
    let mut sealed = vec![one.encrypt("default", "AAAA").await];
    for service in [&other, &one, &other] {
        service.ok("/v1/rotate", json!({})).await;
        for encrypting in [&one, &other] {
            sealed.push(encrypting.encrypt("default", "AAEC").await);
        }
        for decrypting in [&one, &other] {
            decrypt_all(decrypting, &sealed).await;
        }
    }
    blamed(&other, "a", &[&sealed[0].kek_id()]).await;
    other.stop().await;
    // The root that was right everywhere is not needed to read what the other replica wrote.
    let (code, said) = command(&one, &["root", "rewrap", "--root", "a"]);
    assert_eq!(code, Some(0), "{said}");
    one.stop().await;
    let service = passphrase(on(&etcd), 0, "a", "of a").start().await;
    decrypt_all(&service, &sealed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_copy_of_etcd_under_three_replicas_costs_one_kek_of_each_chain_and_one_line() {
    const CHAINS: [&str; 3] = ["billing", "default", "orders"];
    const SUMMARY: &str = "the store went back to an earlier state";
    let mut etcd = Etcd::start().await;
    let setup = || passphrase(on(&etcd), 0, "main", RIGHT).set("CHAIN__NAMES", "orders,billing");
    let services = [setup().start().await, setup().start().await, setup().start().await];
    let mut sealed = Vec::new();
    for service in &services {
        sealed.extend(used(service, &CHAINS).await);
    }
    let directory = tempfile::tempdir().unwrap();
    let snapshot = directory.path().join("snapshot");
    etcd.ctl(&["snapshot", "save", snapshot.to_str().unwrap()]);
    // KEKs that the copy lacks, and which replicas hold.
    for service in &services {
        sealed.extend(used(service, &CHAINS).await);
    }
    let mut before = BTreeMap::new();
    for chain in CHAINS {
        before.insert(chain, keks(&services[0], chain).await);
    }
    etcd.restore(&snapshot);
    etcd.healthy().await;
    for service in &services {
        for chain in CHAINS {
            let counted = format!("kms_proxy_store_rollbacks_total{{chain=\"{chain}\"}}");
            until("a rollback that is noticed", async || {
                (metric(service, &counted).await > 0).then_some(())
            })
            .await;
            let one = until("it encrypts again", async || {
                service.try_encrypt(chain, "aGVsbG8=").await.unwrap().ok()
            });
            sealed.push(one.await);
        }
    }
    for service in &services {
        service.logged(SUMMARY).await;
        decrypt_all(service, &sealed).await;
    }
    for chain in CHAINS {
        let now = keks(&services[1], chain).await;
        let made: Vec<_> = now.iter().filter(|id| !before[chain].contains(id)).collect();
        assert_eq!(made.len(), 1, "{chain}: {made:?}");
        for service in &services {
            let counted = format!("kms_proxy_store_rollbacks_total{{chain=\"{chain}\"}}");
            assert_eq!(metric(service, &counted).await, 1, "{chain}");
            let (_, stored) = service.get(&format!("/v1/chains/{chain}")).await;
            assert_eq!(stored["primary"], **made[0], "{chain}");
            // Until the new KEK is opened here, uses that were reserved before are spent.
            until("the new KEK", async || {
                (service.encrypt(chain, "AAAA").await.kek_id() == *made[0]).then_some(())
            })
            .await;
        }
    }
    for service in services {
        let log = service.stop().await;
        let said = lines(&log, SUMMARY);
        assert!(said.len() == 1 && said[0].contains(r#""level":"ERROR""#), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_lacks_the_primarys_record_is_named_and_store_restored_repairs_it() {
    let etcd = Etcd::start().await;
    let setup = passphrase(on(&etcd), 0, "main", RIGHT);
    let service = setup.start().await;
    let sealed = used(&service, &["default"]).await;
    service.stop().await;
    let (kept, lost) = (&sealed[0], &sealed[1]);
    let stored = etcd.ctl(&["get", "--prefix", "--keys-only", ""]);
    let key = stored.lines().find(|key| key.ends_with(&lost.kek_id()) && !key.contains("uses"));
    let key = key.unwrap_or_else(|| panic!("{stored}"));
    assert_eq!(etcd.ctl(&["del", key]).trim(), "1");

    let service = setup.start_unready().await;
    let (status, problem) = service.post("/v1/encrypt", json!({"plaintext": "AAAA"})).await;
    assert_eq!((status.as_u16(), &problem["code"]), (500, &json!("internal")), "{problem}");
    let (_, detail) = check(&service, "chain:default").await.expect("readiness names the chain");
    assert!(detail.contains(&lost.kek_id()), "{detail}");
    assert_eq!(service.get("/readyz").await.0, 503);
    decrypt_all(&service, std::slice::from_ref(kept)).await;
    service.stop().await;

    let output = setup.run(&["store", "restored", "--yes"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "it names what it can't repair: {said}");
    assert!(said.contains(&format!("{}: it is missing", lost.kek_id())), "{said}");
    let service = setup.start().await;
    let made = service.encrypt("default", "AAAA").await;
    decrypt_all(&service, &[kept.clone(), made]).await;
    let body = json!({"ciphertext": lost.ciphertext});
    let (status, problem) = service.post("/v1/decrypt", body).await;
    assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("unknown_kek")), "{problem}");
    let (_, said) = command(&service, &["kek", "missing"]);
    assert!(said.contains(&lost.kek_id()), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_on_the_prefix_of_another_deployment_makes_no_kek_there() {
    let etcd = Etcd::start().await;
    let deployment = |prefix: &str, phrase| {
        passphrase(on(&etcd).set("STORE__PREFIX", prefix), 0, "main", phrase)
    };
    let theirs = deployment("/theirs", "of theirs").start().await;
    let mut of_theirs = used(&theirs, &["default"]).await;
    let ours = deployment("/ours", "of ours").start().await;
    let of_ours = used(&ours, &["default"]).await;
    ours.stop().await;

    let ours = deployment("/theirs", "of ours").start_unready().await;
    let before = keks(&theirs, "default").await;
    encrypts_nothing(&ours, "default").await;
    assert_eq!(command(&ours, &["rotate"]).0, Some(1));
    blamed(&ours, "main", &[&of_theirs[1].kek_id()]).await;
    // A chain that only this deployment has gets no KEK in the store of the other.
    let (status, _) = ours.send(Method::PUT, "/v1/chains/only-ours", json!({})).await;
    assert!(status.is_success());
    encrypts_nothing(&ours, "only-ours").await;
    let body = json!({"ciphertext": of_ours[0].ciphertext});
    let (status, problem) = ours.post("/v1/decrypt", body).await;
    assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("unknown_kek")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(&of_ours[0].kek_id()), "{problem}");
    of_theirs.push(theirs.encrypt("default", "AAAA").await);
    assert_eq!(keks(&theirs, "default").await, before);
    theirs.ok("/v1/rotate", json!({})).await;
    of_theirs.push(theirs.encrypt("default", "AAAA").await);
    decrypt_all(&theirs, &of_theirs).await;
    ours.stop().await;

    let ours = deployment("/ours", "of ours").start().await;
    decrypt_all(&ours, &of_ours).await;
    ours.encrypt("default", "AAAA").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_with_different_keys_that_start_together_on_an_empty_store_agree_on_one() {
    let etcd = Etcd::start().await;
    let chains: Vec<_> = (0..20).map(|number| format!("chain-{number}")).collect();
    for round in 0..3 {
        let replica = |phrase| {
            let setup = on(&etcd).set("STORE__PREFIX", format!("/{round}"));
            passphrase(setup.set("CHAIN__NAMES", chains.join(",")), 0, "main", phrase)
        };
        let [right, wrong] = [RIGHT, WRONG].map(replica);
        let (right, wrong) = tokio::join!(right.start_ready_or_not(), wrong.start_ready_or_not());
        let mut made = [Vec::new(), Vec::new()];
        for chain in &chains {
            until("a replica that encrypts", async || {
                let mut any = None;
                for (service, made) in [&right, &wrong].into_iter().zip(&mut made) {
                    let one = service.try_encrypt(chain, "AAAA").await.unwrap().ok();
                    any = any.or(one.is_some().then_some(()));
                    made.extend(one);
                }
                any
            })
            .await;
        }
        let (first, second) = if made[0].is_empty() { (&wrong, &right) } else { (&right, &wrong) };
        let made = made.concat();
        assert_eq!(made.len(), chains.len(), "every chain has KEKs of one of them");
        decrypt_all(first, &made).await;
        let (status, _) = check(second, "root:main").await.unwrap();
        assert_eq!(status, "degraded");
        assert_eq!(command(second, &["rotate"]).0, Some(1));
        decrypt_all(first, &made).await;
    }
}

#[tokio::test]
async fn a_mistyped_new_root_of_one_replica_does_not_replace_the_old_root_of_another() {
    let etcd = Etcd::start().await;
    let old = || passphrase(on(&etcd), 0, "main", RIGHT);
    let one = old().start().await;
    let other = passphrase(old(), 1, "new", WRONG).start().await;
    let mut sealed = used(&one, &["default"]).await;
    assert_eq!(command(&other, &["root", "rewrap", "--root", "new"]).0, Some(0));
    sealed.push(other.encrypt("default", "AAAA").await);
    other.stop().await;

    // The old root is taken out of this replica alone. All KEKs open there, by the mistyped key.
    let other = passphrase(on(&etcd), 0, "new", WRONG).start_ready_or_not().await;
    decrypt_all(&other, &sealed).await;
    let (status, detail) = check(&other, "chain:default").await.unwrap();
    assert_eq!(status, "degraded");
    assert!(detail.contains("kms-proxy root remove --root main"), "{detail}");
    let (code, said) = command(&other, &["root", "remove", "--root", "main"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("has root main configured"), "{said}");
    sealed.push(other.encrypt("default", "AAAA").await);
    other.stop().await;

    // The configuration is corrected: what the mistyped root wrapped opens by the old one, is
    // removed, and wrapped again by the right key.
    let other = old().start().await;
    decrypt_all(&other, &sealed).await;
    let (code, said) = command(&other, &["root", "remove", "--root", "new", "--no-wait"]);
    assert_eq!(code, Some(0), "{said}");
    one.stop().await;
    other.stop().await;
    let [one, other] = [0, 1].map(|_| passphrase(old(), 1, "new", "the new passphrase"));
    let (one, other) = (one.start().await, other.start().await);
    assert_eq!(command(&one, &["root", "rewrap", "--root", "new"]).0, Some(0));
    other.stop().await;
    one.stop().await;
    let [one, other] = [0, 1].map(|_| passphrase(on(&etcd), 0, "new", "the new passphrase"));
    let (one, other) = tokio::join!(one.start_ready_or_not(), other.start_ready_or_not());
    let (code, said) = command(&one, &["root", "remove", "--root", "main"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("a replica that has lost the store may encrypt"), "{said}");
    decrypt_all(&other, &sealed).await;
    let sealed = [other.encrypt("default", "AAAA").await];
    decrypt_all(&one, &sealed).await;
}
