//! Loads an issuer's keys and keeps them current: a file is read every few seconds, a URL is
//! fetched every few minutes and when a token names an unknown key.
//!
//! A read that fails changes nothing: the old keys stay in use, and readiness reports the error. It
//! must not know clients.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Certificate, Url};
use tokio::sync::{Notify, Semaphore, watch};
use zeroize::Zeroizing;

use crate::clock::{Clock, Monotonic};
use crate::error_chain;
use crate::pem;
use crate::proxy::{Proxies, Proxy};

use super::jwks::KeySet;
use super::key_source::KeySource;

/// How often a file is read.
const FILE_EVERY: Duration = Duration::from_secs(2);
/// How often a URL is fetched without a request for new keys.
const URL_EVERY: Duration = Duration::from_secs(300);
/// When a failed fetch is repeated.
const RETRY_EVERY: Duration = Duration::from_secs(15);
/// Time limit of a fetch. It is longer in tests, whose servers may wait for a processor.
const FETCH_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 5 });
/// Tokens that name unknown keys cause at most one read in this interval.
const ASKED_EVERY: Duration = Duration::from_secs(5);
/// Maximum number of requests that wait for a read.
const WAITING: usize = 64;
/// Maximum size of a JWKS, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// The keys of one issuer. A task keeps them current until this is dropped.
pub(super) struct Source {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    source: KeySource,
    clock: Arc<dyn Clock>,
    keys: ArcSwap<KeySet>,
    /// Incremented when the keys change.
    generation: AtomicU64,
    last_error: ArcSwap<Option<String>>,
    /// The skipped keys that the log has named.
    skipped: ArcSwap<Vec<String>>,
    /// When the last read began, in nanoseconds of monotonic time.
    looked_at: AtomicU64,
    /// A read is requested or in progress.
    looking: AtomicBool,
    ask: Notify,
    /// Number of completed reads.
    looks: watch::Sender<u64>,
    /// Limits the callers that wait for a read: they are not identified yet, and their requests
    /// stay in memory.
    waiting: Semaphore,
}

impl Source {
    /// Starts the task; does not wait for the first read.
    pub(super) fn start(source: KeySource, clock: Arc<dyn Clock>) -> Arc<Self> {
        let shared = Arc::new(Shared {
            source,
            clock,
            keys: ArcSwap::default(),
            generation: AtomicU64::new(0),
            last_error: ArcSwap::default(),
            skipped: ArcSwap::default(),
            looked_at: AtomicU64::new(0),
            looking: AtomicBool::new(true),
            ask: Notify::new(),
            looks: watch::Sender::new(0),
            waiting: Semaphore::new(WAITING),
        });
        let task = tokio::spawn(keep(Arc::clone(&shared)));
        Arc::new(Self { shared, task })
    }

    /// The location of the keys.
    pub(super) fn source(&self) -> &KeySource {
        &self.shared.source
    }

    /// The keys and their generation.
    pub(super) fn keys(&self) -> (Guard<Arc<KeySet>>, u64) {
        // In this order: at worst, new keys get the old number, and a token that they verify is
        // not cached.
        let generation = self.generation();
        (self.shared.keys.load(), generation)
    }

    /// The current generation of the keys.
    pub(super) fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Why the last read failed.
    pub(super) fn last_error(&self) -> Option<String> {
        self.shared.last_error.load().as_ref().clone()
    }

    /// Waits until the first read has succeeded or failed.
    pub(super) async fn settled(&self) {
        let mut looks = self.shared.looks.subscribe();
        // It can't fail: the sender lives as long as `self`.
        let _ = looks.wait_for(|&looks| looks > 0).await;
    }

