//! `passphrase`: a root key derived from a passphrase by Argon2id (RFC 9106).
//!
//! Every wrap contains its salt and costs, so a root unwraps what another process wrapped with the
//! same passphrase. A derivation takes about a quarter of a second and 64 MiB, so derived keys are
//! kept, and only one is derived at a time.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;

use crate::aead::Cipher;
use crate::files;
use crate::human_units;
use crate::random;
use crate::secret::{KeyBytes, SecretBytes};

use super::{Context, Error, IfMissing, RootKey, sealed};

mod kdf;

use kdf::{Cost, KdfParams, SALT_LEN};

/// The first byte of a wrap. Then follow the [`KdfParams`] (28 bytes), nonce (12), sealed KEK
/// (16 or 32) and tag (16).
const FORMAT: u8 = 1;

/// The number of derived keys that are kept: usually there is one per process that made a salt.
const KEYS: usize = 16;

/// One `[[root]]` with `kind = "passphrase"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// The root's name in records and metrics.
    pub name: String,
    /// The file with the passphrase; trailing white space is ignored.
    pub passphrase_file: Option<PathBuf>,
    /// The passphrase itself, from the environment: it has no place in a configuration file.
    #[serde(skip)]
    pub passphrase: Option<Arc<SecretBytes>>,
    /// The memory that Argon2id takes for a new wrap's key, in bytes; 19 MiB to 256 MiB.
    #[serde(default = "default_memory", deserialize_with = "human_units::size::deserialize")]
    pub memory: usize,
    /// The number of passes over the memory; 2 to 10.
    #[serde(default = "default_passes", deserialize_with = "human_units::number::deserialize")]
    pub passes: u32,
    /// The number of lanes; 1 to 4.
    #[serde(default = "default_lanes", deserialize_with = "human_units::number::deserialize")]
    pub lanes: u32,
}

fn default_memory() -> usize {
    Cost::DEFAULT.memory as usize * 1024
}

fn default_passes() -> u32 {
    Cost::DEFAULT.passes
}

fn default_lanes() -> u32 {
    Cost::DEFAULT.lanes
}

impl Config {
    /// A root with this passphrase and the default costs: 64 MiB, 3 passes and 1 lane.
    #[must_use]
    pub fn new(name: impl Into<String>, passphrase: SecretBytes) -> Self {
        Self {
            name: name.into(),
            passphrase_file: None,
            passphrase: Some(Arc::new(passphrase)),
            memory: default_memory(),
            passes: default_passes(),
            lanes: default_lanes(),
        }
    }

    /// Checks that the costs are in bounds and that there is one readable passphrase. A pipe is not
    /// read, since its contents can only be read once.
    pub(super) fn check(&self) -> Result<(), String> {
        self.cost()?;
        let is_pipe =
            |path: &PathBuf| std::fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
        match &self.passphrase_file {
            Some(path) if self.passphrase.is_none() && is_pipe(path) => Ok(()),
            _ => self.read().map(drop),
        }
    }

    /// The cost of new wraps.
    fn cost(&self) -> Result<Cost, String> {
        Cost::configured(self.memory, self.passes, self.lanes)
    }

    /// The passphrase, from the file or the environment.
    fn read(&self) -> Result<Arc<SecretBytes>, String> {
        let (secret, source) = match (&self.passphrase_file, &self.passphrase) {
            (Some(path), None) => {
                let path_text = path.display().to_string();
                let (secret, _) =
                    files::read_secret(path).map_err(|error| format!("{path_text}: {error}"))?;
                (Arc::new(secret.trim_end()), path_text)
            }
            (None, Some(secret)) => (Arc::clone(secret), "the environment".to_owned()),
            (Some(_), Some(_)) => {
                return Err("the passphrase is set twice, by passphrase_file and by the \
                            environment; set it once"
                    .to_owned());
            }
            (None, None) => {
                return Err("there is no passphrase; name a file in passphrase_file".to_owned());
            }
        };
        if secret.expose().is_empty() {
            return Err(format!("the passphrase from {source} is empty"));
        }
        Ok(secret)
    }
}

/// The keys that are derived from a passphrase.
pub struct Root {
    /// The root's name, for the log; empty without a configuration.
    name: String,
    passphrase: Arc<SecretBytes>,
    cost: Cost,
    keys: Mutex<Keys>,
    /// Held during a derivation.
    deriving: Arc<tokio::sync::Mutex<()>>,
    /// Whether wraps with a weaker cost were already reported.
    told: AtomicBool,
}

/// Derived keys.
#[derive(Default)]
struct Keys {
    /// The key for new wraps. It has the salt of the first wrap that was unwrapped, so that a root
    /// keeps one salt as long as possible, or a new one if nothing was unwrapped before.
    own: Option<(KdfParams, Arc<Cipher>)>,
    /// Keys that have unwrapped something, the latest last. No others are kept, so a forged wrap
    /// evicts none.
    proven: Vec<(KdfParams, Arc<Cipher>)>,
}

impl Keys {
    fn find(&self, params: KdfParams) -> Option<Arc<Cipher>> {
        let mut all = self.own.iter().chain(&self.proven);
        all.find(|(other, _)| *other == params).map(|(_, cipher)| Arc::clone(cipher))
    }
}

impl Root {
    /// Reads the passphrase. Nothing is derived yet.
    ///
    /// # Errors
    /// A message for an operator: there is no passphrase, there are two, it is empty, its file
    /// can't be read, or a cost is out of bounds.
    pub async fn open(config: &Config) -> Result<Self, String> {
        let root = Self::with_cost(config.read()?, config.cost()?);
        Ok(Self { name: config.name.clone(), ..root })
    }

