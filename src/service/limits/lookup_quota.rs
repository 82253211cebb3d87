//! Limits how many look-ups in the store and calls of a root one client can cause.
//!
//! The listener that knows the client runs its call in [`LookupQuota::scope`]. The code that looks
//! something up calls [`charge`]. A call outside a scope is not limited.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Monotonic;

use crate::service::error::{Error, Kind};

use super::rate_limiter::RateLimiter;

tokio::task_local! {
    static CURRENT: Arc<LookupQuota>;
}

/// The quota of one client: look-ups per minute, in a burst or spread.
#[derive(Debug)]
pub struct LookupQuota(RateLimiter);

const MINUTE: Duration = Duration::from_secs(60);

impl LookupQuota {
    /// A quota of `per_minute` look-ups; at least one.
    #[must_use]
    pub fn new(per_minute: u32) -> Self {
        let per_minute = per_minute.max(1);
        Self(RateLimiter::new(per_minute, MINUTE / per_minute))
    }

    /// Runs `call`, whose look-ups are charged to this quota.
    pub async fn scope<T>(self: &Arc<Self>, call: impl Future<Output = T>) -> T {
        CURRENT.scope(Arc::clone(self), call).await
    }

    fn take(&self, now: Monotonic) -> Result<(), Error> {
        if self.0.take(now) {
            return Ok(());
        }
        let why = "this client has used up its look-ups of this minute";
        Err(Error::new(Kind::Overloaded, why).retry_after(self.0.every()))
    }
}

/// Charges one look-up to the quota of the current call.
///
/// # Errors
/// [`Kind::Overloaded`] if the quota is used up.
pub(in crate::service) fn charge(now: Monotonic) -> Result<(), Error> {
    CURRENT.try_with(|quota| quota.take(now)).unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_one_minute_is_allowed_and_then_the_rate_applies() {
        let quota = LookupQuota::new(60);
        let mut now = Monotonic::default() + MINUTE;
        for _ in 0..60 {
            quota.take(now).unwrap();
        }
        let error = quota.take(now).unwrap_err();
        assert_eq!((error.kind(), error.retry_after_secs()), (Kind::Overloaded, Some(1)));
        now = now + Duration::from_secs(2);
        assert_eq!((0..100).filter(|_| quota.take(now).is_ok()).count(), 2);
    }

    #[tokio::test]
    async fn only_the_call_in_the_scope_is_charged() {
        let quota = Arc::new(LookupQuota::new(1));
        let now = Monotonic::default() + MINUTE;
        quota.scope(async { charge(now).unwrap() }).await;
        assert!(quota.scope(async { charge(now) }).await.is_err());
        assert!(charge(now).is_ok());
    }
}
