//! A certificate authority of a test's own, and what it signs, as PEM files in one directory.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType, date_time_ymd,
};

const HOUR: Duration = Duration::from_secs(3_600);

/// The authority. Two of them trust each other's certificates not at all.
pub(crate) struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// Names of files, and serial numbers in a way.
    count: AtomicU32,
}

impl Pki {
    /// A new authority, whose files stand in `dir`: it is made if it is not there.
    pub(crate) fn new(dir: impl AsRef<Path>) -> Self {
        let dir = dir.as_ref().to_owned();
        std::fs::create_dir_all(&dir).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = dir.display().to_string();
        params.distinguished_name.push(DnType::CommonName, format!("authority of {name}"));
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key), count: AtomicU32::new(0) }
    }

    /// Its own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The files of a server's certificate and its key. A name is a DNS name, an IP address, an
    /// e-mail address if it has `@` in it, or a URI if it has `://` in it.
    pub(crate) fn server(&self, names: &[&str]) -> (PathBuf, PathBuf) {
        self.issue(names, Some(ExtendedKeyUsagePurpose::ServerAuth), now() + 24 * HOUR)
    }

    /// The same, valid until `until` after 1970.
    pub(crate) fn server_until(&self, names: &[&str], until: Duration) -> (PathBuf, PathBuf) {
        self.issue(names, Some(ExtendedKeyUsagePurpose::ServerAuth), until)
    }

    /// The files of a client's certificate and its key.
    pub(crate) fn client(&self, names: &[&str]) -> (PathBuf, PathBuf) {
        self.issue(names, Some(ExtendedKeyUsagePurpose::ClientAuth), now() + 24 * HOUR)
    }

    /// The same of a client whose certificate has expired.
    pub(crate) fn expired_client(&self, names: &[&str]) -> (PathBuf, PathBuf) {
        self.issue(names, Some(ExtendedKeyUsagePurpose::ClientAuth), now() - HOUR)
    }

    /// The same of a client whose certificate does not say what it is for.
    pub(crate) fn client_for_any_use(&self, names: &[&str]) -> (PathBuf, PathBuf) {
        self.issue(names, None, now() + 24 * HOUR)
    }

    fn issue(
        &self,
        names: &[&str],
        usage: Option<ExtendedKeyUsagePurpose>,
        until: Duration,
    ) -> (PathBuf, PathBuf) {
        let names = names.iter().map(|name| (*name).to_owned());
        let (uris, others): (Vec<_>, Vec<_>) = names.partition(|name| name.contains("://"));
        let (emails, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|n| n.contains('@'));
        let mut params = CertificateParams::new(others).unwrap();
        let emails = emails.into_iter().map(|name| SanType::Rfc822Name(name.try_into().unwrap()));
        params.subject_alt_names.extend(emails);
        let uris = uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("certificate {number}"));
        params.extended_key_usages = usage.into_iter().collect();
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + (until.min(now()) - 24 * HOUR);
        params.not_after = epoch + until;
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let files =
            (self.dir.join(format!("{number}.crt")), self.dir.join(format!("{number}.key")));
        std::fs::write(&files.0, cert.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

/// A client that trusts `ca`, and shows `identity`, a certificate and its key.
pub(crate) fn client(ca: &Path, identity: Option<&(PathBuf, PathBuf)>) -> reqwest::ClientBuilder {
    let authorities = reqwest::Certificate::from_pem_bundle(&std::fs::read(ca).unwrap()).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only(authorities);
    let Some((cert, key)) = identity else { return client };
    let both = [std::fs::read(key).unwrap(), std::fs::read(cert).unwrap()].concat();
    client.identity(reqwest::Identity::from_pem(&both).unwrap())
}

/// The time since 1970.
pub(crate) fn now() -> Duration {
    UNIX_EPOCH.elapsed().unwrap()
}