    /// A root with this passphrase, which is not trimmed; 64 MiB, 3 passes and 1 lane.
    ///
    /// # Errors
    /// [`Empty`].
    pub fn new(passphrase: SecretBytes) -> Result<Self, Empty> {
        if passphrase.expose().is_empty() {
            return Err(Empty);
        }
        Ok(Self::with_cost(Arc::new(passphrase), Cost::DEFAULT))
    }

    fn with_cost(passphrase: Arc<SecretBytes>, cost: Cost) -> Self {
        Self {
            name: String::new(),
            passphrase,
            cost,
            keys: Mutex::default(),
            deriving: Arc::default(),
            told: AtomicBool::new(false),
        }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock()
    }

    /// The key to wrap with.
    async fn own(&self) -> Result<(KdfParams, Arc<Cipher>), Error> {
        let own = || self.keys().own.clone();
        if let Some(own) = own() {
            return Ok(own);
        }
        let turn = Arc::clone(&self.deriving).lock_owned().await;
        // The previous holder of the turn may have done it.
        if let Some(own) = own() {
            return Ok(own);
        }
        let mut salt = [0; SALT_LEN];
        random::fill(&mut salt).map_err(|error| Error::Away(error.to_string()))?;
        let params = KdfParams { cost: self.cost, salt };
        let (cipher, _turn) = self.derive(params, turn).await?;
        Ok(self.keys().own.insert((params, cipher)).clone())
    }

    /// Derives a key on a blocking thread. The task owns the turn, so that the next derivation does
    /// not start before this one has ended, even if the caller gives up.
    async fn derive(
        &self,
        params: KdfParams,
        turn: OwnedMutexGuard<()>,
    ) -> Result<(Arc<Cipher>, OwnedMutexGuard<()>), Error> {
        let passphrase = Arc::clone(&self.passphrase);
        let derived = tokio::task::spawn_blocking(move || (params.derive(&passphrase), turn));
        let (key, turn) = derived.await.map_err(|error| Error::Away(error.to_string()))?;
        let key = key.ok_or_else(|| Error::Away("the key can't be derived".to_owned()))?;
        Ok((Arc::new(Cipher::new(&key)), turn))
    }

    /// Logs once that there is a wrap whose cost is lower than what is configured.
    fn tell(&self, cost: Cost) {
        if cost.is_weaker_than(self.cost) && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                root = self.name,
                memory_kib = cost.memory,
                passes = cost.passes,
                "there are wraps with an outdated cost, less than is configured; \
                 `kms-proxy root rewrap` replaces them"
            );
        }
    }

    /// Remembers a key that opened a wrap.
    fn proven(&self, params: KdfParams, cipher: Arc<Cipher>) {
        let mut keys = self.keys();
        if keys.own.is_none() && params.cost == self.cost {
            keys.own = Some((params, cipher));
            return;
        }
        if keys.proven.len() == KEYS {
            keys.proven.remove(0);
        }
        keys.proven.push((params, cipher));
    }
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        let (params, cipher) = self.own().await?;
        let head = [&[FORMAT], &params.to_bytes()[..]].concat();
        sealed::seal(&cipher, context, &head, kek)
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        let rest = sealed::after_format(wrapped, FORMAT)?;
        let (params, sealed) = rest.split_first_chunk().ok_or_else(sealed::wrong_length)?;
        let params = KdfParams::from_bytes(params);
        params.cost.check(self.cost).map_err(Error::Wrong)?;
        sealed::check_length(context, sealed)?;
        let open = |cipher: &Cipher| {
            sealed::open(cipher, context, sealed, "the passphrase is another one")
        };
        let find = || self.keys().find(params);
        if let Some(cipher) = find() {
            return open(&cipher);
        }
        let turn = Arc::clone(&self.deriving).lock_owned().await;
        if let Some(cipher) = find() {
            return open(&cipher);
        }
        let (cipher, _turn) = self.derive(params, turn).await?;
        let kek = open(&cipher)?;
        self.tell(params.cost);
        self.proven(params, cipher);
        Ok(kek)
    }

    /// Compares the cost, and the salt once this process has one to wrap with.
    fn is_current(&self, wrapped: &[u8]) -> bool {
        let params = sealed::after_format(wrapped, FORMAT).ok();
        let params = params.and_then(|rest| rest.first_chunk()).map(KdfParams::from_bytes);
        let own = self.keys().own.as_ref().map(|(params, _)| *params);
        params.is_some_and(|params| {
            params.cost == self.cost && own.is_none_or(|own| own.salt == params.salt)
        })
    }

    fn derives(&self) -> bool {
        true
    }

    fn kind(&self) -> &'static str {
        "passphrase"
    }
}

/// An empty passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the passphrase is empty")]
pub struct Empty;

#[async_trait]
impl super::Provider for Config {
    fn check(&self, _: &Path) -> Result<(), String> {
        self.check()
    }

    async fn open(&self, _: &Path, _: IfMissing) -> Result<Arc<dyn RootKey>, String> {
        Ok(Arc::new(Root::open(self).await?))
    }

    async fn init(&self, _: &Path) -> Result<String, String> {
        Ok("nothing to do: the passphrase is the key".to_owned())
    }
}

#[cfg(test)]
mod tests;
