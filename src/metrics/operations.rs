//! The metrics of operations: what callers asked for, how it ended, and what it spared the roots.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::local::LocalHistogram;
use prometheus::{Histogram, IntCounter, IntCounterVec};

use super::register::Register;
use super::root_calls::RootCalls;

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
pub const FAILURES: [&str; 19] = [
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
    "archive_unavailable",
    "audit_unavailable",
];

/// Failures that an operator is alerted of, by the operations that end with them. Their counters
/// exist from the start: `increase()` misses the first event of a counter that appears with it.
const FROM_THE_START: [(&[Operation], &[&str]); 3] = [
    (
        &[Operation::Encrypt, Operation::Datakey, Operation::Rewrap],
        &[
            "kek_exhausted",
            "root_unavailable",
            "store_unavailable",
            "archive_unavailable",
            "overloaded",
            "internal",
        ],
    ),
    (
        &[Operation::Decrypt],
        &["root_unavailable", "store_unavailable", "archive_unavailable", "overloaded", "internal"],
    ),
    (
        &[Operation::Decrypt, Operation::Rewrap],
        &["invalid_ciphertext", "unknown_kek", "kek_disabled"],
    ),
];

/// The same for requests of no chain.
const WITHOUT_CHAIN: [&str; 4] = ["invalid_request", "forbidden", "unknown_chain", "overloaded"];

/// The metrics of operations.
pub(super) struct Operations {
    counts: IntCounterVec,
    durations: [Histogram; Operation::ALL.len()],
    avoided: IntCounter,
    /// Calls of roots that were made.
    made: AtomicU64,
    /// What the metrics have not by chain, or not to be read back.
    chains: Mutex<HashMap<String, OfChain>>,
}

/// What is counted of a chain for its status.
#[derive(Default)]
struct OfChain {
    root_calls: Arc<RootCalls>,
    failures: BTreeMap<&'static str, u64>,
}

impl Operations {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        let durations = register.histogram_vec(
            "kms_proxy_operation_duration_seconds",
            "Time that operations took, of those that came to the key service.",
            &["operation"],
            // 50 us doubling to 1.6 s, then the request timeout.
            &[5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 6.4e-3, 25.6e-3, 0.1, 0.4, 1.6, 10.0],
        )?;
        let counts = register.counter_vec(
            "kms_proxy_operations_total",
            "Operations by outcome: ok or the error's code. Batch items count singly.",
            &["operation", "chain", "outcome"],
        )?;
        for operation in Operation::ALL {
            for code in WITHOUT_CHAIN {
                _ = counts.with_label_values(&[operation.as_str(), "", code]);
            }
        }
        Ok(Self {
            counts,
            durations: Operation::ALL
                .map(|operation| durations.with_label_values(&[operation.as_str()])),
            avoided: register.counter(
                "kms_proxy_root_calls_avoided_total",
                "Operations that would have called a root that is used directly, less the calls \
                 made, for each chain.",
            )?,
            made: AtomicU64::new(0),
            chains: Mutex::default(),
        })
    }

    /// Creates the counters of a chain, and returns those of its successes and of its root calls.
    pub(super) fn of_chain(
        &self,
        chain: &str,
    ) -> ([IntCounter; Operation::ALL.len()], Arc<RootCalls>) {
        let mut chains = self.chains.lock();
        let root_calls = Arc::clone(&chains.entry(chain.to_owned()).or_default().root_calls);
        drop(chains);
        for (operations, codes) in FROM_THE_START {
            for operation in operations {
                for code in codes {
                    self.counter(*operation, chain, code);
                }
            }
        }
        (Operation::ALL.map(|operation| self.counter(operation, chain, "ok")), root_calls)
    }

    /// Removes the counters of a chain.
    pub(super) fn forget(&self, chain: &str) {
        self.chains.lock().remove(chain);
        for operation in Operation::ALL {
            for outcome in FAILURES.into_iter().chain(["ok"]) {
                _ = self.counts.remove_label_values(&[operation.as_str(), chain, outcome]);
            }
        }
    }

    pub(super) fn counter(&self, operation: Operation, chain: &str, outcome: &str) -> IntCounter {
        self.counts.with_label_values(&[operation.as_str(), chain, outcome])
    }

    /// `count` operations on the chain of `root_calls` succeeded.
    #[inline]
    pub(super) fn pay(&self, root_calls: &RootCalls, operation: Operation, count: u64) {
        if operation.spares_root_call() {
            self.avoided.inc_by(root_calls.pay(count));
        }
    }

    /// No success yet.
    pub(super) fn successes(&self, operation: Operation) -> Successes {
        let durations = self.durations.get(operation as usize).map(Histogram::local);
        Successes { operation, count: 0, durations }
    }

    /// A root was called for a chain. Of a chain that was deleted only the total is kept.
    pub(super) fn owe(&self, chain: &str) {
        self.made.fetch_add(1, Ordering::Relaxed);
        if let Some(of_chain) = self.chains.lock().get(chain) {
            of_chain.root_calls.owe();
        }
    }

    /// An operation on a chain failed.
    pub(super) fn failed(&self, operation: Operation, chain: &str, code: &'static str) {
        self.counter(operation, chain, code).inc();
        if !chain.is_empty()
            && let Some(of_chain) = self.chains.lock().get_mut(chain)
        {
            *of_chain.failures.entry(code).or_default() += 1;
        }
    }

    /// The failed operations on a chain by code.
    pub(super) fn failures(&self, chain: &str) -> BTreeMap<&'static str, u64> {
        self.chains.lock().get(chain).map(|of| of.failures.clone()).unwrap_or_default()
    }

    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn took(&self, operation: Operation, time: Duration) {
        if let Some(histogram) = self.durations.get(operation as usize) {
            histogram.observe(time.as_secs_f64());
        }
    }

    pub(super) fn avoided(&self) -> u64 {
        self.avoided.get()
    }
}

/// Successes of one operation that are counted together. Their durations are added on drop.
pub struct Successes {
    pub(super) operation: Operation,
    pub(super) count: u64,
    durations: Option<LocalHistogram>,
}

impl Successes {
    /// Another success, and how long it took.
    #[inline]
    pub fn took(&mut self, time: Duration) {
        self.count += 1;
        if let Some(durations) = &self.durations {
            durations.observe(time.as_secs_f64());
        }
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
}
