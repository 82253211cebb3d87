//! The proof of the archive: etcd loses everything under load, with the replicas alive or killed at
//! the same moment, without an operator.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::bucket::S3;
use super::{directory, root};
use crate::replicas::Replica;
use crate::support::etcd::Etcd;
use crate::support::random::{Random, seed, variable};
use crate::support::{Sealed, Service, Setup, decrypt_all, tell, until};

const MAX_USES: u64 = 400;
/// Envelopes that are made before the first loss and after each: those of some KEKs.
const ENVELOPES: u64 = 2_000;

/// What a client may receive while the store is lost. It repeats the call.
const OUTAGE: [&str; 4] =
    ["kek_exhausted", "store_unavailable", "root_unavailable", "archive_unavailable"];

const RESTORED: &str = "kms_proxy_archive_restored_keks_total";
const REPAIRS: &str = "kms_proxy_store_rollbacks_total";

/// What the clients did.
#[derive(Default)]
struct Load {
    envelopes: Mutex<Vec<Sealed>>,
    decrypts: AtomicU64,
    /// Calls that failed with 503, by operation and code.
    failures: Mutex<BTreeMap<(&'static str, String), u64>>,
    stop: AtomicBool,
}

impl Load {
    fn made(&self) -> u64 {
        self.envelopes.lock().unwrap().len() as u64
    }

    fn some(&self, random: &mut Random) -> Option<Sealed> {
        let envelopes = self.envelopes.lock().unwrap();
        let at = random.below(envelopes.len().max(1) as u64) as usize;
        envelopes.get(at).cloned()
    }

