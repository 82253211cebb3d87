//! Tests of a build without external roots: their settings are read, and opening them is refused.

use std::path::Path;

use crate::secret::SecretBytes;

use super::settings::{AwsKms, AzureKeyVault, GcpKms, Pkcs11, VaultTransit};
use super::{Config, init, open};

#[tokio::test]
async fn a_root_whose_feature_is_off_is_refused_and_names_the_feature() {
    let pin = SecretBytes::new(b"1234".to_vec());
    for (feature, config) in [
        ("aws-kms", Config::AwsKms(AwsKms::new("main", "alias/a"))),
        ("azure-key-vault", Config::AzureKeyVault(AzureKeyVault::new("main", "https://v"))),
        ("gcp-kms", Config::GcpKms(GcpKms::new("main", "projects/p"))),
        ("pkcs11", Config::Pkcs11(Pkcs11::new("main", "/m.so", "token", "kek", pin))),
        ("vault-transit", Config::VaultTransit(VaultTransit::new("main", "https://v", "kek"))),
    ] {
        let refused = format!(
            "root main: roots of kind {feature} are not part of this build: it needs the Cargo \
             feature {feature}"
        );
        let directory = Path::new("/nowhere");
        let opened = open(&config, directory).await.err().map(|error| error.to_string());
        assert_eq!(opened.as_ref(), Some(&refused));
        assert_eq!(config.check(directory).unwrap_err().to_string(), refused);
        assert_eq!(init(&config, directory).await.unwrap_err().to_string(), refused);
    }
}
