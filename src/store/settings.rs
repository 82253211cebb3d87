//! The settings of the store that a build can leave out. They are always compiled, so that a
//! configuration is read the same way in every build and a missing store has a clear error.
//!
//! Plain data: the store checks and uses its own settings.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human_units;
use crate::secret::SecretBytes;

/// `[store]` with `kind = "etcd"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Etcd {
    /// The members' URLs: `https://` all of them, or `http://`.
    #[serde(deserialize_with = "human_units::list::deserialize")]
    pub endpoints: Vec<String>,
    /// The prefix of all keys, without the `/` after it.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// The user, if etcd requires one.
    pub username: Option<String>,
    /// The file with the user's password; trailing white space is ignored.
    pub password_file: Option<PathBuf>,
    /// The password itself, from the environment: it has no place in a configuration file.
    #[serde(skip)]
    pub password: Option<Arc<SecretBytes>>,
    /// Certificates.
    pub tls: Option<EtcdTls>,
    /// The time-out of one call of one member: 2 s by default.
    #[serde(default = "default_timeout", with = "human_units::duration")]
    pub timeout: Duration,
    /// The directory for local files, such as the key file of a `local` root.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
}

/// Certificates, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdTls {
    /// The authorities of the members' certificates; the system's by default.
    pub ca: Option<PathBuf>,
    /// The client's certificate, with its chain.
    pub cert: Option<PathBuf>,
    /// The key of the client's certificate.
    pub key: Option<PathBuf>,
}

fn default_prefix() -> String {
    "/kms-proxy".to_owned()
}

fn default_timeout() -> Duration {
    Duration::from_secs(2)
}

fn default_data_dir() -> PathBuf {
    super::DEFAULT_DATA_DIR.into()
}

impl Etcd {
    /// The cluster with these members, with the defaults for everything else.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: default_prefix(),
            username: None,
            password_file: None,
            password: None,
            tls: None,
            timeout: default_timeout(),
            data_dir: default_data_dir(),
        }
    }
}
