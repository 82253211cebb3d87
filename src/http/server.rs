//! Listeners and connections: HTTP/1.1, a bound on connections, and an end that finishes what is
//! in flight.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::Config;
use super::gate::Gate;

/// How long a connection may stay silent between requests, or take to send a request's head.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long no connection is taken after the machine refused one: no file descriptors, most often.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves each router on its listener until `shutdown` ends, then finishes what is in flight.
pub(super) async fn run(
    config: &Config,
    faces: Vec<(TcpListener, Router)>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let stop = watch::Sender::new(());
    let mut accepting = Vec::new();
    for (listener, router) in faces {
        let loopback = listener.local_addr()?.ip().is_loopback();
        let gate = Gate::new(router, config.request_timeout, loopback);
        // One bound for each listener: probes are answered when callers have all that is theirs.
        let connections = Arc::new(Semaphore::new(config.max_connections));
        accepting.push(tokio::spawn(accept(listener, gate, connections, stop.subscribe())));
    }
    shutdown.await;
    drop(stop);
    let ending = async {
        for task in accepting {
            // A task that panicked has said so already.
            if let Ok(graceful) = task.await {
                graceful.shutdown().await;
            }
        }
    };
    if tokio::time::timeout(config.request_timeout, ending).await.is_err() {
        tracing::warn!("some requests were not done in time and are cut off");
    }
    Ok(())
}

/// Takes connections until `stop` is closed.
async fn accept(
    listener: TcpListener,
    gate: Gate,
    connections: Arc<Semaphore>,
    mut stop: watch::Receiver<()>,
) -> GracefulShutdown {
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            _ = stop.changed() => return graceful,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = serve(stream, gate.clone(), graceful.watcher());
                tokio::spawn(async move {
                    // A client that goes away, or sends no HTTP, is no news.
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection ended badly");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection; `graceful` ends it between two requests.
async fn serve(stream: TcpStream, gate: Gate, graceful: Watcher) -> Result<(), hyper::Error> {
    // Answers are written whole; waiting for more to send helps nobody.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let gate = gate.clone();
        async move { Ok::<_, Infallible>(gate.pass(request.map(Body::new)).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    graceful.watch(connection).await
}
