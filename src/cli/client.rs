//! The HTTP client of the commands that call a running service, and its errors as text.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kms_proxy::error_chain;
use kms_proxy::id::ChainName;
use kms_proxy::loopback::is_loopback;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::stdio::{eprint, read_file};
use super::{Failure, Result, tls};

/// How to reach the service.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The URL of the service
    #[arg(
        long,
        value_name = "URL",
        env = "KMS_PROXY_SERVER",
        default_value = "http://127.0.0.1:8080",
        value_parser = server
    )]
    server: String,
    /// The time-out of one call
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30s",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
    #[command(flatten)]
    tls: tls::Args,
    /// A file with the bearer token or JWT to authenticate with
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

/// The largest response in bytes, unless a command allows more.
const MAX_RESPONSE: usize = 64 << 20;

/// The longest time for a whole response that is streamed.
const STREAM_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The chain of a command.
#[derive(clap::Args)]
pub(super) struct ChainArgs {
    /// The key chain [default: default]
    #[arg(long, value_name = "NAME")]
    pub(super) chain: Option<ChainName>,
}

impl ChainArgs {
    /// The chain's name, in a path.
    pub(super) fn name(&self) -> &str {
        self.chain.as_ref().map_or("default", ChainName::as_str)
    }
}

/// Runs a command that calls the service.
pub(super) fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::refused(format!("can't start: {error}")))?
        .block_on(command)
}

/// A running service.
pub(super) struct Client {
    /// Its URL, to which paths are appended.
    server: String,
    http: reqwest::Client,
    /// The `Authorization` header.
    token: Option<HeaderValue>,
    /// The largest response that is read, in bytes.
    max_response: usize,
    /// The longest time without data of a streamed response.
    stall: Duration,
    /// Whether a warning of the service was printed: a list has many pages.
    has_warned: AtomicBool,
}

/// The header with what a caller should know about the service.
const WARNING: &str = "kms-proxy-warning";

