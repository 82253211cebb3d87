//! Backups of a running service, and the limits of one backup.

use std::future::poll_fn;

use super::*;
use crate::service::backup::{DEADLINE, HotBackup, Part, TAKEN_WITHIN};
use crate::store::record::{Kek, Record as _, Uses, Wrap};

/// The next part; `None` if the backup failed.
async fn next(backup: &mut HotBackup) -> Option<Part> {
    poll_fn(|context| backup.poll_next(context)).await
}

/// Reads to the end; returns whether the backup is complete.
async fn finish(mut backup: HotBackup) -> bool {
    loop {
        match next(&mut backup).await {
            Some(Part::Bytes(_)) => {}
            Some(Part::End) => return true,
            None => return false,
        }
    }
}

/// A world with so many KEKs that a backup has more parts than `parts`.
async fn world(parts: u128) -> World {
    let world = World::new(LOW).await;
    let chain = ChainName::new(DEFAULT_CHAIN).unwrap();
    let kek = Kek {
        suite: Suite::Aes128Gcm,
        state: State::Retired,
        created_at: 1,
        promoted_at: Some(1),
        disabled_at: None,
        exposed: false,
        wraps: vec![Wrap { root: "main".to_owned(), bytes: vec![1, 2, 3] }],
    };
    let uses = Uses { reserved: 1, owner: 1, sequence: 1 };
    let mut txn = store::Txn::default();
    for number in 0..parts * 32 {
        let id = KekId::from_bytes(number.to_be_bytes());
        txn = txn.put(record::kek_key(&chain, id), kek.encode().unwrap());
        txn = txn.put(record::uses_key(&chain, id), uses.encode().unwrap());
    }
    let _ = world.store.commit(txn).await.unwrap();
    world
}

/// Waits until another backup may start.
async fn begin(world: &World) -> HotBackup {
    for _ in 0..60_000 {
        match world.service.backup().await {
            Ok(backup) => return backup,
            Err(error) => assert_eq!(error.kind(), Kind::Overloaded),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the previous backup does not end");
}

#[tokio::test(start_paused = true)]
async fn one_backup_is_in_progress_and_ends_with_its_client() {
    let world = world(4).await;
    let mut first = world.service.backup().await.unwrap();
    assert!(next(&mut first).await.is_some());
    assert_eq!(world.service.backup().await.err().unwrap().kind(), Kind::Overloaded);
    drop(first);
    assert!(finish(begin(&world).await).await);
}

#[tokio::test(start_paused = true)]
async fn the_backup_of_a_client_that_reads_nothing_is_cancelled() {
    let world = world(4).await;
    let mut backup = world.service.backup().await.unwrap();
    tokio::time::sleep(TAKEN_WITHIN * 2).await;
    drop(begin(&world).await);
    assert!(matches!(next(&mut backup).await, Some(Part::Bytes(_))), "it was read already");
    assert!(!finish(backup).await);
}

#[tokio::test(start_paused = true)]
async fn the_backup_of_a_slow_client_is_cancelled_at_the_deadline() {
    let world = world(130).await;
    let mut backup = world.service.backup().await.unwrap();
    let (pause, mut time) = (TAKEN_WITHIN / 2, Duration::ZERO);
    while let Some(Part::Bytes(_)) = next(&mut backup).await {
        tokio::time::sleep(pause).await;
        time += pause;
    }
    assert!(time >= DEADLINE && time <= DEADLINE + 2 * pause, "{time:?}");
    assert!(next(&mut backup).await.is_none());
}

#[tokio::test]
async fn only_a_complete_backup_that_was_read_is_recorded() {
    let world = world(4).await;
    let mut cut = world.service.backup().await.unwrap();
    assert!(next(&mut cut).await.is_some());
    drop(cut);
    assert!(finish(begin(&world).await).await);
    for _ in 0..60_000 {
        if world.service.core.last_backup() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let now = world.clock.unix_now();
    assert_eq!(store::backup::last(&*world.store).await.unwrap(), Some(now));
    assert_eq!(world.service.core.last_backup(), now);
    let checks = world.service.readiness().checks;
    assert!(checks.iter().any(|check| check.name == "backup" && check.health == Health::Ok));

    // A record that is damaged is not in the backup, so the backup does not count.
    world.clock.advance(Duration::from_secs(60));
    let key = record::kek_key(&ChainName::new(DEFAULT_CHAIN).unwrap(), KekId::from_bytes([0; 16]));
    let txn = store::Txn::default().put(key, b"{".to_vec());
    let _ = world.store.commit(txn).await.unwrap();
    assert!(finish(begin(&world).await).await);
    drop(begin(&world).await);
    assert_eq!(store::backup::last(&*world.store).await.unwrap(), Some(now));
    let restarted = world.restarted().await;
    assert_eq!(restarted.service.core.last_backup(), now);
}
