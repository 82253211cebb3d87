//! What the parts of a running service share. It knows no chain and no task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, watch};

use crate::clock::{Clock, Monotonic};
use crate::id::{ChainName, KekId};
use crate::keychain::KekPlacement;
use crate::keychain::dek_cache::DekCache;
use crate::metrics::Metrics;
use crate::store::record::{self, Head, Kek, Part, Record as _, Uses};
use crate::store::{self, Store as _};

use super::Config;
use super::error::{Error, Kind};
use super::keyring::Keyring;
use super::limits::rate_limiter::RateLimiter;
use super::limits::unknown::Unknown;
use super::monitored_store::MonitoredStore;
use super::rollback::summary::Summary;

/// How many names that are not known here may be looked up in the store at once.
pub(super) const CONCURRENT_LOOKUPS: usize = 64;

/// The shared parts.
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) store: Arc<MonitoredStore>,
    /// What is encrypted here: where the store ends with the process, KEKs travel along.
    pub(super) placement: KekPlacement,
    pub(super) keyring: Keyring,
    pub(super) deks: DekCache,
    pub(super) unknown: Unknown<(ChainName, KekId)>,
    pub(super) unknown_chains: Unknown<ChainName>,
    /// Reads of names that are not known here.
    pub(super) lookups: Semaphore,
    /// Others can write to the store as well.
    pub(super) shared: bool,
    /// When the states in memory were last found to be those of the store, in nanoseconds.
    pub(super) confirmed: AtomicU64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    /// The last KEK that a chain needed could not be made or opened: then every chain tries its own
    /// primary before it is asked for, so that readiness tells the truth.
    pub(super) in_doubt: AtomicBool,
    /// A random number for this process, in the records that it writes.
    pub(super) owner: u64,
    pub(super) stopping: watch::Sender<bool>,
    /// Stored records that are damaged, by their keys, with their chains.
    pub(super) damage: Mutex<BTreeMap<String, ChainName>>,
    /// How often KEKs are tried again that no root opened.
    pub(super) retries: RateLimiter,
    /// What was done about a rollback of the store and is not logged yet.
    pub(super) rollbacks: Summary,
}

impl Core {
    /// What all replicas must know of can only be changed where there is a store.
    pub(super) fn needs_store(&self, what: &str) -> Result<(), Error> {
        if self.placement == KekPlacement::Stored {
            return Ok(());
        }
        let detail = format!(
            "{what} with store.kind = \"inline\": nothing is stored, so nobody else would hear of it"
        );
        Err(Error::new(Kind::Conflict, detail))
    }

    /// What a client hears of a store's error; the log hears the rest.
    pub(super) fn store_error(&self, chain: &ChainName, error: store::Error) -> Error {
        match error {
            store::Error::Unavailable { .. } => {
                // The store's own trouble is logged once, where it is observed.
                Error::new(Kind::StoreUnavailable, "the store is unavailable")
            }
            store::Error::Corrupt { key, detail } => {
                tracing::error!(%chain, key, detail, "a stored record is damaged");
                self.note_damage(chain, &key);
                Error::new(Kind::Internal, format!("the stored record {key} is damaged"))
            }
        }
    }
}

/// Damaged records that are remembered of all chains.
const MAX_DAMAGED: usize = 1_000;

impl Core {
    /// A record was read that is damaged: readiness names it until it is read whole.
    pub(super) fn note_damage(&self, chain: &ChainName, key: &str) {
        let mut damage = self.damage();
        if damage.len() < MAX_DAMAGED {
            damage.insert(key.to_owned(), chain.clone());
        }
    }

    /// The damaged records of a chain, for readiness.
    pub(super) fn damage_of(&self, chain: &ChainName) -> Option<String> {
        const NAMED: usize = 3;
        let damage = self.damage();
        let keys: Vec<_> =
            damage.iter().filter(|(_, of)| *of == chain).map(|(key, _)| key).collect();
        let named: Vec<_> = keys.iter().take(NAMED).map(|key| key.as_str()).collect();
        (!keys.is_empty())
            .then(|| format!("{} of its records are damaged ({})", keys.len(), named.join(", ")))
    }

    /// Reads records again that were damaged.
    pub(super) async fn check_damage(&self) {
        let keys: Vec<_> = self.damage().keys().take(MAX_DAMAGED / 10).cloned().collect();
        for key in keys {
            let is_whole = match self.store.get(&key).await {
                Ok(Some(entry)) => match record::parse_key(&key).map(|(_, part)| part) {
                    Some(Part::Head) => Head::decode(&key, &entry.value).is_ok(),
                    Some(Part::Kek(_)) => Kek::decode(&key, &entry.value).is_ok(),
                    Some(Part::Uses(_)) => Uses::decode(&key, &entry.value).is_ok(),
                    Some(Part::Claim) | None => true,
                },
                // One that is missing is damage too.
                Ok(None) | Err(_) => false,
            };
            if is_whole {
                tracing::info!(key, "a stored record that was damaged is whole again");
                self.damage().remove(&key);
            }
        }
    }

    fn damage(&self) -> MutexGuard<'_, BTreeMap<String, ChainName>> {
        self.damage.lock()
    }
}

impl Core {
    /// Every state in memory was as the store says, at `when`.
    pub(super) fn confirm(&self, when: Monotonic) {
        self.confirmed.store(when.as_nanos(), Ordering::Relaxed);
    }

    /// Whether every state in memory was as the store says within `time`, where others can write.
    pub(super) fn confirmed_within(&self, now: Monotonic, time: Duration) -> bool {
        self.shared
            && now.since(Monotonic::from_nanos(self.confirmed.load(Ordering::Relaxed))) < time
    }

    /// Whether states in memory may still be relied on: where others can change them, they are read
    /// every 20 s, and count for `offline_grace` while the store is away.
    pub(super) fn is_confirmed(&self, now: Monotonic) -> bool {
        !self.shared
            || now.since(Monotonic::from_nanos(self.confirmed.load(Ordering::Relaxed)))
                < self.config.cache.offline_grace
    }
}
