//! A store that loses everything under running services: until the repair this is an outage, and
//! causes no damage.

use std::sync::atomic::AtomicUsize;

use super::replicas::default;
use super::*;
use crate::service::types::{ChainInfo, ChainSettings, Change};
use crate::store::{Committed, Entry, Txn};

/// A store that is lost again each time that a head is restored.
#[derive(Default)]
struct Losing {
    inner: Arc<memory::Store>,
    /// How often that will happen.
    losses: AtomicUsize,
}

#[async_trait::async_trait]
impl Store for Losing {
    async fn get(&self, key: &str) -> Result<Option<Entry>, store::Error> {
        self.inner.get(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, store::Error> {
        self.inner.list(prefix, after, limit).await
    }

    async fn count(&self, prefix: &str) -> Result<u64, store::Error> {
        self.inner.count(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, store::Error> {
        let key = record::head_key(&default());
        let stores_head = txn.puts.iter().any(|(put, _)| *put == key);
        let committed = self.inner.commit(txn).await;
        let left = |left: usize| left.checked_sub(1);
        if stores_head && self.losses.fetch_update(SeqCst, SeqCst, left).is_ok() {
            self.lose();
        }
        committed
    }

    fn kind(&self) -> &'static str {
        "losing"
    }
}

impl Losing {
    fn lose(&self) {
        self.inner.restore(memory::Store::new().snapshot());
    }
}

/// A service that created a KEK, and whose tasks are stopped.
async fn used() -> (Arc<Losing>, Arc<KeyService>, KekId) {
    let (store, clock): (Arc<Losing>, Arc<ManualClock>) = Default::default();
    let service = start(Arc::clone(&store) as _, &[("main", &Arc::default())], &clock).await;
    let made = service.encrypt(None, b"hello"[..].into(), b"").await.unwrap();
    service.rotate(None).await.unwrap();
    service.stop().await;
    // No use is left in memory.
    clock.advance(Duration::from_secs(61));
    (store, service, made.kek_id)
}

async fn read(service: &KeyService) -> Result<ChainInfo, Error> {
    Ok(service.chain_with_keks(DEFAULT_CHAIN, None, 10).await?.0)
}

#[tokio::test]
async fn what_operators_do_before_the_repair_meets_no_damage() {
    let (store, service, id) = used().await;
    store.lose();
    let info = read(&service).await.unwrap();
    assert_eq!((info.primary, info.keks), (None, 0));

    store.lose();
    let settings = ChainSettings { max_uses: Some(150), ..ChainSettings::default() };
    let (created, info) = service.put_chain(DEFAULT_CHAIN, settings).await.unwrap();
    assert_eq!((created, info.limits.max_uses), (false, 150));

    store.lose();
    let changed = service.change_kek(DEFAULT_CHAIN, id, Change::Disable).await;
    assert_ne!(kind(changed), Kind::Internal);
}

#[tokio::test]
async fn a_store_that_is_lost_again_during_the_repair_is_an_outage_and_no_damage() {
    let (store, service, _) = used().await;
    store.lose();
    for operation in ["encrypt", "read", "set"] {
        store.losses.store(usize::MAX, SeqCst);
        let failed = match operation {
            "encrypt" => {
                let encrypt = service.encrypt(None, b"hello"[..].into(), b"");
                kind(tokio::join!(biased; encrypt, service.run_reserver()).0)
            }
            "read" => kind(read(&service).await),
            _ => kind(service.put_chain(DEFAULT_CHAIN, ChainSettings::default()).await),
        };
        assert_eq!(failed, Kind::StoreUnavailable, "{operation}");
    }
    store.losses.store(0, SeqCst);
    assert!(read(&service).await.is_ok());
}
