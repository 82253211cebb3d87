//! [`KeyService`]: the one door to the key chains, for HTTP, Kubernetes and the command line.
//!
//! It joins key chains in memory, the store and the roots, and keeps the promises of both: a
//! change is stored before it is used. It knows no HTTP and no gRPC.
//!
//! Encrypting is synchronous in all but name: it takes a reserved use from the chain's snapshot.
//! Only an empty budget waits. Decrypting waits only for a KEK that is not in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::Monotonic;
use crate::envelope::{Envelope, Version};
use crate::id::{ChainName, KekId, Suite};
use crate::keychain::dek_cache::SharedDek;
use crate::keychain::message::{Plaintext, Sealed};
use crate::keychain::{DecryptError, EncryptError, Form, KeyChain, Use};
use crate::metrics::{Metrics, Operation};
use crate::secret::SecretBytes;
use crate::store::record::{self, Limits};
use crate::timestamp::rfc3339;

mod allowance;
pub mod answer;
mod bootstrap;
mod bucket;
mod builder;
mod chain;
mod config;
mod continuity;
mod core;
pub mod error;
mod follower;
mod handle;
mod keyring;
mod ledger;
mod manage;
pub mod names;
mod observed;
mod recovery;
mod reserver;
pub mod restored;
mod root_check;
mod roots;
mod rotator;
mod starting;
mod states;
mod upkeep;
pub mod verify;

#[cfg(test)]
mod tests;

pub use allowance::Allowance;
pub use answer::{
    Absence, ChainInfo, ChainSettings, Change, Check, DataKey, Decrypted, Encrypted, Health,
    KekInfo, MissingKek, Page, Readiness, Rewrapped, RootProgress, Rotated,
};
pub use builder::Builder;
pub use config::{CacheConfig, ChainConfig, Config};
pub use continuity::names_root;
pub use error::{Error, Kind};
pub use handle::ChainHandle;
pub use roots::RootChange;
pub use starting::Starting;

use chain::{Chain, exhausted};
use core::Core;
use rotator::Trust;

/// The chain that always exists, and that calls without a chain mean.
pub const DEFAULT_CHAIN: &str = "default";

/// A KEK is disabled for at least 2 minutes before it is destroyed: reserved uses are void after
/// one, so no envelope is born under a destroyed KEK.
pub const MIN_DESTROY_DELAY: Duration = Duration::from_secs(120);

/// The one door.
pub struct KeyService {
    core: Arc<Core>,
    chains: ArcSwap<HashMap<ChainName, Arc<Chain>>>,
    /// Chains whose records are damaged, with what is wrong.
    damaged: Mutex<HashMap<ChainName, String>>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    draining: AtomicBool,
    /// The checks of parts beside the service.
    reports: Mutex<Vec<Check>>,
}

