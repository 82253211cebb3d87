//! Who a client is by its certificate, which has been verified before.
//!
//! A request of a connection with such a certificate has an `Arc<Peer>` among its extensions.

use std::io;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// What a client's certificate says of its subject, parsed once a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The DNS names among its alternative names, in lower case.
    pub(crate) dns: Vec<String>,
    /// The URIs among them, as they are written.
    pub(crate) uris: Vec<String>,
    /// Its subject, to be shown to people: nobody is told apart by it.
    pub(crate) subject: String,
}

impl Peer {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is malformed. What was verified is not, but two readers may differ.
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
                _ => {}
            }
        }
        Ok(peer)
    }
}
