//! The configuration: the flags override the environment, which overrides a file. The result is one
//! typed and checked [`Config`].
//!
//! It nests the `Config` of each part and checks how they fit together. Only this module reads the
//! environment, except for the variables of `proxy`. `KMS_PROXY__SECTION__KEY` is `key` of
//! `[section]`, and `KMS_PROXY__ROOT__0__KIND` is `kind` of the first `[[root]]`; a list of words
//! is written as `default,orders` or as a TOML array. Errors never contain a value, since any value
//! may be a misplaced secret.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::secret::SecretBytes;
use crate::{archive, audit, auth, aws_api, http, kubernetes, root, service, store, telemetry};

mod check;
mod files;
mod source;
mod tagged;
mod tree;
mod typed;
mod variables;
mod view;

#[cfg(test)]
mod tests;

use check::{Wrong, wrong};

pub use files::NamedFile;

/// Everything that can be set, complete and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[server]`.
    pub server: http::Config,
    /// `[admin]`.
    pub admin: http::Admin,
    /// `[log]`.
    pub log: telemetry::Config,
    /// `[traces]`.
    pub traces: telemetry::traces::Config,
    /// `[store]`.
    pub store: store::Config,
    /// Each `[[archive]]`; none by default.
    pub archives: Vec<archive::Config>,
    /// Each `[[root]]`, the preferred one first; at least one.
    pub roots: Vec<root::Config>,
    /// `[chain]`, `[cache]`, and the wait of `[server]`.
    pub service: service::Config,
    /// `[auth]` and each `[[client]]`.
    pub auth: auth::Config,
    /// `[aws_api]`; its `secret_key_file` is moved to `auth`, which uses it.
    pub aws_api: aws_api::Config,
    /// `[kubernetes]`, where Kubernetes is served.
    pub kubernetes: Option<kubernetes::Config>,
    /// `[audit]`.
    pub audit: audit::Config,
}

/// Settings from the command line; they override the file and the environment.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `server.listen`.
    pub listen: Option<SocketAddr>,
    /// `store.path`, or `store.data_dir` if the store is remote.
    pub data_dir: Option<PathBuf>,
}

/// A configuration that is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("can't read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not valid TOML.
    #[error("{path}, line {line}: not valid TOML: {detail}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// The parser's message, which does not quote the line.
        detail: String,
    },
    /// One setting is wrong.
    #[error(
        "{key}{}: {detail}",
        from.as_ref().map(|from| format!(" ({from})")).unwrap_or_default()
    )]
    Setting {
        /// The key with its section, such as `root.0.kind`, or the name of an unknown variable.
        key: String,
        /// The environment variable that set it, if one did.
        from: Option<String>,
        /// What is wrong, or what is expected.
        detail: String,
    },
}

impl Config {
    /// The configuration of this process: `file`, if there is one, then its environment, then
    /// `flags`.
    ///
    /// # Errors
    /// [`Error`], which names the key and never contains a value.
    #[expect(clippy::disallowed_methods, reason = "the only place that reads it")]
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Self, Error> {
        let text = file.map(|path| {
            crate::files::open(path)
                .and_then(std::io::read_to_string)
                .map_err(|source| Error::Unreadable { path: path.to_owned(), source })
        });
        Self::from_sources(file.zip(text.transpose()?.as_deref()), std::env::vars_os(), flags)
    }

    /// Like [`load`](Self::load), from the path and the text of a file and from the given
    /// variables.
    ///
    /// # Errors
    /// [`Error`], which names the key and never contains a value.
    pub fn from_sources(
        file: Option<(&Path, &str)>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &Flags,
    ) -> Result<Self, Error> {
        let source = source::Source::read(file, variables)?;
        let variables = source.variables;
        let error = |key: String, detail: String| {
            let from = source::variable(&key);
            let from = variables.contains(&from).then_some(from);
            Error::Setting { key, from, detail }
        };
        let sections = Sections::deserialize(source.tree)
            .map_err(|wrong| error(wrong.key(), wrong.detail()))?;
        let mut config = sections.resolve(flags);
        for (key, secret) in source.secrets {
            config.give(&key, secret).map_err(|Wrong(key, detail)| error(key, detail))?;
        }
        let own = file.map(|(path, _)| path);
        let checked = config.check().and_then(|()| config.check_audit_file(own));
        checked.map_err(|Wrong(key, detail)| error(key, detail))?;
        Ok(config)
    }

