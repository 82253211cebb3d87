//! `POST /v1/stream/encrypt` and `/v1/stream/decrypt`: bodies of any length, in constant memory.
//!
//! The response begins when the start of the stream is verified, so an error before that is an
//! ordinary one. Later the only way to report a failure is to abort the response. This file owns
//! the start; [`moving`] moves the rest.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Version};
use tokio::sync::Semaphore;

use crate::cobblestone::{self, Opener, PREFIX_LEN, SEALED_CHUNK_LEN, Sealer};
use crate::envelope::{Header, Malformed};
use crate::id::{ChainName, KekId};
use crate::log_throttle::LogThrottle;
use crate::metrics::Operation;
use crate::service::error::{Error, Kind};
use crate::service::streams::{OpenedStream, SealedStream};

use super::App;
use super::answer;
use super::body;
use super::budget::Budget;
use super::media::{self, Media, Octets};
use super::paced::Streaming;
use super::problem::{Problem, ProblemBody};

mod moving;

use moving::{Cipher, Coming, Moving, Opening, Report, Sealing};

/// The memory of a stream: what is read ahead of it, one chunk, and what is not sent yet. The
/// window of HTTP/2 is larger than the buffers of HTTP/1.1.
const MEMORY: usize = 256 << 10;
const MEMORY_HTTP_2: usize = 384 << 10;
/// Lines per second about streams that failed.
const LINES_A_SECOND: u32 = 10;

/// The limits of streams, over all connections.
pub(super) struct Streams {
    places: Arc<Semaphore>,
    idle_timeout: Duration,
    log: LogThrottle,
}

impl Streams {
    pub(super) fn new(max_streams: usize, idle_timeout: Duration) -> Self {
        let log = LogThrottle::new(LINES_A_SECOND, Duration::from_secs(1));
        Self { places: Arc::new(Semaphore::new(max_streams)), idle_timeout, log }
    }

    /// Takes the place of a stream, and its part of the budget.
    fn enter(&self, version: Version, budget: &Budget) -> Result<Streaming, Error> {
        let overloaded = |detail| Error::new(Kind::Overloaded, detail);
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| overloaded("too many streams are under way"))?;
        let memory = if version < Version::HTTP_2 { MEMORY } else { MEMORY_HTTP_2 };
        let memory = budget.take(memory);
        let memory = memory.ok_or_else(|| overloaded("there is no room for a stream now"))?;
        let held = Streaming::default();
        held.hold((place, memory));
        Ok(held)
    }
}

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
    let (head, body) = request.into_parts();
    check_type(&head.headers)?;
    let (chain, aad) = body::raw_context(&head.headers)?;
    let caller = app.access.caller(&head.extensions)?;
    let service = app.access.enter(&caller, Operation::Encrypt, chain.as_deref())?;
    let held = app.streams.enter(head.version, &app.budget)?;
    let mut coming = Coming::new(body, app.streams.idle_timeout);
    let len = coming.len;
    let sealed = len.map(|len| cobblestone::sealed_len(len).ok_or_else(too_long)).transpose()?;
    // A client that waits for "100 Continue" gets it before the response begins.
    coming.read().await?;
    let SealedStream { head: start, key, chain, kek_id } =
        service.seal_stream(chain.as_deref(), &aad, len).await?;
    let header_len = (start.len() - PREFIX_LEN) as u64;
    let report = Report::new(&app, service.metrics(), Operation::Encrypt, &chain, kek_id, &held);
    let left = sealed.map(|sealed| header_len + sealed);
    let cipher = Some(Sealing(Sealer::new(key)));
    let moving = Moving::new(start.into(), cipher, left, coming, report);
    Ok(respond(moving, held, &chain, kek_id))
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
    let (head, body) = request.into_parts();
    check_type(&head.headers)?;
    let (chain, aad) = body::raw_context(&head.headers)?;
    let caller = app.access.caller(&head.extensions)?;
    let service = app.access.enter(&caller, Operation::Decrypt, chain.as_deref())?;
    let held = app.streams.enter(head.version, &app.budget)?;
    let mut coming = Coming::new(body, app.streams.idle_timeout);
    let (start, header_len) = read_start(&mut coming).await?;
    let opened = coming.len.map(|len| opened_len(len, header_len)).transpose()?;
    let OpenedStream { first, key, chain, kek_id } =
        service.open_stream(chain.as_deref(), &start, &aad, opened).await?;
    let is_whole = first.len() < cobblestone::CHUNK_LEN;
    let report = Report::new(&app, service.metrics(), Operation::Decrypt, &chain, kek_id, &held);
    let left = if is_whole { Some(first.len() as u64) } else { opened };
    let cipher = (!is_whole).then(|| Opening(Opener::from_chunk(key, 1)));
    let moving = Moving::new(Bytes::from_owner(first), cipher, left, coming, report);
    Ok(respond(moving, held, &chain, kek_id))
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

/// Reads header, prefix and first chunk; also gives the length of the header. What follows stays in
/// `coming`. If the envelope ends before, it is all there is of it.
async fn read_start(coming: &mut Coming) -> Result<(Vec<u8>, u64), Error> {
    let mut start = Vec::new();
    loop {
        let known = match Header::len_from(&start) {
            Ok(len) => len,
            Err(Malformed::Version) => {
                // The text form is public, so the error can name it.
                body::check_raw_envelope(&[&*start, &*coming.piece].concat())?;
                return Err(Error::invalid_ciphertext());
            }
            Err(_) => return Err(Error::invalid_ciphertext()),
        };
        let is_header = known <= start.len();
        let needed = if is_header { known + PREFIX_LEN + SEALED_CHUNK_LEN } else { known };
        if start.len() >= needed {
            return Ok((start, known as u64));
        }
        coming.read().await?;
        if coming.piece.is_empty() {
            return if is_header {
                Ok((start, known as u64))
            } else {
                Err(Error::invalid_ciphertext())
            };
        }
        let taken = coming.take(needed - start.len());
        start.extend_from_slice(&taken);
    }
}

/// The length of the plaintext of an envelope of `len` bytes.
fn opened_len(len: u64, header_len: u64) -> Result<u64, Error> {
    let payload = len.checked_sub(header_len).ok_or_else(Error::invalid_ciphertext)?;
    cobblestone::opened_len(payload).map_err(|_| Error::invalid_ciphertext())
}

fn respond<C: Cipher>(
    moving: Moving<C>,
    held: Streaming,
    chain: &ChainName,
    kek_id: KekId,
) -> Response {
    let mut response = answer::raw(Body::new(moving), chain, kek_id);
    response.extensions_mut().insert(held);
    response
}
