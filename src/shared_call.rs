//! One call for all callers, which continues as long as any of them waits.
//!
//! For calls that cost money and own what they need: a call of `single_flight` is cancelled when
//! its first caller leaves, and the next caller makes it again. It does not know what is called.

use std::hash::Hash;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::in_progress::InProgress;

/// The calls in progress, by what they are for.
pub(crate) struct SharedCalls<K, V>(InProgress<K, Running<V>>);

/// A call, held by each caller that waits for it. It is cancelled when the last one leaves.
struct Running<V> {
    result: watch::Receiver<Option<V>>,
    task: AbortHandle,
}

impl<V: Send + Sync + 'static> Running<V> {
    fn start(call: impl Future<Output = V> + Send + 'static) -> Self {
        let (sender, result) = watch::channel(None);
        let task = tokio::spawn(async move {
            sender.send_replace(Some(call.await));
        });
        Self { result, task: task.abort_handle() }
    }

    /// Whether it has a result, or never will.
    fn is_over(&self) -> bool {
        self.task.is_finished() || self.result.borrow().is_some()
    }
}

impl<V> Drop for Running<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K, V> Default for SharedCalls<K, V> {
    fn default() -> Self {
        Self(InProgress::default())
    }
}

impl<K, V> SharedCalls<K, V>
where
    K: Clone + Eq + Hash,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the call for `key`, which `call` begins if nobody has begun it. `None` if it panicked.
    pub(crate) async fn join<F>(&self, key: &K, call: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let waiter = self.0.join(key, Running::is_over, || Running::start(call()));
        let mut result = waiter.result.clone();
        // The sender is dropped without a result only if the call panicked.
        result.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// How many callers wait for a call.
    #[cfg(test)]
    pub(crate) fn callers(&self) -> usize {
        self.0.callers()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::sync::Semaphore;
    use tokio::task::JoinHandle;

    use super::*;

    /// Calls that end when the gate is closed, and return how many began before them.
    #[derive(Clone)]
    struct World {
        shared: Arc<SharedCalls<u8, usize>>,
        begun: Arc<AtomicUsize>,
        dropped: Arc<AtomicUsize>,
        gate: Arc<Semaphore>,
    }

    /// Counts when it is dropped: with its call.
    struct Part(Arc<AtomicUsize>);

    impl Drop for Part {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    impl World {
        fn new() -> Self {
            let gate = Arc::new(Semaphore::new(0));
            Self { shared: Arc::default(), begun: Arc::default(), dropped: Arc::default(), gate }
        }

        fn call(&self, key: u8) -> JoinHandle<Option<usize>> {
            let world = self.clone();
            tokio::spawn(async move {
                let shared = Arc::clone(&world.shared);
                let call = || async move {
                    let _part = Part(Arc::clone(&world.dropped));
                    let number = world.begun.fetch_add(1, SeqCst);
                    _ = world.gate.acquire().await;
                    number
                };
                shared.join(&key, call).await
            })
        }

        async fn until(&self, is_so: impl Fn(&Self) -> bool) {
            while !is_so(self) {
                tokio::task::yield_now().await;
            }
        }

        /// Starts a call and waits until `callers` wait.
        async fn joined(&self, key: u8, callers: usize) -> JoinHandle<Option<usize>> {
            let caller = self.call(key);
            self.until(|world| world.shared.callers() == callers).await;
            caller
        }
    }

    #[tokio::test]
    async fn identical_calls_share_one_and_others_do_not() {
        let world = World::new();
        let (one, same) = (world.joined(1, 1).await, world.joined(1, 2).await);
        let other = world.joined(2, 3).await;
        world.gate.close();
        let results = [one.await, same.await, other.await].map(|result| result.unwrap().unwrap());
        assert_eq!((results[0], world.begun.load(SeqCst)), (results[1], 2));
        assert_ne!(results[0], results[2]);
        assert!(world.shared.0.len() == 0);
    }

    #[tokio::test]
    async fn a_call_continues_when_the_caller_that_began_it_leaves() {
        let world = World::new();
        let (first, second) = (world.joined(1, 1).await, world.joined(1, 2).await);
        world.until(|world| world.begun.load(SeqCst) == 1).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        world.gate.close();
        assert_eq!(second.await.unwrap(), Some(0));
        assert_eq!((world.begun.load(SeqCst), world.shared.callers()), (1, 0));
    }

    #[tokio::test]
    async fn a_call_that_nobody_waits_for_is_cancelled_and_made_again() {
        let world = World::new();
        let callers = [world.joined(1, 1).await, world.joined(1, 2).await];
        world.until(|world| world.begun.load(SeqCst) == 1).await;
        for caller in callers {
            assert_eq!(world.dropped.load(SeqCst), 0);
            caller.abort();
            assert!(caller.await.unwrap_err().is_cancelled());
        }
        world.until(|world| world.dropped.load(SeqCst) == 1).await;
        assert!(world.shared.0.len() == 0);
        let next = world.joined(1, 1).await;
        world.gate.close();
        assert_eq!(next.await.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn a_result_is_only_for_those_who_waited_for_it() {
        let world = World::new();
        let first = world.joined(1, 1).await;
        world.gate.close();
        assert_eq!(first.await.unwrap(), Some(0));
        assert_eq!(world.call(1).await.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn a_call_that_panics_has_no_result_and_can_be_made_again() {
        let shared = SharedCalls::<u8, u8>::default();
        assert_eq!(shared.join(&1, || async { panic!("planted") }).await, None);
        assert_eq!(shared.join(&1, || async { 7 }).await, Some(7));
        assert!(shared.0.len() == 0);
    }
}
