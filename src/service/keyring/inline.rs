//! Inline KEKs: those in envelopes of versions 2 and 4. A root opens each once, and they
//! are kept apart from the KEKs that the chains have made.
//!
//! Any caller that may decrypt can forge an inline record. So a forged record evicts nothing that
//! was opened, does not change the health of a root, and costs a bounded number of root calls.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::clock::Monotonic;
use crate::envelope::InlineRecord;
use crate::id::{ChainName, KekId, Suite};
use crate::keychain::kek::Kek;
use crate::root::{self, Context, MAX_WRAP_LEN};
use crate::service::error::{Error, Kind};
use crate::service::limits::lookup_quota::charge;
use crate::service::limits::rate_limiter::RateLimiter;
use crate::single_flight::SingleFlight;
use crate::store::record::Wrap;

use super::roots::Wrapped;
use super::{AWAY_FOR, CacheKey, FAILURES, Failure, Keyring, Opening, REFUSED_FOR};
use super::{check, unavailable};

/// Concurrent root calls for inline KEKs, beside those for the KEKs of the chains.
const CONCURRENT: usize = 8;
/// An outage that is reported after this time counts as a failed call: a forged record may be the
/// reason, such as one with the highest cost of a passphrase.
const SLOW: Duration = Duration::from_secs(2);

/// Rate limit, per chain, on root calls that fail for inline KEKs: a burst of this many,
const FAILED_CALLS: u32 = 100;
/// then one per interval. A day of it costs 86,400 calls: about 0.26 USD in AWS KMS.
const FAILED_CALLS_EVERY: Duration = Duration::from_secs(1);

/// SHA-256 of chain, suite, KEK id and record. The record alone is not sufficient: with a forged id
/// before a good record, a caller could have the good one refused.
type Digest = [u8; 32];

/// The inline KEKs in memory, and the limits on calls for others.
pub(super) struct Inline {
    opened: Cache<CacheKey, Arc<Opened>>,
    calls: SingleFlight<Digest, Result<Arc<Kek>, Error>>,
    failures: Cache<Digest, Failure>,
    unwraps: Semaphore,
    /// One call at a time of roots that derive a key for it: no more than one forged record is ever
    /// ahead of the chains' KEKs.
    derivations: Semaphore,
    /// Failures are logged once a minute. Wraps that are wrong have a limit of their own, since
    /// callers can forge them: they must not hide a root that is away or denies access.
    wrong_logs: RateLimiter,
    closed_logs: RateLimiter,
    /// The failed calls of each chain: one chain cannot use up another's limit. Unknown chains are
    /// refused before, so there are few entries.
    failed_calls: Mutex<HashMap<ChainName, Arc<RateLimiter>>>,
}

/// A KEK that a root opened.
struct Opened {
    kek: Arc<Kek>,
    /// The wraps, to check later whether a root still opens it.
    wrapped: Wrapped,
    /// When a root last opened it, in nanoseconds of monotonic time.
    checked: AtomicU64,
}

impl Inline {
    pub(super) fn new(keks: usize) -> Self {
        Self {
            opened: Cache::new(keks.max(1)),
            calls: SingleFlight::default(),
            failures: Cache::new(FAILURES),
            unwraps: Semaphore::new(CONCURRENT),
            derivations: Semaphore::new(1),
            wrong_logs: RateLimiter::new(1, Duration::from_secs(60)),
            closed_logs: RateLimiter::new(1, Duration::from_secs(60)),
            failed_calls: Mutex::default(),
        }
    }

    pub(super) fn get(&self, key: &CacheKey) -> Option<Arc<Kek>> {
        self.opened.get(key).map(|opened| Arc::clone(&opened.kek))
    }

