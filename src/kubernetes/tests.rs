//! The plugin on a service in memory, with a slow root.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use prometheus::Registry;

use super::plugin::Plugin;
use super::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use super::*;
use crate::audit::Peer;
use crate::clock::ManualClock;
use crate::id::ChainName;
use crate::metrics::Metrics;
use crate::root::{self, Context, RootKey};
use crate::secret::KeyBytes;
use crate::service;
use crate::store::{self, Committed, Entry, Store, Txn, memory};

/// A root that responds after a delay, and denies access if the flag is set.
struct Slow(Duration, AtomicBool);

#[async_trait]
impl RootKey for Slow {
    async fn wrap(&self, _: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, root::Error> {
        Ok(kek.expose().to_vec())
    }

    async fn unwrap(&self, _: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, root::Error> {
        tokio::time::sleep(self.0).await;
        if self.1.load(Ordering::SeqCst) {
            return Err(root::Error::Denied("the permission was revoked".to_owned()));
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
    let plugin = Plugin::new(Arc::clone(&service), chain(), OnRootOutage::Coast, None);
    (service, Arc::new(plugin))
}

async fn start_on(store: &Arc<memory::Store>, root: &Arc<Slow>) -> Arc<KeyService> {
    start_at(Arc::clone(store) as _, root, Arc::default()).await
}

async fn start_at(
    store: Arc<dyn Store>,
    root: &Arc<Slow>,
    clock: Arc<ManualClock>,
) -> Arc<KeyService> {
    let chain = chain();
    let chains = service::ChainConfig { names: vec![chain.clone()], ..Default::default() };
    let config = service::Config { chain: chains, ..service::Config::default() };
    let root = root::Named { name: "main".into(), root: Arc::clone(root) as _ };
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let service = KeyService::start(config, store, vec![root], clock, metrics).await.unwrap();
    service.name_keys(chain.as_str()).await.unwrap();
    service
}

#[tokio::test(start_paused = true)]
async fn a_response_comes_in_time_and_the_call_of_a_slow_root_continues() {
    let store = Arc::default();
    let (service, plugin) = start(&store, Duration::ZERO).await;
    let request = EncryptRequest { plaintext: vec![7; 32], uid: String::new() };
    let made = Arc::clone(&plugin).encrypt(Peer::UNKNOWN, request).await.unwrap();
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
        let answer = Arc::clone(&plugin).decrypt(Peer::UNKNOWN, request).await;
        assert!(began.elapsed() < Duration::from_secs(3), "kube-apiserver has given up");
        answer
    };
    let error = decrypt().await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.message().starts_with("root_unavailable: "), "{error}");
    assert_eq!(decrypt().await.unwrap().plaintext, vec![7; 32], "the first call opened the KEK");
    assert_eq!(plugin.status(StatusRequest {}).unwrap().healthz, "ok");
}

#[tokio::test(start_paused = true)]
async fn the_kek_of_an_inline_chain_is_in_an_annotation_and_opens_without_the_store() {
    let (service, plugin) = start(&Arc::default(), Duration::ZERO).await;
    let inline = |inline| service::ChainSettings { inline: Some(inline), ..Default::default() };
    let encrypt = async || {
        let request = EncryptRequest { plaintext: vec![7; 946], uid: String::new() };
        let made = Arc::clone(&plugin).encrypt(Peer::UNKNOWN, request).await.unwrap();
        assert_eq!(made.ciphertext.len(), 1024, "the most that kube-apiserver accepts");
        made
    };
    let decrypt = async |plugin: &Arc<Plugin>, made: &EncryptResponse| {
        let request = DecryptRequest {
            ciphertext: made.ciphertext.clone(),
            key_id: made.key_id.clone(),
            annotations: made.annotations.clone(),
            ..DecryptRequest::default()
        };
        Arc::clone(plugin)
            .decrypt(Peer::UNKNOWN, request)
            .await
            .map(|opened| opened.plaintext.clone())
    };
    let before = encrypt().await;
    service.put_chain("kubernetes", inline(true)).await.unwrap();
    let during = encrypt().await;
    service.put_chain("kubernetes", inline(false)).await.unwrap();
    let after = encrypt().await;
    let count = |made: &EncryptResponse| made.annotations.len();
    assert_eq!([&before, &during, &after].map(count), [0, 1, 0]);
    assert!([&during, &after].iter().all(|made| made.key_id == before.key_id), "nothing is stale");
    let (_fresh, without_store) = start(&Arc::default(), Duration::ZERO).await;
    // The inline one last: once its KEK is in memory, it opens the others as well.
    for made in [&before, &after, &during] {
        assert_eq!(decrypt(&plugin, made).await.unwrap(), [7; 946]);
        assert_eq!(decrypt(&without_store, made).await.is_ok(), count(made) == 1);
    }
}

/// kube-apiserver continues to write for three minutes after the last successful Status.
#[tokio::test(start_paused = true)]
async fn enforce_notices_an_outage_that_no_other_call_shows() {
    let root = Arc::new(Slow(Duration::ZERO, AtomicBool::new(false)));
    let service = start_on(&Arc::default(), &root).await;
    let plugin = |policy| Plugin::new(Arc::clone(&service), chain(), policy, None);
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
    assert!(error.message().contains("the permission was revoked"), "{error}");
    let status = coast.status(StatusRequest {}).unwrap();
    assert_eq!(status.key_id, key_id);
    assert!(status.healthz.contains("the permission was revoked"), "{status:?}");
    root.1.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert_eq!(enforce.status(StatusRequest {}).unwrap().healthz, "ok");
    drop(stop);
    watching.await.unwrap();
}

/// For days, no call of kube-apiserver needs a root.
#[tokio::test(start_paused = true)]
async fn coast_reports_a_revoked_key_within_five_minutes_and_its_return() {
    let root = Arc::new(Slow(Duration::ZERO, AtomicBool::new(false)));
    let service = start_on(&Arc::default(), &root).await;
    let plugin = Plugin::new(Arc::clone(&service), chain(), OnRootOutage::Coast, None);
    let (stop, stopped) = watch::channel(());
    let policy = OnRootOutage::Coast;
    let watching = plugin::watch_roots(Arc::clone(&service), chain(), policy, stopped);
    let watching = tokio::spawn(watching);
    let root_up = || service.metrics().roots.up.with_label_values(&["main"]).get();
    root.1.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(root_up(), 0);
    let status = plugin.status(StatusRequest {}).unwrap();
    assert!(status.healthz.contains("the permission was revoked"), "{status:?}");
    root.1.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(root_up(), 1);
    assert_eq!(plugin.status(StatusRequest {}).unwrap().healthz, "ok");
    drop(stop);
    watching.await.unwrap();
}

/// kube-apiserver is not ready while its plugin reports a failure, and an idle plugin does not
/// write.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_available_again_is_noticed_without_a_write_by_any_caller() {
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
            assert_ne!(
                plugin.status(StatusRequest {}).unwrap().healthz,
                "ok",
                "the store is still unavailable"
            );
        }
        store.set_down(false);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(plugin.status(StatusRequest {}).unwrap().healthz, "ok", "{outage:?}");
        assert_eq!(service.metrics().store.up.get(), 1);
        // The probe leaves nothing in the store.
        let claim = crate::store::record::claim_key(&ChainName::new("default").unwrap());
        assert_eq!(store.get(&claim).await.unwrap(), None);
    }
}

