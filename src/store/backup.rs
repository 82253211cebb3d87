//! Backups: the unchanged records of a store in one file. KEKs stay wrapped, so a backup contains
//! no key.
//!
//! # Format
//!
//! Lines of JSON, each ended by `\n`: a header, the records in the order of their keys, and the
//! SHA-256 of all the bytes before its own line.
//!
//! ```json
//! {"kms_proxy_backup":1,"created_at":"2026-11-23T20:40:00Z","chains":1,"records":3}
//! {"key":"chains/default/head","value":"{\"format\":1,\"record\":{...}}"}
//! {"sha256":"f124f200eee346491bdc4e0f67cfdcdc95507df49e8a9a45880a6f07de5acb9a"}
//! ```
//!
//! The checksum detects accidental damage. It does not protect from an attacker, who could as well
//! write to the store.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files;
use crate::id::ChainName;
use crate::timestamp::rfc3339;

use super::copy::{CopyReport, choose};
use super::record;
use super::{Error, Found, Ids, Problem, Store, head, pairs};

mod parse;

pub use parse::{Backup, ReadError, read};

/// The format that this code writes. It reads no other.
const FORMAT: u32 = 1;

/// How often a chain is read again if its head changes in the meantime.
const TRIES: usize = 8;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kms_proxy_backup: u32,
    created_at: String,
    chains: u64,
    records: u64,
}

/// The line of a record. The value is a string, so that no byte of it changes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    value: String,
}

/// The last line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Footer {
    sha256: String,
}

/// Why no backup was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] Error),
    /// A file with this name exists.
    #[error("there is a file of this name, and a backup replaces none")]
    Exists,
    /// The file could not be written.
    #[error("it can't be written: {0}")]
    Output(#[from] io::Error),
}

/// Writes the chains of `store` to a new file: all of them if `only` is empty. `now` is in seconds
/// since the Unix epoch. A crash leaves the complete file or none.
///
/// Each chain is consistent with its head at one moment; the states of older KEKs and the uses may
/// be slightly newer. Damaged records are left out and reported.
///
/// # Errors
/// [`WriteError`].
pub async fn write(
    store: &dyn Store,
    path: &Path,
    only: &[ChainName],
    now: u64,
    progress: impl FnMut(&CopyReport),
) -> Result<CopyReport, WriteError> {
    // Checked again when it is written; an early error saves the reading.
    if path.try_exists()? {
        return Err(WriteError::Exists);
    }
    files::check_parent(path)?;
    let (bytes, report) = to_bytes(store, only, now, progress).await?;
    if files::write_new(path, &bytes)? { Ok(report) } else { Err(WriteError::Exists) }
}

/// The bytes of such a file.
///
/// # Errors
/// [`WriteError`].
pub async fn to_bytes(
    store: &dyn Store,
    only: &[ChainName],
    now: u64,
    mut progress: impl FnMut(&CopyReport),
) -> Result<(Vec<u8>, CopyReport), WriteError> {
    let mut report = CopyReport::default();
    let mut lines = Vec::new();
    for chain in choose(store, only, &mut report.problems).await? {
        let (of_chain, problems) = collect(store, &chain).await?;
        report.chains += u64::from(!of_chain.is_empty());
        report.added += of_chain.len() as u64;
        report.problems.extend(problems);
        lines.extend(of_chain);
        progress(&report);
    }
    let header = Header {
        kms_proxy_backup: FORMAT,
        created_at: rfc3339(now),
        chains: report.chains,
        records: report.added,
    };
    let mut bytes = to_line(&header)?;
    for line in &lines {
        bytes.extend(to_line(line)?);
    }
    let footer = Footer { sha256: parse::sha256(&bytes) };
    bytes.extend(to_line(&footer)?);
    Ok((bytes, report))
}

fn to_line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// The records of a chain, read while its head did not change: no KEK was created or promoted.
async fn collect(store: &dyn Store, chain: &ChainName) -> Result<(Vec<Line>, Vec<Problem>), Error> {
    for _ in 0..TRIES {
        let first = head(store, chain).await?;
        let (mut lines, mut problems) = (Vec::new(), Vec::new());
        let missing = || Problem::new(record::head_key(chain), "it is missing");
        let revision = first.as_ref().ok().and_then(Option::as_ref).map(|it| it.entry.revision);
        keep(first, Some(missing()), &mut lines, &mut problems);
        let mut ids = Ids::of_keks(store, chain);
        while let Some((page, strays)) = ids.next().await? {
            problems.extend(strays);
            for pair in pairs(store, chain, &page).await? {
                let missing = Problem::new(record::uses_key(chain, pair.id), "it is missing");
                keep(pair.kek, None, &mut lines, &mut problems);
                keep(pair.uses, Some(missing), &mut lines, &mut problems);
            }
        }
        let again = head(store, chain).await?;
        if again.ok().flatten().map(|it| it.entry.revision) == revision {
            lines.sort_by(|a, b| a.key.cmp(&b.key));
            return Ok((lines, problems));
        }
    }
    let detail = "other processes keep changing this chain; repeat the backup".to_owned();
    Err(Error::Unavailable { detail: format!("{chain}: {detail}"), maybe_applied: false })
}

fn keep<R>(
    found: Found<R>,
    missing: Option<Problem>,
    lines: &mut Vec<Line>,
    problems: &mut Vec<Problem>,
) {
    match found {
        Ok(Some(read)) => match String::from_utf8(read.entry.value) {
            Ok(value) => lines.push(Line { key: read.entry.key, value }),
            Err(_) => problems.push(Problem::new(read.entry.key, "it is damaged: it is not UTF-8")),
        },
        Ok(None) => problems.extend(missing),
        Err(problem) => problems.push(problem),
    }
}

#[cfg(test)]
mod tests;
