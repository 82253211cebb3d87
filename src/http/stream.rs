//! `POST /v1/stream/encrypt` and `/v1/stream/decrypt`: bodies of any length, in constant memory.
//!
//! The response begins when the start of the stream is verified, so an error before that is an
//! ordinary one. Later the only way to report a failure is to abort the response. This file owns
//! the start; [`transfer`] owns the rest.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;

use crate::cobblestone::{self, Opener, PREFIX_LEN, SEALED_CHUNK_LEN, Sealer};
use crate::envelope::{Header, Malformed};
use crate::id::{ChainName, KekId};
use crate::metrics::Operation;
use crate::service::KeyService;
use crate::service::error::{Error, Kind};
use crate::service::streams::{OpenedStream, SealedStream};

use super::App;
use super::answer;
use super::body;
use super::media::{self, Media, Octets};
use super::paced::Streaming;
use super::problem::{Problem, ProblemBody};

mod cipher;
mod limits;
mod report;
mod transfer;
mod upload;

use cipher::{Cipher, Opening, Sealing};
pub(super) use limits::Limits;
use report::Report;
use transfer::Transfer;
use upload::Upload;

/// Encrypts a body of any length under a fresh DEK.
///
/// The body is the plaintext, and the response is a binary envelope of version 3, or 4 if the KEK
/// is inline. Chain and AAD are in the headers `kms-proxy-chain` and `kms-proxy-aad` (base64). The
/// response begins while the body is still sent: read it at the same time. If it ends early, the
/// envelope is incomplete and does not open.
#[utoipa::path(post, path = "/v1/stream/encrypt", operation_id = "stream_encrypt", tag = "data",
    params(
        ("kms-proxy-chain" = Option<String>, Header, description = "The key chain."),
        ("kms-proxy-aad" = Option<String>, Header, description = "The AAD, in base64."),
    ),
    request_body(content = Octets, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "The envelope.", body = Octets,
            content_type = "application/octet-stream"),
        ProblemBody,
    ))]
pub(super) async fn encrypt(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Problem> {
    let Begun { service, chain, aad, held, mut upload } =
        Begun::new(&app, request, Operation::Encrypt)?;
    let len = upload.len;
    let sealed = len.map(|len| cobblestone::sealed_len(len).ok_or_else(too_long)).transpose()?;
    // A client that waits for "100 Continue" gets it before the response begins.
    upload.read().await?;
    let SealedStream { head: start, key, chain, kek_id } =
        service.on(chain.as_deref()).seal_stream(&aad, len).await?;
    let header_len = (start.len() - PREFIX_LEN) as u64;
    let (log, metrics) = (&app.streams.log, service.metrics());
    let report = Report::new(log, metrics, Operation::Encrypt, &chain, kek_id, &held);
    let left = sealed.map(|sealed| header_len + sealed);
    let cipher = Some(Sealing(Sealer::new(key)));
    let transfer = Transfer::new(start.into(), cipher, left, upload, report);
    Ok(respond(transfer, held, &chain, kek_id))
}

/// Decrypts an envelope of any length, of version 3 or 4.
///
/// The body is the binary envelope, and the response is the plaintext. Chain and AAD are in the
/// headers `kms-proxy-chain` and `kms-proxy-aad` (base64). Status 200 means that the header and the
/// first 16 KiB are verified; every byte of the response is. If a later part does not verify, or
/// the envelope was cut, the response ends without its end: a client must treat a response that is
/// aborted as a failure.
#[utoipa::path(post, path = "/v1/stream/decrypt", operation_id = "stream_decrypt", tag = "data",
    params(
        ("kms-proxy-chain" = Option<String>, Header, description = "The key chain."),
        ("kms-proxy-aad" = Option<String>, Header, description = "The AAD, in base64."),
    ),
    request_body(content = Octets, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "The plaintext.", body = Octets,
            content_type = "application/octet-stream"),
        ProblemBody,
    ))]
pub(super) async fn decrypt(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Problem> {
    let Begun { service, chain, aad, held, mut upload } =
        Begun::new(&app, request, Operation::Decrypt)?;
    let start = read_start(&mut upload).await?;
    let OpenedStream { first, len, key, chain, kek_id } =
        service.on(chain.as_deref()).open_stream(&start, &aad, upload.len).await?;
    let is_whole = first.len() < cobblestone::CHUNK_LEN;
    let (log, metrics) = (&app.streams.log, service.metrics());
    let report = Report::new(log, metrics, Operation::Decrypt, &chain, kek_id, &held);
    let left = if is_whole { Some(first.len() as u64) } else { len };
    let cipher = (!is_whole).then(|| Opening(Opener::from_chunk(key, 1)));
    let transfer = Transfer::new(Bytes::from_owner(first), cipher, left, upload, report);
    Ok(respond(transfer, held, &chain, kek_id))
}

/// What both calls begin with: a caller that may make the call, and room for a stream.
struct Begun<'a> {
    service: &'a KeyService,
    chain: Option<String>,
    aad: Vec<u8>,
    held: Streaming,
    upload: Upload,
}

impl<'a> Begun<'a> {
    fn new(app: &'a App, request: Request, operation: Operation) -> Result<Self, Error> {
        let (head, body) = request.into_parts();
        check_type(&head.headers)?;
        let (chain, aad) = body::raw_context(&head.headers)?;
        let caller = app.access.caller(&head.extensions)?;
        let service = app.access.enter(&caller, operation, chain.as_deref())?;
        let held = app.streams.enter(&app.budget)?;
        Ok(Self { service, chain, aad, held, upload: Upload::new(body, app.streams.idle_timeout) })
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), Error> {
    media::check_encoding(headers)?;
    match Media::declared(headers) {
        Some(Media::Octets) => Ok(()),
        _ => Err(media::unsupported("the content type must be application/octet-stream")),
    }
}

fn too_long() -> Error {
    Error::new(Kind::PayloadTooLarge, "a stream has at most 2^52 - 1 bytes")
}

/// Reads header, prefix and first chunk. What follows stays in `upload`. If the envelope ends
/// before, or does not begin as one, it is what came of it.
async fn read_start(upload: &mut Upload) -> Result<Vec<u8>, Error> {
    let mut start = Vec::new();
    loop {
        let known = match Header::len_from(&start) {
            Ok(len) => len,
            Err(Malformed::Version) => {
                // The text form is public, so the error can name it.
                body::check_raw_envelope(&[&*start, &*upload.piece].concat())?;
                return Ok(start);
            }
            Err(_) => return Ok(start),
        };
        let is_header = known <= start.len();
        let needed = if is_header { known + PREFIX_LEN + SEALED_CHUNK_LEN } else { known };
        if start.len() >= needed {
            return Ok(start);
        }
        upload.read().await?;
        if upload.piece.is_empty() {
            return Ok(start);
        }
        let taken = upload.take(needed - start.len());
        start.extend_from_slice(&taken);
    }
}

fn respond<C: Cipher>(
    transfer: Transfer<C>,
    held: Streaming,
    chain: &ChainName,
    kek_id: KekId,
) -> Response {
    let mut response = answer::raw(Body::new(transfer), chain, kek_id);
    response.extensions_mut().insert(held);
    response
}
