//! The configured roots: which of them wrap and unwrap a KEK. Every root call has a deadline, is
//! counted, and updates the root's state. This file knows no KEK in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::Instrument as _;
use tracing::field::Empty;

use crate::clock::Clock;
use crate::id::{ChainName, KekId, Suite};
use crate::keychain::kek::Kek;
use crate::metrics::Metrics;
use crate::root::{self, Context};
use crate::service::error::Error;
use crate::service::types::Check;
use crate::store::record::{self, Wrap};

use super::evidence::Evidence;
use super::root_state::RootState;
use super::unavailable;

/// The deadline of a root call; each provider has a shorter one.
pub(in crate::service) const ROOT_DEADLINE: Duration = Duration::from_secs(15);

/// The roots, the preferred one first.
pub(in crate::service) struct Roots {
    states: Vec<RootState>,
    /// How many times a root became available again: then failed calls are worth another attempt.
    recoveries: AtomicU64,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
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
    /// Those that unwrap a stored KEK.
    Proven,
    /// Any root that answers: an operator declared the old KEKs lost.
    Any,
}

/// The roots that may wrap a new KEK of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::service) struct Allowed {
    /// Those that unwrap KEKs of the chain: one of them must wrap the new one.
    pub(in crate::service) proven: Vec<Arc<str>>,
    /// Those that have wrapped nothing yet.
    pub(in crate::service) new: Vec<Arc<str>>,
    /// Whether the chain has KEKs, in the store or in archives.
    pub(in crate::service) has_keks: bool,
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
        Self {
            states: roots.into_iter().map(RootState::new).collect(),
            recoveries: AtomicU64::new(0),
            clock,
            metrics,
        }
    }

    /// How many times a root became available again.
    pub(super) fn recoveries(&self) -> u64 {
        self.recoveries.load(Ordering::Relaxed)
    }

    /// The roots that made `wraps`, each with its wrap; those whose last call succeeded come first.
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

    /// Wraps a KEK by every allowed root that answers. One of them must be proven.
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
            match self.call(state, "wrap", chain, call).await {
                Ok(bytes) => wraps.push(Wrap { root: state.named.name.to_string(), bytes }),
                Err(error) => {
                    tracing::warn!(root = %state.named.name, %chain, %error, "a root did not wrap \
                        a new KEK");
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

    /// Allows all roots to wrap.
    pub(in crate::service) fn all_allowed(&self) -> Allowed {
        let proven = self.states.iter().map(|state| Arc::clone(&state.named.name)).collect();
        Allowed { proven, ..Allowed::default() }
    }

    /// Notes that a root unwrapped a stored KEK.
    pub(super) fn note_opened(&self, state: &RootState, chain: &ChainName, id: KekId) {
        let mut evidence = state.evidence.lock();
        evidence.opened(chain, id, self.clock.now());
        self.report_wrong(state, &evidence);
    }

    /// Notes that a root did not unwrap a KEK. An outage is no evidence about the wrap. Returns
    /// whether it is new that the wrap is wrong.
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

    /// Notes that a KEK with these wraps is stored. The roots in `proven` stay so. The others
    /// wrapped it in this process, so unwrapping it proves nothing.
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

    /// Forgets a KEK that was destroyed.
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

    /// Whether one of `wraps` is by a `local` root: such a KEK is exposed permanently.
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

    /// Whether the root that made a wrap would make one of the same kind now.
    pub(in crate::service) fn is_current(&self, wrap: &Wrap) -> bool {
        let state = self.find(&wrap.root);
        state.is_none_or(|state| state.named.root.is_current(&wrap.bytes))
    }

    /// The names of the roots that lack wraps, by the result of [`missing`](Self::missing).
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
        match self.call(state, "wrap", chain, call).await {
            Ok(bytes) => Ok(Wrap { root: root.to_owned(), bytes }),
            Err(error) => Err(unavailable(format!("root {root}: {error}"))),
        }
    }

    /// The preferred root of those that wrapped a KEK: its kind, its name, and the name of its key.
    pub(in crate::service) fn preferred(&self, kek: &record::Kek) -> Option<[String; 3]> {
        let wrapped = |state: &&RootState| kek.wraps.iter().any(|w| *w.root == *state.named.name);
        self.states.iter().find(wrapped).map(RootState::described)
    }

    /// The same for each configured root.
    pub(in crate::service) fn all(&self) -> Vec<[String; 3]> {
        self.states.iter().map(RootState::described).collect()
    }

    /// Why no root that wrapped a KEK is available; `None` if one is.
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

    /// Whether a KEK under these roots may be given up by `rotate --force`: a root answers that can
    /// wrap the next one, and none of those that wrapped this one may answer later.
    pub(in crate::service) fn may_be_lost(&self, names: &[&str]) -> bool {
        let may_answer =
            self.states.iter().any(|it| it.is_away() && names.contains(&&*it.named.name));
        self.is_any_up() && !may_answer
    }

    /// The roots among `names` that do not answer, if none of them does.
    pub(in crate::service) fn unanswered(&self, names: &[String]) -> Vec<String> {
        let named = |it: &&RootState| names.iter().any(|name| **name == *it.named.name);
        let named: Vec<_> = self.states.iter().filter(named).collect();
        if named.iter().any(|state| state.is_up()) {
            return Vec::new();
        }
        named.iter().map(|state| state.named.name.to_string()).collect()
    }

    /// Whether a root that wrapped a KEK is unavailable.
    pub(in crate::service) fn is_away(&self, record: &record::Kek) -> bool {
        self.states.iter().any(|state| {
            state.is_away() && record.wraps.iter().any(|wrap| *wrap.root == *state.named.name)
        })
    }

    /// Runs one root call for a chain with the deadline, counts it, and updates the root's health.
    pub(in crate::service) async fn call<T>(
        &self,
        state: &RootState,
        operation: &'static str,
        chain: &ChainName,
        call: impl Future<Output = Result<T, root::Error>>,
    ) -> Result<T, root::Error> {
        let result = self.bounded(state, operation, chain, call).await;
        self.judge(state, result.as_ref().err());
        result
    }

    /// As [`call`](Self::call), for a wrap in a caller's envelope. A failure does not change the
    /// root's health, since the wrap may be forged.
    pub(super) async fn call_for_caller<T>(
        &self,
        state: &RootState,
        operation: &'static str,
        chain: &ChainName,
        call: impl Future<Output = Result<T, root::Error>>,
    ) -> Result<T, root::Error> {
        let result = self.bounded(state, operation, chain, call).await;
        if result.is_ok() {
            self.judge(state, None);
        }
        result
    }

    async fn bounded<T>(
        &self,
        state: &RootState,
        operation: &'static str,
        chain: &ChainName,
        call: impl Future<Output = Result<T, root::Error>>,
    ) -> Result<T, root::Error> {
        let start = self.clock.now();
        let span = tracing::info_span!(
            "root call",
            otel.name = %format_args!("root {operation}"),
            otel.kind = "client",
            otel.status_code = Empty,
            kms_proxy.root = %state.named.name,
            kms_proxy.root.kind = state.named.root.kind(),
            kms_proxy.chain = %chain,
            error.type = Empty,
        );
        let result = tokio::time::timeout(ROOT_DEADLINE, call)
            .instrument(span.clone())
            .await
            .unwrap_or_else(|_| Err(root::Error::Away("no answer in 15 s".to_owned())));
        let outcome = result.as_ref().err().map_or("ok", root::Error::outcome);
        if result.is_err() {
            span.record("error.type", outcome);
            span.record("otel.status_code", "ERROR");
        }
        let took = self.clock.now().since(start);
        self.metrics.root_called(&state.named.name, chain, operation, outcome, took);
        // A root that finds a wrap wrong has answered.
        state.stats.note(took, matches!(&result, Ok(_) | Err(root::Error::Wrong(_))));
        result
    }

    /// Updates the health of a root after a call.
    fn judge(&self, state: &RootState, error: Option<&root::Error>) {
        if state.judge(error, || self.clock.unix_now(), &self.metrics) {
            self.recoveries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many of `keks` each root has not wrapped, in the order of the roots.
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

    /// Sets the metric of missing wraps, by the result of [`missing`](Self::missing) for each
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