    pub(super) fn drop_kek(&self, key: &CacheKey) {
        self.opened.remove(key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.opened.is_empty()
    }

    fn failed_calls(&self, chain: &ChainName) -> Arc<RateLimiter> {
        let mut chains = self.failed_calls.lock();
        let full = || Arc::new(RateLimiter::new(FAILED_CALLS, FAILED_CALLS_EVERY));
        Arc::clone(chains.entry(chain.clone()).or_insert_with(full))
    }
}

/// Whether the result of a shared call is one for all requests: that one of them has used up its
/// quota concerns no other.
pub(super) fn is_for_all(result: &Result<Arc<Kek>, Error>) -> bool {
    !result.as_ref().is_err_and(|error| error.kind() == Kind::Overloaded)
}

/// Why no root opened a record.
enum Closed {
    /// One of its roots is away, and may open it later.
    Away,
    /// A root denies access, or it may have another key than the root that is meant.
    Denied,
    /// The roots have the right keys, and did not make it.
    Wrong,
}

impl Keyring {
    /// The inline KEK of an envelope, from memory or opened by a root. For KEKs that the chain does
    /// not have.
    pub(in crate::service) async fn inline(
        &self,
        chain: &ChainName,
        suite: Suite,
        id: KekId,
        record: &[u8],
    ) -> Result<Arc<Kek>, Error> {
        let key = (chain.clone(), id);
        if let Some(kek) = self.inline.get(&key) {
            return Ok(kek);
        }
        let digest = digest(chain, suite, id, record);
        let open = async {
            // Another request may have opened it between the two checks.
            if let Some(kek) = self.inline.get(&key) {
                return Ok(kek);
            }
            if let Some(error) = self.failure_in(&self.inline.failures, &digest) {
                return Err(error);
            }
            charge(self.clock.now())?;
            let wrapped = self.by_configured_roots(suite, record)?;
            let unwraps = &self.inline.unwraps;
            let _permit = unwraps.acquire().await.map_err(|_| unavailable("stopping"))?;
            self.open_inline(chain, id, wrapped, digest).await
        };
        self.inline.calls.join(&digest, open, is_for_all).await
    }

    /// The wraps of an inline record by roots that are configured here.
    fn by_configured_roots(&self, suite: Suite, record: &[u8]) -> Result<Wrapped, Error> {
        let parsed = InlineRecord::parse(record).map_err(|_| Error::invalid_ciphertext())?;
        let configured = parsed.wraps.iter().filter(|(root, _)| self.roots.is_configured(root));
        let mut wraps: Vec<Wrap> = Vec::new();
        for (root, bytes) in configured {
            // One call per root: its first wrap counts.
            if wraps.iter().all(|wrap| wrap.root != *root) {
                wraps.push(Wrap { root: root.to_string(), bytes: bytes.to_vec() });
            }
        }
        if wraps.is_empty() {
            return Err(Error::new(
                Kind::UnknownKek,
                "no root that is configured here wrapped the inline KEK of the ciphertext",
            ));
        }
        // No root makes longer wraps.
        wraps.retain(|wrap| wrap.bytes.len() <= MAX_WRAP_LEN);
        if wraps.is_empty() {
            return Err(Error::invalid_ciphertext());
        }
        Ok(Wrapped { suite, wraps })
    }

    /// Opens an inline KEK, and remembers the result.
    async fn open_inline(
        &self,
        chain: &ChainName,
        id: KekId,
        wrapped: Wrapped,
        digest: Digest,
    ) -> Result<Arc<Kek>, Error> {
        let started = self.clock.now();
        let failed_calls = self.inline.failed_calls(chain);
        if !failed_calls.take(started) {
            let why = "too many ciphertexts of this chain had inline KEKs that no root opens; \
                       ciphertexts whose KEKs are in memory are not affected";
            return Err(Error::new(Kind::Overloaded, why).retry_after(failed_calls.every()));
        }
        let (error, forgotten) = match self.ask(chain, id, &wrapped).await {
            Ok(kek) => {
                failed_calls.give_back();
                let checked = self.clock.now().as_nanos().into();
                let opened = Opened { kek: Arc::clone(&kek), wrapped, checked };
                self.inline.opened.insert((chain.clone(), id), Arc::new(opened));
                return Ok(kek);
            }
            Err(Closed::Away) => {
                if self.clock.now().since(started) < SLOW {
                    failed_calls.give_back();
                }
                (unavailable("no root opens the inline KEK of the ciphertext now"), AWAY_FOR)
            }
            Err(Closed::Denied) => {
                (unavailable("no root opens the inline KEK of the ciphertext"), REFUSED_FOR)
            }
            Err(Closed::Wrong) => (Error::invalid_ciphertext(), REFUSED_FOR),
        };
        let until = self.clock.now() + forgotten;
        let recoveries = self.roots.recoveries();
        let failure = Failure { error: error.clone(), until, recoveries };
        self.inline.failures.insert(digest, failure);
        Err(error)
    }

