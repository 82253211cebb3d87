//! The configured roots: each call of one bounded, counted and judged, and how they stand. It knows no
//! KEK in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Monotonic};
use crate::id::{ChainName, KekId, Suite};
use crate::keychain::kek::Kek;
use crate::metrics::Metrics;
use crate::root::{self, Context};
use crate::service::error::Error;
use crate::service::limits::rate_limiter::RateLimiter;
use crate::service::types::{Check, Health};
use crate::store::record::{self, Wrap};
use crate::timestamp::rfc3339;

use super::evidence::Evidence;
use super::unavailable;

/// How long a root may take; a provider bounds itself below this.
pub(in crate::service) const ROOT_DEADLINE: Duration = Duration::from_secs(15);

/// How often a root that has opened nothing is compared with those of other processes.
const COMPARED_EVERY: Duration = Duration::from_secs(60);

/// The roots, the preferred one first.
pub(in crate::service) struct Roots {
    states: Vec<RootState>,
    /// How often one of them came back: what was refused before is worth another try.
    recoveries: AtomicU64,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

pub(in crate::service) struct RootState {
    pub(in crate::service) named: root::Named,
    /// The last answer, if it was an outage, and since when they are so.
    last_error: Mutex<Option<(root::Error, u64)>>,
    /// What it made of the wraps in the store.
    evidence: Mutex<Evidence>,
    /// Limits how often it is compared with those of other processes while it has opened nothing.
    pub(in crate::service) comparisons: RateLimiter,
}

/// A KEK as roots wrapped it.
#[derive(Clone, Debug)]
pub(super) struct Wrapped {
    pub(super) suite: Suite,
    pub(super) wraps: Vec<Wrap>,
}

/// Which roots wrap a new KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum Trust {
    /// Those that open a KEK which is there.
    Proven,
    /// Any that answers: an operator says that the old KEKs are lost.
    Any,
}

/// The roots that may wrap a new KEK of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::service) struct Allowed {
    /// Those that open KEKs which the chain has: one of them must wrap it.
    pub(in crate::service) proven: Vec<Arc<str>>,
    /// Those that have wrapped nothing yet.
    pub(in crate::service) new: Vec<Arc<str>>,
}

impl Roots {
    pub(super) fn new(
        roots: Vec<root::Named>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        for root in &roots {
            metrics.roots.up.with_label_values(&[&root.name]).set(1);
            metrics.roots.wrong_wraps.with_label_values(&[&root.name]).set(0);
            metrics.roots.missing_wraps.with_label_values(&[&root.name]).set(0);
            metrics.roots.info.with_label_values(&[&*root.name, root.root.kind()]).set(1);
            metrics.root_is_configured(&root.name, &root::Error::OUTCOMES);
        }
        let state = |named| RootState {
            named,
            last_error: Mutex::default(),
            evidence: Mutex::default(),
            comparisons: RateLimiter::new(1, COMPARED_EVERY),
        };
        Self {
            states: roots.into_iter().map(state).collect(),
            recoveries: AtomicU64::new(0),
            clock,
            metrics,
        }
    }

    /// How often one of them came back so far.
    pub(super) fn recoveries(&self) -> u64 {
        self.recoveries.load(Ordering::Relaxed)
    }