/// A store whose calls can be made to hang.
#[derive(Default)]
struct Stuck {
    inner: memory::Store,
    is_stuck: AtomicBool,
}

impl Stuck {
    async fn pass(&self) {
        if self.is_stuck.load(Ordering::SeqCst) {
            std::future::pending().await
        }
    }
}

#[async_trait]
impl Store for Stuck {
    async fn get(&self, key: &str) -> Result<Option<Entry>, store::Error> {
        self.pass().await;
        self.inner.get(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, store::Error> {
        self.pass().await;
        self.inner.list(prefix, after, limit).await
    }

    async fn count(&self, prefix: &str) -> Result<u64, store::Error> {
        self.pass().await;
        self.inner.count(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, store::Error> {
        self.pass().await;
        self.inner.commit(txn).await
    }

    fn kind(&self) -> &'static str {
        "stuck"
    }
}

#[tokio::test(start_paused = true)]
async fn an_encrypt_that_waits_only_for_the_store_fails_with_store_unavailable() {
    let (store, clock) = (Arc::<Stuck>::default(), Arc::<ManualClock>::default());
    let root = Arc::new(Slow(Duration::ZERO, AtomicBool::new(false)));
    let service = start_at(Arc::clone(&store) as _, &root, Arc::clone(&clock)).await;
    let plugin = Plugin::new(Arc::clone(&service), chain(), OnRootOutage::Enforce, None);
    let plugin = Arc::new(plugin);
    // The reserved uses have expired, and no more can be reserved.
    clock.advance(Duration::from_secs(61));
    store.is_stuck.store(true, Ordering::SeqCst);
    let request = EncryptRequest { plaintext: vec![7; 32], uid: String::new() };
    let error = plugin.encrypt(Peer::UNKNOWN, request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.message().starts_with("store_unavailable: "), "{error}");
}

/// A plugin on a socket in `dir`.
async fn serving(dir: &tempfile::TempDir) -> (Config, Arc<KeyService>, Serving) {
    let socket = dir.path().join("kms.sock");
    let config: Config =
        toml::from_str(&format!("socket = 'unix://{}'", socket.display())).unwrap();
    let root = Arc::new(Slow(Duration::ZERO, AtomicBool::new(false)));
    let service = start_on(&Arc::default(), &root).await;
    let bound = bind(&config).unwrap();
    let serving = serve(config.clone(), bound, Arc::clone(&service)).await.unwrap();
    (config, service, serving)
}

fn path(config: &Config) -> &std::path::Path {
    let Address::Path(path) = &config.socket else { panic!("it has a path") };
    path
}

#[tokio::test(start_paused = true)]
async fn clients_that_make_no_call_do_not_block_the_socket() {
    use tokio::io::AsyncWriteExt;
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // The head of an Encrypt: POST, http, the path, the authority. Its message is never sent.
    let head = [&b"\x83\x86\x04\x20"[..], proto::ENCRYPT.as_bytes(), b"\x01\x09localhost"].concat();
    let len = u8::try_from(head.len()).unwrap();
    let call = [HELLO, &[0, 0, len, 1, 4, 0, 0, 0, 1], &head].concat();
    assert_eq!(proto::ENCRYPT.len(), 0x20);
    for sent in [&b""[..], b"PRI * HTTP/2.0", HELLO, &call] {
        let dir = tempfile::tempdir().unwrap();
        let (config, _service, serving) = serving(&dir).await;
        let mut silent = Vec::new();
        for _ in 0..128 {
            let mut stream = tokio::net::UnixStream::connect(path(&config)).await.unwrap();
            stream.write_all(sent).await.unwrap();
            silent.push(stream);
        }
        let report = doctor::examine(&config.socket).await;
        assert!(!report.is_good, "all connections are in use: {report:?}");
        tokio::time::sleep(Duration::from_secs(200)).await;
        let report = doctor::examine(&config.socket).await;
        assert!(report.is_good, "{}: {report:?}", sent.len());
        drop(silent);
        serving.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_socket_is_reported_by_readiness_until_clients_find_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let (config, service, serving) = serving(&dir).await;
    let look = async || {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let readiness = service.readiness();
        let check = readiness.checks.into_iter().find(|check| check.name == "kubernetes");
        (readiness.health, check.unwrap().detail)
    };
    assert_eq!(look().await, (service::Health::Ok, None));
    std::fs::remove_file(path(&config)).unwrap();
    std::fs::write(path(&config), "something").unwrap();
    let (health, detail) = look().await;
    assert_eq!(health, service::Health::Degraded);
    assert!(detail.unwrap().contains("another file is at"));
    std::fs::remove_file(path(&config)).unwrap();
    assert_eq!(look().await, (service::Health::Ok, None));
    let report = doctor::examine(&config.socket).await;
    assert!(report.is_good, "{report:?}");
    serving.stop().await;
    assert!(!path(&config).exists());
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
