//! Request bodies: read within a limit, parsed once into borrowed values.
//!
//! Error messages never quote the body: it may contain a secret.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::Request;
use base64_simd::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body_util::BodyExt;
use serde::Deserialize;

use crate::envelope;
use crate::json::Encoded;
use crate::keychain::message::Plaintext;
use crate::service::error::{Error, Kind};

use super::base64;
use super::budget::{Budget, Held};
use super::media::{self, AAD_HEADER, CHAIN_HEADER, Media, one};
use super::strict::Strict;

/// The limits of a body.
#[derive(Clone, Copy)]
pub(super) struct Limit<'a> {
    /// Bytes.
    pub(super) len: usize,
    /// The budget that it is charged to.
    pub(super) budget: &'a Budget,
}

/// Reads a body that must be JSON.
pub(super) async fn read_json(request: Request, limit: Limit<'_>) -> Result<Bytes, Error> {
    let (head, body) = request.into_parts();
    media::check_encoding(&head.headers)?;
    match Media::declared(&head.headers) {
        Some(Media::Json) => read(body, limit).await,
        _ => Err(media::unsupported("the content type must be application/json")),
    }
}

/// Reads a body of at most `limit.len` bytes. A body that arrives in one piece is not copied.
pub(super) async fn read(body: Body, limit: Limit<'_>) -> Result<Bytes, Error> {
    Ok(match read_with_room(body, limit, (0, 0)).await? {
        Content::Piece(bytes) => bytes,
        Content::Whole(whole) => Bytes::from_owner(whole),
    })
}

/// The same. If the body arrives in pieces, its buffer has so many bytes before it, all zero, and
/// capacity for so many behind it, so that it can be sealed where it is.
pub(super) async fn read_with_room(
    mut body: Body,
    limit: Limit<'_>,
    (before, behind): (usize, usize),
) -> Result<Content, Error> {
    let declared = http_body::Body::size_hint(&body).exact();
    if declared.is_some_and(|len| len > limit.len as u64) {
        return Err(too_large(limit.len));
    }
    let Some(first) = next(&mut body).await? else { return Ok(Content::Piece(Bytes::new())) };
    if http_body::Body::is_end_stream(&body) && first.len() <= limit.len {
        return Ok(Content::Piece(first));
    }
    let expected = declared.and_then(|len| usize::try_from(len).ok()).unwrap_or(limit.len);
    let mut whole = Whole { bytes: Vec::new(), before, held: None };
    let mut piece = Some(first);
    while let Some(data) = piece {
        if data.len() > limit.len - whole.len() {
            return Err(too_large(limit.len));
        }
        if !whole.push(&data, before + expected + behind, behind, limit.budget) {
            return Err(Error::new(Kind::Overloaded, "there is no room for the body now"));
        }
        piece = next(&mut body).await?;
    }
    Ok(Content::Whole(whole))
}

/// A body that was read.
pub(super) enum Content {
    /// It arrived in one piece.
    Piece(Bytes),
    /// It arrived in several.
    Whole(Whole),
}

impl Content {
    /// Takes it as a plaintext, for which [`Plaintext::ROOM`] was left. What it is charged with
    /// stays.
    pub(super) fn take_plaintext(&mut self) -> Plaintext {
        match self {
            Self::Piece(bytes) => (&*std::mem::take(bytes)).into(),
            Self::Whole(whole) => Plaintext::in_buffer(whole.take()),
        }
    }

    /// Takes the bytes, for which no room was left.
    pub(super) fn take_bytes(&mut self) -> Vec<u8> {
        match self {
            Self::Piece(bytes) => std::mem::take(bytes).into(),
            Self::Whole(whole) => whole.take(),
        }
    }
}

impl std::ops::Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Piece(bytes) => bytes,
            Self::Whole(whole) => whole.as_ref(),
        }
    }
}

