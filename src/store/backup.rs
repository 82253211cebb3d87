//! Backups: the unchanged records of a store in one file. KEKs stay wrapped, so a backup contains
//! no key.
//!
//! # Format
//!
//! Lines of JSON, each ended by `\n`: a header; the head of each chain, the KEKs that it names and
//! then its other KEKs, each followed by its uses; the key of the audit log, if the store has one
//! and all chains are in the backup; the counts; and the SHA-256 of all the bytes before its own
//! line. A file that is cut off anywhere has no last line.
//!
//! ```json
//! {"kms_proxy_backup":2,"created_at":"2026-11-23T20:40:00Z"}
//! {"key":"chains/default/head","value":"{\"format\":1,\"record\":{...}}"}
//! {"chains":1,"records":3,"left_out":0}
//! {"sha256":"f124f200eee346491bdc4e0f67cfdcdc95507df49e8a9a45880a6f07de5acb9a"}
//! ```
//!
//! `left_out` counts damaged records that are not in the backup. Format 1, which is still read, has
//! `chains` and `records` in its header and no line of counts.
//!
//! # Consistency
//!
//! The store may be in use. The head of a chain and the KEKs that it names are as of one moment. A
//! KEK that became standby or primary after that moment is in the backup as retired, so a head
//! never names a KEK that is not there, and each chain has one primary at most. Records are never
//! deleted, so every KEK that was stored when the backup began is in it. Counts of uses may be of
//! different moments: `store copy` retires the KEKs that encrypt, and so needs no count.
//!
//! A damaged record is left out and counted. Then a record may refer to a KEK that is not there.
//!
//! The checksum detects accidental damage. It does not protect from an attacker, who could as well
//! write to the store.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{self, NewFile};
use crate::id::ChainName;

use super::copy::CopyReport;
use super::{Error, Store};

mod check;
mod last;
mod parse;
mod stream;

pub use check::{Check, Summary};
pub use last::{last, note};
pub use parse::{Backup, ReadError, read};
pub use stream::Stream;

/// The format that this code writes. It reads format 1 as well.
const FORMAT: u32 = 2;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kms_proxy_backup: u32,
    created_at: String,
}

/// The line of a record. The value is a string, so that no byte of it changes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    value: String,
}

/// The line after the records.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    chains: u64,
    records: u64,
    left_out: u64,
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
    /// What arrived is not a complete backup.
    #[error("what was received is not a complete backup: {0}")]
    Incomplete(#[from] ReadError),
}

/// Writes the chains of `store` to a new file: all of them, and the key of the audit log, if `only`
/// is empty. `now` is in seconds
/// since the Unix epoch. A crash leaves the complete file or none.
///
/// Damaged records are left out and reported; [consistency](self#consistency) has the rest.
///
/// # Errors
/// [`WriteError`].
pub async fn write(
    store: &dyn Store,
    path: &Path,
    only: &[ChainName],
    now: u64,
    mut progress: impl FnMut(&CopyReport),
) -> Result<CopyReport, WriteError> {
    let mut file = begin(path)?;
    let mut stream = Stream::begin(store, only, now).await?;
    while let Some(part) = stream.next().await? {
        file.write(&part)?;
        progress(stream.report());
    }
    place(file)?;
    Ok(stream.report().clone())
}

/// A backup that arrives a part at a time. The file gets its name when it is complete; dropped
/// before, it leaves nothing.
pub struct Receiver {
    file: NewFile,
    check: Check,
}

impl Receiver {
    /// Begins the file `path`.
    ///
    /// # Errors
    /// [`WriteError::Exists`], [`WriteError::Output`].
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        Ok(Self { file: begin(path)?, check: Check::default() })
    }

    /// Checks a part and adds it.
    ///
    /// # Errors
    /// [`WriteError::Incomplete`], [`WriteError::Output`].
    pub fn write(&mut self, part: &[u8]) -> Result<(), WriteError> {
        self.check.take(part)?;
        Ok(self.file.write(part)?)
    }

    /// Checks that the parts are a complete backup, and gives the file its name.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn finish(self) -> Result<Summary, WriteError> {
        let summary = self.check.finish()?;
        place(self.file)?;
        Ok(summary)
    }
}

fn begin(path: &Path) -> Result<NewFile, WriteError> {
    // Checked again at the end; an early error saves the reading.
    if path.try_exists()? {
        return Err(WriteError::Exists);
    }
    files::check_parent(path)?;
    Ok(NewFile::create(path)?)
}

fn place(file: NewFile) -> Result<(), WriteError> {
    if file.place()? { Ok(()) } else { Err(WriteError::Exists) }
}

fn to_line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
