//! The files of credentials: a service account's key, the description of a federation, or what
//! gcloud stores for a developer.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::clock::{Clock, SystemClock};
use crate::root::cloud::attempts::Failure;
use crate::root::cloud::http::{Client, Request, is_safe};
use crate::root::cloud::jwt::{self, Algorithm};
use crate::root::cloud::tokens::{Token, granted, no_credentials};
use crate::secret::SecretBytes;

use super::federation::Federation;
use super::{SCOPE, no_token};

/// The life of a JWT that this process signs. Google accepts at most an hour.
const LIFE: Duration = Duration::from_secs(3600);

/// How far the clock of this machine may be ahead.
const SKEW: u64 = 10;

/// Who the service is.
pub(super) enum Account {
    Service(Service),
    Federation(Federation),
    User(User),
}

/// A service account's key. A JWT that it signs is accepted as a token.
#[derive(Deserialize)]
pub(super) struct Service {
    client_email: String,
    private_key_id: String,
    #[serde(deserialize_with = "secret")]
    private_key: SecretBytes,
}

/// A developer, as `gcloud auth application-default login` stores them.
#[derive(Deserialize)]
pub(super) struct User {
    client_id: String,
    #[serde(deserialize_with = "secret")]
    client_secret: SecretBytes,
    #[serde(deserialize_with = "secret")]
    refresh_token: SecretBytes,
    #[serde(default = "google")]
    token_uri: String,
}

fn google() -> String {
    "https://oauth2.googleapis.com/token".to_owned()
}

/// A secret in JSON. A private key has line ends that are escaped there, so serde makes a copy that
/// is not wiped.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretBytes, D::Error> {
    String::deserialize(deserializer).map(|text| SecretBytes::new(text.into_bytes()))
}

impl Account {
    /// Reads a file. Errors do not repeat its contents.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
        }
        let kind: Kind<'_> = serde_json::from_slice(json)
            .map_err(|_| "it is not a file with credentials of Google Cloud".to_owned())?;
        let account = match &*kind.kind {
            "service_account" => Self::Service(read(json)?),
            "external_account" => Self::Federation(read(json)?),
            "authorized_user" => Self::User(read(json)?),
            "impersonated_service_account"
            | "external_account_authorized_user"
            | "gdch_service_account" => {
                return Err(format!(
                    "credentials of type {} are not supported; these are: service_account, \
                     external_account, authorized_user",
                    kind.kind
                ));
            }
            _ => return Err("its type is not one of credentials of Google Cloud".to_owned()),
        };
        account.check()?;
        Ok(account)
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Service(service) => jwt::rsa_key(service.private_key.expose()).map(drop),
            Self::Federation(federation) => federation.check(),
            Self::User(user) if is_safe(&user.token_uri) => Ok(()),
            Self::User(_) => Err("token_uri must be an https:// URL".to_owned()),
        }
    }

    pub(super) async fn fetch(&self, client: &Client, share: Duration) -> Result<Token, Failure> {
        match self {
            Self::Service(service) => service.sign(SystemClock::new().unix_now()),
            Self::Federation(federation) => federation.fetch(client, share).await,
            Self::User(user) => user.refresh(client, share).await,
        }
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, String> {
    // The message of serde for a missing field names it. Other messages may repeat a value.
    serde_json::from_slice(json).map_err(|error| {
        let text = error.to_string();
        let field = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        match field {
            Some(field) => format!("it has no {field}"),
            None => "one of its fields has the wrong form".to_owned(),
        }
    })
}

impl Service {
    fn sign(&self, now: u64) -> Result<Token, Failure> {
        let issued = now.saturating_sub(SKEW);
        let claims = json!({
            "iss": self.client_email,
            "sub": self.client_email,
            "scope": SCOPE,
            "iat": issued,
            "exp": issued + LIFE.as_secs(),
        });
        let header = [("kid", &*self.private_key_id)];
        let key = self.private_key.expose();
        let signed = jwt::sign(key, Algorithm::Rs256, &header, &claims).map_err(no_credentials)?;
        let life = LIFE - Duration::from_secs(SKEW);
        Token::new(&signed, life).ok_or_else(|| no_credentials("the JWT is malformed".to_owned()))
    }
}

impl User {
    async fn refresh(&self, client: &Client, share: Duration) -> Result<Token, Failure> {
        let request = Request::form(
            self.token_uri.clone(),
            &[
                ("grant_type", b"refresh_token"),
                ("client_id", self.client_id.as_bytes()),
                ("client_secret", self.client_secret.expose()),
                ("refresh_token", self.refresh_token.expose()),
            ],
        );
        let secrets = [&self.client_secret, &self.refresh_token].map(SecretBytes::expose);
        let request = request.with_secrets(secrets);
        let what = "the token server of Google";
        let response = client.send(&request, share).await.map_err(no_token(what))?;
        granted(what, &response)
    }
}
