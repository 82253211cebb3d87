//! The plugin over a service in memory, with a root that takes its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use prometheus::Registry;

use super::plugin::Plugin;
use super::proto::{DecryptRequest, EncryptRequest, StatusRequest};
use super::*;
use crate::clock::ManualClock;
use crate::id::ChainName;
use crate::metrics::Metrics;
use crate::root::{self, Context, RootKey};
use crate::secret::KeyBytes;
use crate::service;
use crate::store::memory;

/// Opens a KEK after this long, if at all.
struct Slow(Duration, AtomicBool);

#[async_trait]
impl RootKey for Slow {
    async fn wrap(&self, _: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, root::Error> {
        Ok(kek.expose().to_vec())
    }

    async fn unwrap(&self, _: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, root::Error> {
        tokio::time::sleep(self.0).await;
        if self.1.load(Ordering::SeqCst) {
            return Err(root::Error::Denied("somebody took the permission away".to_owned()));
        }
        KeyBytes::from_slice(wrapped).ok_or_else(|| root::Error::Wrong(String::new()))
    }

    fn kind(&self) -> &'static str {
        "slow"
    }
}

fn chain() -> ChainName {
    ChainName::new("kubernetes").unwrap()
}

async fn start(store: &Arc<memory::Store>, root: Duration) -> (Arc<KeyService>, Arc<Plugin>) {
    let root = Arc::new(Slow(root, AtomicBool::new(false)));
    let service = start_on(store, &root).await;
    let plugin = Plugin::new(Arc::clone(&service), chain(), OnRootOutage::Coast);
    (service, Arc::new(plugin))
}

async fn start_on(store: &Arc<memory::Store>, root: &Arc<Slow>) -> Arc<KeyService> {
    let chain = chain();
    let config = service::Config { names: vec![chain.clone()], ..service::Config::default() };
    let root = root::Named { name: "main".into(), root: Arc::clone(root) as _ };
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let (store, clock) = (Arc::clone(store) as _, Arc::new(ManualClock::default()) as _);
    let service = KeyService::start(config, store, vec![root], clock, metrics).await.unwrap();
    service.name_keys(chain.as_str()).await.unwrap();
    service
}

#[tokio::test(start_paused = true)]
async fn an_answer_comes_in_time_and_a_slow_root_is_waited_for_all_the_same() {
    let store = Arc::default();
    let (service, plugin) = start(&store, Duration::ZERO).await;
    let request = EncryptRequest { plaintext: vec![7; 32], uid: String::new() };
    let made = Arc::clone(&plugin).encrypt(request).await.unwrap();
    service.rotate(Some("kubernetes")).await.unwrap();
    service.stop().await;

    let (_service, plugin) = start(&store, Duration::from_secs(4)).await;
    let decrypt = async || {
        let request = DecryptRequest {
            ciphertext: made.ciphertext.clone(),
            key_id: made.key_id.clone(),
            ..DecryptRequest::default()
        };
        let began = tokio::time::Instant::now();
        let answer = Arc::clone(&plugin).decrypt(request).await;
        assert!(began.elapsed() < Duration::from_secs(3), "kube-apiserver has given up");
        answer
    };
    let error = decrypt().await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert_eq!(decrypt().await.unwrap().plaintext, vec![7; 32], "it was under way");
    assert_eq!(plugin.status(StatusRequest {}).unwrap().healthz, "ok");
}

/// kube-apiserver writes on for three minutes after the last Status that was no error.
#[tokio::test(start_paused = true)]
async fn enforce_notices_an_outage_that_no_other_call_shows() {
    let root = Arc::new(Slow(Duration::ZERO, AtomicBool::new(false)));
    let service = start_on(&Arc::default(), &root).await;
    let plugin = |policy| Plugin::new(Arc::clone(&service), chain(), policy);
    let (coast, enforce) = (plugin(OnRootOutage::Coast), plugin(OnRootOutage::Enforce));
    let (stop, stopped) = watch::channel(());
    let policy = OnRootOutage::Enforce;
    let watching = plugin::watch_roots(Arc::clone(&service), chain(), policy, stopped);
    let watching = tokio::spawn(watching);
    let key_id = enforce.status(StatusRequest {}).unwrap().key_id;
    root.1.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(62)).await;
    let error = enforce.status(StatusRequest {}).unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.message().contains("somebody took the permission away"), "{error}");
    let status = coast.status(StatusRequest {}).unwrap();
    assert_eq!(status.key_id, key_id);
    assert!(status.healthz.contains("somebody took the permission away"), "{status:?}");
    root.1.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert_eq!(enforce.status(StatusRequest {}).unwrap().healthz, "ok");
    drop(stop);
    watching.await.unwrap();
}

/// No call of kube-apiserver needs a root for days.
#[tokio::test(start_paused = true)]
async fn coast_reports_a_revoked_key_within_five_minutes_and_its_return() {
    let root = Arc::new(Slow(Duration::ZERO, AtomicBool::new(false)));
    let service = start_on(&Arc::default(), &root).await;
    let plugin = Plugin::new(Arc::clone(&service), chain(), OnRootOutage::Coast);
    let (stop, stopped) = watch::channel(());
    let policy = OnRootOutage::Coast;
    let watching = plugin::watch_roots(Arc::clone(&service), chain(), policy, stopped);
    let watching = tokio::spawn(watching);
    let root_up = || service.metrics().root_up.with_label_values(&["main"]).get();
    root.1.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(root_up(), 0);
    let status = plugin.status(StatusRequest {}).unwrap();
    assert!(status.healthz.contains("somebody took the permission away"), "{status:?}");
    root.1.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(root_up(), 1);
    assert_eq!(plugin.status(StatusRequest {}).unwrap().healthz, "ok");
    drop(stop);
    watching.await.unwrap();
}

/// kube-apiserver is not ready while a plugin reports a failure, and an idle plugin writes nothing.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_back_is_noticed_without_a_write_by_any_caller() {
    for outage in [&[][..], &[memory::Fault::NotSent], &[memory::Fault::AnswerLost]] {
        let store = Arc::<memory::Store>::default();
        let (service, plugin) = start(&store, Duration::ZERO).await;
        if outage.is_empty() {
            store.set_down(true);
        } else {
            store.fail_next(outage.iter().copied());
        }
        service.rotate(Some("kubernetes")).await.unwrap_err();
        let status = plugin.status(StatusRequest {}).unwrap();
        assert!(status.healthz.starts_with("store: "), "{status:?}");
        if outage.is_empty() {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_ne!(plugin.status(StatusRequest {}).unwrap().healthz, "ok", "it is down still");
        }
        store.set_down(false);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(plugin.status(StatusRequest {}).unwrap().healthz, "ok", "{outage:?}");
        assert_eq!(service.metrics().store_up.get(), 1);
        // The probe leaves nothing in the store.
        let claim = crate::store::record::claim_key(&ChainName::new("default").unwrap());
        assert_eq!(crate::store::Store::get(&*store, &claim).await.unwrap(), None);
    }
}

#[test]
fn messages_show_no_plaintext() {
    let request = EncryptRequest { plaintext: b"secret".to_vec(), uid: "7".to_owned() };
    let response = proto::DecryptResponse { plaintext: b"secret".to_vec() };
    let shown = format!("{request:?} {response:?}");
    assert!(
        shown.contains("uid") && !shown.contains("secret") && !shown.contains("115"),
        "{shown}"
    );
}
