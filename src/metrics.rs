//! The metrics of the service, registered in a registry that is handed in.
//!
//! Names and labels are a contract. Labels are bounded: a caller can not invent one, since a chain
//! that does not exist counts as `chain=""`. Handles for the hot path are resolved once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use prometheus::Registry;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts,
};

use crate::id::ChainName;

mod process;
mod traffic;

pub use traffic::{Counted, Traffic};

/// What a caller can ask for: the label `operation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Plaintext to envelope.
    Encrypt,
    /// Envelope to plaintext.
    Decrypt,
    /// Envelope to the primary KEK.
    Rewrap,
    /// A fresh random key and its envelope.
    Datakey,
    /// A new primary KEK.
    Rotate,
    /// Chains and KEKs changed.
    Manage,
    /// Chains and KEKs looked at.
    Read,
}

impl Operation {
    /// Every operation, in the order of their discriminants.
    pub const ALL: [Self; 7] = [
        Self::Encrypt,
        Self::Decrypt,
        Self::Rewrap,
        Self::Datakey,
        Self::Rotate,
        Self::Manage,
        Self::Read,
    ];

    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Rewrap => "rewrap",
            Self::Datakey => "datakey",
            Self::Rotate => "rotate",
            Self::Manage => "manage",
            Self::Read => "read",
        }
    }

    /// Whether a success spares a call of the root: what works on data.
    #[must_use]
    pub const fn spares_root_call(self) -> bool {
        matches!(self, Self::Encrypt | Self::Decrypt | Self::Rewrap | Self::Datakey)
    }
}

/// The outcomes of operations besides `ok`: the codes of errors.
pub const FAILURES: [&str; 17] = [
    "invalid_request",
    "invalid_ciphertext",
    "unknown_kek",
    "unauthenticated",
    "forbidden",
    "not_found",
    "unknown_chain",
    "method_not_allowed",
    "conflict",
    "kek_disabled",
    "payload_too_large",
    "unsupported_media_type",
    "overloaded",
    "internal",
    "kek_exhausted",
    "root_unavailable",
    "store_unavailable",
];
/// Failures that an operator is alerted of, by the operations that end with them. Their counters
/// exist from the start: `increase()` misses the first event of a counter that appears with it.
const FROM_THE_START: [(&[Operation], &[&str]); 3] = [
    (
        &[Operation::Encrypt, Operation::Datakey, Operation::Rewrap],
        &["kek_exhausted", "root_unavailable", "store_unavailable", "overloaded", "internal"],
    ),
    (&[Operation::Decrypt], &["root_unavailable", "store_unavailable", "overloaded", "internal"]),
    (
        &[Operation::Decrypt, Operation::Rewrap],
        &["invalid_ciphertext", "unknown_kek", "kek_disabled"],
    ),
];
/// The same for requests of no chain.
const WITHOUT_CHAIN: [&str; 4] = ["invalid_request", "forbidden", "unknown_chain", "overloaded"];
const ROTATION_REASONS: [&str; 4] = ["uses", "age", "manual", "root"];
const RESERVATION_OUTCOMES: [&str; 4] = ["ok", "conflict", "lost", "error"];
const ROOT_OPERATIONS: [&str; 3] = ["wrap", "unwrap", "probe"];
const STORE_OPERATIONS: [&str; 4] = ["get", "list", "count", "commit"];

/// All metrics. Cheap to share behind an `Arc`.
pub struct Metrics {
    operations: IntCounterVec,
    durations: [Histogram; Operation::ALL.len()],
    root_calls: IntCounterVec,
    root_call_duration: HistogramVec,
    avoided: IntCounter,
    /// Calls of the root that were made and that no operation has paid for yet.
    debt: AtomicU64,
    kek_uses: IntGaugeVec,
    kek_rotate_after_uses: IntGaugeVec,
    kek_max_uses: IntGaugeVec,
    kek_age: GaugeVec,
    rotations: IntCounterVec,
    rotation_failures: IntCounterVec,
    reservations: IntCounterVec,
    /// Primaries and standbys that lack a wrap of the root.
    pub keks_missing_wraps: IntGaugeVec,
    /// DEK cache hits.
    pub dek_cache_hits: IntCounter,
    /// DEK cache misses.
    pub dek_cache_misses: IntCounter,
    dek_cache_evictions: IntCounter,
    dek_cache_entries: IntGauge,
    /// 1 when the root's last answer was a good one.
    pub root_up: IntGaugeVec,
    /// Always 1; the labels tell a root's kind, so that `local` outside development can alert.
    pub root_info: IntGaugeVec,
    /// KEKs whose wrap by the root does not open with its key.
    pub root_wrong_wraps: IntGaugeVec,
    unknown_keks: IntGaugeVec,
    unopenable_keks: IntGaugeVec,
    kek_standby: IntGaugeVec,
    store_rollbacks: IntCounterVec,
    /// 1 when the store's last answer was a good one.
    pub store_up: IntGauge,
    store_call_duration: HistogramVec,
    /// Requests, connections and clients.
    pub traffic: Traffic,
    auth_failures: IntCounterVec,
    /// 1 while the clients and permissions in force are those of the configuration.
    pub rules_current: IntGauge,
    /// Without labels; a vector, since there is none without TLS.
    certificate_expiry: IntGaugeVec,
}

