//! Serves one connection: HTTP/1.1, or HTTP/2 if TLS negotiated it.
//!
//! It closes a connection that is idle, or whose client does not read its responses. The gate has
//! the deadlines of requests.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{CONNECTION, EXPECT, HeaderValue};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::tls::peer::Peer;

use super::activity::{Activity, Over, UnderWay};
use super::gate::{Gate, NoRoom, size};
use super::heads::{Counted, FREE, MAX_FIELDS, MAX_HEAD};
use super::paced::{Cut, Paced, Streaming};

mod bodies;
mod requests;

use bodies::{Coming, Outgoing};
use requests::Requests;

/// How long an idle connection may take to close.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Concurrent requests on an HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// Flow-control windows in bytes. That of a stream is the larger part of the memory of a stream of
/// any length; that of a connection lets others continue while some wait for their clients.
const WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 4 * WINDOW;

/// Serves `stream` until it ends, or `stop` becomes true.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_http_2: bool,
    peer: Option<Arc<Peer>>,
    gate: Gate,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), hyper::Error> {
    let activity = Arc::new(Activity::new(gate.idle_timeout()));
    let seen = Arc::clone(&activity);
    let budget = gate.budget().clone();
    let (requests, cut) = (Requests::default(), Cut::default());
    let (runner, connection_cut) = (requests.clone(), cut.clone());
    let io = TokioIo::new(Counted::new(stream, Arc::clone(&activity), budget.clone(), !is_http_2));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (gate, activity, budget) = (gate.clone(), Arc::clone(&activity), budget.clone());
        if let Some(peer) = &peer {
            request.extensions_mut().insert(Arc::clone(peer));
        }
        // HTTP/2 does not keep the buffer of a head.
        let head = if is_http_2 { 0 } else { size(&request) };
        // Now, and not when the future is polled: what is read next is no head any more.
        activity.note_head(head);
        let under_way = UnderWay::begin(Arc::clone(&activity));
        let coming = UnderWay::begin(activity);
        let cut = if is_http_2 { requests.begin() } else { cut.clone() };
        async move {
            if request.headers().len() > MAX_FIELDS {
                drop(request);
                let mut refused = Response::new(Outgoing::new(Body::empty(), None, under_way));
                *refused.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                return Ok(refused);
            }
            let expects = !is_http_2 && request.headers().contains_key(EXPECT);
            let request =
                request.map(|body| Body::new(Coming::new(body, is_http_2, expects, coming)));
            let (mut answer, held) = gate.pass(request).await?;
            // An open connection would keep the memory of its head, which others need.
            if head > FREE && budget.is_scarce() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if let Some(streaming) = answer.extensions_mut().remove::<Streaming>() {
                let paced = |body| Paced::new(body, streaming, under_way, cut);
                return Ok(answer.map(|body| Outgoing::Streamed(paced(body))));
            }
            Ok::<_, NoRoom>(answer.map(|body| Outgoing::new(body, held, under_way)))
        }
    });
    if is_http_2 {
        let mut builder = http2::Builder::new(runner);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(WINDOW as usize);
        drive(builder.serve_connection(io, service), &seen, &connection_cut, stop).await
    } else {
        let mut builder = http1::Builder::new();
        // The timer of hyper would be reset for each request.
        builder.header_read_timeout(None).max_header_size(MAX_HEAD).max_buf_size(MAX_HEAD);
        drive(builder.serve_connection(io, service), &seen, &connection_cut, stop).await
    }
}

/// Runs a connection, and ends it between two requests when it is time.
async fn drive<C>(
    connection: C,
    activity: &Activity,
    cut: &Cut,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), hyper::Error>
where
    C: GracefulConnection<Error = hyper::Error>,
{
    let mut connection = pin!(connection);
    let over = tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        // The sender outlives all connections.
        _ = stop.wait_for(|stop| *stop) => None,
        over = activity.is_over() => Some(over),
        () = cut.is_due() => Some(Over::NotTaken),
    };
    if over == Some(Over::NotTaken) {
        return Ok(());
    }
    connection.as_mut().graceful_shutdown();
    let late = async {
        match over {
            Some(_) => tokio::time::sleep(END_TIMEOUT).await,
            // The shutdown has its own deadline.
            None => _ = activity.is_over().await,
        }
    };
    tokio::select! {
        biased;
        ended = connection => ended,
        () = late => Ok(()),
        () = cut.is_due() => Ok(()),
    }
}
