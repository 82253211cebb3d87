//! The credentials of a root in Azure, by the variables that Azure's libraries read: a client
//! secret, a certificate, a federated token, or a managed identity. It knows nothing about keys.
//!
//! Files are read for each token, so that a replaced file is used without a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64_simd::URL_SAFE_NO_PAD;
use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::clock::{Clock, SystemClock};
use crate::root::Error;
use crate::root::cloud::attempts::Failure;
use crate::root::cloud::http::{Client, Request, is_safe, secret_header};
use crate::root::cloud::jwt::{self, Algorithm};
use crate::root::cloud::tokens::{Source, Token, granted, no_credentials, warn_of_readers};
use crate::secret::SecretBytes;
use crate::{files, pem, random};

use super::challenge::Resource;

/// Where identities log in, unless `AZURE_AUTHORITY_HOST` names another cloud.
const AUTHORITY: &str = "https://login.microsoftonline.com";

/// The metadata service of a machine, unless `AZURE_POD_IDENTITY_AUTHORITY_HOST` names another one.
const METADATA: &str = "http://169.254.169.254";

const ASSERTION: &[u8] = b"urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How the service proves who it is.
#[derive(Clone)]
enum Login {
    Secret(Arc<SecretBytes>),
    /// A PEM file with a certificate and its RSA key.
    Certificate(PathBuf),
    /// A file with a token of Kubernetes or of another issuer.
    Federated(PathBuf),
}

/// An application, which logs in.
struct Application {
    url: String,
    client_id: String,
    login: Login,
    resource: Resource,
}

/// The identity of a machine or of an app, whose platform logs in.
struct Managed {
    /// Without the resource.
    url: Url,
    header: (HeaderName, HeaderValue),
    resource: Resource,
}

/// Finds the credentials.
///
/// # Errors
/// What is missing or wrong, for an operator.
pub(super) fn find(
    variable: &dyn Fn(&str) -> Option<String>,
    resource: Resource,
) -> Result<Box<dyn Source>, String> {
    let login = if let Some(secret) = variable("AZURE_CLIENT_SECRET") {
        Some(Login::Secret(Arc::new(SecretBytes::new(secret.into_bytes()))))
    } else if let Some(path) = variable("AZURE_CLIENT_CERTIFICATE_PATH") {
        Some(Login::Certificate(path.into()))
    } else {
        variable("AZURE_FEDERATED_TOKEN_FILE").map(|path| Login::Federated(path.into()))
    };
    let Some(login) = login else { return managed(variable, resource) };
    let given = |name| variable(name).ok_or_else(|| format!("{name} is not set"));
    let (tenant, client_id) = (given("AZURE_TENANT_ID")?, given("AZURE_CLIENT_ID")?);
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
    if !tenant.bytes().all(is_name) {
        return Err("AZURE_TENANT_ID: it is not the id of a tenant".to_owned());
    }
    let authority = variable("AZURE_AUTHORITY_HOST").unwrap_or_else(|| AUTHORITY.to_owned());
    let url = format!("{}/{tenant}/oauth2/v2.0/token", authority.trim_end_matches('/'));
    if !is_safe(&url) {
        return Err("AZURE_AUTHORITY_HOST: it must be an https:// URL".to_owned());
    }
    match &login {
        Login::Secret(_) => {}
        Login::Certificate(path) => {
            assertion(path, &url, &client_id)
                .map_err(|detail| format!("AZURE_CLIENT_CERTIFICATE_PATH: {detail}"))?;
            warn_of_readers("AZURE_CLIENT_CERTIFICATE_PATH", path);
        }
        Login::Federated(path) => {
            federated(path).map_err(|detail| format!("AZURE_FEDERATED_TOKEN_FILE: {detail}"))?;
        }
    }
    Ok(Box::new(Application { url, client_id, login, resource }))
}

/// The identity that the platform manages: that of an app service, else that of the machine.
fn managed(
    variable: &dyn Fn(&str) -> Option<String>,
    resource: Resource,
) -> Result<Box<dyn Source>, String> {
    let app = variable("IDENTITY_ENDPOINT").zip(variable("IDENTITY_HEADER"));
    let (url, header, version) = match app {
        Some((url, secret)) => {
            let header = secret_header("", &SecretBytes::new(secret.into_bytes()));
            let header = header.ok_or("IDENTITY_HEADER: it can't be in a header")?;
            (url, (HeaderName::from_static("x-identity-header"), header), "2019-08-01")
        }
        None => {
            let host = variable("AZURE_POD_IDENTITY_AUTHORITY_HOST");
            let host = host.unwrap_or_else(|| METADATA.to_owned());
            let url = format!("{}/metadata/identity/oauth2/token", host.trim_end_matches('/'));
            let header = (HeaderName::from_static("metadata"), HeaderValue::from_static("true"));
            (url, header, "2018-02-01")
        }
    };
    let mut url = Url::parse(&url).map_err(|_| "the URL of the managed identity is not a URL")?;
    url.query_pairs_mut().append_pair("api-version", version);
    if let Some(client_id) = variable("AZURE_CLIENT_ID") {
        url.query_pairs_mut().append_pair("client_id", &client_id);
    }
    Ok(Box::new(Managed { url, header, resource }))
}

