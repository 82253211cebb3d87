//! KEKs between roots and memory: wrapped by every root that answers, opened by any of them, kept
//! in a bounded cache when they only decrypt.
//!
//! One root call for a KEK however many requests wait for it. It knows no store.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::{OnceCell, Semaphore};

use crate::clock::{Clock, Monotonic};
use crate::id::{ChainName, KekId};
use crate::keychain::kek::Kek;
use crate::metrics::Metrics;
use crate::root::{self, Context};
use crate::secret::KeyBytes;
use crate::store::record::{self, Wrap};

use super::answer::{Check, Health};
use super::error::{Error, Kind};

/// How long a root may take; a provider bounds itself below this.
const ROOT_DEADLINE: Duration = Duration::from_secs(15);
/// How many KEKs may be on their way from a root at once.
const CONCURRENT_UNWRAPS: usize = 16;

/// How many KEKs that did not open are remembered.
const FAILURES: usize = 1024;
/// How long it is remembered that roots refused a KEK or could not open it.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// How long it is remembered that roots were away: what clients are told to wait.
const AWAY_FOR: Duration = Duration::from_secs(1);

type CacheKey = (ChainName, KekId);
type Flight = Arc<OnceCell<Result<Arc<Kek>, Error>>>;

/// The roots, and the KEKs that came from them.
pub(super) struct Keyring {
    roots: Vec<RootState>,
    cache: Cache<CacheKey, Arc<Kek>>,
    flights: Mutex<HashMap<CacheKey, Flight>>,
    /// What callers hear of KEKs that did not open a moment ago, and until when: a root that
    /// refuses is not asked for each request.
    failures: Cache<CacheKey, (Error, Monotonic)>,
    unwraps: Semaphore,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

struct RootState {
    named: root::Named,
    /// The last answer, if it was not a good one, and since when they are so.
    trouble: Mutex<Option<(root::Error, u64)>>,
}

impl Keyring {
    pub(super) fn new(
        roots: Vec<root::Named>,
        keks: usize,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        for root in &roots {
            metrics.root_up.with_label_values(&[&root.name]).set(1);
            metrics.keks_missing_wraps.with_label_values(&[&root.name]).set(0);
            metrics.root_info.with_label_values(&[&*root.name, root.root.kind()]).set(1);
        }
        Self {
            roots: roots
                .into_iter()
                .map(|named| RootState { named, trouble: Mutex::new(None) })
                .collect(),
            cache: Cache::new(keks.max(1)),
            flights: Mutex::default(),
            failures: Cache::new(FAILURES),
            unwraps: Semaphore::new(CONCURRENT_UNWRAPS),
            clock,
            metrics,
        }
    }

    /// Wraps a KEK by every root that answers; one is enough.
    pub(super) async fn wrap(&self, chain: &ChainName, kek: &Kek) -> Result<Vec<Wrap>, Error> {
        let context = Context { chain, kek_id: kek.id(), suite: kek.suite() };
        let mut wraps = Vec::new();
        for state in &self.roots {
            let call = state.named.root.wrap(context, kek.key());
            match self.call(state, "wrap", call).await {
                Ok(bytes) => wraps.push(Wrap { root: state.named.name.to_string(), bytes }),
                Err(error) => {
                    tracing::warn!(root = %state.named.name, %chain, %error, "a root did not wrap a new KEK");
                }
            }
        }
        if wraps.is_empty() { Err(unavailable("no root wraps a new KEK")) } else { Ok(wraps) }
    }

    /// Whether one of `wraps` is by a `local` root: such a KEK is exposed for ever.
    pub(super) fn exposes(&self, wraps: &[Wrap]) -> bool {
        self.roots.iter().any(|state| {
            state.named.root.kind() == "local"
                && wraps.iter().any(|wrap| *wrap.root == *state.named.name)
        })
    }

    /// The KEK, if it is in the cache.
    pub(super) fn cached(&self, chain: &ChainName, id: KekId) -> Option<Arc<Kek>> {
        self.cache.get(&(chain.clone(), id))
    }

    /// Whether any KEK is in the cache.
    pub(super) fn holds_any(&self) -> bool {
        !self.cache.is_empty()
    }

    /// Keeps a KEK that was primary.
    pub(super) fn keep(&self, chain: &ChainName, kek: Arc<Kek>) {
        self.cache.insert((chain.clone(), kek.id()), kek);
    }

