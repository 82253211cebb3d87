//! KEKs between roots and memory: wrapped by every root that answers, opened by any of them, kept
//! in a bounded cache when they only decrypt.
//!
//! One root call for a KEK however many requests wait for it. It knows no store.

use std::borrow::Cow;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use crate::clock::{Clock, Monotonic};
use crate::id::{ChainName, KekId, Suite};
use crate::keychain::kek::Kek;
use crate::metrics::Metrics;
use crate::root::{self, Context};
use crate::secret::KeyBytes;
use crate::store::record;

use super::error::{Error, Kind};
use super::types::{Absence, MissingKek};

mod evidence;
mod inline;
mod missing;
mod roots;
mod single_flight;

use inline::Inline;
use missing::Missing;
use roots::Roots;
pub(super) use roots::{Allowed, ROOT_DEADLINE, RootState, Trust};
use single_flight::SingleFlight;

/// How many KEKs may be on their way from a root at once.
pub(super) const CONCURRENT_UNWRAPS: usize = 16;

/// How many KEKs that did not open are remembered.
const FAILURES: usize = 1024;
/// How long it is remembered that roots refused a KEK or could not open it.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// How long it is remembered that roots were away: what clients are told to wait.
const AWAY_FOR: Duration = Duration::from_secs(1);

type CacheKey = (ChainName, KekId);

/// How the roots of a KEK stand to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// One of them opens it.
    Opens,
    /// None does now, and one is away.
    Away,
    /// None does, and none is away.
    Refused,
}

/// What callers hear of a KEK that did not open a moment ago: a root that refuses is not asked for
/// each request.
#[derive(Clone)]
struct Failure {
    error: Error,
    until: Monotonic,
    /// It holds until a root comes back. A wrap that was wrong stays wrong whatever its root opens.
    recoveries: u64,
}

/// The roots, and the KEKs that came from them.
pub(super) struct Keyring {
    pub(super) roots: Roots,
    cache: Cache<CacheKey, Arc<Kek>>,
    /// The records of KEKs that were opened or made here, to be put back into a store that lost
    /// them.
    records: Cache<CacheKey, Arc<record::Kek>>,
    /// When roots were last found to open a KEK.
    checked: Cache<CacheKey, Monotonic>,
    calls: SingleFlight<CacheKey>,
    failures: Cache<CacheKey, Failure>,
    unwraps: Semaphore,
    inline: Inline,
    missing: Missing,
    clock: Arc<dyn Clock>,
}

