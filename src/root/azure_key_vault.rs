//! `azure-key-vault`: a key in Azure Key Vault or a Managed HSM, by its calls `wrapkey` and
//! `unwrapkey`.
//!
//! This file owns what is sent and the checks of what comes back. `wrapped` owns the format of a
//! wrap, `failure` interprets errors, `challenge` finds what a token must be for, `credentials`
//! gets tokens.
//!
//! The algorithms take no AAD, so a hash of the context is wrapped behind the KEK.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64_simd::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use reqwest::header::AUTHORIZATION;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::proxy::Proxies;
use crate::secret::KeyBytes;

use super::cloud::attempts::{Failure, Rules};
use super::cloud::http::{Client, Request, Response};
use super::cloud::tokens::Tokens;
use super::{Context, Error, IfMissing, RootKey, authorities};

mod challenge;
mod credentials;
mod failure;
mod key_id;
mod wrapped;

pub use super::settings::{AzureKeyVault as Config, WrapAlgorithm};

use challenge::Resource;
use failure::Call;
use key_id::KeyId;
use wrapped::Wrapped;

/// The version of the API, which Key Vault and Managed HSM both have.
const API: &str = "api-version=7.4";

/// The bytes of a SHA-256.
const HASH_LEN: usize = 32;

impl Config {
    /// Checks the settings, without a call.
    pub(super) fn check(&self) -> Result<(), String> {
        KeyId::parse(&self.key_id)?;
        credentials::find(&variable, Resource::default())?;
        self.ca.as_deref().map(authorities::read).transpose()?;
        Proxies::from_env()?;
        // The service waits 15 s for a root.
        if !(Duration::from_millis(100)..=Duration::from_secs(14)).contains(&self.timeout) {
            return Err("timeout: must be between 100ms and 14s".to_owned());
        }
        Ok(())
    }
}

/// A variable of the environment.
#[expect(clippy::disallowed_methods, reason = "Azure's libraries find credentials by them")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A key of a vault or a Managed HSM.
pub struct Root {
    config: Config,
    key: KeyId,
    client: Client,
    rules: Rules,
    resource: Resource,
    tokens: Tokens,
    /// The version that made the last wrap: the latest one.
    latest: Mutex<Option<[u8; 16]>>,
}

impl Root {
    /// Checks the settings. This makes no call, so Azure may be unavailable.
    ///
    /// # Errors
    /// A message for an operator.
    pub fn open(config: &Config) -> Result<Self, String> {
        config.check()?;
        Self::with(config, &variable)
    }

    fn with(config: &Config, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let key = KeyId::parse(&config.key_id)?;
        if key.is_in_the_open() {
            tracing::warn!(
                root = config.name,
                "key_id is plain http to another machine: anyone who sees the traffic can read \
                 the token and every KEK; use https"
            );
        }
        let resource = Resource::default();
        let source = credentials::find(variable, resource.clone())?;
        Ok(Self {
            client: Client::new(&config.name, config.ca.as_deref(), key.is_plain())?,
            rules: Rules::new(config.timeout),
            resource,
            tokens: Tokens::new(source),
            latest: Mutex::default(),
            key,
            config: config.clone(),
        })
    }