/// A body that arrived in pieces.
pub(super) struct Whole {
    bytes: Vec<u8>,
    /// How many bytes there are before it.
    before: usize,
    held: Option<Held>,
}

/// The smallest buffer of a body in pieces.
const FIRST_ROOM: usize = 64 << 10;

impl Whole {
    /// The length of the body so far.
    fn len(&self) -> usize {
        self.bytes.len().saturating_sub(self.before)
    }

    /// The buffer, with what is before the body.
    fn take(&mut self) -> Vec<u8> {
        self.before = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Adds a piece of a body whose buffer has about `expected` bytes in the end, and capacity for
    /// `behind` bytes behind the body; false when the budget has no room for it.
    fn push(&mut self, data: &[u8], expected: usize, behind: usize, budget: &Budget) -> bool {
        let len = self.bytes.len().max(self.before).saturating_add(data.len() + behind);
        if len > self.bytes.capacity() {
            // The buffer grows fourfold: only senders get memory, and little is copied.
            let room = len.saturating_mul(4).max(FIRST_ROOM).min(expected).max(len);
            let has_room = match &mut self.held {
                Some(held) => held.grow(room),
                none => {
                    *none = budget.take(room);
                    none.is_some()
                }
            };
            if !has_room {
                return false;
            }
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        if self.bytes.is_empty() {
            self.bytes.resize(self.before, 0);
        }
        self.bytes.extend_from_slice(data);
        true
    }
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.before..).unwrap_or_default()
    }
}

/// The next piece of data.
pub(super) async fn next(body: &mut Body) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| invalid("the body ended early"))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

fn too_large(limit: usize) -> Error {
    Error::new(Kind::PayloadTooLarge, format!("the body has more than {limit} bytes"))
}

/// Parses `body` as the JSON object `T`. An empty body is an empty object.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map(|Strict(value)| value).map_err(|error| {
        // The position is determined only for an invalid body.
        let mut json = serde_json::Deserializer::from_slice(body);
        let place = serde_path_to_error::deserialize::<_, Strict<T>>(&mut json).err();
        let path = place.map(|error| error.path().to_string()).unwrap_or_default();
        invalid(explain(&error, &path, body))
    })
}

/// Describes what is wrong with a JSON body, and where. It quotes at most a field's name.
fn explain(error: &serde_json::Error, path: &str, body: &[u8]) -> String {
    if let [0xef, 0xbb, 0xbf, ..] | [0xfe, 0xff, ..] | [0xff, 0xfe, ..] = body {
        return "the body starts with a byte order mark: send JSON as UTF-8 without one".to_owned();
    }
    let at = format!("line {}, column {}", error.line(), error.column());
    if !error.is_data() {
        return format!("the body is not JSON: see {at}");
    }
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(&*text, |(said, _)| said);
    let (field, said) = match unknown_field(text) {
        Some((name, rest)) => (name, format!("unknown field `{}{rest}", shown(name))),
        None => known_field(text),
    };
    // The path ends in the field that the message names anyway.
    let path = path.strip_suffix(field).unwrap_or(path).trim_matches('.');
    if path.is_empty() {
        format!("{said} ({at})")
    } else {
        format!("{}: {said} ({at})", shown(path))
    }
}

/// The name in an error about an unknown field, and the rest of the error: "`, expected ...".
fn unknown_field(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix("unknown field `")?;
    // The name may contain anything, so the end is searched from the right.
    let end = match text.strip_suffix("`, there are no fields") {
        Some(name) => name.len(),
        None => text.rfind("`, expected ")?,
    };
    Some(text.split_at(end))
}

/// Any other error: the field that it names, and the part of it that contains no value.
fn known_field(text: &str) -> (&str, String) {
    if text.starts_with("missing field") {
        return ("", text.to_owned());
    }
    if let Some(field) = text.strip_prefix("duplicate field `") {
        return (field.trim_end_matches('`'), text.to_owned());
    }
    let expected = match text.rsplit_once(", expected ") {
        Some((_, "usize" | "u64")) => "a whole number",
        Some((_, object)) if object.starts_with("struct ") => "an object",
        Some((_, list)) if list.starts_with("a sequence") => "a list",
        Some((_, other)) => other,
        None => "a value of another type",
    };
    ("", format!("expected {expected}"))
}

