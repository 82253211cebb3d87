//! The settings of the roots that a build can leave out. They are always compiled, so that a
//! configuration is read the same way in every build and a missing provider has a clear error.
//!
//! Plain data: each provider checks and uses its own settings.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::human_units;
use crate::secret::SecretBytes;

/// One `[[root]]` with `kind = "aws-kms"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AwsKms {
    /// The root's name in records and metrics.
    pub name: String,
    /// The key: its id, its ARN, an alias (`alias/...`) or an alias' ARN.
    pub key_id: String,
    /// The region; by default that of an ARN, else the one that the SDK finds.
    pub region: Option<String>,
    /// The URL of KMS, if it is not the region's; `http://` or `https://`.
    pub endpoint: Option<String>,
    /// A PEM file with the certificates to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// How long a call may take with all its retries: 5 s by default.
    #[serde(default = "five_seconds", with = "human_units::duration")]
    pub timeout: Duration,
}

impl AwsKms {
    /// The key `key_id`, with the defaults for everything else.
    #[must_use]
    pub fn new(name: impl Into<String>, key_id: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            key_id: key_id.into(),
            region: None,
            endpoint: None,
            ca: None,
            timeout: five_seconds(),
        }
    }

    /// The region that the settings name, if they name one.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        let of_arn = || self.key_id.strip_prefix("arn:")?.split(':').nth(2);
        self.region.as_deref().or_else(of_arn)
    }
}

/// One `[[root]]` with `kind = "azure-key-vault"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AzureKeyVault {
    /// The root's name in records and metrics.
    pub name: String,
    /// The URL of the key, without a version: `https://VAULT.vault.azure.net/keys/NAME`.
    pub key_id: String,
    /// How new KEKs are wrapped. A wrap is opened by the algorithm that it was made with.
    #[serde(default)]
    pub algorithm: WrapAlgorithm,
    /// A PEM file with the certificates to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// How long a call may take with all its retries: 5 s by default.
    #[serde(default = "five_seconds", with = "human_units::duration")]
    pub timeout: Duration,
}

impl AzureKeyVault {
    /// The key `key_id`, with the defaults for everything else.
    #[must_use]
    pub fn new(name: impl Into<String>, key_id: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            key_id: key_id.into(),
            algorithm: WrapAlgorithm::default(),
            ca: None,
            timeout: five_seconds(),
        }
    }
}

/// An algorithm of Azure, which depends on the type of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WrapAlgorithm {
    /// For an RSA key, in a vault or a Managed HSM.
    #[default]
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// For an AES-256 key, which only a Managed HSM has.
    #[serde(rename = "A256KW")]
    A256Kw,
}

impl WrapAlgorithm {
    /// The word in the configuration and in the calls.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::A256Kw => "A256KW",
        }
    }

    /// Whether a wrap proves that someone with the use of the key made it. With RSA it does not:
    /// anyone who has the public part can make one.
    #[must_use]
    pub const fn is_authenticated(self) -> bool {
        matches!(self, Self::A256Kw)
    }
}

/// One `[[root]]` with `kind = "gcp-kms"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct GcpKms {
    /// The root's name in records and metrics.
    pub name: String,
    /// The key: `projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY`.
    pub key_id: String,
    /// The URL of Cloud KMS, if it is not `https://cloudkms.googleapis.com`.
    pub endpoint: Option<String>,
    /// The file with the credentials; by default they are found as Google's libraries find them.
    pub credentials_file: Option<PathBuf>,
    /// A PEM file with the certificates to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// How long a call may take with all its retries: 5 s by default.
    #[serde(default = "five_seconds", with = "human_units::duration")]
    pub timeout: Duration,
}

impl GcpKms {
    /// The key `key_id`, with the defaults for everything else.
    #[must_use]
    pub fn new(name: impl Into<String>, key_id: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            key_id: key_id.into(),
            endpoint: None,
            credentials_file: None,
            ca: None,
            timeout: five_seconds(),
        }
    }
}

