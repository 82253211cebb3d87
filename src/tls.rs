//! TLS of the listener: what is configured, handshakes, and certificates that are exchanged while
//! connections live.
//!
//! It knows no HTTP and no permissions: a certificate identifies a `Peer`, and its
//! permissions are decided elsewhere. `load` checks the files.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::HandshakeKind;
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::Clock;

mod client;
mod load;
pub(crate) mod peer;
#[cfg(test)]
pub(crate) mod tests;
mod validity;

use load::{Digest, Files, Loaded};
use peer::Peer;

pub use load::Error;
pub use validity::warnings;

/// The protocol that a client and we agreed on is HTTP/2.
const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that was refused may take to read why.
const LINGER: Duration = Duration::from_secs(2);
/// How often the files are looked at. What changed is loaded when it is the same twice, so that
/// two files that are written one after the other are not taken for a pair that does not match.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// `server.tls` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The PEM file with the certificate, and those that lead to its authority.
    pub cert: PathBuf,
    /// The PEM file with the certificate's key.
    pub key: PathBuf,
    /// A PEM file with the authorities of clients: their certificates are asked for then.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must show one.
    #[serde(default)]
    pub client_cert: ClientCert,
}

/// What is asked of clients where `client_ca` is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCert {
    /// A certificate is verified if one is shown.
    #[default]
    Optional,
    /// Without one there is no connection.
    Required,
}

impl ClientCert {
    /// As it is written in the configuration.
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

/// The server's side of TLS, with the certificate that is in force.
pub struct Server {
    config: Config,
    clock: Arc<dyn Clock>,
    /// One for all certificates: a client resumes its session after an exchange.
    tickets: Arc<dyn ProducesTickets>,
    loaded: ArcSwap<Loaded>,
    seen: Mutex<Seen>,
}

/// What was last seen of the files.
struct Seen {
    /// When they were last looked at.
    now: Digest,
    /// When they were last loaded, or could not be.
    tried: Digest,
    /// Why they could not be.
    trouble: Option<String>,
}

/// How the certificate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Seconds until it expires; negative when it has.
    pub expires_in: i64,
    /// What an operator should know.
    pub trouble: Option<String>,
}

impl Server {
    /// Loads what `config` names. A certificate that has expired is loaded too: clients refuse it,
    /// but no restart makes it worse.
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
        let digest = files.digest();
        let seen = Mutex::new(Seen { now: digest, tried: digest, trouble: None });
        Ok(Self { config, clock, tickets, loaded: ArcSwap::from_pointee(loaded), seen })
    }

    /// Shakes hands. Gives who the client is if it showed a certificate, and whether HTTP/2 was
    /// agreed on.
    ///
    /// # Errors
    /// When the client goes away, offers nothing that is taken, or is not trusted.
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
        let (_, session) = stream.get_ref();
        let peer = match session.peer_certificates() {
            Some([first, rest @ ..]) => {
                // A ticket proves that the client was trusted once. By now its certificate may have
                // expired, or its authority may be gone.
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

    /// Reloads the files whenever they change, and on `told`, until its sender is gone.
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
            // A disk may be slow; a panic has said so already.
            let _ = tokio::task::spawn_blocking(move || this.look(by_hand)).await;
        }
    }

    /// How the certificate stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let now = i64::try_from(self.clock.unix_now()).unwrap_or(i64::MAX);
        let loaded = self.loaded.load();
        let expires_in = loaded.validity.not_after.saturating_sub(now);
        let trouble = self.seen.lock().unwrap_or_else(PoisonError::into_inner).trouble.clone();
        let trouble =
            trouble.map(|trouble| format!("{trouble}; the certificate before it serves on"));
        let trouble = trouble.or_else(|| loaded.warning(now));
        Standing { expires_in, trouble }
    }

    /// Loads the files if they changed, or in any case `by_hand`.
    fn look(&self, by_hand: bool) {
        let read = Files::read(&self.config);
        let digest = match &read {
            Ok(files) => files.digest(),
            Err(error) => load::digest([error.to_string().as_bytes()]),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = std::mem::replace(&mut seen.now, digest) == digest;
        if !by_hand && (seen.tried == digest || !settled) {
            return;
        }
        seen.tried = digest;
        let now = self.clock.unix_now();
        let loaded = read.and_then(|files| {
            let loaded = Loaded::from(&self.config, &files, Arc::clone(&self.tickets))?;
            loaded.check_time(&self.config, now).map(|()| loaded)
        });
        seen.trouble = match loaded {
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

/// Whether a handshake failed for the client's certificate, or for want of one.
pub(crate) fn is_stranger(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(
        cause,
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
    )
}

/// Waits until the client is gone. If the socket were closed while there is something to read, the
/// client would see a broken connection, and not the alert that says why.
async fn linger(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
