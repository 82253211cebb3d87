//! The proxy for outgoing HTTPS, from the variables `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
//!
//! One rule for everything that speaks HTTP: an `https://` URL is reached through the proxy, unless
//! its host is a loopback address or in `NO_PROXY`. Plain `http://` goes directly, since a proxy
//! would read it. A leaf: it opens no connection.

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

use crate::loopback::is_loopback;

/// Hosts that are never reached through a proxy, as `NO_PROXY` lists them.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// The proxy from the environment, if there is one.
pub(crate) struct Proxies(Option<Configured>);

struct Configured {
    proxy: Proxy,
    no_proxy: String,
    matcher: Matcher,
}

/// A proxy, and the variable that names it.
#[derive(Clone)]
pub(crate) struct Proxy {
    url: String,
    /// Without user and password.
    shown: String,
    variable: &'static str,
}

impl Proxies {
    /// Reads the variables. The lower-case name is used if the upper-case one is not set.
    ///
    /// # Errors
    /// The variable that is not the URL of a proxy.
    #[expect(clippy::disallowed_methods, reason = "these variables are a convention, not settings")]
    pub(crate) fn from_env() -> Result<Self, String> {
        Self::new(|name| std::env::var(name).ok())
    }

    fn new(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|&name| {
                let value = variable(name)?.trim().to_owned();
                Some((name, value)).filter(|(_, value)| !value.is_empty())
            })
        };
        let found = first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]);
        let Some((variable, value)) = found else { return Ok(Self(None)) };
        let url = if value.contains("://") { value } else { format!("http://{value}") };
        let uri = url.parse::<Uri>().ok();
        let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
        let shown = uri.and_then(|uri| {
            let authority = uri.authority()?.as_str().rsplit('@').next()?;
            Some(format!("{}://{authority}", uri.scheme_str()?))
        });
        let shown = shown.ok_or_else(|| {
            format!("{variable}: it must be the URL of an HTTP proxy, http://proxy.example:3128")
        })?;
        let no_proxy = first(&["NO_PROXY", "no_proxy"]).map(|(_, value)| value).unwrap_or_default();
        let matcher = Matcher::builder().https(url.clone()).no(no_proxy.clone()).build();
        let proxy = Proxy { url, shown, variable };
        Ok(Self(Some(Configured { proxy, no_proxy, matcher })))
    }

    /// The proxy for `url`; `None` if it is reached directly.
    pub(crate) fn of(&self, url: &str) -> Option<&Proxy> {
        let Configured { proxy, matcher, .. } = self.0.as_ref()?;
        let uri: Uri = url.parse().ok()?;
        let is_direct = uri.scheme_str() != Some("https") || is_loopback(uri.host()?);
        (!is_direct && matcher.intercept(&uri).is_some()).then_some(proxy)
    }

    /// The proxy for `https://`, and the excluded hosts in the form of `NO_PROXY`.
    pub(crate) fn https(&self) -> Option<(&Proxy, String)> {
        let Configured { proxy, no_proxy, .. } = self.0.as_ref()?;
        Some((proxy, format!("{LOOPBACK},{no_proxy}")))
    }
}

impl Proxy {
    /// Its URL, which may contain a password.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A note about it for errors.
    pub(crate) fn via(&self) -> String {
        format!(" (through the proxy {} of {})", self.shown, self.variable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, String> {
        Proxies::new(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn https_goes_through_the_proxy_and_plain_http_and_loopback_do_not() {
        let all = proxies(&[
            ("HTTPS_PROXY", "http://user:planted@proxy.test:3128/"),
            ("HTTP_PROXY", "http://never.test"),
            ("ALL_PROXY", "http://neither.test"),
            ("NO_PROXY", "inside.test, 10.0.0.0/8"),
        ])
        .unwrap();
        for (url, is_through) in [
            ("https://kms.test:8200/v1", true),
            ("https://169.254.1.1/", true),
            ("https://inside.test/", false),
            ("https://a.inside.test/", false),
            ("https://10.1.2.3/", false),
            ("http://kms.test/", false),
            ("http://169.254.169.254/", false),
            ("https://localhost:8200", false),
            ("https://127.0.0.9/", false),
            ("https://[::1]:8200/", false),
        ] {
            assert_eq!(all.of(url).is_some(), is_through, "{url}");
        }
        let proxy = all.of("https://kms.test").unwrap();
        assert_eq!(proxy.via(), " (through the proxy http://proxy.test:3128 of HTTPS_PROXY)");
        assert!(proxy.url().contains("planted"));
        let (_, no_proxy) = all.https().unwrap();
        assert_eq!(no_proxy, "localhost,127.0.0.0/8,::1,inside.test, 10.0.0.0/8");
    }

    #[test]
    fn the_variables_are_read_as_others_read_them() {
        let lower = proxies(&[("all_proxy", "proxy.test:3128")]).unwrap();
        let via = lower.of("https://kms.test").unwrap().via();
        assert_eq!(via, " (through the proxy http://proxy.test:3128 of all_proxy)");
        for none in [&[][..], &[("HTTPS_PROXY", " ")], &[("HTTP_PROXY", "http://proxy.test")]] {
            assert!(proxies(none).unwrap().of("https://kms.test").is_none());
        }
        for bad in ["socks5://planted.test", "http://", "http://planted host"] {
            let error = proxies(&[("https_proxy", bad)]).err().unwrap();
            assert!(error.starts_with("https_proxy: ") && !error.contains("planted"), "{error}");
        }
    }
}
