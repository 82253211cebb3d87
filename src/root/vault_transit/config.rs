//! The checks of one `[[root]]` with `kind = "vault-transit"`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use crate::loopback::is_loopback;
use crate::proxy::Proxies;
use crate::root::authorities;
use crate::secret::SecretBytes;

pub use crate::root::settings::VaultTransit as Config;

use super::login::{Login, MAX_LEN, Secret};

/// A wrap or unwrap takes a few calls at worst, and the service waits 15 seconds.
const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(10);

impl Config {
    /// Checks all settings, without a call.
    pub(in crate::root) fn check(&self) -> Result<(), String> {
        self.url()?;
        self.ca.as_deref().map(authorities::read).transpose()?;
        Proxies::from_env()?;
        self.login()?.check()?;
        check_path("mount", &self.mount)?;
        check_path("auth_mount", &self.auth_mount)?;
        if let Some(namespace) = &self.namespace {
            check_path("namespace", namespace)?;
        }
        if self.key.contains('/') {
            return Err("key must be a name without a /".to_owned());
        }
        check_path("key", &self.key)?;
        if self.role_id.as_ref().is_some_and(|role_id| role_id.len() > MAX_LEN) {
            return Err("role_id must have at most 4096 bytes".to_owned());
        }
        if !TIMEOUTS.contains(&self.timeout) {
            return Err("timeout must be between 10ms and 10s".to_owned());
        }
        Ok(())
    }

    /// The address: `http` or `https`, without user, password, query and fragment. Errors do not
    /// repeat it, since it may contain a password.
    pub(super) fn url(&self) -> Result<Url, String> {
        let url = Url::parse(&self.address).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        let url = url.ok_or_else(|| {
            "address must be a URL such as https://vault.example:8200, without user, password or \
                query"
                .to_owned()
        })?;
        if url.path().trim_end_matches('/').ends_with("/v1") {
            return Err("address must not end in /v1, which is added to it".to_owned());
        }
        Ok(url)
    }

    /// Whether tokens and KEKs cross a network without TLS.
    pub(super) fn is_in_the_open(&self) -> bool {
        self.url()
            .is_ok_and(|url| url.scheme() == "http" && !url.host_str().is_some_and(is_loopback))
    }

    /// The configured login.
    pub(super) fn login(&self) -> Result<Login, String> {
        let token = source("token", self.token_file.as_ref(), self.token.as_ref())?;
        let secret_id = source("secret_id", self.secret_id_file.as_ref(), self.secret_id.as_ref())?;
        let role_id = self.role_id.as_ref().filter(|role_id| !role_id.trim().is_empty());
        match (token, role_id, secret_id) {
            (Some(token), None, None) => Ok(Login::Token(token)),
            (None, Some(role_id), Some(secret_id)) => Ok(Login::AppRole {
                mount: trimmed(&self.auth_mount),
                role_id: role_id.clone(),
                secret_id,
            }),
            (None, Some(_), None) => {
                Err("role_id needs a secret id; name a file in secret_id_file".to_owned())
            }
            (None, None, Some(_)) => Err("a secret id needs role_id".to_owned()),
            (None, None, None) => Err("there is no login; name a file in token_file, or give \
                                       role_id and secret_id_file"
                .to_owned()),
            (Some(_), _, _) => {
                Err("there are two logins, a token and AppRole; give one".to_owned())
            }
        }
    }
}

/// The source of a secret, if it is set.
fn source(
    name: &str,
    file: Option<&PathBuf>,
    value: Option<&Arc<SecretBytes>>,
) -> Result<Option<Secret>, String> {
    match (file, value) {
        (Some(_), Some(_)) => {
            Err(format!("{name} is set twice, by {name}_file and by the environment; set it once"))
        }
        (Some(path), None) => Ok(Some(Secret::File(path.clone()))),
        (None, Some(value)) => Ok(Some(Secret::Given(Arc::clone(value)))),
        (None, None) => Ok(None),
    }
}

/// A path without slashes at its ends, so that `transit/` is accepted as well.
pub(super) fn trimmed(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

/// Names are inserted into URLs unescaped, so characters with a meaning there are not allowed.
fn check_path(name: &str, path: &str) -> Result<(), String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let is_name =
        |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(fits);
    let path = trimmed(path);
    if path.len() <= 200 && path.split('/').all(is_name) {
        return Ok(());
    }
    Err(format!("{name} must consist of a-z A-Z 0-9 . _ -, in parts separated by /"))
}
