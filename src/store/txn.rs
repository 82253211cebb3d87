//! Conditional writes: what must hold, what is written then, and the outcome.
//!
//! It knows keys, values and revisions, and no store.

use super::Revision;

/// What must hold for a [`Txn`] to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// There is no entry at this key.
    Absent(String),
    /// The entry at this key has this revision.
    Unchanged(String, Revision),
}

/// A conditional write: all of `puts` and `deletes` when every one of `compares` holds, else
/// nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// Keys and their new values.
    pub puts: Vec<(String, Vec<u8>)>,
    /// Keys to delete.
    pub deletes: Vec<String>,
}

impl Txn {
    /// Also requires that the entry at `key` has this revision.
    #[must_use]
    pub fn unchanged(mut self, key: String, revision: Revision) -> Self {
        self.compares.push(Compare::Unchanged(key, revision));
        self
    }

    /// Also writes `value`, if there is no entry at `key`.
    #[must_use]
    pub fn create(mut self, key: String, value: Vec<u8>) -> Self {
        self.compares.push(Compare::Absent(key.clone()));
        self.put(key, value)
    }

    /// Also writes `value`, if the entry at `key` has this revision.
    #[must_use]
    pub fn replace(self, key: String, revision: Revision, value: Vec<u8>) -> Self {
        self.unchanged(key.clone(), revision).put(key, value)
    }

    /// Also writes `value`, whatever is at `key`.
    #[must_use]
    pub fn put(mut self, key: String, value: Vec<u8>) -> Self {
        self.puts.push((key, value));
        self
    }

    /// Also deletes the entry at `key`.
    #[must_use]
    pub fn delete(mut self, key: String) -> Self {
        self.deletes.push(key);
        self
    }
}

/// The outcome of a [`Txn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Committed {
    /// It is durable, and all entries that it put have this revision. A transaction that changed
    /// nothing may have the revision of an earlier one.
    Applied(Revision),
    /// A condition did not hold; nothing was written.
    Conflict,
}
