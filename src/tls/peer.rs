//! The names in a verified client certificate.
//!
//! A request on a connection with a client certificate has an `Arc<Peer>` in its extensions. It
//! must not know which names are clients.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// Maximum number of names in a log line.
const MAX_SHOWN: usize = 16;

/// The subject and the names of a client's certificate, parsed once per connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The DNS names among its alternative names, in lower case.
    pub(crate) dns: Vec<String>,
    /// The URIs among them, unchanged.
    pub(crate) uris: Vec<String>,
    /// The IP addresses among them.
    pub(crate) ips: Vec<IpAddr>,
    /// The e-mail addresses among them, unchanged.
    pub(crate) emails: Vec<String>,
    /// Its subject, only for the log.
    pub(crate) subject: String,
}

impl Peer {
    /// Parses a certificate.
    ///
    /// # Errors
    /// If it is malformed. It was verified before, but two parsers may differ.
    pub(super) fn parse(certificate: &CertificateDer<'_>) -> io::Result<Self> {
        let malformed = || io::Error::other("the client's certificate is malformed");
        let (_, certificate) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_| malformed())?;
        let mut peer = Self { subject: certificate.subject().to_string(), ..Self::default() };
        let names = certificate.subject_alternative_name().map_err(|_| malformed())?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => peer.dns.push(name.to_ascii_lowercase()),
                GeneralName::URI(uri) => peer.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => peer.ips.extend(address(bytes)),
                GeneralName::RFC822Name(address) => peer.emails.push((*address).to_owned()),
                _ => {}
            }
        }
        Ok(peer)
    }

    /// The first of its names, for the log, in the notation of openssl.
    pub(crate) fn names(&self) -> String {
        let dns = self.dns.iter().map(|name| format!("DNS:{name}"));
        let uris = self.uris.iter().map(|uri| format!("URI:{uri}"));
        let ips = self.ips.iter().map(|address| format!("IP:{address}"));
        let emails = self.emails.iter().map(|address| format!("email:{address}"));
        let mut names = dns.chain(uris).chain(ips).chain(emails);
        let mut shown: Vec<_> = names.by_ref().take(MAX_SHOWN).collect();
        match (names.count(), shown.is_empty()) {
            (0, true) => "no DNS name, URI, IP address or e-mail address".to_owned(),
            (0, false) => shown.join(", "),
            (more, _) => {
                shown.push(format!("and {more} more"));
                shown.join(", ")
            }
        }
    }
}

/// Parses an address of 4 or 16 bytes.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).into());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).into())).ok()
}
