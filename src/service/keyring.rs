//! KEKs between roots and memory: unwrapped by any root that wrapped them, and kept in a bounded
//! cache if they only decrypt.
//!
//! Any number of requests that wait for a KEK cause one root call. It knows no store.

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
use crate::single_flight::SingleFlight;
use crate::store::record;

use super::error::{Error, Kind};
use super::types::{Absence, MissingKek};

mod evidence;
mod inline;
mod missing;
mod root_state;
mod roots;

use inline::{Inline, is_for_all};
use missing::Missing;
pub(super) use root_state::RootState;
use roots::Roots;
pub(super) use roots::{Allowed, ROOT_DEADLINE, Trust};

/// How many KEKs may be unwrapped concurrently.
pub(super) const CONCURRENT_UNWRAPS: usize = 16;

/// How many KEKs that could not be unwrapped are remembered.
const FAILURES: usize = 1024;
/// How long it is remembered that no root unwraps a KEK.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// How long it is remembered that roots were unavailable: the `Retry-After` of clients.
const AWAY_FOR: Duration = Duration::from_secs(1);

type CacheKey = (ChainName, KekId);

/// Whether any configured root can unwrap a KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// A root unwraps it.
    Opens,
    /// No root unwraps it now, and one of its roots is unavailable.
    Away,
    /// No root unwraps it, and all of its roots are available.
    Refused,
}

/// The error for a KEK that could not be unwrapped a moment ago, so that not every request causes a
/// root call.
#[derive(Clone)]
struct Failure {
    error: Error,
    until: Monotonic,
    /// The count of recoveries at that time. After another recovery, a root is asked again.
    recoveries: u64,
}

/// The roots, and the KEKs that they unwrapped.
pub(super) struct Keyring {
    pub(super) roots: Roots,
    cache: Cache<CacheKey, Arc<Kek>>,
    /// The records of KEKs that were created or unwrapped here, to restore them in a store that
    /// lost them.
    records: Cache<CacheKey, Arc<record::Kek>>,
    /// When a root last unwrapped each KEK.
    checked: Cache<CacheKey, Monotonic>,
    calls: SingleFlight<CacheKey, Result<Arc<Kek>, Error>>,
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

    /// Remembers the record of a stored KEK that roots wrapped or unwrapped just now.
    pub(super) fn remember(&self, chain: &ChainName, id: KekId, record: &record::Kek) {
        self.missing.remove(chain, id);
        self.records.insert((chain.clone(), id), Arc::new(record.clone()));
        self.checked(chain, id, self.clock.now());
    }

    /// The remembered record of a KEK.
    pub(super) fn remembered(&self, chain: &ChainName, id: KekId) -> Option<Arc<record::Kek>> {
        self.records.get(&(chain.clone(), id))
    }

    /// Notes that a root unwraps a KEK.
    pub(super) fn checked(&self, chain: &ChainName, id: KekId, now: Monotonic) {
        self.checked.insert((chain.clone(), id), now);
    }

    /// When a root last unwrapped a KEK. If that is not remembered, counts from `now`.
    pub(super) fn last_checked(&self, chain: &ChainName, id: KekId, now: Monotonic) -> Monotonic {
        let key = (chain.clone(), id);
        self.checked.get(&key).unwrap_or_else(|| {
            self.checked.insert(key, now);
            now
        })
    }