impl Client {
    /// A client for the service in `args`.
    pub(super) fn new(args: Args) -> Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(args.timeout)
            // A proxy could read the plaintexts.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // Calls are sequential, and HTTP/1.1 reports the reason of a refused handshake.
            .http1_only();
        let http = args.tls.apply(&args.server, http)?;
        let http = http.build().map_err(|error| Failure::refused(reason(&error)))?;
        let token = args.token_file.as_deref().map(bearer).transpose()?;
        if token.is_some() && is_unencrypted(&args.server) {
            eprint("the token is sent in the clear: anyone who sees the traffic can read it");
        }
        let (server, stall) = (args.server, args.timeout);
        let (max_response, has_warned) = (MAX_RESPONSE, AtomicBool::new(false));
        Ok(Self { server, http, token, max_response, stall, has_warned })
    }

    /// The same client for the address of health and metrics, which needs no token.
    pub(super) fn at(&self, server: String) -> Self {
        let Self { max_response, stall, .. } = *self;
        let (http, has_warned) = (self.http.clone(), AtomicBool::new(false));
        Self { server, http, token: None, max_response, stall, has_warned }
    }

    /// The same client, with another limit for responses in bytes.
    pub(super) fn max_response(self, max_response: usize) -> Self {
        Self { max_response, ..self }
    }

    /// A request for `path`, which starts with a slash and is appended to the server's URL.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.server));
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, token.clone()),
            None => request,
        }
    }

    /// Sends `request`, and returns the status and the whole body of the response.
    pub(super) async fn exchange(&self, request: RequestBuilder) -> Result<(StatusCode, Vec<u8>)> {
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        let warning = response.headers().get(WARNING).and_then(|value| value.to_str().ok());
        if let Some(warning) = warning
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            eprint(warning);
        }
        Ok((response.status(), self.body(response).await?))
    }

    /// Sends `request` and returns the body of a successful response.
    pub(super) async fn call(&self, request: RequestBuilder) -> Result<Vec<u8>> {
        let (status, body) = self.exchange(request).await?;
        if status.is_success() { Ok(body) } else { Err(self.refusal(status, &body)) }
    }

    /// The body of a response, if it does not exceed the limit.
    async fn body(&self, mut response: Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error))? {
            if body.len() + chunk.len() > self.max_response {
                let Self { server, max_response, .. } = self;
                let message =
                    format!("the response of {server} has more than {max_response} bytes");
                return Err(Failure::refused(message));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Sends `request`, and gives each part of a successful response to `take`. A response that is
    /// cut off is a failure.
    pub(super) async fn stream(
        &self,
        request: RequestBuilder,
        mut take: impl FnMut(&[u8]) -> Result,
    ) -> Result {
        let in_time = async |part: &mut Response| {
            let late = |_| Failure::refused(format!("{} sends no more (--timeout)", self.server));
            let part = tokio::time::timeout(self.stall, part.chunk()).await.map_err(late)?;
            part.map_err(|error| self.failed(&error))
        };
        let sent = request.timeout(STREAM_TIMEOUT).send();
        let sent = tokio::time::timeout(self.stall, sent).await;
        let sent = sent.map_err(|_| {
            Failure::refused(format!("{} did not answer in time (--timeout)", self.server))
        })?;
        let mut response = sent.map_err(|error| self.failed(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refusal(status, &self.body(response).await?));
        }
        while let Some(part) = in_time(&mut response).await? {
            take(&part)?;
        }
        Ok(())
    }

    /// The failure that an unsuccessful response stands for.
    pub(super) fn refusal(&self, status: StatusCode, body: &[u8]) -> Failure {
        Failure::refused(match serde_json::from_slice::<Problem>(body) {
            Ok(problem) if status == StatusCode::UNAUTHORIZED => {
                format!("{problem} (--token-file, or --cert and --key)")
            }
            Ok(problem) => problem.to_string(),
            Err(_) => format!("{} answered {status}, but not like kms-proxy", self.server),
        })
    }

    /// Like `call`, for a response in JSON.
    pub(super) async fn call_json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T> {
        self.parse(&self.call(request).await?)
    }

    /// All items of the list `field` at `path`, which has a query, a page at a time.
    pub(super) async fn items<T: DeserializeOwned>(
        &self,
        path: &str,
        field: &str,
    ) -> Result<Vec<T>> {
        let (mut all, mut at) = (Vec::new(), path.to_owned());
        loop {
            let mut page: Map<String, Value> =
                self.call_json(self.request(Method::GET, &at)).await?;
            let items = page.remove(field).unwrap_or_default();
            let items: Vec<T> = serde_json::from_value(items).map_err(|_| self.unknown())?;
            all.extend(items);
            match page.get("next").and_then(Value::as_str) {
                None => return Ok(all),
                // Neither the name of a chain nor the id of a KEK needs an escape in a URL.
                Some(after) => at = format!("{path}&after={after}"),
            }
        }
    }

    /// Parses a response in JSON.
    pub(super) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T> {
        // The error of serde may quote the response, which may contain a plaintext.
        serde_json::from_slice(body).map_err(|_| self.unknown())
    }

    fn unknown(&self) -> Failure {
        Failure::refused(format!("{} does not answer like kms-proxy", self.server))
    }

    fn failed(&self, error: &reqwest::Error) -> Failure {
        let server = &self.server;
        Failure::refused(if let Some(text) = tls::explain(server, &reason(error)) {
            text
        } else if error.is_timeout() {
            format!("{server} did not answer in time (--timeout)")
        } else if error.is_connect() {
            format!("can't reach {server}: {}; is `kms-proxy serve` running?", reason(error))
        } else {
            format!("the call to {server} failed: {}", reason(error))
        })
    }
}

/// An error of the service, of a whole request or of one item of a batch.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    code: String,
    detail: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

/// The `Authorization` header with the token in a file.
fn bearer(path: &Path) -> Result<HeaderValue> {
    let wrong =
        |detail: &str| Failure::Usage(format!("--token-file, {}: {detail}", path.display()));
    let token = read_file(path).map_err(|error| wrong(&error.to_string()))?;
    let token = token.trim_ascii();
    let header = Zeroizing::new([b"Bearer ", token].concat());
    let header = HeaderValue::from_bytes(&header).ok();
    let is_token = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    let mut header = header.filter(|_| is_token).ok_or_else(|| wrong("contains no token"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Whether requests to a server pass a network unencrypted.
fn is_unencrypted(server: &str) -> bool {
    let Ok(url) = Url::parse(server) else { return true };
    url.scheme() == "http" && !url.host_str().is_some_and(is_loopback)
}

/// The innermost cause: the outer ones only state that a request failed.
fn reason(error: &reqwest::Error) -> String {
    error_chain::innermost(error).to_string()
}

/// The URL without a trailing slash.
pub(super) fn server(text: &str) -> std::result::Result<String, &'static str> {
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && (url.username(), url.password()) == ("", None)
            && (url.query(), url.fragment()) == (None, None)
    });
    url.map(|url| url.as_str().trim_end_matches('/').to_owned())
        .ok_or("must be a URL such as http://127.0.0.1:8080")
}
