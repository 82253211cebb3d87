//! Bodies as they come in: read within a limit, parsed once into borrowed values.
//!
//! What is said of a bad body never repeats a value of it: it may be a secret.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::Request;
use base64_simd::{Out, STANDARD};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, EXPECT};
use http_body_util::BodyExt;
use serde::Deserialize;

use crate::keychain::message::Plaintext;
use crate::service::error::{Error, Kind};

/// The chain of a request with a raw body.
pub(super) const CHAIN_HEADER: &str = "kms-proxy-chain";
/// The AAD, in base64, of a request with a raw body.
pub(super) const AAD_HEADER: &str = "kms-proxy-aad";

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// `application/json`
    Json,
    /// `application/octet-stream`
    Octets,
}

impl Media {
    /// What `Content-Type` says, where either is taken.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Error> {
        Self::said(headers).ok_or_else(|| {
            unsupported("the content type must be application/json or application/octet-stream")
        })
    }

    fn said(headers: &HeaderMap) -> Option<Self> {
        headers.get(CONTENT_TYPE)?.to_str().ok().and_then(named)
    }

    /// What `Accept` asks for, else the same as what came in.
    pub(super) fn wanted(headers: &HeaderMap, came: Self) -> Self {
        let Some(accept) = headers.get(ACCEPT).and_then(|value| value.to_str().ok()) else {
            return came;
        };
        accept.split(',').find_map(named).unwrap_or(came)
    }
}

/// The bytes of a raw body, for the document alone.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "raw bodies need no type of their own")]
pub(super) struct Octets(Vec<u8>);

/// The kind that a media type with parameters names.
fn named(media_type: &str) -> Option<Media> {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Some(Media::Json)
    } else if essence.eq_ignore_ascii_case("application/octet-stream") {
        Some(Media::Octets)
    } else {
        None
    }
}

/// Reads a body that must be JSON.
pub(super) async fn read_json(request: Request, limit: usize) -> Result<Bytes, Error> {
    let (head, body) = request.into_parts();
    match Media::said(&head.headers) {
        Some(Media::Json) => read(&head.headers, body, limit).await,
        _ => Err(unsupported("the content type must be application/json")),
    }
}

/// Reads a whole body of at most `limit` bytes. One that came in one piece is not copied.
pub(super) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
) -> Result<Bytes, Error> {
    let declared = http_body::Body::size_hint(&body).exact();
    if declared.is_some_and(|len| len > limit as u64) {
        // Who expects to be told to go on has sent nothing yet; the first look at the body tells it.
        let waits = headers.contains_key(EXPECT);
        return Err(if waits { too_large(limit) } else { refuse_rest(body, limit).await });
    }
    let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
    if http_body::Body::is_end_stream(&body) && first.len() <= limit {
        return Ok(first);
    }
    let expected = declared.and_then(|len| usize::try_from(len).ok()).unwrap_or(2 * first.len());
    let mut whole = Vec::with_capacity(expected.min(limit));
    let mut piece = Some(first);
    while let Some(data) = piece {
        if data.len() > limit - whole.len() {
            return Err(refuse_rest(body, limit).await);
        }
        whole.extend_from_slice(&data);
        piece = next(&mut body).await?;
    }
    Ok(whole.into())
}

/// The next piece of data.
async fn next(body: &mut Body) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| invalid("the body ended early"))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Lets a client finish that sends a little too much, so that it reads the answer instead of a
/// broken connection.
async fn refuse_rest(mut body: Body, limit: usize) -> Error {
    let mut left = limit;
    while let Ok(Some(data)) = next(&mut body).await {
        match left.checked_sub(data.len()) {
            Some(rest) => left = rest,
            None => break,
        }
    }
    too_large(limit)
}

fn too_large(limit: usize) -> Error {
    Error::new(Kind::PayloadTooLarge, format!("the body has more than {limit} bytes"))
}

/// Parses `body` as the JSON object `T`. An empty body is an empty object.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        // Only a wrong body is worth the search for the place.
        let mut json = serde_json::Deserializer::from_slice(body);
        let place = serde_path_to_error::deserialize::<_, T>(&mut json).err();
        let path = place.map(|error| error.path().to_string()).unwrap_or_default();
        invalid(explain(&error, &path))
    })
}

/// What is wrong with a JSON body, and where. Of the body itself it shows a field's name at most.
fn explain(error: &serde_json::Error, path: &str) -> String {
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
    // The path ends in the field that is told of anyway.
    let path = path.strip_suffix(field).unwrap_or(path).trim_matches('.');
    if path.is_empty() {
        format!("{said} ({at})")
    } else {
        format!("{}: {said} ({at})", shown(path))
    }
}

/// The name in a complaint about an unknown field, and what follows it: "`, expected ...".
fn unknown_field(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix("unknown field `")?;
    // The name may hold anything, so the end is looked for from behind.
    let end = match text.strip_suffix("`, there are no fields") {
        Some(name) => name.len(),
        None => text.rfind("`, expected ")?,
    };
    Some(text.split_at(end))
}

/// Any other complaint: the field that it names itself, and the part of it that holds no value.
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

/// What may be repeated of a name from a body: 64 letters, digits and `_-.[]`.
fn shown(name: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric() || "_-.[]".contains(*c);
    let mut shown: String = name.chars().take_while(fits).take(64).collect();
    if shown.len() < name.len() {
        shown.push_str("...");
    }
    shown
}

/// A string that is borrowed from the body unless it has escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The bytes of standard base64.
pub(super) fn decode(field: &'static str, base64: &str) -> Result<Vec<u8>, Error> {
    STANDARD.decode_to_vec(base64).map_err(|_| not_base64(field))
}

/// The bytes of an optional field; none when it is missing.
pub(super) fn decode_aad(aad: Option<&Text<'_>>) -> Result<Vec<u8>, Error> {
    aad.map_or(Ok(Vec::new()), |aad| decode("aad", aad.as_str()))
}

/// Decodes base64 straight into the buffer that is sealed in place.
pub(super) fn decode_plaintext(base64: &str) -> Result<Plaintext, Error> {
    let len = STANDARD.decoded_length(base64.as_bytes()).map_err(|_| not_base64("plaintext"))?;
    let mut plaintext = Plaintext::zeroed(len);
    STANDARD
        .decode(base64.as_bytes(), Out::from_slice(plaintext.as_mut_slice()))
        .map_err(|_| not_base64("plaintext"))?;
    Ok(plaintext)
}

/// The chain and the AAD of a request with a raw body.
pub(super) fn raw_context(headers: &HeaderMap) -> Result<(Option<String>, Vec<u8>), Error> {
    let text = |name: &'static str| match headers.get(name).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text.to_owned())),
        Some(Err(_)) => Err(invalid(format!("the header {name} is not text"))),
    };
    let aad = text(AAD_HEADER)?.map_or(Ok(Vec::new()), |aad| decode(AAD_HEADER, &aad))?;
    Ok((text(CHAIN_HEADER)?, aad))
}

pub(super) fn invalid(detail: impl Into<Cow<'static, str>>) -> Error {
    Error::new(Kind::InvalidRequest, detail)
}

fn unsupported(detail: &'static str) -> Error {
    Error::new(Kind::UnsupportedMediaType, detail)
}

fn not_base64(field: &'static str) -> Error {
    invalid(format!("{field} is not base64"))
}