    /// Requests a read unless there was one within `ASKED_EVERY`, and waits for it. False if
    /// nothing was read, or too many callers wait.
    pub(super) async fn ask(&self) -> bool {
        let shared = &self.shared;
        let Ok(_permit) = shared.waiting.try_acquire() else { return false };
        let mut looks = shared.looks.subscribe();
        let (now, before) = (shared.clock.now(), shared.looked_at.load(Ordering::Relaxed));
        if !shared.looking.load(Ordering::Relaxed) {
            let recent = now.since(Monotonic::from_nanos(before)) < ASKED_EVERY;
            if recent || shared.looking.swap(true, Ordering::Relaxed) {
                return false;
            }
            shared.ask.notify_one();
        }
        tokio::time::timeout(FETCH_TIMEOUT, looks.changed()).await.is_ok()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the keys at intervals, until the source is dropped.
async fn keep(shared: Arc<Shared>) {
    let mut seen = Zeroizing::new(Vec::new());
    loop {
        shared.looking.store(true, Ordering::Relaxed);
        shared.looked_at.store(shared.clock.now().as_nanos(), Ordering::Relaxed);
        let read = read(&shared.source).await;
        let pause = match (read, &shared.source) {
            (Ok(bytes), source) => {
                if bytes != *seen || shared.last_error.load().is_some() {
                    shared.take(&bytes);
                    *seen = bytes;
                }
                if matches!(source, KeySource::File(_)) { FILE_EVERY } else { URL_EVERY }
            }
            (Err(detail), source) => {
                shared.failed(detail);
                if matches!(source, KeySource::File(_)) { FILE_EVERY } else { RETRY_EVERY }
            }
        };
        shared.looking.store(false, Ordering::Relaxed);
        shared.looks.send_modify(|looks| *looks += 1);
        // A timeout is the normal case.
        let _ = tokio::time::timeout(pause, shared.ask.notified()).await;
    }
}

impl Shared {
    fn take(&self, bytes: &[u8]) {
        match KeySet::parse(bytes) {
            Ok(keys) => {
                tracing::info!(from = %self.source, keys = keys.len(), "the keys of an issuer \
                    were read");
                self.name_skipped(&keys);
                self.keys.store(Arc::new(keys));
                self.generation.fetch_add(1, Ordering::Release);
                self.last_error.store(Arc::default());
            }
            Err(detail) => self.failed(detail),
        }
    }

    /// Logs each key that is not used, once as long as it is in the set.
    fn name_skipped(&self, keys: &KeySet) {
        let named = self.skipped.swap(Arc::new(keys.skipped().to_vec()));
        for detail in keys.skipped().iter().filter(|detail| !named.contains(detail)) {
            tracing::warn!(from = %self.source, detail, "a key of an issuer is not used");
        }
    }

    /// Logs each error once.
    fn failed(&self, detail: String) {
        if self.last_error.load().as_deref() != Some(&detail) {
            let held = self.keys.load().len();
            tracing::error!(from = %self.source, detail, held, "the keys of an issuer can't be \
                read; those that are held stay");
            self.last_error.store(Arc::new(Some(detail)));
        }
    }
}

async fn read(source: &KeySource) -> Result<Vec<u8>, String> {
    match source {
        KeySource::File(path) => bounded(path),
        KeySource::Url { url, ca, token_file } => {
            fetch(url.clone(), ca.as_deref(), token_file.as_deref()).await
        }
    }
}

/// The keys in a file.
pub(super) fn in_file(path: &Path) -> Result<KeySet, String> {
    KeySet::parse(&bounded(path)?)
}

/// Reads a regular file of limited length. A pipe could block the reader.
fn bounded(path: &Path) -> Result<Vec<u8>, String> {
    let found = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("it is no file".to_owned());
    }
    let bytes = crate::files::read(path).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_BYTES { Err(too_long()) } else { Ok(bytes) }
}

/// Fetches a JWKS. Each fetch builds a client, since the files of authority and token are rotated.
async fn fetch(url: Url, ca: Option<&Path>, token: Option<&Path>) -> Result<Vec<u8>, String> {
    let plain = url.scheme() == "http";
    let mut http = reqwest::Client::builder()
        .user_agent(concat!("kms-proxy/", env!("CARGO_PKG_VERSION")))
        // Another host may have other keys, and must not get the token.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(FETCH_TIMEOUT);
    if let Some(path) = ca {
        let wrong = |error: String| format!("jwks_ca, {}: {error}", path.display());
        let authorities = pem::authorities(&bounded(path).map_err(wrong)?).map_err(wrong)?;
        let authorities = authorities.iter().map(|der| Certificate::from_der(der));
        let authorities: Result<Vec<_>, _> = authorities.collect();
        http = http.tls_certs_only(authorities.map_err(|error| wrong(error.to_string()))?);
    } else if plain {
        // Plain HTTP must work on machines without certificates.
        http = http.tls_certs_only([]);
    }
    let proxies = Proxies::from_env()?;
    let proxy = proxies.of(url.as_str());
    if let Some(proxy) = proxy {
        let proxy = reqwest::Proxy::all(proxy.url());
        http = http.proxy(proxy.map_err(|_| "the proxy is not supported".to_owned())?);
    }
    let via = proxy.map(Proxy::via).unwrap_or_default();
    let http = http.build().map_err(|error| format!("no TLS: {}", causes(&error)))?;
    let mut request = http.get(url).header("accept", "application/jwk-set+json, application/json");
    if let Some(path) = token {
        request = request.header(AUTHORIZATION, bearer(path)?);
    }
    let mut response = request.send().await.map_err(|error| causes(&error) + &via)?;
    if response.status() != 200 {
        return Err(format!("it answers {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| causes(&error) + &via)? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The header with the token in a file.
fn bearer(path: &Path) -> Result<HeaderValue, String> {
    let wrong = |detail: &str| format!("jwks_token_file, {}: {detail}", path.display());
    let (token, _) = crate::files::read_secret(path).map_err(|error| wrong(&error.to_string()))?;
    let token = token.trim_end();
    let header = Zeroizing::new([b"Bearer ", token.expose()].concat());
    let mut header = HeaderValue::from_bytes(&header).map_err(|_| wrong("it is no token"))?;
    header.set_sensitive(true);
    Ok(header)
}

fn too_long() -> String {
    format!("it is longer than {MAX_BYTES} bytes")
}

/// The innermost cause: outer ones contain the URL, whose query may be secret.
fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    error_chain::innermost(error).to_string()
}
