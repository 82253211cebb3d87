//! KEKs that callers bring along in version 2 envelopes: opened by a root once, and kept apart from
//! those that the chains have made.
//!
//! Whoever may decrypt can make up such records. So what is made up can push out nothing that was
//! opened, changes nothing of how a root stands, and costs a bounded number of its calls.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::clock::Monotonic;
use crate::envelope::InlineRecord;
use crate::id::{ChainName, KekId, Suite};
use crate::keychain::kek::Kek;
use crate::root::{self, Context, MAX_WRAP_LEN};
use crate::service::allowance::charge;
use crate::service::bucket::Bucket;
use crate::service::error::{Error, Kind};
use crate::store::record::{self, State, Wrap};

use super::flights::Flights;
use super::{AWAY_FOR, CacheKey, FAILURES, Failure, Keyring, REFUSED_FOR, Standing};
use super::{check, unavailable};

/// How many of them may be on their way from a root at once, beside those of the chains.
const CONCURRENT: usize = 8;
/// An outage that is told after this long costs as much: a made-up record may be the reason, such as
/// one that names the highest cost of a passphrase.
const SLOW: Duration = Duration::from_secs(2);

/// Calls of roots that a chain's callers may cost in vain: this many at once,
const IN_VAIN: u32 = 100;
/// and then one in this time. A day of it costs 86,400 calls: some 0.26 USD in AWS KMS.
const IN_VAIN_EVERY: Duration = Duration::from_secs(1);

/// SHA-256 of chain, suite, KEK id and record. The record alone would not do: with a made-up id before
/// a good record, a caller could have the good one refused.
type Digest = [u8; 32];

/// The KEKs that travelled along.
pub(super) struct Carried {
    opened: Cache<CacheKey, Arc<Traveller>>,
    flights: Flights<Digest>,
    failures: Cache<Digest, Failure>,
    unwraps: Semaphore,
    /// Of roots that derive a key for it: of what is made up no more than one is ever ahead of the
    /// chains' own KEKs.
    derivations: Semaphore,
    /// What did not open is told of once a minute. Callers can make up a wrap that is wrong: it takes
    /// the place of no root that is away, or says no.
    told_wrong: Bucket,
    told_closed: Bucket,
    /// The calls in vain of each chain: those of one can't use up another's. A chain that is not there
    /// gets no further than its name, so there are not many.
    in_vain: Mutex<HashMap<ChainName, Arc<Bucket>>>,
}

/// A KEK that a root opened.
struct Traveller {
    kek: Arc<Kek>,
    /// What opened it, to ask again whether it still does.
    record: record::Kek,
    /// When that was, in nanoseconds.
    checked: AtomicU64,
}

impl Carried {
    pub(super) fn new(keks: usize) -> Self {
        Self {
            opened: Cache::new(keks.max(1)),
            flights: Flights::default(),
            failures: Cache::new(FAILURES),
            unwraps: Semaphore::new(CONCURRENT),
            derivations: Semaphore::new(1),
            told_wrong: Bucket::new(1, Duration::from_secs(60)),
            told_closed: Bucket::new(1, Duration::from_secs(60)),
            in_vain: Mutex::default(),
        }
    }

    pub(super) fn get(&self, key: &CacheKey) -> Option<Arc<Kek>> {
        self.opened.get(key).map(|traveller| Arc::clone(&traveller.kek))
    }

