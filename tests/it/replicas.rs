//! Replicas that share a chain in etcd: exact budgets and readable envelopes while processes are
//! killed, members hang and lines are cut; outages; many chains and many KEKs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kms_proxy::id::{ChainName, KekId};
use kms_proxy::store::record::{self, Kek, Record, State, Uses};
use kms_proxy::store::{self, Txn};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use crate::lifecycle::memory_kb;
use crate::limits::take_descriptors;
use crate::support::etcd::Etcd;
use crate::support::proxy::{Mode, Proxy};
use crate::support::random::{Random, seed, variable};
use crate::support::{Sealed, Service, Setup, decrypt_all, pages, tell, until};

const MAX_USES: u64 = 1_000;

/// Settings of a replica on `endpoints`, with a root key that all share.
fn setup(endpoints: &[String], key: &Path) -> Setup {
    Setup::new()
        .on_endpoints(endpoints)
        .set("ROOT__0__KIND", "local")
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__KEY_FILE", key.display())
}

/// A replica that comes and goes.
pub(crate) struct Replica {
    setup: Setup,
    running: RwLock<Option<Arc<Service>>>,
}

impl Replica {
    pub(crate) async fn start(setup: Setup) -> Self {
        let service = setup.start().await;
        Self { setup, running: RwLock::new(Some(Arc::new(service))) }
    }

    pub(crate) async fn service(&self) -> Option<Arc<Service>> {
        self.running.read().await.clone()
    }

    /// `kill -9`, and a start after a while.
    async fn replace(&self, pause: Duration) {
        self.kill().await;
        tokio::time::sleep(pause).await;
        self.start_again().await;
    }

    /// `kill -9`.
    pub(crate) async fn kill(&self) {
        if let Some(service) = self.running.write().await.take() {
            service.signal(Signal::KILL);
        }
    }

    pub(crate) async fn start_again(&self) {
        let service = self.setup.start().await;
        *self.running.write().await = Some(Arc::new(service));
    }
}

/// What the clients did and saw.
#[derive(Default)]
struct Seen {
    envelopes: Mutex<Vec<Sealed>>,
    /// KEKs that were ever disabled.
    disabled: Mutex<BTreeSet<String>>,
    failures: Mutex<BTreeMap<String, u64>>,
    stop: AtomicBool,
}

impl Seen {
    fn is_running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn made(&self, sealed: Sealed) {
        self.envelopes.lock().unwrap().push(sealed);
    }

    fn some(&self, random: &mut Random) -> Option<Sealed> {
        let envelopes = self.envelopes.lock().unwrap();
        let at = random.below(envelopes.len().max(1) as u64) as usize;
        envelopes.get(at).cloned()
    }

    /// A request failed: with a code that says what an outage is, or it is a defect.
    fn failed(&self, error: &Value, expected: &[&str]) {
        let code = error["code"].as_str().unwrap_or_default();
        assert!(expected.contains(&code), "{error}");
        *self.failures.lock().unwrap().entry(code.to_owned()).or_default() += 1;
    }
}

const OUTAGE: [&str; 4] = ["kek_exhausted", "store_unavailable", "root_unavailable", "overloaded"];

