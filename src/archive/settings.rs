//! `[[archive]]` and `[archive_policy]`. They are always compiled, so that a configuration is read
//! the same way in every build and a kind that is left out has a clear error.
//!
//! Plain data: each kind uses its own settings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human_units;
use crate::id::ChainName as ArchiveName;
use crate::loopback::is_loopback_authority;

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
    /// The directory. It contains a file `kms-proxy-archive`, so that an unmounted disk is not
    /// taken for an empty archive.
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

/// The file that says that a directory is an archive.
pub(super) const MARKER: &str = "kms-proxy-archive";

impl Dir {
    /// The file that says that the directory is an archive.
    #[must_use]
    pub fn marker(&self) -> PathBuf {
        self.path.join(MARKER)
    }
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

    /// How long one call may take.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        match self {
            Self::Dir(Dir { timeout, .. })
            | Self::S3(S3 { timeout, .. })
            | Self::Gcs(Gcs { timeout, .. })
            | Self::Azure(Azure { timeout, .. }) => *timeout,
        }
    }

    /// The parts of the URL; `None` for a directory, and for a URL that [`check`](Self::check)
    /// refuses.
    pub(super) fn url(&self) -> Option<Url<'_>> {
        let (text, scheme) = match self {
            Self::Dir(_) => return None,
            Self::S3(s3) => (&s3.url, "s3://"),
            Self::Gcs(gcs) => (&gcs.url, "gs://"),
            Self::Azure(azure) => (&azure.url, "az://"),
        };
        let rest = text.strip_prefix(scheme)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.bytes().all(is_plain);
        let is_good = is_name(bucket) && (prefix.is_empty() || prefix.split('/').all(is_name));
        is_good.then_some(Url { text, bucket, prefix })
    }

    /// The URL of the server, if one is set.
    pub(super) fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Dir(_) => None,
            Self::S3(S3 { endpoint, .. })
            | Self::Gcs(Gcs { endpoint, .. })
            | Self::Azure(Azure { endpoint, .. }) => endpoint.as_deref(),
        }
    }

    /// The file of authorities, if one is set.
    #[must_use]
    pub fn ca(&self) -> Option<&Path> {
        match self {
            Self::Dir(_) => None,
            Self::S3(S3 { ca, .. }) | Self::Gcs(Gcs { ca, .. }) | Self::Azure(Azure { ca, .. }) => {
                ca.as_deref()
            }
        }
    }

    /// Checks the settings without a call, and whether their kind is part of this build.
    ///
    /// # Errors
    /// The key within `[[archive]]`, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, detail: &str| Err((key, detail.to_owned()));
        if ArchiveName::new(self.name()).is_err() {
            return wrong(
                "name",
                "an archive's name is 1 to 63 of a-z 0-9 . _ - and starts with a letter or digit",
            );
        }
        if !(SHORTEST..=LONGEST).contains(&self.timeout()) {
            return wrong("timeout", "must be between 100ms and 1m");
        }
        match self {
            Self::Dir(_) => Ok(()),
            #[cfg(feature = "archive-cloud")]
            Self::S3(_) | Self::Gcs(_) | Self::Azure(_) => self.check_cloud(),
            #[allow(unreachable_patterns, reason = "reachable where the feature is off")]
            _ => wrong("kind", LEFT_OUT),
        }
    }

    fn check_cloud(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, detail: &str| Err((key, detail.to_owned()));
        if self.url().is_none() {
            return wrong(
                "url",
                match self {
                    Self::Gcs(_) => "must be gs://BUCKET or gs://BUCKET/PREFIX",
                    Self::Azure(_) => "must be az://CONTAINER or az://CONTAINER/PREFIX",
                    Self::Dir(_) | Self::S3(_) => "must be s3://BUCKET or s3://BUCKET/PREFIX",
                },
            );
        }
        match self.endpoint().map(is_endpoint) {
            Some(false) => wrong("endpoint", ENDPOINT),
            _ => Ok(()),
        }
    }
}

/// The parts of `SCHEME://BUCKET/PREFIX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Url<'a> {
    pub(super) text: &'a str,
    pub(super) bucket: &'a str,
    /// Without a `/` at either end.
    pub(super) prefix: &'a str,
}

/// A shorter time would be a mistake in the unit.
const SHORTEST: Duration = Duration::from_millis(100);

/// A longer time would block a rotation.
const LONGEST: Duration = Duration::from_secs(60);

/// The error for a kind that is not part of this build.
pub(super) const LEFT_OUT: &str = "archives of kind s3, gcs and azure are not part of this build: \
                                   they need the Cargo feature archive-cloud";

/// What the URL of a server must be.
pub(super) const ENDPOINT: &str =
    "must be a URL such as https://s3.example.com:9000; http:// is only for a loopback address";

/// Whether this is the URL of a server: without user, path or query.
pub(super) fn is_endpoint(url: &str) -> bool {
    let (authority, is_tls) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (rest, true),
        (None, Some(rest)) => (rest, false),
        (None, None) => return false,
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]/_".contains(&byte);
    let is_good = !authority.is_empty() && authority.bytes().all(is_plain);
    let host = authority.split('/').next().unwrap_or_default();
    is_good && (is_tls || is_loopback_authority(host))
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
    fn settings_are_checked_without_a_call() {
        let checked = |text: &str| {
            let config = parse(text).unwrap();
            config.check().map_err(|(key, _)| key)
        };
        let dir = "kind = 'dir'\npath = '/mnt/nas'\n";
        assert_eq!(checked(&format!("{dir}name = 'nas'")), Ok(()));
        assert_eq!(checked(&format!("{dir}name = 'The NAS'")), Err("name"));
        assert_eq!(checked(&format!("{dir}name = 'nas'\ntimeout = '10m'")), Err("timeout"));
        for (url, prefix) in
            [("s3://b", ""), ("s3://b/", ""), ("s3://b/a/c", "a/c"), ("s3://b.c/a_1/", "a_1")]
        {
            let config = parse(&format!("kind = 's3'\nname = 'x'\nurl = '{url}'")).unwrap();
            assert_eq!((config.check(), config.url().unwrap().prefix), (Ok(()), prefix), "{url}");
        }
        for bad in [
            "b",
            "gs://b",
            "s3://",
            "s3:///a",
            "s3://b//a",
            "s3://b/../a",
            "s3://u:p@b",
            "s3://b?x",
        ] {
            assert_eq!(checked(&format!("kind = 's3'\nname = 'x'\nurl = '{bad}'")), Err("url"));
        }
        for (endpoint, expected) in [
            ("https://s3.example.com", Ok(())),
            ("https://s3.example.com:9000/", Ok(())),
            ("http://127.0.0.1:9000", Ok(())),
            ("http://localhost:9000", Ok(())),
            ("http://s3.example.com", Err("endpoint")),
            ("https://user:password@s3.example.com", Err("endpoint")),
            ("s3.example.com", Err("endpoint")),
            ("https://", Err("endpoint")),
        ] {
            let s3 = format!("kind = 's3'\nname = 'x'\nurl = 's3://b'\nendpoint = '{endpoint}'");
            assert_eq!(checked(&s3), expected, "{endpoint}");
        }
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
