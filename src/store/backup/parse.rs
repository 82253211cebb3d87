//! A backup read back: all of it is checked before anything of it is used.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::files;
use crate::store::record::{Head, Kek, Part, Record, Uses, parse_key};
use crate::store::{Txn, memory};

use super::{FORMAT, Footer, Header, Line};

/// What a backup holds.
pub struct Backup {
    /// Its records, as a store to copy from.
    pub store: memory::Store,
    /// When it was made, as RFC 3339 has it.
    pub created_at: String,
    /// How many chains are in it.
    pub chains: u64,
    /// How many records.
    pub records: u64,
}

/// Why a file is no backup that can be used. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file can't be read.
    #[error("it can't be read: {0}")]
    Input(#[from] io::Error),
    /// It does not begin as a backup does.
    #[error("line 1: this is no backup of kms-proxy")]
    NoBackup,
    /// It is of a format that this version does not know.
    #[error("line 1: its format is {0}, this version reads {FORMAT}")]
    Format(u32),
    /// The line with the checksum, which is the last one, is not there.
    #[error("line {0}: it ends here, without a checksum: the rest is cut off")]
    CutOff(usize),
    /// The checksum is another one. The line is the first that can't be read, if there is one.
    #[error("its checksum does not match: it is damaged{}", .0.map(|line| format!(", in line \
        {line} if not before")).unwrap_or_default())]
    Checksum(Option<usize>),
    /// The checksum holds, and the line does not belong to this version.
    #[error("line {line}: {detail}")]
    Line {
        /// The line, from 1 on.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },
}

/// A header is about 100 bytes; what is longer is not one.
const MAX_FIRST_LINE: u64 = 4 << 10;

/// Reads the backup at `path` and checks all of it.
///
/// # Errors
/// [`ReadError`].
pub fn read(path: &Path) -> Result<Backup, ReadError> {
    let mut file = files::open(path)?;
    let mut bytes = Vec::new();
    file.by_ref().take(MAX_FIRST_LINE).read_to_end(&mut bytes)?;
    // Now, since what comes from a pipe and is not a backup may have no end.
    check_format(bytes.split_inclusive(|&byte| byte == b'\n').next().unwrap_or_default())?;
    file.read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// The SHA-256 of `bytes` in hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(&Sha256::digest(bytes))
}

fn check_format(first: &[u8]) -> Result<(), ReadError> {
    #[derive(serde::Deserialize)]
    struct Probe {
        kms_proxy_backup: u32,
    }
    let probe: Probe = serde_json::from_slice(first).map_err(|_| ReadError::NoBackup)?;
    match probe.kms_proxy_backup {
        FORMAT => Ok(()),
        other => Err(ReadError::Format(other)),
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Backup, ReadError> {
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let Some((first, rest)) = lines.split_first() else { return Err(ReadError::NoBackup) };
    check_format(first)?;
    let cut_off = || ReadError::CutOff(lines.len());
    let (last, records) = rest.split_last().ok_or_else(cut_off)?;
    let footer: Footer = match last.last() {
        Some(b'\n') => serde_json::from_slice(last).map_err(|_| cut_off())?,
        _ => return Err(cut_off()),
    };
    let (content, _) = bytes.split_at(bytes.len().saturating_sub(last.len()));
    if footer.sha256 != sha256(content) {
        let bad = records.iter().position(|line| record(line).is_err());
        return Err(ReadError::Checksum(bad.map(|at| at + 2)));
    }
    let at = |line, detail| ReadError::Line { line, detail };
    let header: Header = json(first).map_err(|detail| at(1, detail))?;
    let (mut keys, mut chains, mut txn) = (HashSet::new(), HashSet::new(), Txn::default());
    for (index, line) in records.iter().enumerate() {
        let (chain, Line { key, value }) = record(line).map_err(|detail| at(index + 2, detail))?;
        if !keys.insert(key.clone()) {
            return Err(at(index + 2, format!("{key} is there twice")));
        }
        chains.insert(chain);
        txn.puts.push((key, value.into_bytes()));
    }
    let counted = (chains.len() as u64, keys.len() as u64);
    if counted != (header.chains, header.records) {
        let (chains, records) = counted;
        return Err(at(
            1,
            format!("it has {chains} chains and {records} records, and tells of others"),
        ));
    }
    let Header { created_at, chains, records, .. } = header;
    Ok(Backup { store: memory::Store::holding(txn), created_at, chains, records })
}

/// A line that is a record of a kind that there is, and the chain that it is of.
fn record(line: &[u8]) -> Result<(crate::id::ChainName, Line), String> {
    let line: Line = json(line)?;
    let Line { key, value } = &line;
    let (chain, part) = parse_key(key).ok_or("its key is that of no record")?;
    match part {
        Part::Head => Head::decode(key, value.as_bytes()).map(drop),
        Part::Kek(_) => Kek::decode(key, value.as_bytes()).map(drop),
        Part::Uses(_) => Uses::decode(key, value.as_bytes()).map(drop),
        Part::Claim => return Err(format!("{key} is no record that a backup holds")),
    }
    .map_err(|error| error.to_string())?;
    Ok((chain, line))
}

fn json<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string())
}
