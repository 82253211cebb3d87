//! The settings of the plugin, and their checks.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::id::ChainName;

/// `[kubernetes]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The socket that kube-apiserver connects to.
    #[serde(deserialize_with = "parsed")]
    pub socket: Address,
    /// The mode of the socket's file.
    #[serde(default, deserialize_with = "parsed")]
    pub socket_mode: SocketMode,
    /// The owner of the socket's file, if it is not this process' user.
    #[serde(default, deserialize_with = "maybe_parsed")]
    pub owner: Option<Owner>,
    /// The users whose processes may connect; by default all that the file's mode allows.
    pub allowed_uids: Option<Vec<u32>>,
    /// The chain.
    #[serde(default = "default_chain")]
    pub chain: ChainName,
    /// The response to kube-apiserver while no root answers.
    #[serde(default)]
    pub on_root_outage: OnRootOutage,
}

/// The response to kube-apiserver while no root answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRootOutage {
    /// A warning; it continues to write.
    #[default]
    Coast,
    /// An error, so that it stops writing within about four minutes.
    Enforce,
}

impl OnRootOutage {
    /// The value in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Coast => "coast",
            Self::Enforce => "enforce",
        }
    }
}

/// The address of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A file.
    Path(PathBuf),
    /// A name in Linux' abstract namespace, without a file.
    Abstract(String),
}

/// A unix socket's path has at most 108 bytes on Linux; some are reserved for the private directory
/// in which it is created.
const MAX_PATH: usize = 90;

impl Address {
    /// The address in the form that tokio expects.
    pub(super) fn to_path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Abstract(name) => PathBuf::from(format!("\0{name}")),
        }
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = text.strip_prefix("unix://").ok_or(
            "must be like unix:///run/kms-proxy/kms.sock, or unix:///@name for an abstract socket",
        )?;
        if path.len() > MAX_PATH {
            return Err("the path must have at most 90 bytes");
        }
        if path.contains('\0') {
            return Err("the path must not contain a null byte");
        }
        if let Some(name) = path.strip_prefix("/@") {
            return if name.is_empty() {
                Err("an abstract socket must have a name")
            } else {
                Ok(Self::Abstract(name.to_owned()))
            };
        }
        if !path.starts_with('/') || Path::new(path).file_name().is_none() || path.ends_with('/') {
            return Err("the path must start with a slash, and name a file");
        }
        Ok(Self::Path(path.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix://{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:///@{name}"),
        }
    }
}

/// The mode of a socket's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(pub(super) u32);

impl Default for SocketMode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl FromStr for SocketMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|_| text.len() <= 4);
        let mode = mode.ok_or("must be octal digits, such as 0600")?;
        if mode & 0o007 != 0 {
            return Err("anyone who may connect can decrypt: must not allow access by all users");
        }
        if mode & !0o660 != 0 || mode & 0o600 != 0o600 {
            return Err("must be 0600, or 0660 for a group");
        }
        Ok(Self(mode))
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// The owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user's id.
    pub uid: u32,
    /// The group's id, if it is not that of this process.
    pub gid: Option<u32>,
}

impl FromStr for Owner {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (text, None),
        };
        // The highest id means "no change" to the kernel.
        let id = |text: &str| text.parse().ok().filter(|&id| id != u32::MAX);
        let owner = id(uid).map(|uid| Self { uid, gid: gid.and_then(id) });
        owner
            .filter(|owner| owner.gid.is_some() == gid.is_some())
            .ok_or("must be a user's id, or a user's and a group's: 65532 or 65532:65532")
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gid {
            Some(gid) => write!(f, "{}:{gid}", self.uid),
            None => write!(f, "{}", self.uid),
        }
    }
}

/// Implements `Serialize` by `Display`.
macro_rules! serialize_as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

serialize_as_text!(Address, SocketMode, Owner);

