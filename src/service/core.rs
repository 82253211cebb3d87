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
use super::archive::archives::Archives;
use super::audit_key::Remembered;
use super::error::{Error, Kind};
use super::keyring::Keyring;
use super::last_used::UsedKeks;
use super::limits::rate_limiter::RateLimiter;
use super::limits::unknown::Unknown;
use super::monitored_store::MonitoredStore;
use super::rollback::summary::Summary;
use super::rotation::root_reports::Reports;
use super::status::history::History;

/// How many unknown names may be looked up in the store concurrently.
pub(super) const CONCURRENT_LOOKUPS: usize = 64;

/// The shared parts.
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) store: Arc<MonitoredStore>,
    /// Where the KEKs of new envelopes are placed, unless a chain is set to `inline`: inline if the
    /// store does not outlive the process.
    pub(super) placement: KekPlacement,
    pub(super) keyring: Keyring,
    pub(super) archives: Archives,
    pub(super) audit_key: Remembered,
    pub(super) deks: DekCache,
    /// On which days KEKs were used.
    pub(super) used: UsedKeks,
    pub(super) unknown: Unknown<(ChainName, KekId)>,
    pub(super) unknown_chains: Unknown<ChainName>,
    /// Limits concurrent look-ups of unknown names.
    pub(super) lookups: Semaphore,
    /// Limits concurrent backups.
    pub(super) backups: Arc<Semaphore>,
    /// When the last backup of the store began, in seconds since the Unix epoch; 0 without one.
    pub(super) last_backup: AtomicU64,
    /// Whether other processes can write to the store.
    pub(super) shared: bool,
    /// When all KEK states in memory last matched the store, in nanoseconds of monotonic time.
    pub(super) confirmed: AtomicU64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    /// Whether the last KEK that a chain needed could not be created or unwrapped. If so, every
    /// chain tries its own primary before a request needs it, so that readiness is correct.
    pub(super) in_doubt: AtomicBool,
    /// A random number that identifies this process in the records that it writes.
    pub(super) owner: u64,
    pub(super) stopping: watch::Sender<bool>,
    /// Damaged stored records: the chain of each by its key.
    pub(super) damage: Mutex<BTreeMap<String, ChainName>>,
    /// Limits how often KEKs that no root unwrapped are tried again.
    pub(super) retries: RateLimiter,
    /// Limits log lines about wraps that KEKs lack.
    pub(super) wrap_log: RateLimiter,
    /// Repairs after a rollback of the store that are not logged yet.
    pub(super) rollbacks: Summary,
    /// The roots that this process and others report to have configured.
    pub(super) root_reports: Mutex<Reports>,
    /// When the process started, in seconds since the Unix epoch.
    pub(super) started_at: u64,
    /// The counts of the last hour.
    pub(super) history: Mutex<History>,
    /// Locked while KEKs are counted for the status.
    pub(super) counting: tokio::sync::Mutex<()>,
}

impl Core {
    /// Changes that every replica must see need a shared store.
    pub(super) fn needs_store(&self, what: &str) -> Result<(), Error> {
        if self.placement == KekPlacement::Stored {
            return Ok(());
        }
        let detail = format!(
            "{what} with store.kind = \"inline\": nothing is stored, so no other process would know"
        );
        Err(Error::new(Kind::Conflict, detail))
    }

    /// Converts a store's error to one for clients, and logs what clients must not see.
    pub(super) fn store_error(&self, chain: &ChainName, error: store::Error) -> Error {
        match error {
            store::Error::Unavailable { .. } => {
                // The monitored store logs the outage, once.
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

/// The maximum number of damaged records that are remembered.
const MAX_DAMAGED: usize = 1_000;

impl Core {
    /// Notes a damaged record: readiness names it until it is read without an error.
    pub(super) fn note_damage(&self, chain: &ChainName, key: &str) {
        let mut damage = self.damage();
        if damage.len() < MAX_DAMAGED {
            damage.insert(key.to_owned(), chain.clone());
        }
    }

    /// Describes the damaged records of a chain, for readiness.
    pub(super) fn damage_of(&self, chain: &ChainName) -> Option<String> {
        const NAMED: usize = 3;
        let damage = self.damage();
        let keys: Vec<_> =
            damage.iter().filter(|(_, of)| *of == chain).map(|(key, _)| key).collect();
        let named: Vec<_> = keys.iter().take(NAMED).map(|key| key.as_str()).collect();
        (!keys.is_empty())
            .then(|| format!("{} of its records are damaged ({})", keys.len(), named.join(", ")))
    }

    /// Reads damaged records again, in case they were repaired.
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
                // A missing record is damage, too.
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
    /// Notes that every KEK state in memory matched the store at `when`.
    pub(super) fn confirm(&self, when: Monotonic) {
        self.confirmed.store(when.as_nanos(), Ordering::Relaxed);
    }

    /// When every KEK state in memory last matched the store.
    pub(super) fn confirmed_at(&self) -> Monotonic {
        Monotonic::from_nanos(self.confirmed.load(Ordering::Relaxed))
    }

    /// Whether every KEK state in memory matched a shared store within the last `time`.
    pub(super) fn confirmed_within(&self, now: Monotonic, time: Duration) -> bool {
        self.shared && now.since(self.confirmed_at()) < time
    }

    /// Whether the KEK states in memory may be relied on. Those of a shared store are read every 20
    /// s, and remain valid for `offline_grace` while it is unavailable.
    pub(super) fn is_confirmed(&self, now: Monotonic) -> bool {
        !self.shared || now.since(self.confirmed_at()) < self.config.cache.offline_grace
    }
}
