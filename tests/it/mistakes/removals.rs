//! Replicas on one etcd of which one has other roots than the rest: it neither replaces their KEKs
//! nor removes their root, also right after a restore.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::support::etcd::Etcd;
use crate::support::{Sealed, Service, Setup, decrypt_all, until};

use super::replicas::on;
use super::{RIGHT, WRONG, command, keks, passphrase, used};

fn old(etcd: &Etcd) -> Setup {
    passphrase(on(etcd), 0, "main", RIGHT)
}

/// A replica that has only the new root, and another key there than is meant.
fn mistyped(etcd: &Etcd) -> Setup {
    passphrase(on(etcd), 0, "new", WRONG)
}

/// A replica with both roots has the new one wrap every KEK, and ends.
async fn rewrapped(etcd: &Etcd) -> Vec<Sealed> {
    let both = passphrase(old(etcd), 1, "new", WRONG).start().await;
    let mut sealed = used(&both, &["default"]).await;
    let (code, said) = command(&both, &["root", "rewrap", "--root", "new"]);
    assert_eq!(code, Some(0), "{said}");
    sealed.push(both.encrypt("default", "AAAA").await);
    both.stop().await;
    sealed
}

/// The number of replicas whose reports of a root are stored.
fn reports(etcd: &Etcd, root: &str) -> usize {
    let part = format!("/roots/{root}/users/");
    let keys = etcd.ctl(&["get", "/", "--prefix", "--keys-only"]);
    keys.lines().filter(|key| key.contains(&part)).count()
}

async fn reported(etcd: &Etcd, root: &str, replicas: usize) {
    until("reports of the roots", async || (reports(etcd, root) == replicas).then_some(())).await;
}

fn removal(service: &Service) -> String {
    let (code, said) = command(service, &["root", "remove", "--root", "main", "--no-wait"]);
    assert_eq!(code, Some(1), "{said}");
    said
}

#[tokio::test]
async fn a_replica_without_the_root_of_two_others_does_not_replace_their_kek() {
    let etcd = Etcd::start().await;
    let mut sealed = rewrapped(&etcd).await;
    let others = [old(&etcd).start().await, old(&etcd).start().await];
    let one = mistyped(&etcd).start().await;
    reported(&etcd, "main", 2).await;
    let before = keks(&others[0], "default").await;
    let (code, said) = command(&one, &["rotate"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("2 of 3 replicas would not open a new KEK"), "{said}");
    assert_eq!(keks(&others[0], "default").await, before);
    for service in &others {
        sealed.push(service.encrypt("default", "AAAA").await);
    }
    // They replace it themselves.
    others[0].ok("/v1/rotate", json!({})).await;
    for service in &others {
        sealed.push(service.encrypt("default", "AAAA").await);
    }
    for service in &others {
        decrypt_all(service, &sealed).await;
    }
}

#[tokio::test]
async fn after_a_restore_of_etcd_a_root_is_not_removed_while_another_replica_has_it() {
    let mut etcd = Etcd::start().await;
    let sealed = rewrapped(&etcd).await;
    reported(&etcd, "main", 0).await;
    let directory = tempfile::tempdir().unwrap();
    let snapshot = directory.path().join("snapshot");
    etcd.ctl(&["snapshot", "save", snapshot.to_str().unwrap()]);
    // Both start after the copy was made, which has no report of them.
    let (one, other) = (old(&etcd).start().await, mistyped(&etcd).start().await);
    reported(&etcd, "main", 1).await;
    reported(&etcd, "new", 1).await;
    let said = removal(&other);
    assert!(said.contains("has root main configured"), "{said}");

    // The replica that has the root can't report it until the other was asked.
    one.signal(Signal::STOP);
    etcd.restore(&snapshot);
    etcd.healthy().await;
    assert_eq!(reports(&etcd, "main"), 0);
    until("a removal that is refused because of the restore", async || {
        let said = removal(&other);
        let is_noticed = said.contains("the store went back to an earlier state");
        assert!(is_noticed || said.contains("store_unavailable"), "{said}");
        is_noticed.then_some(())
    })
    .await;
    one.signal(Signal::CONT);
    // It checks its reports once a minute, which is longer than one wait.
    let is_back = async || (reports(&etcd, "main") == 1).then_some(());
    let deadline = std::time::Instant::now() + Duration::from_secs(300);
    while is_back().await.is_none() {
        assert!(std::time::Instant::now() < deadline, "no report again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A replica that starts now does not know of the restore.
    let fresh = mistyped(&etcd).start_ready_or_not().await;
    let said = removal(&fresh);
    assert!(said.contains("has root main configured"), "{said}");
    for service in [fresh, other, one] {
        service.stop().await;
    }
    // With the mistyped root corrected, all data opens by the old one.
    let service = old(&etcd).start_ready_or_not().await;
    decrypt_all(&service, &sealed).await;
}
