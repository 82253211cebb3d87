//! The clients of the providers: credentials from the environment, bounded attempts, and the proxy
//! and certificates that all outgoing connections of this program use.

use std::fmt;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use reqwest::{Certificate, NoProxy};

use crate::archive::Config;
use crate::archive::settings::{ENDPOINT, is_endpoint};
use crate::proxy::Proxies;
use crate::{error_chain, files, pem};

/// The largest number of repetitions of a request within a call.
const RETRIES: usize = 3;

/// Addresses at which a cloud gives credentials to a machine. No proxy can reach them.
const METADATA: &str = "169.254.0.0/16,fd00:ec2::/32,metadata.google.internal";

/// The variables of the environment.
pub(super) type Variables = Vec<(String, String)>;

/// The variables of this process.
#[expect(clippy::disallowed_methods, reason = "credentials of providers are not settings")]
pub(super) fn variables() -> Variables {
    let variables = std::env::vars_os();
    variables
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The client of the configured bucket, with the credentials in `variables`.
pub(super) fn connect(
    config: &Config,
    variables: &Variables,
) -> Result<Box<dyn ObjectStore>, String> {
    let url = config.url().ok_or("it is not an archive in a bucket")?;
    let wrong = |error: object_store::Error| error_chain::to_text(&error);
    let http = Http::new(config)?;
    let endpoint = match config.endpoint() {
        Some(endpoint) => Some(endpoint.to_owned()),
        None => endpoint_of(config, variables)?,
    };
    let is_plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let options = ClientOptions::new().with_allow_http(is_plain);
    let retry = retry(config.timeout());
    Ok(match config {
        Config::S3(s3) => {
            let mut builder = s3_of(variables)
                .with_client_options(options)
                .with_retry(retry)
                .with_http_connector(http)
                .with_bucket_name(url.bucket);
            if let Some(region) = &s3.region {
                builder = builder.with_region(region);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            Box::new(builder.build().map_err(wrong)?)
        }
        Config::Gcs(_) => {
            let mut builder = GoogleCloudStorageBuilder::new();
            for (key, value) in of(variables, "GOOGLE_") {
                if let Ok(key) = key.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            builder = builder
                .with_client_options(options)
                .with_retry(retry)
                .with_http_connector(http)
                .with_bucket_name(url.bucket);
            if let Some(endpoint) = &endpoint {
                builder = builder.with_base_url(endpoint);
            }
            Box::new(builder.build().map_err(wrong)?)
        }
        Config::Azure(azure) => {
            let mut builder = MicrosoftAzureBuilder::new();
            for (key, value) in of(variables, "AZURE_") {
                if let Ok(key) = key.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            builder = builder
                .with_client_options(options)
                .with_retry(retry)
                .with_http_connector(http)
                .with_container_name(url.bucket);
            if let Some(account) = &azure.account {
                builder = builder.with_account(account);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            Box::new(builder.build().map_err(wrong)?)
        }
        Config::Dir(_) => return Err("it is not an archive in a bucket".to_owned()),
    })
}

/// What the environment says of S3, without an endpoint: see [`endpoint_of`]. The crate would also
/// take that of `AWS_ENDPOINT`, which AWS's SDKs do not know, and would not check it.
pub(super) fn s3_of(variables: &Variables) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new();
    for (key, value) in of(variables, "AWS_") {
        match key.parse() {
            Ok(AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint) | Err(_) => {}
            Ok(key) => builder = builder.with_config(key, value),
        }
    }
    builder
}

/// The endpoint of S3 in the environment, if there is one, by the rules of AWS's SDKs: that of S3
/// takes precedence over that of all services, and both can be ignored. The crate would let them
/// take precedence over the setting. As for the setting, plain HTTP is for loopback addresses.
pub(super) fn endpoint_of(
    config: &Config,
    variables: &Variables,
) -> Result<Option<String>, String> {
    let set = |name: &str| {
        let found = variables.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    };
    let is_ignored = set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if !matches!(config, Config::S3(_)) || is_ignored {
        return Ok(None);
    }
    let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    match names.into_iter().find_map(|name| Some((name, set(name)?))) {
        Some((_, url)) if is_endpoint(url) => Ok(Some(url.to_owned())),
        Some((name, _)) => Err(format!("{name} {ENDPOINT}")),
        None => Ok(None),
    }
}

/// The variables of a provider, in the form in which the crate names its settings.
fn of<'a>(
    variables: &'a Variables,
    prefix: &'static str,
) -> impl Iterator<Item = (String, &'a str)> {
    let of_provider = variables.iter().filter(move |(key, _)| key.starts_with(prefix));
    of_provider.map(|(key, value)| (key.to_ascii_lowercase(), value.as_str()))
}

/// All attempts and the pauses between them fit into the time-out of a call.
fn retry(timeout: Duration) -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(2),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: RETRIES, retry_timeout: timeout / 2 }
}

/// Makes HTTP clients for the crate, in place of its own connector, which reads the variables of
/// proxies by other rules.
struct Http {
    proxies: Proxies,
    /// In place of the system's.
    authorities: Option<Vec<Certificate>>,
    /// That of one attempt.
    timeout: Duration,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

impl Http {
    fn new(config: &Config) -> Result<Self, String> {
        let authorities = config.ca().map(|path| {
            let wrong = |detail: String| format!("ca, {}: {detail}", path.display());
            let text = files::read_regular(path).map_err(|error| wrong(error.to_string()))?;
            let found = pem::authorities(&text).map_err(wrong)?;
            let certs = found.iter().map(|der| Certificate::from_der(der));
            certs.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))
        });
        Ok(Self {
            proxies: Proxies::from_env()?,
            authorities: authorities.transpose()?,
            timeout: config.timeout() / 2,
        })
    }

    fn client(&self, allow_http: bool) -> reqwest::Result<reqwest::Client> {
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("kms-proxy/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .https_only(!allow_http)
            .timeout(self.timeout)
            .pool_idle_timeout(Duration::from_secs(20));
        if let Some(authorities) = &self.authorities {
            http = http.tls_certs_only(authorities.clone());
        }
        if let Some((proxy, no_proxy)) = self.proxies.https() {
            let excluded = NoProxy::from_string(&format!("{METADATA},{no_proxy}"));
            http = http.proxy(reqwest::Proxy::https(proxy.url())?.no_proxy(excluded));
        }
        http.build()
    }
}

impl HttpConnector for Http {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // The crate allows plain HTTP for addresses of metadata.
        let allow_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let client = self.client(allow_http.as_deref() == Some("true"));
        let failed =
            |error| object_store::Error::Generic { store: "HTTP", source: Box::new(error) };
        Ok(HttpClient::new(client.map_err(failed)?))
    }
}
