//! Where records are: a configured store, the directory of one, or a backup.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use kms_proxy::config::{Config, Flags};
use kms_proxy::store::{self, Store, backup};

use crate::cli::count::count;
use crate::cli::stdio::tell;
use crate::cli::{Failure, Result};

/// What `--from` and `--to` name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `config:FILE`; without a file, what the environment configures.
    Config(Option<PathBuf>),
    /// `dir:DIR`.
    Dir(PathBuf),
    /// `backup:FILE`.
    Backup(PathBuf),
    /// `backup:-`: a backup on stdout.
    Stream,
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("config", "")) => Ok(Self::Config(None)),
            Some(("config", file)) => Ok(Self::Config(Some(file.into()))),
            Some(("dir", dir)) if !dir.is_empty() => Ok(Self::Dir(dir.into())),
            Some(("backup", "-")) => Ok(Self::Stream),
            Some(("backup", file)) if !file.is_empty() => Ok(Self::Backup(file.into())),
            _ => Err("it is written config:FILE, dir:DIR or backup:FILE"),
        }
    }
}

impl Place {
    /// The settings of the store, if it is one.
    pub(super) fn config(&self) -> Result<Option<store::Config>> {
        Ok(match self {
            Self::Config(file) => {
                let config = load(file.clone())?.store;
                must_be_one(&config)?;
                Some(config)
            }
            Self::Dir(dir) => Some(store::Config::File(store::file::Config { path: dir.clone() })),
            Self::Backup(_) | Self::Stream => None,
        })
    }

    /// Opens what must be there already.
    pub(super) async fn open(&self) -> Result<Arc<dyn Store>> {
        match (self, self.config()?) {
            (Self::Stream, _) => Err(Failure::Usage(
                "backup:- is stdout, for --to alone; a backup is read from a file".to_owned(),
            )),
            (Self::Backup(file), _) => {
                let read = backup::read(file);
                let backup =
                    read.map_err(|error| Failure::refused(format!("{}: {error}", file.display())))?;
                let backup::Backup { store, created_at, chains, records } = backup;
                let (chains, records) = (count(chains, "chain"), count(records, "record"));
                tell(&format!("a backup of {created_at}: {chains}, {records}"));
                Ok(Arc::new(store))
            }
            (_, Some(config)) => open(&config).await,
            (_, None) => Err(Failure::refused("there is no store")),
        }
    }
}

/// The configuration of `file` and the environment.
pub(super) fn load(file: Option<PathBuf>) -> Result<Config> {
    load_with(file, Flags::default())
}

/// The same with flags over it.
pub(super) fn load_with(file: Option<PathBuf>, flags: Flags) -> Result<Config> {
    Config::load(file.as_deref(), &flags).map_err(|error| Failure::Usage(error.to_string()))
}

/// Opens a store that must be there already: a slip in a path must not make an empty one.
pub(super) async fn open(config: &store::Config) -> Result<Arc<dyn Store>> {
    must_be_one(config)?;
    if config.is_missing() {
        let dir = config.data_dir().display();
        return Err(Failure::refused(format!("{dir}: there is no store in this directory")));
    }
    open_or_make(config).await
}

/// With `inline` no store exists.
fn must_be_one(config: &store::Config) -> Result {
    match config {
        store::Config::Inline(_) => Err(Failure::Usage(
            "store.kind is \"inline\": nothing is stored, so there is nothing to copy, verify or \
             retire. Each envelope carries its KEK along; `kms-proxy rewrap` moves envelopes to a \
             service that has a store, and `kms-proxy rewrap --inline` from one"
                .to_owned(),
        )),
        store::Config::File(_) | store::Config::Etcd(_) => Ok(()),
    }
}

/// Opens a store, and makes it when it is missing.
pub(super) async fn open_or_make(config: &store::Config) -> Result<Arc<dyn Store>> {
    must_be_one(config)?;
    store::open_or_make(config).await.map_err(|error| Failure::refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        for (text, place) in [
            ("config:a.toml", Place::Config(Some("a.toml".into()))),
            ("config:", Place::Config(None)),
            ("dir:/a:b", Place::Dir("/a:b".into())),
            ("backup:b", Place::Backup("b".into())),
            ("backup:-", Place::Stream),
            ("backup:./-", Place::Backup("./-".into())),
        ] {
            assert_eq!(text.parse(), Ok(place));
        }
        for bad in ["", "a.toml", "dir", "dir:", "backup:", "Config:a", "etcd:http://localhost"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
