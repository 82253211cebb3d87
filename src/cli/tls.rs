//! `--ca`, `--cert` and `--key`: whom a command trusts, who it is, and what is to be said when
//! either side refuses the other.

use std::path::{Path, PathBuf};

use kms_proxy::tls::{PairError, check_authorities, check_pair};
use reqwest::{Certificate, ClientBuilder, Identity};
use zeroize::Zeroizing;

use super::stdio::read_file;
use super::{Failure, Result};

/// TLS of the commands that call the service.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A PEM file with the authorities that the service's certificate may come from [default: the
    /// system's]
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CA")]
    ca: Option<PathBuf>,
    /// A PEM file with the certificate to show to the service
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// A PEM file with the key of that certificate
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_KEY", requires = "cert")]
    key: Option<PathBuf>,
}

impl Args {
    /// Gives `http` what these arguments say, for a client of `server`.
    pub(super) fn apply(self, server: &str, http: ClientBuilder) -> Result<ClientBuilder> {
        if server.starts_with("http://") {
            // A machine without any certificates is no hindrance.
            return Ok(http.tls_certs_only([]));
        }
        let mut http = http;
        if let Some(path) = &self.ca {
            let pem = read("--ca", path)?;
            check_authorities(&pem).map_err(|detail| usage("--ca", path, &detail))?;
            let authorities = Certificate::from_pem_bundle(&pem);
            let wrong = |_| usage("--ca", path, "its certificates can't be used");
            http = http.tls_certs_only(authorities.map_err(wrong)?);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            let (certs, secret) = (read("--cert", cert)?, read("--key", key)?);
            check_pair(&certs, &secret).map_err(|error| match error {
                PairError::Cert(detail) => usage("--cert", cert, &detail),
                PairError::Key(detail) => usage("--key", key, &detail),
            })?;
            // One buffer for both, which does not grow.
            let mut both = Zeroizing::new(Vec::with_capacity(certs.len() + secret.len() + 1));
            both.extend_from_slice(&secret);
            both.push(b'\n');
            both.extend_from_slice(&certs);
            let wrong = |_| usage("--cert, --key", cert, "it and the key can't be used");
            http = http.identity(Identity::from_pem(&both).map_err(wrong)?);
        }
        Ok(http)
    }
}

/// What to say when a call failed with `reason`, the innermost cause, because one of the two
/// refused the other; `None` when it was something else.
pub(super) fn explain(server: &str, reason: &str) -> Option<String> {
    if let Some(why) = reason.strip_prefix("invalid peer certificate: ") {
        // Another authority would not help a certificate whose time is over.
        let hint = if why.starts_with("certificate expired") { "" } else { " (--ca)" };
        let why = why.split(": verification time").next().unwrap_or(why);
        return Some(format!("the certificate of {server} is not trusted here: {why}{hint}"));
    }
    if let Some(alert) = reason.strip_prefix("received fatal alert: ") {
        return Some(match alert {
            _ if alert.contains("CertificateRequired")
                || alert.contains("certificate required") =>
            {
                format!("{server} takes nobody without a certificate (--cert and --key)")
            }
            alert => format!("{server} refused this client's handshake or certificate: {alert}"),
        });
    }
    if reason.contains("InvalidContentType") {
        return Some(format!("{server} does not speak TLS; is it http://?"));
    }
    let is_plain = server.starts_with("http://");
    if is_plain && reason.contains("invalid HTTP version") {
        return Some(format!("{server} does not speak plain HTTP; is it https://?"));
    }
    let is_cut = ["reset", "pipe", "closed", "eof"].iter().any(|part| reason.contains(part));
    (!is_plain && is_cut).then(|| {
        format!(
            "{server} cut the connection: {reason}; does it accept this client's certificate, and \
                 requests of this size?"
        )
    })
}

fn read(flag: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    read_file(path).map_err(|error| usage(flag, path, &error.to_string()))
}

fn usage(flag: &str, path: &Path, detail: &str) -> Failure {
    Failure::Usage(format!("{flag}: {}: {detail}", path.display()))
}