impl Metrics {
    /// Makes the metrics and registers them in `registry`.
    ///
    /// # Errors
    /// When `registry` has metrics of these names already.
    pub fn new(registry: &Registry) -> Result<Arc<Self>, prometheus::Error> {
        let register = Register(registry);
        let duration = register.histogram_vec(
            "kms_proxy_operation_duration_seconds",
            "Time that operations took, of those that came to the key service.",
            &["operation"],
            // 50 us doubling to 1.6 s, then the request timeout.
            &[5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 6.4e-3, 25.6e-3, 0.1, 0.4, 1.6, 10.0],
        )?;
        let build_info = register.int_gauge_vec(
            "kms_proxy_build_info",
            "Always 1; the version is the label.",
            &["version"],
        )?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(process::Process::new()?))?;
        let operations = register.counter_vec(
            "kms_proxy_operations_total",
            "Operations by outcome: ok or the error's code. Batch items count singly.",
            &["operation", "chain", "outcome"],
        )?;
        for operation in Operation::ALL {
            for code in WITHOUT_CHAIN {
                _ = operations.with_label_values(&[operation.as_str(), "", code]);
            }
        }
        let store_call_duration = register.histogram_vec(
            "kms_proxy_store_call_duration_seconds",
            "Time that calls of the store took.",
            &["operation"],
            &[1e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0],
        )?;
        for operation in STORE_OPERATIONS {
            _ = store_call_duration.with_label_values(&[operation]);
        }
        let rules_current = register.int_gauge(
            "kms_proxy_rules_current",
            "Whether the clients and permissions in force are those of the configuration.",
        )?;
        rules_current.set(1);
        Ok(Arc::new(Self {
            operations,
            store_call_duration,
            traffic: Traffic::new(&register)?,
            kek_standby: register.int_gauge_vec(
                "kms_proxy_kek_standby",
                "Whether the KEK that takes over from the primary is stored already.",
                &["chain"],
            )?,
            durations: Operation::ALL.map(|operation| duration.with_label_values(&[operation.as_str()])),
            root_calls: register.counter_vec(
                "kms_proxy_root_calls_total",
                "Calls of the root keys.",
                &["root", "operation", "outcome"],
            )?,
            root_call_duration: register.histogram_vec(
                "kms_proxy_root_call_duration_seconds",
                "Time that calls of the root keys took.",
                &["root", "operation"],
                &[1e-4, 1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0],
            )?,
            avoided: register.counter(
                "kms_proxy_root_calls_avoided_total",
                "Operations that would have called a root that is used directly, less the calls made.",
            )?,
            debt: AtomicU64::new(0),
            kek_uses: register.int_gauge_vec(
                "kms_proxy_kek_uses",
                "Uses of the primary KEK that are reserved in the store.",
                &["chain"],
            )?,
            kek_rotate_after_uses: register.int_gauge_vec(
                "kms_proxy_kek_rotate_after_uses",
                "Uses that start a rotation.",
                &["chain"],
            )?,
            kek_max_uses: register.int_gauge_vec(
                "kms_proxy_kek_max_uses",
                "Uses that a KEK never passes.",
                &["chain"],
            )?,
            kek_age: register.gauge_vec(
                "kms_proxy_kek_age_seconds",
                "Age of the primary KEK since its promotion.",
                &["chain"],
            )?,
            rotations: register.counter_vec(
                "kms_proxy_rotations_total",
                "Rotations made by this process.",
                &["chain", "reason"],
            )?,
            rotation_failures: register.counter_vec(
                "kms_proxy_rotation_failures_total",
                "Steps of a rotation that failed; they are tried again.",
                &["chain"],
            )?,
            reservations: register.counter_vec(
                "kms_proxy_reservations_total",
                "Blocks of uses that were asked of the store.",
                &["chain", "outcome"],
            )?,
            keks_missing_wraps: register.int_gauge_vec(
                "kms_proxy_keks_missing_wraps",
                "Primary and standby KEKs that lack a wrap of a configured root.",
                &["root"],
            )?,
            dek_cache_hits: register.counter("kms_proxy_dek_cache_hits_total", "DEKs found in the cache.")?,
            dek_cache_misses: register
                .counter("kms_proxy_dek_cache_misses_total", "DEKs not found in the cache.")?,
            dek_cache_evictions: register.counter(
                "kms_proxy_dek_cache_evictions_total",
                "DEKs that left the cache: for room, for age, or with their KEK.",
            )?,
            dek_cache_entries: register.int_gauge("kms_proxy_dek_cache_entries", "DEKs in the cache.")?,
            root_up: register.int_gauge_vec(
                "kms_proxy_root_up",
                "Whether the root's last answer was a good one.",
                &["root"],
            )?,
            root_info: register.int_gauge_vec(
                "kms_proxy_root_info",
                "Always 1; the kind of the root is a label. A local root is for development.",
                &["root", "kind"],
            )?,
            root_wrong_wraps: register.int_gauge_vec(
                "kms_proxy_root_wrong_wraps",
                "KEKs that name the root and do not open with its key, of those that were tried.",
                &["root"],
            )?,
            unknown_keks: register.int_gauge_vec(
                "kms_proxy_unknown_keks",
                "Distinct KEK ids that callers asked for and that the chain does not have; at most 1,000.",
                &["chain"],
            )?,
            unopenable_keks: register.int_gauge_vec(
                "kms_proxy_unopenable_keks",
                "Stored KEKs that were needed and that no configured root opens; at most 1,000.",
                &["chain"],
            )?,
            store_rollbacks: register.counter_vec(
                "kms_proxy_store_rollbacks_total",
                "Times that the store went back to an earlier state, as this process saw it.",
                &["chain"],
            )?,
            store_up: register
                .int_gauge("kms_proxy_store_up", "Whether the store's last answer was a good one.")?,
            auth_failures: register.counter_vec(
                "kms_proxy_auth_failures_total",
                "Requests whose caller was not recognised, by reason.",
                &["reason"],
            )?,
            rules_current,
            certificate_expiry: register.int_gauge_vec(
                "kms_proxy_tls_certificate_expiry_seconds",
                "Time until the certificate of the listener expires; negative when it has.",
                &[],
            )?,
        }))
    }

    /// Notes in how many seconds the listener's certificate expires.
    pub fn certificate_expires_in(&self, seconds: i64) {
        self.certificate_expiry.with_label_values(&[] as &[&str]).set(seconds);
    }

    /// The handles of one chain.
    #[must_use]
    pub fn chain(&self, chain: &ChainName) -> ChainMetrics {
        let chain = chain.as_str();
        for (operations, codes) in FROM_THE_START {
            for (operation, code) in operations
                .iter()
                .flat_map(|operation| codes.iter().map(|code| (operation.as_str(), *code)))
            {
                _ = self.operations.with_label_values(&[operation, chain, code]);
            }
        }
        for reason in ROTATION_REASONS {
            _ = self.rotations.with_label_values(&[chain, reason]);
        }
        for outcome in RESERVATION_OUTCOMES {
            _ = self.reservations.with_label_values(&[chain, outcome]);
        }
        ChainMetrics {
            ok: Operation::ALL.map(|operation| {
                self.operations.with_label_values(&[operation.as_str(), chain, "ok"])
            }),
            uses: self.kek_uses.with_label_values(&[chain]),
            rotate_after_uses: self.kek_rotate_after_uses.with_label_values(&[chain]),
            max_uses: self.kek_max_uses.with_label_values(&[chain]),
            age: self.kek_age.with_label_values(&[chain]),
            rotation_failures: self.rotation_failures.with_label_values(&[chain]),
            unknown_keks: self.unknown_keks.with_label_values(&[chain]),
            unopenable_keks: self.unopenable_keks.with_label_values(&[chain]),
            standby: self.kek_standby.with_label_values(&[chain]),
            store_rollbacks: self.store_rollbacks.with_label_values(&[chain]),
        }
    }

    /// Removes what is labelled with a chain that was deleted.
    pub fn forget(&self, chain: &ChainName) {
        let chain = [chain.as_str()];
        // What was never set is not there to be removed.
        for gauges in [
            &self.kek_uses,
            &self.kek_rotate_after_uses,
            &self.kek_max_uses,
            &self.unknown_keks,
            &self.unopenable_keks,
            &self.kek_standby,
        ] {
            _ = gauges.remove_label_values(&chain);
        }
        _ = self.kek_age.remove_label_values(&chain);
        for counters in [&self.rotation_failures, &self.store_rollbacks] {
            _ = counters.remove_label_values(&chain);
        }
        let [chain] = chain;
        for reason in ROTATION_REASONS {
            _ = self.rotations.remove_label_values(&[chain, reason]);
        }
        for outcome in RESERVATION_OUTCOMES {
            _ = self.reservations.remove_label_values(&[chain, outcome]);
        }
        for operation in Operation::ALL {
            for outcome in FAILURES.into_iter().chain(["ok"]) {
                _ = self.operations.remove_label_values(&[operation.as_str(), chain, outcome]);
            }
        }
    }

    /// Counts a success on `chain`, and what it spared or paid of the root's calls.
    #[inline]
    pub fn succeeded(&self, chain: &ChainMetrics, operation: Operation) {
        if let Some(counter) = chain.ok.get(operation as usize) {
            counter.inc();
        }
        if !operation.spares_root_call() {
            return;
        }
        let owed = self.debt.load(Ordering::Relaxed) > 0
            && self
                .debt
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |debt| debt.checked_sub(1))
                .is_ok();
        if !owed {
            self.avoided.inc();
        }
    }

    /// Counts a failure. `chain` is empty unless the chain exists.
    pub fn failed(&self, operation: Operation, chain: &str, code: &'static str) {
        self.operations.with_label_values(&[operation.as_str(), chain, code]).inc();
    }

    /// Notes how long an operation took.
    #[inline]
    pub fn took(&self, operation: Operation, time: Duration) {
        if let Some(histogram) = self.durations.get(operation as usize) {
            histogram.observe(time.as_secs_f64());
        }
    }

    /// Counts a call of a root: `operation` is `wrap`, `unwrap` or `probe`; `outcome` is `ok` or
    /// the error's.
    pub fn root_called(&self, root: &str, operation: &str, outcome: &str, time: Duration) {
        self.root_calls.with_label_values(&[root, operation, outcome]).inc();
        self.root_call_duration.with_label_values(&[root, operation]).observe(time.as_secs_f64());
        self.debt.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes the counters of a root, whose calls end with `ok` or one of `failures`.
    pub fn root_is_configured(&self, root: &str, failures: &[&str]) {
        for operation in ROOT_OPERATIONS {
            for outcome in failures.iter().chain(&["ok"]) {
                _ = self.root_calls.with_label_values(&[root, operation, outcome]);
            }
            _ = self.root_call_duration.with_label_values(&[root, operation]);
        }
    }

    /// Notes how long a call of the store took: `operation` is `get`, `list`, `count` or `commit`.
    pub fn store_called(&self, operation: &str, time: Duration) {
        self.store_call_duration.with_label_values(&[operation]).observe(time.as_secs_f64());
    }

    /// Makes the counters of callers that are not recognised, by reason.
    pub fn auth_fails_with(&self, reasons: impl Iterator<Item = &'static str>) {
        for reason in reasons {
            _ = self.auth_failures.with_label_values(&[reason]);
        }
    }

    /// Notes how many DEKs the cache holds, and how many left it so far.
    pub fn dek_cache_holds(&self, entries: usize, evicted: u64) {
        self.dek_cache_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        let counted = self.dek_cache_evictions.get();
        self.dek_cache_evictions.inc_by(evicted.saturating_sub(counted));
    }

    /// Counts a rotation: `reason` is `uses`, `age`, `manual` or `root`.
    pub fn rotated(&self, chain: &ChainName, reason: &str) {
        self.rotations.with_label_values(&[chain.as_str(), reason]).inc();
    }

    /// Counts a request whose caller was not recognised.
    pub fn auth_failed(&self, reason: &'static str) {
        self.auth_failures.with_label_values(&[reason]).inc();
    }

    /// Counts a reservation: `outcome` is `ok`, `conflict`, `lost` or `error`.
    pub fn reserved(&self, chain: &ChainName, outcome: &str) {
        self.reservations.with_label_values(&[chain.as_str(), outcome]).inc();
    }
}

