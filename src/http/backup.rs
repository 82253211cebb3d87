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
/// The answer is a file for `kms-proxy store copy` and `store verify`, in lines of JSON; the last
/// one is a checksum. It contains wrapped KEKs alone. It takes the permission `manage` with all
/// chains. If it fails on the way, the connection is cut, and the last line is missing.
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