    pub(super) fn drop_kek(&self, key: &CacheKey) {
        self.opened.remove(key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.opened.is_empty()
    }

    fn in_vain(&self, chain: &ChainName) -> Arc<Bucket> {
        let mut chains = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        let full = || Arc::new(Bucket::new(IN_VAIN, IN_VAIN_EVERY));
        Arc::clone(chains.entry(chain.clone()).or_insert_with(full))
    }
}

/// Why no root opened a record.
enum Closed {
    /// One of its roots is away, and may open it later.
    Away,
    /// A root says no.
    Denied,
    /// It is not what a root of this name made.
    Wrong,
}

impl Keyring {
    /// The KEK of an envelope that carries it, from memory or by a root. To be asked when the chain
    /// itself has no such KEK.
    pub(in crate::service) async fn carried(
        &self,
        chain: &ChainName,
        suite: Suite,
        id: KekId,
        record: &[u8],
    ) -> Result<Arc<Kek>, Error> {
        let key = (chain.clone(), id);
        if let Some(kek) = self.carried.get(&key) {
            return Ok(kek);
        }
        let digest = digest(chain, suite, id, record);
        let open = async {
            // It may have landed between the two looks.
            if let Some(kek) = self.carried.get(&key) {
                return Ok(kek);
            }
            if let Some(error) = self.failure_in(&self.carried.failures, &digest) {
                return Err(error);
            }
            charge(self.clock.now())?;
            let record = self.asked_for(suite, record)?;
            let unwraps = &self.carried.unwraps;
            let _permit = unwraps.acquire().await.map_err(|_| unavailable("stopping"))?;
            self.open_carried(chain, id, record, digest).await
        };
        self.carried.flights.join(&digest, open).await
    }

    /// The wraps of a carried record that a configured root can be asked for, as a record.
    fn asked_for(&self, suite: Suite, record: &[u8]) -> Result<record::Kek, Error> {
        let parsed = InlineRecord::parse(record).map_err(|_| Error::invalid_ciphertext())?;
        let configured = parsed.wraps.iter().filter(|(root, _)| self.roots.is_configured(root));
        let mut wraps: Vec<Wrap> = Vec::new();
        for (root, bytes) in configured {
            // One call a root: its first wrap counts.
            if wraps.iter().all(|wrap| wrap.root != *root) {
                wraps.push(Wrap { root: root.to_string(), bytes: bytes.to_vec() });
            }
        }
        if wraps.is_empty() {
            return Err(Error::new(
                Kind::UnknownKek,
                "the ciphertext carries a KEK that was wrapped by none of the roots configured here",
            ));
        }
        // No root makes longer ones, so none need be asked.
        wraps.retain(|wrap| wrap.bytes.len() <= MAX_WRAP_LEN);
        if wraps.is_empty() {
            return Err(Error::invalid_ciphertext());
        }
        Ok(record::Kek {
            suite,
            state: State::Retired,
            created_at: 0,
            promoted_at: None,
            disabled_at: None,
            exposed: self.roots.exposes(&wraps),
            wraps,
        })
    }

    /// Opens a record, and remembers what came of it.
    async fn open_carried(
        &self,
        chain: &ChainName,
        id: KekId,
        record: record::Kek,
        digest: Digest,
    ) -> Result<Arc<Kek>, Error> {
        let started = self.clock.now();
        let in_vain = self.carried.in_vain(chain);
        if !in_vain.take(started) {
            let why = "too many ciphertexts of this chain carried KEKs that no root opens; those whose \
                       KEKs are in memory are not affected";
            return Err(Error::new(Kind::Overloaded, why).retry_after(in_vain.every()));
        }
        let (error, forgotten) = match self.ask(chain, id, &record).await {
            Ok(kek) => {
                in_vain.give_back();
                let checked = self.clock.now().as_nanos().into();
                let traveller = Traveller { kek: Arc::clone(&kek), record, checked };
                self.carried.opened.insert((chain.clone(), id), Arc::new(traveller));
                return Ok(kek);
            }
            Err(Closed::Away) => {
                if self.clock.now().since(started) < SLOW {
                    in_vain.give_back();
                }
                (unavailable("no root opens the KEK that the ciphertext carries now"), AWAY_FOR)
            }
            Err(Closed::Denied) => {
                (unavailable("no root opens the KEK that the ciphertext carries"), REFUSED_FOR)
            }
            Err(Closed::Wrong) => (Error::invalid_ciphertext(), REFUSED_FOR),
        };
        let until = self.clock.now() + forgotten;
        let recoveries = self.roots.recoveries();
        let failure = Failure { error: error.clone(), until, recoveries };
        self.carried.failures.insert(digest, failure);
        Err(error)
    }

