//! Turns a configuration into members, and checks it before the first call or with it.

use std::time::Duration;

use tokio::time::Instant;

use super::credentials::{Credentials, Files, FilesDigest};
use super::failure::CallError;
use super::members::Members;
use super::{Config, Store, Tls};

/// How long [`Store::open`] waits for a cluster that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);

impl Config {
    /// Checks for what would make [`Store::open`] fail, without a call.
    ///
    /// # Errors
    /// The key within `[store]`, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, detail: &str| Err((key, detail.to_owned()));
        let (https, http): (Vec<_>, Vec<_>) =
            self.endpoints.iter().partition(|url| url.starts_with("https://"));
        if self.endpoints.is_empty() {
            return wrong("endpoints", "there must be one");
        }
        if !http.iter().all(|url| url.starts_with("http://")) {
            return wrong("endpoints", "each must be like http://host:2379 or https://host:2379");
        }
        for url in &self.endpoints {
            let parsed = url.parse::<http::Uri>();
            // The part before an @ could be a password, and would be in every message.
            let plain = |url: http::Uri| {
                url.host().is_some()
                    && url.path() == "/"
                    && url.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            };
            if !parsed.is_ok_and(plain) {
                return wrong("endpoints", "each must be the URL of a host and a port");
            }
        }
        if !https.is_empty() && !http.is_empty() {
            return wrong("endpoints", "https and http must not be mixed");
        }
        if self.prefix.trim_end_matches('/').is_empty() || self.prefix.contains('\0') {
            return wrong("prefix", "must not be empty");
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(10)).contains(&self.timeout) {
            return wrong("timeout", "must be between 100ms and 10s");
        }
        match (&self.username, &self.password_file, &self.password) {
            (None, None, None) | (Some(_), Some(_), None) | (Some(_), None, Some(_)) => {}
            (Some(_), None, None) => {
                return wrong("username", "it needs a password; name a file in password_file");
            }
            (None, ..) => return wrong("username", "there is a password but no user"),
            (_, Some(_), Some(_)) => {
                return wrong("password", "given twice: password_file is there too");
            }
        }
        match &self.tls {
            Some(_) if https.is_empty() => wrong("tls", "the endpoints are http"),
            Some(Tls { cert: Some(_), key: None, .. } | Tls { cert: None, key: Some(_), .. }) => {
                wrong("tls", "a certificate and its key belong together")
            }
            _ => Credentials::new(self, &Files::read(self)?).map(drop),
        }
    }
}

/// The configured members, and the digest of the files that were read for them. No member is
/// called.
pub(super) fn members(config: &Config) -> Result<(Members, FilesDigest), String> {
    let named = |(key, detail)| format!("store.{key}: {detail}");
    config.check().map_err(named)?;
    let files = Files::read(config).map_err(named)?;
    let credentials = Credentials::new(config, &files).map_err(named)?;
    Ok((Members::new(config, credentials), files.digest()))
}

/// Retries a read until a member answers.
pub(super) async fn first_read(store: &Store) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        let Err(failure) = store.members.get(&*store.prefix, None).await else { return Ok(()) };
        let CallError { detail, hopeless, .. } = failure;
        if hopeless || Instant::now() > deadline {
            return Err(detail);
        }
        if !told {
            tracing::warn!(error = %detail, "etcd does not answer yet");
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
