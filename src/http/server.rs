//! Listeners: taking connections, a bound on them, handshakes, and an end that finishes what is in
//! flight. What happens on a connection is `connection`'s.

use std::io;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::{accept, tls};

use super::gate::Gate;
use super::{Config, Face, connection};

/// Where connections come from, and where their requests go.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Arc<tls::Server>>,
    pub(super) face: Face,
}

/// Serves each door until `shutdown` ends, then finishes what is in flight.
pub(super) async fn run(
    config: &Config,
    doors: Vec<Door>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // Each connection has a receiver: when all are gone, all is done.
    let stop = watch::Sender::new(false);
    for Door { listener, tls, face } in doors {
        let gate = Gate::new(face, config, listener.local_addr()?, tls.is_some());
        // One bound for each listener: probes are answered when callers have all that is theirs.
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

/// Takes connections until `stop` says so.
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

/// Serves one connection. A client that goes away, or speaks something else, is no news.
async fn serve(
    stream: TcpStream,
    tls: Option<Arc<tls::Server>>,
    gate: Gate,
    mut stop: watch::Receiver<bool>,
) {
    // Answers are written whole; waiting for more to send helps nobody.
    let _ = stream.set_nodelay(true);
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
