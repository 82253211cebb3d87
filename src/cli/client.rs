//! The commands' way to a running service: one HTTP client, and its failures as sentences.

use std::time::Duration;

use kms_proxy::id::ChainName;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Failure, Result};

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
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Which chain is meant.
#[derive(clap::Args)]
pub(super) struct ChainArgs {
    /// The key chain [default: default]
    #[arg(long, value_name = "NAME")]
    pub(super) chain: Option<ChainName>,
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
}

impl Client {
    /// A client of the service that `args` name.
    pub(super) fn new(args: Args) -> Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(args.timeout)
            // Plaintexts go to the service that was named, and nowhere else.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Failure::refused(reason(&error)))?;
        Ok(Self { server: args.server, http })
    }

    /// The same client for another address.
    pub(super) fn at(&self, server: String) -> Self {
        Self { server, http: self.http.clone() }
    }

    /// A request of `path`, which starts with a slash, below the server's own path.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.server))
    }

    /// Sends `request` and takes whatever is answered.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        request.send().await.map_err(|error| self.failed(&error))
    }

    /// Sends `request` and gives the answer if it is a good one.
    pub(super) async fn call(&self, request: RequestBuilder) -> Result<Vec<u8>> {
        let response = self.send(request).await?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.failed(&error))?;
        if status.is_success() { Ok(body.into()) } else { Err(self.refusal(status, &body)) }
    }

    /// What an answer that is not a good one says.
    pub(super) fn refusal(&self, status: StatusCode, body: &[u8]) -> Failure {
        Failure::refused(match serde_json::from_slice::<Problem>(body) {
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

    /// Reads an answer in JSON.
    pub(super) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T> {
        // The error's text may quote the answer, which may hold a plaintext.
        serde_json::from_slice(body).map_err(|_| {
            Failure::refused(format!("{} does not answer as kms-proxy does", self.server))
        })
    }

    fn failed(&self, error: &reqwest::Error) -> Failure {
        let server = &self.server;
        Failure::refused(if error.is_timeout() {
            format!("{server} did not answer in time (--timeout)")
        } else if error.is_connect() {
            format!("nothing answers at {server}: {}; is `kms-proxy serve` running?", reason(error))
        } else {
            format!("the call of {server} failed: {}", reason(error))
        })
    }
}

/// What the service says no with, alone or as the item of a batch.
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

/// The innermost cause: the outer ones only say that it was a request.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The URL without a slash at its end.
pub(super) fn server(text: &str) -> std::result::Result<String, &'static str> {
    let url = Url::parse(text).ok().filter(|url| {
        url.scheme() == "http"
            && url.has_host()
            && (url.username(), url.password()) == ("", None)
            && (url.query(), url.fragment()) == (None, None)
    });
    url.map(|url| url.as_str().trim_end_matches('/').to_owned())
        .ok_or("it is written like http://127.0.0.1:8080")
}
