//! Restores to the store what an archive has and the store lacks: KEKs that only decrypt, and
//! chains without a primary.

use std::sync::Arc;

use crate::archive::object::Wraps;
use crate::id::{ChainName, KekId};
use crate::service::KeyService;
use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::service::error::Error;
use crate::store::record::{Kek, Uses};
use crate::store::{self, records};

use super::find;

/// Stores a KEK from an archive. A live one is retired, and must have been unwrapped by a root; a
/// disabled or a destroyed one stays so.
///
/// # Errors
/// When the store does not answer. The KEK is found in the archive again.
pub(in crate::service) async fn kek(
    core: &Core,
    chain: &Chain,
    id: KekId,
    kek: Kek,
) -> Result<(), store::Error> {
    let state = kek.state;
    let ledger = &chain.reservations.lock().await.ledger;
    // How many of its uses were reserved is not known.
    let reserved = ledger.head.record.limits.max_uses;
    if ledger.restore(id, kek, Uses { reserved, ..Uses::default() }).await? {
        core.metrics.archives.restored.inc();
        tracing::warn!(chain = %chain.name, kek_id = %id, state = state.as_str(), "the store \
            lacked a KEK, which is restored from an archive");
    }
    // An archive that did not answer may have a tombstone.
    core.archives.want(&chain.name, Some(id), Wraps::Join);
    core.unknown.remove(&(chain.name.clone(), id));
    Ok(())
}

impl KeyService {
    /// A chain that the store lacks, founded again with its suite and its limits if an archive has
    /// it.
    ///
    /// # Errors
    /// [`Kind::ArchiveUnavailable`](crate::service::Kind::ArchiveUnavailable),
    /// [`Kind::StoreUnavailable`](crate::service::Kind::StoreUnavailable).
    pub(in crate::service) async fn found_again(
        &self,
        name: &ChainName,
    ) -> Result<Option<Arc<Chain>>, Error> {
        if !self.core.found_archived(name).await? {
            return Ok(None);
        }
        let loaded = self.load_chain(name).await;
        loaded.map_err(|error| self.core.store_error(name, error))
    }
}

impl Core {
    /// Founds a chain that an archive has. Returns whether one has it.
    pub(in crate::service) async fn found_archived(
        self: &Arc<Self>,
        name: &ChainName,
    ) -> Result<bool, Error> {
        if self.archives.is_empty() {
            return Ok(false);
        }
        let Some(settings) = find::chain(self, name).await? else { return Ok(false) };
        let head = self.new_head(settings.suite, settings.limits, settings.inline);
        let created = records::create(&*self.store, name, &head).await;
        if created.map_err(|error| self.store_error(name, error))? {
            tracing::warn!(chain = %name, "the store lacked a chain, which is founded again as an \
                archive describes it");
        }
        Ok(true)
    }
}
