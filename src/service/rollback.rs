//! A store that went back to an earlier state, because someone restored an old copy of it while
//! services run, or before they started.
//!
//! The counters of the copy are too low, so a KEK that encrypts could pass its limit of uses; and
//! KEKs that were made after the copy are missing, with the data under them. So the primary and the
//! standby that the copy names encrypt no more, and each process restores the records that it holds
//! and the store lacks. KEKs that no process holds are lost: their envelopes answer `unknown_kek`.
//!
//! # Which detector covers which case
//!
//! | case | detected by |
//! | --- | --- |
//! | a head, a counter or a KEK is older than what this process read | [`detect::Detector::compare`], at each read of the chain |
//! | head and primary do not fit together, since a write met a revision of another history | the same (`fits`) |
//! | the head is gone | `Ledger::put_head_again` puts an empty one, and the chain is suspected |
//! | a KEK that this process holds is gone, or was destroyed and is not any more | [`kek_lifecycle::suspect`](super::kek_lifecycle::suspect), called by the follower and by reads of KEKs |
//! | the copy is so old, or so new, that no record contradicts | etcd reports the rollback itself (its revision went back): `Watch` says `Restored`, which reaches [`detect::Detector::report`] |
//! | another process repaired the chain already | [`Head::repair`](crate::store::record::Head::repair): this process only restores what it holds |
//! | no service ran during the restore | nothing can detect it: an operator runs `kms-proxy store restored`, [`offline`] |
//!
//! A report of etcd may come before or after the repair by another process, and must not cause a
//! second repair; `detect` keeps what it needs to match the two.
//!
//! | file | owns |
//! | --- | --- |
//! | [`detect`] | what a process remembers of a chain's past, and the comparison; pure |
//! | [`retire`] | the transaction that retires primary and standby; pure |
//! | [`repair`] | what a running process does about a rollback |
//! | [`summary`] | the one line of the log for it |
//! | [`offline`] | the same for a store that no service uses |

pub(super) mod detect;
pub mod offline;
pub(super) mod repair;
pub(super) mod retire;
pub(super) mod summary;
