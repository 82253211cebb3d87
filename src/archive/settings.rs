//! `[[archive]]` and `[archive_policy]`. They are always compiled, so that a configuration is read
//! the same way in every build and a kind that is left out has a clear error.
//!
//! Plain data: each kind uses its own settings.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human_units;

/// One `[[archive]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Config {
    /// A directory on another disk or an NFS mount.
    Dir(Dir),
    /// A bucket of S3, or of a server with the same API.
    S3(S3),
    /// A bucket of Google Cloud Storage.
    Gcs(Gcs),
    /// A container of Azure Blob Storage.
    Azure(Azure),
}

/// One `[[archive]]` with `kind = "dir"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dir {
    /// The archive's name in metrics, logs and commands.
    pub name: String,
    /// The directory. It contains a file `kms-proxy-archive`, so that an unmounted disk is not taken
    /// for an empty archive.
    pub path: PathBuf,
    /// Whether the directory and that file are created if they are missing: only where the disk
    /// cannot be missing.
    #[serde(default)]
    pub create: bool,
    /// How long one call may take: 10 s by default.
    #[serde(default = "ten_seconds", with = "human_units::duration")]
    pub timeout: Duration,
}

/// One `[[archive]]` with `kind = "s3"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// The archive's name in metrics, logs and commands.
    pub name: String,
    /// `s3://BUCKET`, or `s3://BUCKET/PREFIX`.
    pub url: String,
    /// The region; by default the one of the environment.
    pub region: Option<String>,
    /// The URL of the server, if it is not the region's: `https://`, or `http://` for a loopback
    /// address.
    pub endpoint: Option<String>,
    /// A PEM file with the certificates to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// How long one call may take with all its retries: 10 s by default.
    #[serde(default = "ten_seconds", with = "human_units::duration")]
    pub timeout: Duration,
}

/// One `[[archive]]` with `kind = "gcs"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gcs {
    /// The archive's name in metrics, logs and commands.
    pub name: String,
    /// `gs://BUCKET`, or `gs://BUCKET/PREFIX`.
    pub url: String,
    /// The URL of the server, if it is not Google's: `https://`, or `http://` for a loopback
    /// address.
    pub endpoint: Option<String>,
    /// A PEM file with the certificates to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// How long one call may take with all its retries: 10 s by default.
    #[serde(default = "ten_seconds", with = "human_units::duration")]
    pub timeout: Duration,
}

/// One `[[archive]]` with `kind = "azure"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Azure {
    /// The archive's name in metrics, logs and commands.
    pub name: String,
    /// `az://CONTAINER`, or `az://CONTAINER/PREFIX`.
    pub url: String,
    /// The storage account; by default the one of the environment.
    pub account: Option<String>,
    /// The URL of the server, if it is not Azure's: `https://`, or `http://` for a loopback
    /// address.
    pub endpoint: Option<String>,
    /// A PEM file with the certificates to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// How long one call may take with all its retries: 10 s by default.
    #[serde(default = "ten_seconds", with = "human_units::duration")]
    pub timeout: Duration,
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

impl Config {
    /// The archive's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Dir(Dir { name, .. })
            | Self::S3(S3 { name, .. })
            | Self::Gcs(Gcs { name, .. })
            | Self::Azure(Azure { name, .. }) => name,
        }
    }

    /// The kind as the configuration names it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Dir(_) => "dir",
            Self::S3(_) => "s3",
            Self::Gcs(_) => "gcs",
            Self::Azure(_) => "azure",
        }
    }
}

/// `[archive_policy]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// How many archives must hold a KEK before it encrypts.
    pub require: Require,
    /// What happens while too few of them can be written.
    pub on_failure: OnFailure,
}

/// How many archives must hold a KEK before it encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Require {
    /// All of them.
    #[default]
    All,
    /// One of them.
    Any,
}

/// What happens while too few archives can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The new KEK waits, and the old one continues up to its limit.
    #[default]
    Wait,
    /// The new KEK encrypts anyway, with a warning.
    Continue,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn each_kind_has_its_settings_and_defaults() {
        let Ok(Config::Dir(dir)) = parse("kind = 'dir'\nname = 'nas'\npath = '/mnt/nas'") else {
            panic!("it is a directory");
        };
        assert_eq!((&*dir.name, dir.timeout), ("nas", Duration::from_secs(10)));
        for (kind, url) in [("s3", "s3://b/p"), ("gcs", "gs://b/p"), ("azure", "az://b/p")] {
            let config = parse(&format!("kind = '{kind}'\nname = 'x'\nurl = '{url}'")).unwrap();
            assert_eq!((config.kind(), config.name()), (kind, "x"));
            let error = parse(&format!("kind = '{kind}'\nname = 'x'\npath = '/x'")).unwrap_err();
            assert!(error.contains("path"), "{error}");
        }
        assert!(parse("kind = 'tape'\nname = 'x'").unwrap_err().contains("`dir`, `s3`"));
    }

    #[test]
    fn by_default_all_archives_are_required_and_a_failure_waits() {
        let policy = |text| toml::from_str::<Policy>(text).unwrap();
        assert_eq!(policy(""), Policy { require: Require::All, on_failure: OnFailure::Wait });
        let other = "require = 'any'\non_failure = 'continue'";
        let expected = Policy { require: Require::Any, on_failure: OnFailure::Continue };
        assert_eq!(policy(other), expected);
        assert!(toml::from_str::<Policy>("require = 'some'").is_err());
    }
}
