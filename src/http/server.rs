//! Listeners: accepts connections up to a limit, does handshakes, and completes the requests in
//! flight at shutdown. [`connection`] serves each connection.

use std::io;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::{accept, tls};

use super::gate::Gate;
use super::{Config, Handler, connection};

/// The bytes of responses that the kernel takes before it sends some of them, for each connection.
#[cfg(any(target_os = "linux", target_os = "android"))]
const MAX_NOT_SENT: u32 = 128 << 10;

/// A listener and the handler of its requests.
pub(super) struct Endpoint {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Arc<tls::Server>>,
    pub(super) handler: Handler,
}

/// Serves each endpoint until `shutdown` ends, then finishes what is in flight.
pub(super) async fn run(
    config: &Config,
    endpoints: Vec<Endpoint>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // Each connection has a receiver: when all are dropped, every connection has ended.
    let stop = watch::Sender::new(false);
    for Endpoint { listener, tls, handler } in endpoints {
        let gate = Gate::new(handler, config, listener.local_addr()?, tls.is_some());
        // Each listener has its own limit, so callers cannot block probes.
        let connections = Arc::new(Semaphore::new(config.max_connections));
        tokio::spawn(take(listener, tls, gate, connections, stop.subscribe()));
    }
    shutdown.await;
    stop.send_replace(true);
    if tokio::time::timeout(config.shutdown_grace(), stop.closed()).await.is_err() {
        tracing::warn!("some requests were not done in time and are cut off");
    }
    Ok(())
}

/// Accepts connections until `stop` becomes true.
async fn take(
    listener: TcpListener,
    tls: Option<Arc<tls::Server>>,
    gate: Gate,
    connections: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let (permit, stream) = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            next = accept::next(&connections, || listener.accept()) => next,
        };
        let connected = gate.connected();
        let connection = serve(stream, tls.clone(), gate.clone(), stop.clone());
        tokio::spawn(async move {
            connection.await;
            drop((permit, connected));
        });
    }
}

/// Serves one connection. A client that disconnects or uses another protocol is not logged.
async fn serve(
    stream: TcpStream,
    tls: Option<Arc<tls::Server>>,
    gate: Gate,
    mut stop: watch::Receiver<bool>,
) {
    // Responses are written whole, so Nagle's algorithm would only delay them.
    let _ = stream.set_nodelay(true);
    // A client that reads slowly is seen to read, and the kernel keeps little for one that does
    // not.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(MAX_NOT_SENT);
    let gate = gate.of(&stream);
    let ended = match tls {
        None => connection::serve(stream, false, None, gate, &mut stop).await,
        Some(tls) => {
            // Boxed: a session is large, and a handshake larger.
            let accepted = tokio::select! {
                accepted = Box::pin(tls.accept(stream)) => accepted,
                // No request has come yet, so none is lost.
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, peer, is_http_2)) => {
                    connection::serve(stream, is_http_2, peer, gate, &mut stop).await
                }
                Err(error) if tls::is_stranger(&error) => return gate.refused(&error),
                Err(error) => return tracing::debug!(%error, "a handshake failed"),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}
