//! Single HTTP calls: requests, responses, the trusted authorities and the proxy.
//!
//! It knows no service. Its own buffers with secrets are wiped; those of reqwest and the TLS
//! library are not under its control.

use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, Method, NoProxy, Url};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error_chain;
use crate::human_units;
use crate::loopback::is_loopback;
use crate::proxy::{Proxies, Proxy};
use crate::root::Error;
use crate::root::authorities::{Authorities, Ca, is_same};
use crate::root::echo::{Secrets, line};
use crate::secret::SecretBytes;

use super::attempts::Failure;

/// The longest response that is read, in bytes.
const MAX_RESPONSE: usize = 64 << 10;

/// The capacity of a body in bytes. It is longer than any body, so that no buffer grows and leaves
/// a copy behind: tokens have a few KiB.
const MAX_BODY: usize = 64 << 10;

/// Makes calls with the settings of one root.
pub(in crate::root) struct Client {
    /// The client, and the authorities that it trusts.
    http: Mutex<(Option<Arc<Authorities>>, reqwest::Client)>,
    ca: Ca,
    proxies: Proxies,
    is_plain: bool,
}

/// A call of a server.
pub(in crate::root) struct Request {
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Bytes,
    /// What is secret in it.
    secrets: Secrets,
}

/// A server's response.
pub(in crate::root) struct Response {
    pub(in crate::root) status: u16,
    headers: HeaderMap,
    body: Zeroizing<Vec<u8>>,
    /// What was secret in the request.
    secrets: Secrets,
}

impl Request {
    pub(in crate::root) fn get(url: String) -> Self {
        let (method, headers, body) = (Method::GET, HeaderMap::new(), Bytes::new());
        Self { method, url, headers, body, secrets: Secrets::default() }
    }

    /// A POST of `body` as JSON, in a buffer that is wiped.
    pub(in crate::root) fn json(url: String, body: &impl Serialize) -> Result<Self, Error> {
        let mut json = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        serde_json::to_writer(&mut *json, body).map_err(|error| Error::Away(error.to_string()))?;
        Ok(Self::post(url, "application/json", json))
    }

    /// A POST of the fields of a form, in a buffer that is wiped.
    pub(in crate::root) fn form(url: String, fields: &[(&str, &[u8])]) -> Self {
        let mut form = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        for (name, value) in fields {
            if !form.is_empty() {
                form.push(b'&');
            }
            form.extend_from_slice(name.as_bytes());
            form.push(b'=');
            value.iter().for_each(|&byte| percent_encode(byte, &mut form));
        }
        Self::post(url, "application/x-www-form-urlencoded", form)
    }

    fn post(url: String, kind: &'static str, body: Zeroizing<Vec<u8>>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        let (method, body) = (Method::POST, Bytes::from_owner(body));
        Self { method, url, headers, body, secrets: Secrets::default() }
    }

    /// The same, with the secrets in its body: no text of the response that repeats one is shown.
    pub(in crate::root) fn with_secrets<'a>(
        mut self,
        secrets: impl IntoIterator<Item = &'a [u8]>,
    ) -> Self {
        secrets.into_iter().for_each(|secret| self.secrets.add(secret));
        self
    }

    /// The same with a header. What follows the scheme in one that is sensitive is a secret.
    pub(in crate::root) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        if value.is_sensitive() {
            let bytes = value.as_bytes();
            self.secrets.add(bytes.strip_prefix(b"Bearer ").unwrap_or(bytes));
        }
        self.headers.insert(name, value);
        self
    }
}

/// Writes a byte of a form's value.
fn percent_encode(byte: u8, form: &mut Vec<u8>) {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        form.push(byte);
    } else {
        let digit = |value: u8| if value < 10 { b'0' + value } else { b'A' + value - 10 };
        form.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
    }
}

/// A header with a secret, whose bytes are wiped and hidden from `Debug`.
pub(in crate::root) fn secret_header(prefix: &str, secret: &SecretBytes) -> Option<HeaderValue> {
    let bytes = Zeroizing::new([prefix.as_bytes(), secret.expose()].concat());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(bytes)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Response {
    /// Whether the call succeeded.
    pub(in crate::root) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Parses the body; `None` if it has another form.
    pub(in crate::root) fn read<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The body as text without white space at its ends; `None` if it is not text.
    pub(in crate::root) fn text(&self) -> Option<&str> {
        str::from_utf8(&self.body).ok().map(str::trim)
    }

    /// The value of a header, if it is text.
    pub(in crate::root) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `text`, which is a part of this response, as it may be shown.
    pub(in crate::root) fn line(&self, text: &str) -> String {
        self.secrets.line(text)
    }

    /// How long the server asks its callers to wait, if it does so in seconds.
    pub(in crate::root) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }
}

impl Client {
    /// A client that follows no redirects, which would send a token to another server. With
    /// `is_plain` it calls only `http://` URLs, for which no authorities are needed.
    ///
    /// # Errors
    /// What is wrong with `ca` or with the variables of the proxy.
    pub(in crate::root) fn new(
        root: &str,
        ca: Option<&Path>,
        is_plain: bool,
    ) -> Result<Self, String> {
        let ca = Ca::open(root, ca)?;
        let proxies = Proxies::from_env()?;
        let authorities = ca.used();
        let http = build(authorities.as_deref(), is_plain, &proxies)?;
        Ok(Self { http: Mutex::new((authorities, http)), ca, proxies, is_plain })
    }