/// One `[[root]]` with `kind = "pkcs11"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Pkcs11 {
    /// The root's name in records and metrics.
    pub name: String,
    /// The PKCS#11 module of the HSM's vendor: a shared library.
    pub module: PathBuf,
    /// The label of the token. Exactly one of this and `slot` is set.
    pub token_label: Option<String>,
    /// The id of the token's slot. Exactly one of this and `token_label` is set.
    #[serde(default, deserialize_with = "slot")]
    pub slot: Option<u64>,
    /// The label of the AES-256 key in the token.
    pub key_label: String,
    /// The file with the PIN of the token's user; trailing white space is ignored. It is read at
    /// each login, so a new PIN needs no restart.
    pub pin_file: Option<PathBuf>,
    /// The PIN itself, from the environment: it has no place in a configuration file.
    #[serde(skip)]
    pub pin: Option<Arc<SecretBytes>>,
    /// Who makes the nonces.
    #[serde(default)]
    pub gcm_iv: GcmIv,
    /// How long a caller waits for the token: 5 s by default.
    #[serde(default = "five_seconds", with = "human_units::duration")]
    pub timeout: Duration,
}

impl Pkcs11 {
    /// The AES-256 key `key_label` in the token `token_label` of `module`, with the defaults for
    /// everything else.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        module: impl Into<PathBuf>,
        token_label: impl Into<String>,
        key_label: impl Into<String>,
        pin: SecretBytes,
    ) -> Self {
        Self {
            name: name.into(),
            module: module.into(),
            token_label: Some(token_label.into()),
            slot: None,
            key_label: key_label.into(),
            pin_file: None,
            pin: Some(Arc::new(pin)),
            gcm_iv: GcmIv::default(),
            timeout: five_seconds(),
        }
    }
}

/// Who makes the nonce of a wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GcmIv {
    /// This process, at random.
    #[default]
    Caller,
    /// The token, which returns it: some allow nothing else (AWS CloudHSM, FIPS modes).
    Token,
}

impl GcmIv {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Token => "token",
        }
    }
}

/// One `[[root]]` with `kind = "vault-transit"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct VaultTransit {
    /// The root's name in records and metrics.
    pub name: String,
    /// The server's URL, such as `https://vault.example:8200`.
    pub address: String,
    /// The mount point of the transit engine.
    #[serde(default = "transit")]
    pub mount: String,
    /// The name of the key in the transit engine.
    pub key: String,
    /// The namespace of engine and login.
    pub namespace: Option<String>,
    /// A PEM file with the certificates to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The file with a token that something else keeps valid.
    pub token_file: Option<PathBuf>,
    /// The token itself, from the environment: it has no place in a configuration file.
    #[serde(skip)]
    pub token: Option<Arc<SecretBytes>>,
    /// AppRole: the role's id.
    pub role_id: Option<String>,
    /// AppRole: the file with the secret id.
    pub secret_id_file: Option<PathBuf>,
    /// AppRole: the secret id itself, from the environment.
    #[serde(skip)]
    pub secret_id: Option<Arc<SecretBytes>>,
    /// AppRole: its mount point.
    #[serde(default = "approle")]
    pub auth_mount: String,
    /// How long one call may take: 5 s by default.
    #[serde(default = "five_seconds", with = "human_units::duration")]
    pub timeout: Duration,
}

impl VaultTransit {
    /// The key `key` of the server at `address`, with the defaults for everything else. It still
    /// needs a login: `token` or `token_file`, or the three settings of AppRole.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        address: impl Into<String>,
        key: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            mount: transit(),
            key: key.into(),
            namespace: None,
            ca: None,
            token_file: None,
            token: None,
            role_id: None,
            secret_id_file: None,
            secret_id: None,
            auth_mount: approle(),
            timeout: five_seconds(),
        }
    }
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn transit() -> String {
    "transit".to_owned()
}

fn approle() -> String {
    "approle".to_owned()
}

/// A slot's id: a number, or text when it comes from the environment.
fn slot<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Slot {
        Number(u64),
        Text(String),
    }
    let slot = match Slot::deserialize(deserializer) {
        Ok(Slot::Number(slot)) => Some(slot),
        Ok(Slot::Text(text)) => text.trim().parse().ok(),
        Err(_) => None,
    };
    slot.map(Some).ok_or_else(|| de::Error::custom("slot is a whole number"))
}