/// A client of one replica: encrypts, rewraps, and decrypts what anybody made.
async fn client(replica: Arc<Replica>, seen: Arc<Seen>, mut random: Random) {
    let plaintext = |n: u64| base64_simd::STANDARD.encode_to_string(n.to_be_bytes());
    while seen.is_running() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let Some(service) = replica.service().await else { continue };
        let texts: Vec<_> = (0..10).map(|_| plaintext(random.below(u64::MAX))).collect();
        let items: Vec<_> = texts.iter().map(|text| json!({"plaintext": text})).collect();
        let body = json!({"items": items});
        if let Some((status, answer)) =
            service.try_send(Method::POST, "/v1/batch/encrypt", &body).await
        {
            match answer["results"].as_array() {
                Some(results) => {
                    for (text, result) in texts.into_iter().zip(results) {
                        match result["ciphertext"].as_str() {
                            Some(ciphertext) => seen.made(sealed(text, ciphertext)),
                            None => seen.failed(&result["error"], &OUTAGE),
                        }
                    }
                }
                None => {
                    assert_ne!(status, 200, "{answer}");
                    seen.failed(&answer, &OUTAGE);
                }
            }
        }
        let Some(one) = seen.some(&mut random) else { continue };
        let body = json!({"ciphertext": one.ciphertext});
        let may_be_disabled = |sealed: &Sealed| {
            let disabled = seen.disabled.lock().unwrap().contains(&sealed.kek_id());
            if disabled { [&OUTAGE[..], &["kek_disabled"]].concat() } else { OUTAGE.to_vec() }
        };
        if let Some((status, answer)) = service.try_send(Method::POST, "/v1/decrypt", &body).await {
            match status.as_u16() {
                200 => assert_eq!(answer["plaintext"], one.plaintext, "{one:?}"),
                _ => seen.failed(&answer, &may_be_disabled(&one)),
            }
        }
        if random.below(4) == 0
            && let Some((status, answer)) =
                service.try_send(Method::POST, "/v1/rewrap", &body).await
        {
            match answer["ciphertext"].as_str() {
                // It was under the primary, and cost no use.
                Some(same) if same == one.ciphertext => {}
                Some(ciphertext) => seen.made(sealed(one.plaintext, ciphertext)),
                None => {
                    assert_ne!(status, 200, "{answer}");
                    seen.failed(&answer, &may_be_disabled(&one));
                }
            }
        }
    }
}

fn sealed(plaintext: String, ciphertext: &str) -> Sealed {
    Sealed { chain: "default".to_owned(), plaintext, ciphertext: ciphertext.to_owned() }
}

/// An operator: rotates, and disables KEKs and enables them again.
async fn operator(replicas: Vec<Arc<Replica>>, seen: Arc<Seen>, mut random: Random) {
    while seen.is_running() {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let one = random.below(replicas.len() as u64) as usize;
        let Some(service) = replicas[one].service().await else { continue };
        let expected = [&OUTAGE[..], &["conflict"]].concat();
        if random.below(2) == 0 {
            let rotated = service.try_send(Method::POST, "/v1/rotate", &json!({})).await;
            if let Some((_, answer)) = rotated.filter(|(status, _)| *status != 200) {
                seen.failed(&answer, &expected);
            }
            continue;
        }
        let Some(one) = seen.some(&mut random) else { continue };
        let id = one.kek_id();
        seen.disabled.lock().unwrap().insert(id.clone());
        for change in ["disable", "destroy", "enable"] {
            let path = format!("/v1/chains/default/keks/{id}/{change}");
            let body = if change == "destroy" { json!({"confirm": id}) } else { json!({}) };
            let changed = service.try_send(Method::POST, &path, &body).await;
            // It may be the primary, and it is too early to destroy it.
            if let Some((_, answer)) = changed.filter(|(status, _)| *status != 200) {
                seen.failed(&answer, &expected);
            }
        }
    }
}

/// One fault after the other.
async fn trouble(
    etcd: &mut [Etcd; 3],
    replicas: &[Arc<Replica>],
    lines: &[Proxy],
    random: &mut Random,
    until: Instant,
) -> BTreeMap<&'static str, u32> {
    let mut faults = BTreeMap::new();
    while Instant::now() < until {
        let member = random.below(3) as usize;
        let pause = Duration::from_millis(500 + random.below(2_000));
        let fault = match random.below(6) {
            0 | 1 => {
                let replica = random.below(replicas.len() as u64) as usize;
                replicas[replica].replace(pause / 4).await;
                "replica killed"
            }
            2 => {
                etcd[leader(etcd).await].kill();
                tokio::time::sleep(pause).await;
                etcd.iter_mut().filter(|etcd| !etcd.is_running()).for_each(Etcd::restart);
                "etcd leader killed"
            }
            3 => {
                etcd[member].signal(Signal::STOP);
                tokio::time::sleep(pause).await;
                etcd[member].signal(Signal::CONT);
                "etcd member paused"
            }
            cut => {
                let mode = if cut == 4 { Mode::Cut } else { Mode::Frozen };
                lines.iter().for_each(|line| line.set(mode));
                tokio::time::sleep(pause * 2).await;
                lines.iter().for_each(|line| line.set(Mode::Open));
                "replica cut off"
            }
        };
        *faults.entry(fault).or_default() += 1;
        for member in etcd.iter() {
            member.healthy().await;
        }
        tokio::time::sleep(Duration::from_millis(random.below(500))).await;
    }
    faults
}

