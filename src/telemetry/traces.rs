//! `[traces]` of the configuration, and the spans of requests: which requests have one, and what it
//! says. It does not know how spans are exported.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Method, Uri};
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing::field::Empty;

use crate::trace_context::TraceContext;

use super::otlp;

/// `[traces]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where spans are sent: the URL of a collector that takes OTLP over HTTP (protobuf), with its
    /// path, and without a user, a password and a query. Without it there are no traces.
    pub endpoint: Option<String>,
    /// The part of the requests without `traceparent` that is recorded, from 0 to 1.
    pub sample_ratio: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { endpoint: None, sample_ratio: 0.01 }
    }
}

impl Config {
    /// Checks the settings.
    ///
    /// # Errors
    /// The key of a setting, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if let Some(endpoint) = &self.endpoint {
            check_endpoint(endpoint).map_err(|what| ("endpoint", what))?;
            otlp::is_built().map_err(|why| ("endpoint", why))?;
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(("sample_ratio", "must be a number from 0 to 1"));
        }
        Ok(())
    }
}

/// Checks the URL of a collector. Errors do not repeat it, since it may contain a password.
fn check_endpoint(endpoint: &str) -> Result<(), &'static str> {
    const FORM: &str = "must be a URL such as http://127.0.0.1:4318/v1/traces";
    let uri = endpoint.parse::<Uri>().map_err(|_| FORM)?;
    let authority = uri.authority().ok_or(FORM)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
        return Err(FORM);
    }
    if authority.as_str().contains('@') {
        return Err(
            "must have no user and no password; OTEL_EXPORTER_OTLP_HEADERS has credentials",
        );
    }
    if uri.query().is_some() || endpoint.contains('#') {
        return Err("must have no query and no fragment");
    }
    // `http` also accepts a host with a colon and no number behind it, or one that is too large.
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    if !port.is_empty() && authority.port_u16().is_none_or(|port| port == 0) {
        return Err("must have a port from 1 to 65535, or none");
    }
    Ok(())
}

/// Set when spans are exported.
static SAMPLER: OnceLock<Sampler> = OnceLock::new();

/// Selects requests at even distances: `sum` overflows once for each request that is recorded.
struct Sampler {
    step: u64,
    sum: AtomicU64,
}

impl Sampler {
    fn new(ratio: f64) -> Self {
        // The conversion saturates. `sum` begins high, so that at 1 every addition overflows.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
        let step = (ratio * 2f64.powi(64)) as u64;
        Self { step, sum: AtomicU64::new(u64::MAX) }
    }

    fn selects(&self) -> bool {
        self.sum.fetch_add(self.step, Ordering::Relaxed).checked_add(self.step).is_none()
    }
}

/// Spans are exported from now on.
pub(super) fn enable(ratio: f64) {
    _ = SAMPLER.set(Sampler::new(ratio));
}

/// The span of a request.
pub struct RequestSpan(Span);

/// The span of a request that begins, if it is recorded: as the caller does with the trace that
/// `trace` names, or by `traces.sample_ratio`.
#[must_use]
pub fn begin(
    trace: Option<&TraceContext>,
    method: &Method,
    path: &str,
    request_id: &str,
) -> Option<RequestSpan> {
    let sampler = SAMPLER.get()?;
    if !trace.map_or_else(|| sampler.selects(), TraceContext::is_sampled) {
        return None;
    }
    let span = tracing::info_span!(
        "request",
        otel.name = %format_args!("{method} {}", route(path)),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = %method,
        url.path = cut(path),
        http.response.status_code = Empty,
        error.type = Empty,
        kms_proxy.request_id = request_id,
        kms_proxy.client = Empty,
    );
    if let Some(trace) = trace {
        otlp::set_parent(&span, trace);
    }
    Some(RequestSpan(span))
}

impl RequestSpan {
    /// Runs a part of the request's work, such as one poll of its future.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.in_scope(work)
    }

    /// The request ends with `status`; `failure` is the code of its error, and `client` who called.
    pub fn end(self, status: u16, failure: Option<&str>, client: Option<&str>) {
        self.0.record("http.response.status_code", status);
        if let Some(client) = client {
            self.0.record("kms_proxy.client", client);
        }
        if let Some(failure) = failure {
            self.0.record("error.type", failure);
        }
        if status >= 500 {
            self.0.record("otel.status_code", "ERROR");
        }
    }
}

/// The start of a path. A span begins before its request is authenticated, and up to 2,048 of them
/// wait, so that a longer one would cost memory.
fn cut(path: &str) -> &str {
    path.get(..path.floor_char_boundary(MAX_PATH)).unwrap_or_default()
}

