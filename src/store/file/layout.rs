//! The layout of the database: two tables, each value with its own checksum.
//!
//! The database's pages have checksums too, but those are verified when a file is opened, not when
//! a page is read. A flipped byte in a record must be reported with the record's key, and must not
//! affect other records. So the key and the rest have separate checksums.

use redb::{ReadableTable, TableDefinition};
use sha2::{Digest, Sha256};

use crate::store::Revision;

/// Keys and their stored values.
pub(super) const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");

/// One value: the state of the whole store.
pub(super) const STATE: TableDefinition<(), &[u8]> = TableDefinition::new("state");

/// The format that this code writes. It reads no other.
pub(super) const FORMAT: u32 = 1;

/// The value of [`STATE`]: format (4 bytes), the last revision (8), check (8); big-endian.
pub(super) fn write_state(revision: Revision) -> Vec<u8> {
    let numbers = [&FORMAT.to_be_bytes()[..], &revision.0.to_be_bytes()].concat();
    let check: [u8; 8] = digest(&[b"kms-proxy store state", &numbers]);
    [&numbers[..], &check].concat()
}

/// The last revision that was used; or what is wrong with the table.
pub(super) fn read_state(
    table: &impl ReadableTable<(), &'static [u8]>,
) -> Result<Result<Revision, String>, redb::StorageError> {
    Ok(match table.get(())? {
        Some(stored) => parse_state(stored.value()),
        None => Err("its state is missing".to_owned()),
    })
}

fn parse_state(stored: &[u8]) -> Result<Revision, String> {
    let (format, rest) = stored.split_first_chunk().ok_or("its state is too short")?;
    match u32::from_be_bytes(*format) {
        FORMAT => {}
        other => return Err(format!("its format is {other}, this version reads {FORMAT}")),
    }
    let (revision, _) = rest.split_first_chunk().ok_or("its state is too short")?;
    let revision = Revision(u64::from_be_bytes(*revision));
    if stored == write_state(revision) {
        Ok(revision)
    } else {
        Err("its state is damaged: its checksum does not match".to_owned())
    }
}

/// The stored form of a record in [`RECORDS`]: check of the key (4 bytes), revision (8,
/// big-endian), check of all (8), then the bytes themselves.
pub(super) fn write_record(key: &str, revision: Revision, value: &[u8]) -> Vec<u8> {
    [
        &check_of_key(key)[..],
        &revision.0.to_be_bytes(),
        &check_of_record(key, revision, value),
        value,
    ]
    .concat()
}

/// Why a stored value can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// The key is not the one that was written, or can't be checked: the record of the right key is
    /// missing.
    Key,
    /// The key is correct, the rest is not.
    Value,
}

/// The revision and the bytes of what is stored at `key`.
pub(super) fn read_record<'a>(key: &str, stored: &'a [u8]) -> Result<(Revision, &'a [u8]), Damage> {
    let (of_key, rest) = stored.split_first_chunk::<4>().ok_or(Damage::Key)?;
    if *of_key != check_of_key(key) {
        return Err(Damage::Key);
    }
    let (revision, rest) = rest.split_first_chunk().ok_or(Damage::Value)?;
    let (check, value) = rest.split_first_chunk::<8>().ok_or(Damage::Value)?;
    let revision = Revision(u64::from_be_bytes(*revision));
    if *check == check_of_record(key, revision, value) {
        Ok((revision, value))
    } else {
        Err(Damage::Value)
    }
}

fn check_of_key(key: &str) -> [u8; 4] {
    digest(&[b"kms-proxy store key", key.as_bytes()])
}

fn check_of_record(key: &str, revision: Revision, value: &[u8]) -> [u8; 8] {
    // Keys contain no zero byte, so the boundary of the parts is unambiguous.
    digest(&[b"kms-proxy store record", key.as_bytes(), &[0], &revision.0.to_be_bytes(), value])
}

/// The first bytes of SHA-256: they detect accidents, not an attacker who writes to the file.
fn digest<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().first_chunk().copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_as_written() {
        for value in [&b""[..], b"value"] {
            let stored = write_record("key", Revision(7), value);
            assert_eq!(read_record("key", &stored), Ok((Revision(7), value)));
            assert_eq!(stored.len(), 20 + value.len());
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let stored = write_record("key", Revision(7), b"value");
        for bit in 0..8 * stored.len() {
            let mut bad = stored.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let damage = if bit < 32 { Damage::Key } else { Damage::Value };
            assert_eq!(read_record("key", &bad), Err(damage), "bit {bit}");
        }
        for len in 0..stored.len() {
            assert!(read_record("key", &stored[..len]).is_err(), "{len} bytes");
        }
        assert_eq!(read_record("kez", &stored), Err(Damage::Key));
    }

    #[test]
    fn the_state_names_another_format_and_damage() {
        let stored = write_state(Revision(9));
        assert_eq!(parse_state(&stored), Ok(Revision(9)));
        for bit in 0..8 * stored.len() {
            let mut bad = stored.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_state(&bad).is_err(), "bit {bit}");
        }
        let mut newer = stored;
        newer[3] = 2;
        assert_eq!(parse_state(&newer).unwrap_err(), "its format is 2, this version reads 1");
    }
}
