//! Salvages a damaged file. If all of its keys are intact, its records are copied to a new file.
//! The damaged ones are copied unchanged, and reported when they are read. The old file is kept. If
//! a record may be missing, nothing is done, since the service would create a missing record again.

use std::io;
use std::path::{Path, PathBuf};

use redb::{Builder, ReadableDatabase, ReadableTable, ReadableTableMetadata};

use crate::files;
use crate::store::Revision;

use super::create::{CACHE, Opener, make};
use super::error::{FileError, OpenFailure, guarded, io_failure};
use super::layout::{self, Damage, RECORDS, STATE};

/// Replaces a damaged file by a valid copy, if no record is missing.
pub(super) fn salvage(path: &Path, opener: &Opener, detail: &str) -> Result<(), OpenFailure> {
    let beyond = |why: String| FileError::Damaged(format!("{detail}; {why}")).at(path);
    let contents = guarded(|| read_all(path)).map_err(|error| beyond(error.to_string()))?;
    let contents = contents.map_err(beyond)?;
    let kept = keep(path).map_err(|error| io_failure(path, &error))?;
    make(path, opener, |write| {
        write.open_table(STATE)?.insert((), &*layout::write_state(contents.revision))?;
        let mut records = write.open_table(RECORDS)?;
        for (key, stored) in &contents.records {
            records.insert(&**key, &**stored)?;
        }
        Ok(())
    })?;
    tracing::error!(
        file = %path.display(),
        kept = %kept.display(),
        detail,
        damaged = ?contents.damaged,
        "the store's file was damaged; its records were copied to a new one, and those that are \
         damaged stay refused"
    );
    Ok(())
}

struct Contents {
    revision: Revision,
    records: Vec<(String, Vec<u8>)>,
    /// The keys of records that can't be read.
    damaged: Vec<String>,
}

/// Reads a damaged file completely; or returns why records may be missing.
fn read_all(path: &Path) -> Result<Result<Contents, String>, redb::Error> {
    let database = Builder::new().set_cache_size(CACHE).open_read_only(path)?;
    let read = database.begin_read()?;
    let revision = match layout::read_state(&read.open_table(STATE)?)? {
        Ok(revision) => revision,
        Err(detail) => return Ok(Err(detail)),
    };
    let table = read.open_table(RECORDS)?;
    let mut contents = Contents { revision, records: Vec::new(), damaged: Vec::new() };
    for entry in table.iter()? {
        let (key, stored) = entry?;
        let (key, stored) = (key.value().to_owned(), stored.value().to_vec());
        if contents.records.last().is_some_and(|(last, _)| *last >= key) {
            return Ok(Err("its keys are out of order".to_owned()));
        }
        match layout::read_record(&key, &stored) {
            Ok((written, _)) if written <= revision => {}
            Ok(_) => return Ok(Err(format!("{key} is newer than the store"))),
            Err(Damage::Value) => contents.damaged.push(key.clone()),
            Err(Damage::Key) => return Ok(Err("a key is damaged".to_owned())),
        }
        contents.records.push((key, stored));
    }
    if table.len()? != contents.records.len() as u64 {
        return Ok(Err("records are missing".to_owned()));
    }
    Ok(Ok(contents))
}

/// Keeps the damaged file under a new unique name, and returns it.
fn keep(path: &Path) -> io::Result<PathBuf> {
    let mut number = 1u32;
    loop {
        let kept = path.with_extension(format!("redb.damaged-{number}"));
        match files::keep_as(path, &kept) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
            Ok(()) => return Ok(kept),
        }
    }
}
