//! Root keys: the external keys that wrap KEKs and never see user data.
//!
//! This file owns the contract of a provider. `config` chooses between the providers. It knows KEK
//! bytes, ids and names, and nothing about envelopes, stores and the states of chains.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::id::{ChainName, KekId, RootName, Suite};
use crate::secret::KeyBytes;

#[cfg(any(
    feature = "aws-kms",
    feature = "azure-key-vault",
    feature = "gcp-kms",
    feature = "vault-transit"
))]
mod authorities;
#[cfg(feature = "aws-kms")]
pub mod aws_kms;
#[cfg(feature = "azure-key-vault")]
pub mod azure_key_vault;
#[cfg(any(feature = "azure-key-vault", feature = "gcp-kms"))]
mod cloud;
mod config;
#[cfg(test)]
mod contract;
#[cfg(any(
    feature = "aws-kms",
    feature = "azure-key-vault",
    feature = "gcp-kms",
    feature = "vault-transit"
))]
mod echo;
pub(crate) mod forward;
#[cfg(feature = "gcp-kms")]
pub mod gcp_kms;
#[cfg(all(
    test,
    not(any(
        feature = "aws-kms",
        feature = "azure-key-vault",
        feature = "gcp-kms",
        feature = "pkcs11",
        feature = "vault-transit"
    ))
))]
mod left_out;
pub mod local;
pub mod passphrase;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
mod sealed;
pub(crate) mod settings;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(feature = "vault-transit")]
pub mod vault_transit;

pub use config::Config;
pub use local::IfMissing;

/// What a wrap is bound to: a wrap made with one context does not open with another.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The chain that the KEK belongs to.
    pub chain: &'a ChainName,
    /// The id of the KEK.
    pub kek_id: KekId,
    /// The suite that the KEK is for; it fixes the KEK's size.
    pub suite: Suite,
}

impl Context<'_> {
    /// The context as AAD: `kms-proxy kek v1`, suite, kek_id, chain name with its length (u16).
    #[must_use]
    pub fn aad(&self) -> Vec<u8> {
        let chain = self.chain.as_str().as_bytes();
        let mut aad = b"kms-proxy kek v1".to_vec();
        aad.push(self.suite.code());
        aad.extend_from_slice(self.kek_id.as_bytes());
        // A chain name has at most 63 bytes.
        aad.extend_from_slice(&[0, u8::try_from(chain.len()).unwrap_or(u8::MAX)]);
        aad.extend_from_slice(chain);
        aad
    }
}

/// The longest wrap of a KEK in bytes, for every provider.
pub const MAX_WRAP_LEN: usize = 1024;

/// A key that wraps KEKs. For most kinds, this process can use the key but not read it.
///
/// Notes for implementors: many tasks may call concurrently, calls may take seconds, and a call is
/// dropped when its caller gives up. Bound every wait for the outside world. Use authenticated
/// encryption and bind the whole [`Context`]. Treat the bytes passed to `unwrap` as untrusted, and
/// only ever use the configured key for them. Keep no copy of a KEK. The caller checks the KEK's id
/// after every unwrap.
#[async_trait]
pub trait RootKey: Send + Sync + 'static {
    /// Wraps `kek`. Returns at most [`MAX_WRAP_LEN`] bytes.
    ///
    /// # Errors
    /// [`Error::Away`] and [`Error::Denied`].
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error>;

    /// Unwraps what [`wrap`](Self::wrap) returned for the same context.
    ///
    /// # Errors
    /// Any [`Error`].
    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error>;

    /// Whether [`wrap`](Self::wrap) would make the same kind of wrap today. False if a new wrap
    /// would be better, because the cost, the salt or the key version of this one is outdated, or
    /// because it can't be parsed. This makes no call, and does not tell whether the wrap can be
    /// unwrapped.
    fn is_current(&self, wrapped: &[u8]) -> bool {
        _ = wrapped;
        true
    }

    /// Whether an unwrap may take much CPU time of this machine, such as for the derivation of a
    /// key.
    fn derives(&self) -> bool {
        false
    }

    /// The kind of provider as the configuration names it, such as `local`.
    fn kind(&self) -> &'static str;

    /// The name of the key in the configuration, such as an ARN; empty if the key has no name but
    /// the root's. It does not depend on whether the root answers. It is public and contains no
    /// secret.
    fn key(&self) -> String {
        String::new()
    }

    /// When the token expires that this process calls the root with; `None` if it has none, or one
    /// of unknown lifetime. It makes no call.
    fn token_expires_in(&self) -> Option<Duration> {
        None
    }
}

