//! Listeners and connections: HTTP/1.1, a bound on connections, and an end that finishes what is
//! in flight.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::gate::Gate;
use super::{Config, Face};

/// A connection is closed when it does nothing for this long: no request, no whole head of one, no
/// reader of an answer. It is looked at as often, so it may be twice as long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long no connection is taken after the machine refused one: no file descriptors, most often.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves each face on its listener until `shutdown` ends, then finishes what is in flight.
pub(super) async fn run(
    config: &Config,
    faces: Vec<(TcpListener, Face)>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let stop = watch::Sender::new(());
    let mut accepting = Vec::new();
    for (listener, face) in faces {
        let loopback = listener.local_addr()?.ip().is_loopback();
        let gate = Gate::new(face, config.request_timeout, loopback);
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
    let activity = Arc::new(Activity::default());
    let seen = Arc::clone(&activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let (gate, activity) = (gate.clone(), Arc::clone(&activity));
        async move {
            activity.began.fetch_add(1, Ordering::Relaxed);
            let answer = gate.pass(request.map(Body::new)).await;
            activity.ended.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    // hyper's own timer would be set anew for each request.
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = graceful.watch(connection) => ended,
        () = seen.is_over() => Ok(()),
    }
}

/// The requests of a connection.
#[derive(Default)]
struct Activity {
    began: AtomicU64,
    ended: AtomicU64,
}

impl Activity {
    /// Waits until no request began, and none was under way, for [`IDLE_TIMEOUT`].
    async fn is_over(&self) {
        let mut before = None;
        loop {
            let (began, ended) =
                (self.began.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed));
            if began == ended && before == Some(began) {
                return;
            }
            before = Some(began);
            tokio::time::sleep(IDLE_TIMEOUT).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_over_when_it_does_nothing() {
        let activity = Activity::default();
        let mut over = std::pin::pin!(activity.is_over());
        let after = async |over: &mut std::pin::Pin<&mut _>, idle: u32| {
            let limit = IDLE_TIMEOUT * idle + Duration::from_secs(1);
            tokio::time::timeout(limit, over).await.is_ok()
        };
        activity.began.store(1, Ordering::Relaxed);
        assert!(!after(&mut over, 5).await, "a request is under way");
        activity.began.store(2, Ordering::Relaxed);
        activity.ended.store(2, Ordering::Relaxed);
        assert!(!after(&mut over, 1).await, "a request began meanwhile");
        assert!(after(&mut over, 1).await);
    }
}