    /// Makes a call until an attempt succeeds, and reads its response by `read`. `kek` is the KEK
    /// in `body`.
    async fn call<T>(
        &self,
        call: Call,
        version: &str,
        body: &(impl Serialize + Sync),
        kek: Option<&KeyBytes>,
        read: impl Fn(&Response) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let mut attempts = self.rules.begin()?;
        loop {
            let attempt = async {
                let share = attempts.share();
                let path = match call {
                    Call::Wrap => format!("{version}/wrapkey"),
                    Call::Unwrap => format!("{version}/unwrapkey"),
                };
                let url = format!("{}/{path}?{API}", self.key.url);
                let made = || {
                    let request = Request::json(url.clone(), body).map_err(Failure::never)?;
                    Ok(request.with_secrets(kek.map(KeyBytes::expose)))
                };
                let response = self.authorized(made, share).await?;
                if response.is_success() {
                    return read(&response);
                }
                // A missing key and a missing version have the same response.
                if call == Call::Unwrap && response.status == 404 {
                    let made = || Ok(Request::get(format!("{}?{API}", self.key.url)));
                    if self.authorized(made, share).await?.is_success() {
                        return Err(failure::no_version(version));
                    }
                }
                Err(failure::of(call, &response))
            };
            match attempts.within(attempt).await {
                Ok(done) => return Ok(done),
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    /// Makes one attempt, and repeats it with another token if the first one is refused.
    async fn authorized(
        &self,
        made: impl Fn() -> Result<Request, Failure>,
        share: Duration,
    ) -> Result<Response, Failure> {
        self.find_resource(share).await?;
        let mut is_second = false;
        loop {
            let token = self.tokens.get(&self.client, share).await?;
            let request = made()?.header(AUTHORIZATION, token.header());
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

    /// Asks once, without a token and a KEK, what tokens must be for.
    async fn find_resource(&self, share: Duration) -> Result<(), Failure> {
        if self.resource.get().is_some() {
            return Ok(());
        }
        let request = Request::get(format!("{}?{API}", self.key.url));
        let response = self.client.send(&request, share).await?;
        let asked = response.header("www-authenticate").and_then(challenge::resource);
        let Some(resource) = asked.filter(|_| response.status == 401) else {
            return Err(match response.status {
                status @ (..300 | 401) => failure::not_azure_but(status),
                _ => failure::of(Call::Wrap, &response),
            });
        };
        challenge::check(&resource, &self.key.host)
            .map_err(|detail| Failure::never(Error::Denied(detail)))?;
        self.resource.set(resource);
        Ok(())
    }

    fn read_wrapped(&self, response: &Response) -> Result<Vec<u8>, Failure> {
        let operation: Operation<'_> = response.read().ok_or_else(failure::not_azure)?;
        let Some(version) = self.key.version(&operation.kid) else {
            let detail = format!(
                "the key {} answered, and key_id is {}",
                response.line(&operation.kid),
                self.key.url
            );
            return Err(Failure::never(Error::Denied(detail)));
        };
        let sealed = URL_SAFE_NO_PAD.decode_to_vec(operation.value.as_bytes());
        let sealed = sealed.map_err(|_| failure::not_azure())?;
        let wrapped = Wrapped { algorithm: self.config.algorithm, version, sealed: &sealed };
        if !wrapped.fits() {
            return Err(failure::not_azure());
        }
        *self.latest.lock() = Some(version);
        Ok(wrapped.to_bytes())
    }

    fn read_unwrapped(context: Context<'_>, response: &Response) -> Result<KeyBytes, Failure> {
        let operation: Operation<'_> = response.read().ok_or_else(failure::not_azure)?;
        let opened = URL_SAFE_NO_PAD.decode_to_vec(operation.value.as_bytes());
        let opened = opened.map(Zeroizing::new).map_err(|_| failure::not_azure())?;
        let wrong = |detail: &str| Failure::never(Error::Wrong(detail.to_owned()));
        let (kek, hash) = opened
            .split_last_chunk::<HASH_LEN>()
            .ok_or_else(|| wrong("it unwraps to something that is not a KEK"))?;
        if !bool::from(hash.ct_eq(&Sha256::digest(context.aad())[..])) {
            return Err(wrong("it was made for another KEK or another chain"));
        }
        KeyBytes::from_slice(kek)
            .filter(|kek| kek.suite() == context.suite)
            .ok_or_else(|| wrong("it unwraps to a key of another size"))
    }
}

#[derive(Serialize)]
struct Body<'a> {
    alg: &'static str,
    value: &'a str,
}

/// The text borrows from the response's buffer, which is wiped: base64 needs no escapes.
#[derive(Deserialize)]
struct Operation<'a> {
    #[serde(borrow)]
    kid: Cow<'a, str>,
    value: &'a str,
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        let hash = Sha256::digest(context.aad());
        let plain = Zeroizing::new([kek.expose(), &hash[..]].concat());
        let value = Zeroizing::new(URL_SAFE_NO_PAD.encode_to_string(&*plain));
        let body = Body { alg: self.config.algorithm.as_str(), value: &value };
        // Azure takes the latest version for an empty one, and names it.
        self.call(Call::Wrap, "", &body, Some(kek), |response| self.read_wrapped(response)).await
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        // Bytes that can't be a wrap cost no call.
        let Wrapped { algorithm, version, sealed } = Wrapped::from_bytes(wrapped)?;
        let value = URL_SAFE_NO_PAD.encode_to_string(sealed);
        let body = Body { alg: algorithm.as_str(), value: &value };
        let version = base16ct::lower::encode_string(&version);
        let read = |response: &Response| Self::read_unwrapped(context, response);
        self.call(Call::Unwrap, &version, &body, None, read).await
    }

    /// Compares with the latest version that this process has seen, in a wrap.
    fn is_current(&self, wrapped: &[u8]) -> bool {
        let latest = *self.latest.lock();
        Wrapped::from_bytes(wrapped).is_ok_and(|wrapped| {
            wrapped.algorithm == self.config.algorithm
                && latest.is_none_or(|latest| latest == wrapped.version)
        })
    }

    fn kind(&self) -> &'static str {
        "azure-key-vault"
    }

    fn key(&self) -> String {
        self.key.text.clone()
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
        Ok("make the key with Azure: `az keyvault key create --vault-name VAULT --name kms-proxy \
            --kty RSA --size 3072 --ops wrapKey unwrapKey`, and give the service's identity the \
            role Key Vault Crypto Service Encryption User on it"
            .to_owned())
    }
}

#[cfg(test)]
mod tests;
