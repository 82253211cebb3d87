//! The metrics of authentication: callers that were not recognised, the rules in force, and the
//! certificate of the listener.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::register::Register;

/// The metrics of authentication.
pub struct Callers {
    failures: IntCounterVec,
    /// 1 while the clients and permissions in force are those of the configuration.
    pub rules_current: IntGauge,
    /// Without labels; a vector, since there is no value without TLS.
    certificate_expiry: IntGaugeVec,
}

impl Callers {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        let rules_current = register.int_gauge(
            "kms_proxy_rules_current",
            "Whether the clients and permissions in force are those of the configuration.",
        )?;
        rules_current.set(1);
        Ok(Self {
            failures: register.counter_vec(
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
        })
    }

    /// Creates the counters of callers that are not recognised, by reason.
    pub fn fail_with(&self, reasons: impl Iterator<Item = &'static str>) {
        for reason in reasons {
            _ = self.failures.with_label_values(&[reason]);
        }
    }

    /// Counts a request whose caller was not recognised.
    pub fn failed(&self, reason: &'static str) {
        self.failures.with_label_values(&[reason]).inc();
    }

    /// Sets in how many seconds the listener's certificate expires.
    pub fn certificate_expires_in(&self, seconds: i64) {
        self.certificate_expiry.with_label_values(&[] as &[&str]).set(seconds);
    }
}
