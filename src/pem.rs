//! PEM files of TLS: certificates, authorities and private keys, and what is wrong with a file that
//! can't be used.
//!
//! A leaf: it knows neither settings nor connections. Messages never quote a file's contents.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::public_key::PublicKey;

use crate::timestamp::rfc3339;

/// The shortest RSA key that the TLS library signs and verifies with, in bits.
const MIN_RSA_BITS: usize = 2048;

/// A certificate and the matching key.
pub(crate) struct Pair {
    pub(crate) certs: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) validity: Validity,
}

/// When a certificate is valid: seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// Which file of a pair is wrong, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Cert(String),
    Key(String),
}

/// The certificate in `cert` with those that lead to its authority, and its key in `key`.
pub(crate) fn pair(cert: &[u8], key: &[u8]) -> Result<Pair, Wrong> {
    let certs = certificates(cert).map_err(Wrong::Cert)?;
    let wrong = |detail: &str| Wrong::Cert(detail.to_owned());
    let first = certs.first().ok_or_else(|| wrong("it has no certificate in PEM"))?;
    let parsed = parse(first).ok_or_else(|| wrong("its first certificate is malformed"))?;
    if let Some(bits) = weak_rsa(&parsed) {
        return Err(Wrong::Cert(format!("the key of its first certificate is {}", weak(bits))));
    }
    let validity = Validity {
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
    };
    let key = private_key(key).map_err(Wrong::Key)?;
    let signing = signing_key(&key).map_err(Wrong::Key)?;
    match CertifiedKey::new(certs.clone(), signing).keys_match() {
        // Some kinds of keys can't be compared; a handshake will fail if they do not match.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(Wrong::Key("it is not the key of the certificate".to_owned()));
        }
        // Most likely of version 1, which `openssl x509 -req` writes without extensions.
        Err(_) => {
            return Err(wrong(
                "its first certificate can't be used: it must be of X.509 version 3, with a \
                 subjectAltName",
            ));
        }
    }
    Ok(Pair { certs, key, validity })
}

/// The authorities in `pem`; at least one.
pub(crate) fn authorities(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certs = certificates(pem)?;
    let is_anchor =
        |cert: &CertificateDer<'static>| RootCertStore::empty().add(cert.clone()).is_ok();
    let parsed: Option<Vec<_>> = certs.iter().filter(|cert| is_anchor(cert)).map(parse).collect();
    let parsed = parsed.filter(|parsed| parsed.len() == certs.len());
    let parsed = parsed.ok_or("one of its certificates is malformed")?;
    // A large bundle may contain an old one.
    let weak_ones: Option<Vec<_>> = parsed.iter().map(weak_rsa).collect();
    if let Some(bits) = weak_ones.and_then(|all| all.into_iter().max()) {
        return Err(format!("the key of its authority is {}", weak(bits)));
    }
    Ok(certs)
}

/// All certificates in `pem`; at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    check_text(pem, "certificate", "x509")?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certs.ok().filter(|certs| !certs.is_empty()).ok_or_else(|| missing(pem, "certificate"))
}

/// The private key in `pem`.
pub(crate) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    check_text(pem, "private key", "pkey")?;
    if has(pem, "BEGIN ENCRYPTED PRIVATE KEY") || has(pem, "Proc-Type: 4,ENCRYPTED") {
        return Err("the key is encrypted with a passphrase; write it without one: openssl pkey \
                    -in FILE -out NEW"
            .to_owned());
    }
    if has(pem, "BEGIN OPENSSH PRIVATE KEY") {
        return Err("it has a key of OpenSSH's own format, and no private key in PEM".to_owned());
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| missing(pem, "private key"))
}

fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, String> {
    if let Some(bits) = rsa_bits(key).filter(|bits| *bits < MIN_RSA_BITS) {
        return Err(format!("the key is {}", weak(bits)));
    }
    any_supported_type(key).map_err(|_| {
        "the key is of a kind that can't be used; these can: RSA of 2048 to 8192 bits, ECDSA on \
         P-256, P-384 and P-521, Ed25519"
            .to_owned()
    })
}

fn weak(bits: usize) -> String {
    format!("RSA of {bits} bits, and {MIN_RSA_BITS} is the least")
}

