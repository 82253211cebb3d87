//! The listener: taking connections, who may connect, whether clients still find the socket, and an
//! end that finishes what is in flight. What happens on a connection is `connection`'s.

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
use crate::log_throttle::LogThrottle;
use crate::service::{Error, Starting};

use super::config::Config;
use super::plugin::{self, Plugin};
use super::socket::Bound;
use super::{STOP_TIMEOUT, connection, proto};

/// Concurrent connections; a kube-apiserver has one or two.
const MAX_CONNECTIONS: u32 = 128;
/// The longest message that is read: more than the longest plaintext, so that a longer one gets an
/// error that says so.
const MAX_MESSAGE: usize = 256 << 10;
/// How often the socket's file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Serves until `stop` is closed, then finishes what is in flight, and removes the socket.
pub(super) async fn run(
    mut bound: Bound,
    config: Config,
    plugin: Arc<OnceLock<Arc<Plugin>>>,
    starting: Arc<Starting>,
    mut stop: watch::Receiver<()>,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let (refused, strangers) = (refusal_log(), Arc::new(refusal_log()));
    let mut look = interval(LOOK_EVERY);
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
        let answer =
            move |request| answer(plugin.get().cloned().ok_or_else(|| starting.error()), request);
        let (strangers, stop) = (Arc::clone(&strangers), stop.clone());
        tokio::spawn(async move {
            connection::serve(stream, answer, strangers, stop).await;
            drop(permit);
        });
    }
    // From here on nobody finds the socket.
    drop(bound);
    if timeout(STOP_TIMEOUT, connections.acquire_many(MAX_CONNECTIONS)).await.is_err() {
        tracing::warn!("some calls of kube-apiserver were not done in time and are cut off");
    }
}

/// A client that connects in a loop causes one line in ten seconds.
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
            "a process was refused: it is not of kubernetes.allowed_uids"
        );
    }
    is_allowed
}

/// Answers one call.
async fn answer(
    plugin: Result<Arc<Plugin>, Error>,
    request: Request<Incoming>,
) -> http::Response<Body> {
    let plugin = match plugin {
        Ok(plugin) => plugin,
        Err(error) => return plugin::starting(&error).into_http(),
    };
    match request.uri().path() {
        proto::STATUS => unary(request, move |asked| async move { plugin.status(asked) }).await,
        proto::ENCRYPT => unary(request, move |asked| plugin.encrypt(asked)).await,
        proto::DECRYPT => unary(request, move |asked| plugin.decrypt(asked)).await,
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
    grpc.unary(Call(Some(call)), request).await
}

/// One call, in the form that tonic makes it.
struct Call<C>(Option<C>);

impl<C, F, Q, A> UnaryService<Q> for Call<C>
where
    C: FnOnce(Q) -> F,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        let Some(call) = self.0.take() else {
            return Box::pin(async { Err(Status::internal("a call is made once")) });
        };
        let answer = call(request.into_inner());
        Box::pin(async { answer.await.map(Response::new) })
    }
}
