//! The listener: accepts connections of allowed users, checks that clients find the socket, and
//! finishes calls in flight at a shutdown. `connection` owns each connection.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Response, Status};
use tonic_prost::ProstCodec;

use crate::accept;
use crate::audit::Peer;
use crate::log_throttle::LogThrottle;
use crate::service::{Error, Starting};

use super::config::Config;
use super::plugin::{self, Plugin};
use super::socket::Bound;
use super::{STOP_TIMEOUT, connection, proto};

/// Concurrent connections; a kube-apiserver has one or two.
const MAX_CONNECTIONS: u32 = 128;
/// The longest message that is read: above the longest plaintext, so that a plaintext that is too
/// long gets an error with the limit.
const MAX_MESSAGE: usize = 256 << 10;
/// How often the socket's file is checked.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// Serves until `stop` is closed, then finishes calls in flight and removes the socket.
pub(super) async fn run(
    mut bound: Bound,
    config: Config,
    plugin: Arc<OnceLock<Arc<Plugin>>>,
    starting: Arc<Starting>,
    mut stop: watch::Receiver<()>,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let (refused, strangers) = (refusal_log(), Arc::new(refusal_log()));
    let mut look = interval(CHECK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (permit, stream) = tokio::select! {
            biased;
            _ = stop.changed() => break,
            _ = look.tick() => {
                let trouble = bound.keep(&config).err();
                if let Some(plugin) = plugin.get() {
                    plugin.report_socket(trouble);
                }
                continue;
            }
            next = accept::next(&connections, || bound.listener().accept()) => next,
        };
        if !is_allowed(&stream, config.allowed_uids.as_deref(), &refused) {
            continue;
        }
        let (plugin, starting) = (Arc::clone(&plugin), Arc::clone(&starting));
        let peer = stream.peer_cred().map_or(Peer::UNKNOWN, |peer| Peer::user(peer.uid()));
        let answer = move |request| {
            let plugin = plugin.get().cloned().ok_or_else(|| starting.error());
            respond(plugin, peer.clone(), request)
        };
        let (strangers, stop) = (Arc::clone(&strangers), stop.clone());
        tokio::spawn(async move {
            connection::serve(stream, answer, strangers, stop).await;
            drop(permit);
        });
    }
    // Removes the socket, so that no client connects any more.
    drop(bound);
    if timeout(STOP_TIMEOUT, connections.acquire_many(MAX_CONNECTIONS)).await.is_err() {
        tracing::warn!("some calls of kube-apiserver did not finish in time and are aborted");
    }
}

/// A client that connects in a loop causes one line per ten seconds.
fn refusal_log() -> LogThrottle {
    LogThrottle::new(1, Duration::from_secs(10))
}

/// Whether the process at the other end may connect; the kernel reports its user.
fn is_allowed(stream: &UnixStream, allowed_uids: Option<&[u32]>, refused: &LogThrottle) -> bool {
    let Some(allowed) = allowed_uids else { return true };
    let uid = stream.peer_cred().map(|peer| peer.uid());
    let is_allowed = uid.as_ref().is_ok_and(|uid| allowed.contains(uid));
    if !is_allowed && let Some(count) = refused.admit() {
        tracing::warn!(
            uid = uid.ok(),
            count,
            "a process was refused: its user is not in kubernetes.allowed_uids"
        );
    }
    is_allowed
}

/// Serves one call.
async fn respond(
    plugin: Result<Arc<Plugin>, Error>,
    peer: Peer,
    request: Request<Incoming>,
) -> http::Response<Body> {
    let plugin = match plugin {
        Ok(plugin) => plugin,
        Err(error) => return plugin::starting(&error).into_http(),
    };
    match request.uri().path() {
        proto::STATUS => unary(request, move |asked| async move { plugin.status(asked) }).await,
        proto::ENCRYPT => unary(request, move |asked| plugin.encrypt(peer, asked)).await,
        proto::DECRYPT => unary(request, move |asked| plugin.decrypt(peer, asked)).await,
        _ => Status::unimplemented("this is a KMS plugin of version v2").into_http(),
    }
}

async fn unary<Q, A, F>(
    request: Request<Incoming>,
    call: impl FnOnce(Q) -> F + Send,
) -> http::Response<Body>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + 'static,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    let codec = ProstCodec::<A, Q>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE);
    grpc.unary(Unary(Some(call)), request).await
}

/// One call as a service of tonic.
struct Unary<C>(Option<C>);

impl<C, F, Q, A> UnaryService<Q> for Unary<C>
where
    C: FnOnce(Q) -> F,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        let Some(call) = self.0.take() else {
            return Box::pin(async { Err(Status::internal("a call is made only once")) });
        };
        let answer = call(request.into_inner());
        Box::pin(async { answer.await.map(Response::new) })
    }
}
