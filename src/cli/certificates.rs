//! Warnings of `check-config`: certificates in the files of a configuration that are not valid now.
//! These are not errors: a service starts with them, and a clock may be wrong.

use std::path::{Path, PathBuf};

use kms_proxy::config::Config;
use kms_proxy::{root, store, tls};

/// A warning about each certificate that is not valid at `now`, in seconds since the Unix epoch, or
/// soon will not be.
pub(super) fn warnings(config: &Config, now: u64) -> Vec<String> {
    let warnings = files(config).into_iter().flat_map(|(setting, path)| {
        let of_file = tls::warnings(path, now);
        of_file.into_iter().map(move |why| format!("{setting}: {}: {why}", path.display()))
    });
    warnings.collect()
}

/// The files with certificates, each with its setting.
fn files<'a>(config: &'a Config) -> Vec<(String, &'a Path)> {
    let mut files = Vec::new();
    let mut add = |setting: String, path: Option<&'a PathBuf>| {
        if let Some(path) = path {
            files.push((setting, path.as_path()));
        }
    };
    if let Some(tls) = &config.server.tls {
        add("server.tls.cert".to_owned(), Some(&tls.cert));
        add("server.tls.client_ca".to_owned(), tls.client_ca.as_ref());
    }
    if let store::Config::Etcd(etcd) = &config.store
        && let Some(tls) = &etcd.tls
    {
        add("store.tls.ca".to_owned(), tls.ca.as_ref());
        add("store.tls.cert".to_owned(), tls.cert.as_ref());
    }
    for (index, root) in config.roots.iter().enumerate() {
        if let root::Config::VaultTransit(vault) = root {
            add(format!("root.{index}.ca"), vault.ca.as_ref());
        }
    }
    for (index, client) in config.auth.clients.iter().enumerate() {
        if let Some(jwt) = &client.jwt {
            add(format!("client.{index}.jwt.jwks_ca"), jwt.jwks_ca.as_ref());
        }
    }
    files
}