impl KeyService {
    /// Encrypts `plaintext`; `chain` is the caller's, `None` means `default`.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`], [`Kind::UnknownChain`], and when no use can be had
    /// [`Kind::KekExhausted`], [`Kind::RootUnavailable`] or [`Kind::StoreUnavailable`].
    pub(crate) async fn encrypt(
        &self,
        chain: Option<&str>,
        plaintext: Plaintext,
        aad: &[u8],
    ) -> Result<Encrypted, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Encrypt, chain).await?;
        let result = self.seal(&chain, plaintext, aad, started).await;
        self.finish(
            Operation::Encrypt,
            &chain,
            started,
            result.map(|(envelope, kek_id)| Encrypted {
                envelope,
                chain: chain.name.clone(),
                kek_id,
            }),
        )
    }

    /// Decrypts a whole binary envelope.
    ///
    /// # Errors
    /// [`Kind::InvalidRequest`], [`Kind::UnknownChain`], [`Kind::InvalidCiphertext`],
    /// [`Kind::UnknownKek`], [`Kind::KekDisabled`], and for a KEK that is not in memory
    /// [`Kind::RootUnavailable`] or [`Kind::StoreUnavailable`].
    pub(crate) async fn decrypt(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
        aad: &[u8],
    ) -> Result<Decrypted, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Decrypt, chain).await?;
        let result = self.open(&chain, envelope, aad, started).await;
        self.finish(Operation::Decrypt, &chain, started, result)
    }

    /// Moves a binary envelope, or a header alone, to the primary KEK. What is there already comes
    /// back unchanged and costs no use. A payload passed along is not verified.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt) and [`decrypt`](Self::decrypt).
    pub(crate) async fn rewrap(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
    ) -> Result<Rewrapped, Error> {
        self.rewrap_to(self.core.form, chain, envelope).await
    }

    /// The same, and the KEK travels along what comes back: it is of version 2, and any service opens
    /// it that has the chain's name and one of the roots. With a store of kind `inline` every rewrap
    /// is one of these.
    ///
    /// # Errors
    /// Those of [`rewrap`](Self::rewrap).
    pub(crate) async fn rewrap_inline(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
    ) -> Result<Rewrapped, Error> {
        self.rewrap_to(Form::Carried, chain, envelope).await
    }

    async fn rewrap_to(
        &self,
        form: Form,
        chain: Option<&str>,
        envelope: Vec<u8>,
    ) -> Result<Rewrapped, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Rewrap, chain).await?;
        let result = self.move_to_primary(&chain, envelope, form, started).await;
        self.finish(Operation::Rewrap, &chain, started, result)
    }

    /// Makes a random key of `bytes` bytes (16 to 64) and its envelope.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub(crate) async fn datakey(
        &self,
        chain: Option<&str>,
        bytes: usize,
        aad: &[u8],
    ) -> Result<DataKey, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Datakey, chain).await?;
        let result = async {
            if !(16..=64).contains(&bytes) {
                return Err(Error::new(Kind::InvalidRequest, "bytes is 16 to 64"));
            }
            let plaintext = SecretBytes::random(bytes).map_err(|error| internal(&error))?;
            let (envelope, kek_id) =
                self.seal(&chain, plaintext.expose().into(), aad, started).await?;
            Ok(DataKey { plaintext, envelope, chain: chain.name.clone(), kek_id })
        };
        let result = result.await;
        self.finish(Operation::Datakey, &chain, started, result)
    }

    /// Makes a new primary KEK now. A root must open a KEK that the chain has, if it has one.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::Overloaded`] when one is under way or there were many,
    /// [`Kind::RootUnavailable`], [`Kind::StoreUnavailable`], [`Kind::Conflict`].
    pub(crate) async fn rotate(&self, chain: Option<&str>) -> Result<Rotated, Error> {
        self.rotate_with(chain, Trust::Proven).await
    }

    /// The same by any root that answers, whatever the chain's older KEKs are: for an operator whose
    /// root key is lost for good. Other replicas encrypt again only if their roots open the new KEK.
    ///
    /// # Errors
    /// Those of [`rotate`](Self::rotate).
    pub(crate) async fn force_rotate(&self, chain: Option<&str>) -> Result<Rotated, Error> {
        self.rotate_with(chain, Trust::Any).await
    }

    async fn rotate_with(&self, chain: Option<&str>, trust: Trust) -> Result<Rotated, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Rotate, chain).await?;
        let work = {
            let (core, chain) = (Arc::clone(&self.core), Arc::clone(&chain));
            async move { rotator::rotate_by_hand(&core, &chain, trust).await }
        };
        // Each costs a call of every root, and the KEK stays in the store.
        let result = match allowance::charge(started) {
            Ok(()) => core::run_to_end(work).await,
            Err(error) => Err(error),
        };
        self.finish(Operation::Rotate, &chain, started, result)
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.core.metrics
    }

    /// Brings those metrics up to date that are only looked at when they are read.
    pub fn refresh_metrics(&self) {
        let deks = &self.core.deks;
        self.core.metrics.dek_cache_holds(deks.len(), deks.evicted());
        let missing: Vec<_> =
            self.chains.load().values().map(|chain| chain.missing_wraps.load_full()).collect();
        self.core.keyring.roots.report_missing(missing.iter().map(|chain| chain.as_slice()));
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for chain in self.chains.load().values() {
            let count = |absence| gauge(self.core.keyring.count_missing(&chain.name, absence));
            chain.metrics.unknown_keks.set(count(Absence::Unknown));
            chain.metrics.unopenable_keks.set(count(Absence::Unopenable));
            // While its records are read or written, it is as it was.
            if let Ok(reserver) = chain.reserver.try_lock() {
                chain.metrics.standby.set(i64::from(reserver.ledger.standby.is_some()));
            }
        }
    }

    /// How well the service stands, from memory alone.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let mut checks = vec![self.core.store.check()];
        checks.extend(self.core.keyring.roots.checks());
        checks.extend(self.damaged_chains().iter().map(|(chain, detail)| Check {
            name: format!("chain:{chain}"),
            health: Health::Degraded,
            detail: Some(detail.clone()),
        }));
        let now = self.core.clock.now();
        let (store, keyring) = (&self.core.store, &self.core.keyring);
        let reachable = store.is_up() && keyring.roots.is_any_up();
        let (mut can_encrypt, mut can_decrypt) = (false, keyring.holds_any());
        let chains = self.chains.load_full();
        let mut chains: Vec<_> = chains.values().collect();
        chains.sort_by_key(|chain| &chain.name);
        for chain in chains {
            let (snapshot, failure) = (chain.snapshot(), chain.root_failure.load());
            // A chain whose KEK no root opens is not helped by roots that answer.
            can_decrypt |= snapshot.keks().next().is_some() || reachable && failure.is_none();
            can_encrypt |= snapshot.budget().is_some_and(|budget| {
                budget.left(now) > 0 || store.is_up() && chain.trouble().is_none()
            });
            checks.extend(self.check_chain(chain));
        }
        checks.extend(self.reports.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        if self.is_draining() {
            let detail = Some("shutting down".to_owned());
            checks.push(Check { name: "service".to_owned(), health: Health::Down, detail });
        }
        let health = if self.is_draining() || !(can_encrypt || can_decrypt) {
            Health::Down
        } else if checks.iter().any(|check| check.health != Health::Ok) {
            Health::Degraded
        } else {
            Health::Ok
        };
        Readiness { health, checks }
    }

    /// What an operator should know of a chain.
    fn check_chain(&self, chain: &Chain) -> Option<Check> {
        /// KEKs that are named.
        const NAMED: usize = 3;
        let failure = chain.root_failure.load();
        let error = chain.trouble().or_else(|| failure.as_deref().cloned());
        let mut details: Vec<_> = error.iter().map(Error::for_operators).collect();
        details.extend(chain.clock_fault.load().as_deref().cloned());
        details.extend(self.core.damage_of(&chain.name));
        let keyring = &self.core.keyring;
        let missing = keyring.missing(&chain.name);
        let [unopenable, unknown] = [Absence::Unopenable, Absence::Unknown].map(|absence| {
            let ids = missing.iter().filter(|kek| kek.absence == absence);
            ids.map(|kek| kek.kek_id.to_string()).collect::<Vec<_>>()
        });
        let list = |ids: &[String]| ids.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if !unopenable.is_empty() {
            let (count, ids) = (unopenable.len(), list(&unopenable));
            details
                .push(format!("no root opens {count} of its KEKs ({ids}): kms-proxy kek missing"));
        }
        // Neither is a fault: callers can forge ids, and a root that leaves does so in steps.
        let health = if details.is_empty() { Health::Ok } else { Health::Degraded };
        if !unknown.is_empty() {
            let (count, ids) = (unknown.len(), list(&unknown));
            details.push(format!(
                "ciphertexts name {count} KEKs that it does not have ({ids}): kms-proxy kek missing"
            ));
        }
        let primary = chain.snapshot().primary_id();
        let primary = primary.and_then(|id| keyring.remembered(&chain.name, id));
        let wraps = primary.iter().flat_map(|kek| &kek.wraps);
        for wrap in wraps.filter(|wrap| !keyring.roots.is_configured(&wrap.root)) {
            let root = &wrap.root;
            details.push(format!(
                "its primary KEK has a wrap by root {root}, which is not configured and opens what is \
                 encrypted now: kms-proxy root remove --root {root}"
            ));
        }
        (!details.is_empty()).then(|| Check {
            name: format!("chain:{}", chain.name),
            health,
            detail: Some(details.join("; ")),
        })
    }

    /// The KEKs of `chain` that callers asked this process for and that can't be used, the longest
    /// missed first: ids that the chain does not have, and KEKs that no root opens.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::StoreUnavailable`].
    pub async fn missing_keks(&self, chain: &str) -> Result<Vec<MissingKek>, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Read, Some(chain)).await?;
        let missing = Ok(self.core.keyring.missing(&chain.name));
        self.finish(Operation::Read, &chain, started, missing)
    }

    /// Sets the check of a part beside the service, such as a listener. Readiness shows it.
    pub fn report(&self, check: Check) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.retain(|other| other.name != check.name);
        reports.push(check);
    }

    /// From now on [`readiness`](Self::readiness) is down; requests are still answered.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`drain`](Self::drain) was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Stops the background tasks after their current step.
    pub async fn stop(&self) {
        self.core.stopping.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            // A task that panicked has said so already.
            let _ = task.await;
        }
    }

    fn damaged_chains(&self) -> MutexGuard<'_, HashMap<ChainName, String>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chain that a caller means; a failure is counted.
    async fn find(&self, operation: Operation, chain: Option<&str>) -> Result<Arc<Chain>, Error> {
        let name = chain.unwrap_or(DEFAULT_CHAIN);
        if let Some(chain) = self.chains.load().get(name) {
            return Ok(Arc::clone(chain));
        }
        // Boxed: it is rare, and must not make the future of every request larger.
        let found = Box::pin(self.look_up(name)).await;
        if let Err(error) = &found {
            self.core.metrics.failed(operation, "", error.kind().code());
        }
        found
    }

    /// Looks for a chain that may have been made elsewhere a moment ago.
    async fn look_up(&self, name: &str) -> Result<Arc<Chain>, Error> {
        let name = ChainName::new(name)
            .map_err(|error| Error::new(Kind::InvalidRequest, error.to_string()))?;
        if self.damaged_chains().contains_key(&name) {
            return Err(Error::new(Kind::Internal, "the stored record of this chain is damaged"));
        }
        let unknown = || Error::new(Kind::UnknownChain, "there is no chain of this name");
        if !self.core.shared || self.core.unknown_chains.contains(&name, self.core.clock.now()) {
            return Err(unknown());
        }
        allowance::charge(self.core.clock.now())?;
        let _permit = self.core.lookups.acquire().await.map_err(|error| internal(&error))?;
        match self.load_chain(&name).await {
            Ok(Some(chain)) => Ok(chain),
            Ok(None) => {
                self.core.unknown_chains.insert(name, self.core.clock.now());
                Err(unknown())
            }
            Err(error) => Err(self.core.store_error(&name, error)),
        }
    }

    /// Counts how a call on `chain` ended.
    fn finish<T>(
        &self,
        operation: Operation,
        chain: &Chain,
        started: Monotonic,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        let metrics = &self.core.metrics;
        match &result {
            Ok(_) => metrics.succeeded(&chain.metrics, operation),
            Err(error) => metrics.failed(operation, chain.name.as_str(), error.kind().code()),
        }
        metrics.took(operation, self.core.clock.now().since(started));
        result
    }

    async fn seal(
        &self,
        chain: &Chain,
        plaintext: Plaintext,
        aad: &[u8],
        now: Monotonic,
    ) -> Result<(Sealed, KekId), Error> {
        let form = self.core.form;
        self.spend_use(chain, now, |one| one.in_form(form).seal(plaintext, aad)).await
    }

    /// Spends one use; waits for the next block or KEK when there is none. What comes of it is
    /// under the KEK whose id comes along.
    async fn spend_use<T>(
        &self,
        chain: &Chain,
        mut now: Monotonic,
        spend: impl FnOnce(Use<'_>) -> Result<T, EncryptError>,
    ) -> Result<(T, KekId), Error> {
        let mut until = None;
        let rounds = chain.rounds();
        loop {
            let snapshot = chain.snapshot();
            if let Some(one) = snapshot.take(now) {
                chain.watch_level(&snapshot, now);
                let (void_at, id) = (one.void_at(), one.kek_id());
                let made = spend(one).map_err(encrypt_error)?;
                // It may have become void meanwhile: then nobody gets what came of it.
                return if self.core.clock.now() < void_at {
                    Ok((made, id))
                } else {
                    Err(exhausted("the reserved use became void while it was spent; try again"))
                };
            }
            let until = match until {
                None => *until.insert(now + self.core.config.wait),
                Some(until) => {
                    // A turn may be left over from those who waited before.
                    if let Some(error) = chain.trouble().filter(|_| chain.rounds() != rounds) {
                        return Err(error);
                    }
                    until
                }
            };
            chain.wait_for_uses(until.since(now), self.core.config.max_waiting).await?;
            now = self.core.clock.now();
        }
    }

    async fn open(
        &self,
        chain: &Chain,
        envelope: Vec<u8>,
        aad: &[u8],
        now: Monotonic,
    ) -> Result<Decrypted, Error> {
        let parsed = Envelope::parse(&envelope).map_err(|_| Error::invalid_ciphertext())?;
        let kek_id = parsed.header.kek_id;
        let (snapshot, dek) = self.open_dek(chain, &parsed, now).await?;
        let plaintext = snapshot.open(&dek, envelope, aad).map_err(decrypt_error)?;
        Ok(Decrypted { plaintext, chain: chain.name.clone(), kek_id })
    }

    async fn move_to_primary(
        &self,
        chain: &Chain,
        envelope: Vec<u8>,
        form: Form,
        now: Monotonic,
    ) -> Result<Rewrapped, Error> {
        let parsed =
            Envelope::parse_header_or_whole(&envelope).map_err(|_| Error::invalid_ciphertext())?;
        let previous_kek_id = parsed.header.kek_id;
        let (snapshot, dek) = self.open_dek(chain, &parsed, now).await?;
        let chain_name = chain.name.clone();
        if snapshot.is_current(&parsed, form) {
            return Ok(Rewrapped {
                envelope,
                chain: chain_name,
                kek_id: previous_kek_id,
                previous_kek_id,
            });
        }
        // The root may have been asked meanwhile.
        let now = self.core.clock.now();
        let (mut rewrapped, kek_id) =
            self.spend_use(chain, now, |one| one.in_form(form).seal_dek(&dek)).await?;
        rewrapped.extend_from_slice(parsed.payload);
        Ok(Rewrapped { envelope: rewrapped, chain: chain_name, kek_id, previous_kek_id })
    }

    /// Opens the DEK of an envelope: from the cache, by a KEK in memory, or by way of the root.
    async fn open_dek(
        &self,
        chain: &Chain,
        envelope: &Envelope<'_>,
        now: Monotonic,
    ) -> Result<(Arc<KeyChain>, SharedDek), Error> {
        let Core { deks, keyring, metrics, .. } = &*self.core;
        let (header, id) = (&envelope.header, envelope.header.kek_id);
        let mut snapshot = chain.snapshot();
        snapshot.allows(id).map_err(decrypt_error)?;
        if !self.core.is_confirmed(now) {
            return Err(Error::new(
                Kind::StoreUnavailable,
                "the store has been away for longer than cache.offline_grace",
            ));
        }
        if let Some(dek) = deks.get(&chain.name, header, now) {
            metrics.dek_cache_hits.inc();
            return Ok((snapshot, dek));
        }
        let held = snapshot.kek(id).cloned().or_else(|| keyring.in_memory(&chain.name, id));
        let kek = match held {
            Some(kek) => kek,
            None => {
                let stored = keyring.get(&chain.name, id, self.fetch(chain, id, now)).await;
                let kek = match (stored, header.version) {
                    // What the store says of a KEK wins over the record that travels along.
                    (Err(error), Version::Carried(record)) if error.kind() == Kind::UnknownKek => {
                        keyring.carried(&chain.name, header.suite, id, record).await?
                    }
                    (stored, _) => stored.inspect_err(|error| {
                        if error.kind() == Kind::UnknownKek {
                            keyring.note_unknown(&chain.name, id);
                        }
                    })?,
                };
                // It may have been disabled meanwhile: then it must not stay in memory.
                snapshot = chain.snapshot();
                snapshot.allows(id).map_err(|error| {
                    keyring.drop_kek(&chain.name, id);
                    decrypt_error(error)
                })?;
                kek
            }
        };
        let dek = kek.open_dek(header).map_err(decrypt_error)?;
        metrics.dek_cache_misses.inc();
        Ok((snapshot, deks.insert(&chain.name, header, dek, now)))
    }

    /// Reads the record of a KEK that is not in memory.
    async fn fetch(&self, chain: &Chain, id: KekId, now: Monotonic) -> Result<record::Kek, Error> {
        let unknown = || decrypt_error(DecryptError::UnknownKek(id));
        let name = (chain.name.clone(), id);
        if self.core.unknown.contains(&name, now) {
            return Err(unknown());
        }
        allowance::charge(now)?;
        let _permit = self.core.lookups.acquire().await.map_err(|error| internal(&error))?;
        let read =
            ledger::read::<record::Kek>(&*self.core.store, &record::kek_key(&chain.name, id)).await;
        let Some(read) = read.map_err(|error| self.core.store_error(&chain.name, error))? else {
            self.core.unknown.insert(name, now);
            return Err(unknown());
        };
        self.core.keyring.note_known(&chain.name, id);
        if states::refusal(read.record.state).is_none() {
            return Ok(read.record);
        }
        let read = states::learn(&self.core, chain, id).await;
        let kek = read.map_err(|error| self.core.store_error(&chain.name, error))?;
        let kek = kek.ok_or_else(unknown)?;
        match states::refusal(kek.state) {
            None => Ok(kek),
            Some(refusal) => Err(decrypt_error(DecryptError::Refused(id, refusal))),
        }
    }
}

fn encrypt_error(error: EncryptError) -> Error {
    match error {
        EncryptError::AadTooLong | EncryptError::OtherSuite => {
            Error::new(Kind::InvalidRequest, error.to_string())
        }
        EncryptError::NoRecord => Error::new(Kind::Conflict, error.to_string()),
        EncryptError::TooLong => Error::new(Kind::PayloadTooLarge, error.to_string()),
        EncryptError::Exhausted => exhausted("no use of the KEK is left"),
        EncryptError::Randomness(error) => internal(&error),
    }
}

fn decrypt_error(error: DecryptError) -> Error {
    match error {
        DecryptError::Invalid => Error::invalid_ciphertext(),
        DecryptError::UnknownKek(id) => Error::new(
            Kind::UnknownKek,
            format!("the ciphertext names KEK {id}, which this chain does not have"),
        ),
        DecryptError::Refused(..) => Error::new(Kind::KekDisabled, error.to_string()),
    }
}

fn internal(error: &dyn std::error::Error) -> Error {
    tracing::error!(%error, "a call failed for a reason of our own");
    Error::new(Kind::Internal, "the service failed; its log says why")
}
