//! A root for tests.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;

use super::{Context, Error, RootKey};
use crate::secret::KeyBytes;

/// A root whose wrap contains the KEK as it is. It counts its calls, and can be away.
#[derive(Default)]
pub(crate) struct TestRoot {
    pub(crate) wraps: AtomicUsize,
    pub(crate) unwraps: AtomicUsize,
    pub(crate) away: AtomicBool,
    pub(crate) denied: AtomicBool,
    pub(crate) slow: AtomicBool,
    /// The number of its key: a root with another key opens none of its wraps.
    pub(crate) key: AtomicU8,
}

#[async_trait]
impl RootKey for TestRoot {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        self.wraps.fetch_add(1, SeqCst);
        self.answer().await?;
        Ok([&self.prefix(context)[..], kek.expose()].concat())
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        self.unwraps.fetch_add(1, SeqCst);
        self.answer().await?;
        let kek = wrapped.strip_prefix(&*self.prefix(context)).and_then(KeyBytes::from_slice);
        kek.ok_or_else(|| Error::Wrong("another key or context".to_owned()))
    }

    fn kind(&self) -> &'static str {
        "test"
    }
}

impl TestRoot {
    /// A root with another key.
    pub(crate) fn with_key(key: u8) -> Self {
        Self { key: key.into(), ..Self::default() }
    }

    fn prefix(&self, context: Context<'_>) -> Vec<u8> {
        // Key 0 adds no byte, so that wraps are no longer than those of real roots.
        let key = Some(self.key.load(SeqCst)).filter(|key| *key != 0);
        key.into_iter().chain(context.aad()).collect()
    }

    async fn answer(&self) -> Result<(), Error> {
        if self.slow.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if self.denied.load(SeqCst) {
            return Err(Error::Denied("test".to_owned()));
        }
        if self.away.load(SeqCst) { Err(Error::Away("test".to_owned())) } else { Ok(()) }
    }
}