    /// The roots that made `wraps`, each with its wrap: first those whose last answer was good.
    pub(super) fn candidates<'a>(&'a self, wraps: &'a [Wrap]) -> Vec<(&'a RootState, &'a Wrap)> {
        let with_wrap = |state: &'a RootState| {
            let wrap = wraps.iter().find(|wrap| *wrap.root == *state.named.name)?;
            Some((state, wrap))
        };
        let mut candidates: Vec<_> = self.states.iter().filter_map(with_wrap).collect();
        candidates.sort_by_key(|(state, _)| !state.is_up());
        candidates
    }

    fn find(&self, name: &str) -> Option<&RootState> {
        self.states.iter().find(|state| *state.named.name == *name)
    }

    /// Wraps a KEK by every root that is allowed to and answers; one that is proven is enough.
    pub(in crate::service) async fn wrap(
        &self,
        chain: &ChainName,
        kek: &Kek,
        allowed: &Allowed,
    ) -> Result<Vec<Wrap>, Error> {
        let context = Context { chain, kek_id: kek.id(), suite: kek.suite() };
        let mut wraps = Vec::new();
        for state in &self.states {
            let name = &state.named.name;
            if !allowed.proven.contains(name) && !allowed.new.contains(name) {
                continue;
            }
            let call = state.named.root.wrap(context, kek.key());
            match self.call(state, "wrap", call).await {
                Ok(bytes) => wraps.push(Wrap { root: state.named.name.to_string(), bytes }),
                Err(error) => {
                    tracing::warn!(root = %state.named.name, %chain, %error, "a root did not wrap a new KEK");
                }
            }
        }
        let is_proven = |wrap: &Wrap| allowed.proven.iter().any(|name| **name == *wrap.root);
        if wraps.iter().any(is_proven) {
            Ok(wraps)
        } else {
            Err(unavailable("no root wraps a new KEK"))
        }
    }

    /// Every configured root, the preferred one first.
    pub(in crate::service) fn iter(&self) -> impl Iterator<Item = &RootState> {
        self.states.iter()
    }

    /// All of them may wrap.
    pub(in crate::service) fn all_allowed(&self) -> Allowed {
        let proven = self.states.iter().map(|state| Arc::clone(&state.named.name)).collect();
        Allowed { proven, new: Vec::new() }
    }

    /// Notes that a root opened a stored KEK.
    pub(super) fn note_opened(&self, state: &RootState, chain: &ChainName, id: KekId) {
        let mut evidence = state.evidence.lock();
        evidence.opened(chain, id, self.clock.now());
        self.report_wrong(state, &evidence);
    }

    /// Notes that a root did not open a KEK; an outage says nothing about the wrap. Returns whether
    /// it is news that the wrap is wrong.
    pub(super) fn note_not_opened(
        &self,
        state: &RootState,
        chain: &ChainName,
        id: KekId,
        error: &root::Error,
    ) -> bool {
        let root::Error::Wrong(why) = error else { return false };
        let mut evidence = state.evidence.lock();
        let is_news = evidence.not_opened(chain, id, why, self.clock.now());
        self.report_wrong(state, &evidence);
        is_news
    }

    /// Notes that a KEK with these wraps is stored. Roots that were proven stay so; that the others
    /// open it proves nothing, since this process had them wrap it.
    pub(in crate::service) fn note_wrapped(
        &self,
        chain: &ChainName,
        id: KekId,
        wraps: &[Wrap],
        proven: &[Arc<str>],
    ) {
        for state in wraps.iter().filter_map(|wrap| self.find(&wrap.root)) {
            let is_proven = proven.contains(&state.named.name);
            state.evidence.lock().wrapped(chain, id, is_proven, self.clock.now());
        }
    }

    /// A KEK was destroyed: no wrap of it will ever be needed.
    pub(super) fn forget(&self, chain: &ChainName, id: KekId) {
        for state in &self.states {
            let mut evidence = state.evidence.lock();
            evidence.forget(chain, id);
            self.report_wrong(state, &evidence);
        }
    }

    fn report_wrong(&self, state: &RootState, evidence: &Evidence) {
        let count = i64::try_from(evidence.wrongs()).unwrap_or(i64::MAX);
        self.metrics.roots.wrong_wraps.with_label_values(&[&state.named.name]).set(count);
    }

    /// Whether one of `wraps` is by a `local` root: such a KEK is exposed for ever.
    pub(in crate::service) fn exposes(&self, wraps: &[Wrap]) -> bool {
        self.states.iter().any(|state| {
            state.named.root.kind() == "local"
                && wraps.iter().any(|wrap| *wrap.root == *state.named.name)
        })
    }

    /// Whether a root of this name is configured.
    pub(in crate::service) fn is_configured(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Whether a `local` root is configured.
    pub(in crate::service) fn has_local(&self) -> bool {
        self.states.iter().any(|state| state.named.root.kind() == "local")
    }

    /// Whether the root that made a wrap would make it so today.
    pub(in crate::service) fn is_current(&self, wrap: &Wrap) -> bool {
        let state = self.find(&wrap.root);
        state.is_none_or(|state| state.named.root.is_current(&wrap.bytes))
    }

    /// The names of the roots that miss wraps: what [`missing`](Self::missing) said.
    pub(in crate::service) fn lacking(&self, missing: &[i64]) -> Vec<String> {
        let lacking = self.states.iter().zip(missing).filter(|(_, missing)| **missing > 0);
        lacking.map(|(state, _)| state.named.name.to_string()).collect()
    }

    /// Wraps a KEK by one root.
    pub(in crate::service) async fn wrap_by(
        &self,
        root: &str,
        chain: &ChainName,
        kek: &Kek,
    ) -> Result<Wrap, Error> {
        let state = self.find(root);
        let state = state.ok_or_else(|| unavailable("no root of this name is configured"))?;
        let context = Context { chain, kek_id: kek.id(), suite: kek.suite() };
        let call = state.named.root.wrap(context, kek.key());
        match self.call(state, "wrap", call).await {
            Ok(bytes) => Ok(Wrap { root: root.to_owned(), bytes }),
            Err(error) => Err(unavailable(format!("root {root}: {error}"))),
        }
    }

    /// The preferred root of those that wrapped a KEK, and what its key is called: kind, name, key.
    pub(in crate::service) fn preferred(&self, kek: &record::Kek) -> Option<[String; 3]> {
        let wrapped = |state: &&RootState| kek.wraps.iter().any(|w| *w.root == *state.named.name);
        self.states.iter().find(wrapped).map(RootState::described)
    }

    /// The same of each root that is configured.
    pub(in crate::service) fn all(&self) -> Vec<[String; 3]> {
        self.states.iter().map(RootState::described).collect()
    }

    /// What is wrong with the roots that wrapped a KEK, when none of them is up.
    pub(in crate::service) fn outage(&self, kek: &record::Kek) -> Option<String> {
        let candidates = self.candidates(&kek.wraps);
        if candidates.iter().any(|(state, _)| state.is_up()) {
            return None;
        }
        let details = candidates.iter().map(|(state, _)| {
            let detail = state.check().detail.unwrap_or_default();
            format!("root {}: {detail}", state.named.name)
        });
        let details: Vec<_> = details.collect();
        Some(if details.is_empty() {
            "no root is configured that wrapped the primary KEK".to_owned()
        } else {
            details.join("; ")
        })
    }

    /// Whether a root that wrapped a KEK is away.
    pub(in crate::service) fn is_away(&self, record: &record::Kek) -> bool {
        self.states.iter().any(|state| {
            let last_error = state.last_error.lock();
            matches!(&*last_error, Some((root::Error::Away(_), _)))
                && record.wraps.iter().any(|wrap| *wrap.root == *state.named.name)
        })
    }

    /// Bounds, counts and judges one call of a root.
    pub(in crate::service) async fn call<T>(
        &self,
        state: &RootState,
        operation: &'static str,
        call: impl Future<Output = Result<T, root::Error>>,
    ) -> Result<T, root::Error> {
        let result = self.bounded(state, operation, call).await;
        self.judge(state, result.as_ref().err());
        result
    }

    /// The same for a wrap that a caller brought along. That it does not open says nothing of the
    /// root, whatever the root says of it.
    pub(super) async fn call_for_caller<T>(
        &self,
        state: &RootState,
        operation: &'static str,
        call: impl Future<Output = Result<T, root::Error>>,
    ) -> Result<T, root::Error> {
        let result = self.bounded(state, operation, call).await;
        if result.is_ok() {
            self.judge(state, None);
        }
        result
    }

    async fn bounded<T>(
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
        result
    }

    /// Notes whether a root is up, by its last answer.
    fn judge(&self, state: &RootState, error: Option<&root::Error>) {
        let error = error.filter(|error| is_outage(error));
        let mut last_error = state.last_error.lock();
        let before = last_error.take();
        let is_out = error.is_some();
        if before.is_some() && !is_out {
            self.recoveries.fetch_add(1, Ordering::Relaxed);
        }
        *last_error = error.map(|error| {
            let since = before.map_or_else(|| self.clock.unix_now(), |(_, since)| since);
            (error.clone(), since)
        });
        self.metrics.roots.up.with_label_values(&[&state.named.name]).set(i64::from(!is_out));
    }

    /// How many of `keks` each root has no wrap of, in the order of the roots.
    pub(in crate::service) fn missing<'a>(
        &self,
        keks: impl Iterator<Item = &'a record::Kek> + Clone,
    ) -> Vec<i64> {
        let lacks = |kek: &&record::Kek, name: &str| kek.wraps.iter().all(|wrap| wrap.root != name);
        let count = |state: &RootState| {
            let lacking = keks.clone().filter(|kek| lacks(kek, &state.named.name)).count();
            i64::try_from(lacking).unwrap_or(i64::MAX)
        };
        self.states.iter().map(count).collect()
    }

    /// Sets the metric of the wraps that are missing: what [`missing`](Self::missing) said of each
    /// chain.
    pub(in crate::service) fn report_missing<'a>(
        &self,
        chains: impl Iterator<Item = &'a [i64]> + Clone,
    ) {
        for (index, state) in self.states.iter().enumerate() {
            let missing = chains.clone().filter_map(|chain| chain.get(index)).sum();
            let gauge = &self.metrics.roots.missing_wraps;
            gauge.with_label_values(&[&state.named.name]).set(missing);
        }
    }

    pub(in crate::service) fn is_any_up(&self) -> bool {
        self.states.iter().any(RootState::is_up)
    }

    pub(in crate::service) fn checks(&self) -> impl Iterator<Item = Check> {
        self.states.iter().map(RootState::check)
    }
}

