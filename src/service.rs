//! [`KeyService`]: the one door to the key chains, for HTTP, Kubernetes and the command line.
//!
//! It joins key chains in memory, the store and the roots, and keeps the promises of both: a
//! change is stored before it is used. It knows no HTTP and no gRPC.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::id::{ChainName, KekId, Suite};
use crate::keychain::message::{Opened, Plaintext, Sealed};
use crate::metrics::Metrics;
use crate::root;
use crate::secret::SecretBytes;
use crate::store::Store;
use crate::store::record::{Limits, State};

pub mod error;

pub use error::{Error, Kind};

/// The chain that always exists, and that calls without a chain mean.
pub const DEFAULT_CHAIN: &str = "default";

/// Settings of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Chains to make at start, besides `default`.
    pub names: Vec<ChainName>,
    /// The suite of new chains.
    pub suite: Suite,
    /// The limits of new chains.
    pub limits: Limits,
    /// How long a KEK must be disabled before it can be destroyed: 24 h, at least 2 minutes.
    pub destroy_delay: Duration,
    /// How long a request waits for an empty budget to be filled: `server.request_timeout`.
    pub wait: Duration,
    /// How many requests may wait so at once.
    pub max_waiting: usize,
    /// DEKs in the cache; 0 switches it off.
    pub dek_entries: usize,
    /// How long a DEK stays in the cache.
    pub dek_max_age: Duration,
    /// Retired KEKs in memory.
    pub keks: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            suite: Suite::default(),
            limits: Limits::default(),
            destroy_delay: Duration::from_secs(24 * 60 * 60),
            wait: Duration::from_secs(10),
            max_waiting: 20_000,
            dek_entries: 10_000,
            dek_max_age: Duration::from_secs(300),
            keks: 10_000,
        }
    }
}

/// An envelope that was made.
pub struct Encrypted {
    /// The binary envelope.
    pub envelope: Sealed,
    /// The chain it was made under.
    pub chain: ChainName,
    /// The KEK that wraps its DEK.
    pub kek_id: KekId,
}

/// A plaintext that was recovered.
pub struct Decrypted {
    /// The plaintext; wiped on drop.
    pub plaintext: Opened,
    /// The chain of its envelope.
    pub chain: ChainName,
    /// The KEK that wrapped its DEK.
    pub kek_id: KekId,
}

/// An envelope, or a header, under the primary KEK.
pub struct Rewrapped {
    /// As much as was given: a header for a header, a whole envelope for a whole one.
    pub envelope: Vec<u8>,
    /// The chain of the envelope.
    pub chain: ChainName,
    /// The KEK that wraps the DEK now.
    pub kek_id: KekId,
    /// The KEK that wrapped it before; the same one when nothing had to be done.
    pub previous_kek_id: KekId,
}

/// A fresh random key for the caller's own cryptography.
pub struct DataKey {
    /// The key.
    pub plaintext: SecretBytes,
    /// Its envelope.
    pub envelope: Sealed,
    /// The chain it was made under.
    pub chain: ChainName,
    /// The KEK that wraps the envelope's DEK.
    pub kek_id: KekId,
}

/// A rotation that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The chain.
    pub chain: ChainName,
    /// The KEK that encrypts now.
    pub primary: KekId,
    /// The KEK that encrypted before; none for a chain's first.
    pub previous: Option<KekId>,
}

/// A chain as the service tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its name.
    pub chain: ChainName,
    /// The suite of its new KEKs.
    pub suite: Suite,
    /// The KEK that encrypts.
    pub primary: Option<KekId>,
    /// The KEK that will encrypt next.
    pub standby: Option<KekId>,
    /// How many KEKs it has, destroyed ones included.
    pub keks: u64,
    /// When KEKs are replaced.
    pub limits: Limits,
}

