//! The metrics of chains: their KEKs, rotations and reservations.

use std::sync::Arc;

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::operations::Operation;
use super::register::Register;
use super::root_calls::RootCalls;

const ROTATION_REASONS: [&str; 4] = ["uses", "age", "manual", "root"];
const RESERVATION_OUTCOMES: [&str; 4] = ["ok", "conflict", "lost", "error"];

/// The metrics that have a label `chain`, beside those of operations.
pub(super) struct Chains {
    uses: IntGaugeVec,
    rotate_after_uses: IntGaugeVec,
    max_uses: IntGaugeVec,
    age: GaugeVec,
    rotations: IntCounterVec,
    rotation_failures: IntCounterVec,
    reservations: IntCounterVec,
    unknown_keks: IntGaugeVec,
    unopenable_keks: IntGaugeVec,
    standby: IntGaugeVec,
    store_rollbacks: IntCounterVec,
}

impl Chains {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            uses: register.int_gauge_vec(
                "kms_proxy_kek_uses",
                "Uses of the primary KEK that are reserved in the store.",
                &["chain"],
            )?,
            rotate_after_uses: register.int_gauge_vec(
                "kms_proxy_kek_rotate_after_uses",
                "Uses that start a rotation.",
                &["chain"],
            )?,
            max_uses: register.int_gauge_vec(
                "kms_proxy_kek_max_uses",
                "The most uses of a KEK.",
                &["chain"],
            )?,
            age: register.gauge_vec(
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
            unknown_keks: register.int_gauge_vec(
                "kms_proxy_unknown_keks",
                "Distinct KEK ids that callers asked for and that the chain does not have; at most \
                 1,000.",
                &["chain"],
            )?,
            unopenable_keks: register.int_gauge_vec(
                "kms_proxy_unopenable_keks",
                "Stored KEKs that were needed and that no configured root opens; at most 1,000.",
                &["chain"],
            )?,
            standby: register.int_gauge_vec(
                "kms_proxy_kek_standby",
                "Whether the KEK that takes over from the primary is stored already.",
                &["chain"],
            )?,
            store_rollbacks: register.counter_vec(
                "kms_proxy_store_rollbacks_total",
                "Times that the store went back to an earlier state, as this process saw it.",
                &["chain"],
            )?,
        })
    }

    /// The handles of one chain; its counters start at 0. `ok` counts its successes.
    pub(super) fn chain(
        &self,
        chain: &str,
        (ok, root_calls): ([IntCounter; Operation::ALL.len()], Arc<RootCalls>),
    ) -> ChainMetrics {
        for reason in ROTATION_REASONS {
            _ = self.rotations.with_label_values(&[chain, reason]);
        }
        for outcome in RESERVATION_OUTCOMES {
            _ = self.reservations.with_label_values(&[chain, outcome]);
        }
        ChainMetrics {
            ok,
            root_calls,
            uses: self.uses.with_label_values(&[chain]),
            rotate_after_uses: self.rotate_after_uses.with_label_values(&[chain]),
            max_uses: self.max_uses.with_label_values(&[chain]),
            age: self.age.with_label_values(&[chain]),
            rotation_failures: self.rotation_failures.with_label_values(&[chain]),
            unknown_keks: self.unknown_keks.with_label_values(&[chain]),
            unopenable_keks: self.unopenable_keks.with_label_values(&[chain]),
            standby: self.standby.with_label_values(&[chain]),
            store_rollbacks: self.store_rollbacks.with_label_values(&[chain]),
        }
    }

    /// Removes the metrics of a chain.
    pub(super) fn forget(&self, chain: &str) {
        // Removing a metric that was never set fails, which changes nothing.
        for gauges in [
            &self.uses,
            &self.rotate_after_uses,
            &self.max_uses,
            &self.unknown_keks,
            &self.unopenable_keks,
            &self.standby,
        ] {
            _ = gauges.remove_label_values(&[chain]);
        }
        _ = self.age.remove_label_values(&[chain]);
        for counters in [&self.rotation_failures, &self.store_rollbacks] {
            _ = counters.remove_label_values(&[chain]);
        }
        for reason in ROTATION_REASONS {
            _ = self.rotations.remove_label_values(&[chain, reason]);
        }
        for outcome in RESERVATION_OUTCOMES {
            _ = self.reservations.remove_label_values(&[chain, outcome]);
        }
    }

    pub(super) fn rotated(&self, chain: &str, reason: &str) {
        self.rotations.with_label_values(&[chain, reason]).inc();
    }

    pub(super) fn reserved(&self, chain: &str, outcome: &str) {
        self.reservations.with_label_values(&[chain, outcome]).inc();
    }
}

/// The handles of one chain, resolved once.
pub struct ChainMetrics {
    pub(super) ok: [IntCounter; Operation::ALL.len()],
    pub(super) root_calls: Arc<RootCalls>,
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

impl ChainMetrics {
    /// How many calls of `operation` succeeded.
    #[must_use]
    pub fn succeeded(&self, operation: Operation) -> u64 {
        self.ok.get(operation as usize).map_or(0, IntCounter::get)
    }

    /// The calls of roots for the chain that were made, and those that were avoided.
    #[must_use]
    pub fn root_calls(&self) -> (u64, u64) {
        self.root_calls.counts()
    }
}
