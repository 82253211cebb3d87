//! `[auth]` and `[[client]]` of the configuration: who the clients are and what each may do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::human_units;
use crate::id::ChainName;
use crate::loopback::is_loopback;

use super::aws::{self, Secrets as _};
use super::key_source::KeySource;
use super::keys;
use super::permission::Allow;
use super::san::San;
use super::token::TokenDigest;

/// The mode and the clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `auth.mode`.
    pub mode: Mode,
    /// Each `[[client]]`.
    pub clients: Vec<ClientConfig>,
    /// `aws_api.secret_key_file`.
    pub aws_secret_key_file: Option<PathBuf>,
}

/// `auth.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Anyone who reaches the service may do everything.
    #[default]
    None,
    /// Only configured clients are served.
    Required,
}

impl Mode {
    /// The word that users read and write.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Required => "required",
        }
    }
}

/// A `[[client]]`: exactly one kind of identity, and its permissions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Its name, in refusals and in the log.
    pub name: String,
    /// Names, one of which must be in its certificate.
    #[serde(default, deserialize_with = "one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub tls_san: Vec<San>,
    /// The SHA-256 of its token; more than one while it is replaced.
    #[serde(default, deserialize_with = "one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub token_sha256: Vec<TokenDigest>,
    /// The claims of its JWT, and the issuer's keys.
    #[serde(default)]
    pub jwt: Option<JwtConfig>,
    /// Its access key ids of AWS; more than one while it is replaced.
    #[serde(default, deserialize_with = "one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub aws_access_key_id: Vec<String>,
    /// A file with the secret of its one access key id; without it the secret is derived from
    /// `aws_api.secret_key_file`.
    #[serde(default)]
    pub aws_secret_access_key_file: Option<PathBuf>,
    /// Its permissions.
    pub allow: Vec<Allow>,
    /// Maximum number of its requests in flight; unlimited if not set.
    #[serde(default)]
    pub max_in_flight: Option<usize>,
    /// Maximum number of lookups per minute of KEKs and chains that are not in memory.
    #[serde(default = "default_lookups")]
    pub lookups_per_minute: u32,
}

/// Far more than a rotation or a start needs, and far less than the quota of a root.
const fn default_lookups() -> u32 {
    600
}

/// `[[client]] jwt`: the JWTs that identify a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// `iss`, exactly.
    pub issuer: String,
    /// One of `aud`, exactly.
    pub audience: String,
    /// `sub`, exactly one of these.
    #[serde(deserialize_with = "one_or_more")]
    pub subject: Vec<String>,
    /// A JWKS file with the issuer's keys, reloaded when it changes.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// A URL with the issuer's JWKS.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// For `jwks_url`: a PEM file of trusted authorities, which replace those of the system.
    #[serde(default)]
    pub jwks_ca: Option<PathBuf>,
    /// For `jwks_url`: a file with a bearer token, read before each fetch.
    #[serde(default)]
    pub jwks_token_file: Option<PathBuf>,
}

impl JwtConfig {
    /// The source of its issuer's keys.
    ///
    /// # Errors
    /// The key of the setting that is wrong, and why.
    pub(super) fn key_source(&self) -> Result<KeySource, (&'static str, &'static str)> {
        match (&self.jwks_file, &self.jwks_url) {
            (Some(file), None) if self.jwks_ca.is_none() && self.jwks_token_file.is_none() => {
                Ok(KeySource::File(file.clone()))
            }
            (Some(_), None) => Err(("jwks_file", "jwks_ca and jwks_token_file are of jwks_url")),
            (None, Some(url)) => {
                let url = Url::parse(url).ok().filter(is_safe).ok_or((
                    "jwks_url",
                    "it is an https URL; plain http is for loopback addresses alone",
                ))?;
                let (ca, token_file) = (self.jwks_ca.clone(), self.jwks_token_file.clone());
                Ok(KeySource::Url { url, ca, token_file })
            }
            _ => Err(("jwks_file", "give either jwks_file or jwks_url")),
        }
    }
}

/// Anyone who controls the response of this address can act as every client of the issuer.
fn is_safe(url: &Url) -> bool {
    let loopback = url.host_str().is_some_and(is_loopback);
    let plain = (url.username(), url.password()) == ("", None);
    plain && url.has_host() && (url.scheme() == "https" || url.scheme() == "http" && loopback)
}

/// The key of a setting, and what is wrong with it.
pub type Wrong = (String, String);

impl Config {
    /// Checks the settings together.
    ///
    /// # Errors
    /// [`Wrong`].
    pub fn check(&self) -> Result<(), Wrong> {
        let wrong = |key: &str, detail: &str| Err((key.to_owned(), detail.to_owned()));
        match (self.mode, self.clients.is_empty()) {
            (Mode::None, false) => wrong(
                "auth.mode",
                "there are clients, and in mode none everybody may do everything; set required",
            ),
            (Mode::Required, true) => {
                wrong("client", "auth.mode = \"required\" serves clients alone; there must be one")
            }
            _ => self.check_clients(),
        }
    }

    /// Reads the JWKS files. The service starts without them, and serves their clients as soon as
    /// they can be read.
    ///
    /// # Errors
    /// [`Wrong`] for the first that can't be read or has no key.
    pub fn check_files(&self) -> Result<(), Wrong> {
        for (index, client) in self.clients.iter().enumerate() {
            if let Some(file) = client.jwt.as_ref().and_then(|jwt| jwt.jwks_file.as_ref()) {
                keys::in_file(file).map_err(|why| {
                    let key = format!("client.{index}.jwt.jwks_file");
                    (key, format!("{}: {why}", file.display()))
                })?;
            }
            let source = client.aws_secret(self.aws_secret_key_file.as_deref());
            if let (Some(id), Some(source)) = (client.aws_access_key_id.first(), source) {
                let wrong = |why| (format!("client.{index}.aws_access_key_id"), why);
                source.read(id).map_err(wrong)?;
            }
        }
        Ok(())
    }

