//! Single calls of a server: requests, responses, and failures.
//!
//! It knows no endpoint. Its own buffers with secrets are wiped; those of reqwest and the TLS
//! library are not under its control.

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::header::HeaderValue;
use reqwest::{Certificate, Method, StatusCode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error_chain;
use crate::proxy::{Proxies, Proxy};
use crate::root::Error;
use crate::root::authorities::{Authorities, Ca, is_same};
use crate::root::echo::{LEFT_OUT, Secrets};
use crate::secret::SecretBytes;

use super::config::{Config, trimmed};

/// The longest response that is read, in bytes: that of a key with ten thousand versions has 300
/// KB.
const MAX_ANSWER: usize = 1 << 20;

/// The capacity of a body in bytes. It is longer than any body, so that no buffer grows and leaves
/// a copy behind: a secret id and a role id have at most 4 KiB.
const MAX_BODY: usize = 16 << 10;

/// A server, and how to call it.
pub(super) struct Client {
    /// The client, and the authorities that it trusts.
    http: Mutex<(Option<Arc<Authorities>>, reqwest::Client)>,
    ca: Ca,
    is_plain: bool,
    proxy: Option<Proxy>,
    /// The address, up to and with `/v1/`.
    base: String,
    namespace: Option<HeaderValue>,
    timeout: Duration,
}

/// A call: a path below `/v1/`, and a body.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Bytes,
    /// What is secret in the body.
    secrets: Secrets,
}

impl Call {
    pub(super) fn get(path: String) -> Self {
        Self { method: Method::GET, path, body: Bytes::new(), secrets: Secrets::default() }
    }

    /// A POST of `body` as JSON, in a buffer that is wiped.
    pub(super) fn post(path: String, body: &impl Serialize) -> Result<Self, Error> {
        let mut json = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        serde_json::to_writer(&mut *json, body).map_err(|error| Error::Away(error.to_string()))?;
        let (method, body) = (Method::POST, Bytes::from_owner(json));
        Ok(Self { method, path, body, secrets: Secrets::default() })
    }

    /// The same, with a secret in its body: no reason that repeats it is shown.
    pub(super) fn with_secret(mut self, secret: &[u8]) -> Self {
        self.secrets.add(secret);
        self
    }
}

/// A server's response.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    body: Zeroizing<Vec<u8>>,
    /// What was secret in the call.
    secrets: Secrets,
}

impl Answer {
    /// Parses the body of a success.
    ///
    /// # Errors
    /// [`Error::Away`] if it can't be parsed: the server is not Vault.
    pub(super) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|_| {
            Error::Away("its response can't be parsed; is it Vault or OpenBao?".to_owned())
        })
    }

    /// The reasons of a refusal; `None` if it is not a response of Vault.
    pub(super) fn reasons(&self) -> Option<Reasons> {
        #[derive(Deserialize)]
        struct Body<'a> {
            #[serde(borrow)]
            errors: Vec<Cow<'a, str>>,
        }
        let body: Body<'_> = serde_json::from_slice(&self.body).ok()?;
        Some(Reasons { text: body.errors.join("; "), secrets: self.secrets.clone() })
    }
}

/// Why a server refuses, in its own words.
pub(super) struct Reasons {
    text: String,
    secrets: Secrets,
}

impl Reasons {
    pub(super) fn tell(&self, part: &str) -> bool {
        self.text.contains(part)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl fmt::Display for Reasons {
    /// Short, and without any word that could be a token or a key, in case a server repeats one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.secrets.are_in(&self.text) {
            return f.write_str(LEFT_OUT);
        }
        let plain = |c: char| if c.is_ascii_graphic() { c } else { ' ' };
        let text: String = self.text.chars().map(plain).take(300).collect();
        let harmless = |word: &&str| {
            let mut runs =
                word.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=._-".contains(c)));
            runs.all(|run| run.len() < 16)
        };
        let words: Vec<&str> = text
            .split_whitespace()
            .map(|word| Some(word).filter(harmless).unwrap_or("(left out)"))
            .collect();
        f.write_str(&words.join(" "))
    }
}

