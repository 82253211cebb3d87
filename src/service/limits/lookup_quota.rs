//! What one client may cost others: look-ups in the store and calls of a root for what is not in
//! memory.
//!
//! The face that knows the client wraps its call in [`LookupQuota::scope`]; deep below, the few places
//! that look something up call [`charge`]. A call without a quota is free.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Monotonic;

use crate::service::error::{Error, Kind};

use super::rate_limiter::RateLimiter;

tokio::task_local! {
    static CURRENT: Arc<LookupQuota>;
}

/// Look-ups in each minute, which may also come at once.
#[derive(Debug)]
pub struct LookupQuota(RateLimiter);

const MINUTE: Duration = Duration::from_secs(60);

impl LookupQuota {
    /// A quota of `per_minute` look-ups, and of one where that is 0.
    #[must_use]
    pub fn new(per_minute: u32) -> Self {
        let per_minute = per_minute.max(1);
        Self(RateLimiter::new(per_minute, MINUTE / per_minute))
    }

    /// Runs a call that this quota pays for.
    pub async fn scope<T>(self: &Arc<Self>, call: impl Future<Output = T>) -> T {
        CURRENT.scope(Arc::clone(self), call).await
    }

    fn take(&self, now: Monotonic) -> Result<(), Error> {
        if self.0.take(now) {
            return Ok(());
        }
        let why = "this client looks up more KEKs and chains that are not in memory than it may";
        Err(Error::new(Kind::Overloaded, why).retry_after(self.0.every()))
    }
}

/// Takes one look-up from the allowance of whoever is called for.
///
/// # Errors
/// [`Kind::Overloaded`] when it is used up.
pub(in crate::service) fn charge(now: Monotonic) -> Result<(), Error> {
    CURRENT.try_with(|allowance| allowance.take(now)).unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_look_ups_may_come_at_once_and_then_one_after_another() {
        let allowance = LookupQuota::new(60);
        let mut now = Monotonic::default() + MINUTE;
        for _ in 0..60 {
            allowance.take(now).unwrap();
        }
        let error = allowance.take(now).unwrap_err();
        assert_eq!((error.kind(), error.retry_after_secs()), (Kind::Overloaded, Some(1)));
        now = now + Duration::from_secs(2);
        assert_eq!((0..100).filter(|_| allowance.take(now).is_ok()).count(), 2);
    }

    #[tokio::test]
    async fn only_the_call_in_the_scope_pays() {
        let allowance = Arc::new(LookupQuota::new(1));
        let now = Monotonic::default() + MINUTE;
        allowance.scope(async { charge(now).unwrap() }).await;
        assert!(allowance.scope(async { charge(now) }).await.is_err());
        assert!(charge(now).is_ok());
    }
}
