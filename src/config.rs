//! The configuration: a file, over it the environment, over that the flags; out comes one typed
//! and checked [`Config`].
//!
//! It nests the parts' own `Config`s and adds what none of them can know alone. This is the one
//! place that reads the environment. `KMS_PROXY__SECTION__KEY` is `key` of `[section]`, and
//! `KMS_PROXY__ROOT__0__KIND` is `kind` of the first `[[root]]`; a list of words is written as
//! `default,orders` or as a TOML array. No error holds a value, since any may be a misplaced secret.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::id::{ChainName, Suite};
use crate::secret::SecretBytes;
use crate::store::record::Limits;
use crate::{http, root, service, store, telemetry, units};

mod source;
mod tree;
mod view;

#[cfg(test)]
mod tests;

/// Everything that can be set, complete and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[server]`.
    pub server: http::Config,
    /// `[log]`.
    pub log: telemetry::Config,
    /// `[store]`.
    pub store: store::Config,
    /// Each `[[root]]`, the preferred one first; at least one.
    pub roots: Vec<root::Config>,
    /// `[chain]`, `[cache]`, and the wait of `[server]`.
    pub service: service::Config,
}

/// What the command line sets; it wins over file and environment.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `server.listen`.
    pub listen: Option<SocketAddr>,
    /// `store.path`.
    pub data_dir: Option<PathBuf>,
}

/// A configuration that can't be used.
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
    /// The file is no TOML.
    #[error("{path}, line {line}: this is no TOML: {detail}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What the parser misses; it does not quote the line.
        detail: String,
    },
    /// One setting is wrong.
    #[error("{key}{}: {detail}", from.as_ref().map(|from| format!(" ({from})")).unwrap_or_default())]
    Setting {
        /// The key with its section, such as `root.0.kind`.
        key: String,
        /// The variable of the environment that gave it, if one did.
        from: Option<String>,
        /// What is wrong, or what is expected there.
        detail: String,
    },
}

impl Config {
    /// The configuration of this process: `file`, if there is one, then its environment, then
    /// `flags`.
    ///
    /// # Errors
    /// [`Error`], which names the key and never a value.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Self, Error> {
        let text = file.map(|path| {
            std::fs::read_to_string(path)
                .map_err(|source| Error::Unreadable { path: path.to_owned(), source })
        });
        Self::from_sources(file.zip(text.transpose()?.as_deref()), std::env::vars_os(), flags)
    }

    /// The same from a file's path and text, and from any variables.
    ///
    /// # Errors
    /// [`Error`], which names the key and never a value.
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
        let settings =
            Settings::deserialize(source.tree).map_err(|wrong| error(wrong.key(), wrong.detail))?;
        let mut config = settings.resolve(flags);
        for (key, secret) in source.secrets {
            config.give(&key, secret).map_err(|Wrong(key, detail)| error(key, detail))?;
        }
        config.check().map_err(|Wrong(key, detail)| error(key, detail))?;
        Ok(config)
    }

    /// Whether other machines can reach the service, without TLS and auth.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        std::iter::once(self.server.listen)
            .chain(self.server.admin_listen)
            .any(|address| !address.ip().is_loopback())
    }

    /// Gives a secret from the environment to the part that takes it.
    fn give(&mut self, key: &str, secret: SecretBytes) -> Result<(), Wrong> {
        let part = match key.split('.').collect::<Vec<_>>()[..] {
            ["root", index, "passphrase"] => {
                index.parse().ok().and_then(|index: usize| self.roots.get_mut(index))
            }
            _ => None,
        };
        match part {
            Some(root::Config::Passphrase(root)) if root.passphrase_file.is_none() => {
                // As a file's: moving a passphrase between the two does not change it.
                root.passphrase = Some(Arc::new(secret.trim_end()));
                Ok(())
            }
            Some(root::Config::Passphrase(_)) => {
                Err(wrong(key, "it is given twice: passphrase_file is there too"))
            }
            _ => Err(wrong(key, "only a root of kind passphrase takes it")),
        }
    }

    fn check(&self) -> Result<(), Wrong> {
        self.check_server()?;
        self.check_roots()?;
        let service::Config { names, limits, destroy_delay, .. } = &self.service;
        limits.validate().map_err(|detail| wrong("chain", detail))?;
        if let Some(index) = first_repeated(names) {
            return Err(wrong(&format!("chain.names.{index}"), "this name is there already"));
        }
        if *destroy_delay < MIN_DESTROY_DELAY {
            return Err(wrong("chain.destroy_delay", "it is at least 2m"));
        }
        within("cache.dek_entries", self.service.dek_entries, 0..=MAX_CACHED)?;
        within("cache.keks", self.service.keks, 1..=MAX_CACHED)?;
        if self.service.dek_max_age.is_zero() {
            let detail = "it is more than nothing; cache.dek_entries = 0 switches the cache off";
            return Err(wrong("cache.dek_max_age", detail));
        }
        Ok(())
    }

    fn check_server(&self) -> Result<(), Wrong> {
        let http::Config { listen, admin_listen, insecure, .. } = self.server;
        let addresses = [("server.listen", Some(listen)), ("server.admin_listen", admin_listen)];
        for (key, address) in addresses {
            if address.is_some_and(|address| !address.ip().is_loopback()) && !insecure {
                let detail = "it is not a loopback address, and there is neither TLS nor auth; \
                              server.insecure = true allows it";
                return Err(wrong(key, detail));
            }
        }
        if admin_listen == Some(listen) && listen.port() != 0 {
            return Err(wrong("server.admin_listen", "it is server.listen; leave it out instead"));
        }
        within("server.max_body", self.server.max_body, 1 << 10..=1 << 30)?;
        within("server.max_connections", self.server.max_connections, 1..=1_000_000)?;
        let timeout = self.server.request_timeout;
        if !(Duration::from_millis(10)..=Duration::from_secs(3_600)).contains(&timeout) {
            return Err(wrong("server.request_timeout", "it is 10ms to 1h"));
        }
        Ok(())
    }

    fn check_roots(&self) -> Result<(), Wrong> {
        let names: Vec<_> = self.roots.iter().map(root::Config::name).collect();
        for (index, name) in names.iter().enumerate() {
            // Names stand in records, labels and logs: what suits a chain suits a root.
            if ChainName::new(name).is_err() {
                let detail = "it is 1 to 63 of a-z 0-9 . _ - and starts with a letter or digit";
                return Err(wrong(&format!("root.{index}.name"), detail));
            }
        }
        match first_repeated(&names) {
            Some(index) => Err(wrong(&format!("root.{index}.name"), "another root has this name")),
            None if names.is_empty() => Err(wrong("root", "there must be one")),
            None => Ok(()),
        }
    }
}