/// A KEK as the service tells of it. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekInfo {
    /// Its id.
    pub kek_id: KekId,
    /// Where it is in its life.
    pub state: State,
    /// Its suite.
    pub suite: Suite,
    /// When it was made.
    pub created_at: u64,
    /// When it became primary.
    pub promoted_at: Option<u64>,
    /// When it was last disabled.
    pub disabled_at: Option<u64>,
    /// Uses that are reserved in the store.
    pub uses_reserved: u64,
    /// Whether a `local` root ever wrapped it.
    pub exposed: bool,
    /// The names of the roots that wrapped it.
    pub roots: Vec<String>,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, N> {
    /// The part.
    pub items: Vec<T>,
    /// Where the next part starts; `None` at the end.
    pub next: Option<N>,
}

/// What to set on a chain; what is `None` stays, or takes the default on a new chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainSettings {
    /// The suite: it can't be changed later.
    pub suite: Option<Suite>,
    /// See [`Limits::rotate_after_uses`].
    pub rotate_after_uses: Option<u64>,
    /// See [`Limits::max_uses`].
    pub max_uses: Option<u64>,
    /// See [`Limits::rotate_after_age`], in seconds.
    pub rotate_after_age: Option<u64>,
}

/// What to do with a KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `retired` to `disabled`.
    Disable,
    /// `disabled` to `retired`.
    Enable,
    /// `disabled` to `destroyed`, for ever.
    Destroy,
}

/// How well the service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Ok,
    /// It works, and an operator should look.
    Degraded,
    /// It can neither encrypt nor decrypt, or is on its way up or down.
    Down,
}

/// One thing that was looked at for readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `store`, `root:{name}`, `chain:{name}` or `service`.
    pub name: String,
    /// How well it stands.
    pub health: Health,
    /// What an operator should know.
    pub detail: Option<String>,
}

/// The answer of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// How well the service as a whole stands.
    pub health: Health,
    /// The things that were looked at.
    pub checks: Vec<Check>,
}

/// The one door.
pub struct KeyService {
    metrics: Arc<Metrics>,
}

#[allow(unused_variables, clippy::unused_async, missing_docs)]
impl KeyService {
    pub async fn start(
        config: Config,
        store: Arc<dyn Store>,
        roots: Vec<root::Named>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self { metrics }))
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// `chain` is the caller's: `None` means `default`.
    pub async fn encrypt(
        &self,
        chain: Option<&str>,
        plaintext: Plaintext,
        aad: &[u8],
    ) -> Result<Encrypted, Error> {
        Err(Error::new(Kind::Internal, ""))
    }

    pub async fn decrypt(
        &self,
        chain: Option<&str>,
        envelope: Vec<u8>,
        aad: &[u8],
    ) -> Result<Decrypted, Error> {
        Err(Error::new(Kind::Internal, ""))
    }

    pub async fn rewrap(&self, chain: Option<&str>, envelope: Vec<u8>) -> Result<Rewrapped, Error> {
        Err(Error::new(Kind::Internal, ""))
    }

    pub async fn datakey(
        &self,
        chain: Option<&str>,
        bytes: usize,
        aad: &[u8],
    ) -> Result<DataKey, Error> {
        Err(Error::new(Kind::Internal, ""))
    }

    pub async fn rotate(&self, chain: Option<&str>) -> Result<Rotated, Error> {
        Err(Error::new(Kind::Internal, ""))
    }

    pub async fn chains(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<ChainInfo, ChainName>, Error> {
        Err(Error::new(Kind::Internal, ""))
    }

    pub async fn chain(
        &self,
        name: &str,
        after: Option<KekId>,
        limit: usize,
    ) -> Result<(ChainInfo, Page<KekInfo, KekId>), Error> {
        Err(Error::new(Kind::Internal, ""))
    }

    /// True when it was created.
    pub async fn put_chain(
        &self,
        name: &str,
        settings: ChainSettings,
    ) -> Result<(bool, ChainInfo), Error> {
        Err(Error::new(Kind::Internal, ""))
    }

    pub async fn change_kek(
        &self,
        chain: &str,
        id: KekId,
        change: Change,
    ) -> Result<KekInfo, Error> {
        Err(Error::new(Kind::Internal, ""))
    }

    pub fn readiness(&self) -> Readiness {
        Readiness { health: Health::Ok, checks: Vec::new() }
    }

    /// From now on readiness is down; requests are still answered.
    pub fn drain(&self) {}

    /// Stops the background task and waits for its last write.
    pub async fn stop(&self) {}
}
