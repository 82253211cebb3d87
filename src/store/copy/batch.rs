//! Collects a conditional write of several records.

use crate::store::record::Record;
use crate::store::{Compare, Problem, Read, Txn};

/// A transaction that is being built, and the counts of what it does.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) txn: Txn,
    pub(super) added: u64,
    pub(super) moved: u64,
    pub(super) same: u64,
    pub(super) retired: u64,
}

impl Batch {
    /// Adds a record: `decided` is the value to write, `target` what it replaces.
    pub(super) fn add<R: Record + PartialEq>(
        &mut self,
        key: String,
        decided: Option<R>,
        source: &Read<R>,
        target: Option<&Read<R>>,
    ) -> Result<(), Problem> {
        let compare = match target {
            Some(target) => Compare::Unchanged(key.clone(), target.entry.revision),
            None => Compare::Absent(key.clone()),
        };
        self.txn.compares.push(compare);
        let Some(record) = decided else {
            self.same += 1;
            return Ok(());
        };
        *(if target.is_some() { &mut self.moved } else { &mut self.added }) += 1;
        // An unchanged record keeps its exact bytes.
        let value = if record == source.record {
            source.entry.value.clone()
        } else {
            record.encode().map_err(|error| Problem::new(&key, error.to_string()))?
        };
        self.txn.puts.push((key, value));
        Ok(())
    }
}
