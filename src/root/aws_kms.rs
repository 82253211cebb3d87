//! `aws-kms`: a key in AWS KMS, by its calls Encrypt and Decrypt.
//!
//! It owns what is sent, how long a call may take and the format of a wrap. Credentials, signing
//! and retries are the SDK's, which reads the `AWS_*` variables and files by itself. `failure`
//! interprets the errors.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::{AppName, BehaviorVersion, ConfigLoader, Region};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::IdentityCache;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::error::SdkError;
use aws_sdk_kms::primitives::Blob;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::loopback::is_loopback;
use crate::proxy::{Proxies, Proxy};
use crate::secret::KeyBytes;

use super::authorities::{self, Authorities, Ca, is_same};
use super::echo::Secrets;
use super::{Context, Error, IfMissing, RootKey, forward, sealed};

mod failure;
mod key_id;
mod outgoing;
mod raw;
mod sent;

pub use super::settings::AwsKms as Config;

use sent::Sent;

/// The first byte of a wrap, followed by the ciphertext blob of KMS.
const FORMAT: u8 = 1;

/// The longest wrap, in bytes. KMS returns about 180 bytes for a KEK.
const LONGEST_WRAP: usize = 1024;

/// The largest number of attempts of a call. KMS bills each response.
const ATTEMPTS: u32 = 3;

impl Config {
    /// Checks the settings, without a call.
    pub(super) fn check(&self) -> Result<(), String> {
        key_id::check(&self.key_id)?;
        let of_arn = key_id::region(&self.key_id);
        match (&self.region, of_arn) {
            (Some(region), _) if !key_id::is_region(region) => {
                return Err("region: must be a region such as eu-central-1".to_owned());
            }
            (Some(region), Some(of_arn)) if region != of_arn => {
                return Err(format!("region: the key of key_id is in {of_arn}"));
            }
            _ => {}
        }
        if let Some(endpoint) = &self.endpoint {
            host(endpoint).ok_or("endpoint: must be a URL such as https://kms.example.com:4566")?;
        }
        self.ca.as_deref().map(authorities::read).transpose()?;
        Proxies::from_env()?;
        // The service waits 15 s for a root.
        if !(Duration::from_millis(100)..=Duration::from_secs(14)).contains(&self.timeout) {
            return Err("timeout: must be between 100ms and 14s".to_owned());
        }
        Ok(())
    }

    /// The endpoint, if KEKs are sent to it without TLS and it is another machine.
    fn plain_http(&self) -> Option<&str> {
        let endpoint = self.endpoint.as_deref().filter(|url| url.starts_with("http://"))?;
        (!is_loopback(&host(endpoint)?)).then_some(endpoint)
    }
}

/// The host of a valid endpoint: one without password and query.
fn host(endpoint: &str) -> Option<String> {
    let uri: http::Uri = endpoint.parse().ok()?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let is_plain = !endpoint.contains(['@', '?', '#']);
    uri.host().filter(|host| is_http && is_plain && !host.is_empty()).map(str::to_owned)
}

/// A key of KMS, used by its name.
pub struct Root {
    config: Config,
    ca: Ca,
    proxies: Proxies,
    /// Created by the first call: finding the region may take a call of the metadata service.
    connected: Mutex<Option<Connected>>,
    /// The ARN of the key that answered first, since an alias can be moved to another key.
    key: OnceLock<String>,
}

/// A client, and the authorities that it trusts.
struct Connected {
    client: Client,
    authorities: Option<Arc<Authorities>>,
}

impl Root {
    /// Checks the settings. This calls neither KMS nor any source of credentials.
    ///
    /// # Errors
    /// A message for an operator.
    pub fn open(config: &Config) -> Result<Self, String> {
        config.check()?;
        if let Some(endpoint) = config.plain_http() {
            tracing::warn!(
                root = config.name,
                endpoint,
                "KEKs are sent to this endpoint without TLS: anyone who sees the traffic can read \
                    them"
            );
        }
        Ok(Self {
            ca: Ca::open(&config.name, config.ca.as_deref())?,
            proxies: Proxies::from_env()?,
            config: config.clone(),
            connected: Mutex::default(),
            key: OnceLock::new(),
        })
    }

    async fn client(&self) -> Result<Client, Error> {
        let authorities = self.ca.current().await;
        let connect = async {
            let mut connected = self.connected.lock().await;
            match &*connected {
                Some(one) if is_same(&one.authorities, &authorities) => Ok(one.client.clone()),
                _ => {
                    let http = outgoing::client(authorities.as_deref(), &self.proxies)?;
                    let sdk = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
                    let client = connect(&self.config, sdk).await?;
                    let made = Connected { client, authorities: authorities.clone() };
                    Ok(connected.insert(made).client.clone())
                }
            }
        };
        let connected = tokio::time::timeout(self.config.timeout, connect).await;
        connected.unwrap_or_else(|_| Err(failure::no_region()))
    }

    /// Why a call failed. If KMS did not answer, this includes the endpoint, the proxy and `ca`.
    fn failed<E>(&self, error: &SdkError<E, HttpResponse>, failure: Error) -> Error {
        let is_answer = matches!(error, SdkError::ServiceError(_));
        let detail = match failure {
            Error::Away(detail) if !is_answer => detail,
            failure => return failure,
        };
        let url = self.config.endpoint.clone().unwrap_or_else(|| {
            format!("https://kms.{}.amazonaws.com", self.config.region().unwrap_or_default())
        });
        let via = self.proxies.of(&url).map(Proxy::via).unwrap_or_default();
        let about_ca = self.ca.explain(&detail);
        Error::Away(format!("{detail}{via}{about_ca}"))
    }