/// The handles of one chain, resolved once.
pub struct ChainMetrics {
    ok: [IntCounter; Operation::ALL.len()],
    /// Uses of the primary that are reserved in the store.
    pub uses: IntGauge,
    /// The limit that starts a rotation.
    pub rotate_after_uses: IntGauge,
    /// The limit that is never passed.
    pub max_uses: IntGauge,
    /// Seconds since the primary's promotion.
    pub age: Gauge,
    /// Steps of a rotation that failed.
    pub rotation_failures: IntCounter,
    /// KEK ids that callers asked for and that the chain does not have.
    pub unknown_keks: IntGauge,
    /// Stored KEKs that no configured root opens.
    pub unopenable_keks: IntGauge,
    /// Whether there is a standby.
    pub standby: IntGauge,
    /// Times that the store went back to an earlier state.
    pub store_rollbacks: IntCounter,
}

/// Makes a metric and registers it.
struct Register<'a>(&'a Registry);

impl Register<'_> {
    fn own<M: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: Result<M, prometheus::Error>,
    ) -> Result<M, prometheus::Error> {
        let metric = metric?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.own(IntCounter::new(name, help))
    }

    fn counter_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.own(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.own(IntGauge::new(name, help))
    }

    fn int_gauge_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.own(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn gauge_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<GaugeVec, prometheus::Error> {
        self.own(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, prometheus::Error> {
        self.own(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
            labels,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_indexed_in_order() {
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index);
        }
    }

    #[test]
    fn avoided_calls_are_operations_less_calls_and_never_fall() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let chain = metrics.chain(&ChainName::new("orders").unwrap());
        let avoided = || metrics.avoided.get();
        metrics.root_called("main", "wrap", "ok", Duration::ZERO);
        metrics.root_called("main", "unwrap", "away", Duration::ZERO);
        for (operations, expected) in [(1, 0), (2, 0), (3, 1), (4, 2)] {
            metrics.succeeded(&chain, Operation::Encrypt);
            assert_eq!(avoided(), expected, "after {operations}");
        }
        metrics.root_called("main", "unwrap", "ok", Duration::ZERO);
        assert_eq!(avoided(), 2);
        metrics.succeeded(&chain, Operation::Rotate);
        metrics.succeeded(&chain, Operation::Decrypt);
        assert_eq!(avoided(), 2);
        metrics.succeeded(&chain, Operation::Decrypt);
        assert_eq!(avoided(), 3);
    }

    #[test]
    fn every_counter_of_a_chain_is_there_with_0_and_goes_with_the_chain() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.root_is_configured("main", &["away"]);
        let lines = |of: &str| {
            let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
            text.lines().filter(|line| line.contains(of)).map(str::to_owned).collect::<Vec<_>>()
        };
        let orders = ChainName::new("orders").unwrap();
        let chain = metrics.chain(&orders);
        let before = lines("chain=\"orders\"");
        assert!(before.iter().all(|line| line.ends_with(" 0")), "{before:?}");
        metrics.rotated(&orders, "age");
        metrics.reserved(&orders, "lost");
        metrics.succeeded(&chain, Operation::Datakey);
        for (operation, codes) in [
            (Operation::Encrypt, &["kek_exhausted", "internal"][..]),
            (Operation::Decrypt, &["invalid_ciphertext", "unknown_kek", "store_unavailable"]),
            (Operation::Rewrap, &["kek_disabled", "root_unavailable", "overloaded"]),
        ] {
            codes.iter().for_each(|code| metrics.failed(operation, "orders", code));
        }
        assert_eq!(lines("chain=\"orders\"").len(), before.len(), "none came with its first event");
        let roots = lines("root=\"main\"").len();
        metrics.root_called("main", "unwrap", "away", Duration::ZERO);
        assert_eq!(lines("root=\"main\"").len(), roots);
        // One that is not there from the start.
        metrics.failed(Operation::Encrypt, "orders", "payload_too_large");
        metrics.forget(&orders);
        assert_eq!(lines("chain=\"orders\""), Vec::<String>::new());
    }

    #[test]
    fn a_registry_takes_them_once() {
        let registry = Registry::new();
        assert!(Metrics::new(&registry).is_ok());
        assert!(Metrics::new(&registry).is_err());
    }
}