    /// Has the roots open an inline KEK, those that are up first.
    async fn ask(
        &self,
        chain: &ChainName,
        id: KekId,
        wrapped: &Wrapped,
    ) -> Result<Arc<Kek>, Closed> {
        let context = Context { chain, kek_id: id, suite: wrapped.suite };
        let mut closed = Closed::Wrong;
        for (state, wrap) in self.roots.candidates(&wrapped.wraps) {
            let _turn = match state.named.root.derives() {
                true => self.inline.derivations.acquire().await.ok(),
                false => None,
            };
            let opened =
                async { check(state.named.root.unwrap(context, &wrap.bytes).await?, &context) };
            match self.roots.call_for_caller(state, "unwrap", chain, opened).await {
                Ok(key) => {
                    state.opened_inline(chain, id);
                    return Ok(Arc::new(Kek::new(chain, key)));
                }
                Err(error) => {
                    // The record may be forged, so this does not change the health of the root.
                    let (root, why) = (&state.named.name, error.to_string());
                    let (logs, hint) = match error {
                        root::Error::Wrong(_) => {
                            (&self.inline.wrong_logs, ": it is of another key, or forged")
                        }
                        _ => (&self.inline.closed_logs, ""),
                    };
                    if logs.take(self.clock.now()) {
                        tracing::warn!(%root, %chain, kek_id = %id, why, "a root did not open an \
                            inline KEK{hint}");
                    } else {
                        tracing::debug!(%root, %chain, kek_id = %id, why, "a root did not open an \
                            inline KEK");
                    }
                    closed = match (error, closed) {
                        (root::Error::Away(_), _) | (_, Closed::Away) => Closed::Away,
                        (root::Error::Denied(_), _) | (_, Closed::Denied) => Closed::Denied,
                        // To a root with another key, a good record looks like a forged one.
                        (root::Error::Wrong(_), _) if !state.opened_any_foreign() => Closed::Denied,
                        (root::Error::Wrong(_), Closed::Wrong) => Closed::Wrong,
                    };
                }
            }
        }
        Err(closed)
    }

    /// The inline KEKs in memory.
    pub(in crate::service) fn inline_keks(&self) -> Vec<(ChainName, KekId)> {
        self.inline.opened.iter().map(|(key, _)| key).collect()
    }

    /// Whether an inline KEK is in memory.
    pub(in crate::service) fn has_inline(&self, chain: &ChainName, id: KekId) -> bool {
        self.inline.opened.contains_key(&(chain.clone(), id))
    }

    /// How long ago roots opened an inline KEK, and which ones could.
    pub(in crate::service) fn inline_checked(
        &self,
        chain: &ChainName,
        id: KekId,
        now: Monotonic,
    ) -> Option<(Duration, Vec<String>)> {
        let opened = self.inline.opened.peek(&(chain.clone(), id))?;
        let checked = Monotonic::from_nanos(opened.checked.load(Ordering::Relaxed));
        let roots = opened.wrapped.wraps.iter().map(|wrap| wrap.root.clone());
        Some((now.since(checked), roots.collect()))
    }

    /// Whether roots still open an inline KEK.
    pub(in crate::service) async fn check_inline(&self, chain: &ChainName, id: KekId) -> Opening {
        let Some(opened) = self.inline.opened.peek(&(chain.clone(), id)) else {
            return Opening::Refused;
        };
        match self.ask(chain, id, &opened.wrapped).await {
            Ok(_) => {
                opened.checked.store(self.clock.now().as_nanos(), Ordering::Relaxed);
                Opening::Opens
            }
            Err(Closed::Away) => Opening::Away,
            Err(Closed::Denied | Closed::Wrong) => Opening::Refused,
        }
    }
}

fn digest(chain: &ChainName, suite: Suite, id: KekId, record: &[u8]) -> Digest {
    // A zero byte cannot be part of a chain's name, so it ends the name.
    let start = Sha256::new().chain_update(chain.as_str()).chain_update([0, suite.code()]);
    start.chain_update(id.as_bytes()).chain_update(record).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_differ_if_any_input_differs() {
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