    /// Notes a call that failed. Anything but an outage is a defect.
    fn failed(&self, operation: &'static str, status: Option<StatusCode>, error: &Value) {
        let code = error["code"].as_str().unwrap_or_default().to_owned();
        let is_outage = status.is_none_or(|status| status == 503) && OUTAGE.contains(&&*code);
        assert!(is_outage, "{operation}: {status:?} {error}");
        *self.failures.lock().unwrap().entry((operation, code)).or_default() += 1;
    }
}

/// A client of one replica: encrypts, and decrypts what any client of any replica made. It repeats
/// a decrypt until it succeeds.
async fn client(replica: Arc<Replica>, load: Arc<Load>, mut random: Random) {
    while !load.stop.load(Relaxed) {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let Some(service) = replica.service().await else { continue };
        encrypt(&service, &load, &mut random).await;
        drop(service);
        if let Some(one) = load.some(&mut random) {
            decrypts(&replica, &load, &one).await;
        }
    }
}

async fn encrypt(service: &Service, load: &Load, random: &mut Random) {
    let text = |n: u64| base64_simd::STANDARD.encode_to_string(n.to_be_bytes());
    let texts: Vec<_> = (0..5).map(|_| text(random.below(u64::MAX))).collect();
    let items: Vec<_> = texts.iter().map(|text| json!({"plaintext": text})).collect();
    let body = json!({"items": items});
    let Some((status, answer)) = service.try_send(Method::POST, "/v1/batch/encrypt", &body).await
    else {
        return;
    };
    let Some(results) = answer["results"].as_array() else {
        return load.failed("encrypt", Some(status), &answer);
    };
    for (plaintext, result) in texts.into_iter().zip(results) {
        match result["ciphertext"].as_str() {
            Some(ciphertext) => {
                let (chain, ciphertext) = ("default".to_owned(), ciphertext.to_owned());
                load.envelopes.lock().unwrap().push(Sealed { chain, plaintext, ciphertext });
            }
            None => load.failed("encrypt", None, &result["error"]),
        }
    }
}

/// Decrypts as soon as that succeeds.
async fn decrypts(replica: &Replica, load: &Load, one: &Sealed) {
    let began = Instant::now();
    while decrypt(replica, load, one).await.is_none() {
        assert!(began.elapsed() < Duration::from_secs(180), "{one:?} does not decrypt");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn decrypt(replica: &Replica, load: &Load, one: &Sealed) -> Option<()> {
    let body = json!({"ciphertext": one.ciphertext});
    let service = replica.service().await?;
    let (status, answer) = service.try_send(Method::POST, "/v1/decrypt", &body).await?;
    if status != 200 {
        load.failed("decrypt", Some(status), &answer);
        return None;
    }
    assert_eq!(answer["plaintext"], one.plaintext, "{one:?}");
    load.decrypts.fetch_add(1, Relaxed);
    Some(())
}

/// The sum of a counter over the replicas.
async fn counted(replicas: &[Arc<Replica>], name: &str) -> u64 {
    let mut sum = 0;
    for replica in replicas {
        let metrics = replica.service().await.unwrap().metrics().await;
        let values = metrics.lines().filter(|line| line.starts_with(name));
        let values = values.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
        sum += values.sum::<u64>();
    }
    sum
}

/// Waits until the clients have made this many envelopes in total.
async fn made(load: &Load, count: u64) {
    until("envelopes", async || (load.made() >= count).then_some(())).await;
}

/// One loss: the data of etcd, and in every other round all replicas with it.
async fn lose(etcd: &mut Etcd, replicas: &[Arc<Replica>; 3], round: u64) {
    let kills = round % 2 == 1;
    if kills {
        // Etcd first: what the replicas hold in memory reaches no store.
        etcd.kill();
        for replica in replicas {
            replica.kill().await;
        }
    }
    etcd.wipe();
    etcd.healthy().await;
    if kills {
        let [one, two, three] = replicas;
        tokio::join!(one.start_again(), two.start_again(), three.start_again());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_wiped_under_load_and_every_envelope_decrypts() {
    let losses = variable("KMS_PROXY_ARCHIVE_LOSSES").unwrap_or(4);
    let mut random = Random(seed("KMS_PROXY_ARCHIVE_SEED"));
    let (mut etcd, s3, place) = (Etcd::start().await, S3::start().await, Setup::new());
    let endpoint = etcd.url();
    let setup = || {
        let setup = root(Setup::new(), &place.file("root.key"));
        let setup = setup
            .on_endpoints(std::slice::from_ref(&endpoint))
            .set("STORE__TIMEOUT", "1s")
            .set("CHAIN__ROTATE_AFTER_USES", MAX_USES / 2)
            .set("CHAIN__MAX_USES", MAX_USES)
            .set("SERVER__REQUEST_TIMEOUT", "15s");
        s3.archive(directory(setup, 0, &place.file("archive")), 1)
    };
    let start = async || Arc::new(Replica::start(setup()).await);
    let replicas = [start().await, start().await, start().await];
    let operator = setup();

    let load = Arc::<Load>::default();
    let mut clients = JoinSet::new();
    for replica in replicas.iter().cycle().take(6) {
        let random = Random(random.below(u64::MAX));
        clients.spawn(client(Arc::clone(replica), Arc::clone(&load), random));
    }
    let (mut restored, mut repairs) = (0, 0);
    for round in 0..losses {
        made(&load, load.made() + ENVELOPES / 2 + random.below(ENVELOPES)).await;
        if round % 2 == 1 {
            restored += counted(&replicas, RESTORED).await;
            repairs += counted(&replicas, REPAIRS).await;
        }
        lose(&mut etcd, &replicas, round).await;
        made(&load, load.made() + ENVELOPES).await;
    }
    load.stop.store(true, Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }

    restored += counted(&replicas, RESTORED).await;
    repairs += counted(&replicas, REPAIRS).await;
    let envelopes = std::mem::take(&mut *load.envelopes.lock().unwrap());
    let mut uses = HashMap::<String, u64>::new();
    for sealed in &envelopes {
        *uses.entry(sealed.kek_id()).or_default() += 1;
    }
    let most = uses.values().max().copied().unwrap_or(0);
    assert!(most <= MAX_USES, "{most} envelopes under one KEK");
    for replica in &replicas {
        decrypt_all(&replica.service().await.unwrap(), &envelopes).await;
    }
    // One that has nothing in memory.
    let fresh = setup().start().await;
    decrypt_all(&fresh, &envelopes).await;
    let unarchived = counted(&replicas, "kms_proxy_unarchived_promotions_total").await;
    assert_eq!(unarchived, 0, "promotions of KEKs that were in no archive");
    assert!(restored > 0, "no KEK was read from an archive");
    assert!(repairs > 0, "no replica that was alive noticed a loss");
    for archive in ["archive:nas", "archive:bucket"] {
        let verified = operator.run(&["store", "verify", archive]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    }
    tell(&format!(
        "etcd was wiped {losses} times, {} of them together with all replicas: {} envelopes under \
         {} KEKs, at most {most} of {MAX_USES} under one; {} decrypts under load; every envelope \
         decrypts on 4 replicas; {restored} KEKs restored from archives, {repairs} repairs of \
         chains; calls that were repeated: {:?}",
        losses / 2,
        envelopes.len(),
        uses.len(),
        load.decrypts.load(Relaxed),
        load.failures.lock().unwrap()
    ));
}
