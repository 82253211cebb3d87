//! `passphrase`: a root key derived from a passphrase by Argon2id (RFC 9106).
//!
//! Every wrap names its salt and costs, so a root opens what another process wrapped with the same
//! passphrase. A derivation takes about a quarter of a second and 64 MiB, so derived keys are kept,
//! and one is derived at a time.

use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;

use crate::aead::Cipher;
use crate::files;
use crate::human_units;
use crate::random;
use crate::secret::{KeyBytes, SecretBytes};

use super::{Context, Error, IfMissing, RootKey, sealed};

mod setting;

use setting::{Cost, SALT_LEN, Setting};

/// The first byte of a wrap. Then follow the [`Setting`] (28 bytes), nonce (12), sealed KEK
/// (16 or 32) and tag (16).
const FORMAT: u8 = 1;

/// Derived keys that are kept: one for each process that ever made a salt, as a rule.
const KEYS: usize = 16;

/// One `[[root]]` with `kind = "passphrase"`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// The root's name in records and metrics.
    pub name: String,
    /// The file with the passphrase; white space at its end does not count.
    pub passphrase_file: Option<PathBuf>,
    /// The passphrase itself, from the environment: it has no place in a configuration file.
    #[serde(skip)]
    pub passphrase: Option<Arc<SecretBytes>>,
    /// The memory that Argon2id takes for a new wrap's key, in bytes; 19 MiB to 256 MiB.
    #[serde(default = "default_memory", deserialize_with = "human_units::size::deserialize")]
    pub memory: usize,
    /// Its passes over it; 2 to 10.
    #[serde(default = "default_passes", deserialize_with = "human_units::number::deserialize")]
    pub passes: u32,
    /// Its lanes; 1 to 4.
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

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("name", &self.name)
            .field("passphrase_file", &self.passphrase_file)
            .field("passphrase", &self.passphrase.as_ref().map(|_| "(secret)"))
            .field("memory", &self.memory)
            .field("passes", &self.passes)
            .field("lanes", &self.lanes)
            .finish()
    }
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

    /// Whether the costs are in bounds, and there is one passphrase that can be read. A pipe is left alone: what is read from
    /// it is gone.
    pub(super) fn check(&self) -> Result<(), String> {
        self.cost()?;
        let is_pipe =
            |path: &PathBuf| std::fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
        match &self.passphrase_file {
            Some(path) if self.passphrase.is_none() && is_pipe(path) => Ok(()),
            _ => self.read().map(drop),
        }
    }

    /// What a new wrap's key costs.
    fn cost(&self) -> Result<Cost, String> {
        Cost::configured(self.memory, self.passes, self.lanes)
    }

    /// The passphrase from wherever it comes.
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
                return Err("the passphrase is given twice, by passphrase_file and by the \
                            environment; give it once"
                    .to_owned());
            }
            (None, None) => {
                return Err("no passphrase is given; name a file in passphrase_file".to_owned());
            }
        };
        if secret.expose().is_empty() {
            return Err(format!("the passphrase from {source} is empty"));
        }
        Ok(secret)
    }
}

/// The keys that a passphrase gives.
pub struct Root {
    /// The root's name, for the log; empty without a configuration.
    name: String,
    passphrase: Arc<SecretBytes>,
    cost: Cost,
    keys: Mutex<Keys>,
    /// Held during a derivation.
    deriving: Arc<tokio::sync::Mutex<()>>,
    /// Whether it was said that there are wraps with a weaker cost.
    told: AtomicBool,
}

/// Derived keys.
#[derive(Default)]
struct Keys {
    /// What this process wraps with: the salt of the first wrap that it opened, so that one root
    /// has one salt for as long as it can; a fresh one if it has to wrap before.
    own: Option<(Setting, Arc<Cipher>)>,
    /// Keys that opened a wrap, the latest last. Others are not kept: a made-up wrap drives none out.
    proven: Vec<(Setting, Arc<Cipher>)>,
}

impl Keys {
    fn find(&self, setting: Setting) -> Option<Arc<Cipher>> {
        let mut all = self.own.iter().chain(&self.proven);
        all.find(|(other, _)| *other == setting).map(|(_, cipher)| Arc::clone(cipher))
    }
}

impl Root {
    /// Reads the passphrase. Nothing is derived yet.
    ///
    /// # Errors
    /// What is wrong, for an operator: no passphrase, two, an empty one, its file can't be read, or a
    /// cost is out of bounds.
    pub async fn open(config: &Config) -> Result<Self, String> {
        let root = Self::with_cost(config.read()?, config.cost()?);
        Ok(Self { name: config.name.clone(), ..root })
    }

