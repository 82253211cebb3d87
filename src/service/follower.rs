//! Follows what other processes write to a shared store: new chains, new KEKs, changed states. It
//! reads everything again after a watch has missed changes, and periodically.
//!
//! No request waits for it: a KEK or chain that is not in memory is looked up in the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::archive::object::Wraps;
use crate::id::KekId;
use crate::keychain::Refusal;
use crate::store::record::{self, Kek, Part, Record};
use crate::store::records::MANY;
use crate::store::{self, News, Revision, Store};

use super::chain::Chain;
use super::rotation::root_users;
use super::{KeyService, kek_lifecycle};

/// How often everything in memory is compared with the store, so that a KEK that another process
/// disables is refused here within 30 s even if the watch fails.
const EVERY: Duration = Duration::from_secs(20);

impl KeyService {
    /// Starts the follower, unless no other process can write to the store.
    pub(super) fn follow(self: &Arc<Self>) -> Option<tokio::task::JoinHandle<()>> {
        let mut watch = self.core.store.watch()?;
        let (service, mut stop) = (Arc::downgrade(self), self.core.stopping.subscribe());
        Some(tokio::spawn(async move {
            let mut due = Instant::now() + EVERY;
            loop {
                let news = tokio::select! {
                    biased;
                    _ = stop.wait_for(|&stopping| stopping) => return,
                    news = tokio::time::timeout_at(due, watch.next()) => news,
                };
                // Everything is read again even if the watch reports changes all the time.
                let news = news.unwrap_or(News::Missed);
                if news == News::Missed {
                    due = Instant::now() + EVERY;
                }
                let Some(service) = service.upgrade() else { return };
                let failed = match news {
                    News::Changed(changes) => service.changed(changes).await,
                    News::Missed => service.read_again().await,
                    News::Restored => {
                        service.restored().await;
                        service.read_again().await
                    }
                };
                if let Err(error) = failed {
                    // It is tried again after EVERY at most, and readiness reports the store.
                    tracing::debug!(%error, "changes by other processes could not be read");
                }
            }
        }))
    }

    async fn changed(&self, changes: Vec<(String, Revision)>) -> Result<(), store::Error> {
        for (key, revision) in changes {
            if key == record::LAST_BACKUP {
                self.core.read_last_backup().await;
            }
            let Some((name, part)) = record::parse_key(&key) else { continue };
            let Some(chain) = self.chains.load().get(&name).cloned() else {
                self.core.unknown_chains.remove(&name);
                if part == Part::Head {
                    self.load_chain(&name).await?;
                }
                continue;
            };
            if let Part::Kek(id) = part {
                self.core.unknown.remove(&(name.clone(), id));
                self.core.archives.want(&name, Some(id), Wraps::Join);
                if self.is_held(&chain, id) {
                    kek_lifecycle::learn(&self.core, &chain, id).await?;
                }
            }
            match part {
                Part::Claim => {}
                Part::Uses(_) => chain.staleness.counted(revision),
                Part::Head | Part::Kek(_) => {
                    if chain.staleness.written(revision) {
                        chain.need_uses.notify_one();
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads everything in memory again.
    async fn read_again(&self) -> Result<(), store::Error> {
        let began = self.core.clock.now();
        self.read_heads().await?;
        self.read_states().await?;
        self.core.confirm(began);
        self.core.read_last_backup().await;
        Ok(())
    }

    async fn read_heads(&self) -> Result<(), store::Error> {
        let chains: Vec<_> = self.chains.load().values().cloned().collect();
        for chains in chains.chunks(MANY) {
            let keys: Vec<_> = chains.iter().map(|chain| record::head_key(&chain.name)).collect();
            let heads = self.core.store.get_all(&keys).await?;
            for (chain, head) in chains.iter().zip(heads) {
                if chain.staleness.head_is(head.as_ref()) {
                    chain.need_uses.notify_one();
                }
            }
        }
        Ok(())
    }

    /// Reads the records of all KEKs in memory, and of those that are refused.
    async fn read_states(&self) -> Result<(), store::Error> {
        let chains = self.chains.load_full();
        let inline = self.core.keyring.inline_keks().into_iter();
        let mut held = self.held();
        // A KEK that came inline may have been stored, and disabled, since.
        held.extend(inline.filter_map(|(name, id)| Some((Arc::clone(chains.get(&name)?), id))));
        for held in held.chunks(MANY) {
            let keys: Vec<_> =
                held.iter().map(|(chain, id)| record::kek_key(&chain.name, *id)).collect();
            let read = self.core.store.get_all(&keys).await?;
            for ((chain, id), entry) in held.iter().zip(read) {
                match entry.map(|entry| Kek::decode(&entry.key, &entry.value)) {
                    Some(Ok(kek)) => {
                        let known = chain.snapshot().refused().find(|(known, _)| known == id);
                        if kek_lifecycle::refusal(kek.state) != known.map(|(_, refusal)| refusal) {
                            kek_lifecycle::learn(&self.core, chain, *id).await?;
                        }
                    }
                    Some(Err(error)) => {
                        tracing::error!(chain = %chain.name, kek_id = %id, %error, "a stored \
                            record is damaged");
                        self.core.note_damage(&chain.name, &record::kek_key(&chain.name, *id));
                    }
                    None if self.core.keyring.has_inline(&chain.name, *id) => {}
                    // Records are never deleted. If this process can't restore one, there is no
                    // point in repairing the chain again and again.
                    None if !self.can_restore(chain, *id) => {
                        tracing::error!(chain = %chain.name, kek_id = %id, "a stored record is \
                            missing");
                    }
                    None => kek_lifecycle::suspect(&self.core, chain, *id).await?,
                }
            }
        }
        Ok(())
    }

    fn is_held(&self, chain: &Chain, id: KekId) -> bool {
        let snapshot = chain.snapshot();
        snapshot.kek(id).is_some()
            || snapshot.allows(id).is_err()
            || self.core.keyring.in_memory(&chain.name, id).is_some()
    }

    /// Whether this process can restore a record that the store lacks, or write its tombstone.
    fn can_restore(&self, chain: &Chain, id: KekId) -> bool {
        let destroyed = (id, Refusal::Destroyed);
        self.core.keyring.remembers(&chain.name, id)
            || chain.snapshot().refused().any(|refused| refused == destroyed)
    }

    async fn restored(&self) {
        root_users::note_rollback(&self.core);
        let chains: Vec<_> = self.chains.load().values().cloned().collect();
        for chain in chains {
            chain.reservations.lock().await.ledger.report_restored();
            chain.need_uses.notify_one();
        }
    }
}