/// Why a root did not wrap or unwrap: the three cases that a caller can act on.
///
/// The text is for logs, `/readyz` and operators. It never contains a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The root can't answer now: throttled, timed out, sealed, not logged in. A retry may help.
    #[error("the root is away: {0}")]
    Away(String),
    /// The root refuses: access denied, key disabled or deleted.
    #[error("the root refuses: {0}")]
    Denied(String),
    /// The root works; this wrap was not made with its key and this context.
    #[error("the wrap does not open: {0}")]
    Wrong(String),
}

impl Error {
    /// Every [`outcome`](Self::outcome).
    pub const OUTCOMES: [&'static str; 3] = ["away", "denied", "wrong"];

    /// The label of the metric `kms_proxy_root_calls_total`: `away`, `denied` or `wrong`.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Away(_) => "away",
            Self::Denied(_) => "denied",
            Self::Wrong(_) => "wrong",
        }
    }
}

/// A root that could not be set up from its configuration.
#[derive(Debug, thiserror::Error)]
#[error("root {root}: {detail}")]
pub struct OpenError {
    /// The name of the root.
    pub root: String,
    /// What is wrong, for the operator; without secrets.
    pub detail: String,
}

/// A root with its name.
#[derive(Clone)]
pub struct Named {
    /// A [`RootName`]: the key of the root's wraps in records.
    pub name: Arc<str>,
    /// The provider.
    pub root: Arc<dyn RootKey>,
}

/// Opens a root. `data_dir` is the default directory for the key file of a `local` root.
///
/// # Errors
/// [`OpenError`]. It is not an error if the root is temporarily unavailable.
pub async fn open(config: &Config, data_dir: &Path) -> Result<Named, OpenError> {
    open_if(config, data_dir, IfMissing::Make).await
}

/// Like [`open`], with a choice of what a `local` root does without its key file.
///
/// # Errors
/// Those of [`open`].
pub async fn open_if(
    config: &Config,
    data_dir: &Path,
    if_missing: IfMissing,
) -> Result<Named, OpenError> {
    let name = RootName::new(config.name()).map_err(|error| config.failed(error.to_string()))?;
    let root = config.provider()?.open(data_dir, if_missing).await;
    let root = root.map_err(|detail| config.failed(detail))?;
    Ok(Named { name: name.as_str().into(), root })
}

/// Opens AWS KMS with the settings of a root of kind `aws-kms`, to forward calls. This makes no
/// call.
///
/// # Errors
/// [`OpenError`]; roots of other kinds are an error.
pub(crate) fn open_kms(config: &Config) -> Result<Arc<dyn forward::Kms>, OpenError> {
    config.provider()?.open_kms().map_err(|detail| config.failed(detail))
}

/// Creates the key of a root on request. Returns what was done, or how an operator creates the key.
///
/// # Errors
/// [`OpenError`]. An existing key is never replaced.
pub async fn init(config: &Config, data_dir: &Path) -> Result<String, OpenError> {
    config.check(data_dir)?;
    config.provider()?.init(data_dir).await.map_err(|detail| config.failed(detail))
}

/// The settings of one kind of root. Errors are messages for an operator.
#[async_trait]
trait Provider: Sync {
    /// Checks for what would make [`open`](Self::open) fail, without creating or calling anything.
    fn check(&self, data_dir: &Path) -> Result<(), String>;

    /// Opens the root.
    async fn open(
        &self,
        data_dir: &Path,
        if_missing: IfMissing,
    ) -> Result<Arc<dyn RootKey>, String>;

    /// Opens the service of the root to forward calls to it.
    fn open_kms(&self) -> Result<Arc<dyn forward::Kms>, String> {
        Err("only a root of kind aws-kms can forward calls".to_owned())
    }

    /// Creates the root's key, or returns how an operator creates it.
    async fn init(&self, data_dir: &Path) -> Result<String, String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let longest = "a".repeat(63);
        for (name, good) in [
            ("main", true),
            ("a.b_c-0", true),
            (&*longest, true),
            ("", false),
            (".main", false),
            ("Main", false),
            ("a b", false),
            ("a/b", false),
            (&*format!("{longest}a"), false),
        ] {
            let config = Config::Local(local::Config { name: name.to_owned(), key_file: None });
            match open(&config, dir.path()).await {
                Ok(named) => assert!(good && &*named.name == name, "{name}"),
                Err(error) => {
                    assert!(!good, "{error}");
                    assert!(error.to_string().contains("1 to 63 of a-z"), "{error}");
                }
            }
        }
    }
}
