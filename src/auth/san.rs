//! Subject alternative names of client certificates, as written in `tls_san`.
//!
//! Names are compared as a whole. A text that no certificate can contain is rejected: it would
//! silently match nothing. It must not know clients or certificates.

use std::net::IpAddr;

use serde::{Serialize, Serializer};

/// A subject alternative name, normalised so that equal names have equal text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum San {
    /// A DNS name, in lower case.
    Dns(String),
    /// A URI, such as a SPIFFE id, unchanged.
    Uri(String),
    /// An IP address, in its canonical form.
    Ip(String),
    /// An e-mail address, with the domain in lower case.
    Email(String),
}

/// What `tls_san` takes.
const EXPECTED: &str = "it is a DNS name, a URI, an IP address or an e-mail address, whole and \
                        without wildcards";
const PORT: &str = "it has a port, and names in certificates have none";
const FIELD: &str = "it is a field of a subject; a client is known by an alternative name, such as \
                     a DNS name";
const DOT: &str = "it ends with a dot, and names in certificates don't";
const ADDRESS: &str = "it looks like an IP address, and is not one";
const DNS: &str = "it is not a DNS name: labels of 1 to 63 letters, digits, hyphens and \
                   underscores, at most 253 characters in all";

impl San {
    /// The normalised text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Uri(name) | Self::Ip(name) | Self::Email(name) => name,
        }
    }

    /// From a DNS name in a certificate.
    pub(super) fn dns(name: &str) -> Self {
        Self::Dns(name.to_ascii_lowercase())
    }

    /// From an IP address in a certificate.
    pub(super) fn ip(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical().to_string())
    }

    /// From an e-mail address in a certificate; `None` if it is malformed.
    pub(super) fn email(address: &str) -> Option<Self> {
        // The part before the @ is case-sensitive.
        let (local, domain) = address.rsplit_once('@')?;
        let is_whole = !local.is_empty() && !domain.is_empty();
        is_whole.then(|| Self::Email(format!("{local}@{}", domain.to_ascii_lowercase())))
    }
}

impl Serialize for San {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl TryFrom<String> for San {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let plain = |b: u8| b.is_ascii_graphic() && b != b'*' && b != b',';
        if text.is_empty() || !text.bytes().all(plain) {
            return Err(EXPECTED);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::ip(address));
        }
        // DNS names and e-mail addresses contain no colon: this must be a URI.
        if let Some((scheme, rest)) = text.split_once(':') {
            return match rest {
                _ if text.starts_with('[') => Err(ADDRESS),
                _ if rest.bytes().all(|b| b.is_ascii_digit()) => Err(PORT),
                _ if rest.starts_with(':') || !is_scheme(scheme) => Err(EXPECTED),
                _ => Ok(Self::Uri(text)),
            };
        }
        if let Some((_, domain)) = text.rsplit_once('@') {
            check_dns(domain)?;
            return Self::email(&text).ok_or(EXPECTED);
        }
        check_dns(&text)?;
        Ok(Self::dns(&text))
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn check_dns(text: &str) -> Result<(), &'static str> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    match text {
        _ if text.contains('=') => Err(FIELD),
        _ if text.len() > 1 && text.ends_with('.') => Err(DOT),
        _ if text.len() > 253 || !text.split('.').all(is_label) => Err(DNS),
        // No top-level domain is a number.
        _ if last.bytes().all(|b| b.is_ascii_digit()) => Err(ADDRESS),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_certificate_can_have_is_refused() {
        let san = |text: &str| San::try_from(text.to_owned());
        let dns = |text: &str| Ok(San::Dns(text.to_owned()));
        let ip = |text: &str| Ok(San::Ip(text.to_owned()));
        let email = |text: &str| Ok(San::Email(text.to_owned()));
        for (text, expected) in [
            ("A.Example", dns("a.example")),
            ("app_1.xn--bcher-kva.example", dns("app_1.xn--bcher-kva.example")),
            ("app", dns("app")),
            ("10.0.0.1", ip("10.0.0.1")),
            ("2001:DB8:0::1", ip("2001:db8::1")),
            ("::ffff:10.0.0.1", ip("10.0.0.1")),
            ("Ops@Example.com", email("Ops@example.com")),
            ("", Err(EXPECTED)),
            ("*.example", Err(EXPECTED)),
            ("a b", Err(EXPECTED)),
            ("bücher.example", Err(EXPECTED)),
            ("CN=app", Err(FIELD)),
            ("app.example.", Err(DOT)),
            ("app.example:8443", Err(PORT)),
            ("10.0.0.1:8443", Err(PORT)),
            ("[2001:db8::1]:443", Err(ADDRESS)),
            ("[2001:db8::1]", Err(ADDRESS)),
            ("fe80::1%eth0", Err(EXPECTED)),
            ("10.0.0.256", Err(ADDRESS)),
            ("10.0.0.0/8", Err(DNS)),
            ("a..example", Err(DNS)),
            (".example", Err(DNS)),
            (".", Err(DNS)),
            (&"a".repeat(64), Err(DNS)),
            ("@example.com", Err(EXPECTED)),
            ("ops@", Err(DNS)),
            ("ops@example.com:25", Err(PORT)),
            ("/app:x", Err(EXPECTED)),
        ] {
            assert_eq!(san(text), expected, "{text}");
        }
        for uri in ["spiffe://prod/Orders", "urn:uuid:f81d4fae", "https://a.example:8443/x"] {
            assert_eq!(san(uri), Ok(San::Uri(uri.to_owned())));
        }
    }
}
