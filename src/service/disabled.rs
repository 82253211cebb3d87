//! When this process first saw each disabled KEK, by its monotonic clock: a wrong wall clock must not
//! shorten the delay before a KEK can be destroyed.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};

use crate::clock::Monotonic;
use crate::id::KekId;

/// When this process first saw each disabled KEK.
#[derive(Default)]
pub(super) struct Disabled(Mutex<HashMap<KekId, Seen>>);

/// When a KEK was seen disabled.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) at: Monotonic,
    /// Whether this process disabled it.
    pub(super) is_witness: bool,
}

impl Disabled {
    /// When the KEK was first seen disabled; `now` if it was not seen before.
    pub(super) fn seen(&self, id: KekId, now: Monotonic) -> Seen {
        *self.lock().entry(id).or_insert(Seen { at: now, is_witness: false })
    }

    /// Notes that this process disabled the KEK.
    pub(super) fn witness(&self, id: KekId, now: Monotonic) {
        self.lock().insert(id, Seen { at: now, is_witness: true });
    }

    pub(super) fn remove(&self, id: KekId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KekId, Seen>> {
        self.0.lock()
    }
}