    /// A root with this passphrase, which is taken as it is; 64 MiB, 3 passes and 1 lane.
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
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key to wrap with.
    async fn own(&self) -> Result<(Setting, Arc<Cipher>), Error> {
        let own = || self.keys().own.clone();
        if let Some(own) = own() {
            return Ok(own);
        }
        let turn = Arc::clone(&self.deriving).lock_owned().await;
        // Whoever had the turn before may have been as far.
        if let Some(own) = own() {
            return Ok(own);
        }
        let mut salt = [0; SALT_LEN];
        random::fill(&mut salt).map_err(|error| Error::Away(error.to_string()))?;
        let setting = Setting { cost: self.cost, salt };
        let (cipher, _turn) = self.derive(setting, turn).await?;
        Ok(self.keys().own.insert((setting, cipher)).clone())
    }

    /// Derives a key away from the async threads. The turn goes along, so that a caller who gives
    /// up does not let the next one start before this derivation has ended.
    async fn derive(
        &self,
        setting: Setting,
        turn: OwnedMutexGuard<()>,
    ) -> Result<(Arc<Cipher>, OwnedMutexGuard<()>), Error> {
        let passphrase = Arc::clone(&self.passphrase);
        let derived = tokio::task::spawn_blocking(move || (setting.derive(&passphrase), turn));
        let (key, turn) = derived.await.map_err(|error| Error::Away(error.to_string()))?;
        let key = key.ok_or_else(|| Error::Away("the key can't be derived".to_owned()))?;
        Ok((Arc::new(Cipher::new(&key)), turn))
    }

    /// Says once that a wrap opened whose passphrase is easier to guess than is wanted by now.
    fn tell(&self, cost: Cost) {
        if cost.is_weaker_than(self.cost) && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                root = self.name,
                memory_kib = cost.memory,
                passes = cost.passes,
                "there are wraps with an outdated cost, less than is configured; \
                 `kms-proxy root rewrap` makes them anew"
            );
        }
    }

    /// Remembers a key that opened a wrap.
    fn proven(&self, setting: Setting, cipher: Arc<Cipher>) {
        let mut keys = self.keys();
        if keys.own.is_none() && setting.cost == self.cost {
            keys.own = Some((setting, cipher));
            return;
        }
        if keys.proven.len() == KEYS {
            keys.proven.remove(0);
        }
        keys.proven.push((setting, cipher));
    }
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        let (setting, cipher) = self.own().await?;
        let head = [&[FORMAT], &setting.to_bytes()[..]].concat();
        sealed::seal(&cipher, context, &head, kek)
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        let rest = sealed::after_format(wrapped, FORMAT)?;
        let (setting, sealed) = rest.split_first_chunk().ok_or_else(sealed::wrong_length)?;
        let setting = Setting::from_bytes(setting);
        setting.cost.check(self.cost).map_err(Error::Wrong)?;
        sealed::check_length(context, sealed)?;
        let open = |cipher: &Cipher| {
            sealed::open(cipher, context, sealed, "the passphrase is another one")
        };
        let find = || self.keys().find(setting);
        if let Some(cipher) = find() {
            return open(&cipher);
        }
        let turn = Arc::clone(&self.deriving).lock_owned().await;
        if let Some(cipher) = find() {
            return open(&cipher);
        }
        let (cipher, _turn) = self.derive(setting, turn).await?;
        let kek = open(&cipher)?;
        self.tell(setting.cost);
        self.proven(setting, cipher);
        Ok(kek)
    }

    /// By the cost, and by the salt once this process has one to wrap with.
    fn is_current(&self, wrapped: &[u8]) -> bool {
        let setting = sealed::after_format(wrapped, FORMAT).ok();
        let setting = setting.and_then(|rest| rest.first_chunk()).map(Setting::from_bytes);
        let own = self.keys().own.as_ref().map(|(setting, _)| *setting);
        setting.is_some_and(|setting| {
            setting.cost == self.cost && own.is_none_or(|own| own.salt == setting.salt)
        })
    }

    fn derives(&self) -> bool {
        true
    }

    fn kind(&self) -> &'static str {
        "passphrase"
    }
}

/// A passphrase without a byte in it.
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
        Ok("nothing is to be done: the passphrase is all there is".to_owned())
    }
}

#[cfg(test)]
mod tests;