/// The longest path in a span, in bytes.
const MAX_PATH: usize = 256;

/// A path without the names in it, so that spans of the same call have the same name.
fn route(path: &str) -> Cow<'_, str> {
    let Some(rest) = path.strip_prefix("/v1/chains/") else {
        return match path.strip_prefix("/status/chains/") {
            Some(_) => "/status/chains/{name}".into(),
            // An unknown path may be anything.
            None if path.len() > MAX_ROUTE => "{path}".into(),
            None => path.into(),
        };
    };
    let mut route = String::from("/v1/chains/{name}");
    let mut parts = rest.split('/').skip(1);
    while let Some(part) = parts.next().filter(|_| route.len() < MAX_ROUTE) {
        // An unknown part may be anything.
        route.push('/');
        route.push_str(if part.len() > MAX_ROUTE { "{path}" } else { part });
        if matches!(part, "keks" | "roots") && parts.next().is_some() {
            route.push_str("/{id}");
        }
    }
    route.into()
}

/// The length from which a path is not the name of a span, in bytes.
const MAX_ROUTE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        let config = |endpoint: &str, sample_ratio| Config {
            endpoint: Some(endpoint.to_owned()),
            sample_ratio,
        };
        assert_eq!(Config::default().check(), Ok(()));
        for bad in [
            "",
            "collector",
            "ftp://host/",
            "http://",
            "/v1/traces",
            "http:///v1/traces",
            "http://user@host/v1/traces",
            "http://user:hunter2@host/v1/traces",
            "http://@host/v1/traces",
            "http://host/v1/traces?key=hunter2",
            "http://host/v1/traces?",
            "http://host/v1/traces#hunter2",
            "http://host:/v1/traces",
            "http://host:0/v1/traces",
            "http://host:65536/v1/traces",
            "http://host:x/v1/traces",
            "http://[::1]:99999/v1/traces",
        ] {
            let (key, what) = config(bad, 0.5).check().unwrap_err();
            assert_eq!(key, "endpoint", "{bad}");
            assert!(what.starts_with("must ") && !what.contains("hunter2"), "{bad}: {what}");
        }
        for good in
            ["http://127.0.0.1:4318/v1/traces", "https://host", "http://[::1]:4318/v1/traces"]
        {
            assert_eq!(check_endpoint(good), Ok(()), "{good}");
        }
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let config = Config { sample_ratio: bad, ..Config::default() };
            assert_eq!(config.check().unwrap_err().0, "sample_ratio", "{bad}");
        }
    }

    #[test]
    fn the_sampler_selects_the_ratio_of_requests() {
        for (ratio, expected) in [(0.0, 0), (0.01, 10), (0.25, 250), (0.5, 500), (1.0, 1000)] {
            let sampler = Sampler::new(ratio);
            let selected = (0..1000).filter(|_| sampler.selects()).count();
            assert!(selected.abs_diff(expected) <= 1, "{ratio}: {selected}");
        }
        let all = Sampler::new(1.0);
        assert!((0..1000).all(|_| all.selects()));
    }

    #[test]
    fn a_long_path_is_cut_between_characters() {
        assert_eq!(cut("/v1/encrypt"), "/v1/encrypt");
        assert_eq!(cut(&"/x".repeat(10_000)).len(), MAX_PATH);
        let path = format!("/{}", "\u{20ac}".repeat(10_000));
        assert!(path.starts_with(cut(&path)) && cut(&path).len() == MAX_PATH);
        let path = format!("//{}", "\u{20ac}".repeat(10_000));
        assert_eq!(cut(&path).len(), MAX_PATH - 2);
    }

    #[test]
    fn the_name_of_a_span_has_no_names_of_chains() {
        for (path, expected) in [
            ("/v1/encrypt", "/v1/encrypt"),
            ("/v1/chains", "/v1/chains"),
            ("/v1/chains/orders", "/v1/chains/{name}"),
            ("/v1/chains/orders/keks", "/v1/chains/{name}/keks"),
            ("/v1/chains/orders/keks/00ff/disable", "/v1/chains/{name}/keks/{id}/disable"),
            ("/v1/chains/o/roots/main/rewrap", "/v1/chains/{name}/roots/{id}/rewrap"),
            ("/status/chains/orders", "/status/chains/{name}"),
        ] {
            assert_eq!(route(path), expected);
        }
        assert_eq!(route(&"/x".repeat(100)), "{path}");
        assert!(route(&format!("/v1/chains/a{}", "/b".repeat(500))).len() <= MAX_ROUTE + 8);
        let long = format!("/v1/chains/a/{}", "b".repeat(10_000));
        assert_eq!(route(&long), "/v1/chains/{name}/{path}");
    }
}
