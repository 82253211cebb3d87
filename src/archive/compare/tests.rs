//! Each kind of difference is found, and nothing is reported for equal records.

use std::sync::Arc;

use super::super::{Archive as _, Condition, memory as archives};
use super::*;
use crate::id::{KekId, Suite};
use crate::store::record::{self, Head, Limits, Record as _, Uses, Wrap};
use crate::store::{Txn, memory};

fn chain() -> ChainName {
    ChainName::new("orders").unwrap()
}

fn kek(state: State, disabled_at: Option<u64>, roots: &[&str]) -> Kek {
    let wrap = |root: &&str| Wrap { root: (*root).to_owned(), bytes: vec![7] };
    Kek {
        suite: Suite::Aes128Gcm,
        state,
        created_at: 1,
        promoted_at: None,
        disabled_at,
        exposed: false,
        wraps: roots.iter().map(wrap).collect(),
    }
}

/// The differences between a store and an archive with these records of one KEK.
async fn found(stored: Option<Kek>, archived: Option<Kek>) -> Vec<String> {
    let id = KekId::from_bytes([1; 16]);
    let limits = Limits::default();
    let head = Head {
        suite: Suite::Aes128Gcm,
        limits,
        primary: None,
        standby: None,
        generation: 1,
        roots_generation: 1,
        named_root: None,
        repair: None,
        inline: false,
    };
    let mut txn = Txn::default().create(record::head_key(&chain()), head.encode().unwrap());
    if let Some(kek) = stored {
        txn = txn.create(record::kek_key(&chain(), id), kek.encode().unwrap());
        let uses = Uses::default().encode().unwrap();
        txn = txn.create(record::uses_key(&chain(), id), uses);
    }
    let store = memory::Store::holding(txn);
    let archive = Arc::new(archives::Archive::new());
    let settings = Chain { suite: Suite::Aes128Gcm, limits, inline: false };
    let mut objects =
        vec![(object::chain_key(&chain()), object::encode_chain(&chain(), &settings).unwrap())];
    if let Some(kek) = archived {
        let bytes = object::encode_kek(&chain(), id, &kek).unwrap();
        objects.push((object::kek_key(&chain(), id), bytes));
    }
    for (key, bytes) in objects {
        let _ = archive.put(&key, bytes, Condition::Absent).await.unwrap();
    }
    let named = Named { name: "nas".into(), archive };
    let report = compare(&store, &named, |_| {}).await.unwrap();
    assert_eq!(report.chains, 1);
    report.differences.into_iter().map(|problem| problem.detail).collect()
}

#[tokio::test]
async fn each_difference_of_a_kek_is_named() {
    let plain = || kek(State::Retired, None, &["a", "b"]);
    let disabled = || kek(State::Disabled, Some(5), &["a", "b"]);
    let destroyed = || kek(State::Destroyed, Some(5), &[]);
    let other = || kek(State::Retired, None, &["a"]);
    let primary = || kek(State::Primary, None, &["b", "a"]);
    for (stored, archived, expected) in [
        (None, None, None),
        (Some(plain()), Some(plain()), None),
        (Some(primary()), Some(plain()), None),
        (Some(destroyed()), Some(destroyed()), None),
        (Some(plain()), None, Some("it is not in the archive")),
        (None, Some(plain()), Some("it is not in the store")),
        (Some(plain()), Some(other()), Some("its wraps are not those of the store")),
        (Some(other()), Some(plain()), Some("its wraps are not those of the store")),
        (
            Some(disabled()),
            Some(plain()),
            Some("it is retired in the archive, and disabled in the store"),
        ),
        (
            Some(plain()),
            Some(disabled()),
            Some("it is disabled in the archive, and retired in the store"),
        ),
        (
            Some(destroyed()),
            Some(plain()),
            Some("it is destroyed in the store, and the archive still has its wraps"),
        ),
        (
            Some(plain()),
            Some(destroyed()),
            Some("it is destroyed in the archive, and retired in the store"),
        ),
    ] {
        let differences = found(stored.clone(), archived.clone()).await;
        let expected: Vec<&str> = expected.into_iter().collect();
        assert_eq!(differences, expected, "{stored:?} {archived:?}");
    }
}

#[tokio::test]
async fn chains_and_damage_are_differences_and_an_archive_that_is_away_is_an_error() {
    let archive = Arc::new(archives::Archive::new());
    let named = Named { name: "nas".into(), archive: archive.clone() };
    let store = memory::Store::new();
    let empty = compare(&store, &named, |_| {}).await.unwrap();
    assert_eq!(empty, Report::default());
    for (key, bytes) in [("v1/orders/chain.json", "{"), ("v1/x.json", ""), ("v2/a/b", "")] {
        let _ = archive.put(key, bytes.into(), Condition::Absent).await.unwrap();
    }
    let report = compare(&store, &named, |_| {}).await.unwrap();
    let details: Vec<_> = report.differences.iter().map(ToString::to_string).collect();
    assert_eq!(details.len(), 2, "{details:?}");
    assert!(details[0].contains("v1/x.json: this key is not that of an object"), "{details:?}");
    assert!(details[1].contains("v1/orders/chain.json: it is damaged"), "{details:?}");
    archive.set_down(true);
    assert!(matches!(compare(&store, &named, |_| {}).await, Err(CompareError::Archive(_))));
}
