//! Root keys: the external keys that wrap KEKs and never see user data.
//!
//! This file owns the contract of a provider and the choice between providers. It knows KEK bytes,
//! ids and names; of envelopes, stores and chains' states it knows nothing.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::id::{ChainName, KekId, Suite};
use crate::secret::{KeyBytes, SecretBytes};

#[cfg(any(feature = "aws-kms", feature = "vault-transit"))]
mod authorities;
#[cfg(feature = "aws-kms")]
pub mod aws_kms;
#[cfg(test)]
mod contract;
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

/// The longest wrap of a KEK in bytes, of whichever provider.
pub const MAX_WRAP_LEN: usize = 1024;

/// A key that wraps KEKs, kept where this process can use it but, for most kinds, not read it.
///
/// To an implementor: calls may come from many tasks at once, may take seconds, and are dropped
/// when their caller gives up. Bound every wait on the outside world yourself. Wrap with
/// authentication and bind the whole [`Context`]. Bytes given to `unwrap` may come from anywhere;
/// only ever use the configured key for them. Keep no copy of a KEK. The caller checks the KEK's
/// id after every unwrap.
#[async_trait]
pub trait RootKey: Send + Sync + 'static {
    /// Wraps `kek`. At most [`MAX_WRAP_LEN`] bytes come back.
    ///
    /// # Errors
    /// [`Error::Away`] and [`Error::Denied`].
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error>;

    /// Opens what [`wrap`](Self::wrap) made with the same context.
    ///
    /// # Errors
    /// [`Error`] of each kind.
    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error>;

    /// Whether `wrapped` is what [`wrap`](Self::wrap) would make now. False when a wrap that is made
    /// anew would be a better one: its cost, its salt or the version of its key is an older one, or
    /// it can't be read at all. It asks nobody, and tells nothing of whether the wrap opens.
    fn is_current(&self, wrapped: &[u8]) -> bool {
        _ = wrapped;
        true
    }

    /// Whether an unwrap may be long work of this machine, such as the derivation of a key, rather than
    /// a call of another.
    fn derives(&self) -> bool {
        false
    }

    /// The kind of provider as the configuration names it, such as `local`.
    fn kind(&self) -> &'static str;

    /// What the configuration calls its key, such as an ARN; empty where the key has no name but the
    /// root's. The same whether the root answers or not. It is shown to others and holds no secret.
    fn key(&self) -> String {
        String::new()
    }
}

/// Why a root did not wrap or unwrap: the three things that a caller can act on.
///
/// The text goes to logs, to `/readyz` and to operators. It never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It can't answer now: throttled, timed out, sealed, not logged in. Worth a retry.
    #[error("the root is away: {0}")]
    Away(String),
    /// It answers, and says no: access denied, key disabled or gone.
    #[error("the root refuses: {0}")]
    Denied(String),
    /// The root is fine; this wrap is not one of its key and this context.
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

/// One `[[root]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
#[non_exhaustive]
pub enum Config {
    /// A key in AWS KMS.
    AwsKms(settings::AwsKms),
    /// A key file: for development.
    Local(local::Config),
    /// A key derived from a passphrase.
    Passphrase(passphrase::Config),
    /// A key in an HSM.
    Pkcs11(settings::Pkcs11),
    /// A key in the transit engine of Vault or OpenBao.
    VaultTransit(settings::VaultTransit),
}

impl Config {
    /// The name that records and metrics use for the root.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::AwsKms(config) => &config.name,
            Self::Local(config) => &config.name,
            Self::Passphrase(config) => &config.name,
            Self::Pkcs11(config) => &config.name,
            Self::VaultTransit(config) => &config.name,
        }
    }

    /// The kind as the configuration names it, such as `local`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AwsKms(_) => "aws-kms",
            Self::Local(_) => "local",
            Self::Passphrase(_) => "passphrase",
            Self::Pkcs11(_) => "pkcs11",
            Self::VaultTransit(_) => "vault-transit",
        }
    }

    /// The provider of this kind.
    ///
    /// # Errors
    /// When this build leaves it out.
    fn provider(&self) -> Result<&dyn Provider, OpenError> {
        match self {
            Self::Local(config) => Ok(config),
            Self::Passphrase(config) => Ok(config),
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(config) => Ok(config),
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(config) => Ok(config),
            #[cfg(feature = "vault-transit")]
            Self::VaultTransit(config) => Ok(config),
            #[allow(unreachable_patterns, reason = "reachable where a feature is off")]
            _ => Err(self.failed(format!(
                "roots of kind {0} are not part of this build: it needs the Cargo feature {0}",
                self.kind()
            ))),
        }
    }

    fn failed(&self, detail: String) -> OpenError {
        OpenError { root: self.name().to_owned(), detail }
    }

    /// The same settings with the paths that are in force: a default may be below `data_dir`.
    pub(crate) fn with_paths(mut self, data_dir: &Path) -> Self {
        if let Self::Local(config) = &mut self {
            config.key_file = Some(config.path(data_dir));
        }
        self
    }

    /// Where the secret `setting` goes, and whether a file gives it already; `None` when this kind
    /// of root takes no such secret.
    pub(crate) fn secret(
        &mut self,
        setting: &str,
    ) -> Option<(&mut Option<Arc<SecretBytes>>, bool)> {
        match (self, setting) {
            (Self::Passphrase(root), "passphrase") => {
                Some((&mut root.passphrase, root.passphrase_file.is_some()))
            }
            (Self::Pkcs11(root), "pin") => Some((&mut root.pin, root.pin_file.is_some())),
            (Self::VaultTransit(root), "token") => {
                Some((&mut root.token, root.token_file.is_some()))
            }
            (Self::VaultTransit(root), "secret_id") => {
                Some((&mut root.secret_id, root.secret_id_file.is_some()))
            }
            _ => None,
        }
    }

    /// Looks for what would make [`open`] fail, as far as it can without making or asking anything.
    ///
    /// # Errors
    /// The [`OpenError`] that `open` would give.
    pub fn check(&self, data_dir: &Path) -> Result<(), OpenError> {
        self.provider()?.check(data_dir).map_err(|detail| self.failed(detail))
    }

    /// Whether to open it would make a new key, because none is there: nothing that was wrapped
    /// before opens with it.
    #[must_use]
    pub fn is_new(&self, data_dir: &Path) -> bool {
        match self {
            Self::Local(config) => !config.path(data_dir).exists(),
            _ => false,
        }
    }
}