    /// Whether other machines can reach the service without TLS or without auth.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        !self.server.listen.ip().is_loopback() && !self.is_protected()
    }

    /// Whether callers are authenticated and their traffic is encrypted: both TLS and auth.
    fn is_protected(&self) -> bool {
        self.server.tls.is_some() && self.auth.mode == auth::Mode::Required
    }

    /// Moves a secret from the environment to the part that takes it.
    fn give(&mut self, key: &str, secret: SecretBytes) -> Result<(), Wrong> {
        let parts: Vec<_> = key.split('.').collect();
        let setting = parts.last().copied().unwrap_or_default();
        let slot = match (&parts[..], &mut self.store) {
            (["store", "password"], store::Config::Etcd(etcd)) => {
                Some((&mut etcd.password, etcd.password_file.is_some()))
            }
            (["root", index, _], _) => {
                let index = index.parse().ok();
                let root = index.and_then(|index: usize| self.roots.get_mut(index));
                root.and_then(|root| root.secret(setting))
            }
            _ => None,
        };
        match slot {
            Some((_, true)) => {
                Err(wrong(key, &format!("given twice: {setting}_file is there too")))
            }
            // Like a secret from a file: moving it between the two does not change it.
            Some((slot, false)) => {
                *slot = Some(Arc::new(secret.trim_end()));
                Ok(())
            }
            None => {
                let taker = match setting {
                    "password" => "store of kind etcd",
                    "pin" => "root of kind pkcs11",
                    "secret_id" | "token" => "root of kind vault-transit",
                    _ => "root of kind passphrase",
                };
                Err(wrong(key, &format!("only a {taker} takes it")))
            }
        }
    }
}

/// The sections as they are written, in the file and by `check-config`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    #[serde(default)]
    server: http::Config,
    #[serde(default)]
    admin: http::Admin,
    #[serde(default)]
    log: telemetry::Config,
    #[serde(default)]
    traces: telemetry::traces::Config,
    #[serde(deserialize_with = "tagged::store")]
    store: store::Config,
    #[serde(deserialize_with = "tagged::roots")]
    root: Vec<root::Config>,
    #[serde(default, deserialize_with = "tagged::archives", skip_serializing_if = "Vec::is_empty")]
    archive: Vec<archive::Config>,
    #[serde(default)]
    archive_policy: archive::Policy,
    #[serde(default)]
    chain: service::ChainConfig,
    #[serde(default)]
    cache: service::CacheConfig,
    #[serde(default)]
    auth: Auth,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    client: Vec<auth::ClientConfig>,
    #[serde(default)]
    aws_api: aws_api::Config,
    kubernetes: Option<kubernetes::Config>,
    #[serde(default)]
    audit: audit::Config,
}

/// `[auth]`.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Auth {
    mode: auth::Mode,
}

impl Sections {
    /// The `Config` of each part, overridden by the flags.
    fn resolve(self, flags: &Flags) -> Config {
        let Self { mut server, admin, log, traces, mut store, root, mut chain, cache, .. } = self;
        let Self { auth, client, mut aws_api, kubernetes, archive, archive_policy, audit, .. } =
            self;
        server.listen = flags.listen.unwrap_or(server.listen);
        if let Some(data_dir) = &flags.data_dir {
            store.set_data_dir(data_dir.clone());
        }
        // The chains of Kubernetes and of keys of AWS are created at the start, like the others
        // that are named.
        let of_kubernetes = kubernetes.iter().map(|kubernetes| &kubernetes.chain);
        for name in of_kubernetes.chain(aws_api.key.iter().map(|key| &key.chain)) {
            let is_default = name.as_str() == service::DEFAULT_CHAIN;
            if !is_default && !chain.names.contains(name) {
                chain.names.push(name.clone());
            }
        }
        let wait = server.request_timeout;
        let service = service::Config { chain, cache, archive_policy, wait, ..Default::default() };
        aws_api.set_default_region(&root);
        let aws_secret_key_file = aws_api.secret_key_file.take();
        let auth = auth::Config { mode: auth.mode, clients: client, aws_secret_key_file };
        let (roots, archives) = (root, archive);
        Config {
            server,
            admin,
            log,
            traces,
            store,
            archives,
            roots,
            service,
            auth,
            aws_api,
            kubernetes,
            audit,
        }
    }
}

impl From<&Config> for Sections {
    fn from(config: &Config) -> Self {
        let Config {
            server,
            admin,
            log,
            traces,
            store,
            roots,
            service,
            auth,
            mut aws_api,
            kubernetes,
            audit,
            ..
        } = config.clone();
        let archive = config.archives.clone();
        let service::Config { chain, cache, archive_policy, wait: _, max_waiting: _ } = service;
        let auth::Config { mode, clients, aws_secret_key_file } = auth;
        aws_api.secret_key_file = aws_secret_key_file;
        let data_dir = store.data_dir();
        let root = roots.into_iter().map(|root| root.with_paths(data_dir)).collect();
        let auth = Auth { mode };
        let client = clients;
        Self {
            server,
            admin,
            log,
            traces,
            root,
            store,
            archive,
            archive_policy,
            chain,
            cache,
            auth,
            client,
            aws_api,
            kubernetes,
            audit,
        }
    }
}
