//! The metric of calls that are forwarded to AWS KMS.

use prometheus::IntCounterVec;

use super::register::Register;

/// Forwarded calls.
pub struct Forwarded(IntCounterVec);

impl Forwarded {
    /// How a call ends: the label `outcome`. KMS found the ciphertext invalid (`invalid`), refused
    /// the call otherwise (`denied`), or did not do it (`throttled`, `unavailable`); or no caller
    /// waited for the end (`abandoned`).
    pub const OUTCOMES: [&'static str; 6] =
        ["ok", "invalid", "denied", "throttled", "unavailable", "abandoned"];

    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self(register.counter_vec(
            "kms_proxy_forwarded_calls_total",
            "Calls of the AWS KMS API that were forwarded to AWS KMS, by how they ended.",
            &["operation", "outcome"],
        )?))
    }

    /// Creates the counters of an operation of KMS.
    pub fn expect(&self, operation: &'static str) {
        for outcome in Self::OUTCOMES {
            _ = self.0.with_label_values(&[operation, outcome]);
        }
    }

    /// Counts a call. `operation` is one that KMS has.
    pub fn called(&self, operation: &'static str, outcome: &'static str) {
        self.0.with_label_values(&[operation, outcome]).inc();
    }
}