    /// Makes one call.
    pub(in crate::root) async fn send(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, Failure> {
        let away = |error: reqwest::Error| self.away(&request.url, timeout, &error);
        let call = self.http().await?.request(request.method.clone(), &request.url);
        let call = call.headers(request.headers.clone()).body(request.body.clone());
        let mut response = call.timeout(timeout).send().await.map_err(away)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let announced = response.content_length().and_then(|len| usize::try_from(len).ok());
        let capacity = announced.unwrap_or(MAX_RESPONSE).min(MAX_RESPONSE);
        let mut body = Zeroizing::new(Vec::with_capacity(capacity));
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            if body.len() + chunk.len() > MAX_RESPONSE {
                let detail = format!("{} sends a response that is too long", host(&request.url));
                return Err(Failure::never(Error::Away(detail)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Response { status, headers, body, secrets: request.secrets.clone() })
    }

    /// The HTTP client, with the current authorities of `ca`. A new client has no old connections.
    async fn http(&self) -> Result<reqwest::Client, Failure> {
        let current = self.ca.current().await;
        let mut http = self.http.lock();
        if !is_same(&http.0, &current) {
            let made = build(current.as_deref(), self.is_plain, &self.proxies);
            *http = (current, made.map_err(|detail| Failure::never(Error::Away(detail)))?);
        }
        Ok(http.1.clone())
    }

    fn away(&self, url: &str, timeout: Duration, error: &reqwest::Error) -> Failure {
        let detail = if error.is_timeout() {
            format!("no answer in {}", human_units::duration::rounded(timeout))
        } else {
            // The error itself only says that a request failed. The last cause distinguishes a
            // wrong CA from an outage.
            error_chain::to_text(error.source().unwrap_or(error))
        };
        let via = self.proxies.of(url).map(Proxy::via).unwrap_or_default();
        let about_ca = self.ca.explain(&detail);
        Failure::soon(format!("{} can't be reached: {detail}{via}{about_ca}", host(url)))
    }
}

/// A client that trusts `authorities`, or the system's, and uses the proxy for `https://`.
fn build(
    authorities: Option<&Authorities>,
    is_plain: bool,
    proxies: &Proxies,
) -> Result<reqwest::Client, String> {
    let no_tls = |error: reqwest::Error| format!("no TLS: {}", error_chain::to_text(&error));
    let mut http = reqwest::Client::builder()
        .user_agent(concat!("kms-proxy/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        // Calls are rare, and servers and proxies close idle connections.
        .pool_idle_timeout(Duration::from_secs(20));
    if let Some(authorities) = authorities {
        let certs = authorities.certs.iter().map(|der| Certificate::from_der(der));
        http = http.tls_certs_only(certs.collect::<Result<Vec<_>, _>>().map_err(no_tls)?);
    } else if is_plain {
        // A machine without system certificates is not an error.
        http = http.tls_certs_only([]);
    }
    if let Some((proxy, no_proxy)) = proxies.https() {
        let proxy = reqwest::Proxy::https(proxy.url()).map_err(no_tls)?;
        http = http.proxy(proxy.no_proxy(NoProxy::from_string(&no_proxy)));
    }
    http.build().map_err(no_tls)
}

/// Host and port of a URL, for errors: a query may contain what nobody should see.
pub(in crate::root) fn host(url: &str) -> String {
    let parsed = Url::parse(url).ok();
    let authority = parsed.as_ref().map(Url::authority).unwrap_or_default();
    if authority.is_empty() { "the server".to_owned() } else { line(authority) }
}

/// Whether secrets may be sent to `url`: over TLS, or to this machine.
pub(in crate::root) fn is_safe(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| match url.scheme() {
        "https" => url.has_host(),
        "http" => url.host_str().is_some_and(is_loopback),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_encoded_and_secrets_stay_out_of_debug() {
        let form = Request::form("http://x".to_owned(), &[("a", b"b c"), ("d", b"+&=/%\xff~")]);
        assert_eq!(&*form.body, b"a=b%20c&d=%2B%26%3D%2F%25%FF~");
        let secret = SecretBytes::new(b"hunter2".to_vec());
        let value = secret_header("Bearer ", &secret).unwrap();
        assert_eq!(value.as_bytes(), b"Bearer hunter2");
        assert!(!format!("{value:?}").contains("hunter2"));
        assert!(secret_header("", &SecretBytes::new(b"a\nb".to_vec())).is_none());
    }

    #[test]
    fn secrets_are_sent_over_tls_or_to_this_machine_only() {
        for good in ["https://sts.test/v1", "http://127.0.0.1:1/", "http://localhost/x"] {
            assert!(is_safe(good), "{good}");
        }
        for bad in ["http://sts.test/", "ftp://127.0.0.1/", "sts.test", "https://", ""] {
            assert!(!is_safe(bad), "{bad}");
        }
        assert_eq!(host("https://sts.test:8443/token?secret=1"), "sts.test:8443");
    }
}
