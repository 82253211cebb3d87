//! Credentials for the members of a cluster: certificates and a password, from the configured
//! files.
//!
//! It reads and checks the files, and turns them into options of a client. `refresh` decides when
//! they are read again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use sha2::{Digest as _, Sha256};

use crate::clock::{Clock, SystemClock};
use crate::files;
use crate::pem::{self, Validity};
use crate::secret::SecretBytes;

use super::Config;

/// Identifies the contents of the files.
pub(super) type FilesDigest = [u8; 32];

/// A setting within `[store]`, and what is wrong with it.
pub(super) type Wrong = (&'static str, String);

/// The contents of the files.
pub(super) struct Files {
    ca: Option<Vec<u8>>,
    /// A client certificate and its key.
    pair: Option<(Vec<u8>, SecretBytes)>,
    password: Option<SecretBytes>,
}

/// Usable certificates and a password.
pub(super) struct Credentials {
    pub(super) options: ConnectOptions,
    /// The file of the client certificate, and its validity.
    cert: Option<(PathBuf, Validity)>,
}

impl Files {
    /// Reads all files that `config` names.
    pub(super) fn read(config: &Config) -> Result<Self, Wrong> {
        let public =
            |key, path: &Path| files::read_regular(path).map_err(|error| at(key, path, &error));
        let secret = |key, path: &Path| {
            files::check_rereadable(path)
                .and_then(|()| files::read_secret(path))
                .map(|(secret, _)| secret)
                .map_err(|error| at(key, path, &error))
        };
        let tls = config.tls.as_ref();
        let ca = tls.and_then(|tls| tls.ca.as_deref()).map(|ca| public("tls.ca", ca));
        let pair = tls.and_then(|tls| tls.cert.as_deref().zip(tls.key.as_deref()));
        let pair = pair.map(|(cert, key)| Ok((public("tls.cert", cert)?, secret("tls.key", key)?)));
        let password = config.password_file.as_deref();
        let password = password.map(|path| secret("password_file", path)).transpose()?;
        Ok(Self {
            ca: ca.transpose()?,
            pair: pair.transpose()?,
            password: password.map(|password| password.trim_end()),
        })
    }

    pub(super) fn digest(&self) -> FilesDigest {
        let (cert, key) = match &self.pair {
            Some((cert, key)) => (&**cert, key.expose()),
            None => (&[][..], &[][..]),
        };
        let password = self.password.as_ref().map_or(&[][..], SecretBytes::expose);
        digest(&[self.ca.as_deref().unwrap_or_default(), cert, key, password])
    }
}

/// The digest of `parts`, including their boundaries.
pub(super) fn digest(parts: &[&[u8]]) -> FilesDigest {
    let mut all = Sha256::new();
    for part in parts {
        all.update((part.len() as u64).to_be_bytes());
        all.update(part);
    }
    all.finalize().into()
}

impl Credentials {
    /// Checks the contents of the files, and turns them into options for a client.
    pub(super) fn new(config: &Config, files: &Files) -> Result<Self, Wrong> {
        let mut options = ConnectOptions::new()
            .with_timeout(config.timeout)
            .with_connect_timeout(config.timeout)
            // etcd closes connections that send more often. A ping that is not answered ends the
            // calls of its connection, so it does not time out before them.
            .with_keep_alive(Duration::from_secs(5), config.timeout.max(Duration::from_secs(3)))
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(username) = &config.username {
            let password = files.password.as_ref().or(config.password.as_deref());
            let password = password.map_or(&[][..], SecretBytes::expose).to_vec();
            let password = String::from_utf8(password)
                .map_err(|_| ("password_file", "the password is not UTF-8".to_owned()))?;
            options = options.with_user(username.clone(), password);
        }
        let mut cert = None;
        if config.is_tls() {
            let mut tls = TlsOptions::new();
            tls = match (&files.ca, config.tls.as_ref().and_then(|tls| tls.ca.as_deref())) {
                (Some(text), Some(path)) => {
                    pem::authorities(text).map_err(|detail| at("tls.ca", path, &detail))?;
                    tls.ca_certificate(Certificate::from_pem(text))
                }
                _ => tls.with_native_roots(),
            };
            if let (Some((text, key)), Some((cert_path, key_path))) = (&files.pair, config.pair()) {
                let pair = pem::pair(text, key.expose()).map_err(|wrong| match wrong {
                    pem::Wrong::Cert(detail) => at("tls.cert", cert_path, &detail),
                    pem::Wrong::Key(detail) => at("tls.key", key_path, &detail),
                })?;
                tls = tls.identity(Identity::from_pem(text, key.expose()));
                cert = Some((cert_path.to_owned(), pair.validity));
            }
            options = options.with_tls(tls);
        }
        Ok(Self { options, cert })
    }

    /// The state of the client certificate, such as `tls.crt expired at ...`.
    pub(super) fn cert(&self) -> Option<String> {
        let now = i64::try_from(SystemClock::new().unix_now()).unwrap_or(i64::MAX);
        self.cert
            .as_ref()
            .map(|(path, validity)| format!("{} {}", path.display(), validity.at(now)))
    }
}

impl Config {
    /// Whether the members are called with TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.endpoints.iter().any(|url| url.starts_with("https://"))
    }

    /// Whether any credential comes from a file, which may be replaced.
    pub(super) fn has_files(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.ca.is_some() || tls.cert.is_some())
            || self.password_file.is_some()
    }

    /// The files of the client certificate and its key.
    fn pair(&self) -> Option<(&Path, &Path)> {
        self.tls.as_ref().and_then(|tls| tls.cert.as_deref().zip(tls.key.as_deref()))
    }
}

fn at(key: &'static str, path: &Path, error: &impl std::fmt::Display) -> Wrong {
    (key, format!("{}: {error}", path.display()))
}