    /// Drops a KEK that was disabled or destroyed.
    pub(super) fn drop_kek(&self, chain: &ChainName, id: KekId) {
        self.cache.remove(&(chain.clone(), id));
    }

    /// The KEK from the cache or by way of `fetch`, which reads its record. All who ask for one KEK
    /// meanwhile get the one answer, be it good or bad.
    pub(super) async fn get(
        &self,
        chain: &ChainName,
        id: KekId,
        fetch: impl Future<Output = Result<record::Kek, Error>>,
    ) -> Result<Arc<Kek>, Error> {
        let key = (chain.clone(), id);
        if let Some(kek) = self.cache.get(&key) {
            return Ok(kek);
        }
        let flight = self.board(&key);
        flight
            .cell
            .get_or_init(async || {
                // It may have landed between the two looks.
                if let Some(kek) = self.cache.get(&key) {
                    return Ok(kek);
                }
                if let Some(error) = self.failure(&key) {
                    return Err(error);
                }
                let record = fetch.await?;
                let _permit = self.unwraps.acquire().await.map_err(|_| unavailable("stopping"))?;
                let kek = self.open(chain, id, &record).await?;
                self.cache.insert(key.clone(), Arc::clone(&kek));
                Ok(kek)
            })
            .await
            .clone()
    }

    /// What became of `key` a moment ago, if it did not open.
    fn failure(&self, key: &CacheKey) -> Option<Error> {
        let (error, until) = self.failures.get(key)?;
        (self.clock.now() < until).then_some(error)
    }

    fn failed(&self, chain: &ChainName, id: KekId, detail: String, forgotten: Duration) -> Error {
        let error = unavailable(detail);
        let until = self.clock.now() + forgotten;
        self.failures.insert((chain.clone(), id), (error.clone(), until));
        error
    }

    /// Joins those who wait for one KEK.
    fn board<'a>(&'a self, key: &'a CacheKey) -> Passenger<'a> {
        let cell = Arc::clone(self.flights().entry(key.clone()).or_default());
        Passenger { keyring: self, key, cell }
    }

    /// KEKs that are on their way from a root.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.flights().len()
    }

    /// As many callers as may be on their way to a root, for as long as it is held.
    #[cfg(test)]
    pub(super) async fn crowd(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.unwraps.acquire_many(16).await.unwrap()
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<CacheKey, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a KEK by any root that wrapped it, now: those whose last answer was good come first.
    /// The chains' own KEKs come this way, and never wait behind those of callers.
    pub(super) async fn open(
        &self,
        chain: &ChainName,
        id: KekId,
        record: &record::Kek,
    ) -> Result<Arc<Kek>, Error> {
        let context = Context { chain, kek_id: id, suite: record.suite };
        let mut candidates: Vec<(&RootState, &Wrap)> = self
            .roots
            .iter()
            .filter_map(|state| {
                let wrap = record.wraps.iter().find(|wrap| *wrap.root == *state.named.name)?;
                Some((state, wrap))
            })
            .collect();
        let wrapped_by = record.wraps.iter().map(|wrap| &*wrap.root).collect::<Vec<_>>().join(", ");
        if candidates.is_empty() {
            let detail =
                format!("KEK {id} was wrapped by {wrapped_by}: no root of that name is configured");
            tracing::error!(%chain, detail, "a KEK can not be opened");
            return Err(self.failed(chain, id, detail, REFUSED_FOR));
        }
        let mut forgotten = REFUSED_FOR;
        candidates.sort_by_key(|(state, _)| !state.is_up());
        for (state, wrap) in candidates {
            let opened =
                async { check(state.named.root.unwrap(context, &wrap.bytes).await?, &context) };
            match self.call(state, "unwrap", opened).await {
                Ok(key) => {
                    self.failures.remove(&(chain.clone(), id));
                    return Ok(Arc::new(Kek::new(chain, key)));
                }
                Err(error) => {
                    if matches!(error, root::Error::Away(_)) {
                        forgotten = AWAY_FOR;
                    }
                    tracing::error!(root = %state.named.name, %chain, kek_id = %id, %error, "a root did not open a KEK");
                }
            }
        }
        let detail = format!("KEK {id} was wrapped by {wrapped_by}: no root opens it now");
        Err(self.failed(chain, id, detail, forgotten))
    }

    /// Bounds, counts and judges one call of a root.
    async fn call<T>(
        &self,
        state: &RootState,
        operation: &'static str,
        call: impl Future<Output = Result<T, root::Error>>,
    ) -> Result<T, root::Error> {
        let start = self.clock.now();
        let result = tokio::time::timeout(ROOT_DEADLINE, call)
            .await
            .unwrap_or_else(|_| Err(root::Error::Away("no answer in 15 s".to_owned())));
        let outcome = result.as_ref().err().map_or("ok", root::Error::outcome);
        let took = self.clock.now().since(start);
        self.metrics.root_called(&state.named.name, operation, outcome, took);
        let mut trouble = state.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(_) => {
                let was = trouble.take();
                // A wrap that was wrong stays wrong whatever the root opens.
                if was.is_some_and(|(error, _)| !matches!(error, root::Error::Wrong(_))) {
                    self.failures.clear();
                }
            }
            Err(error) => {
                let since =
                    trouble.take().map_or_else(|| self.clock.unix_now(), |(_, since)| since);
                *trouble = Some((error.clone(), since));
            }
        }
        self.metrics
            .root_up
            .with_label_values(&[&state.named.name])
            .set(i64::from(trouble.is_none()));
        result
    }

