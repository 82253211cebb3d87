//! Media types of bodies and responses, and the headers that go with a raw body.

use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::service::error::{Error, Kind};

/// The chain of a request with a raw body.
pub(super) const CHAIN_HEADER: HeaderName = HeaderName::from_static("kms-proxy-chain");
/// The AAD, in base64, of a request with a raw body.
pub(super) const AAD_HEADER: HeaderName = HeaderName::from_static("kms-proxy-aad");

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// `application/json`
    Json,
    /// `application/octet-stream`
    Octets,
}

impl Media {
    /// The type of a body that may be either. The headers of a raw body are refused with JSON: a
    /// caller that sends them expects them to take effect, and an AAD to be bound.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Error> {
        check_encoding(headers)?;
        let media = Self::declared(headers).ok_or_else(|| {
            unsupported("the content type must be application/json or application/octet-stream")
        })?;
        let raw = headers.contains_key(&AAD_HEADER) || headers.contains_key(&CHAIN_HEADER);
        if media == Self::Json && raw {
            return Err(Error::new(
                Kind::InvalidRequest,
                "kms-proxy-aad and kms-proxy-chain go with application/octet-stream; JSON has the \
                 fields aad and chain",
            ));
        }
        Ok(media)
    }

    /// The type that `Content-Type` declares.
    pub(super) fn declared(headers: &HeaderMap) -> Option<Self> {
        one(headers, &CONTENT_TYPE)?.to_str().ok().and_then(named)
    }

    /// The type that `Accept` requests, else that of the body.
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

/// The type that a media type with parameters names.
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

/// Refuses a body that is compressed: its bytes are not those that the caller means.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Error> {
    let plain = |value: &HeaderValue| {
        let mut codings = value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
    };
    if headers.get_all(CONTENT_ENCODING).iter().all(plain) {
        return Ok(());
    }
    Err(unsupported("content-encoding must be identity or left out: send the body uncompressed"))
}

/// The value of a header that is there once. Of two, another program might heed the other.
pub(super) fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

pub(super) fn unsupported(detail: &'static str) -> Error {
    Error::new(Kind::UnsupportedMediaType, detail)
}
