//! One `[[root]]` of the configuration, and the choice of its provider.
//!
//! Each provider owns the settings of its kind. This file makes no call.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::secret::SecretBytes;

use super::{OpenError, Provider, local, passphrase, settings};

/// One `[[root]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
#[non_exhaustive]
pub enum Config {
    /// A key in AWS KMS.
    AwsKms(settings::AwsKms),
    /// A key in Azure Key Vault or a Managed HSM.
    AzureKeyVault(settings::AzureKeyVault),
    /// A key in Google Cloud KMS.
    GcpKms(settings::GcpKms),
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
            Self::AzureKeyVault(config) => &config.name,
            Self::GcpKms(config) => &config.name,
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
            Self::AzureKeyVault(_) => "azure-key-vault",
            Self::GcpKms(_) => "gcp-kms",
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
    pub(super) fn provider(&self) -> Result<&dyn Provider, OpenError> {
        match self {
            Self::Local(config) => Ok(config),
            Self::Passphrase(config) => Ok(config),
            #[cfg(feature = "aws-kms")]
            Self::AwsKms(config) => Ok(config),
            #[cfg(feature = "azure-key-vault")]
            Self::AzureKeyVault(config) => Ok(config),
            #[cfg(feature = "gcp-kms")]
            Self::GcpKms(config) => Ok(config),
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

    pub(super) fn failed(&self, detail: String) -> OpenError {
        OpenError { root: self.name().to_owned(), detail }
    }

    /// The same settings with the paths that are in force: a default may be below `data_dir`.
    pub(crate) fn with_paths(mut self, data_dir: &Path) -> Self {
        if let Self::Local(config) = &mut self {
            config.key_file = Some(config.path(data_dir));
        }
        self
    }

    /// The field for the secret `setting`, and whether a file already sets it; `None` if this kind
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

    /// Checks for what would make [`open`](super::open) fail, as far as possible without creating
    /// or calling anything.
    ///
    /// # Errors
    /// The [`OpenError`] that `open` would return.
    pub fn check(&self, data_dir: &Path) -> Result<(), OpenError> {
        self.provider()?.check(data_dir).map_err(|detail| self.failed(detail))
    }

    /// Whether opening the root would create a new key because no key exists. A new key unwraps
    /// nothing that was wrapped before.
    #[must_use]
    pub fn is_new(&self, data_dir: &Path) -> bool {
        match self {
            Self::Local(config) => !config.path(data_dir).exists(),
            _ => false,
        }
    }
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
        let key = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
        let gcp = format!("kind = 'gcp-kms'\nname = 'main'\nkey_id = '{key}'");
        assert_eq!(parse(&gcp).unwrap().name(), "main");
        let key = "https://orders.vault.azure.net/keys/k";
        let azure = format!("kind = 'azure-key-vault'\nname = 'main'\nkey_id = '{key}'");
        assert_eq!(parse(&azure).unwrap().name(), "main");
        let error = parse("kind = 'locla'\nname = 'main'").unwrap_err();
        assert!(error.contains("`locla`") && error.contains("`passphrase`"), "{error}");
    }
}