    /// Asks the roots of a record, those that are up first.
    async fn ask(
        &self,
        chain: &ChainName,
        id: KekId,
        record: &record::Kek,
    ) -> Result<Arc<Kek>, Closed> {
        let context = Context { chain, kek_id: id, suite: record.suite };
        let mut closed = Closed::Wrong;
        for (state, wrap) in self.roots.candidates(record) {
            let _turn = match state.named.root.derives() {
                true => self.carried.derivations.acquire().await.ok(),
                false => None,
            };
            let opened =
                async { check(state.named.root.unwrap(context, &wrap.bytes).await?, &context) };
            match self.roots.call_for_caller(state, "unwrap", opened).await {
                Ok(key) => return Ok(Arc::new(Kek::new(chain, key))),
                Err(error) => {
                    // It says nothing of the root: whoever made up the record may have been at it.
                    let (root, why) = (&state.named.name, error.to_string());
                    let (told, hint) = match error {
                        root::Error::Wrong(_) => {
                            (&self.carried.told_wrong, ": it is of another key, or made up")
                        }
                        _ => (&self.carried.told_closed, ""),
                    };
                    if told.take(self.clock.now()) {
                        tracing::warn!(%root, %chain, kek_id = %id, why, "a root did not open a KEK that travelled along{hint}");
                    } else {
                        tracing::debug!(%root, %chain, kek_id = %id, why, "a root did not open a KEK that travelled along");
                    }
                    closed = match (error, closed) {
                        (root::Error::Away(_), _) | (_, Closed::Away) => Closed::Away,
                        (root::Error::Denied(_), _) | (_, Closed::Denied) => Closed::Denied,
                        (root::Error::Wrong(_), Closed::Wrong) => Closed::Wrong,
                    };
                }
            }
        }
        Err(closed)
    }

    /// The KEKs that travelled along and are in memory.
    pub(in crate::service) fn travellers(&self) -> Vec<(ChainName, KekId)> {
        self.carried.opened.iter().map(|(key, _)| key).collect()
    }

    /// Whether a KEK that travelled along is in memory.
    pub(in crate::service) fn has_traveller(&self, chain: &ChainName, id: KekId) -> bool {
        self.carried.opened.contains_key(&(chain.clone(), id))
    }

    /// How long ago roots opened a KEK that travelled along, and which ones could.
    pub(in crate::service) fn traveller(
        &self,
        chain: &ChainName,
        id: KekId,
        now: Monotonic,
    ) -> Option<(Duration, Vec<String>)> {
        let traveller = self.carried.opened.peek(&(chain.clone(), id))?;
        let checked = Monotonic::from_nanos(traveller.checked.load(Ordering::Relaxed));
        let roots = traveller.record.wraps.iter().map(|wrap| wrap.root.clone());
        Some((now.since(checked), roots.collect()))
    }

    /// Asks the roots of a KEK that travelled along whether they still open it.
    pub(in crate::service) async fn check_traveller(
        &self,
        chain: &ChainName,
        id: KekId,
    ) -> Standing {
        let Some(traveller) = self.carried.opened.peek(&(chain.clone(), id)) else {
            return Standing::Refused;
        };
        match self.ask(chain, id, &traveller.record).await {
            Ok(_) => {
                traveller.checked.store(self.clock.now().as_nanos(), Ordering::Relaxed);
                Standing::Opens
            }
            Err(Closed::Away) => Standing::Away,
            Err(Closed::Denied | Closed::Wrong) => Standing::Refused,
        }
    }
}

fn digest(chain: &ChainName, suite: Suite, id: KekId, record: &[u8]) -> Digest {
    // A chain's name ends where a byte stands that it can't have.
    let start = Sha256::new().chain_update(chain.as_str()).chain_update([0, suite.code()]);
    start.chain_update(id.as_bytes()).chain_update(record).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_in_anything_is_told_apart() {
        let [one, two] = ["orders", "orders2"].map(|name| ChainName::new(name).unwrap());
        let id = |byte| KekId::from_bytes([byte; 16]);
        let (small, large) = (Suite::Aes128Gcm, Suite::Aes256Gcm);
        let digests = [
            digest(&one, small, id(1), b"record"),
            digest(&two, small, id(1), b"record"),
            digest(&one, large, id(1), b"record"),
            digest(&one, small, id(2), b"record"),
            digest(&one, small, id(1), b"recorD"),
        ];
        let distinct: std::collections::HashSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
    }
}
