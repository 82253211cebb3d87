//! Reads a backup: all of it is checked before anything is used.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::files;
use crate::id::ChainName;
use crate::store::record::{AUDIT_KEY, AuditKey, Head, Kek, Part, Record, Uses, parse_key};
use crate::store::{Txn, memory};

use super::{Counts, FORMAT, Footer, Header, Line};

/// The first line of format 1.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderV1 {
    #[serde(rename = "kms_proxy_backup")]
    _format: u32,
    created_at: String,
    chains: u64,
    records: u64,
}

/// The contents of a backup.
pub struct Backup {
    /// Its records, as a store to copy from.
    pub store: memory::Store,
    /// When it was written, in RFC 3339.
    pub created_at: String,
    /// The number of chains.
    pub chains: u64,
    /// The number of records.
    pub records: u64,
    /// The number of damaged records that it lacks.
    pub left_out: u64,
}

/// Why a file is not a usable backup. Nothing of it was used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file can't be read.
    #[error("it can't be read: {0}")]
    Input(#[from] io::Error),
    /// It does not begin like a backup.
    #[error("line 1: this is no backup of kms-proxy")]
    NoBackup,
    /// This version does not know its format.
    #[error("line 1: its format is {0}, this version reads 1 and {FORMAT}")]
    Format(u32),
    /// The last line, with the checksum, is missing.
    #[error("line {0}: it ends here, without a checksum: the rest is cut off")]
    CutOff(usize),
    /// The checksum does not match. The line is the first one that can't be parsed, if there is
    /// one.
    #[error(
        "its checksum does not match: it is damaged{}",
        .0.map(|line| format!(", in line {line} if not before")).unwrap_or_default()
    )]
    Checksum(Option<usize>),
    /// The checksum matches, but this version does not understand the line.
    #[error("line {line}: {detail}")]
    Line {
        /// The line, from 1 on.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },
}

/// A header has about 100 bytes; a longer first line is not a header.
const MAX_FIRST_LINE: u64 = 4 << 10;

/// Reads the backup at `path` and checks all of it.
///
/// # Errors
/// [`ReadError`].
pub fn read(path: &Path) -> Result<Backup, ReadError> {
    let mut file = files::open(path)?;
    let mut bytes = Vec::new();
    file.by_ref().take(MAX_FIRST_LINE).read_to_end(&mut bytes)?;
    // Checked before the rest is read: a pipe that is not a backup may have no end.
    format(bytes.split_inclusive(|&byte| byte == b'\n').next().unwrap_or_default())?;
    file.read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// The SHA-256 of `bytes` in hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(&Sha256::digest(bytes))
}

/// The format in the first line.
pub(super) fn format(first: &[u8]) -> Result<u32, ReadError> {
    #[derive(serde::Deserialize)]
    struct Probe {
        kms_proxy_backup: u32,
    }
    let probe: Probe = serde_json::from_slice(first).map_err(|_| ReadError::NoBackup)?;
    match probe.kms_proxy_backup {
        known @ 1..=FORMAT => Ok(known),
        other => Err(ReadError::Format(other)),
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Backup, ReadError> {
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let Some((first, rest)) = lines.split_first() else { return Err(ReadError::NoBackup) };
    let format = format(first)?;
    let cut_off = || ReadError::CutOff(lines.len());
    let (last, records) = rest.split_last().ok_or_else(cut_off)?;
    let footer: Footer = match last.last() {
        Some(b'\n') => serde_json::from_slice(last).map_err(|_| cut_off())?,
        _ => return Err(cut_off()),
    };
    let (content, _) = bytes.split_at(bytes.len().saturating_sub(last.len()));
    if footer.sha256 != sha256(content) {
        let bad = records.iter().position(|line| record(line).is_err() && counts(line).is_err());
        return Err(ReadError::Checksum(bad.map(|at| at + 2)));
    }
    let at = |line, detail| ReadError::Line { line, detail };
    let (created_at, records, stated, counts) = if format == 1 {
        let HeaderV1 { created_at, chains, records: count, .. } =
            json(first).map_err(|detail| at(1, detail))?;
        (created_at, records, 1, Counts { chains, records: count, left_out: 0 })
    } else {
        let Header { created_at, .. } = json(first).map_err(|detail| at(1, detail))?;
        let (last, records) = records.split_last().ok_or_else(cut_off)?;
        let line = records.len() + 2;
        (created_at, records, line, counts(last).map_err(|detail| at(line, detail))?)
    };
    let (mut keys, mut chains, mut txn) = (HashSet::new(), HashSet::new(), Txn::default());
    for (index, line) in records.iter().enumerate() {
        let (chain, Line { key, value }) = record(line).map_err(|detail| at(index + 2, detail))?;
        if !keys.insert(key.clone()) {
            return Err(at(index + 2, format!("{key} occurs twice")));
        }
        chains.extend(chain);
        txn.puts.push((key, value.into_bytes()));
    }
    let (chains, records) = (chains.len() as u64, keys.len() as u64);
    if (chains, records) != (counts.chains, counts.records) {
        let detail = format!("it has {chains} chains and {records} records, and states others");
        return Err(at(stated, detail));
    }
    let (store, left_out) = (memory::Store::holding(txn), counts.left_out);
    Ok(Backup { store, created_at, chains, records, left_out })
}

pub(super) fn counts(line: &[u8]) -> Result<Counts, String> {
    json(line)
}

/// Parses the line of a record, and returns its chain; `None` for the key of the audit log.
pub(super) fn record(line: &[u8]) -> Result<(Option<ChainName>, Line), String> {
    let line: Line = json(line)?;
    let Line { key, value } = &line;
    if key == AUDIT_KEY {
        AuditKey::decode(key, value.as_bytes()).map_err(|error| error.to_string())?;
        return Ok((None, line));
    }
    let (chain, part) = parse_key(key).ok_or("its key is not that of a record")?;
    match part {
        Part::Head => Head::decode(key, value.as_bytes()).map(drop),
        Part::Kek(_) => Kek::decode(key, value.as_bytes()).map(drop),
        Part::Uses(_) => Uses::decode(key, value.as_bytes()).map(drop),
        Part::Claim => return Err(format!("{key} is not a record that a backup contains")),
    }
    .map_err(|error| error.to_string())?;
    Ok((Some(chain), line))
}

pub(super) fn json<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string())
}