impl Client {
    /// A client of the configured server.
    ///
    /// It follows no redirects, which would send the token to another server.
    pub(super) fn new(config: &Config) -> Result<Self, String> {
        let url = config.url()?;
        let ca = Ca::open(&config.name, config.ca.as_deref())?;
        let proxy = Proxies::from_env()?.of(url.as_str()).cloned();
        let is_plain = url.scheme() == "http";
        let authorities = ca.used();
        let http = build(config.timeout, authorities.as_deref(), is_plain, proxy.as_ref())?;
        let namespace = config.namespace.as_deref().map(trimmed);
        let namespace = namespace.map(|name| HeaderValue::from_str(&name)).transpose();
        Ok(Self {
            http: Mutex::new((authorities, http)),
            ca,
            is_plain,
            proxy,
            base: format!("{}/v1/", url.as_str().trim_end_matches('/')),
            namespace: namespace.map_err(|error| format!("namespace: {error}"))?,
            timeout: config.timeout,
        })
    }

    /// Makes one call.
    ///
    /// # Errors
    /// [`Error::Away`]: there is no response, or one that means "not now" for every call.
    pub(super) async fn send(
        &self,
        call: &Call,
        token: Option<&SecretBytes>,
    ) -> Result<Answer, Error> {
        let url = format!("{}{}", self.base, call.path);
        let mut request = self.http().await?.request(call.method.clone(), url);
        // The listener of an agent may require it, against request forgery.
        request = request.header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            request = request.header("X-Vault-Token", header(token)?);
        }
        if !call.body.is_empty() {
            request = request.header("Content-Type", "application/json").body(call.body.clone());
        }
        let mut response = request.send().await.map_err(|error| self.away(&error))?;
        let status = response.status();
        let announced = response.content_length().and_then(|len| usize::try_from(len).ok());
        let capacity = announced.unwrap_or(16 << 10).min(MAX_ANSWER);
        let mut body = Zeroizing::new(Vec::with_capacity(capacity));
        while let Some(chunk) = response.chunk().await.map_err(|error| self.away(&error))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Error::Away("its response is longer than any of Vault's".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        let mut secrets = call.secrets.clone();
        if let Some(token) = token {
            secrets.add(token.expose());
        }
        let answer = Answer { status, body, secrets };
        not_now(&answer).map_or(Ok(answer), |detail| Err(Error::Away(detail)))
    }

    /// The HTTP client, with the current authorities of `ca`. A new client has no old connections.
    async fn http(&self) -> Result<reqwest::Client, Error> {
        let current = self.ca.current().await;
        let mut http = self.http.lock();
        if !is_same(&http.0, &current) {
            let made = build(self.timeout, current.as_deref(), self.is_plain, self.proxy.as_ref());
            *http = (current, made.map_err(Error::Away)?);
        }
        Ok(http.1.clone())
    }

    fn away(&self, error: &reqwest::Error) -> Error {
        let detail = if error.is_timeout() {
            format!("no answer in {}", crate::human_units::duration::format(self.timeout))
        } else {
            causes(error)
        };
        let via = self.proxy.as_ref().map(Proxy::via).unwrap_or_default();
        Error::Away(format!("{detail}{via}{}", self.ca.explain(&detail)))
    }
}

