//! The metrics of the service, registered in a registry that is passed in.
//!
//! Names and labels are a contract. Labels are bounded: a caller cannot invent one, since a chain
//! that does not exist counts as `chain=""`. Handles for the hot path are resolved once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use prometheus::Registry;

use crate::id::ChainName;

mod archives;
mod audit;
mod callers;
mod chains;
mod forwarded;
mod operations;
mod process;
mod register;
mod root_calls;
mod roots;
mod store;
mod streams;
mod traffic;

pub use archives::Archives;
pub use audit::Audit;
pub use callers::Callers;
pub use chains::ChainMetrics;
pub use forwarded::Forwarded;
pub use operations::{FAILURES, Operation, Successes};
pub use roots::Roots;
pub use store::{DekCache, StoreMetrics};
pub use streams::{StreamEnd, Streams};
pub use traffic::{Counted, Requests, Traffic};

use chains::Chains;
use operations::Operations;
use register::Register;

/// All metrics. Cheap to share behind an `Arc`.
pub struct Metrics {
    operations: Operations,
    chains: Chains,
    /// Roots.
    pub roots: Roots,
    /// The store.
    pub store: StoreMetrics,
    /// Archives.
    pub archives: Archives,
    /// The DEK cache.
    pub dek_cache: DekCache,
    /// Requests, connections and clients.
    pub traffic: Traffic,
    /// Streams.
    pub streams: Streams,
    /// Authentication.
    pub callers: Callers,
    /// Calls that are forwarded to AWS KMS.
    pub forwarded: Forwarded,
    /// The audit log.
    pub audit: Audit,
}

