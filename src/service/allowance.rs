//! What one client may cost others: look-ups in the store and calls of a root for what is not in
//! memory.
//!
//! The face that knows the client wraps its call in [`Allowance::scope`]; deep below, the few places
//! that look something up call [`charge`]. A call without an allowance is free.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Monotonic;

use super::error::{Error, Kind};

tokio::task_local! {
    static CURRENT: Arc<Allowance>;
}

/// Look-ups in each minute, which may also come at once.
#[derive(Debug)]
pub struct Allowance {
    /// Nanoseconds that one look-up stands for.
    each: u64,
    /// When all look-ups so far will be paid for, in nanoseconds of monotonic time.
    paid_at: AtomicU64,
}

const MINUTE: u64 = 60_000_000_000;

impl Allowance {
    /// An allowance of `per_minute` look-ups.
    #[must_use]
    pub fn new(per_minute: u32) -> Self {
        Self { each: MINUTE / u64::from(per_minute.max(1)), paid_at: AtomicU64::new(0) }
    }

    /// Runs a call that this allowance pays for.
    pub async fn scope<T>(self: &Arc<Self>, call: impl Future<Output = T>) -> T {
        CURRENT.scope(Arc::clone(self), call).await
    }

    fn take(&self, now: Monotonic) -> Result<(), Error> {
        let now = now.as_nanos();
        let paid = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            let paid_at = paid_at.max(now).saturating_add(self.each);
            (paid_at - now <= MINUTE).then_some(paid_at)
        });
        paid.map(drop).map_err(|_| {
            Error::new(
                Kind::Overloaded,
                "this client looks up more KEKs and chains that are not in memory than it may",
            )
            .retry_after(Duration::from_nanos(self.each))
        })
    }
}

/// Takes one look-up from the allowance of whoever is called for.
///
/// # Errors
/// [`Kind::Overloaded`] when it is used up.
pub(super) fn charge(now: Monotonic) -> Result<(), Error> {
    CURRENT.try_with(|allowance| allowance.take(now)).unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_look_ups_may_come_at_once_and_then_one_after_another() {
        let allowance = Allowance::new(60);
        let mut now = Monotonic::from_nanos(1_000 * MINUTE);
        for _ in 0..60 {
            allowance.take(now).unwrap();
        }
        let error = allowance.take(now).unwrap_err();
        assert_eq!((error.kind(), error.retry_after_secs()), (Kind::Overloaded, Some(1)));
        now = now + Duration::from_secs(2);
        assert!(allowance.take(now).is_ok() && allowance.take(now).is_ok());
        assert!(allowance.take(now).is_err());
        now = now + Duration::from_secs(3_600);
        assert_eq!((0..100).filter(|_| allowance.take(now).is_ok()).count(), 60);
    }

    #[tokio::test]
    async fn only_the_call_in_the_scope_pays() {
        let allowance = Arc::new(Allowance::new(1));
        let now = Monotonic::from_nanos(MINUTE);
        allowance.scope(async { charge(now).unwrap() }).await;
        assert!(allowance.scope(async { charge(now) }).await.is_err());
        assert!(charge(now).is_ok());
    }
}
