//! `GET /v1/backup`: a backup of the store, streamed.
//!
//! Its end is the end of a complete backup: if it fails, the connection is cut. The audit log has a
//! line before the first byte, and one before the end. It knows nothing of the format.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use tokio::runtime::Handle;

use crate::audit::{Event, Record, Request, record};
use crate::metrics::Operation;
use crate::service::backup::{HotBackup, Part};

use super::App;
use super::identity::Caller;
use super::problem::{Problem, ProblemBody};

/// Backs up the store of the running service.
///
/// The response is a file for `kms-proxy store copy` and `store verify`, in lines of JSON. It
/// contains KEKs only as they are wrapped by the roots. Its last line is a checksum: without it the
/// backup is incomplete and refused. If the service fails to complete it, it cuts the connection.
///
/// The caller needs the permission `manage` for all chains. A process makes one backup at a time,
/// and ends one whose client takes no data for a minute, or that takes longer than an hour.
#[utoipa::path(get, path = "/v1/backup", tag = "operations",
    responses(
        (status = 200, description = "The backup.", body = String,
            content_type = "application/x-ndjson"),
        ProblemBody,
    ))]
pub(super) async fn backup(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Response, Problem> {
    let backup = app.access.enter_to_back_up(&caller)?.backup().await?;
    report(None, "started", record::OK);
    let record = record::current().map(|record| record.continued());
    let streamed = Streamed { backup, is_over: false, record, ending: None };
    let mut response = Response::new(Body::new(streamed));
    let content_type = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}

/// The outcome of a backup that was not sent to its end.
const ABORTED: &str = "aborted";

/// Reports a backup to `record`, or to the record of the current request.
fn report(record: Option<&Record>, state: &'static str, outcome: &'static str) {
    let event = Event {
        operation: Some(Operation::Manage),
        outcome,
        change: &[("call", &"backup"), ("state", &state)],
        ..Event::default()
    };
    match record {
        Some(record) => record.add(&event),
        None => record::report(&event),
    }
}

/// Waits for the line about the end; false if there can be none.
type Ending = Pin<Box<dyn Future<Output = bool> + Send>>;

/// The body of the response.
struct Streamed {
    backup: HotBackup,
    is_over: bool,
    /// Of the end, until it is reported.
    record: Option<Arc<Record>>,
    /// All was sent, and the line about it is being written.
    ending: Option<Ending>,
}

impl Streamed {
    /// Reports the end.
    fn end(&mut self, state: &'static str, outcome: &'static str) -> Option<Ending> {
        let record = self.record.take()?;
        report(Some(&record), state, outcome);
        Some(Box::pin(async move { record.end(Request::default()).await.is_ok() }))
    }
}

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if self.ending.is_none() {
            match ready!(self.backup.poll_next(context)) {
                Some(Part::Bytes(bytes)) => {
                    return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
                }
                Some(Part::End) => self.ending = self.end("completed", record::OK),
                None => {
                    self.is_over = true;
                    return Poll::Ready(Some(Err(Incomplete)));
                }
            }
        }
        let is_written = match &mut self.ending {
            Some(ending) => ready!(ending.as_mut().poll(context)),
            None => true,
        };
        self.is_over = true;
        Poll::Ready((!is_written).then_some(Err(Incomplete)))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // Without a line so far, it failed, or the client has left.
        if let (Some(ending), Ok(runtime)) = (self.end("aborted", ABORTED), Handle::try_current()) {
            runtime.spawn(ending);
        }
    }
}

/// The backup failed; the log has the reason.
#[derive(Debug, thiserror::Error)]
#[error("the backup failed")]
struct Incomplete;
