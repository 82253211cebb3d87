//! The rotation of a chain's KEKs, and the reservation of their uses.
//!
//! | file | owns |
//! | --- | --- |
//! | [`reservations`] | the records of a chain, and how fast its uses are spent: no calls |
//! | [`reserver`] | reserves blocks of uses and promotes the standby: store calls only |
//! | [`rotator`] | makes and opens KEKs: root calls |
//! | [`continuity`] | which roots may wrap a new KEK |
//! | [`root_check`] | whether all processes have the same key under a root's name |
//! | [`clock_check`] | ages by clocks of which one may be wrong |
//! | [`retry`] | when a failed step is tried again |

mod clock_check;
pub(super) mod continuity;
pub(super) mod reservations;
pub(super) mod reserver;
pub(super) mod retry;
pub(super) mod root_check;
pub(super) mod rotator;
