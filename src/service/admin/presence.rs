//! Which chains there are: the names in memory, and whether one exists.

use crate::id::ChainName;
use crate::metrics::Operation;

use crate::service::KeyService;
use crate::service::error::{Error, Kind};

impl KeyService {
    /// The names of the chains in memory, in order. Makes no call.
    pub(crate) fn chain_names(&self) -> Vec<ChainName> {
        let mut names: Vec<_> = self.chains.load().keys().cloned().collect();
        names.sort();
        names
    }

    /// Whether a chain exists, as far as that can be known: a failed look-up does not show that it
    /// does not. Nothing is counted.
    pub(crate) async fn may_exist(&self, chain: &ChainName) -> bool {
        let is_held = self.chains.load().contains_key(chain.as_str());
        is_held
            || !matches!(Box::pin(self.look_up(chain.as_str())).await,
                Err(error) if error.kind() == Kind::UnknownChain)
    }

    /// Checks that a chain exists, as an operation that reads it.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::StoreUnavailable`], [`Kind::Overloaded`].
    pub(crate) async fn check_exists(&self, chain: &ChainName) -> Result<(), Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Read, Some(chain.as_str())).await?;
        self.finish(Operation::Read, &chain, started, Ok(()))
    }
}
