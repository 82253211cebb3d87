//! What `check-config` reports of certificates in a PEM file: their validity and their names.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::files;
use crate::timestamp::rfc3339;

/// Whether the first certificate in a file has alternative names. Clients compare the name of a
/// server with these alone. `None` if it can't be read.
#[must_use]
pub fn has_alternative_names(path: &Path) -> Option<bool> {
    let pem = files::read(path).ok()?;
    let first = CertificateDer::pem_slice_iter(&pem).next()?.ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&first).ok()?;
    let names = certificate.subject_alternative_name().ok()?;
    Some(names.is_some_and(|names| !names.value.general_names.is_empty()))
}

/// Warnings about the certificates in a file at `now`, in seconds since the Unix epoch: those that
/// are not valid, those with less than a tenth of their lifetime left, and a file that can't be
/// read. Malformed certificates are skipped.
#[must_use]
pub fn warnings(path: &Path, now: u64) -> Vec<String> {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let pem = match files::read(path) {
        Ok(pem) => pem,
        Err(error) => return vec![error.to_string()],
    };
    let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
    let mut found = Vec::new();
    for (index, certificate) in certificates.enumerate() {
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&certificate) else {
            continue;
        };
        let validity = certificate.validity();
        let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let is_ending = until.saturating_sub(now) < until.saturating_sub(from) / 10;
        let what = if now > until {
            format!("expired at {}", rfc3339(until))
        } else if now < from {
            format!("is not valid before {}", rfc3339(from))
        } else if is_ending {
            format!("expires at {}", rfc3339(until))
        } else {
            continue;
        };
        found.push(format!("certificate {} ({}) {what}", index + 1, certificate.subject()));
    }
    found
}
