//! Reads and checks the files of `server.tls`, and builds a configuration of rustls from them.
//!
//! An error names the setting and the file, and never quotes the content. It must not know
//! connections.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};

use crate::files;
use crate::pem::{self, Validity};
use crate::secret::SecretBytes;
use crate::timestamp::rfc3339;

use super::client::ForClients;
use super::{ClientCert, Config, HTTP_1, HTTP_2};

/// A file that can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("server.tls.{setting}: {}: {detail}", path.display())]
pub struct Error {
    setting: &'static str,
    path: PathBuf,
    detail: String,
}

impl Error {
    fn new(setting: &'static str, path: &Path, detail: impl Into<String>) -> Self {
        Self { setting, path: path.to_owned(), detail: detail.into() }
    }
}

/// Distinguishes contents of the files.
pub(super) type Fingerprint = [u8; 32];

pub(super) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Fingerprint {
    let mut all = Sha256::new();
    for part in parts {
        all.update((part.len() as u64).to_be_bytes());
        all.update(part);
    }
    all.finalize().into()
}

/// The contents of the files.
pub(super) struct Files {
    cert: Vec<u8>,
    key: SecretBytes,
    client_ca: Option<Vec<u8>>,
    /// Whether all users of the machine may read the key.
    pub(super) others_read_key: bool,
}

impl Files {
    pub(super) fn read(config: &Config) -> Result<Self, Error> {
        let public = |setting, path: &Path| {
            files::read(path).map_err(|error| Error::new(setting, path, error.to_string()))
        };
        let cert = public("cert", &config.cert)?;
        let (key, access) = files::read_secret(&config.key)
            .map_err(|error| Error::new("key", &config.key, error.to_string()))?;
        let client_ca = config.client_ca.as_deref().map(|path| public("client_ca", path));
        let others_read_key = access.mode & 0o004 != 0;
        Ok(Self { cert, key, client_ca: client_ca.transpose()?, others_read_key })
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let client_ca = self.client_ca.as_deref().unwrap_or_default();
        fingerprint([&*self.cert, self.key.expose(), client_ca])
    }
}

/// A usable certificate.
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    pub(super) validity: Validity,
}

/// Creates the keys of session tickets, with which clients resume sessions without signatures.
pub(super) fn ticketer() -> Result<Arc<dyn ProducesTickets>, Error> {
    aws_lc_rs::Ticketer::new()
        .map_err(|_| Error::new("cert", Path::new("tickets"), "there is no randomness for them"))
}

impl Loaded {
    pub(super) fn from(
        config: &Config,
        files: &Files,
        ticketer: Arc<dyn ProducesTickets>,
    ) -> Result<Self, Error> {
        let wrong_cert = |detail: &str| Error::new("cert", &config.cert, detail);
        let pair = pem::pair(&files.cert, files.key.expose()).map_err(|wrong| match wrong {
            pem::Wrong::Cert(detail) => Error::new("cert", &config.cert, detail),
            pem::Wrong::Key(detail) => Error::new("key", &config.key, detail),
        })?;
        let pem::Pair { certs, key, validity } = pair;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = match (&config.client_ca, &files.client_ca) {
            (Some(path), Some(pem)) => {
                Some(verifier(config.client_cert, path, pem, Arc::clone(&provider))?)
            }
            _ => None,
        };
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| wrong_cert(&error.to_string()))?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder
            .with_single_cert(certs, key)
            .map_err(|error| Error::new("key", &config.key, error.to_string()))?;
        server.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
        server.ticketer = ticketer;
        // Sessions are stored only in tickets: clients that never return use no memory.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(server), verifier, validity })
    }

    /// Checks that a new certificate is valid at `now`.
    pub(super) fn check_time(&self, config: &Config, now: u64) -> Result<(), Error> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let wrong = |detail: String| Err(Error::new("cert", &config.cert, detail));
        if now > self.validity.not_after {
            wrong(format!("it expired at {}", rfc3339(self.validity.not_after)))
        } else if now < self.validity.not_before {
            wrong(format!("it is valid from {} on", rfc3339(self.validity.not_before)))
        } else {
            Ok(())
        }
    }

    /// A warning at `now` if less than a tenth of its lifetime is left.
    pub(super) fn warning(&self, now: i64) -> Option<String> {
        let life = self.validity.not_after.saturating_sub(self.validity.not_before);
        let until = self.until();
        if now > self.validity.not_after {
            Some(format!("the certificate expired at {until}"))
        } else if self.validity.not_after.saturating_sub(now) < life / 10 {
            Some(format!("the certificate expires at {until}"))
        } else {
            None
        }
    }

    /// When it expires.
    pub(super) fn until(&self) -> String {
        rfc3339(self.validity.not_after)
    }

    /// Verifies the certificate of a client that resumes its session.
    pub(super) fn verify(
        &self,
        first: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: u64,
    ) -> io::Result<()> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let verified = match &self.verifier {
            Some(verifier) => verifier.verify_client_cert(first, rest, now).map(drop),
            None => return Err(io::Error::other("no client certificate is asked for any more")),
        };
        verified.map_err(io::Error::other)
    }
}

fn verifier(
    asked: ClientCert,
    path: &Path,
    text: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let wrong = |detail: &str| Error::new("client_ca", path, detail);
    let mut roots = RootCertStore::empty();
    for authority in pem::authorities(text).map_err(|detail| wrong(&detail))? {
        roots.add(authority).map_err(|_| wrong("one of its certificates is malformed"))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match asked {
        ClientCert::Optional => builder.allow_unauthenticated(),
        ClientCert::Required => builder,
    };
    let trusted = builder.build().map_err(|error| wrong(&error.to_string()))?;
    Ok(Arc::new(ForClients(trusted)))
}
