//! Certificates from files: whom they name, and when a change of the files is loaded.

use rustls::pki_types::CertificateDer;

use super::*;
use crate::clock::SystemClock;

#[allow(dead_code, reason = "others need the rest of it")]
#[path = "../../tests/it/support/pki.rs"]
pub(crate) mod pki;

use pki::{Pki, now};

/// A server with dedicated files, which can be replaced.
fn server(dir: &std::path::Path, pki: &Pki) -> Server {
    let config = Config {
        cert: dir.join("tls.crt"),
        key: dir.join("tls.key"),
        client_ca: Some(pki.ca()),
        client_cert: ClientCert::Optional,
    };
    install(dir, &pki.server(&["localhost"]));
    Server::open(config, Arc::new(SystemClock::new())).unwrap()
}

fn install(dir: &std::path::Path, (cert, key): &(PathBuf, PathBuf)) {
    std::fs::copy(cert, dir.join("tls.crt")).unwrap();
    std::fs::copy(key, dir.join("tls.key")).unwrap();
}

#[test]
fn a_client_has_the_names_of_its_certificate() {
    use rustls::pki_types::pem::PemObject;
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let parse = |(cert, _): (PathBuf, PathBuf)| {
        Peer::parse(&CertificateDer::from_pem_file(cert).unwrap()).unwrap()
    };
    let peer = parse(pki.client(&["A.Example", "spiffe://prod/Orders", "10.0.0.1", "b.example"]));
    assert_eq!(peer.dns, ["a.example", "b.example"]);
    assert_eq!(peer.uris, ["spiffe://prod/Orders"]);
    assert!(peer.subject.contains("CN=certificate"), "{}", peer.subject);
    let nobody = parse(pki.client(&[]));
    assert!(nobody.dns.is_empty() && nobody.uris.is_empty());
    assert!(Peer::parse(&CertificateDer::from(vec![0x30, 0])).is_err());
}

#[test]
fn a_change_is_loaded_when_it_is_seen_twice_or_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path().join("pki"));
    let server = server(dir.path(), &pki);
    let loaded = |server: &Server| Arc::as_ptr(&server.loaded.load_full());
    let (first, (cert, key)) = (loaded(&server), pki.server(&["localhost"]));
    server.look(false);
    // One file of a pair is not loaded, since the other one follows soon.
    std::fs::copy(cert, dir.path().join("tls.crt")).unwrap();
    server.look(false);
    assert_eq!((loaded(&server), server.certificate_status().warning), (first, None));
    std::fs::copy(key, dir.path().join("tls.key")).unwrap();
    server.look(false);
    assert_eq!(loaded(&server), first, "it is seen for the first time");
    server.look(false);
    let second = loaded(&server);
    assert_ne!(second, first);
    for _ in 0..3 {
        server.look(false);
    }
    assert_eq!(loaded(&server), second, "nothing changed");
    install(dir.path(), &pki.server(&["localhost"]));
    server.look(true);
    assert_ne!(loaded(&server), second);
}

#[test]
fn an_unusable_file_is_refused_and_reported_until_it_is_corrected() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path().join("pki"));
    let server = server(dir.path(), &pki);
    let loaded = |server: &Server| Arc::as_ptr(&server.loaded.load_full());
    let (first, good) = (loaded(&server), dir.path().join("good.crt"));
    std::fs::copy(dir.path().join("tls.crt"), &good).unwrap();
    std::fs::remove_file(dir.path().join("tls.crt")).unwrap();
    server.look(false);
    assert_eq!(server.certificate_status().warning, None, "it may be back in a moment");
    server.look(false);
    let warning = server.certificate_status().warning.unwrap();
    assert!(
        warning.contains("tls.crt: No such file") && warning.contains("serves on"),
        "{warning}"
    );
    std::fs::copy(good, dir.path().join("tls.crt")).unwrap();
    server.look(false);
    server.look(false);
    assert_eq!(server.certificate_status().warning, None);
    let corrected = loaded(&server);
    assert_ne!(corrected, first);

    let day = Duration::from_secs(24 * 60 * 60);
    install(dir.path(), &pki.server_until(&["localhost"], now() - day));
    server.look(true);
    let warning = server.certificate_status().warning.unwrap();
    assert!(warning.contains("it expired at "), "{warning}");
    assert_eq!(loaded(&server), corrected);
}
