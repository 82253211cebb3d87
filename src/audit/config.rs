//! The settings of `[audit]`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human_units;

use super::rules::Rule;

/// `[audit]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where lines go; without it there is no audit log.
    pub file: Option<Target>,
    /// How lines name the AAD of a call.
    pub aad: AadForm,
    /// What happens when a line can't be written.
    pub on_failure: OnFailure,
    /// When lines are synchronised to the disk.
    pub sync: Sync,
    /// The size in bytes at which a file is rotated; without it, others rotate it.
    #[serde(
        deserialize_with = "human_units::size::deserialize_some",
        skip_serializing_if = "Option::is_none"
    )]
    pub rotate_size: Option<usize>,
    /// How many rotated files are kept.
    pub keep: usize,
    /// Which calls are recorded in which detail; the first match decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<Rule>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            file: None,
            aad: AadForm::default(),
            on_failure: OnFailure::default(),
            sync: Sync::default(),
            rotate_size: None,
            keep: 30,
            rule: Vec::new(),
        }
    }
}

/// Files that are kept at most: a larger number is a mistake in the unit.
const MAX_KEEP: usize = 100_000;
/// The smallest size of a rotated file: with less, names of files would collide.
const MIN_ROTATE_SIZE: usize = 64 << 10;

impl Config {
    /// Checks the settings. An error is the key within `[audit]`, and what is wrong with it.
    ///
    /// # Errors
    /// When a setting is out of range, or does not fit another one.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let is_file = matches!(self.file, None | Some(Target::File(_)));
        if !is_file && self.rotate_size.is_some() {
            return Err(("rotate_size", "only a file is rotated"));
        }
        if !is_file && self.sync != Sync::None {
            return Err(("sync", "only a file is synchronised"));
        }
        if self.rotate_size.is_some_and(|size| size < MIN_ROTATE_SIZE) {
            return Err(("rotate_size", "must be at least 64KiB"));
        }
        if !(1..=MAX_KEEP).contains(&self.keep) {
            return Err(("keep", "must be between 1 and 100000"));
        }
        Ok(())
    }
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// The end of a file.
    File(PathBuf),
    /// The standard output.
    Stdout,
    /// A unix socket (a stream), on which a collector listens.
    Unix(PathBuf),
}

impl TryFrom<String> for Target {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match (text.as_str(), text.strip_prefix("unix:")) {
            ("stdout", _) => Ok(Self::Stdout),
            ("", _) | (_, Some("")) => Err("expected a path, stdout, or unix:PATH"),
            (_, Some(path)) => Ok(Self::Unix(path.into())),
            (path, None) => Ok(Self::File(path.into())),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Stdout => f.write_str("stdout"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How lines name the AAD of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AadForm {
    /// By an HMAC under a key of the deployment.
    #[default]
    Hmac,
    /// By its bytes.
    Plain,
    /// Not at all.
    None,
}

/// What happens when a line can't be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The call fails with `audit_unavailable`.
    #[default]
    Refuse,
    /// The call goes through, and lost lines are counted.
    Continue,
}

/// When lines are synchronised to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Sync {
    /// When the operating system does it.
    #[default]
    None,
    /// At this interval, after the responses.
    Every(Duration),
    /// Before each response; concurrent calls share one `fsync`.
    Each,
}

/// The shortest and the longest interval of `sync`.
const SYNC: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(3600);

impl TryFrom<String> for Sync {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match &*text {
            "none" => Ok(Self::None),
            "each" => Ok(Self::Each),
            text => humantime::parse_duration(text)
                .ok()
                .filter(|every| SYNC.contains(every))
                .map(Self::Every)
                .ok_or("expected none, each, or a duration of 1ms to 1h"),
        }
    }
}

impl From<Sync> for String {
    fn from(sync: Sync) -> Self {
        match sync {
            Sync::None => "none".to_owned(),
            Sync::Each => "each".to_owned(),
            Sync::Every(every) => human_units::duration::format(every),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn settings_are_written_as_they_are_read() {
        for text in [
            r#"{"file":"/var/log/a.jsonl","sync":"100ms","rotate_size":1048576,"keep":3}"#,
            r#"{"file":"stdout","aad":"plain","on_failure":"continue","sync":"none"}"#,
            r#"{"file":"unix:/run/collector.sock","aad":"none","sync":"each"}"#,
            r#"{"rule":[{"operations":["encrypt"],"clients":["b-*"],"level":"none"}]}"#,
        ] {
            let config = read(text).unwrap();
            let again = read(&serde_json::to_string(&config).unwrap()).unwrap();
            assert_eq!(again, config, "{text}");
        }
        let config = read(r#"{"rotate_size":"1GiB"}"#).unwrap();
        assert_eq!((config.rotate_size, config.keep), (Some(1 << 30), 30));
        assert_eq!((config.aad, config.on_failure), (AadForm::Hmac, OnFailure::Refuse));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for text in [
            r#"{"file":""}"#,
            r#"{"file":"unix:"}"#,
            r#"{"sync":"2h"}"#,
            r#"{"sync":"0s"}"#,
            r#"{"aad":"sha256"}"#,
            r#"{"rule":[{"operations":["sign"],"level":"full"}]}"#,
            r#"{"rule":[{"operations":["*"]}]}"#,
            r#"{"rule":[{"chains":["Orders"],"level":"full"}]}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        for (text, key) in [
            (r#"{"file":"stdout","rotate_size":"1GiB"}"#, "rotate_size"),
            (r#"{"file":"unix:/a","sync":"each"}"#, "sync"),
            (r#"{"rotate_size":1}"#, "rotate_size"),
            (r#"{"keep":0}"#, "keep"),
        ] {
            assert_eq!(read(text).unwrap().check().unwrap_err().0, key, "{text}");
        }
    }
}