#[async_trait]
impl Source for Application {
    async fn fetch(&self, client: &Client, share: Duration) -> Result<Token, Failure> {
        let scope = format!("{}/.default", self.resource.get().unwrap_or_default());
        let proof = self.proof().await?;
        let (name, secret): (_, &SecretBytes) = match &self.login {
            Login::Secret(secret) => ("client_secret", secret),
            _ => ("client_assertion", &proof),
        };
        let mut fields = vec![
            ("grant_type", &b"client_credentials"[..]),
            ("client_id", self.client_id.as_bytes()),
            ("scope", scope.as_bytes()),
            (name, secret.expose()),
        ];
        if name == "client_assertion" {
            fields.push(("client_assertion_type", ASSERTION));
        }
        let request = Request::form(self.url.clone(), &fields).with_secrets([secret.expose()]);
        let response = client.send(&request, share).await.map_err(no_token("Microsoft Entra"))?;
        granted("Microsoft Entra", &response)
    }
}

impl Application {
    /// A JWT that proves who the service is; empty with a client secret.
    async fn proof(&self) -> Result<SecretBytes, Failure> {
        let (login, url, id) = (self.login.clone(), self.url.clone(), self.client_id.clone());
        let read = tokio::task::spawn_blocking(move || match login {
            Login::Secret(_) => Ok(SecretBytes::new(Vec::new())),
            Login::Certificate(path) => assertion(&path, &url, &id),
            Login::Federated(path) => federated(&path),
        });
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        read.map_err(no_credentials)
    }
}

#[async_trait]
impl Source for Managed {
    async fn fetch(&self, client: &Client, share: Duration) -> Result<Token, Failure> {
        let mut url = self.url.clone();
        let resource = self.resource.get().unwrap_or_default();
        url.query_pairs_mut().append_pair("resource", &resource);
        let (name, value) = self.header.clone();
        let request = Request::get(url.into()).header(name, value);
        let what = "the service of managed identities";
        let missing = "none of AZURE_CLIENT_SECRET, AZURE_CLIENT_CERTIFICATE_PATH and \
                       AZURE_FEDERATED_TOKEN_FILE is set, and there is no managed identity";
        let response = client.send(&request, share).await.map_err(no_token(missing))?;
        granted(what, &response)
    }
}

/// Adds what the token is fetched for to a failure of the connection.
fn no_token(what: &str) -> impl Fn(Failure) -> Failure {
    move |failure| {
        let detail = match &failure.error {
            Error::Away(detail) | Error::Denied(detail) | Error::Wrong(detail) => detail,
        };
        Failure { retry: failure.retry, ..no_credentials(format!("{what}: {detail}")) }
    }
}

fn read_secret(path: &Path) -> Result<SecretBytes, String> {
    let named = |error: std::io::Error| format!("{}: {error}", path.display());
    files::check_rereadable(path).map_err(named)?;
    files::read_secret(path).map(|(secret, _)| secret.trim_end()).map_err(named)
}

/// The token in `path`.
fn federated(path: &Path) -> Result<SecretBytes, String> {
    let token = read_secret(path)?;
    if token.expose().is_empty() || !token.expose().iter().all(u8::is_ascii_graphic) {
        return Err(format!("{} does not contain a token", path.display()));
    }
    Ok(token)
}

/// A JWT for `audience`, signed with the key of the certificate in `path`.
fn assertion(path: &Path, audience: &str, client_id: &str) -> Result<SecretBytes, String> {
    let text = read_secret(path)?;
    let pair = pem::pair(text.expose(), text.expose()).map_err(|wrong| match wrong {
        pem::Wrong::Cert(detail) | pem::Wrong::Key(detail) => {
            format!("{}: {detail}", path.display())
        }
    })?;
    let certificate = pair.certs.first().map(|der| der.as_ref()).unwrap_or_default();
    let print = URL_SAFE_NO_PAD.encode_to_string(Sha256::digest(certificate));
    let mut id = [0; 16];
    random::fill(&mut id).map_err(|error| error.to_string())?;
    let now = SystemClock::new().unix_now();
    let claims = json!({
        "aud": audience,
        "iss": client_id,
        "sub": client_id,
        "jti": base16ct::lower::encode_string(&id),
        "nbf": now.saturating_sub(10),
        "exp": now + 600,
    });
    let header = [("x5t#S256", &*print)];
    jwt::sign(text.expose(), Algorithm::Ps256, &header, &claims)
        .map_err(|detail| format!("{}: {detail}", path.display()))
}
