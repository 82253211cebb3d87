//! Identical concurrent calls share one.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

type Waiting<K, V> = Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>;

/// The calls under way.
pub(super) struct Flights<K, V>(Waiting<K, V>);

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Takes a call off the list, also if it panics.
struct Landing<K: Eq + Hash, V> {
    waiting: Waiting<K, V>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.key);
    }
}

impl<K, V> Flights<K, V>
where
    K: Copy + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// What `call` returns, or an identical call that is under way. A call that has begun ends even
    /// if its callers leave. `None` if it panicked.
    pub(super) async fn join(
        &self,
        key: K,
        call: impl Future<Output = V> + Send + 'static,
    ) -> Option<V> {
        let mut receiver = {
            let mut waiting = self.0.lock();
            match waiting.get(&key) {
                Some(receiver) => receiver.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    waiting.insert(key, receiver.clone());
                    let landing = Landing { waiting: Arc::clone(&self.0), key };
                    tokio::spawn(async move {
                        let value = call.await;
                        drop(landing);
                        sender.send_replace(Some(value));
                    });
                    receiver
                }
            }
        };
        let ended = receiver.wait_for(Option::is_some).await;
        ended.ok().and_then(|value| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn identical_calls_share_one_and_others_do_not() {
        let flights = Arc::new(Flights::<u8, usize>::default());
        let (calls, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let start = |key: u8| {
            let (flights, calls, gate) = (flights.clone(), calls.clone(), gate.clone());
            tokio::spawn(async move {
                let call = async move {
                    let number = calls.fetch_add(1, Ordering::Relaxed);
                    _ = gate.acquire().await;
                    number
                };
                flights.join(key, call).await
            })
        };
        let same: Vec<_> = (0..10).map(|_| start(1)).collect();
        let other = start(2);
        while calls.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        same[0].abort();
        gate.close();
        let mut values = Vec::new();
        for task in same.into_iter().skip(1) {
            values.push(task.await.unwrap().unwrap());
        }
        values.dedup();
        assert_eq!(values.len(), 1);
        assert_ne!(other.await.unwrap(), Some(values[0]));
        assert!(flights.0.lock().is_empty());
    }

    #[tokio::test]
    async fn a_call_that_panics_ends_for_everyone_and_can_be_made_again() {
        let flights = Flights::<u8, u8>::default();
        assert_eq!(flights.join(1, async { panic!("planted") }).await, None);
        assert_eq!(flights.join(1, async { 7 }).await, Some(7));
    }
}
