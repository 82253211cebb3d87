//! Workload identity federation: a token of another issuer is exchanged for one of Google, and that
//! one for the token of a service account.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::root::cloud::attempts::Failure;
use crate::root::cloud::http::{Client, Request, Response, is_safe};
use crate::root::cloud::tokens::{Token, granted, no_credentials, refused};
use crate::secret::SecretBytes;

use super::{SCOPE, no_token, on_a_thread, read_secret};

const EXCHANGE: &[u8] = b"urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &[u8] = b"urn:ietf:params:oauth:token-type:access_token";

/// The description of a federation, as `gcloud iam workload-identity-pools create-cred-config`
/// writes it.
#[derive(Deserialize)]
pub(super) struct Federation {
    audience: String,
    subject_token_type: String,
    token_url: String,
    credential_source: Origin,
    service_account_impersonation_url: Option<String>,
    #[serde(default)]
    service_account_impersonation: Impersonation,
    /// Only with a pool of a workforce, which is not supported.
    workforce_pool_user_project: Option<String>,
}

#[derive(Deserialize)]
struct Impersonation {
    #[serde(default = "hour")]
    token_lifetime_seconds: u64,
}

impl Default for Impersonation {
    fn default() -> Self {
        Self { token_lifetime_seconds: hour() }
    }
}

fn hour() -> u64 {
    3600
}

/// Where the token of the other issuer is.
#[derive(Deserialize)]
struct Origin {
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    format: Format,
    /// AWS.
    environment_id: Option<String>,
    executable: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Format {
    #[default]
    Text,
    Json {
        subject_token_field_name: String,
    },
}

impl Federation {
    /// Checks what can be checked without a call.
    pub(super) fn check(&self) -> Result<(), String> {
        let origin = &self.credential_source;
        if origin.environment_id.is_some() || origin.executable.is_some() {
            return Err("credential_source: only file and url are supported".to_owned());
        }
        if origin.file.is_some() == origin.url.is_some() {
            return Err("credential_source: it must have either file or url".to_owned());
        }
        if self.workforce_pool_user_project.is_some() {
            return Err("pools of a workforce are not supported".to_owned());
        }
        let urls = [Some(&self.token_url), self.service_account_impersonation_url.as_ref()];
        if !urls.into_iter().flatten().all(|url| is_safe(url)) {
            return Err(
                "token_url and service_account_impersonation_url must be https:// URLs".to_owned()
            );
        }
        Ok(())
    }

    pub(super) async fn fetch(&self, client: &Client, share: Duration) -> Result<Token, Failure> {
        let subject = self.credential_source.read(client, share).await?;
        let request = Request::form(
            self.token_url.clone(),
            &[
                ("grant_type", EXCHANGE),
                ("audience", self.audience.as_bytes()),
                ("scope", SCOPE.as_bytes()),
                ("requested_token_type", ACCESS_TOKEN),
                ("subject_token", subject.expose()),
                ("subject_token_type", self.subject_token_type.as_bytes()),
            ],
        );
        let request = request.with_secrets([subject.expose()]);
        let what = "the security token service";
        let response = client.send(&request, share).await.map_err(no_token(what))?;
        let token = granted(what, &response)?;
        match &self.service_account_impersonation_url {
            Some(url) => self.impersonate(url, token, client, share).await,
            None => Ok(token),
        }
    }

    /// Gets the token of a service account that the federated identity may act as.
    async fn impersonate(
        &self,
        url: &str,
        token: Token,
        client: &Client,
        share: Duration,
    ) -> Result<Token, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            #[serde(borrow)]
            access_token: Cow<'a, str>,
        }
        let what = "the service that impersonates the service account";
        let life = self.service_account_impersonation.token_lifetime_seconds;
        let body = json!({"scope": [SCOPE], "lifetime": format!("{life}s")});
        let request = Request::json(url.to_owned(), &body).map_err(Failure::never)?;
        let request = request.header(AUTHORIZATION, token.header());
        let response = client.send(&request, share).await.map_err(no_token(what))?;
        if !response.is_success() {
            return Err(refused(what, &response));
        }
        let body = response.read::<Body<'_>>();
        let secret = body.map(|body| SecretBytes::new(body.access_token.into_owned().into_bytes()));
        secret
            .and_then(|secret| Token::new(&secret, Duration::from_secs(life)))
            .ok_or_else(|| no_credentials(format!("the response of {what} has no token")))
    }
}

impl Origin {
    /// The token of the other issuer.
    async fn read(&self, client: &Client, share: Duration) -> Result<SecretBytes, Failure> {
        if let Some(path) = self.file.clone() {
            let text = on_a_thread(move || {
                read_secret(&path).map_err(|detail| format!("{}: {detail}", path.display()))
            });
            return self.format.token(text.await?.expose());
        }
        let what = "the issuer of the token";
        let mut request = Request::get(self.url.clone().unwrap_or_default());
        for (name, value) in &self.headers {
            let header = HeaderName::from_bytes(name.as_bytes()).ok();
            let header = header.zip(HeaderValue::from_str(value).ok());
            let malformed = || no_credentials("credential_source.headers is malformed".to_owned());
            let (name, value) = header.ok_or_else(malformed)?;
            // Headers may contain credentials of the issuer.
            request = request.with_secrets([value.as_bytes()]).header(name, value.clone());
        }
        let response: Response = client.send(&request, share).await.map_err(no_token(what))?;
        if !response.is_success() {
            return Err(refused(what, &response));
        }
        self.format.token(response.text().unwrap_or_default().as_bytes())
    }
}

impl Format {
    fn token(&self, text: &[u8]) -> Result<SecretBytes, Failure> {
        let token = match self {
            Self::Text => Some(text.trim_ascii().to_vec()),
            Self::Json { subject_token_field_name } => {
                let json: Option<Value> = serde_json::from_slice(text).ok();
                let field = json.as_ref().and_then(|json| json.get(subject_token_field_name));
                field.and_then(Value::as_str).map(|token| token.as_bytes().to_vec())
            }
        };
        let token = token.filter(|token| !token.is_empty()).map(SecretBytes::new);
        token.ok_or_else(|| {
            no_credentials(
                "the token of the other issuer is not where credential_source says".into(),
            )
        })
    }
}
