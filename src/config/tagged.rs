//! `[store]`, `[[root]]` and `[[archive]]`: tables whose key `kind` selects the settings that they
//! take.
//!
//! serde's internally tagged enums buffer the table before they know its kind, so an error does not
//! know the key of the wrong setting. [`Tree`](super::tree::Tree) takes the kind out first.

use serde::{Deserialize, Deserializer};

use crate::{archive, root, store};

/// The serde name of an enum that is selected by the key `kind`.
pub(super) const TAGGED: &str = "kind";

#[derive(Deserialize)]
#[serde(rename = "kind", rename_all = "kebab-case")]
enum Store {
    File(store::file::Config),
    Etcd(Box<store::settings::Etcd>),
    Inline(store::inline::Config),
}

#[derive(Deserialize)]
#[serde(rename = "kind", rename_all = "kebab-case")]
enum Root {
    AwsKms(root::settings::AwsKms),
    AzureKeyVault(root::settings::AzureKeyVault),
    GcpKms(root::settings::GcpKms),
    Local(root::local::Config),
    Passphrase(root::passphrase::Config),
    Pkcs11(root::settings::Pkcs11),
    VaultTransit(root::settings::VaultTransit),
}

#[derive(Deserialize)]
#[serde(rename = "kind", rename_all = "kebab-case")]
enum Archive {
    Dir(archive::settings::Dir),
    S3(archive::settings::S3),
    Gcs(archive::settings::Gcs),
    Azure(archive::settings::Azure),
}

/// The `[store]`.
pub(super) fn store<'de, D: Deserializer<'de>>(table: D) -> Result<store::Config, D::Error> {
    Ok(match Store::deserialize(table)? {
        Store::File(config) => store::Config::File(config),
        Store::Etcd(config) => store::Config::Etcd(config),
        Store::Inline(config) => store::Config::Inline(config),
    })
}

/// Each `[[root]]`.
pub(super) fn roots<'de, D: Deserializer<'de>>(list: D) -> Result<Vec<root::Config>, D::Error> {
    let roots = Vec::<Root>::deserialize(list)?.into_iter().map(|root| match root {
        Root::AwsKms(config) => root::Config::AwsKms(config),
        Root::AzureKeyVault(config) => root::Config::AzureKeyVault(config),
        Root::GcpKms(config) => root::Config::GcpKms(config),
        Root::Local(config) => root::Config::Local(config),
        Root::Passphrase(config) => root::Config::Passphrase(config),
        Root::Pkcs11(config) => root::Config::Pkcs11(config),
        Root::VaultTransit(config) => root::Config::VaultTransit(config),
    });
    Ok(roots.collect())
}

/// Each `[[archive]]`.
pub(super) fn archives<'de, D: Deserializer<'de>>(
    list: D,
) -> Result<Vec<archive::Config>, D::Error> {
    let archives = Vec::<Archive>::deserialize(list)?.into_iter().map(|archive| match archive {
        Archive::Dir(config) => archive::Config::Dir(config),
        Archive::S3(config) => archive::Config::S3(config),
        Archive::Gcs(config) => archive::Config::Gcs(config),
        Archive::Azure(config) => archive::Config::Azure(config),
    });
    Ok(archives.collect())
}
