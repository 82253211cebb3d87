//! `gcp-kms`: a symmetric key in Google Cloud KMS, by the calls `encrypt` and `decrypt` of its REST
//! API.
//!
//! This file owns what is sent and the checks of what comes back. `wrapped` owns the format of a
//! wrap, `failure` interprets errors, `credentials` finds and reads credentials. The context of a
//! KEK is passed as additional authenticated data.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64_simd::STANDARD;
use parking_lot::Mutex;
use reqwest::Url;
use reqwest::header::AUTHORIZATION;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::loopback::is_loopback;
use crate::proxy::Proxies;
use crate::secret::KeyBytes;

use super::cloud::attempts::{Failure, Rules};
use super::cloud::http::{Client, Request, Response};
use super::cloud::tokens::Tokens;
use super::{Context, Error, IfMissing, RootKey, authorities};

mod crc32c;
mod credentials;
mod failure;
mod key_id;
mod wrapped;

pub use super::settings::GcpKms as Config;

use failure::Call;
use wrapped::Wrapped;

const ENDPOINT: &str = "https://cloudkms.googleapis.com";

impl Config {
    /// Checks the settings, without a call.
    pub(super) fn check(&self) -> Result<(), String> {
        key_id::check(&self.key_id)?;
        self.url()?;
        credentials::find(self.credentials_file.as_deref(), &variable)?;
        self.ca.as_deref().map(authorities::read).transpose()?;
        Proxies::from_env()?;
        // The service waits 15 s for a root.
        if !(Duration::from_millis(100)..=Duration::from_secs(14)).contains(&self.timeout) {
            return Err("timeout: must be between 100ms and 14s".to_owned());
        }
        Ok(())
    }

    /// The endpoint: `http` or `https` and a host, nothing else. Errors do not repeat it, since it
    /// may contain a password.
    fn url(&self) -> Result<Url, String> {
        let url = Url::parse(self.endpoint.as_deref().unwrap_or(ENDPOINT)).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
                && matches!(url.path(), "" | "/")
        });
        url.ok_or_else(|| {
            "endpoint: must be a URL such as https://cloudkms.googleapis.com".to_owned()
        })
    }

    /// Whether tokens and KEKs cross a network without TLS.
    fn is_in_the_open(&self) -> bool {
        self.url()
            .is_ok_and(|url| url.scheme() == "http" && !url.host_str().is_some_and(is_loopback))
    }
}

/// A variable of the environment.
#[expect(clippy::disallowed_methods, reason = "Google's libraries find credentials by them")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A key of Cloud KMS.
pub struct Root {
    config: Config,
    /// The URL of the key.
    url: String,
    client: Client,
    rules: Rules,
    tokens: Tokens,
    primary: Mutex<Primary>,
}

/// What this process knows about the primary version of the key.
#[derive(Clone, Copy)]
enum Primary {
    Unknown,
    Is(u32),
    IsNot(u32),
}

impl Root {
    /// Checks the settings. This makes no call, so Cloud KMS may be unavailable.
    ///
    /// # Errors
    /// A message for an operator.
    pub fn open(config: &Config) -> Result<Self, String> {
        config.check()?;
        let source = credentials::find(config.credentials_file.as_deref(), &variable)?;
        Self::with(config, Tokens::new(source))
    }

    fn with(config: &Config, tokens: Tokens) -> Result<Self, String> {
        let endpoint = config.url()?;
        if config.is_in_the_open() {
            tracing::warn!(
                root = config.name,
                "the endpoint is plain http to another machine: anyone who sees the traffic can \
                 read the token and every KEK; use https"
            );
        }
        let base = endpoint.as_str().trim_end_matches('/');
        Ok(Self {
            url: format!("{base}/v1/{}", config.key_id),
            client: Client::new(&config.name, config.ca.as_deref(), endpoint.scheme() == "http")?,
            rules: Rules::new(config.timeout),
            tokens,
            primary: Mutex::new(Primary::Unknown),
            config: config.clone(),
        })
    }

