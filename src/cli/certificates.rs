//! Warnings of `check-config`: certificates in the files of a configuration that are not valid now.
//!
//! They are no errors: a service starts with them, and a clock may be wrong.

use std::path::{Path, PathBuf};

use kms_proxy::config::Config;
use kms_proxy::{root, store};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::time::ASN1Time;

use super::stdio::tell;

/// Warns on stderr of each such certificate at `now`, in seconds since the Unix epoch.
pub(super) fn warn(config: &Config, now: u64) {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    for (setting, path) in files(config) {
        for warning in warnings(path, now) {
            tell(&format!("warning: {setting}: {}: {warning}", path.display()));
        }
    }
}

/// The files with certificates, each with its setting.
fn files<'a>(config: &'a Config) -> Vec<(String, &'a Path)> {
    let mut files = Vec::new();
    let mut add = |setting: String, path: Option<&'a PathBuf>| {
        if let Some(path) = path {
            files.push((setting, path.as_path()));
        }
    };
    if let Some(tls) = &config.server.tls {
        add("server.tls.cert".to_owned(), Some(&tls.cert));
        add("server.tls.client_ca".to_owned(), tls.client_ca.as_ref());
    }
    if let store::Config::Etcd(etcd) = &config.store
        && let Some(tls) = &etcd.tls
    {
        add("store.tls.ca".to_owned(), tls.ca.as_ref());
        add("store.tls.cert".to_owned(), tls.cert.as_ref());
    }
    for (index, root) in config.roots.iter().enumerate() {
        if let root::Config::VaultTransit(vault) = root {
            add(format!("root.{index}.ca"), vault.ca.as_ref());
        }
    }
    for (index, client) in config.auth.clients.iter().enumerate() {
        if let Some(jwt) = &client.jwt {
            add(format!("client.{index}.jwt.jwks_ca"), jwt.jwks_ca.as_ref());
        }
    }
    files
}

/// What is wrong with the certificates of a file at `now`.
fn warnings(path: &Path, now: i64) -> Vec<String> {
    let pem = match std::fs::read(path) {
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
        let name = || format!("certificate {} ({})", index + 1, certificate.subject());
        let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        if now > until {
            found.push(format!("{} expired at {}", name(), time(&validity.not_after)));
        } else if now < from {
            found.push(format!("{} is not valid before {}", name(), time(&validity.not_before)));
        } else if until - now < (until - from) / 10 {
            found.push(format!("{} expires at {}", name(), time(&validity.not_after)));
        }
    }
    found
}

fn time(time: &ASN1Time) -> String {
    let time = time.to_datetime();
    let (date, hour, minute, second) = (time.date(), time.hour(), time.minute(), time.second());
    format!("{date}T{hour:02}:{minute:02}:{second:02}Z")
}
