//! What a token must be for: a vault names it in the response to a call without a token.
//!
//! A server that names another resource would get a token that is good elsewhere, so the resource
//! must be the vault's own domain. It knows no credentials.

use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::Url;

use crate::loopback::is_loopback;

/// The resource that tokens are for, such as `https://vault.azure.net`, once it is known.
#[derive(Clone, Default)]
pub(super) struct Resource(Arc<Mutex<Option<String>>>);

impl Resource {
    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    pub(super) fn set(&self, resource: String) {
        *self.0.lock() = Some(resource);
    }
}

/// The resource in the header `WWW-Authenticate`:
/// `Bearer authorization="https://login...", resource="https://vault.azure.net"`.
pub(super) fn resource(header: &str) -> Option<String> {
    let rest = header.strip_prefix("Bearer ")?;
    let field = |wanted: &str| {
        let mut fields = rest.split(',').filter_map(|field| field.split_once('='));
        let (_, value) = fields.find(|(name, _)| name.trim() == wanted)?;
        Some(value.trim().trim_matches('"').to_owned())
    };
    let resource = field("resource").or_else(|| {
        let scope = field("scope")?;
        Some(scope.strip_suffix("/.default").unwrap_or(&scope).to_owned())
    })?;
    Some(resource.trim_end_matches('/').to_owned())
}

/// Checks that `host` is in the domain of `resource`.
pub(super) fn check(resource: &str, host: &str) -> Result<(), String> {
    let url = Url::parse(resource).ok().filter(|url| url.scheme() == "https");
    let domain = url.as_ref().and_then(Url::host_str).unwrap_or_default();
    let is_own = !domain.is_empty()
        && host.to_ascii_lowercase().ends_with(&format!(".{}", domain.to_ascii_lowercase()));
    // A substitute for tests has no domain, and no token leaves the machine.
    if is_own || (!domain.is_empty() && is_loopback(host)) {
        return Ok(());
    }
    Err(format!(
        "the server {host} asks for tokens that are not for its own domain: check key_id, and any \
         proxies"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resource_is_that_of_the_challenge_and_must_be_the_vaults_domain() {
        let bearer = "Bearer authorization=\"https://login.microsoftonline.com/t\", ";
        for (rest, found) in [
            ("resource=\"https://vault.azure.net\"", Some("https://vault.azure.net")),
            ("scope=\"https://vault.azure.net/.default\"", Some("https://vault.azure.net")),
            ("resource=https://managedhsm.azure.net/", Some("https://managedhsm.azure.net")),
            ("realm=\"x\"", None),
        ] {
            assert_eq!(resource(&format!("{bearer}{rest}")).as_deref(), found, "{rest}");
        }
        assert_eq!(resource("Basic realm=\"x\""), None);
        let vault = "https://vault.azure.net";
        assert_eq!(check(vault, "orders.vault.azure.net"), Ok(()));
        assert_eq!(check(vault, "Orders.Vault.Azure.Net"), Ok(()));
        assert_eq!(check(vault, "127.0.0.1"), Ok(()));
        for (resource, host) in [
            (vault, "vault.azure.net"),
            (vault, "evilvault.azure.net"),
            (vault, "orders.vault.azure.net.evil.test"),
            ("https://management.azure.com", "orders.vault.azure.net"),
            ("https://graph.microsoft.com", "orders.vault.azure.net"),
            ("http://vault.azure.net", "orders.vault.azure.net"),
            ("", "orders.vault.azure.net"),
            ("vault.azure.net", "127.0.0.1"),
        ] {
            assert!(check(resource, host).is_err(), "{resource} {host}");
        }
    }
}
