//! `GET /v1/backup`: a backup of the store, streamed.
//!
//! Its end is the end of a complete backup: if it fails, the connection is cut. It knows nothing of
//! the format.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body::Frame;

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
    let mut response = Response::new(Body::new(Streamed { backup, is_over: false }));
    let content_type = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}

/// The body of the response.
struct Streamed {
    backup: HotBackup,
    is_over: bool,
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
        self.backup.poll_next(context).map(|part| match part {
            Some(Part::Bytes(bytes)) => Some(Ok(Frame::data(bytes.into()))),
            Some(Part::End) => {
                self.is_over = true;
                None
            }
            None => {
                self.is_over = true;
                Some(Err(Incomplete))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

/// The backup failed; the log has the reason.
#[derive(Debug, thiserror::Error)]
#[error("the backup failed")]
struct Incomplete;