/// Refuses what is not PEM text, and text whose first line no PEM parser recognises.
fn check_text(bytes: &[u8], what: &str, openssl: &str) -> Result<(), String> {
    let detail = match bytes {
        [] => "the file is empty".to_owned(),
        [0xEF, 0xBB, 0xBF, ..] => {
            "it starts with a byte order mark; save it as plain text without one".to_owned()
        }
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => {
            "it is text in UTF-16; save it as plain ASCII or UTF-8".to_owned()
        }
        [0x30, first, ..] => match tlv(bytes) {
            // The version number of every PKCS#12 file.
            Some((_, [2, 1, 3, ..], _)) => {
                format!("it is PKCS#12, not PEM; write the {what} as PEM with openssl pkcs12")
            }
            // Text does not have such a second byte, nor the length that the header states.
            der if *first >= 0x80 || der.is_some_and(|(_, _, rest)| rest.is_empty()) => format!(
                "it is DER, not PEM; write it as PEM: openssl {openssl} -inform der -in FILE -out \
                 NEW"
            ),
            _ => return Ok(()),
        },
        _ => return Ok(()),
    };
    Err(detail)
}

/// The error for text without the PEM block that is wanted: it names what is there instead.
fn missing(pem: &[u8], what: &str) -> String {
    let found = [
        ("BEGIN CERTIFICATE REQUEST", "a certificate request"),
        ("BEGIN TRUSTED CERTIFICATE", "a certificate of OpenSSL's own format"),
        ("PRIVATE KEY-----", "a private key"),
        ("BEGIN CERTIFICATE-----", "a certificate"),
        ("BEGIN PUBLIC KEY", "a public key"),
    ];
    let mut found: Vec<_> = found.into_iter().filter(|(label, _)| has(pem, label)).collect();
    found.sort_by_key(|(_, found)| !found.ends_with(what));
    let found = found.first();
    match found {
        Some((_, found)) if found.ends_with(what) => format!("the PEM of its {what} is damaged"),
        Some((_, found)) => format!("it has {found}, and no {what} in PEM"),
        None => format!("it has no {what} in PEM"),
    }
}

fn has(pem: &[u8], part: &str) -> bool {
    pem.windows(part.len()).any(|bytes| bytes == part.as_bytes())
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    x509_parser::parse_x509_certificate(cert).ok().map(|(_, cert)| cert)
}

/// The length of a certificate's RSA key in bits, if it is too short.
fn weak_rsa(cert: &X509Certificate<'_>) -> Option<usize> {
    match cert.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => Some(key.key_size()).filter(|bits| *bits < MIN_RSA_BITS),
        _ => None,
    }
}

/// The length of an RSA key in bits; `None` for other kinds.
fn rsa_bits(key: &PrivateKeyDer<'_>) -> Option<usize> {
    let pkcs1 = match key {
        PrivateKeyDer::Pkcs1(key) => key.secret_pkcs1_der(),
        PrivateKeyDer::Pkcs8(key) => {
            // version, algorithm, and the key as an OCTET STRING.
            let (_, body, _) = tlv(key.secret_pkcs8_der())?;
            let (_, _, rest) = tlv(body)?;
            let (_, _, rest) = tlv(rest)?;
            let (_, octets, _) = tlv(rest)?;
            octets
        }
        _ => return None,
    };
    let (0x30, body, _) = tlv(pkcs1)? else { return None };
    let (2, _, rest) = tlv(body)? else { return None };
    let (2, modulus, _) = tlv(rest)? else { return None };
    let start = modulus.iter().position(|byte| *byte != 0)?;
    let modulus = modulus.get(start..)?;
    let unused = modulus.first()?.leading_zeros() as usize;
    Some(modulus.len() * 8 - unused)
}

