//! Records of the store, and the objects of archives: what is read is written and read the same.

use std::fmt::Debug;

use crate::archive::object;
use crate::id::{ChainName, KekId};
use crate::store::record::{
    AuditKey, Claim, Head, Kek, LastBackup, LastUsed, Record, RootCheck, RootUser, State,
    UsedSince, Uses,
};

use super::edited;

/// The first byte chooses the type of the record.
pub fn record(bytes: &[u8]) {
    let Some((which, value)) = bytes.split_first() else { return };
    match which % 10 {
        0 => same::<Head>(value),
        1 => {
            same::<Kek>(value);
            archived(value);
        }
        2 => same::<Uses>(value),
        3 => same::<Claim>(value),
        4 => same::<RootCheck>(value),
        5 => same::<RootUser>(value),
        6 => same::<LastBackup>(value),
        7 => same::<LastUsed>(value),
        8 => same::<UsedSince>(value),
        _ => same::<AuditKey>(value),
    }
}

/// A record is read again as it was written, and written the same.
fn same<R: Record + PartialEq + Debug>(value: &[u8]) {
    let Ok(record) = R::decode("k", value) else { return };
    let written = record.encode().unwrap();
    let read = R::decode("k", &written).unwrap();
    assert_eq!(read, record);
    assert_eq!(read.encode().unwrap(), written);
}

/// The object of a KEK is read as the same KEK or not at all, however it was changed.
fn archived(value: &[u8]) {
    let (Ok(kek), Ok(chain)) = (Kek::decode("k", value), ChainName::new("orders")) else { return };
    let id = KekId::from_bytes([7; KekId::LEN]);
    let object = object::encode_kek(&chain, id, &kek).unwrap();
    let is_sound = kek.wraps.is_empty() == (kek.state == State::Destroyed);
    let read = object::decode_kek(&chain, id, &object);
    assert_eq!(read.is_ok(), is_sound);
    assert!(read.is_ok_and(|read| read == kek) || !is_sound);
    let changed = edited(&object, value);
    if let Ok(read) = object::decode_kek(&chain, id, &changed) {
        assert_eq!(read, kek);
    }
    assert!(object::decode_kek(&chain, KekId::from_bytes([8; KekId::LEN]), &object).is_err());
}
