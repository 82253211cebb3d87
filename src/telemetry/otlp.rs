//! The export of spans with OTLP over HTTP. OpenTelemetry's SDK collects them in batches, on a
//! thread of its own; a full queue drops spans, and never delays a request.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Tracer};
use tokio::runtime::Handle;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::error_chain;
use crate::log_throttle::LogThrottle;
use crate::proxy::Proxies;
use crate::trace_context::TraceContext;

/// How long the collector may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of the process waits for the last spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// The longest response that is read, in bytes.
const MAX_RESPONSE: usize = 64 << 10;

/// Whether this build exports spans.
#[expect(clippy::unnecessary_wraps, reason = "a build without the feature returns an error")]
pub(super) const fn is_built() -> Result<(), &'static str> {
    Ok(())
}

/// Exports spans until its end.
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    tracer: Tracer,
}

impl Exporter {
    /// Exports to the collector at `endpoint`; the threads of `runtime` send.
    ///
    /// # Errors
    /// Why that is not possible. It starts also if the collector does not answer.
    pub(super) fn start(endpoint: &str, runtime: &Handle) -> Result<Self, String> {
        let sender = Sender::new(endpoint, runtime.clone())?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|error| error_chain::to_text(&error))?;
        let resource = Resource::builder()
            .with_service_name("kms-proxy")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            // Which requests are recorded is decided before they have a span.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("kms-proxy");
        Ok(Self { provider, tracer })
    }

    /// What gives the spans of this crate to the exporter.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.tracer.clone())
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_level(false)
            .with_target(false)
    }

    /// Sends the spans that wait.
    pub(super) fn end(self) {
        _ = self.provider.shutdown_with_timeout(LAST_SPANS);
    }
}

/// Makes `span` a part of the trace of the caller, which records its own part.
pub(super) fn set_parent(span: &Span, trace: &TraceContext) {
    let Ok(trace_id) = TraceId::from_hex(trace.trace_id().as_str()) else { return };
    let parent = SpanContext::new(
        trace_id,
        SpanId::from_bytes(trace.parent_id()),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    _ = span.set_parent(Context::new().with_remote_span_context(parent));
}

/// Sends what the SDK's thread has collected.
#[derive(Debug)]
struct Sender {
    http: reqwest::Client,
    runtime: Handle,
    log: Arc<Failures>,
}

/// Logs at most one failure a minute.
struct Failures(LogThrottle);

impl std::fmt::Debug for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Failures")
    }
}

impl Sender {
    fn new(endpoint: &str, runtime: Handle) -> Result<Self, String> {
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("kms-proxy/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(TIMEOUT);
        if endpoint.starts_with("http:") {
            // A machine without system certificates is not an error.
            http = http.tls_certs_only([]);
        }
        if let Some(proxy) = Proxies::from_env()?.of(endpoint) {
            let proxy = reqwest::Proxy::all(proxy.url());
            http = http.proxy(proxy.map_err(|_| "the proxy is not supported".to_owned())?);
        }
        let http = http.build().map_err(|error| error_chain::to_text(&error))?;
        let log = Arc::new(Failures(LogThrottle::new(1, Duration::from_secs(60))));
        Ok(Self { http, runtime, log })
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move { send(&http, request).await });
        let response = sent.await.map_err(HttpError::from).flatten();
        let failure = match &response {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the collector answers {}", response.status())),
            Err(error) => Some(error_chain::innermost(&**error).to_string()),
        };
        if let Some(error) = failure
            && let Some(count) = self.log.0.admit()
        {
            tracing::warn!(error, count, "traces can't be exported, and are lost");
        }
        response
    }
}

async fn send(
    http: &reqwest::Client,
    request: http::Request<Bytes>,
) -> Result<http::Response<Bytes>, HttpError> {
    let mut response = http.execute(request.try_into()?).await?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_RESPONSE {
            return Err("the response of the collector is too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    let mut answer = http::Response::new(body.into());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = response.headers().clone();
    Ok(answer)
}
