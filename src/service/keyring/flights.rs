//! One call for all who want one thing at the same time. It knows no KEK and no root.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use crate::keychain::kek::Kek;
use crate::service::error::{Error, Kind};

type Cell = Arc<OnceCell<Result<Arc<Kek>, Error>>>;

/// The KEKs that are on their way, by what they are asked for.
pub(super) struct Flights<K>(Mutex<HashMap<K, Cell>>);

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Flights<K> {
    /// Joins those who wait for one KEK; the first of them is the one whose `fly` is used. All get the
    /// one answer, be it good or bad. But that a caller has nothing left to spend is no answer to
    /// another one: the next of them flies.
    pub(super) async fn join(
        &self,
        key: &K,
        fly: impl Future<Output = Result<Arc<Kek>, Error>>,
    ) -> Result<Arc<Kek>, Error> {
        let mut fly = Some(fly);
        loop {
            let cell = Arc::clone(self.lock().entry(key.clone()).or_default());
            let passenger = Passenger { flights: self, key, cell };
            let mut own = false;
            let landed = passenger.cell.get_or_init(async || {
                own = true;
                match fly.take() {
                    Some(fly) => fly.await,
                    None => Err(Error::new(Kind::Internal, "a flight took off twice")),
                }
            });
            let landed = landed.await.clone();
            if own || !landed.as_ref().is_err_and(|error| error.kind() == Kind::Overloaded) {
                return landed;
            }
        }
    }

    /// How many are on their way.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Cell>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of those who wait for a KEK. The last one to leave, with an answer or without, ends the
/// flight: callers that hang up leave nothing behind.
struct Passenger<'a, K: Clone + Eq + Hash> {
    flights: &'a Flights<K>,
    key: &'a K,
    cell: Cell,
}

impl<K: Clone + Eq + Hash> Drop for Passenger<'_, K> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        let ours = flights.get(self.key).is_some_and(|current| Arc::ptr_eq(current, &self.cell));
        // An answered flight takes nobody more; one without an answer goes on while others wait.
        if ours && (self.cell.initialized() || Arc::strong_count(&self.cell) == 2) {
            flights.remove(self.key);
        }
    }
}
