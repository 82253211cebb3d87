//! A token and its lifetime: when to renew it, and when it has expired.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::backoff::jitter;
use crate::secret::SecretBytes;

/// The shortest wait after a failed renewal.
const PAUSE: Duration = Duration::from_secs(1);

/// A token in use.
pub(super) struct Token {
    /// The token itself.
    pub(super) secret: Arc<SecretBytes>,
    /// When it was obtained.
    pub(super) since: Instant,
    /// Its lifetime; `None` if it never expires, or if that is unknown.
    life: Option<Life>,
}

#[derive(Clone, Copy)]
struct Life {
    /// Its lifetime when it was issued.
    granted: Duration,
    due: Option<Instant>,
    end: Instant,
    renewable: bool,
}

/// The response to a login or a renewal.
#[derive(Deserialize)]
pub(super) struct Grant<'a> {
    #[serde(borrow)]
    pub(super) auth: Auth<'a>,
}

/// A token with its lifetime.
#[derive(Deserialize)]
pub(super) struct Auth<'a> {
    #[serde(borrow)]
    pub(super) client_token: Cow<'a, str>,
    /// In seconds; 0 means that it never expires.
    pub(super) lease_duration: u64,
    pub(super) renewable: bool,
}

/// The response to lookup-self.
#[derive(Deserialize)]
pub(super) struct Lookup {
    pub(super) data: TokenTtl,
}

/// The remaining lifetime of a token.
#[derive(Deserialize)]
pub(super) struct TokenTtl {
    /// In seconds; 0 means that it never expires.
    pub(super) ttl: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

impl Token {
    /// A token of unknown lifetime.
    pub(super) fn unknown(secret: Arc<SecretBytes>) -> Self {
        Self { secret, since: Instant::now(), life: None }
    }

    /// A token that expires in `ttl` seconds; 0 means never.
    pub(super) fn new(secret: Arc<SecretBytes>, ttl: u64, renewable: bool) -> Self {
        let granted = Duration::from_secs(ttl);
        Self { life: Life::new(granted, granted, renewable), ..Self::unknown(secret) }
    }

    /// The same token after a renewal to `ttl` seconds.
    pub(super) fn renewed(&self, ttl: u64, renewable: bool) -> Self {
        let ttl = Duration::from_secs(ttl);
        let granted = self.life.map_or(ttl, |life| life.granted);
        Self {
            secret: Arc::clone(&self.secret),
            since: self.since,
            life: Life::new(granted, ttl, renewable),
        }
    }

    /// The same token, with its renewal postponed by a quarter of the remaining time.
    pub(super) fn postponed(&self) -> Self {
        let life = self.life.map(|life| {
            let left = life.end.saturating_duration_since(Instant::now());
            Life { due: Some(Instant::now() + (left / 4).max(PAUSE)), ..life }
        });
        Self { secret: Arc::clone(&self.secret), since: self.since, life }
    }

    /// The same token, which is not renewed any more.
    pub(super) fn left_alone(&self) -> Self {
        let life = self.life.map(|life| Life { due: None, ..life });
        Self { secret: Arc::clone(&self.secret), since: self.since, life }
    }

    /// When it has to be renewed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.life.and_then(|life| life.due)
    }

    pub(super) fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due <= Instant::now())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.life.is_some_and(|life| life.end <= Instant::now())
    }

    pub(super) fn is_renewable(&self) -> bool {
        self.life.is_some_and(|life| life.renewable)
    }

    /// Whether renewals extend it less than at first: its maximum lifetime is near.
    pub(super) fn shrinks(&self) -> bool {
        self.life.is_some_and(|life| {
            life.end.saturating_duration_since(Instant::now()) < life.granted * 2 / 3
        })
    }

    /// The remaining lifetime; `None` if it never expires, or if that is unknown.
    pub(super) fn expires_in(&self) -> Option<Duration> {
        self.life.map(|life| life.end.saturating_duration_since(Instant::now()))
    }

    /// The same in whole seconds.
    pub(super) fn left(&self) -> u64 {
        self.expires_in().map_or(0, |left| left.as_secs())
    }
}

impl Life {
    /// Due at two thirds of `ttl`, and up to a tenth of it earlier, so that replicas that started
    /// together do not renew together.
    fn new(granted: Duration, ttl: Duration, renewable: bool) -> Option<Self> {
        // `Instant` can't represent times that are centuries away.
        let ttl = ttl.min(Duration::from_secs(100 * 365 * 24 * 60 * 60));
        let due = ttl * 2 / 3 - (ttl / 10).mul_f64(jitter());
        let now = Instant::now();
        (!ttl.is_zero()).then(|| Self { granted, due: Some(now + due), end: now + ttl, renewable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Arc<SecretBytes> {
        Arc::new(SecretBytes::new(b"s.x".to_vec()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_due_before_two_thirds_of_its_life() {
        for _ in 0..100 {
            let token = Token::new(secret(), 3_000, true);
            let due = token.due().unwrap().duration_since(Instant::now()).as_secs();
            assert!((1_700..=2_000).contains(&due), "{due}");
        }
        let token = Token::new(secret(), 3_000, true);
        assert!(!token.is_due() && !token.has_ended() && token.is_renewable());
        assert_eq!(token.expires_in(), Some(Duration::from_secs(3_000)));
        tokio::time::advance(Duration::from_secs(2_001)).await;
        assert!(token.is_due() && !token.has_ended());
        let later = token.postponed().due().unwrap().duration_since(Instant::now());
        assert_eq!(later.as_secs(), 249);
        let alone = token.left_alone();
        tokio::time::advance(Duration::from_secs(1_000)).await;
        assert!(token.has_ended() && alone.has_ended() && !alone.is_due());
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_gives_less_is_noticed() {
        let token = Token::new(secret(), 300, true);
        assert!(!token.renewed(300, true).shrinks());
        assert!(!token.renewed(210, true).shrinks());
        let shrunk = token.renewed(190, true);
        assert!(shrunk.shrinks());
        // It is compared with the first grant, even after several renewals.
        assert!(shrunk.renewed(190, true).shrinks());
    }

    #[tokio::test]
    async fn a_token_without_an_end_is_never_due() {
        for token in [Token::new(secret(), 0, true), Token::unknown(secret())] {
            assert!(token.due().is_none() && !token.has_ended() && !token.shrinks());
            assert_eq!(token.expires_in(), None);
        }
        assert!(Token::new(secret(), u64::MAX, false).due().is_some());
    }
}