/// Blocks of uses die after 60 s, so that no envelope is born under a KEK that is destroyed later.
const MIN_DESTROY_DELAY: Duration = Duration::from_secs(120);

/// Entries of a cache: at about 1 KB each, more than a machine is likely to have.
const MAX_CACHED: usize = 100_000_000;

/// The key of a setting, and what is wrong with it.
struct Wrong(String, String);

fn wrong(key: &str, detail: &str) -> Wrong {
    Wrong(key.to_owned(), detail.to_owned())
}

fn within(key: &str, value: usize, allowed: RangeInclusive<usize>) -> Result<(), Wrong> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(wrong(key, &format!("it is {} to {}", allowed.start(), allowed.end())))
}

/// The index of the first item that an earlier one equals.
fn first_repeated<T: Ord>(items: &[T]) -> Option<usize> {
    let mut seen = BTreeMap::new();
    items.iter().enumerate().find_map(|(index, item)| seen.insert(item, index).map(|_| index))
}

/// The sections as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    server: http::Config,
    #[serde(default)]
    log: telemetry::Config,
    store: store::Config,
    root: Vec<root::Config>,
    #[serde(default)]
    chain: Chain,
    #[serde(default)]
    cache: Cache,
    #[serde(default)]
    auth: Auth,
}

/// `[chain]`: made at start, and the defaults of new chains.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Chain {
    names: Vec<ChainName>,
    suite: Suite,
    rotate_after_uses: u64,
    max_uses: u64,
    #[serde(deserialize_with = "units::duration::deserialize")]
    rotate_after_age: Duration,
    #[serde(deserialize_with = "units::duration::deserialize")]
    destroy_delay: Duration,
}

/// `[cache]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Cache {
    dek_entries: usize,
    #[serde(deserialize_with = "units::duration::deserialize")]
    dek_max_age: Duration,
    keks: usize,
}

/// `[auth]`: there is none yet, and saying so is allowed.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Auth {
    mode: AuthMode,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AuthMode {
    #[default]
    None,
}

impl Default for Chain {
    fn default() -> Self {
        let service::Config { names, suite, limits, destroy_delay, .. } = Default::default();
        let Limits { rotate_after_uses, max_uses, rotate_after_age } = limits;
        let rotate_after_age = Duration::from_secs(rotate_after_age);
        Self { names, suite, rotate_after_uses, max_uses, rotate_after_age, destroy_delay }
    }
}

impl Default for Cache {
    fn default() -> Self {
        let service::Config { dek_entries, dek_max_age, keks, .. } = Default::default();
        Self { dek_entries, dek_max_age, keks }
    }
}

impl Settings {
    /// The parts' own `Config`s, with the flags over them.
    fn resolve(self, flags: &Flags) -> Config {
        let Self { mut server, log, mut store, root, chain, cache, auth } = self;
        let AuthMode::None = auth.mode;
        server.listen = flags.listen.unwrap_or(server.listen);
        if let Some(data_dir) = &flags.data_dir {
            store = store::Config::File(store::file::Config { path: data_dir.clone() });
        }
        let limits = Limits {
            rotate_after_uses: chain.rotate_after_uses,
            max_uses: chain.max_uses,
            rotate_after_age: chain.rotate_after_age.as_secs(),
        };
        let service = service::Config {
            names: chain.names,
            suite: chain.suite,
            limits,
            destroy_delay: chain.destroy_delay,
            wait: server.request_timeout,
            dek_entries: cache.dek_entries,
            dek_max_age: cache.dek_max_age,
            keks: cache.keks,
            ..Default::default()
        };
        Config { server, log, store, roots: root, service }
    }
}
