//! The locations of records: a configured store, the directory of a store, a backup or an archive.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use kms_proxy::config::{Config, Flags};
use kms_proxy::store::{self, Store, backup};

use crate::cli::count::count;
use crate::cli::stdio::eprint;
use crate::cli::{Failure, Result};

/// A value of `--from` and `--to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `config:FILE`; without a file, the configuration of the environment.
    Config(Option<PathBuf>),
    /// `dir:DIR`.
    Dir(PathBuf),
    /// `backup:FILE`.
    Backup(PathBuf),
    /// `backup:-`: a backup on stdout.
    Stream,
    /// `archive:NAME`: an archive of the configuration.
    Archive(String),
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
            Some(("archive", name)) if !name.is_empty() => Ok(Self::Archive(name.to_owned())),
            _ => Err("must be config:FILE, dir:DIR, backup:FILE or archive:NAME"),
        }
    }
}

impl Place {
    /// The settings of the store; `None` for a backup.
    pub(super) fn config(&self) -> Result<Option<store::Config>> {
        Ok(match self {
            Self::Config(file) => {
                let config = load(file.clone())?.store;
                require_store(&config)?;
                Some(config)
            }
            Self::Dir(dir) => Some(store::Config::File(store::file::Config { path: dir.clone() })),
            Self::Backup(_) | Self::Stream => None,
            Self::Archive(_) => {
                return Err(Failure::Usage(
                    "archive:NAME works only with `store verify`; `store recover` fills a store \
                     from the archives"
                        .to_owned(),
                ));
            }
        })
    }

    /// Opens a store or backup that must exist.
    pub(super) async fn open(&self) -> Result<Arc<dyn Store>> {
        match (self, self.config()?) {
            (Self::Stream, _) => Err(Failure::Usage(
                "backup:- is stdout and works only with --to; a backup is read from a file"
                    .to_owned(),
            )),
            (Self::Backup(file), _) => {
                let read = backup::read(file);
                let backup =
                    read.map_err(|error| Failure::refused(format!("{}: {error}", file.display())))?;
                let backup::Backup { store, created_at, chains, records, left_out } = backup;
                let (chains, records) = (count(chains, "chain"), count(records, "record"));
                eprint(&format!("a backup of {created_at}: {chains}, {records}"));
                if left_out > 0 {
                    let lacks = count(left_out, "damaged record");
                    eprint(&format!("it lacks {lacks} of the store"));
                }
                Ok(Arc::new(store))
            }
            (_, Some(config)) => open(&config).await,
            (_, None) => Err(Failure::refused("there is no store")),
        }
    }
}

/// The configuration of `file` and the environment.
pub(in crate::cli) fn load(file: Option<PathBuf>) -> Result<Config> {
    load_with(file, Flags::default())
}

/// The configuration of `file` and the environment, overridden by `flags`.
pub(super) fn load_with(file: Option<PathBuf>, flags: Flags) -> Result<Config> {
    Config::load(file.as_deref(), &flags).map_err(|error| Failure::Usage(error.to_string()))
}

/// Opens a store that must exist: a mistyped path must not create an empty one.
pub(in crate::cli) async fn open(config: &store::Config) -> Result<Arc<dyn Store>> {
    require_store(config)?;
    if config.is_missing() {
        let dir = config.data_dir().display();
        return Err(Failure::refused(format!("{dir}: this directory has no store")));
    }
    open_or_create(config).await
}

/// Fails for `inline`, which has no store.
fn require_store(config: &store::Config) -> Result {
    match config {
        store::Config::Inline(_) => Err(Failure::Usage(
            "store.kind is \"inline\": nothing is stored, so there is nothing to copy, verify or \
             retire. Each envelope embeds its KEK; `kms-proxy rewrap` moves envelopes to a service \
             with a store, and `kms-proxy rewrap --inline` from one"
                .to_owned(),
        )),
        store::Config::File(_) | store::Config::Etcd(_) => Ok(()),
    }
}

/// Opens a store, and creates it if it is missing.
pub(super) async fn open_or_create(config: &store::Config) -> Result<Arc<dyn Store>> {
    require_store(config)?;
    store::open_or_make(config).await.map_err(|error| Failure::refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_parsed() {
        for (text, place) in [
            ("config:a.toml", Place::Config(Some("a.toml".into()))),
            ("config:", Place::Config(None)),
            ("dir:/a:b", Place::Dir("/a:b".into())),
            ("backup:b", Place::Backup("b".into())),
            ("backup:-", Place::Stream),
            ("backup:./-", Place::Backup("./-".into())),
            ("archive:nas", Place::Archive("nas".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(place));
        }
        for bad in [
            "",
            "a.toml",
            "dir",
            "dir:",
            "backup:",
            "archive:",
            "Config:a",
            "etcd:http://localhost",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
