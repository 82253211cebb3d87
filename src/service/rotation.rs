//! The rotation of a chain's KEKs and the reservation of their uses.
//!
//! | file | owns |
//! | --- | --- |
//! | [`reservations`] | the records of a chain, and how fast its uses are spent; no calls |
//! | [`reserver`] | reserves blocks of uses and promotes the standby; store calls only |
//! | [`rotator`] | creates and unwraps KEKs; root calls |
//! | [`continuity`] | which roots may wrap a new KEK |
//! | [`root_check`] | whether all processes have the same key under a root's name |
//! | [`root_users`] | which processes have a root configured, as they report it |
//! | [`root_reports`] | how long such a report counts; no calls |
//! | [`clock_check`] | the age of a primary if a clock is wrong |
//! | [`retry`] | when a failed step is tried again |

mod clock_check;
pub(super) mod continuity;
pub(super) mod reservations;
pub(super) mod reserver;
pub(super) mod retry;
pub(super) mod root_check;
pub(super) mod root_reports;
pub(super) mod root_users;
pub(super) mod rotator;
