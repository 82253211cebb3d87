//! TLS of the listener: settings, handshakes, and the replacement of certificates without a
//! restart.
//!
//! It must not know HTTP or permissions: it returns the `Peer` of a certificate, and `auth` decides
//! what it may do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::HandshakeKind;
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::Clock;

mod check;
mod client;
mod load;
pub(crate) mod peer;
#[cfg(test)]
pub(crate) mod tests;
mod validity;

use load::{Files, Fingerprint, Loaded};
use peer::Peer;

pub use check::{PairError, check_authorities, check_pair};
pub use load::Error;
pub use validity::{has_alternative_names, warnings};

/// The names of the protocols in ALPN.
const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// The bytes of responses that a connection has encrypted and not sent: two records.
const MAX_UNSENT: usize = 32 << 10;
/// Time limit of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a rejected client may take to read the alert.
const LINGER: Duration = Duration::from_secs(2);
/// How often the files are read. A change is loaded once two reads in a row agree, so that two
/// files that are written one after the other are not rejected as a mismatched pair.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// `server.tls` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The PEM file with the certificate and the intermediate ones.
    pub cert: PathBuf,
    /// The PEM file with the certificate's key.
    pub key: PathBuf,
    /// A PEM file with the authorities of clients. If set, clients are asked for a certificate.
    pub client_ca: Option<PathBuf>,
    /// Whether clients must have a certificate.
    #[serde(default)]
    pub client_cert: ClientCert,
}

/// Whether clients must have a certificate, if `client_ca` is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCert {
    /// A certificate is verified if the client sends one.
    #[default]
    Optional,
    /// A handshake without a certificate fails.
    Required,
}

impl ClientCert {
    /// The word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

impl Config {
    /// Checks that a service could start with these files.
    ///
    /// # Errors
    /// [`Error`], which names the setting and the file.
    pub fn check(&self) -> Result<(), Error> {
        Loaded::from(self, &Files::read(self)?, load::ticketer()?).map(drop)
    }
}

/// The server's side of TLS, with the current certificate.
pub struct Server {
    config: Config,
    clock: Arc<dyn Clock>,
    /// Shared by all certificates: sessions can be resumed after a replacement.
    tickets: Arc<dyn ProducesTickets>,
    loaded: ArcSwap<Loaded>,
    seen: Mutex<Seen>,
}

/// The last reads of the files.
struct Seen {
    /// The content at the last read.
    now: Fingerprint,
    /// The content at the last attempt to load it.
    tried: Fingerprint,
    /// Why that attempt failed.
    last_error: Option<String>,
}

/// The expiry of the current certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// Seconds until it expires; negative when it has.
    pub expires_in: i64,
    /// A problem that needs an operator.
    pub warning: Option<String>,
}

impl Server {
    /// Loads the files of `config`. An expired certificate is loaded too: clients reject it, but a
    /// restart must not make things worse.
    ///
    /// # Errors
    /// [`Error`], which names the setting and the file.
    pub fn open(config: Config, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let (files, tickets) = (Files::read(&config)?, load::ticketer()?);
        let loaded = Loaded::from(&config, &files, Arc::clone(&tickets))?;
        if files.others_read_key {
            tracing::warn!(key = %config.key.display(), "others may read the key of the \
                certificate");
        }
        tracing::info!(until = loaded.until(), "the certificate is loaded");
        let fingerprint = files.fingerprint();
        let seen = Mutex::new(Seen { now: fingerprint, tried: fingerprint, last_error: None });
        Ok(Self { config, clock, tickets, loaded: ArcSwap::from_pointee(loaded), seen })
    }

    /// Performs a handshake. Returns the stream, the names in the client's certificate if it sent
    /// one, and whether HTTP/2 was negotiated.
    ///
    /// # Errors
    /// If the client disconnects, supports no accepted protocol, or is not trusted.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Arc<Peer>>, bool)> {
        let loaded = self.loaded.load_full();
        let acceptor = TlsAcceptor::from(Arc::clone(&loaded.config));
        let handshake = acceptor.accept(stream).into_fallible();
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await? {
            Ok(stream) => stream,
            Err((error, stream)) => {
                _ = tokio::time::timeout(LINGER, linger(stream)).await;
                return Err(error);
            }
        };
        let mut stream = stream;
        let (_, session) = stream.get_mut();
        session.set_buffer_limit(Some(MAX_UNSENT));
        let peer = match session.peer_certificates() {
            Some([first, rest @ ..]) => {
                // A ticket proves only that the client was trusted once. Its certificate may have
                // expired since, or its authority may have been removed.
                if session.handshake_kind() == Some(HandshakeKind::Resumed) {
                    loaded.verify(first, rest, self.clock.unix_now())?;
                }
                Some(Arc::new(Peer::parse(first)?))
            }
            _ => None,
        };
        let is_http_2 = session.alpn_protocol() == Some(HTTP_2);
        Ok((stream, peer, is_http_2))
    }

    /// Reloads the files when they change and on each message of `told`, until its sender is
    /// dropped.
    pub async fn follow(self: Arc<Self>, mut told: watch::Receiver<()>) {
        loop {
            let by_hand = tokio::select! {
                told = told.changed() => match told {
                    Ok(()) => true,
                    Err(_) => return,
                },
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let this = Arc::clone(&self);
            // The disk may be slow. A panic was logged by the panic hook.
            let _ = tokio::task::spawn_blocking(move || this.look(by_hand)).await;
        }
    }

    /// The expiry of the current certificate, and problems with its replacement.
    #[must_use]
    pub fn certificate_status(&self) -> CertificateStatus {
        let now = i64::try_from(self.clock.unix_now()).unwrap_or(i64::MAX);
        let loaded = self.loaded.load();
        let expires_in = loaded.validity.not_after.saturating_sub(now);
        let error = self.seen.lock().last_error.clone();
        let error = error.map(|error| format!("{error}; the certificate before it serves on"));
        let warning = error.or_else(|| loaded.warning(now));
        CertificateStatus { expires_in, warning }
    }

    /// Loads the files if they changed, or unconditionally if `by_hand`.
    fn look(&self, by_hand: bool) {
        let read = Files::read(&self.config);
        let fingerprint = match &read {
            Ok(files) => files.fingerprint(),
            Err(error) => load::fingerprint([error.to_string().as_bytes()]),
        };
        let mut seen = self.seen.lock();
        let settled = std::mem::replace(&mut seen.now, fingerprint) == fingerprint;
        if !by_hand && (seen.tried == fingerprint || !settled) {
            return;
        }
        seen.tried = fingerprint;
        let now = self.clock.unix_now();
        let loaded = read.and_then(|files| {
            let loaded = Loaded::from(&self.config, &files, Arc::clone(&self.tickets))?;
            loaded.check_time(&self.config, now).map(|()| loaded)
        });
        seen.last_error = match loaded {
            Ok(loaded) => {
                tracing::info!(until = loaded.until(), "the certificate is reloaded");
                self.loaded.store(Arc::new(loaded));
                None
            }
            Err(error) => {
                tracing::error!(%error, "the new certificate is refused; the one before it serves \
                    on");
                Some(error.to_string())
            }
        };
    }
}

/// Whether a handshake failed because of the client's certificate, or the lack of one.
pub(crate) fn is_stranger(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(
        cause,
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
    )
}

/// Waits until the client disconnects. If the socket were closed with unread data, the client would
/// see a reset connection instead of the alert.
async fn linger(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
