//! One call for all callers that need the same result at the same time.
//!
//! It does not know what is called.

use std::hash::Hash;
use std::pin::pin;

use tokio::sync::OnceCell;

use crate::in_progress::InProgress;

/// The calls in progress, by what they are for.
pub(crate) struct SingleFlight<K, V>(InProgress<K, OnceCell<V>>);

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self(InProgress::default())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> SingleFlight<K, V> {
    /// Joins the call for `key`. The first caller makes it, by its `call`, and all get the result.
    ///
    /// If that caller leaves or panics before the call has ended, the next of the others makes it:
    /// a call borrows from its caller, and counts against that caller's quota. So it does if the
    /// result is not `for_all`, but concerns only the caller that made the call.
    pub(crate) async fn join(
        &self,
        key: &K,
        call: impl Future<Output = V>,
        for_all: impl Fn(&V) -> bool,
    ) -> V {
        let mut call = pin!(call);
        loop {
            // A call with a result takes no further callers.
            let waiter = self.0.join(key, OnceCell::initialized, OnceCell::new);
            let mut own = false;
            let result = waiter.get_or_init(async || {
                own = true;
                call.as_mut().await
            });
            let result = result.await.clone();
            if own || for_all(&result) {
                return result;
            }
        }
    }

    /// How many calls are in progress.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many callers make a call or wait for one.
    #[cfg(test)]
    pub(crate) fn callers(&self) -> usize {
        self.0.callers()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Calls that end when the gate is closed, and return how many began before them.
    #[derive(Clone)]
    struct World {
        flights: Arc<SingleFlight<u8, usize>>,
        calls: Arc<AtomicUsize>,
        gate: Arc<Semaphore>,
    }

    impl World {
        fn new() -> Self {
            let gate = Arc::new(Semaphore::new(0));
            Self { flights: Arc::default(), calls: Arc::default(), gate }
        }

        async fn call(self, key: u8, for_all: impl Fn(&usize) -> bool) -> usize {
            let call = async {
                let number = self.calls.fetch_add(1, Ordering::Relaxed);
                _ = self.gate.acquire().await;
                number
            };
            self.flights.join(&key, call, for_all).await
        }

        async fn until_callers(&self, count: usize) {
            while self.flights.callers() != count {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn identical_calls_share_one_and_others_do_not() {
        let world = World::new();
        let start = |key| tokio::spawn(world.clone().call(key, |_| true));
        let same: Vec<_> = (0..10).map(|_| start(1)).collect();
        let other = start(2);
        world.until_callers(11).await;
        assert_eq!((world.flights.len(), world.calls.load(Ordering::Relaxed)), (2, 2));
        world.gate.close();
        let mut values = Vec::new();
        for task in same {
            values.push(task.await.unwrap());
        }
        values.dedup();
        assert_eq!(values.len(), 1);
        assert_ne!(other.await.unwrap(), values[0]);
        assert_eq!(world.flights.len(), 0);
    }

    #[tokio::test]
    async fn when_the_caller_that_calls_leaves_another_one_calls() {
        let world = World::new();
        let start = || tokio::spawn(world.clone().call(1, |_| true));
        let first = start();
        world.until_callers(1).await;
        let second = start();
        world.until_callers(2).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        world.gate.close();
        assert_eq!(second.await.unwrap(), 1);
        assert_eq!(world.flights.len(), 0);
    }

    #[tokio::test]
    async fn a_result_for_its_own_caller_alone_is_no_result_for_the_others() {
        let world = World::new();
        let start = || tokio::spawn(world.clone().call(1, |number| *number > 0));
        let first = start();
        world.until_callers(1).await;
        let others = [start(), start()];
        world.until_callers(3).await;
        world.gate.close();
        assert_eq!(first.await.unwrap(), 0);
        for other in others {
            assert_ne!(other.await.unwrap(), 0);
        }
        assert_eq!(world.flights.len(), 0);
    }

    #[tokio::test]
    async fn a_call_that_panics_can_be_made_again() {
        let flights = Arc::new(SingleFlight::<u8, u8>::default());
        let panicking = Arc::clone(&flights);
        let panicked =
            tokio::spawn(
                async move { panicking.join(&1, async { panic!("planted") }, |_| true).await },
            );
        assert!(panicked.await.unwrap_err().is_panic());
        assert_eq!(flights.join(&1, async { 7 }, |_| true).await, 7);
        assert_eq!(flights.len(), 0);
    }
}
