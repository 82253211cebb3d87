//! The archives of a running service: copies of all wrapped KEKs outside of the store, which hold a
//! KEK before it encrypts.
//!
//! | file | owns |
//! | --- | --- |
//! | [`archives`] | what each archive is known to hold, and what it still has to get; no calls |
//! | [`permit`] | whether a KEK may become primary; no calls |
//! | [`sync`] | brings one record into one archive |
//! | [`sweep`] | compares the store with an archive |
//! | [`audit_key`] | brings the key of the audit log into one archive |
//! | [`worker`] | the task of each archive |
//! | [`find`] | reads KEKs and chains that the store lacks |
//! | [`restore`] | writes them to the store again |
//!
//! The store is written first and the archives afterwards, so a process that is killed between the
//! two leaves a standby that is not archived. Any process archives it, and promotes it after that.
//! What an archive has to get is never only a list in memory: the [`sweep`] derives it from the
//! records.

pub(super) mod archives;
mod audit_key;
pub(super) mod find;
pub(super) mod permit;
pub(super) mod restore;
mod sweep;
pub(super) mod sync;
pub(super) mod worker;
