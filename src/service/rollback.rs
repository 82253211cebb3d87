//! Rollbacks: the store went back to an earlier state, because someone restored an old copy of it
//! before the services started or while they run.
//!
//! The counters of the copy are too low, so a KEK that encrypts could pass its limit of uses; and
//! KEKs that were made after the copy are missing, with the data under them. So the primary and the
//! standby that the copy names are retired, and each process restores the records that it holds and
//! the store lacks. KEKs that no process holds are lost: their envelopes answer `unknown_kek`.
//!
//! # Which detector covers which case
//!
//! - A head, a counter or a KEK is older than what this process read:
//!   [`detect::Detector::compare`], at each read of the chain.
//! - Head and primary do not fit together, since a write met a revision of another history: the
//!   same (`fits`).
//! - The head is missing: `Ledger::put_head_again` stores one without KEKs, and reports a
//!   suspicion.
//! - A KEK that this process holds is missing, or was destroyed and is not destroyed any more:
//!   [`kek_lifecycle::suspect`](super::kek_lifecycle::suspect), called by the follower and by
//!   reads of KEKs.
//! - No record contradicts what this process read: etcd reports the rollback itself: its revision
//!   went back, and `Watch` returns `Restored`, which reaches [`detect::Detector::report`].
//! - Another process repaired the chain already:
//!   [`Head::repair`](crate::store::record::Head::repair): this process only restores what it
//!   holds.
//! - No service ran during the restore: nothing can detect it: an operator runs `kms-proxy store
//!   restored`, [`offline`].
//!
//! A report of etcd may come before or after the repair by another process, and must not cause a
//! second repair; `detect` keeps what it needs to match the two.
//!
//! | file | owns |
//! | --- | --- |
//! | [`detect`] | what a process remembers about a chain's past, and the comparison; pure |
//! | [`retire`] | the transaction that retires primary and standby; pure |
//! | [`repair`] | the repair by a running process |
//! | [`summary`] | one log line about it |
//! | [`offline`] | the repair of a store that no service uses |

pub(super) mod detect;
pub mod offline;
pub(super) mod repair;
pub(super) mod retire;
pub(super) mod summary;