/// The first element of DER: its tag, its contents, and what follows it.
fn tlv(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (len, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81..=0x84 => {
            let (len, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some((tag, contents, rest))
}

impl Validity {
    /// The state at `now`, for an operator.
    pub(crate) fn at(self, now: i64) -> String {
        if now > self.not_after {
            format!("expired at {}", rfc3339(self.not_after))
        } else if now < self.not_before {
            format!("is not valid before {}", rfc3339(self.not_before))
        } else {
            format!("is valid until {}", rfc3339(self.not_after))
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cert(detail) | Self::Key(detail) => f.write_str(detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn issue() -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key)
    }

    fn wrong(cert: &[u8], key: &[u8]) -> Wrong {
        pair(cert, key).err().expect("it can't be used")
    }

    #[test]
    fn each_kind_of_wrong_file_is_named() {
        let (cert, key) = issue();
        let key_pem = key.serialize_pem();
        assert!(pair(cert.as_bytes(), key_pem.as_bytes()).is_ok());
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let marked = |text: &str| [b"\xEF\xBB\xBF", text.as_bytes()].concat();
        let wide: Vec<u8> =
            [0xFF, 0xFE].into_iter().chain(cert.bytes().flat_map(|byte| [byte, 0])).collect();
        for (bytes, said) in [
            (&b""[..], "empty"),
            (&marked(&cert), "byte order mark"),
            (&wide, "UTF-16"),
            (&der, "it is DER, not PEM; write it as PEM: openssl x509"),
            (&[&[0x30, 0x82, 0, 4, 2, 1, 3][..], &[0]].concat(), "PKCS#12"),
            (key_pem.as_bytes(), "it has a private key, and no certificate in PEM"),
            (b"-----BEGIN CERTIFICATE REQUEST-----\n", "a certificate request, and no"),
            (b"hello", "it has no certificate in PEM"),
            (b"-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n", "damaged"),
        ] {
            let error = wrong(bytes, key_pem.as_bytes());
            assert!(matches!(&error, Wrong::Cert(detail) if detail.contains(said)), "{error:?}");
            assert!(authorities(bytes).unwrap_err().contains(said));
        }
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n";
        let (_, other) = issue();
        for (bytes, said) in [
            (&b""[..], "empty"),
            (&marked(&key_pem), "byte order mark"),
            (&key.serialize_der(), "it is DER, not PEM; write it as PEM: openssl pkey"),
            (&[0x30, 3, 2, 1, 1], "it is DER, not PEM; write it as PEM: openssl pkey"),
            (encrypted.as_bytes(), "encrypted with a passphrase"),
            (old.as_bytes(), "encrypted with a passphrase"),
            (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "OpenSSH's own format"),
            (cert.as_bytes(), "it has a certificate, and no private key in PEM"),
            (b"hello", "it has no private key in PEM"),
            (other.serialize_pem().as_bytes(), "not the key of the certificate"),
        ] {
            let error = wrong(cert.as_bytes(), bytes);
            assert!(matches!(&error, Wrong::Key(detail) if detail.contains(said)), "{error:?}");
        }
    }

    #[test]
    fn the_length_of_an_rsa_key_is_read() {
        // Nobody's: only the length of its modulus counts.
        let integer =
            |bytes: &[u8]| [&[2, 0x81, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let body = [vec![2, 1, 0], integer(&[&[0, 0x80][..], &[1; 127]].concat())].concat();
        let pkcs1 = [&[0x30, 0x81, u8::try_from(body.len()).unwrap()], &body[..]].concat();
        let key = PrivateKeyDer::Pkcs1(pkcs1.into());
        assert_eq!(rsa_bits(&key), Some(1024));
        assert!(signing_key(&key).unwrap_err().contains("RSA of 1024 bits, and 2048 is the least"));
        let (_, key) = issue();
        assert_eq!(rsa_bits(&PrivateKeyDer::Pkcs8(key.serialize_der().into())), None);
        for damaged in [&[][..], &[0x30], &[0x30, 0x85], &[0x30, 3, 2, 1], &[0x30, 0x82, 1]] {
            assert_eq!(rsa_bits(&PrivateKeyDer::Pkcs1(damaged.to_vec().into())), None);
            assert_eq!(rsa_bits(&PrivateKeyDer::Pkcs8(damaged.to_vec().into())), None);
        }
    }

    #[test]
    fn a_validity_says_how_a_certificate_stands() {
        let validity = Validity { not_before: 1_000, not_after: 2_000 };
        assert_eq!(validity.at(999), "is not valid before 1970-01-01T00:16:40Z");
        assert_eq!(validity.at(2_000), "is valid until 1970-01-01T00:33:20Z");
        assert_eq!(validity.at(2_001), "expired at 1970-01-01T00:33:20Z");
    }
}
