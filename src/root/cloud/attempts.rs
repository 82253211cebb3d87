//! The attempts of one call: how many, how long each may take, and the waits between them. A server
//! that asks for a pause gets no call until it is over.
//!
//! It makes no call itself.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use crate::backoff::Backoff;
use crate::human_units;
use crate::root::Error;

/// The largest number of attempts of a call. Each response may be billed.
const ATTEMPTS: u32 = 3;

/// The wait before the second attempt.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The longest pause that a server can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why an attempt failed, and whether another one may help.
#[derive(Debug)]
pub(in crate::root) struct Failure {
    pub(in crate::root) error: Error,
    pub(in crate::root) retry: Retry,
}

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::root) enum Retry {
    /// Another attempt would fail in the same way.
    Never,
    /// After a short wait.
    Soon,
    /// After the time that the server asked for.
    After(Duration),
}

impl Failure {
    /// A failure that another attempt would not change.
    pub(in crate::root) fn never(error: Error) -> Self {
        Self { error, retry: Retry::Never }
    }

    /// A failure that may pass.
    pub(in crate::root) fn soon(detail: String) -> Self {
        Self { error: Error::Away(detail), retry: Retry::Soon }
    }
}

/// The rules for the calls of one root.
pub(in crate::root) struct Rules {
    /// How long a call may take with all its attempts.
    timeout: Duration,
    /// Until when the server gets no call, and why.
    pause: Mutex<Option<(Instant, Error)>>,
}

impl Rules {
    pub(in crate::root) fn new(timeout: Duration) -> Self {
        Self { timeout, pause: Mutex::default() }
    }

    /// Begins a call.
    ///
    /// # Errors
    /// The server has asked for a pause, and it is not over.
    pub(in crate::root) fn begin(&self) -> Result<Attempts<'_>, Error> {
        let mut pause = self.pause.lock();
        match &*pause {
            Some((until, error)) if Instant::now() < *until => return Err(error.clone()),
            _ => *pause = None,
        }
        Ok(Attempts {
            rules: self,
            end: Instant::now() + self.timeout,
            made: 0,
            backoff: Backoff::new(FIRST_WAIT, 2),
            last: None,
        })
    }
}

/// The attempts of one call.
pub(in crate::root) struct Attempts<'a> {
    rules: &'a Rules,
    end: Instant,
    made: u32,
    backoff: Backoff,
    last: Option<Error>,
}

impl Attempts<'_> {
    /// How long one attempt may wait for a response: 3/10 of the whole time.
    pub(in crate::root) fn share(&self) -> Duration {
        let left = self.end.saturating_duration_since(Instant::now());
        left.min(self.rules.timeout * 3 / 10)
    }

    /// Makes an attempt, which ends with the time of the whole call.
    pub(in crate::root) async fn within<T>(
        &self,
        attempt: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let timeout = human_units::duration::format(self.rules.timeout);
        let late = || match &self.last {
            Some(error) => Failure::never(error.clone()),
            None => Failure::never(Error::Away(format!("no answer in {timeout}"))),
        };
        timeout_at(self.end, attempt).await.unwrap_or_else(|_| Err(late()))
    }

    /// Waits for the next attempt.
    ///
    /// # Errors
    /// That of the failure, if it was the last attempt.
    pub(in crate::root) async fn after(&mut self, failure: Failure) -> Result<(), Error> {
        let Failure { error, retry } = failure;
        self.made += 1;
        let wait = match retry {
            Retry::Never => return Err(error),
            Retry::Soon => self.backoff.failed(),
            Retry::After(wait) => wait.min(LONGEST_PAUSE),
        };
        let until = Instant::now() + wait;
        if self.made < ATTEMPTS && until < self.end {
            self.last = Some(error);
            sleep(wait).await;
            return Ok(());
        }
        if let Retry::After(_) = retry {
            *self.rules.pause.lock() = Some((until, error.clone()));
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttled(after: u64) -> Failure {
        let error = Error::Away("throttled".to_owned());
        Failure { error, retry: Retry::After(Duration::from_secs(after)) }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_three_and_end_with_the_time_of_the_call() {
        let rules = Rules::new(Duration::from_secs(5));
        let mut attempts = rules.begin().unwrap();
        let soon = || Failure::soon("down".to_owned());
        assert_eq!(attempts.share(), Duration::from_millis(1_500));
        attempts.after(soon()).await.unwrap();
        attempts.after(soon()).await.unwrap();
        let error = attempts.after(soon()).await.unwrap_err();
        assert_eq!(error, Error::Away("down".to_owned()));
        // A failure that may pass causes no pause.
        let mut attempts = rules.begin().unwrap();
        let denied = Error::Denied("no".to_owned());
        assert_eq!(attempts.after(Failure::never(denied.clone())).await, Err(denied));

        let attempts = rules.begin().unwrap();
        let start = Instant::now();
        let hangs = attempts.within::<()>(std::future::pending()).await.unwrap_err();
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        assert_eq!(hangs.error, Error::Away("no answer in 5s".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_asks_for_a_pause_gets_no_call_until_it_is_over() {
        let rules = Rules::new(Duration::from_secs(5));
        // A short pause is waited for.
        let mut attempts = rules.begin().unwrap();
        let start = Instant::now();
        attempts.after(throttled(2)).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        assert!(rules.begin().is_ok());
        // A long one ends the call, and those that come during it.
        assert!(attempts.after(throttled(10)).await.is_err());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(rules.begin().is_err());
        tokio::time::advance(Duration::from_secs(2)).await;
        let mut attempts = rules.begin().unwrap();
        // No server stops a root for an hour.
        assert!(attempts.after(throttled(3_600)).await.is_err());
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(rules.begin().is_ok());
    }
}
