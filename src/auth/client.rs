//! A client that was recognised: its name, what it may do, and what it may take up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::id::ChainName;
use crate::metrics::Operation;
use crate::service::{Error, Kind, LookupQuota};

use super::config::ClientConfig;
use super::permission::Allow;

/// A client, as the rules of one moment know it.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    allow: Vec<Allow>,
    max_in_flight: usize,
    usage: Arc<Usage>,
}

/// What a client takes up. It outlives the rules: a reload makes no room.
#[derive(Debug)]
pub(super) struct Usage {
    in_flight: AtomicUsize,
    lookups_per_minute: u32,
    lookups: Arc<LookupQuota>,
}

/// A request in flight; dropping it makes room for another.
pub(crate) struct Place(Arc<Usage>);

impl Client {
    /// The client of `config`; `before` is what a client of its name has taken up.
    pub(super) fn new(config: &ClientConfig, before: Option<&Arc<Usage>>) -> Self {
        let same = before.filter(|usage| usage.lookups_per_minute == config.lookups_per_minute);
        Self {
            name: config.name.clone(),
            allow: config.allow.clone(),
            max_in_flight: config.max_in_flight.unwrap_or(usize::MAX),
            usage: same.map_or_else(|| Arc::new(Usage::new(config.lookups_per_minute)), Arc::clone),
        }
    }

    /// Its name in the configuration.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// Whether it may do this. What the answer says does not depend on whether there is such a
    /// chain.
    ///
    /// # Errors
    /// [`Kind::Forbidden`].
    pub(crate) fn check(&self, operation: Operation, chain: &str) -> Result<(), Error> {
        if self.may(operation, chain) {
            return Ok(());
        }
        let (name, operation) = (&self.name, operation.as_str());
        // What is no name may be a secret in the wrong field.
        let chain = if ChainName::new(chain).is_ok() { chain } else { "(no valid name)" };
        let detail = format!("the client {name} may not {operation} with the chain {chain}");
        Err(Error::new(Kind::Forbidden, detail))
    }

    /// Whether it may do this.
    pub(crate) fn may(&self, operation: Operation, chain: &str) -> bool {
        self.allow.iter().any(|allow| allow.allows(operation, chain))
    }

    /// Whether it may do this with any chain at all.
    pub(crate) fn may_with_some(&self, operation: Operation) -> bool {
        self.allow.iter().any(|allow| allow.operations.contains(operation))
    }

    /// Whether it may do this with every chain, also those that are yet to come.
    pub(crate) fn may_with_all(&self, operation: Operation) -> bool {
        let mut own = self.allow.iter().filter(|allow| allow.operations.contains(operation));
        own.any(|allow| allow.chains.iter().any(super::permission::Glob::is_all))
    }

    /// Takes the place of a request.
    ///
    /// # Errors
    /// [`Kind::Overloaded`] when it has as many as it may.
    pub(crate) fn enter(&self) -> Result<Place, Error> {
        let place = Place(Arc::clone(&self.usage));
        let before = self.usage.in_flight.fetch_add(1, Ordering::Relaxed);
        if before < self.max_in_flight {
            return Ok(place);
        }
        let (name, most) = (&self.name, self.max_in_flight);
        let detail = format!("the client {name} has its {most} requests in flight already");
        Err(Error::new(Kind::Overloaded, detail))
    }

    /// What it may look up.
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

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
