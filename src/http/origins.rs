//! Refuses requests that a web page in a browser could send, by their `Host` and `Origin`.
//!
//! It knows no caller and no route but those of simple health checkers.

use std::net::SocketAddr;

use axum::extract::Request;
use http::Version;
use http::header::{HOST, HeaderValue, ORIGIN};
use http::uri::Authority;

use crate::loopback::is_loopback_authority;
use crate::service::error::{Error, Kind};

/// Which `Host` and which `Origin` a listener accepts.
pub(super) struct Origins {
    /// Whether it listens on loopback alone: then `Host` must be loopback too, or a web page could
    /// reach it through a name that it controls (DNS rebinding).
    loopback: bool,
    /// Whether callers must authenticate, which a web page cannot do.
    has_auth: bool,
    /// The prefix of the `Origin` of the service's own pages.
    scheme: &'static str,
}

impl Origins {
    pub(super) fn new(listen: SocketAddr, is_tls: bool, has_auth: bool) -> Self {
        let scheme = if is_tls { "https://" } else { "http://" };
        Self { loopback: listen.ip().is_loopback(), has_auth, scheme }
    }

    /// Refuses requests that a web page in a browser on this machine could send.
    pub(super) fn check(&self, request: &Request) -> Result<(), Error> {
        let (headers, uri) = (request.headers(), request.uri());
        if is_simple_probe(request) {
            return Ok(());
        }
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().ok(),
            // HTTP/2 names it in the URI.
            (None, _) => uri.authority().map(Authority::as_str),
            _ => None,
        };
        let Some(host) = host else {
            return Err(Error::new(Kind::InvalidRequest, "the request has no valid Host"));
        };
        let named =
            uri.authority().is_none_or(|authority| is_loopback_authority(authority.as_str()));
        if self.loopback && !self.has_auth && !(named && is_loopback_authority(host)) {
            return Err(forbidden(
                "without authentication Host must be localhost or a loopback address",
            ));
        }
        let own = |origin: &HeaderValue| {
            let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix(self.scheme));
            origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host))
        };
        let mut origins = headers.get_all(ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => Ok(()),
            (Some(origin), None) if own(origin) => Ok(()),
            _ => Err(forbidden("requests from pages of other origins are refused")),
        }
    }
}

fn forbidden(detail: &'static str) -> Error {
    Error::new(Kind::Forbidden, detail)
}

/// Whether this is an HTTP/1.0 request for health or metrics without `Host`, as simple health
/// checkers send it: only HTTP/1.1 requires `Host` (RFC 9112, section 3.2). Browsers send `Host`
/// with every request, so no web page can make this one.
fn is_simple_probe(request: &Request) -> bool {
    let (headers, uri) = (request.headers(), request.uri());
    request.version() <= Version::HTTP_10
        && !headers.contains_key(HOST)
        && !headers.contains_key(ORIGIN)
        && uri.authority().is_none()
        && matches!(uri.path(), "/healthz" | "/readyz" | "/metrics")
}
