//! The metrics of roots: their calls, and what is known of the KEKs that they wrapped.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

use super::register::Register;

const OPERATIONS: [&str; 3] = ["wrap", "unwrap", "probe"];

/// The metrics that have a label `root`.
pub struct Roots {
    calls: IntCounterVec,
    call_duration: HistogramVec,
    /// 1 if the root's last response was a success.
    pub up: IntGaugeVec,
    /// Always 1; the labels have a root's kind, so that `local` outside development can alert.
    pub info: IntGaugeVec,
    /// KEKs whose wrap by the root does not open with its key.
    pub wrong_wraps: IntGaugeVec,
    /// Primaries and standbys that lack a wrap of the root.
    pub missing_wraps: IntGaugeVec,
}

impl Roots {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            calls: register.counter_vec(
                "kms_proxy_root_calls_total",
                "Calls of the root keys.",
                &["root", "operation", "outcome"],
            )?,
            call_duration: register.histogram_vec(
                "kms_proxy_root_call_duration_seconds",
                "Time that calls of the root keys took.",
                &["root", "operation"],
                &[1e-4, 1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0],
            )?,
            up: register.int_gauge_vec(
                "kms_proxy_root_up",
                "Whether the root's last answer was a good one.",
                &["root"],
            )?,
            info: register.int_gauge_vec(
                "kms_proxy_root_info",
                "Always 1; the kind of the root is a label. A local root is for development.",
                &["root", "kind"],
            )?,
            wrong_wraps: register.int_gauge_vec(
                "kms_proxy_root_wrong_wraps",
                "KEKs that name the root and do not open with its key, of those that were tried.",
                &["root"],
            )?,
            missing_wraps: register.int_gauge_vec(
                "kms_proxy_keks_missing_wraps",
                "Primary and standby KEKs that lack a wrap of a configured root.",
                &["root"],
            )?,
        })
    }

    /// Creates the counters of a root, whose calls end with `ok` or one of `failures`.
    pub(super) fn configured(&self, root: &str, failures: &[&str]) {
        for operation in OPERATIONS {
            for outcome in failures.iter().chain(&["ok"]) {
                _ = self.calls.with_label_values(&[root, operation, outcome]);
            }
            _ = self.call_duration.with_label_values(&[root, operation]);
        }
    }

    pub(super) fn called(&self, root: &str, operation: &str, outcome: &str, time: Duration) {
        self.calls.with_label_values(&[root, operation, outcome]).inc();
        self.call_duration.with_label_values(&[root, operation]).observe(time.as_secs_f64());
    }
}
