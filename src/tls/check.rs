//! Checks of the PEM files that a client names, with the same messages as for the service's own.
//!
//! It must not know where the files are, or what they are for. A message never quotes them.

use crate::pem;

/// Which file of a pair can't be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PairError {
    /// The file with the certificate.
    Cert(String),
    /// The file with its key.
    Key(String),
}

/// Checks that a client can use a certificate and its key, which are the contents of two PEM files.
///
/// # Errors
/// [`PairError`] if one of them can't be used, or if they do not match.
pub fn check_pair(cert: &[u8], key: &[u8]) -> Result<(), PairError> {
    pem::pair(cert, key).map(drop).map_err(|wrong| match wrong {
        pem::Wrong::Cert(detail) => PairError::Cert(detail),
        pem::Wrong::Key(detail) => PairError::Key(detail),
    })
}

/// Checks that a PEM file has authorities that a client can trust.
///
/// # Errors
/// Why it can't be used.
pub fn check_authorities(pem: &[u8]) -> Result<(), String> {
    pem::authorities(pem).map(drop)
}