    /// Makes a call until an attempt succeeds, and reads its response by `read`. `kek` is the KEK
    /// in `body`.
    async fn call<T>(
        &self,
        call: Call,
        body: &(impl Serialize + Sync),
        kek: Option<&KeyBytes>,
        read: impl Fn(&Response) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let mut attempts = self.rules.begin()?;
        loop {
            let attempt = async {
                let response = self.attempt(call, body, kek, attempts.share()).await?;
                if response.is_success() {
                    read(&response)
                } else {
                    Err(failure::of(call, &response))
                }
            };
            match attempts.within(attempt).await {
                Ok(done) => return Ok(done),
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    /// Makes one attempt, and repeats it with another token if the first one is refused.
    async fn attempt(
        &self,
        call: Call,
        body: &(impl Serialize + Sync),
        kek: Option<&KeyBytes>,
        share: Duration,
    ) -> Result<Response, Failure> {
        let method = match call {
            Call::Encrypt => "encrypt",
            Call::Decrypt => "decrypt",
        };
        let mut is_second = false;
        loop {
            let token = self.tokens.get(&self.client, share).await?;
            let request = Request::json(format!("{}:{method}", self.url), body);
            let request = request.map_err(Failure::never)?.header(AUTHORIZATION, token.header());
            let request = request.with_secrets(kek.map(KeyBytes::expose));
            let response = self.client.send(&request, share).await?;
            if response.status != 401 {
                return Ok(response);
            }
            self.tokens.refused(&token);
            if is_second {
                return Ok(response);
            }
            is_second = true;
        }
    }

    fn read_encrypted(&self, response: &Response) -> Result<Vec<u8>, Failure> {
        let encrypted: Encrypted<'_> = response.read().ok_or_else(failure::not_kms)?;
        let Some(version) = key_id::version(&self.config.key_id, &encrypted.name) else {
            let name = response.line(&encrypted.name);
            return Err(Failure::never(Error::Denied(format!(
                "the key {name} answered, and key_id is {}",
                self.config.key_id
            ))));
        };
        let ciphertext = STANDARD.decode_to_vec(encrypted.ciphertext.as_bytes());
        let ciphertext = ciphertext.map_err(|_| failure::not_kms())?;
        let arrived = encrypted.verified_plaintext_crc32c
            && encrypted.verified_additional_authenticated_data_crc32c;
        if !arrived || encrypted.ciphertext_crc32c.value() != Some(crc32c::of(&ciphertext)) {
            return Err(failure::damaged());
        }
        let wrapped = Wrapped { version, ciphertext: &ciphertext };
        if !wrapped.fits() {
            return Err(failure::not_kms());
        }
        *self.primary.lock() = Primary::Is(version);
        Ok(wrapped.to_bytes())
    }

    fn read_decrypted(&self, version: u32, response: &Response) -> Result<KeyBytes, Failure> {
        let decrypted: Decrypted<'_> = response.read().ok_or_else(failure::not_kms)?;
        let kek = STANDARD.decode_to_vec(decrypted.plaintext.as_bytes()).map(Zeroizing::new);
        let kek = kek.map_err(|_| failure::not_kms())?;
        if decrypted.plaintext_crc32c.value() != Some(crc32c::of(&kek)) {
            return Err(failure::damaged());
        }
        let mut primary = self.primary.lock();
        match (decrypted.used_primary, *primary) {
            (true, _) => *primary = Primary::Is(version),
            (false, Primary::Is(known)) if known != version => {}
            (false, _) => *primary = Primary::IsNot(version),
        }
        KeyBytes::from_slice(&kek).ok_or_else(|| {
            Failure::never(Error::Wrong("it unwraps to something that is not a KEK".to_owned()))
        })
    }
}

/// The number of bytes is known from the base64, so no buffer with a KEK grows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Encrypt<'a> {
    plaintext: &'a str,
    plaintext_crc32c: String,
    additional_authenticated_data: &'a str,
    additional_authenticated_data_crc32c: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Encrypted<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    ciphertext: Cow<'a, str>,
    #[serde(borrow, default)]
    ciphertext_crc32c: Checksum<'a>,
    #[serde(default)]
    verified_plaintext_crc32c: bool,
    #[serde(default)]
    verified_additional_authenticated_data_crc32c: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Decrypt<'a> {
    ciphertext: &'a str,
    ciphertext_crc32c: String,
    additional_authenticated_data: &'a str,
    additional_authenticated_data_crc32c: String,
}

/// The text borrows from the response's buffer, which is wiped: base64 needs no escapes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decrypted<'a> {
    plaintext: &'a str,
    #[serde(borrow, default)]
    plaintext_crc32c: Checksum<'a>,
    #[serde(default)]
    used_primary: bool,
}

/// A number of 64 bits, which is text in JSON.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Checksum<'a> {
    #[default]
    Missing,
    Number(u32),
    Text(#[serde(borrow)] Cow<'a, str>),
}

impl Checksum<'_> {
    fn value(&self) -> Option<u32> {
        match self {
            Self::Missing => None,
            Self::Number(value) => Some(*value),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        let aad = context.aad();
        let body = Encrypt {
            plaintext: &Zeroizing::new(STANDARD.encode_to_string(kek.expose())),
            plaintext_crc32c: crc32c::of(kek.expose()).to_string(),
            additional_authenticated_data: &STANDARD.encode_to_string(&aad),
            additional_authenticated_data_crc32c: crc32c::of(&aad).to_string(),
        };
        self.call(Call::Encrypt, &body, Some(kek), |response| self.read_encrypted(response)).await
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        // Bytes that can't be a wrap cost no call.
        let Wrapped { version, ciphertext } = Wrapped::from_bytes(wrapped)?;
        let aad = context.aad();
        let body = Decrypt {
            ciphertext: &STANDARD.encode_to_string(ciphertext),
            ciphertext_crc32c: crc32c::of(ciphertext).to_string(),
            additional_authenticated_data: &STANDARD.encode_to_string(&aad),
            additional_authenticated_data_crc32c: crc32c::of(&aad).to_string(),
        };
        let read = |response: &Response| self.read_decrypted(version, response);
        let kek = self.call(Call::Decrypt, &body, None, read).await?;
        Some(kek)
            .filter(|kek| kek.suite() == context.suite)
            .ok_or_else(|| Error::Wrong("it unwraps to a key of another size".to_owned()))
    }

    /// Compares with the primary version that this process has seen, in a wrap or an unwrap.
    fn is_current(&self, wrapped: &[u8]) -> bool {
        let primary = *self.primary.lock();
        Wrapped::from_bytes(wrapped).is_ok_and(|wrapped| match primary {
            Primary::Unknown => true,
            Primary::Is(version) => wrapped.version == version,
            Primary::IsNot(version) => wrapped.version != version,
        })
    }

    fn kind(&self) -> &'static str {
        "gcp-kms"
    }

    fn key(&self) -> String {
        self.config.key_id.clone()
    }
}

#[async_trait]
impl super::Provider for Config {
    fn check(&self, _: &Path) -> Result<(), String> {
        self.check()
    }

    async fn open(&self, _: &Path, _: IfMissing) -> Result<Arc<dyn RootKey>, String> {
        Ok(Arc::new(Root::open(self)?))
    }

    async fn init(&self, _: &Path) -> Result<String, String> {
        Ok("make the key with Google Cloud: `gcloud kms keys create kms-proxy --keyring RING \
            --location LOCATION --purpose encryption`, and give the service account \
            roles/cloudkms.cryptoKeyEncrypterDecrypter on it"
            .to_owned())
    }
}

#[cfg(test)]
mod tests;