impl Metrics {
    /// Makes the metrics and registers them in `registry`.
    ///
    /// # Errors
    /// When `registry` already has metrics of these names.
    pub fn new(registry: &Registry) -> Result<Arc<Self>, prometheus::Error> {
        let register = Register(registry);
        let build_info = register.int_gauge_vec(
            "kms_proxy_build_info",
            "Always 1; the version is the label.",
            &["version"],
        )?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(process::Process::new()?))?;
        Ok(Arc::new(Self {
            operations: Operations::new(&register)?,
            chains: Chains::new(&register)?,
            roots: Roots::new(&register)?,
            store: StoreMetrics::new(&register)?,
            archives: Archives::new(&register)?,
            dek_cache: DekCache::new(&register)?,
            traffic: Traffic::new(&register)?,
            streams: Streams::new(&register)?,
            callers: Callers::new(&register)?,
            forwarded: Forwarded::new(&register)?,
            audit: Audit::new(&register)?,
        }))
    }

    /// The handles of one chain.
    #[must_use]
    pub fn chain(&self, chain: &ChainName) -> ChainMetrics {
        let chain = chain.as_str();
        self.chains.chain(chain, self.operations.of_chain(chain))
    }

    /// Removes the metrics that are labelled with a chain that was deleted.
    pub fn forget(&self, chain: &ChainName) {
        self.chains.forget(chain.as_str());
        self.operations.forget(chain.as_str());
    }

    /// Counts a success on `chain`, and the calls of a root that it paid for or avoided.
    #[inline]
    pub fn succeeded(&self, chain: &ChainMetrics, operation: Operation) {
        self.count(chain, operation, 1);
    }

    /// Counts the successes of one chain together.
    pub fn add(&self, chain: &ChainMetrics, successes: Successes) {
        self.count(chain, successes.operation, successes.count);
    }

    /// Successes of `operation`, to be counted together: none yet.
    #[must_use]
    pub fn successes(&self, operation: Operation) -> Successes {
        self.operations.successes(operation)
    }

    fn count(&self, chain: &ChainMetrics, operation: Operation, count: u64) {
        if let Some(counter) = chain.ok.get(operation as usize) {
            counter.inc_by(count);
        }
        self.operations.pay(&chain.root_calls, operation, count);
    }

    /// Counts a failure. `chain` is empty unless the chain exists.
    pub fn failed(&self, operation: Operation, chain: &str, code: &'static str) {
        self.operations.failed(operation, chain, code);
    }

    /// Observes how long an operation took.
    #[inline]
    pub fn took(&self, operation: Operation, time: Duration) {
        self.operations.took(operation, time);
    }

    /// Counts a call of a root for a chain: `operation` is `wrap`, `unwrap` or `probe`; `outcome`
    /// is `ok` or the error's.
    pub fn root_called(
        &self,
        root: &str,
        chain: &ChainName,
        operation: &str,
        outcome: &str,
        time: Duration,
    ) {
        self.roots.called(root, operation, outcome, time);
        self.operations.owe(chain.as_str());
    }

    /// The calls of roots that were made, and those that were avoided: the sum over all chains,
    /// with those that were deleted.
    #[must_use]
    pub fn root_calls(&self) -> (u64, u64) {
        (self.operations.made(), self.operations.avoided())
    }

    /// The failed operations on a chain by the error's code.
    #[must_use]
    pub fn failures_of(&self, chain: &ChainName) -> BTreeMap<&'static str, u64> {
        self.operations.failures(chain.as_str())
    }

    /// Creates the counters of a root, whose calls end with `ok` or one of `failures`.
    pub fn root_is_configured(&self, root: &str, failures: &[&str]) {
        self.roots.configured(root, failures);
    }

    /// Observes how long a call of the store took: `operation` is `get`, `list`, `count` or
    /// `commit`.
    pub fn store_called(&self, operation: &str, time: Duration) {
        self.store.called(operation, time);
    }

    /// Counts a rotation: `reason` is `uses`, `age`, `manual` or `root`.
    pub fn rotated(&self, chain: &ChainName, reason: &str) {
        self.chains.rotated(chain.as_str(), reason);
    }

    /// Counts a reservation: `outcome` is `ok`, `conflict`, `lost` or `error`.
    pub fn reserved(&self, chain: &ChainName, outcome: &str) {
        self.chains.reserved(chain.as_str(), outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn avoided_calls_are_operations_less_calls_and_never_fall() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let [orders, idle] = ["orders", "idle"].map(|name| ChainName::new(name).unwrap());
        let (chain, other) = (metrics.chain(&orders), metrics.chain(&idle));
        let called = |of: &ChainName, operation: &str, outcome: &str| {
            metrics.root_called("main", of, operation, outcome, Duration::ZERO);
        };
        let avoided = || {
            let total = metrics.root_calls();
            let ((made, avoided), (made_too, avoided_too)) =
                (chain.root_calls(), other.root_calls());
            assert_eq!(total, (made + made_too, avoided + avoided_too), "the total is the sum");
            avoided
        };
        called(&orders, "wrap", "ok");
        called(&orders, "unwrap", "away");
        for (operations, expected) in [(1, 0), (2, 0), (3, 1), (4, 2)] {
            metrics.succeeded(&chain, Operation::Encrypt);
            assert_eq!(avoided(), expected, "after {operations}");
        }
        // More calls than operations: what was avoided before stays.
        (0..3).for_each(|_| called(&orders, "unwrap", "away"));
        assert_eq!(avoided(), 2);
        metrics.succeeded(&chain, Operation::Rotate);
        for expected in [2, 2, 2, 3] {
            metrics.succeeded(&chain, Operation::Decrypt);
            assert_eq!(avoided(), expected);
        }
        // The calls of a chain are paid for by its own operations.
        called(&idle, "wrap", "ok");
        metrics.succeeded(&chain, Operation::Decrypt);
        assert_eq!((avoided(), other.root_calls()), (4, (1, 0)));
        assert_eq!(metrics.root_calls(), (6, 4));
        assert_eq!(chain.succeeded(Operation::Encrypt), 4);
        assert_eq!(chain.succeeded(Operation::Decrypt), 5);
    }

    #[test]
    fn what_a_chain_cost_and_how_it_failed_is_read_back_until_it_is_deleted() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let orders = ChainName::new("orders").unwrap();
        let call = || metrics.root_called("main", &orders, "wrap", "ok", Duration::ZERO);
        // Before the chain exists, nothing is kept of its name.
        call();
        metrics.failed(Operation::Decrypt, "orders", "unknown_kek");
        assert_eq!(metrics.failures_of(&orders), BTreeMap::new());
        let chain = metrics.chain(&orders);
        assert_eq!(chain.root_calls(), (0, 0));
        call();
        for operation in [Operation::Decrypt, Operation::Rewrap] {
            metrics.failed(operation, "orders", "unknown_kek");
        }
        metrics.failed(Operation::Decrypt, "", "unknown_chain");
        assert_eq!(chain.root_calls(), (1, 0));
        assert_eq!(metrics.failures_of(&orders), BTreeMap::from([("unknown_kek", 2)]));
        metrics.forget(&orders);
        assert_eq!(metrics.failures_of(&orders), BTreeMap::new());
        assert_eq!(metrics.chain(&orders).root_calls(), (0, 0), "a new chain of this name");
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
        metrics.root_called("main", &orders, "unwrap", "away", Duration::ZERO);
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
