//! Uses are counted exactly and answers are kept, under load and under `kill -9`.
//!
//! `make soak` runs many rounds: `KMS_PROXY_SOAK_ROUNDS` says how many, `KMS_PROXY_SOAK_SEED`
//! repeats the moments of an earlier run.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::random::{Random, seed, variable};
use crate::support::{Sealed, Service, Setup, decrypt_all, pages};

/// Rounds of an ordinary run.
const ROUNDS: u64 = 10;
const MAX_USES: u64 = 200;

fn setup() -> Setup {
    let setup = Setup::new().set("CHAIN__ROTATE_AFTER_USES", 100).set("CHAIN__MAX_USES", MAX_USES);
    // Ten thousand requests may have to wait for a slow disk.
    setup.set("SERVER__REQUEST_TIMEOUT", "60s")
}

fn base64(number: u64) -> String {
    base64_simd::STANDARD.encode_to_string(number.to_be_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_concurrent_encrypts_exceed_no_limit_and_outlive_a_kill() {
    let setup = setup();
    let service = Arc::new(setup.start().await);
    let mut connections = JoinSet::new();
    for connection in 0..200 {
        let service = Arc::clone(&service);
        connections.spawn(async move {
            let mut sealed = Vec::new();
            for i in 0..50 {
                sealed.push(service.encrypt("default", &base64(50 * connection + i)).await);
            }
            sealed
        });
    }
    let envelopes = connections.join_all().await.concat();
    assert_eq!(envelopes.len(), 10_000);
    check_chain(&service, "default", &envelopes).await;
    Arc::into_inner(service).unwrap().kill();
    let service = setup.start().await;
    decrypt_all(&service, &envelopes).await;
    check_chain(&service, "default", &envelopes).await;
}

/// What is promised of a chain, whatever happened: its KEKs are within their limits, and one of
/// them encrypts.
async fn check_chain(service: &Service, chain: &str, envelopes: &[Sealed]) {
    let mut made = HashMap::<String, u64>::new();
    for sealed in envelopes.iter().filter(|sealed| sealed.chain == chain) {
        *made.entry(sealed.kek_id()).or_default() += 1;
    }
    let path = format!("/v1/chains/{chain}");
    let keks = pages(service, &path, "items").await;
    let (_, head) = service.get(&path).await;
    let mut of_state = HashMap::<&str, Vec<&str>>::new();
    for kek in &keks {
        let id = kek["kek_id"].as_str().unwrap();
        let reserved = kek["uses_reserved"].as_u64().unwrap();
        let seen = made.remove(id).unwrap_or(0);
        assert!(seen <= reserved && reserved <= MAX_USES, "{seen} envelopes under {kek}");
        of_state.entry(kek["state"].as_str().unwrap()).or_default().push(id);
    }
    assert!(made.is_empty(), "under KEKs that {chain} does not have: {made:?}");
    for state in ["primary", "standby"] {
        let ids = of_state.remove(state).unwrap_or_default();
        assert!(ids.len() <= 1, "{state}: {ids:?}");
        assert_eq!(head[state].as_str(), ids.first().copied(), "{state} of {head}");
    }
    assert_eq!(of_state.keys().filter(|state| **state != "retired").count(), 0, "{of_state:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_answered_is_there_after_a_kill_at_any_moment() {
    let rounds = variable("KMS_PROXY_SOAK_ROUNDS").unwrap_or(ROUNDS);
    let (setup, mut random) = (setup(), Random(seed("KMS_PROXY_SOAK_SEED")));
    let (mut all, mut chains) = (Vec::new(), vec!["default".to_owned()]);
    for round in 0..rounds {
        // Now and then it does not even come up.
        if random.below(3) == 0 {
            let starting = Service::spawn(setup.command());
            tokio::time::sleep(Duration::from_millis(random.below(20))).await;
            starting.kill();
        }
        let service = Arc::new(setup.start().await);
        let (envelopes, made) = load(&service, round, random.below(300)).await;
        Arc::into_inner(service).unwrap().kill();
        chains.extend(made);

        let service = setup.start().await;
        decrypt_all(&service, &envelopes).await;
        all.extend(envelopes);
        check(&service, &chains, &all).await;
        service.kill();
    }
    let service = setup.start().await;
    decrypt_all(&service, &all).await;
    assert!(!all.is_empty() && chains.len() > 1, "a load that did nothing");
    println!("{} envelopes of {} chains were there", all.len(), chains.len());
}

async fn check(service: &Service, chains: &[String], envelopes: &[Sealed]) {
    let stored = pages(service, "/v1/chains", "chains").await;
    let stored: Vec<_> = stored.iter().map(|chain| chain["chain"].as_str().unwrap()).collect();
    for chain in chains {
        assert!(stored.contains(&chain.as_str()), "{chain} was answered and is gone");
    }
    check_chain(service, "default", envelopes).await;
    if let Some(last) = chains.last() {
        check_chain(service, last, envelopes).await;
    }
}

/// Encrypts, rotates and makes chains until `millis` are over and the process is killed under it.
/// Gives the envelopes and the names of the chains that were answered.
async fn load(service: &Arc<Service>, round: u64, millis: u64) -> (Vec<Sealed>, Vec<String>) {
    let mut workers = JoinSet::new();
    let number = Arc::new(AtomicU64::new(round << 32));
    for _ in 0..16 {
        let (service, number) = (Arc::clone(service), Arc::clone(&number));
        workers.spawn(async move {
            let mut sealed = Vec::new();
            loop {
                let plaintext = base64(number.fetch_add(1, Ordering::Relaxed));
                match service.try_encrypt("default", &plaintext).await {
                    Some(Ok(one)) => sealed.push(one),
                    Some(Err((_, problem))) => panic!("{problem}"),
                    None => return (sealed, Vec::new()),
                }
            }
        });
    }
    let rotating = Arc::clone(service);
    workers.spawn(async move {
        let rotate = async || rotating.try_send(Method::POST, "/v1/rotate", &json!({})).await;
        while let Some((status, problem)) = rotate().await {
            assert!(status == 200 || status == 429, "{problem}");
        }
        Default::default()
    });
    let making = Arc::clone(service);
    workers.spawn(async move { make_chains(&making, round).await });
    tokio::time::sleep(Duration::from_millis(millis)).await;
    rustix::process::kill_process(service.pid(), rustix::process::Signal::KILL).unwrap();
    workers.join_all().await.into_iter().fold(Default::default(), |(mut a, mut b), (c, d)| {
        a.extend(c);
        b.extend(d);
        (a, b)
    })
}

/// Makes chains, a few in a round, and encrypts under each.
async fn make_chains(service: &Service, round: u64) -> (Vec<Sealed>, Vec<String>) {
    let (mut sealed, mut names) = (Vec::new(), Vec::new());
    for i in 0..4 {
        let name = format!("c{round}-{i}");
        let path = format!("/v1/chains/{name}");
        match service.try_send(Method::PUT, &path, &json!({})).await {
            Some((status, _)) if status == 201 => names.push(name.clone()),
            Some((_, problem)) => panic!("{problem}"),
            None => break,
        }
        match service.try_encrypt(&name, &base64(i)).await {
            Some(Ok(one)) => sealed.push(one),
            Some(Err((_, problem))) => panic!("{problem}"),
            None => break,
        }
    }
    (sealed, names)
}