/// A root with the name that the configuration gives it.
#[derive(Clone)]
pub struct Named {
    /// 1 to 63 bytes; the key of its wraps in records.
    pub name: Arc<str>,
    /// The provider.
    pub root: Arc<dyn RootKey>,
}

/// Whether `name` can name a root: 1 to 63 bytes of `a-z 0-9 . _ -`.
fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=63).contains(&name.len()) && name.bytes().all(fits)
}

/// Sets a root up. `data_dir` is where a `local` root keeps its key file by default.
///
/// # Errors
/// [`OpenError`]; a root that is only away at the moment is none.
pub async fn open(config: &Config, data_dir: &Path) -> Result<Named, OpenError> {
    open_if(config, data_dir, IfMissing::Make).await
}

/// The same with a choice of what a `local` root does without its key file.
///
/// # Errors
/// Those of [`open`].
pub async fn open_if(
    config: &Config,
    data_dir: &Path,
    if_missing: IfMissing,
) -> Result<Named, OpenError> {
    if !is_name(config.name()) {
        return Err(config.failed("a root's name is 1 to 63 of a-z 0-9 . _ -".to_owned()));
    }
    let root = config.provider()?.open(data_dir, if_missing).await;
    let root = root.map_err(|detail| config.failed(detail))?;
    Ok(Named { name: config.name().into(), root })
}

/// Makes the key of a root whose key must be asked for; says what was done, or what there is to do.
///
/// # Errors
/// [`OpenError`]; a key that is there already is never replaced.
pub async fn init(config: &Config, data_dir: &Path) -> Result<String, OpenError> {
    config.check(data_dir)?;
    config.provider()?.init(data_dir).await.map_err(|detail| config.failed(detail))
}

/// The settings of one kind of root, and what can be done with them. Errors are for an operator.
#[async_trait]
trait Provider: Sync {
    /// Looks for what would make [`open`](Self::open) fail, without making or asking anything.
    fn check(&self, data_dir: &Path) -> Result<(), String>;

    /// Opens the root.
    async fn open(
        &self,
        data_dir: &Path,
        if_missing: IfMissing,
    ) -> Result<Arc<dyn RootKey>, String>;

    /// Makes the root's key, or returns how an operator makes it.
    async fn init(&self, data_dir: &Path) -> Result<String, String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_configuration_names_a_kind_that_there_is() {
        for kind in ["local", "passphrase"] {
            let config = parse(&format!("kind = '{kind}'\nname = 'main'")).unwrap();
            assert_eq!(config.name(), "main");
            assert!(parse(&format!("kind = '{kind}'")).unwrap_err().contains("`name`"));
        }
        let hsm = "kind = 'pkcs11'\nname = 'main'\nmodule = '/m.so'\nslot = 1\nkey_label = 'kek'";
        assert_eq!(parse(hsm).unwrap().name(), "main");
        let config = parse("kind = 'aws-kms'\nname = 'main'\nkey_id = 'alias/a'").unwrap();
        assert_eq!(config.name(), "main");
        let vault = "kind = 'vault-transit'\nname = 'main'\naddress = 'https://vault:8200'";
        assert_eq!(parse(&format!("{vault}\nkey = 'kek'")).unwrap().name(), "main");
        assert!(parse(vault).unwrap_err().contains("`key`"));
        let error = parse("kind = 'locla'\nname = 'main'").unwrap_err();
        assert!(error.contains("`locla`") && error.contains("`passphrase`"), "{error}");
    }

    #[tokio::test]
    async fn names_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let longest = "a".repeat(63);
        for (name, good) in [
            ("main", true),
            ("a.b_c-0", true),
            (&*longest, true),
            ("", false),
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