impl Config {
    /// Checks that the settings are consistent.
    ///
    /// # Errors
    /// The setting that is wrong, and the reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let is_abstract = matches!(self.socket, Address::Abstract(_));
        match &self.allowed_uids {
            None if is_abstract => Err((
                "allowed_uids",
                "an abstract socket has no file mode that restricts access: list the users that \
                 may connect, such as [0] or [65532]",
            )),
            Some(uids) if uids.is_empty() => Err(("allowed_uids", "nobody could connect")),
            _ if is_abstract
                && (self.owner.is_some() || self.socket_mode != SocketMode::default()) =>
            {
                Err(("socket", "an abstract socket has neither mode nor owner"))
            }
            _ => Ok(()),
        }
    }
}

fn default_chain() -> ChainName {
    #[expect(clippy::expect_used, reason = "a constant that is covered by a test")]
    ChainName::new("kubernetes").expect("a good name")
}

/// Deserialises a value from its text form.
fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = &'static str>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn maybe_parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = &'static str>,
{
    parsed(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        config.check().map_err(|(key, detail)| format!("{key}: {detail}"))?;
        Ok(config)
    }

    #[test]
    fn only_the_socket_is_required() {
        let config = read("socket = 'unix:///run/kms-proxy/kms.sock'").unwrap();
        assert_eq!(config.socket, Address::Path("/run/kms-proxy/kms.sock".into()));
        assert_eq!(config.socket_mode.to_string(), "0600");
        assert_eq!((config.owner, config.allowed_uids), (None, None));
        assert_eq!(config.chain.as_str(), "kubernetes");
        assert_eq!(config.on_root_outage, OnRootOutage::Coast);
        let all = "socket = 'unix:///k.sock'\nsocket_mode = '0660'\nowner = '65532:0'\n\
                   allowed_uids = [0, 65532]\nchain = 'k8s'\non_root_outage = 'enforce'";
        let config = read(all).unwrap();
        assert_eq!(config.socket_mode, SocketMode(0o660));
        assert_eq!(config.owner, Some(Owner { uid: 65532, gid: Some(0) }));
        assert_eq!(config.allowed_uids, Some(vec![0, 65532]));
    }

    #[test]
    fn inconsistent_settings_are_refused() {
        let long = format!("socket = 'unix:///{}'", "a".repeat(90));
        for (bad, said) in [
            ("", "missing field `socket`"),
            ("socket = '/run/kms.sock'", "must be like unix://"),
            ("socket = 'unix://run/kms.sock'", "start with a slash"),
            ("socket = 'unix:///run/'", "name a file"),
            ("socket = 'unix:///'", "name a file"),
            ("socket = 'unix:///run/..'", "name a file"),
            ("socket = 'unix:///@'", "must have a name"),
            (&long, "90 bytes"),
            ("socket = 'unix:///@kms'", "allowed_uids: an abstract socket"),
            ("socket = 'unix:///@kms'\nallowed_uids = []", "nobody could connect"),
            ("socket = 'unix:///@kms'\nallowed_uids = [0]\nowner = '1'", "neither mode nor owner"),
            ("socket = 'unix:///k'\nsocket_mode = '0666'", "access by all users"),
            ("socket = 'unix:///k'\nsocket_mode = '0700'", "0600"),
            ("socket = 'unix:///k'\nsocket_mode = '0060'", "0600"),
            ("socket = 'unix:///k'\nsocket_mode = '999'", "octal"),
            ("socket = 'unix:///k'\nowner = 'kube'", "a user's id"),
            ("socket = 'unix:///k'\nowner = '1:'", "a user's id"),
            ("socket = 'unix:///k'\nowner = '4294967295'", "a user's id"),
            ("socket = 'unix:///k'\non_root_outage = 'stop'", "`enforce`"),
            ("socket = 'unix:///k'\nmode = '0600'", "unknown field `mode`"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }

    #[test]
    fn addresses_survive_a_round_trip() {
        for text in ["unix:///run/kms-proxy/kms.sock", "unix:///@kms-proxy"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("unix:///@a".parse::<Address>().unwrap().to_path(), PathBuf::from("\0a"));
    }
}
