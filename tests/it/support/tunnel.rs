//! What stands between a client and a server elsewhere: a proxy that makes tunnels, and an end of
//! TLS before a server that speaks plain HTTP.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// An HTTP proxy that knows `CONNECT` alone. Whatever host it is asked for, it goes to one address
/// of this machine: a name that can't be resolved is reached through it and in no other way.
pub(crate) struct Tunnel {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

struct State {
    /// Where tunnels lead; without it they are refused.
    target: Option<SocketAddr>,
    asked: Vec<String>,
}

impl Tunnel {
    /// Starts it; it refuses all tunnels.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { target: None, asked: Vec::new() }));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut tunnels = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                tunnels.spawn(tunnel(stream, Arc::clone(&shared)));
            }
        });
        Self { address, state, task }
    }

    /// What `HTTPS_PROXY` is set to, with a password.
    pub(crate) fn variable(&self) -> String {
        format!("http://user:planted-password@{}", self.address)
    }

    /// What an error says of it.
    pub(crate) fn via(&self) -> String {
        format!("(through the proxy http://{} of HTTPS_PROXY)", self.address)
    }

    /// Where new tunnels lead.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.state.lock().unwrap().target = Some(target);
    }

    /// The hosts and ports that it was asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tunnel(mut client: TcpStream, state: Arc<Mutex<State>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let Some(asked) = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
        panic!("it is no CONNECT: {head}");
    };
    // "user:planted-password"
    let known = head.contains("Basic dXNlcjpwbGFudGVkLXBhc3N3b3Jk");
    let target = {
        let mut state = state.lock().unwrap();
        state.asked.push(asked.to_owned());
        state.target.filter(|_| known)
    };
    let Some(target) = target else {
        _ = client.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
        return;
    };
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    if client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.is_ok() {
        _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

/// An end of TLS. Dropping it cuts its connections.
pub(crate) struct Terminator {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Terminator {
    /// Starts it with a certificate and its key before `target`.
    pub(crate) async fn start(
        (cert, key): (impl AsRef<Path>, impl AsRef<Path>),
        target: SocketAddr,
    ) -> Self {
        let certs = CertificateDer::pem_file_iter(cert).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(certs, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut client) = acceptor.accept(stream).await else { return };
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { address, task }
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        self.task.abort();
    }
}
