//! Connections and streams: HTTP/2 on the socket, with room for all that kube-apiserver asks at
//! once when it starts, and an end that finishes what is in flight.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Response, Status};
use tonic_prost::ProstCodec;

use super::plugin::Plugin;
use super::socket::Bound;
use super::{STOP_TIMEOUT, proto};

/// Calls at once on one connection. kube-apiserver opens one, and may ask for thousands of seeds.
const MAX_STREAMS: u32 = 10_000;
/// Connections at once; a kube-apiserver has one or two.
const MAX_CONNECTIONS: usize = 128;
/// The longest message that is read: what is too long for a plaintext is told so, within reason.
const MAX_MESSAGE: usize = 256 << 10;
/// A peer that does not answer a ping within this time is gone.
const PING_EVERY: Duration = Duration::from_secs(60);
/// How long no connection is taken after the machine refused one: no file descriptors, most often.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is closed, then finishes what is in flight, and removes the socket.
pub(super) async fn run(
    bound: Bound,
    allowed_uids: Option<Vec<u32>>,
    plugin: Arc<Plugin>,
    mut stop: watch::Receiver<()>,
) {
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, bound.listener().accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            _ = stop.changed() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) if is_allowed(&stream, allowed_uids.as_deref()) => {
                let connection = serve(stream, Arc::clone(&plugin), graceful.watcher());
                tokio::spawn(async move {
                    // A client that goes away, or speaks something else, is no news.
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection of Kubernetes ended badly");
                    }
                    drop(permit);
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // From here on nobody finds the socket.
    drop(bound);
    if tokio::time::timeout(STOP_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("some calls of kube-apiserver were not done in time and are cut off");
    }
}

/// Whether the process at the other end may connect. The kernel says whose it is.
fn is_allowed(stream: &UnixStream, allowed_uids: Option<&[u32]>) -> bool {
    let Some(allowed) = allowed_uids else { return true };
    let uid = stream.peer_cred().map(|peer| peer.uid());
    let is_allowed = uid.as_ref().is_ok_and(|uid| allowed.contains(uid));
    if !is_allowed {
        tracing::warn!(
            uid = uid.ok(),
            "a process was refused: it is not of kubernetes.allowed_uids"
        );
    }
    is_allowed
}

/// Serves one connection; `graceful` ends it between two calls.
async fn serve(
    stream: UnixStream,
    plugin: Arc<Plugin>,
    graceful: Watcher,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let plugin = Arc::clone(&plugin);
        async move { Ok::<_, Infallible>(answer(plugin, request).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(PING_EVERY);
    graceful.watch(builder.serve_connection(TokioIo::new(stream), service)).await
}

/// Answers one call.
async fn answer(plugin: Arc<Plugin>, request: Request<Incoming>) -> http::Response<Body> {
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