/// The member that leads; any if none is known to lead.
async fn leader(etcd: &[Etcd; 3]) -> usize {
    for (index, member) in etcd.iter().enumerate() {
        let status = member.ctl(&["endpoint", "status", "--write-out=json"]);
        let status: Value = serde_json::from_str(&status).unwrap();
        let status = &status[0]["Status"];
        if status["header"]["member_id"] == status["leader"] {
            return index;
        }
    }
    0
}

/// The answer to a call, which is repeated while the store does not respond.
async fn answered(service: &Service, path: &str, body: Value) -> Value {
    until("an answer", async || {
        let (_, answer) = service.post(path, body.clone()).await;
        (answer["code"] != "store_unavailable").then_some(answer)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kek_passes_its_limit_and_no_envelope_is_lost_whatever_fails() {
    let seconds = variable("KMS_PROXY_CHAOS_SECONDS").unwrap_or(40);
    let mut random = Random(seed("KMS_PROXY_CHAOS_SEED"));
    let mut etcd = Etcd::cluster::<3>().await;
    let mut lines = Vec::new();
    for member in &etcd {
        lines.push(Proxy::start(member.port).await);
    }
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("root.key");
    let (direct, by_line): (Vec<_>, Vec<_>) =
        (etcd.iter().map(Etcd::url).collect(), lines.iter().map(Proxy::url).collect());
    let mut replicas = Vec::new();
    let limited = |endpoints: &[String]| {
        setup(endpoints, &key)
            .set("CHAIN__ROTATE_AFTER_USES", MAX_USES / 2)
            .set("CHAIN__MAX_USES", MAX_USES)
            .set("CHAIN__DESTROY_DELAY", "2m")
    };
    for endpoints in [&direct, &direct, &by_line] {
        let setup = limited(endpoints).set("STORE__TIMEOUT", "1s");
        let setup = setup.set("SERVER__REQUEST_TIMEOUT", "5s");
        replicas.push(Arc::new(Replica::start(setup).await));
    }
    // One that is not disturbed. It sees for how long a KEK is disabled.
    let witness = limited(&direct).start().await;

    // One KEK is disabled from now on, and destroyed at the end.
    let service = replicas[0].service().await.unwrap();
    let doomed = service.encrypt("default", "AAAA").await;
    let doomed_id = doomed.kek_id();
    service.ok("/v1/rotate", json!({})).await;
    let disable = format!("/v1/chains/default/keks/{doomed_id}/disable");
    service.ok(&disable, json!({})).await;
    drop(service);
    until("a witness that knows that it is disabled", async || {
        let keks = pages(&witness, "/v1/chains/default", "items").await;
        let mut keks = keks.iter();
        keks.any(|kek| kek["kek_id"] == *doomed_id && kek["state"] == "disabled").then_some(())
    })
    .await;
    let destroy = format!("/v1/chains/default/keks/{doomed_id}/destroy");
    let answer = answered(&witness, &destroy, json!({"confirm": doomed_id})).await;
    assert_eq!(answer["code"], "conflict", "{answer}");
    let seen_at = Instant::now();

    let seen = Arc::<Seen>::default();
    let mut tasks = JoinSet::new();
    for replica in replicas.iter().cycle().take(9) {
        let seed = Random(random.below(u64::MAX));
        tasks.spawn(client(Arc::clone(replica), Arc::clone(&seen), seed));
    }
    let seed = Random(random.below(u64::MAX));
    tasks.spawn(operator(replicas.clone(), Arc::clone(&seen), seed));
    let end = Instant::now() + Duration::from_secs(seconds);
    let faults = trouble(&mut etcd, &replicas, &lines, &mut random, end).await;
    seen.stop.store(true, Ordering::Relaxed);
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }

    // All is well again: every replica encrypts, and what was disabled is enabled.
    let mut services = Vec::new();
    for replica in &replicas {
        let service = replica.service().await.unwrap();
        until("a replica that encrypts", async || {
            service.try_encrypt("default", "AAAA").await?.ok()
        })
        .await;
        services.push(service);
    }
    // A process that did not see it being disabled can't destroy it before two minutes.
    if seen_at.elapsed() < Duration::from_secs(100) {
        let answer = answered(&services[1], &destroy, json!({"confirm": doomed_id})).await;
        assert_eq!(answer["code"], "conflict", "{answer}");
    }
    let keks = pages(&services[0], "/v1/chains/default", "items").await;
    for kek in keks.iter().filter(|kek| kek["state"] == "disabled" && kek["kek_id"] != *doomed_id) {
        let path = format!("/v1/chains/default/keks/{}/enable", kek["kek_id"].as_str().unwrap());
        let answer = answered(&services[0], &path, json!({})).await;
        assert_eq!(answer.get("code"), None, "{answer}");
    }

    // From the envelopes alone: no KEK wraps more than it may.
    let envelopes = std::mem::take(&mut *seen.envelopes.lock().unwrap());
    let mut uses = HashMap::<String, u64>::new();
    for sealed in &envelopes {
        *uses.entry(sealed.kek_id()).or_default() += 1;
    }
    assert!(envelopes.len() > 1_000 && uses.len() > 3, "a load that did nothing");
    let most = uses.values().max().copied().unwrap_or(0);
    assert!(most <= MAX_USES, "{most} envelopes under one KEK");
    for kek in &keks {
        let made = uses.get(kek["kek_id"].as_str().unwrap()).copied().unwrap_or(0);
        let reserved = kek["uses_reserved"].as_u64().unwrap();
        assert!(made <= reserved && reserved <= MAX_USES, "{made} envelopes under {kek}");
    }
    assert_eq!(keks.iter().filter(|kek| kek["state"] == "primary").count(), 1);
    // Every envelope decrypts on every replica, as soon as each knows what was enabled.
    for service in &services {
        for id in uses.keys() {
            let sealed = envelopes.iter().find(|sealed| sealed.kek_id() == *id).unwrap();
            let body = json!({"ciphertext": sealed.ciphertext});
            until("a KEK that was enabled again", async || {
                (service.post("/v1/decrypt", body.clone()).await.0 == 200).then_some(())
            })
            .await;
        }
        decrypt_all(service, &envelopes).await;
    }

    // What is disabled for long enough is destroyed, for all of them.
    tokio::time::sleep(Duration::from_secs(121).saturating_sub(seen_at.elapsed())).await;
    until("a KEK that can be destroyed", async || {
        let (status, _) = witness.post(&destroy, json!({"confirm": doomed_id})).await;
        (status == 200).then_some(())
    })
    .await;
    let keks = pages(&services[0], "/v1/chains/default", "items").await;
    let state = keks.iter().find(|kek| kek["kek_id"] == *doomed_id).map(|kek| &kek["state"]);
    assert_eq!(state, Some(&json!("destroyed")));
    for service in &services {
        let body = json!({"ciphertext": doomed.ciphertext});
        let (status, answer) = service.post("/v1/decrypt", body).await;
        assert_eq!((status.as_u16(), &answer["code"]), (409, &json!("kek_disabled")), "{answer}");
    }
    tell(&format!(
        "{} envelopes under {} of {} KEKs, at most {most} under one; faults: {faults:?}; requests \
         that failed: {:?}",
        envelopes.len(),
        uses.len(),
        keks.len(),
        seen.failures.lock().unwrap()
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_etcd_away_it_coasts_and_recovers_alone() {
    let mut etcd = Etcd::start().await;
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(&[etcd.url()], &dir.path().join("root.key"))
        .set("CHAIN__MAX_USES", 2_000)
        .set("CHAIN__ROTATE_AFTER_USES", 2_000)
        .set("SERVER__REQUEST_TIMEOUT", "3s")
        .set("STORE__TIMEOUT", "3s");
    let service = setup.start().await;
    let sealed = service.encrypt("default", "AAAA").await;
    etcd.kill();
    let mut coasted = 0;
    let error = loop {
        match service.try_encrypt("default", "AAAA").await.unwrap() {
            Ok(_) => coasted += 1,
            Err(error) => break error,
        }
        assert!(coasted < 2_000, "more than ever was reserved");
    };
    assert!(coasted > 0, "encrypts succeed within what is reserved");
    assert_eq!((error.0.as_u16(), &error.1["code"]), (503, &json!("store_unavailable")));
    let body = json!({"plaintext": "AAAA"});
    let answer = service.request(Method::POST, "/v1/encrypt").json(&body).send().await.unwrap();
    assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
    decrypt_all(&service, &[sealed]).await;
    let store_is = async |wanted: &str| {
        until("what is known of the store", async || {
            let (status, readiness) = service.get("/readyz").await;
            assert_eq!(status, 200, "{readiness}");
            let mut checks = readiness["checks"].as_array()?.iter();
            checks.any(|it| it["name"] == "store" && it["status"] == wanted).then_some(())
        })
        .await;
        let up = format!("kms_proxy_store_up {}", i32::from(wanted == "ok"));
        assert!(service.metrics().await.contains(&up), "{up}");
    };
    store_is("degraded").await;
    etcd.restart();
    until("encrypts again", async || service.try_encrypt("default", "AAAA").await?.ok()).await;
    store_is("ok").await;
}

/// The calls of the root that a service made, by operation.
async fn root_calls(service: &Service, operation: &str) -> u64 {
    let metrics = service.metrics().await;
    let line = metrics.lines().find(|line| {
        line.starts_with("kms_proxy_root_calls_total")
            && line.contains(&format!("operation=\"{operation}\""))
            && line.contains("outcome=\"ok\"")
    });
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_thousand_concurrent_decrypts_under_a_cold_kek_make_one_root_call() {
    let etcd = Etcd::start().await;
    let dir = tempfile::tempdir().unwrap();
    take_descriptors();
    let setup = setup(&[etcd.url()], &dir.path().join("root.key"));
    let setup = setup.set("SERVER__REQUEST_TIMEOUT", "5m");
    let service = setup.start().await;
    let mut envelopes = Vec::new();
    for _ in 0..3 {
        let items = vec![json!({"plaintext": "AAAA"}); 1_000];
        let made = service.ok("/v1/batch/encrypt", json!({"items": items})).await;
        envelopes.extend(made["results"].as_array().unwrap().clone());
    }
    service.ok("/v1/rotate", json!({})).await;
    service.stop().await;

    let service = Arc::new(setup.start().await);
    service.encrypt("default", "AAAA").await;
    let before = root_calls(&service, "unwrap").await;
    let mut calls = JoinSet::new();
    for envelope in envelopes {
        let service = Arc::clone(&service);
        let body = json!({"ciphertext": envelope["ciphertext"]});
        calls.spawn(async move {
            // The service closes a connection that has not sent its headers in time.
            for _ in 0..20 {
                let answer = service.try_send(Method::POST, "/v1/decrypt", &body).await;
                if let Some(answer) = answer {
                    return answer;
                }
            }
            panic!("no answer");
        });
    }
    let answers = calls.join_all().await;
    assert_eq!(answers.len(), 3_000);
    for (status, answer) in answers {
        assert!(status == 200 && answer["plaintext"] == "AAAA", "{status} {answer}");
    }
    assert_eq!(root_calls(&service, "unwrap").await - before, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_chains_work_on_two_replicas() {
    let etcd = Etcd::start().await;
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(&[etcd.url()], &dir.path().join("root.key"));
    let one = Arc::new(setup.start().await);
    let other = Arc::new(setup.start().await);
    let names: Vec<_> = (0..1_000).map(|i| format!("chain-{i}")).collect();
    let mut tasks = JoinSet::new();
    for names in names.chunks(50) {
        let (names, one, other) = (names.to_vec(), Arc::clone(&one), Arc::clone(&other));
        tasks.spawn(async move {
            let mut made = Vec::new();
            for name in names {
                let path = format!("/v1/chains/{name}");
                let (status, answer) = one.send(Method::PUT, &path, json!({})).await;
                assert_eq!(status, 201, "{answer}");
                // The other replica knows it immediately.
                made.push(other.encrypt(&name, "AAAA").await);
            }
            made
        });
    }
    let made = tasks.join_all().await.concat();
    for service in [&one, &other] {
        decrypt_all(service, &made).await;
    }
    assert_eq!(pages(&one, "/v1/chains", "chains").await.len(), 1_001);
    drop((one, other));
    let began = Instant::now();
    let again = setup.start().await;
    tell(&format!("a start with 1,001 chains: {:?}", began.elapsed()));
    decrypt_all(&again, &made[..10]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_a_hundred_thousand_keks_starts_as_one_of_one() {
    const KEKS: u64 = 100_000;
    let etcd = Etcd::start().await;
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(&[etcd.url()], &dir.path().join("root.key"));
    let measure = async || {
        let began = Instant::now();
        let service = setup.start().await;
        let sealed = service.encrypt("default", "AAAA").await;
        (service, sealed, began.elapsed())
    };
    let (service, first, with_one) = measure().await;
    let small = memory_kb(&service, "RssAnon:");
    service.ok("/v1/rotate", json!({})).await;
    service.stop().await;

    // KEKs that look like real ones; their wraps are never opened.
    let config = format!("kind = 'etcd'\nendpoints = ['{}']\ntimeout = '10s'", etcd.url());
    let store: store::Config = toml::from_str(&config).unwrap();
    let store = store::open(&store).await.unwrap();
    let chain = ChainName::new("default").unwrap();
    let mut writes = JoinSet::new();
    for start in (0..KEKS).step_by(50) {
        let (store, chain) = (Arc::clone(&store), chain.clone());
        writes.spawn(async move {
            let began = Instant::now();
            // A write whose answer comes too late is repeated.
            while let Err(error) = store.commit(old_keks(&chain, start..start + 50)).await {
                assert!(began.elapsed() < Duration::from_secs(180), "{error}");
            }
        });
        if writes.len() == 16 {
            writes.join_next().await.unwrap().unwrap();
        }
    }
    writes.join_all().await;

    // etcd is busy with what was written just now: the second start is the one to compare.
    let (service, _, busy) = measure().await;
    service.stop().await;
    let (service, second, with_many) = measure().await;
    let large = memory_kb(&service, "RssAnon:");
    tell(&format!(
        "1 KEK: first encrypt after {with_one:?}, {small} kB; {KEKS} KEKs: {with_many:?} ({busy:?} \
         right after they were written), {large} kB"
    ));
    assert!(large < small + 4_000, "{small} kB with one KEK, {large} kB with {KEKS}");
    let (_, info) = service.get("/v1/chains/default?limit=10").await;
    assert_eq!(info["keks"], KEKS + 2);
    assert_eq!(info["items"].as_array().unwrap().len(), 10);
    // A cold KEK among them: one call of the root.
    let before = root_calls(&service, "unwrap").await;
    decrypt_all(&service, &[first, second]).await;
    assert_eq!(root_calls(&service, "unwrap").await - before, 1);
    assert_eq!(pages(&service, "/v1/chains/default", "items").await.len() as u64, KEKS + 2);
}

pub(crate) fn old_keks(chain: &ChainName, numbers: std::ops::Range<u64>) -> Txn {
    let mut txn = Txn::default();
    for number in numbers {
        let id = KekId::of_key(&u128::from(number).to_be_bytes());
        let kek = Kek {
            suite: kms_proxy::id::Suite::Aes128Gcm,
            state: State::Retired,
            created_at: 1,
            promoted_at: Some(1),
            disabled_at: None,
            exposed: true,
            wraps: vec![record::Wrap { root: "main".to_owned(), bytes: vec![7; 45] }],
        };
        let uses = Uses { reserved: 1 << 21, ..Uses::default() };
        txn.puts.push((record::kek_key(chain, id), kek.encode().unwrap()));
        txn.puts.push((record::uses_key(chain, id), uses.encode().unwrap()));
    }
    txn
}
