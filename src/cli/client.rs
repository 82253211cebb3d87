//! The commands' way to a running service: one HTTP client, and its failures as sentences.

use std::path::{Path, PathBuf};
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

use super::stdio::{read_file, tell};
use super::{Failure, Result, tls};

/// Where the service is.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The service
    #[arg(
        long,
        value_name = "URL",
        env = "KMS_PROXY_SERVER",
        default_value = "http://127.0.0.1:8080",
        value_parser = server
    )]
    server: String,
    /// How long one call may take
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30s",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
    #[command(flatten)]
    tls: tls::Args,
    /// A file with the bearer token or JWT to show to the service
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

/// The largest answer that is taken in bytes, where a command does not allow more.
const MAX_ANSWER: usize = 64 << 20;

/// Which chain is meant.
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
pub(super) fn block_on(command: impl Future<Output = Result>) -> Result {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::refused(format!("can't start: {error}")))?
        .block_on(command)
}

/// A running service.
pub(super) struct Client {
    /// Its URL, to which paths are added.
    server: String,
    http: reqwest::Client,
    /// Its `Authorization`.
    token: Option<HeaderValue>,
    /// The largest answer that is taken, in bytes.
    max_answer: usize,
}

impl Client {
    /// A client of the service that `args` name.
    pub(super) fn new(args: Args) -> Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(args.timeout)
            // Plaintexts go to the service that was named, and nowhere else.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // One call after the other; and what a refused handshake says is not lost on the way.
            .http1_only();
        let http = args.tls.apply(&args.server, http)?;
        let http = http.build().map_err(|error| Failure::refused(reason(&error)))?;
        let token = args.token_file.as_deref().map(bearer).transpose()?;
        if token.is_some() && is_open(&args.server) {
            tell(
                "the token goes to the service in the clear: anyone who sees the traffic can read \
                    it",
            );
        }
        Ok(Self { server: args.server, http, token, max_answer: MAX_ANSWER })
    }

    /// The same client for the address of the service's health, which needs no token.
    pub(super) fn at(&self, server: String) -> Self {
        Self { server, http: self.http.clone(), token: None, max_answer: self.max_answer }
    }

    /// The same client, which takes answers of at most this many bytes.
    pub(super) fn taking(self, max_answer: usize) -> Self {
        Self { max_answer, ..self }
    }

    /// A request of `path`, which starts with a slash, below the server's own path.
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
        Ok((response.status(), self.body(response).await?))
    }

    /// Sends `request` and gives the answer if it is a good one.
    pub(super) async fn call(&self, request: RequestBuilder) -> Result<Vec<u8>> {
        let (status, body) = self.exchange(request).await?;
        if status.is_success() { Ok(body) } else { Err(self.refusal(status, &body)) }
    }

    /// The whole body of an answer, if it is not larger than this client takes.
    async fn body(&self, mut response: Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error))? {
            if body.len() + chunk.len() > self.max_answer {
                let Self { server, max_answer, .. } = self;
                let message = format!("{server} answers with more than {max_answer} bytes");
                return Err(Failure::refused(message));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// What an answer that is not a good one says.
    pub(super) fn refusal(&self, status: StatusCode, body: &[u8]) -> Failure {
        Failure::refused(match serde_json::from_slice::<Problem>(body) {
            Ok(problem) if status == StatusCode::UNAUTHORIZED => {
                format!("{problem} (--token-file, or --cert and --key)")
            }
            Ok(problem) => problem.to_string(),
            Err(_) => format!("{} answered {status}, and not as kms-proxy does", self.server),
        })
    }

    /// The same for an answer in JSON.
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

    /// Reads an answer in JSON.
    pub(super) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T> {
        // The error's text may quote the answer, which may hold a plaintext.
        serde_json::from_slice(body).map_err(|_| self.unknown())
    }

    fn unknown(&self) -> Failure {
        Failure::refused(format!("{} does not answer as kms-proxy does", self.server))
    }

    fn failed(&self, error: &reqwest::Error) -> Failure {
        let server = &self.server;
        Failure::refused(if let Some(text) = tls::explain(server, &reason(error)) {
            text
        } else if error.is_timeout() {
            format!("{server} did not answer in time (--timeout)")
        } else if error.is_connect() {
            format!("nothing answers at {server}: {}; is `kms-proxy serve` running?", reason(error))
        } else {
            format!("the call of {server} failed: {}", reason(error))
        })
    }
}

/// An error of the service, alone or as the item of a batch.
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

/// The header that shows the token of a file.
fn bearer(path: &Path) -> Result<HeaderValue> {
    let wrong =
        |detail: &str| Failure::Usage(format!("--token-file, {}: {detail}", path.display()));
    let token = read_file(path).map_err(|error| wrong(&error.to_string()))?;
    let token = token.trim_ascii();
    let header = Zeroizing::new([b"Bearer ", token].concat());
    let header = HeaderValue::from_bytes(&header).ok();
    let is_token = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    let mut header = header.filter(|_| is_token).ok_or_else(|| wrong("it holds no token"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Whether what is sent to a server passes a network as it is.
fn is_open(server: &str) -> bool {
    let Ok(url) = Url::parse(server) else { return true };
    url.scheme() == "http" && !url.host_str().is_some_and(is_loopback)
}

/// The innermost cause: the outer ones only say that it was a request.
fn reason(error: &reqwest::Error) -> String {
    error_chain::innermost(error).to_string()
}

/// The URL without a slash at its end.
pub(super) fn server(text: &str) -> std::result::Result<String, &'static str> {
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && (url.username(), url.password()) == ("", None)
            && (url.query(), url.fragment()) == (None, None)
    });
    url.map(|url| url.as_str().trim_end_matches('/').to_owned())
        .ok_or("it is written like http://127.0.0.1:8080")
}