    /// When a root last unwrapped a KEK, if that is known.
    pub(super) fn checked_at(&self, chain: &ChainName, id: KekId) -> Option<Monotonic> {
        self.checked.get(&(chain.clone(), id))
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

    /// Notes that a caller named a KEK that `chain` does not have.
    pub(super) fn note_unknown(&self, chain: &ChainName, id: KekId) {
        let now = self.clock.now();
        if self.missing.note(chain, id, Absence::Unknown, self.clock.unix_now(), now) {
            tracing::error!(%chain, kek_id = %id, "a ciphertext names a KEK that this chain does \
                not have: it was lost with the store, or the ciphertext is forged");
        }
    }

    /// Notes that a KEK is not missing any more.
    pub(super) fn note_known(&self, chain: &ChainName, id: KekId) {
        self.missing.remove(chain, id);
    }

    /// The requested KEKs of `chain` that can't be used; the one that was missed first comes first.
    pub(super) fn missing(&self, chain: &ChainName) -> Vec<MissingKek> {
        self.missing.of(chain)
    }

    /// The number of these KEKs.
    pub(super) fn count_missing(&self, chain: &ChainName, absence: Absence) -> usize {
        self.missing.count(chain, absence)
    }

    /// At most `most` stored KEKs that no root unwrapped.
    pub(super) fn unopenable(&self, most: usize) -> Vec<(ChainName, KekId)> {
        self.missing.unopenable(most)
    }

    /// The remembered records of `chain`.
    pub(super) fn records(&self, chain: &ChainName) -> Vec<(KekId, Arc<record::Kek>)> {
        let of_chain = self.records.iter().filter(|((name, _), _)| name == chain);
        of_chain.map(|((_, id), record)| (id, record)).collect()
    }

    /// The KEK from the cache, or unwrapped by a root; `fetch` reads its record. Concurrent
    /// requests for the same KEK share one call and its result.
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
            // Another request may have unwrapped it between the two checks.
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
        self.calls.join(&key, open, is_for_all).await
    }

    /// The remembered error for `key`, if it could not be unwrapped a moment ago.
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

    /// How many KEKs are being unwrapped.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.calls.len()
    }

    /// Occupies all concurrent root calls while the permit is held.
    #[cfg(test)]
    pub(super) async fn crowd(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.unwraps.acquire_many(16).await.unwrap()
    }

    /// Checks whether any configured root can unwrap a KEK that is in memory.
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

    /// Has each root that wrapped a KEK unwrap it; returns whether one does. This shows the health
    /// of every root, including those that [`open`](Self::open) does not need.
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
            match self.roots.call(state, "unwrap", chain, opened).await {
                Ok(_) => opens = true,
                Err(error) => {
                    tracing::error!(root = %state.named.name, %chain, kek_id = %id, %error, "a \
                        check of a root failed");
                }
            }
        }
        if opens {
            self.failures.remove(&(chain.clone(), id));
            self.remember(chain, id, record);
        }
        opens
    }

    /// Unwraps a KEK by any root that wrapped it, starting with those whose last call succeeded.
    /// The chains' own KEKs use this, and never wait for those of callers.
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
            false => NOT_NOW,
        };
        let detail = format!("KEK {id} was wrapped by {wrapped_by}: {why}");
        if !is_away {
            let (unix_now, now) = (self.clock.unix_now(), self.clock.now());
            if self.missing.note(chain, id, Absence::Unopenable, unix_now, now) {
                tracing::error!(%chain, kek_id = %id, detail, "no root unwraps a KEK");
            }
        }
        Err(self.failed(chain, id, detail, forgotten))
    }

    /// Unwraps a KEK by one root, and notes that as evidence for the root.
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

    /// Unwraps a KEK by one root. A success is not noted as evidence for the root.
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
        let opened = self.roots.call(state, "unwrap", chain, opened).await;
        opened.inspect_err(|error| {
            let is_news = self.roots.note_not_opened(state, chain, id, error);
            // A wrong wrap remains wrong, and readiness names it.
            if is_news || !matches!(error, root::Error::Wrong(_)) {
                tracing::error!(root = %state.named.name, %chain, kek_id = %id, %error, "a root \
                    did not open a KEK");
            } else {
                tracing::debug!(root = %state.named.name, %chain, kek_id = %id, %error, "a root \
                    did not open a KEK");
            }
        })
    }
}

/// Why a KEK can't be used that configured roots wrapped.
pub(super) const NOT_NOW: &str = "no root opens it now";

/// Checks that an unwrapped key has the id and the suite of its record.
pub(super) fn check(key: KeyBytes, context: &Context<'_>) -> Result<KeyBytes, root::Error> {
    if key.suite() == context.suite && KekId::of_key(key.expose()) == context.kek_id {
        Ok(key)
    } else {
        Err(root::Error::Wrong("it unwraps to a key with another id".to_owned()))
    }
}

fn unavailable(detail: impl Into<Cow<'static, str>>) -> Error {
    Error::new(Kind::RootUnavailable, detail)
}
