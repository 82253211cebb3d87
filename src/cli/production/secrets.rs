//! The files with secrets that a configuration names.

use std::path::{Path, PathBuf};

use kms_proxy::config::Config;
use kms_proxy::{root, store};

/// Each file with a secret, and its setting.
pub(super) fn files(config: &Config) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    let mut add = |setting: String, path: Option<&PathBuf>| {
        files.extend(path.map(|path| (setting, path.clone())));
    };
    if let Some(tls) = &config.server.tls {
        add("server.tls.key".to_owned(), Some(&tls.key));
    }
    if let store::Config::Etcd(etcd) = &config.store {
        add("store.password_file".to_owned(), etcd.password_file.as_ref());
        add("store.tls.key".to_owned(), etcd.tls.as_ref().and_then(|tls| tls.key.as_ref()));
    }
    for (index, root) in config.roots.iter().enumerate() {
        let mut add = |key: &str, path| add(format!("root.{index}.{key}"), path);
        match root {
            // The root itself refuses a key file that others can read.
            root::Config::Local(_) | root::Config::AwsKms(_) | root::Config::AzureKeyVault(_) => {}
            root::Config::Passphrase(root) => add("passphrase_file", root.passphrase_file.as_ref()),
            root::Config::Pkcs11(root) => add("pin_file", root.pin_file.as_ref()),
            root::Config::GcpKms(root) => {
                let file = root.credentials_file.as_ref().filter(|path| !is_federation(path));
                add("credentials_file", file);
            }
            root::Config::VaultTransit(root) => {
                add("token_file", root.token_file.as_ref());
                add("secret_id_file", root.secret_id_file.as_ref());
            }
            _ => {}
        }
    }
    for (index, client) in config.auth.clients.iter().enumerate() {
        let mut add = |key: &str, path| add(format!("client.{index}.{key}"), path);
        let of_jwt = client.jwt.as_ref().and_then(|jwt| jwt.jwks_token_file.as_ref());
        add("jwt.jwks_token_file", of_jwt);
        add("aws_secret_access_key_file", client.aws_secret_access_key_file.as_ref());
    }
    add("aws_api.secret_key_file".to_owned(), config.auth.aws_secret_key_file.as_ref());
    files
}

/// Whether it is a configuration of workload identity federation, which names where the secret is.
fn is_federation(path: &Path) -> bool {
    let json = std::fs::read(path).ok();
    let json = json.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    json.is_some_and(|json| json.get("type").is_some_and(|kind| kind == "external_account"))
}
