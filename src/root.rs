//! Root keys: the external keys that wrap KEKs and never see user data.
//!
//! This file owns the contract of a provider and the choice between providers. It knows KEK bytes,
//! ids and names; of envelopes, stores and chains' states it knows nothing.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use crate::id::{ChainName, KekId, Suite};
use crate::secret::KeyBytes;

pub mod local;
pub mod passphrase;
mod sealed;
#[cfg(test)]
pub(crate) mod testing;

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

/// A key that wraps KEKs, kept where this process can use it but, for most kinds, not read it.
///
/// To an implementor: calls may come from many tasks at once, may take seconds, and are dropped
/// when their caller gives up. Bound every wait on the outside world yourself. Wrap with
/// authentication and bind the whole [`Context`]. Bytes given to `unwrap` may come from anywhere;
/// only ever use the configured key for them. Keep no copy of a KEK. The caller checks the KEK's
/// id after every unwrap.
#[async_trait]
pub trait RootKey: Send + Sync + 'static {
    /// Wraps `kek`. At most 1,024 bytes come back.
    ///
    /// # Errors
    /// [`Error::Away`] and [`Error::Denied`].
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error>;

    /// Opens what [`wrap`](Self::wrap) made with the same context.
    ///
    /// # Errors
    /// [`Error`] of each kind.
    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error>;

    /// The kind of provider as the configuration names it, such as `local`.
    fn kind(&self) -> &'static str;
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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Config {
    /// A key file: for development.
    Local(local::Config),
    /// A key derived from a passphrase.
    Passphrase(passphrase::Config),
}

impl Config {
    /// The name that records and metrics use for the root.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Local(config) => &config.name,
            Self::Passphrase(config) => &config.name,
        }
    }

    /// Looks for what would make [`open`] fail, as far as it can without making or asking anything.
    ///
    /// # Errors
    /// The [`OpenError`] that `open` would give.
    pub fn check(&self, data_dir: &Path) -> Result<(), OpenError> {
        let checked = match self {
            Self::Local(config) => config.check(data_dir),
            Self::Passphrase(config) => config.check(),
        };
        checked.map_err(|detail| OpenError { root: self.name().to_owned(), detail })
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
    let failed = |detail| OpenError { root: config.name().to_owned(), detail };
    if !is_name(config.name()) {
        return Err(failed("a root's name is 1 to 63 of a-z 0-9 . _ -".to_owned()));
    }
    let root: Result<Arc<dyn RootKey>, String> = match config {
        Config::Local(config) => {
            local::Root::open(config, data_dir).map(|root| Arc::new(root) as _)
        }
        Config::Passphrase(config) => {
            passphrase::Root::open(config).await.map(|root| Arc::new(root) as _)
        }
    };
    let root = root.map_err(failed)?;
    Ok(Named { name: config.name().into(), root })
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