    /// How many of `keks` each root has no wrap of, in the order of the roots.
    pub(super) fn missing<'a>(
        &self,
        keks: impl Iterator<Item = &'a record::Kek> + Clone,
    ) -> Vec<i64> {
        let lacks = |kek: &&record::Kek, name: &str| kek.wraps.iter().all(|wrap| wrap.root != name);
        let count = |state: &RootState| {
            let lacking = keks.clone().filter(|kek| lacks(kek, &state.named.name)).count();
            i64::try_from(lacking).unwrap_or(i64::MAX)
        };
        self.roots.iter().map(count).collect()
    }

    /// Sets the metric of the wraps that are missing: what [`missing`](Self::missing) said of each
    /// chain.
    pub(super) fn report_missing<'a>(&self, chains: impl Iterator<Item = &'a [i64]> + Clone) {
        for (index, state) in self.roots.iter().enumerate() {
            let missing = chains.clone().filter_map(|chain| chain.get(index)).sum();
            let gauge = &self.metrics.keks_missing_wraps;
            gauge.with_label_values(&[&state.named.name]).set(missing);
        }
    }

    pub(super) fn is_any_up(&self) -> bool {
        self.roots.iter().any(RootState::is_up)
    }

    pub(super) fn checks(&self) -> impl Iterator<Item = Check> {
        self.roots.iter().map(RootState::check)
    }
}

/// One of those who wait for a KEK. The last one to leave, with an answer or without, ends the
/// flight: callers that hang up leave nothing behind.
struct Passenger<'a> {
    keyring: &'a Keyring,
    key: &'a CacheKey,
    cell: Flight,
}

impl Drop for Passenger<'_> {
    fn drop(&mut self) {
        let mut flights = self.keyring.flights();
        let ours = flights.get(self.key).is_some_and(|current| Arc::ptr_eq(current, &self.cell));
        // An answered flight takes nobody more; one without an answer goes on while others wait.
        if ours && (self.cell.initialized() || Arc::strong_count(&self.cell) == 2) {
            flights.remove(self.key);
        }
    }
}

impl RootState {
    fn is_up(&self) -> bool {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn check(&self) -> Check {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let detail = match &*trouble {
            Some((error, since)) => Some(format!("{error}, since {}", super::rfc3339(*since))),
            None if self.named.root.kind() == "local" => {
                Some("a key file on this machine: for development".to_owned())
            }
            None => None,
        };
        Check {
            name: format!("root:{}", self.named.name),
            health: if trouble.is_none() { Health::Ok } else { Health::Degraded },
            detail,
        }
    }
}

/// The key must be the one that the record says it is.
fn check(key: KeyBytes, context: &Context<'_>) -> Result<KeyBytes, root::Error> {
    if key.suite() == context.suite && KekId::of_key(key.expose()) == context.kek_id {
        Ok(key)
    } else {
        Err(root::Error::Wrong("it opened to a key of another id".to_owned()))
    }
}

fn unavailable(detail: impl Into<Cow<'static, str>>) -> Error {
    Error::new(Kind::RootUnavailable, detail)
}