impl Keyring {
    pub(super) fn new(
        roots: Vec<root::Named>,
        keks: usize,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            roots: Roots::new(roots, Arc::clone(&clock), metrics),
            cache: Cache::new(keks.max(1)),
            records: Cache::new(keks.max(1)),
            checked: Cache::new(keks.max(1)),
            calls: SingleFlight::default(),
            failures: Cache::new(FAILURES),
            unwraps: Semaphore::new(CONCURRENT_UNWRAPS),
            inline: Inline::new(keks),
            missing: Missing::new(),
            clock,
        }
    }

    /// The KEK, if it is in the cache.
    pub(super) fn cached(&self, chain: &ChainName, id: KekId) -> Option<Arc<Kek>> {
        self.cache.get(&(chain.clone(), id))
    }

    /// The KEK, if it is in the cache or inline.
    pub(super) fn in_memory(&self, chain: &ChainName, id: KekId) -> Option<Arc<Kek>> {
        let key = (chain.clone(), id);
        self.cache.get(&key).or_else(|| self.inline.get(&key))
    }

    /// Whether any KEK is in the cache or inline.
    pub(super) fn holds_any(&self) -> bool {
        !self.cache.is_empty() || !self.inline.is_empty()
    }

    /// Keeps a KEK that was primary.
    pub(super) fn keep(&self, chain: &ChainName, kek: Arc<Kek>) {
        self.cache.insert((chain.clone(), kek.id()), kek);
    }

    /// Drops a KEK that was disabled or destroyed.
    pub(super) fn drop_kek(&self, chain: &ChainName, id: KekId) {
        let key = (chain.clone(), id);
        self.cache.remove(&key);
        self.inline.drop_kek(&key);
    }

    /// The KEKs in the cache.
    pub(super) fn held(&self) -> Vec<(ChainName, KekId)> {
        self.cache.iter().map(|(key, _)| key).collect()
    }

    /// Remembers the record of a KEK that is stored, and that roots wrapped or opened just now.
    pub(super) fn remember(&self, chain: &ChainName, id: KekId, record: &record::Kek) {
        self.missing.remove(chain, id);
        self.records.insert((chain.clone(), id), Arc::new(record.clone()));
        self.checked(chain, id, self.clock.now());
    }

    /// The record that is remembered.
    pub(super) fn remembered(&self, chain: &ChainName, id: KekId) -> Option<Arc<record::Kek>> {
        self.records.get(&(chain.clone(), id))
    }

    /// Notes that roots open a KEK.
    pub(super) fn checked(&self, chain: &ChainName, id: KekId, now: Monotonic) {
        self.checked.insert((chain.clone(), id), now);
    }

    /// When roots were last found to open a KEK; from `now` on where that was forgotten.
    pub(super) fn last_checked(&self, chain: &ChainName, id: KekId, now: Monotonic) -> Monotonic {
        let key = (chain.clone(), id);
        self.checked.get(&key).unwrap_or_else(|| {
            self.checked.insert(key, now);
            now
        })
    }

    /// Whether the record of a KEK is remembered.
    pub(super) fn remembers(&self, chain: &ChainName, id: KekId) -> bool {
        self.records.contains_key(&(chain.clone(), id))
    }

    /// Forgets the wraps of a KEK that was destroyed.
    pub(super) fn forget(&self, chain: &ChainName, id: KekId) {
        self.records.remove(&(chain.clone(), id));
        self.missing.remove(chain, id);
        self.roots.forget(chain, id);
    }

    /// A caller named a KEK that `chain` does not have.
    pub(super) fn note_unknown(&self, chain: &ChainName, id: KekId) {
        let now = self.clock.now();
        if self.missing.note(chain, id, Absence::Unknown, self.clock.unix_now(), now) {
            tracing::error!(%chain, kek_id = %id, "a ciphertext names a KEK that this chain does not have: it was lost with the store, or the ciphertext is forged");
        }
    }

    /// A KEK that was missing is there again.
    pub(super) fn note_known(&self, chain: &ChainName, id: KekId) {
        self.missing.remove(chain, id);
    }

    /// The KEKs of `chain` that were asked for and can't be used, the longest missed first.
    pub(super) fn missing(&self, chain: &ChainName) -> Vec<MissingKek> {
        self.missing.of(chain)
    }

    /// How many they are.
    pub(super) fn count_missing(&self, chain: &ChainName, absence: Absence) -> usize {
        self.missing.count(chain, absence)
    }

    /// Stored KEKs that no root opened: at most `most`.
    pub(super) fn unopenable(&self, most: usize) -> Vec<(ChainName, KekId)> {
        self.missing.unopenable(most)
    }

    /// The records of `chain` that are remembered.
    pub(super) fn records(&self, chain: &ChainName) -> Vec<(KekId, Arc<record::Kek>)> {
        let of_chain = self.records.iter().filter(|((name, _), _)| name == chain);
        of_chain.map(|((_, id), record)| (id, record)).collect()
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
        let open = async {
            // It may have landed between the two looks.
            if let Some(kek) = self.cache.get(&key) {
                return Ok(kek);
            }
            if let Some(error) = self.failure_in(&self.failures, &key) {
                return Err(error);
            }
            let record = fetch.await?;
            let _permit = self.unwraps.acquire().await.map_err(|_| unavailable("stopping"))?;
            let kek = self.open(chain, id, &record).await?;
            self.cache.insert(key.clone(), Arc::clone(&kek));
            Ok(kek)
        };
        self.calls.join(&key, open).await
    }

    /// What became of `key` a moment ago, if it did not open.
    fn failure_in<K: Hash + Eq>(&self, failures: &Cache<K, Failure>, key: &K) -> Option<Error> {
        let Failure { error, until, recoveries } = failures.get(key)?;
        (self.clock.now() < until && recoveries == self.roots.recoveries()).then_some(error)
    }

    fn failed(&self, chain: &ChainName, id: KekId, detail: String, forgotten: Duration) -> Error {
        let error = unavailable(detail);
        let until = self.clock.now() + forgotten;
        let failure = Failure { error: error.clone(), until, recoveries: self.roots.recoveries() };
        self.failures.insert((chain.clone(), id), failure);
        error
    }

    /// KEKs that are on their way from a root.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.calls.len()
    }

    /// As many callers as may be on their way to a root, for as long as it is held.
    #[cfg(test)]
    pub(super) async fn crowd(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.unwraps.acquire_many(16).await.unwrap()
    }

    /// How the roots stand to a KEK that is in memory.
    pub(super) async fn opening(
        &self,
        chain: &ChainName,
        id: KekId,
        record: &record::Kek,
    ) -> Opening {
        match self.open(chain, id, record).await {
            Ok(_) => Opening::Opens,
            Err(_) if self.roots.is_away(record) => Opening::Away,
            Err(_) => Opening::Refused,
        }
    }

    /// Has each root that wrapped a KEK open it; true when one does. So the state of every root is
    /// known, also of those that [`open`](Self::open) does not need.
    pub(super) async fn ask_each(
        &self,
        chain: &ChainName,
        id: KekId,
        record: &record::Kek,
    ) -> bool {
        let context = Context { chain, kek_id: id, suite: record.suite };
        let mut opens = false;
        for (state, wrap) in self.roots.candidates(&record.wraps) {
            let opened =
                async { check(state.named.root.unwrap(context, &wrap.bytes).await?, &context) };
            match self.roots.call(state, "unwrap", opened).await {
                Ok(_) => opens = true,
                Err(error) => {
                    tracing::error!(root = %state.named.name, %chain, kek_id = %id, %error, "a check of a root failed");
                }
            }
        }
        if opens {
            self.failures.remove(&(chain.clone(), id));
            self.remember(chain, id, record);
        }
        opens
    }

    /// Opens a KEK by any root that wrapped it, now: those whose last answer was good come first.
    /// The chains' own KEKs come this way, and never wait behind those of callers.
    pub(super) async fn open(
        &self,
        chain: &ChainName,
        id: KekId,
        record: &record::Kek,
    ) -> Result<Arc<Kek>, Error> {
        let candidates = self.roots.candidates(&record.wraps);
        let wrapped_by = record.wraps.iter().map(|wrap| &*wrap.root).collect::<Vec<_>>().join(", ");
        let (mut forgotten, mut is_away) = (REFUSED_FOR, false);
        for &(state, wrap) in &candidates {
            match self.open_by(state, chain, id, record.suite, &wrap.bytes).await {
                Ok(kek) => {
                    self.failures.remove(&(chain.clone(), id));
                    self.remember(chain, id, record);
                    return Ok(kek);
                }
                Err(root::Error::Away(_)) => (forgotten, is_away) = (AWAY_FOR, true),
                Err(_) => {}
            }
        }
        let why = match candidates.is_empty() {
            true => "no root of that name is configured",
            false => "no root opens it now",
        };
        let detail = format!("KEK {id} was wrapped by {wrapped_by}: {why}");
        if !is_away {
            let (unix_now, now) = (self.clock.unix_now(), self.clock.now());
            if self.missing.note(chain, id, Absence::Unopenable, unix_now, now) {
                tracing::error!(%chain, kek_id = %id, detail, "a KEK can not be opened");
            }
        }
        Err(self.failed(chain, id, detail, forgotten))
    }

    /// Opens a KEK by one root.
    pub(super) async fn open_by(
        &self,
        state: &RootState,
        chain: &ChainName,
        id: KekId,
        suite: Suite,
        wrap: &[u8],
    ) -> Result<Arc<Kek>, root::Error> {
        let opened = self.unwrap_by(state, chain, id, suite, wrap).await?;
        self.roots.note_opened(state, chain, id);
        Ok(Arc::new(Kek::new(chain, opened)))
    }

    /// Unwraps a KEK by one root. That it opens is not noted as a proof of the root.
    pub(super) async fn unwrap_by(
        &self,
        state: &RootState,
        chain: &ChainName,
        id: KekId,
        suite: Suite,
        wrap: &[u8],
    ) -> Result<KeyBytes, root::Error> {
        let context = Context { chain, kek_id: id, suite };
        let opened = async { check(state.named.root.unwrap(context, wrap).await?, &context) };
        let opened = self.roots.call(state, "unwrap", opened).await;
        opened.inspect_err(|error| {
            let is_news = self.roots.note_not_opened(state, chain, id, error);
            // A wrap that is wrong stays so; readiness names it.
            if is_news || !matches!(error, root::Error::Wrong(_)) {
                tracing::error!(root = %state.named.name, %chain, kek_id = %id, %error, "a root did not open a KEK");
            } else {
                tracing::debug!(root = %state.named.name, %chain, kek_id = %id, %error, "a root did not open a KEK");
            }
        })
    }
}

/// The key must be the one that the record says it is.
pub(super) fn check(key: KeyBytes, context: &Context<'_>) -> Result<KeyBytes, root::Error> {
    if key.suite() == context.suite && KekId::of_key(key.expose()) == context.kek_id {
        Ok(key)
    } else {
        Err(root::Error::Wrong("it opened to a key of another id".to_owned()))
    }
}

fn unavailable(detail: impl Into<Cow<'static, str>>) -> Error {
    Error::new(Kind::RootUnavailable, detail)
}
