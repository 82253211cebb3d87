//! The HTTP client with which the SDK calls KMS and sources of credentials: the authorities that it
//! trusts, and its proxy.

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};

use crate::proxy::Proxies;
use crate::root::Error;
use crate::root::authorities::Authorities;

/// Like the SDK's own client, except for the authorities and the proxy.
pub(super) fn client(
    authorities: Option<&Authorities>,
    proxies: &Proxies,
) -> Result<aws_sdk_kms::config::SharedHttpClient, Error> {
    let away = |detail: String| Error::Away(format!("no HTTP client: {detail}"));
    let trusted = match authorities {
        Some(authorities) => TrustStore::empty().with_pem_certificate(&*authorities.pem),
        None => TrustStore::default(),
    };
    let tls = TlsContext::builder().with_trust_store(trusted).build();
    let tls = tls.map_err(|error| away(error.to_string()))?;
    let proxy = match proxies.https() {
        Some((proxy, no_proxy)) => ProxyConfig::https(proxy.url())
            // The URL may contain a password.
            .map_err(|_| away("the proxy is not supported".to_owned()))?
            .no_proxy(no_proxy),
        None => ProxyConfig::disabled(),
    };
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        let provider = Provider::Rustls(CryptoMode::AwsLc);
        connector.tls_provider(provider).tls_context(tls.clone()).build()
    }))
}
