//! One root: its health by the last call, and the evidence whether it has the key that wrapped the
//! stored KEKs. It makes no call.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};
use crate::metrics::Metrics;
use crate::root;
use crate::service::call_stats::CallStats;
use crate::service::limits::rate_limiter::RateLimiter;
use crate::service::types::{Check, Health};
use crate::status;
use crate::timestamp::rfc3339;

use super::evidence::Evidence;

/// How often a root without evidence is compared with those of other processes.
const COMPARED_EVERY: Duration = Duration::from_secs(60);

/// A configured root, as this process knows it.
pub(in crate::service) struct RootState {
    pub(in crate::service) named: root::Named,
    /// The outage that the last call showed, and since when it lasts, in seconds of Unix time.
    last_error: Mutex<Option<(root::Error, u64)>>,
    pub(super) stats: CallStats,
    /// Whether it has the key that wrapped the stored KEKs.
    pub(super) evidence: Mutex<Evidence>,
    /// Limits how often it is compared with those of other processes while there is no evidence.
    pub(in crate::service) comparisons: RateLimiter,
}

impl RootState {
    pub(super) fn new(named: root::Named) -> Self {
        Self {
            named,
            last_error: Mutex::default(),
            stats: CallStats::default(),
            evidence: Mutex::default(),
            comparisons: RateLimiter::new(1, COMPARED_EVERY),
        }
    }

    /// Updates the health and its metric after a call. A wrong wrap is no outage, since the root
    /// responded. Returns whether the root is available again after an outage.
    pub(super) fn judge(
        &self,
        error: Option<&root::Error>,
        unix_now: impl Fn() -> u64,
        metrics: &Metrics,
    ) -> bool {
        let error = error.filter(|error| !matches!(error, root::Error::Wrong(_)));
        let mut last_error = self.last_error.lock();
        let before = last_error.take();
        let up = metrics.roots.up.with_label_values(&[&self.named.name]);
        up.set(i64::from(error.is_none()));
        match (error, before) {
            (None, None) => false,
            (None, Some((error, since))) => {
                self.stats.outage_ended(error.to_string(), since, unix_now());
                true
            }
            (Some(error), before) => {
                let since = before.map_or_else(unix_now, |(_, since)| since);
                *last_error = Some((error.clone(), since));
                false
            }
        }
    }

    pub(in crate::service) fn is_up(&self) -> bool {
        self.last_error.lock().is_none()
    }

    /// Whether the last call did not reach it.
    pub(super) fn is_away(&self) -> bool {
        matches!(&*self.last_error.lock(), Some((root::Error::Away(_), _)))
    }

    /// When it last unwrapped or wrapped a stored KEK of `chain`.
    pub(in crate::service) fn opened_at(&self, chain: &ChainName) -> Option<Monotonic> {
        self.evidence.lock().opened_at(chain)
    }

    /// Whether it unwrapped or wrapped any stored KEK.
    pub(in crate::service) fn opened_any(&self) -> bool {
        self.evidence.lock().opened_any()
    }

    /// Whether it unwrapped none of the wraps in its name: then it has another key.
    pub(in crate::service) fn is_another(&self) -> bool {
        let evidence = self.evidence.lock();
        !evidence.opened_any() && evidence.wrongs() > 0
    }

    /// Whether it unwrapped a KEK that it did not wrap in this process. Then it has the key that is
    /// meant.
    pub(super) fn opened_any_foreign(&self) -> bool {
        self.evidence.lock().opened_any_foreign()
    }

    /// Notes that it unwrapped an inline KEK.
    pub(super) fn opened_inline(&self, chain: &ChainName, id: KekId) {
        self.evidence.lock().opened_inline(chain, id);
    }

    /// Whether it was found, less than `max_age` ago, to have the same key as in other processes.
    pub(in crate::service) fn is_agreed(&self, now: Monotonic, max_age: Duration) -> bool {
        self.evidence.lock().agreed_at().is_some_and(|at| now.since(at) < max_age)
    }

    /// Notes that it has the same key as in other processes.
    pub(in crate::service) fn agree(&self, now: Monotonic) {
        self.evidence.lock().agree(now);
    }

    /// Whether it wrapped the KEK in this process before it was proven.
    pub(in crate::service) fn is_own(&self, chain: &ChainName, id: KekId) -> bool {
        self.evidence.lock().is_own(chain, id)
    }

    /// Whether its wrap of the KEK was wrong when it was last tried, a moment ago.
    pub(in crate::service) fn is_wrong(
        &self,
        chain: &ChainName,
        id: KekId,
        now: Monotonic,
    ) -> bool {
        self.evidence.lock().is_wrong(chain, id, now)
    }

    /// Why it does not unwrap wraps in its name, if there are such.
    pub(in crate::service) fn wrong(&self) -> Option<String> {
        self.evidence.lock().describe()
    }

    /// Its kind, its name, and the name of its key.
    pub(super) fn described(&self) -> [String; 3] {
        let root::Named { name, root } = &self.named;
        [root.kind().to_owned(), name.to_string(), root.key()]
    }

    /// What its status shows.
    pub(in crate::service) fn status(&self, missing_wraps: u64, started_at: u64) -> status::Root {
        let outage = self.last_error.lock().as_ref().map(|(error, at)| (error.to_string(), *at));
        let state = match &outage {
            Some(_) => "away",
            None if self.wrong().is_some() => "wrong_key",
            None => "ok",
        };
        let (calls, failed_calls) = self.stats.counts();
        let (last_error, since) = self.stats.outage(outage, started_at);
        status::Root {
            name: self.named.name.to_string(),
            kind: self.named.root.kind().to_owned(),
            state: state.to_owned(),
            since,
            latency_us: self.stats.latency_us(),
            calls,
            failed_calls,
            missing_wraps,
            token_expires_in_seconds: self.named.root.token_expires_in().map(|it| it.as_secs()),
            last_error,
        }
    }

    pub(super) fn check(&self) -> Check {
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
