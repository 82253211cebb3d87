//! The order of the states of one KEK: which of two records of it is the later one.
//!
//! Copies of stores and archives share these rules. They decide what to do with the result.

use super::{Kek, State, Wrap};

/// The progress of a KEK's life: a later record compares greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Progress(u8, Option<u64>, bool);

impl Kek {
    /// The progress of its life. A KEK that is disabled and enabled again keeps the time at which
    /// it was last disabled, so it counts as later than before.
    pub(crate) fn progress(&self) -> Progress {
        match self.state {
            State::Standby => Progress(0, None, false),
            State::Primary => Progress(1, None, false),
            State::Disabled => Progress(2, self.disabled_at, false),
            State::Retired => Progress(2, self.disabled_at, true),
            State::Destroyed => Progress(3, None, false),
        }
    }

    /// The first of its wraps that `other` does not contain.
    pub(crate) fn wrap_missing_in(&self, other: &Self) -> Option<&Wrap> {
        self.wraps.iter().find(|wrap| !other.wraps.contains(wrap))
    }

    /// Whether it was disabled at some time, or destroyed: changes that operators make, which no
    /// copy may undo.
    pub(crate) fn was_withdrawn(&self) -> bool {
        self.disabled_at.is_some() || matches!(self.state, State::Disabled | State::Destroyed)
    }
}