impl RootState {
    pub(in crate::service) fn is_up(&self) -> bool {
        self.last_error.lock().is_none()
    }

    /// When it last opened or wrapped a stored KEK of `chain`.
    pub(in crate::service) fn opened_at(&self, chain: &ChainName) -> Option<Monotonic> {
        self.evidence.lock().opened_at(chain)
    }

    /// Whether it opened or wrapped any stored KEK.
    pub(in crate::service) fn opened_any(&self) -> bool {
        self.evidence.lock().opened_any()
    }

    /// Whether it opened nothing of the store, and not because it wrapped nothing: its key is
    /// another one.
    pub(in crate::service) fn is_another(&self) -> bool {
        let evidence = self.evidence.lock();
        !evidence.opened_any() && evidence.wrongs() > 0
    }

    /// Whether it was found, less than `max_age` ago, to be the root that other processes have.
    pub(in crate::service) fn is_agreed(&self, now: Monotonic, max_age: Duration) -> bool {
        self.evidence.lock().agreed_at().is_some_and(|at| now.since(at) < max_age)
    }

    /// It is the root that other processes have under its name.
    pub(in crate::service) fn agree(&self, now: Monotonic) {
        self.evidence.lock().agree(now);
    }

    /// Whether this process had it wrap the KEK without being proven.
    pub(in crate::service) fn is_own(&self, chain: &ChainName, id: KekId) -> bool {
        self.evidence.lock().is_own(chain, id)
    }