    fn check_clients(&self) -> Result<(), Wrong> {
        let (mut names, mut identities) = (BTreeSet::new(), BTreeSet::new());
        let mut issuers = BTreeMap::<&str, KeySource>::new();
        for (index, client) in self.clients.iter().enumerate() {
            let at =
                |(key, detail): (&str, &str)| (format!("client.{index}.{key}"), detail.to_owned());
            client.check().map_err(at)?;
            let has_secret = client.aws_secret(self.aws_secret_key_file.as_deref()).is_some();
            if !client.aws_access_key_id.is_empty() && !has_secret {
                let detail = "its secret must be in aws_secret_access_key_file, or be derived from \
                              aws_api.secret_key_file";
                return Err(at(("aws_access_key_id", detail)));
            }
            if !names.insert(&client.name) {
                return Err(at(("name", "another client has this name")));
            }
            for (key, identity) in client.identities() {
                if !identities.insert(identity) {
                    return Err(at((key, "another client is known by the same")));
                }
            }
            if let Some(jwt) = &client.jwt {
                let source = jwt
                    .key_source()
                    .map_err(|(key, detail)| at((&format!("jwt.{key}"), detail)))?;
                let first = issuers.entry(&jwt.issuer).or_insert_with(|| source.clone());
                if *first != source {
                    let detail = "another client's keys of this issuer are elsewhere";
                    return Err(at(("jwt.issuer", detail)));
                }
            }
        }
        Ok(())
    }
}

impl ClientConfig {
    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        // Names appear in logs and errors: the rules for a chain's name suit a client's.
        if ChainName::new(&self.name).is_err() {
            return Err((
                "name",
                "it is 1 to 63 of a-z 0-9 . _ - and starts with a letter or digit",
            ));
        }
        let kinds = [
            !self.tls_san.is_empty(),
            !self.token_sha256.is_empty(),
            self.jwt.is_some(),
            !self.aws_access_key_id.is_empty(),
        ];
        if kinds.into_iter().filter(|&given| given).count() != 1 {
            let detail = "it has exactly one of tls_san, token_sha256, jwt and aws_access_key_id";
            return Err(("name", detail));
        }
        let fits = |id: &String| {
            let is_word = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            is_word && (4..=128).contains(&id.len())
        };
        if !self.aws_access_key_id.iter().all(fits) {
            return Err(("aws_access_key_id", "must be 4 to 128 letters, digits and _"));
        }
        if self.aws_secret_access_key_file.is_some() && self.aws_access_key_id.len() != 1 {
            let detail = "it holds the secret of one aws_access_key_id";
            return Err(("aws_secret_access_key_file", detail));
        }
        if let Some(jwt) = &self.jwt {
            let texts = [
                ("jwt.issuer", jwt.issuer.as_str()),
                ("jwt.audience", jwt.audience.as_str()),
                ("jwt.subject", jwt.subject.first().map_or("", String::as_str)),
            ];
            if let Some((key, _)) = texts.into_iter().find(|(_, text)| text.is_empty()) {
                return Err((key, "it is not empty"));
            }
        }
        if self.allow.is_empty()
            || self.allow.iter().any(|allow| allow.chains.is_empty() || allow.operations.is_empty())
        {
            return Err((
                "allow",
                "each client may do something, and each line names chains and operations",
            ));
        }
        if self.max_in_flight == Some(0) {
            return Err(("max_in_flight", "it is 1 or more"));
        }
        if self.lookups_per_minute == 0 {
            return Err(("lookups_per_minute", "it is 1 or more"));
        }
        Ok(())
    }

    /// Where the secrets of its access key ids come from, if it is set.
    pub(super) fn aws_secret(&self, secret_key_file: Option<&Path>) -> Option<aws::Source> {
        let own = self.aws_secret_access_key_file.clone().map(aws::Source::File);
        own.or_else(|| secret_key_file.map(|path| aws::Source::Derived(path.to_owned())))
    }

    /// All its identities, each with the key of its setting.
    fn identities(&self) -> impl Iterator<Item = (&'static str, [String; 3])> {
        let nothing = String::new;
        let sans = self.tls_san.iter();
        let sans =
            sans.map(move |san| ("tls_san", [san.as_str().to_owned(), nothing(), nothing()]));
        let tokens = self.token_sha256.iter();
        let tokens =
            tokens.map(move |digest| ("token_sha256", [digest.to_string(), nothing(), nothing()]));
        let jwts = self.jwt.iter().flat_map(|jwt| {
            jwt.subject.iter().map(|subject| {
                ("jwt.subject", [subject.clone(), jwt.issuer.clone(), jwt.audience.clone()])
            })
        });
        let access_keys = self.aws_access_key_id.iter();
        let access_keys =
            access_keys.map(move |id| ("aws_access_key_id", [id.clone(), nothing(), nothing()]));
        sans.chain(tokens).chain(jwts).chain(access_keys)
    }
}

/// A string or a list of strings.
fn one_or_more<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<String, Error: Display>,
{
    let texts = human_units::list::deserialize(deserializer)?;
    texts.into_iter().map(|text| T::try_from(text).map_err(D::Error::custom)).collect()
}
