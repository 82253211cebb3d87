//! The calls in progress, by what they are for, each held by the callers that wait for it.
//!
//! A leaf: it does not know what a call is. Callers that are dropped leave nothing behind.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// The calls in progress.
pub(crate) struct InProgress<K, C>(Mutex<HashMap<K, Weak<C>>>);

impl<K, C> Default for InProgress<K, C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, C> InProgress<K, C> {
    /// Joins the call for `key`. If all such calls are over, `start` makes another one.
    pub(crate) fn join<'a>(
        &'a self,
        key: &'a K,
        is_over: impl Fn(&C) -> bool,
        start: impl FnOnce() -> C,
    ) -> Waiter<'a, K, C> {
        let mut calls = self.0.lock();
        let current = calls.get(key).and_then(Weak::upgrade).filter(|call| !is_over(call));
        let call = current.unwrap_or_else(|| {
            let call = Arc::new(start());
            calls.insert(key.clone(), Arc::downgrade(&call));
            call
        });
        Waiter { call, _entry: Entry { calls: self, key } }
    }

    /// How many calls are in progress.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// How many callers wait for a call.
    #[cfg(test)]
    pub(crate) fn callers(&self) -> usize {
        self.0.lock().values().map(Weak::strong_count).sum()
    }
}

/// A caller that waits for a call. The last one to leave drops the call and removes its entry.
pub(crate) struct Waiter<'a, K: Clone + Eq + Hash, C> {
    call: Arc<C>,
    /// Dropped after the call.
    _entry: Entry<'a, K, C>,
}

impl<K: Clone + Eq + Hash, C> Deref for Waiter<'_, K, C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.call
    }
}

struct Entry<'a, K: Clone + Eq + Hash, C> {
    calls: &'a InProgress<K, C>,
    key: &'a K,
}

impl<K: Clone + Eq + Hash, C> Drop for Entry<'_, K, C> {
    fn drop(&mut self) {
        let mut calls = self.calls.0.lock();
        // It may be the entry of a later call, which has callers.
        if calls.get(self.key).is_some_and(|call| call.strong_count() == 0) {
            calls.remove(self.key);
        }
    }
}