    /// Checks that the response is from the right key: the configured one or, for an alias, the one
    /// that answered first.
    fn check_key(&self, arn: &str, sent: &Sent) -> Result<(), String> {
        let configured = &self.config.key_id;
        if !key_id::may_be(configured, arn) {
            let arn = sent.secrets().line(arn);
            return Err(format!("the key {arn} answered, and key_id is {configured}"));
        }
        let first = self.key.get_or_init(|| arn.to_owned());
        if first == arn {
            return Ok(());
        }
        Err(format!(
            "{configured} was moved from {first} to {arn}. Set key_id to the ARN of the old key: \
             another key is another root and needs its own name"
        ))
    }
}

/// A client with time-outs for everything.
async fn connect(config: &Config, sdk: ConfigLoader) -> Result<Client, Error> {
    let sdk = match config.region() {
        Some(region) => sdk.region(Region::new(region.to_owned())),
        None => sdk,
    };
    let sdk = match AppName::new("kms-proxy") {
        Ok(name) => sdk.app_name(name).load().await,
        Err(_) => sdk.load().await,
    };
    if sdk.region().is_none() {
        return Err(failure::no_region());
    }
    let mut builder = aws_sdk_kms::config::Builder::from(&sdk);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    let timeout = config.timeout;
    // All attempts and the pauses between them fit into the timeout of the operation. The timeout
    // of an attempt starts when it is sent, since sources of credentials, such as a process, may be
    // slow.
    let attempt = timeout * 3 / 10;
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(attempt)
        .read_timeout(attempt)
        .operation_timeout(timeout)
        .build();
    let retries = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS)
        .with_initial_backoff(timeout / 20)
        .with_max_backoff(timeout / 10);
    // Shorter, so that an error of a source of credentials is reported instead of a time-out.
    let identities = IdentityCache::lazy().load_timeout(timeout * 3 / 4).build();
    let config = builder.timeout_config(timeouts).retry_config(retries).identity_cache(identities);
    Ok(Client::from_conf(config.build()))
}

/// The encryption context: KMS binds a wrap to it, and writes it to CloudTrail. The suite is bound
/// by the KEK's id, which is derived from the whole key.
fn encryption_context(context: Context<'_>) -> HashMap<String, String> {
    HashMap::from([
        ("kms-proxy:chain".to_owned(), context.chain.as_str().to_owned()),
        ("kms-proxy:kek-id".to_owned(), context.kek_id.to_string()),
    ])
}

#[async_trait]
impl RootKey for Root {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        let call = self.client().await?.encrypt().key_id(&self.config.key_id);
        let call = call.set_encryption_context(Some(encryption_context(context)));
        let sent = Sent::new(Secrets::of(kek.expose()));
        let call = call.plaintext(Blob::new(kek.expose())).customize().interceptor(sent.clone());
        let answer = call
            .send()
            .await
            .map_err(|error| self.failed(&error, failure::of_wrap(&error, &sent.secrets())))?;
        let arn = answer.key_id().ok_or_else(failure::not_kms)?;
        self.check_key(arn, &sent).map_err(Error::Denied)?;
        let sealed = answer.ciphertext_blob().map(AsRef::as_ref).unwrap_or_default();
        if sealed.is_empty() || sealed.len() >= LONGEST_WRAP {
            return Err(failure::not_kms());
        }
        Ok([&[FORMAT], sealed].concat())
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        // Bytes that can't be a wrap cost no call.
        let sealed = sealed::after_format(wrapped, FORMAT)?;
        if sealed.is_empty() || wrapped.len() > LONGEST_WRAP {
            return Err(sealed::wrong_length());
        }
        let call = self.client().await?.decrypt().key_id(&self.config.key_id);
        let call = call.set_encryption_context(Some(encryption_context(context)));
        let sent = Sent::default();
        let call = call.ciphertext_blob(Blob::new(sealed)).customize().interceptor(sent.clone());
        let mut answer = call
            .send()
            .await
            .map_err(|error| self.failed(&error, failure::of_unwrap(&error, &sent.secrets())))?;
        let kek = answer.plaintext.take().map(Blob::into_inner).unwrap_or_default();
        let kek = Zeroizing::new(kek);
        let arn = answer.key_id().ok_or_else(failure::not_kms)?;
        self.check_key(arn, &sent).map_err(Error::Wrong)?;
        let kek = KeyBytes::from_slice(&kek).filter(|kek| kek.suite() == context.suite);
        kek.ok_or_else(|| Error::Wrong("it unwraps to a key of another size".to_owned()))
    }

    fn kind(&self) -> &'static str {
        "aws-kms"
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

    fn open_kms(&self) -> Result<Arc<dyn forward::Kms>, String> {
        Ok(Arc::new(Root::open(self)?))
    }

    async fn init(&self, _: &Path) -> Result<String, String> {
        Ok("make the key with AWS: `aws kms create-key --description kms-proxy`, and give the \
            service's role kms:Encrypt and kms:Decrypt on it"
            .to_owned())
    }
}

#[cfg(test)]
mod tests;
