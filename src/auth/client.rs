//! An identified client: its name, its permissions, and the resources that it uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::id::ChainName;
use crate::metrics::Operation;
use crate::service::{Error, Kind, LookupQuota};

use super::config::ClientConfig;
use super::permission::Allow;

/// A client under one set of rules.
#[derive(Debug)]
pub(crate) struct Client {
    name: Arc<str>,
    allow: Vec<Allow>,
    max_in_flight: usize,
    usage: Arc<Usage>,
}

/// Resources in use by a client. They outlive the rules: a reload does not reset them.
#[derive(Debug)]
pub(super) struct Usage {
    in_flight: AtomicUsize,
    lookups_per_minute: u32,
    lookups: Arc<LookupQuota>,
}

/// A request in flight, counted until it is dropped.
pub(crate) struct InFlight(Arc<Usage>);

impl Client {
    /// The client of `config`; `before` is the usage of the client of that name, if there was one.
    pub(super) fn new(config: &ClientConfig, before: Option<&Arc<Usage>>) -> Self {
        let same = before.filter(|usage| usage.lookups_per_minute == config.lookups_per_minute);
        Self {
            name: config.name.as_str().into(),
            allow: config.allow.clone(),
            max_in_flight: config.max_in_flight.unwrap_or(usize::MAX),
            usage: same.map_or_else(|| Arc::new(Usage::new(config.lookups_per_minute)), Arc::clone),
        }
    }

    /// Its name in the configuration.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its name, shared.
    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(super) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// Checks a permission. The error does not depend on whether the chain exists.
    ///
    /// # Errors
    /// [`Kind::Forbidden`].
    pub(crate) fn check(&self, operation: Operation, chain: &str) -> Result<(), Error> {
        if self.may(operation, chain) {
            return Ok(());
        }
        let (name, operation) = (&self.name, operation.as_str());
        // An invalid name may be a secret in the wrong field.
        let chain = if ChainName::new(chain).is_ok() { chain } else { "(no valid name)" };
        let detail = format!("the client {name} may not {operation} with the chain {chain}");
        Err(Error::new(Kind::Forbidden, detail))
    }

    /// Whether it may do `operation` on `chain`.
    pub(crate) fn may(&self, operation: Operation, chain: &str) -> bool {
        self.allow.iter().any(|allow| allow.allows(operation, chain))
    }

    /// Whether it may do `operation` on at least one chain.
    pub(crate) fn may_with_some(&self, operation: Operation) -> bool {
        self.allow.iter().any(|allow| allow.operations.contains(operation))
    }

    /// Whether it may do `operation` on every chain, including future ones.
    pub(crate) fn may_with_all(&self, operation: Operation) -> bool {
        let mut own = self.allow.iter().filter(|allow| allow.operations.contains(operation));
        own.any(|allow| allow.chains.iter().any(super::permission::Glob::is_all))
    }

    /// Counts a request in flight.
    ///
    /// # Errors
    /// [`Kind::Overloaded`] if `max_in_flight` is reached.
    pub(crate) fn enter(&self) -> Result<InFlight, Error> {
        let request = InFlight(Arc::clone(&self.usage));
        let before = self.usage.in_flight.fetch_add(1, Ordering::Relaxed);
        if before < self.max_in_flight {
            return Ok(request);
        }
        let (name, most) = (&self.name, self.max_in_flight);
        let detail = format!("the client {name} has its {most} requests in flight already");
        Err(Error::new(Kind::Overloaded, detail))
    }

    /// Its quota of lookups.
    pub(crate) fn lookups(&self) -> &Arc<LookupQuota> {
        &self.usage.lookups
    }
}

impl Usage {
    fn new(lookups_per_minute: u32) -> Self {
        let lookups = Arc::new(LookupQuota::new(lookups_per_minute));
        Self { in_flight: AtomicUsize::new(0), lookups_per_minute, lookups }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