/// A client that trusts `authorities`, or the system's, and goes through `proxy`.
fn build(
    timeout: Duration,
    authorities: Option<&Authorities>,
    is_plain: bool,
    proxy: Option<&Proxy>,
) -> Result<reqwest::Client, String> {
    let no_tls = |error: reqwest::Error| format!("no TLS: {}", causes(&error));
    let mut http = reqwest::Client::builder()
        .user_agent(concat!("kms-proxy/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(timeout)
        // Calls are rare, and servers and proxies close idle connections.
        .pool_idle_timeout(Duration::from_secs(20));
    if let Some(authorities) = authorities {
        let certs = authorities.certs.iter().map(|der| Certificate::from_der(der));
        http = http.tls_certs_only(certs.collect::<Result<Vec<_>, _>>().map_err(no_tls)?);
    } else if is_plain {
        // A machine without system certificates is not an error.
        http = http.tls_certs_only([]);
    }
    if let Some(proxy) = proxy {
        http = http.proxy(reqwest::Proxy::all(proxy.url()).map_err(no_tls)?);
    }
    http.build().map_err(no_tls)
}

/// What a status means if it is about the server; `None` if it is about the call.
fn not_now(answer: &Answer) -> Option<String> {
    let reasons = answer.reasons();
    let tells = |part| reasons.as_ref().is_some_and(|reasons| reasons.tell(part));
    Some(match answer.status.as_u16() {
        503 if tells("sealed") => "it is sealed".to_owned(),
        429 if tells("quota") => "its rate limit is reached".to_owned(),
        status @ (429 | 472 | 473) => {
            format!("it is a standby or throttles its callers ({status})")
        }
        // Enterprise: a node whose state is older than what the token has seen.
        412 => "it has not caught up with its cluster".to_owned(),
        300..=399 => "it redirects, as a standby does that can't reach the active node; \
                      redirects are not followed"
            .to_owned(),
        status @ (408 | 500..=599) => {
            let reasons = reasons.map(|reasons| reasons.to_string()).unwrap_or_default();
            format!("it answers {status} {reasons}").trim_end().to_owned()
        }
        status if status >= 400 && reasons.is_none() => {
            format!("another server answers there with {status}; is it Vault or OpenBao?")
        }
        _ => return None,
    })
}

/// A token as a header whose bytes are wiped and hidden from `Debug`.
fn header(token: &SecretBytes) -> Result<HeaderValue, Error> {
    let bytes = Bytes::from_owner(Zeroizing::new(token.expose().to_vec()));
    let mut value = HeaderValue::from_maybe_shared(bytes).map_err(|_| {
        Error::Away("the token has bytes that are not allowed in a header".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// What caused `error`, which only says that a request failed. The last cause distinguishes a wrong
/// CA from an outage.
fn causes(error: &reqwest::Error) -> String {
    error_chain::to_text(error.source().unwrap_or(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_repeat_nothing_that_may_be_secret() {
        let secrets = Secrets::of(&[7; 16]);
        let told =
            |text: &str| Reasons { text: text.to_owned(), secrets: secrets.clone() }.to_string();
        assert_eq!(
            told("1 error occurred:\n\t* permission denied\n\n"),
            "1 error occurred: * permission denied"
        );
        for secret in [
            "s.2KvQGPMrsReMm61aleUJsb40",
            "e49f4d0e-1096-fe4d-69c3-875fcfb482fe",
            "AAECAwQFBgcICQoLDA0ODw==",
        ] {
            let text = told(&format!("bad \"{secret}\", no"));
            assert_eq!(text, "bad (left out) no");
        }
        assert!(told(&"a ".repeat(10_000)).len() <= 300);
        for known in
            ["07 07 07 07 07 07 07 07", "BwcHBwcH BwcHBwcH", "got \u{7}\u{7}\u{7}\u{7}\u{7}\u{7}"]
        {
            assert_eq!(told(known), LEFT_OUT);
        }
    }

    #[test]
    fn a_token_is_not_in_the_debug_of_its_header() {
        let value = header(&SecretBytes::new(b"s.hunter2".to_vec())).unwrap();
        assert_eq!(value.as_bytes(), b"s.hunter2");
        assert!(!format!("{value:?}").contains("hunter2"));
        assert!(header(&SecretBytes::new(b"a\nb".to_vec())).is_err());
    }
}
