//! One call for all requests that need the same KEK at the same time. It knows no root.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::keychain::kek::Kek;
use crate::service::error::{Error, Kind};

type Cell = Arc<OnceCell<Result<Arc<Kek>, Error>>>;

/// The calls in progress, by what they are for.
pub(super) struct SingleFlight<K>(Mutex<HashMap<K, Cell>>);

impl<K> Default for SingleFlight<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> SingleFlight<K> {
    /// Joins the call for `key`. The first request makes it, by its `call`, and all get the result.
    /// One exception: that a caller has used up its quota is no result for the others, so the next
    /// of them makes the call.
    pub(super) async fn join(
        &self,
        key: &K,
        call: impl Future<Output = Result<Arc<Kek>, Error>>,
    ) -> Result<Arc<Kek>, Error> {
        let mut call = Some(call);
        loop {
            let cell = Arc::clone(self.0.lock().entry(key.clone()).or_default());
            let waiter = Waiter { calls: self, key, cell };
            let mut own = false;
            let result = waiter.cell.get_or_init(async || {
                own = true;
                match call.take() {
                    Some(call) => call.await,
                    None => Err(Error::new(Kind::Internal, "a call was made twice")),
                }
            });
            let result = result.await.clone();
            if own || !result.as_ref().is_err_and(|error| error.kind() == Kind::Overloaded) {
                return result;
            }
        }
    }

    /// How many calls are in progress.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// A request that waits for a call. The last one to leave, with a result or without, removes the
/// call, so requests that are dropped leave nothing behind.
struct Waiter<'a, K: Clone + Eq + Hash> {
    calls: &'a SingleFlight<K>,
    key: &'a K,
    cell: Cell,
}

impl<K: Clone + Eq + Hash> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        let mut calls = self.calls.0.lock();
        let ours = calls.get(self.key).is_some_and(|current| Arc::ptr_eq(current, &self.cell));
        // A call with a result takes no further requests; one without continues for the others.
        if ours && (self.cell.initialized() || Arc::strong_count(&self.cell) == 2) {
            calls.remove(self.key);
        }
    }
}