    /// Whether its wrap of the KEK was wrong a moment ago.
    pub(in crate::service) fn is_wrong(
        &self,
        chain: &ChainName,
        id: KekId,
        now: Monotonic,
    ) -> bool {
        self.evidence.lock().is_wrong(chain, id, now)
    }

    /// Whether a wrap that names it did not open, and why.
    pub(in crate::service) fn wrong(&self) -> Option<String> {
        self.evidence.lock().describe()
    }

    fn described(&self) -> [String; 3] {
        let root::Named { name, root } = &self.named;
        [root.kind().to_owned(), name.to_string(), root.key()]
    }

    fn check(&self) -> Check {
        let last_error = self.last_error.lock();
        let outage =
            last_error.as_ref().map(|(error, since)| format!("{error}, since {}", rfc3339(*since)));
        let faults: Vec<_> = outage.into_iter().chain(self.wrong()).collect();
        let is_local = self.named.root.kind() == "local";
        let development =
            is_local.then(|| "a key file on this machine: for development".to_owned());
        Check {
            name: format!("root:{}", self.named.name),
            health: if faults.is_empty() { Health::Ok } else { Health::Degraded },
            detail: if faults.is_empty() { development } else { Some(faults.join("; ")) },
        }
    }
}

/// A wrap that is wrong is no outage: the root answered.
fn is_outage(error: &root::Error) -> bool {
    !matches!(error, root::Error::Wrong(_))
}
