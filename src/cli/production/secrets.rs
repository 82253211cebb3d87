//! The files with secrets that a configuration names.

use std::path::Path;

use kms_proxy::config::{Config, NamedFile};

/// Each file with a secret.
pub(super) fn files(config: &Config) -> impl Iterator<Item = NamedFile> {
    let is_secret = |file: &NamedFile| file.is_secret && !is_federation(file);
    config.files().into_iter().filter(is_secret)
}

/// Whether it is a configuration of workload identity federation, which names where the secret is.
fn is_federation(file: &NamedFile) -> bool {
    file.setting.ends_with(".credentials_file") && names_federation(&file.path)
}

fn names_federation(path: &Path) -> bool {
    let json = std::fs::read(path).ok();
    let json = json.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    json.is_some_and(|json| json.get("type").is_some_and(|kind| kind == "external_account"))
}
