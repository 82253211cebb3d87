//! A root for tests.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;

use super::{Context, Error, RootKey};
use crate::secret::KeyBytes;

/// Wraps by doing nothing, counts its calls, and can be away.
#[derive(Default)]
pub(crate) struct TestRoot {
    pub(crate) wraps: AtomicUsize,
    pub(crate) unwraps: AtomicUsize,
    pub(crate) away: AtomicBool,
    pub(crate) denied: AtomicBool,
    pub(crate) slow: AtomicBool,
}

#[async_trait]
impl RootKey for TestRoot {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        self.wraps.fetch_add(1, SeqCst);
        self.answer().await?;
        Ok([&context.aad(), kek.expose()].concat())
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        self.unwraps.fetch_add(1, SeqCst);
        self.answer().await?;
        let kek = wrapped.strip_prefix(&*context.aad()).and_then(KeyBytes::from_slice);
        kek.ok_or_else(|| Error::Wrong("another context".to_owned()))
    }

    fn kind(&self) -> &'static str {
        "test"
    }
}

impl TestRoot {
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