/// The part of a name that an error may quote: up to 64 letters, digits and `_-.[]`.
fn shown(name: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric() || "_-.[]".contains(*c);
    let mut shown: String = name.chars().take_while(fits).take(64).collect();
    if shown.len() < name.len() {
        shown.push_str("...");
    }
    shown
}

/// The bytes of standard base64.
pub(super) fn decode(field: &'static str, base64: &[u8]) -> Result<Vec<u8>, Error> {
    STANDARD.decode_to_vec(base64).map_err(|_| not_base64(field, base64))
}

/// The bytes of an optional field; none when it is missing.
pub(super) fn decode_aad(aad: Option<&Encoded<'_>>) -> Result<Vec<u8>, Error> {
    aad.map_or(Ok(Vec::new()), |aad| decode("aad", aad.as_bytes()))
}

/// Decodes base64 straight into the buffer that is sealed in place.
pub(super) fn decode_plaintext(base64: &Encoded<'_>) -> Result<Plaintext, Error> {
    let base64 = base64.as_bytes();
    let len = STANDARD.decoded_length(base64).map_err(|_| not_base64("plaintext", base64))?;
    Plaintext::appended(len, |buffer| STANDARD.decode_append(base64, buffer))
        .map_err(|_| not_base64("plaintext", base64))
}

/// The envelope in a field `ciphertext`. The text form is public, so the error can say what is
/// wrong with it; of the envelope inside it says nothing.
pub(super) fn decode_envelope(text: &Encoded<'_>) -> Result<Vec<u8>, Error> {
    let text = text.as_bytes();
    envelope::from_text(text).map_err(|_| {
        match text.strip_prefix(envelope::TEXT_PREFIX.as_bytes()) {
            None => {
                invalid_text("ciphertext does not start with kp:, as the text form does".to_owned())
            }
            Some(base64) => {
                let fault = base64::fault(base64);
                invalid_text(format!("what follows kp: in ciphertext is not base64: {fault}"))
            }
        }
    })
}

/// Refuses the text form of an envelope as a raw body.
pub(super) fn check_raw_envelope(body: &[u8]) -> Result<(), Error> {
    if !body.starts_with(envelope::TEXT_PREFIX.as_bytes()) {
        return Ok(());
    }
    Err(invalid_text(
        "the body is an envelope in its text form (kp:), which belongs into JSON; a raw body is \
         the binary envelope: the decoded base64 after kp:"
            .to_owned(),
    ))
}

fn invalid_text(detail: String) -> Error {
    Error::new(Kind::InvalidCiphertext, detail)
}

/// The chain and the AAD of a request with a raw body.
pub(super) fn raw_context(headers: &HeaderMap) -> Result<(Option<String>, Vec<u8>), Error> {
    let text = |name: &HeaderName| match one(headers, name).map(|value| value.to_str()) {
        None if headers.contains_key(name) => {
            Err(invalid(format!("the header {name} is there more than once")))
        }
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text.to_owned())),
        Some(Err(_)) => Err(invalid(format!("the header {name} is not text"))),
    };
    let aad =
        text(&AAD_HEADER)?.map_or(Ok(Vec::new()), |aad| decode("kms-proxy-aad", aad.as_bytes()))?;
    Ok((text(&CHAIN_HEADER)?, aad))
}

pub(super) fn invalid(detail: impl Into<Cow<'static, str>>) -> Error {
    Error::new(Kind::InvalidRequest, detail)
}

fn not_base64(field: &'static str, text: &[u8]) -> Error {
    invalid(format!("{field} is not base64: {}", base64::fault(text)))
}
