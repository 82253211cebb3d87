//! Honest mistakes that meet a restore of etcd under running replicas: one of them has other roots
//! than the rest, and the copy does not say which roots the replicas have.

use crate::support::etcd::Etcd;
use crate::support::{Service, decrypt_all, tell, until};

use super::replicas::on;
use super::{RIGHT, check, command, encrypts_nothing, passphrase, used};

/// So many that a replica with other roots makes the next KEK of at least one of them, if it may.
const CHAINS: usize = 16;

/// The primary of a chain, as the store has it.
async fn primary(service: &Service, chain: &str) -> Option<String> {
    let (_, stored) = service.get(&format!("/v1/chains/{chain}")).await;
    stored["primary"].as_str().map(str::to_owned)
}

/// Every chain's KEKs are wrapped by `main` and `other`. Two replicas have `main` alone; the third
/// has `other` alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_of_etcd_a_replica_with_other_roots_stops_no_other() {
    let mut etcd = Etcd::start().await;
    let chains: Vec<_> = (0..CHAINS).map(|number| format!("chain-{number}")).collect();
    let chains: Vec<_> = chains.iter().map(String::as_str).collect();
    let replica = || on(&etcd).set("CHAIN__NAMES", chains.join(","));
    let main = |setup| passphrase(setup, 0, "main", RIGHT);
    let both = passphrase(main(replica()), 1, "other", "of the other").start().await;
    let mut sealed = used(&both, &chains).await;
    both.stop().await;
    // No replica runs while this copy is made, so it has no report of a replica.
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy");
    etcd.ctl(&["snapshot", "save", copy.to_str().unwrap()]);

    let (healthy, alone) = (
        [main(replica()).start().await, main(replica()).start().await],
        passphrase(replica(), 0, "other", "of the other").start_ready_or_not().await,
    );
    // It opens all KEKs, so it may know of these: the restore is noticed everywhere.
    decrypt_all(&alone, &sealed).await;
    for chain in &chains {
        sealed.push(healthy[0].encrypt(chain, "AAEC").await);
        sealed.push(alone.encrypt(chain, "AAEC").await);
    }
    let mut before = Vec::new();
    for chain in &chains {
        before.push(primary(&healthy[0], chain).await.unwrap());
    }
    etcd.restore(&copy);
    etcd.healthy().await;
    let began = std::time::Instant::now();
    for service in &healthy {
        for (chain, before) in chains.iter().zip(&before) {
            // Uses that were reserved before the restore are spent first.
            let made = until("an envelope under a new KEK", async || {
                let now = primary(service, chain).await?;
                let made = service.try_encrypt(chain, "AAAA").await.unwrap().ok()?;
                (now != *before && made.kek_id() == now).then_some(made)
            });
            sealed.push(made.await);
        }
    }
    tell(&format!("all chains encrypt {:?} after the restore", began.elapsed()));
    for service in &healthy {
        assert_eq!(service.get("/readyz").await.0, 200);
        decrypt_all(service, &sealed).await;
    }
    // The replica with the other root wrapped none of these KEKs, and reports what it can't open.
    for chain in &chains {
        until("the uses of before are spent", async || {
            alone.try_encrypt(chain, "AAAA").await.unwrap().is_err().then_some(())
        })
        .await;
        encrypts_nothing(&alone, chain).await;
        let name = format!("chain:{chain}");
        until("its readiness names the chain", async || check(&alone, &name).await).await;
    }
    let (code, said) = command(&alone, &["rotate", "--chain", chains[0]]);
    assert!(code == Some(1) && said.contains("root_unavailable"), "{code:?} {said}");
}
