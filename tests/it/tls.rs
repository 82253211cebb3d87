//! HTTPS as others see it: openssl, curl, reqwest and the command line against the real binary,
//! and certificates that are exchanged under load.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use rustls::crypto::{SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, NamedGroup, RootCertStore};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::pki::{Pki, client, now};
use crate::support::{Service, Setup, run, until};

/// The names of the server in these tests.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// A service by HTTPS, with files that can be exchanged.
struct Https {
    setup: Setup,
    pki: Pki,
    cert: PathBuf,
    key: PathBuf,
}

impl Https {
    fn new() -> Self {
        let setup = Setup::new();
        let pki = Pki::new(setup.file("pki"));
        let (cert, key) = (setup.file("tls.crt"), setup.file("tls.key"));
        let setup =
            setup.set("SERVER__TLS__CERT", cert.display()).set("SERVER__TLS__KEY", key.display());
        let this = Self { setup, pki, cert, key };
        this.install(&this.pki.server(&NAMES));
        this
    }

    /// The same, which requests client certificates of its own authority.
    fn asking(how: &str) -> Self {
        let mut this = Self::new();
        let client_ca = this.client_ca();
        std::fs::copy(this.pki.ca(), &client_ca).unwrap();
        this.setup = this
            .setup
            .set("SERVER__TLS__CLIENT_CA", client_ca.display())
            .set("SERVER__TLS__CLIENT_CERT", how);
        this
    }

    fn client_ca(&self) -> PathBuf {
        self.setup.file("client-ca.crt")
    }

    /// Puts these files where the service looks: one, and then the other.
    fn install(&self, (cert, key): &(PathBuf, PathBuf)) {
        replace(&self.cert, cert);
        replace(&self.key, key);
    }

    async fn start(&self) -> Service {
        let mut service = self.setup.start().await;
        service.call_with(client(&self.pki.ca(), None).build().unwrap());
        service
    }
}

/// A copy that is never seen half.
fn replace(path: &Path, with: &Path) {
    let new = path.with_extension("new");
    std::fs::copy(with, &new).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Runs a program that Debian has; what it says, and whether it went well.
fn program(name: &str, args: &[&str], input: &str) -> (bool, String) {
    use std::io::Write;
    let mut command = Command::new(name);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}; run: sudo apt-get install {name}"));
    // It may have ended before it read anything.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// `openssl s_client`; it ends when the handshake is over, or when the server has answered `input`.
fn s_client(service: &Service, args: &[&str], input: &str) -> (bool, String) {
    let address = service.address().to_string();
    let mut all = vec!["s_client", "-connect", &address];
    all.extend(args);
    if !input.is_empty() {
        all.push("-ign_eof");
    }
    program("openssl", &all, input)
}

/// `curl` of a path; what it says ends with the status and the version of HTTP.
fn curl(service: &Service, ca: &Path, path: &str, args: &[&str]) -> (bool, String) {
    let (ca, url) = (ca.display().to_string(), format!("{}{path}", service.url()));
    let mut all =
        vec!["-sS", "--noproxy", "*", "--cacert", &ca, "-w", " %{http_code} %{http_version}"];
    all.extend(args);
    all.push(&url);
    program("curl", &all, "")
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_nothing_below() {
    let https = Https::new();
    let service = https.start().await;
    // openssl itself offers old versions only when it is asked to be careless.
    let careless = ["-cipher", "ALL:@SECLEVEL=0"];
    for (version, spoken) in [("-tls1", false), ("-tls1_1", false), ("-tls1_2", true)] {
        let (_, said) = s_client(&service, &[&[version], &careless[..]].concat(), "");
        assert_eq!(said.contains("BEGIN CERTIFICATE"), spoken, "{version}: {said}");
        if !spoken {
            assert!(said.contains("SSL alert number"), "{version}: {said}");
        }
    }
    let (_, said) = s_client(&service, &["-tls1_3", "-alpn", "h2,http/1.1"], "");
    assert!(said.contains("New, TLSv1.3") && said.contains("ALPN protocol: h2"), "{said}");
    // Without forward secrecy there is no TLS 1.2 either.
    let rsa = ["-tls1_2", "-cipher", "kRSA:@SECLEVEL=0"];
    let (_, said) = s_client(&service, &rsa, "");
    assert!(said.contains("alert handshake failure"), "{said}");

    for (args, version) in
        [(&["--http1.1"][..], "1.1"), (&["--http2"], "2"), (&["--http2", "--tls-max", "1.2"], "2")]
    {
        let (well, said) = curl(&service, &https.pki.ca(), "/healthz", args);
        assert!(well && said.ends_with(&format!("}} 200 {version}")), "{args:?}: {said}");
    }
    let stranger = Pki::new(https.setup.file("stranger"));
    let (well, said) = curl(&service, &stranger.ca(), "/healthz", &[]);
    assert!(!well && said.contains("certificate"), "{said}");
    let (well, said) =
        program("curl", &["-sS", "--noproxy", "*", &service.url().replace("https", "http")], "");
    assert!(!well, "plain HTTP is not answered: {said}");
}

/// The key exchange of a handshake by a rustls client that offers these groups.
async fn key_exchange(
    https: &Https,
    service: &Service,
    groups: &[&'static dyn SupportedKxGroup],
) -> NamedGroup {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(https.pki.ca()).unwrap()).unwrap();
    let mut provider = aws_lc_rs::default_provider();
    if !groups.is_empty() {
        provider.kx_groups = groups.to_vec();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(service.address()).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream.get_ref().1.negotiated_key_exchange_group().unwrap().name()
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_with_every_client_that_prefers_it() {
    use aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
    let https = Https::new();
    let service = https.start().await;
    // Without groups: as the command line, and the clients of etcd and of roots, offer them.
    for (groups, expected) in [
        (&[][..], NamedGroup::X25519MLKEM768),
        (&[X25519MLKEM768, X25519], NamedGroup::X25519MLKEM768),
        (&[X25519MLKEM768], NamedGroup::X25519MLKEM768),
        (&[X25519], NamedGroup::X25519),
        (&[X25519, SECP256R1], NamedGroup::X25519),
        (&[SECP256R1], NamedGroup::secp256r1),
    ] {
        assert_eq!(key_exchange(&https, &service, groups).await, expected, "{groups:?}");
    }
}

#[tokio::test]
async fn clients_show_certificates_where_that_is_configured() {
    for how in ["required", "optional"] {
        let https = Https::asking(how);
        let service = https.start().await;
        let stranger = Pki::new(https.setup.file("stranger"));
        for (who, identity, is_taken) in [
            ("nobody", None, how == "optional"),
            ("a client", Some(https.pki.client(&["a.example", "spiffe://prod/a"])), true),
            ("an expired one", Some(https.pki.expired_client(&["a.example"])), false),
            ("one of a stranger", Some(stranger.client(&["a.example"])), false),
            ("a server", Some(https.pki.server(&["a.example"])), false),
        ] {
            let files =
                identity.map(|(cert, key)| [cert, key].map(|file| file.display().to_string()));
            let mut args = vec![];
            if let Some([cert, key]) = &files {
                args = vec!["--cert", cert, "--key", key];
            }
            for version in [&["--http2"][..], &["--http1.1"], &["--tls-max", "1.2"]] {
                let args = [&args[..], version].concat();
                let (well, said) = curl(&service, &https.pki.ca(), "/healthz", &args);
                let taken = well && said.contains(" 200 ");
                assert_eq!(taken, is_taken, "{how}: {who} {version:?}: {said}");
            }
        }
        service.stop().await;
    }
}

/// The common name of the certificate that a new connection sees.
fn shown(service: &Service) -> String {
    let (_, said) = s_client(service, &[], "");
    let (_, rest) = said.split_once("CN = certificate ").unwrap_or_else(|| panic!("{said}"));
    rest.split_whitespace().next().unwrap().to_owned()
}

async fn tls_check(service: &Service) -> (String, String) {
    let (status, readiness) = service.get("/readyz").await;
    assert_eq!(status, 200, "{readiness}");
    let checks = readiness["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "tls").expect("a check");
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    assert!(text("status") == "ok" || readiness["status"] == "degraded", "{readiness}");
    (text("status"), text("detail"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_exchanged_under_load_and_no_request_fails() {
    let https = Https::new();
    let service = Arc::new(https.start().await);
    let (is_running, done) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let mut load = Vec::new();
    for number in 0..6 {
        let builder = client(&https.pki.ca(), None);
        // Kept connections, new ones for each request, HTTP/1.1 and HTTP/2.
        let builder = if number % 2 == 0 { builder.http1_only() } else { builder };
        let builder = if number < 3 { builder } else { builder.pool_max_idle_per_host(0) };
        let (client, url) = (builder.build().unwrap(), format!("{}/v1/encrypt", service.url()));
        let (is_running, done) = (Arc::clone(&is_running), Arc::clone(&done));
        load.push(tokio::spawn(async move {
            while is_running.load(Ordering::Relaxed) {
                let answer = client.post(&url).json(&json!({"plaintext": "aGVsbG8="})).send().await;
                assert_eq!(answer.expect("an answer").status(), 200);
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let more = async |count: u64| {
        let before = done.load(Ordering::Relaxed);
        let came = async || (done.load(Ordering::Relaxed) >= before + count).then_some(());
        until("more requests", came).await;
    };
    more(100).await;
    let mut serving = shown(&service);
    for round in 0..3 {
        let new = https.pki.server(&NAMES);
        https.install(&new);
        if round == 1 {
            service.signal(Signal::HUP);
        }
        let before = serving;
        serving = until("the new certificate", async || {
            let now = shown(&service);
            (now != before).then_some(now)
        })
        .await;
        assert_eq!(tls_check(&service).await.0, "ok");
        more(100).await;
    }

    // A key of another certificate. An expired certificate. A file that is not a certificate.
    let (_, other_key) = https.pki.server(&NAMES);
    let (good_cert, good_key) = (https.setup.file("good.crt"), https.setup.file("good.key"));
    std::fs::copy(&https.cert, &good_cert).unwrap();
    std::fs::copy(&https.key, &good_key).unwrap();
    let past = https.pki.server_until(&NAMES, now() - Duration::from_secs(60));
    let garbage = https.setup.file("garbage");
    std::fs::write(&garbage, "-----BEGIN PRIVATE KEY-----\nhunter2\n").unwrap();
    for (broken, said) in [
        ((good_cert.clone(), other_key), "it is not the key of the certificate"),
        (past, "it expired at "),
        ((garbage.clone(), good_key.clone()), "tls.crt: "),
        ((good_cert.clone(), garbage), "tls.key: the PEM of its private key is damaged"),
    ] {
        https.install(&broken);
        let detail = until("it is refused", async || {
            let (status, detail) = tls_check(&service).await;
            (status == "degraded" && detail.contains(said)).then_some(detail)
        })
        .await;
        assert!(detail.contains("server.tls.") && detail.contains("serves on"), "{detail}");
        assert!(!detail.contains("hunter2"), "{detail}");
        assert_eq!(shown(&service), serving, "{said}");
        more(50).await;
    }
    https.install(&(good_cert, good_key));
    until("it is well again", async || (tls_check(&service).await.0 == "ok").then_some(())).await;
    more(100).await;
    is_running.store(false, Ordering::Relaxed);
    for task in load {
        task.await.expect("no request failed");
    }
    let service = Arc::into_inner(service).unwrap();
    let log = service.stop().await;
    assert!(log.contains("the new certificate is refused") && !log.contains("hunter2"), "{log}");
}

/// A file of each form that can't be used, made of a good pair in `dir`: certificates end in
/// `.crt`, keys in `.key`.
fn unusable_forms(dir: &Path, (cert, key): (PathBuf, PathBuf)) {
    std::fs::create_dir(dir).unwrap();
    let file = |name: &str| dir.join(name);
    let openssl = |args: &str| {
        let args: Vec<_> = args.split(' ').collect();
        let mut command = Command::new("openssl");
        let output = command.args(args).current_dir(dir).output();
        let output = output.expect("openssl is not there; run: sudo apt-get install openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::copy(&cert, file("good.crt")).unwrap();
    std::fs::copy(&key, file("good.key")).unwrap();
    openssl("x509 -in good.crt -outform der -out der.crt");
    openssl("pkey -in good.key -outform der -out der.key");
    openssl("pkey -in good.key -aes128 -passout pass:planted -out encrypted.key");
    openssl("pkcs12 -export -in good.crt -inkey good.key -passout pass:planted -out both.p12");
    openssl(
        "req -x509 -newkey rsa:1024 -nodes -keyout weak.key -out weak.crt \
         -subj /CN=a -addext subjectAltName=DNS:localhost",
    );
    for name in ["crt", "key"] {
        let text = std::fs::read(file(&format!("good.{name}"))).unwrap();
        std::fs::write(file(&format!("bom.{name}")), [b"\xEF\xBB\xBF", &text[..]].concat())
            .unwrap();
    }
}

/// The error about a weak RSA key.
const WEAK: &str = "RSA of 1024 bits, and 2048 is the least";

/// A file in each of the forms that can't be used, and the error about it.
#[test]
fn what_is_wrong_with_a_file_is_said_before_the_start() {
    let https = Https::new();
    let dir = https.setup.file("forms");
    unusable_forms(&dir, https.pki.server(&NAMES));
    let file = |name: &str| dir.join(name);
    let other = |key: &str, with: &str| https.setup.clone().set(key, file(with).display());
    for (setting, with, said) in [
        ("cert", "der.crt", "it is DER, not PEM; write it as PEM: openssl x509 -inform der"),
        ("cert", "both.p12", "it is PKCS#12, not PEM"),
        ("cert", "bom.crt", "it starts with a byte order mark"),
        ("cert", "good.key", "it has a private key, and no certificate in PEM"),
        ("cert", "weak.crt", WEAK),
        ("key", "der.key", "it is DER, not PEM; write it as PEM: openssl pkey -inform der"),
        ("key", "encrypted.key", "the key is encrypted with a passphrase"),
        ("key", "bom.key", "it starts with a byte order mark"),
        ("key", "weak.key", WEAK),
        ("client_ca", "der.crt", "it is DER, not PEM"),
        ("client_ca", "bom.crt", "it starts with a byte order mark"),
        ("client_ca", "weak.crt", WEAK),
    ] {
        let setup = other(&format!("SERVER__TLS__{}", setting.to_uppercase()), with);
        let output = setup.run(&["check-config"]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{with}: {text}");
        let named = format!("server.tls.{setting}: {}: ", file(with).display());
        assert!(text.contains(&named) && text.contains(said), "{with}: {text}");
        assert!(!text.contains("planted"), "{text}");
    }
}

#[tokio::test]
async fn a_mounted_secret_is_followed_through_its_links() {
    use std::os::unix::fs::symlink;
    let https = Https::new();
    let dir = https.setup.file("mount");
    let fill = |version: &str| {
        let (cert, key) = https.pki.server(&NAMES);
        std::fs::create_dir_all(dir.join(version)).unwrap();
        std::fs::copy(cert, dir.join(version).join("tls.crt")).unwrap();
        std::fs::copy(key, dir.join(version).join("tls.key")).unwrap();
    };
    fill("..1");
    symlink("..1", dir.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(file), dir.join(file)).unwrap();
    }
    let setup = Setup::new()
        .set("SERVER__TLS__CERT", dir.join("tls.crt").display())
        .set("SERVER__TLS__KEY", dir.join("tls.key").display());
    let service = setup.start().await;
    let before = shown(&service);
    fill("..2");
    symlink("..2", dir.join("..new")).unwrap();
    std::fs::rename(dir.join("..new"), dir.join("..data")).unwrap();
    until("the new certificate", async || (shown(&service) != before).then_some(())).await;
}

#[tokio::test]
async fn a_session_is_resumed_but_not_when_the_client_is_trusted_no_longer() {
    let https = Https::asking("required");
    let service = https.start().await;
    let (cert, key) = https.pki.client(&["a.example"]);
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let session = https.setup.file("session").display().to_string();
    let get = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for version in ["-tls1_3", "-tls1_2"] {
        std::fs::copy(https.pki.ca(), https.client_ca()).unwrap();
        service.signal(Signal::HUP);
        let identity = [version, "-cert", &cert, "-key", &key];
        until("the client is trusted", async || {
            let (_, said) =
                s_client(&service, &[&identity[..], &["-sess_out", &session]].concat(), get);
            said.contains("HTTP/1.1 200").then_some(())
        })
        .await;
        let again = [&identity[..], &["-sess_in", &session]].concat();
        let (_, said) = s_client(&service, &again, get);
        assert!(said.contains("Reused, TLSv1") && said.contains("HTTP/1.1 200"), "{said}");

        let stranger = Pki::new(https.setup.file("stranger"));
        std::fs::copy(stranger.ca(), https.client_ca()).unwrap();
        service.signal(Signal::HUP);
        until("its ticket is worth nothing", async || {
            let (_, said) = s_client(&service, &again, get);
            (!said.contains("HTTP/1.1 200")).then_some(())
        })
        .await;
        let (_, said) = s_client(&service, &identity, get);
        assert!(!said.contains("HTTP/1.1 200"), "{said}");
    }
}

#[tokio::test]
async fn the_metric_and_readiness_tell_of_a_certificate_that_ends() {
    let https = Https::new();
    let expiry = async |service: &Service| -> i64 {
        let metrics = service.metrics().await;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("kms_proxy_tls_certificate_expiry_seconds "));
        line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
    };
    let service = https.start().await;
    assert!((86_000..=86_400).contains(&expiry(&service).await));
    assert_eq!(tls_check(&service).await, ("ok".to_owned(), String::new()));
    service.stop().await;
    let soon = now() + Duration::from_secs(3_600);
    https.install(&https.pki.server_until(&NAMES, soon));
    let service = https.start().await;
    assert!((3_000..=3_600).contains(&expiry(&service).await));
    let (status, detail) = tls_check(&service).await;
    assert!(status == "degraded" && detail.starts_with("the certificate expires at "), "{detail}");
    service.stop().await;
    // A start with an expired certificate serves it: clients that check it refuse it.
    https.install(&https.pki.server_until(&NAMES, now() - Duration::from_secs(60)));
    let mut service = https.setup.start().await;
    let careless = client(&https.pki.ca(), None).tls_danger_accept_invalid_certs(true);
    service.call_with(careless.build().unwrap());
    assert!(expiry(&service).await < 0);
    assert!(tls_check(&service).await.1.contains("expired at "));
    let plain = Setup::new().start().await;
    assert!(!plain.metrics().await.contains("certificate_expiry"));
}

#[tokio::test]
async fn files_that_can_not_be_used_are_named_and_nothing_starts() {
    let https = Https::asking("optional");
    let good = (https.setup.file("good.crt"), https.setup.file("good.key"));
    std::fs::copy(&https.cert, &good.0).unwrap();
    std::fs::copy(&https.key, &good.1).unwrap();
    let garbage = https.setup.file("garbage");
    std::fs::write(&garbage, "hunter2").unwrap();
    let (_, other_key) = https.pki.server(&NAMES);
    // openssl makes version 1 of it where no extension is asked for.
    let (v1, request) = (https.setup.file("v1.crt"), https.setup.file("v1.csr"));
    let [key, cert, csr] = [&good.1, &v1, &request].map(|path| path.to_str().unwrap());
    let (well, said) = program(
        "openssl",
        &["req", "-new", "-key", key, "-subj", "/CN=localhost", "-out", csr],
        "",
    );
    assert!(well, "{said}");
    let (well, said) =
        program("openssl", &["x509", "-req", "-in", csr, "-signkey", key, "-out", cert], "");
    assert!(well, "{said}");
    for ((cert, key, client_ca), said) in [
        ((&v1, &good.1, &https.pki.ca()), "tls.crt: its first certificate can't be used: it must"),
        ((&garbage, &good.1, &https.pki.ca()), "server.tls.cert: "),
        ((&good.0, &garbage, &https.pki.ca()), "server.tls.key: "),
        ((&good.0, &other_key, &https.pki.ca()), "it is not the key of the certificate"),
        ((&good.0, &good.1, &garbage), "server.tls.client_ca: "),
    ] {
        https.install(&(cert.clone(), key.clone()));
        std::fs::copy(client_ca, https.client_ca()).unwrap();
        let (code, log) = https.setup.fails().await;
        assert!(
            code == Some(2) && log.contains(said) && !log.contains("hunter2"),
            "{code:?} {log}"
        );
        assert!(!https.setup.data().exists(), "nothing is made");
        let checked = https.setup.run(&["check-config"]);
        let log = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(checked.status.code() == Some(2) && log.contains(said), "{log}");
    }
    std::fs::remove_file(&https.key).unwrap();
    let (code, log) = https.setup.fails().await;
    assert!(code == Some(2) && log.contains("tls.key: No such file"), "{code:?} {log}");
    https.install(&good);
    std::fs::copy(https.pki.ca(), https.client_ca()).unwrap();
    let checked = https.setup.run(&["check-config"]);
    assert!(checked.status.success(), "{checked:?}");
}

#[tokio::test]
async fn the_command_line_speaks_https_and_says_which_side_refused() {
    let https = Https::asking("required");
    let service = https.start().await;
    let (url, ca) = (service.url(), https.pki.ca().display().to_string());
    let files =
        |(cert, key): (PathBuf, PathBuf)| [cert, key].map(|file| file.display().to_string());
    let [cert, key] = files(https.pki.client(&["a.example"]));
    let stranger = Pki::new(https.setup.file("stranger"));
    let [other_cert, other_key] = files(stranger.client(&["a.example"]));
    let other_ca = stranger.ca().display().to_string();
    let all = ["--server", &url, "--ca", &ca, "--cert", &cert, "--key", &key];
    let sealed = run(&[&["encrypt"], &all[..]].concat(), b"hello");
    assert!(sealed.status.success(), "{sealed:?}");
    let opened = run(&[&["decrypt"], &all[..]].concat(), &sealed.stdout);
    assert_eq!(opened.stdout, b"hello", "{opened:?}");
    assert!(run(&[&["healthcheck"], &all[..]].concat(), b"").status.success());

    // Files in a form that is not read, each with what is wrong with it.
    let marked = |file: &str| [b"\xef\xbb\xbf", &*std::fs::read(file).unwrap()].concat();
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let write = |name: &str, contents: &[u8]| {
        let file = https.setup.file(name);
        std::fs::write(&file, contents).unwrap();
        file.display().to_string()
    };
    let [marked_ca, marked_cert, der, encrypted] = [
        write("marked-ca", &marked(&ca)),
        write("marked-cert", &marked(&cert)),
        write("der", &[0x30, 3, 2, 1, 1]),
        write("encrypted", encrypted.as_bytes()),
    ];

    let plain = Setup::new().start().await;
    let (to_plain, to_tls) =
        (plain.url().replace("http://", "https://"), service.url().replace("https://", "http://"));
    for (args, code, said) in [
        (&["--server", &url, "--cert", &cert, "--key", &key][..], 1, "is not trusted here"),
        (
            &["--server", &url, "--ca", &other_ca, "--cert", &cert, "--key", &key],
            1,
            "is not trusted here: UnknownIssuer (--ca)",
        ),
        (&["--server", &url, "--ca", &ca], 1, "requires a client certificate (--cert and --key)"),
        (
            &["--server", &url, "--ca", &ca, "--cert", &other_cert, "--key", &other_key],
            1,
            "refused this client's handshake or certificate: ",
        ),
        (
            &["--server", &url, "--ca", &ca, "--cert", &cert, "--key", &other_key],
            2,
            "it is not the key of the certificate",
        ),
        (&["--server", &url, "--ca", "/no/such/file"], 2, "--ca: /no/such/file: "),
        (&["--server", &url, "--ca", &marked_ca], 2, "byte order mark"),
        (&["--server", &url, "--ca", &der], 2, "it is DER, not PEM"),
        (&["--server", &url, "--cert", &marked_cert, "--key", &key], 2, "byte order mark"),
        (&["--server", &url, "--cert", &der, "--key", &key], 2, "it is DER, not PEM"),
        (
            &["--server", &url, "--cert", &cert, "--key", &encrypted],
            2,
            "encrypted with a passphrase",
        ),
        (&["--server", &url, "--ca", &key], 2, "it has a private key, and no certificate in PEM"),
        (&["--server", &url, "--cert", &ca, "--key", &ca], 2, "and no private key in PEM"),
        (&["--server", &to_plain, "--ca", &ca], 1, "does not speak TLS; is it http://?"),
        (&["--server", &to_tls], 1, "does not speak plain HTTP; is it https://?"),
    ] {
        let output = run(&[&["encrypt"], args].concat(), b"hello");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(said) && output.stdout.is_empty(), "{args:?}: {text}");
        assert!(text.starts_with("kms-proxy: ") && !text.contains("PRIVATE"), "{args:?}: {text}");
    }
    let posted = service.request(Method::POST, "/v1/encrypt").json(&json!({"plaintext": ""}));
    assert!(posted.send().await.is_err(), "the tests' own client has no certificate");
}

/// The same messages as those of the service, from a command, which does not call anyone then.
#[test]
fn a_command_says_what_is_wrong_with_a_file_that_it_was_given() {
    let setup = Setup::new();
    let pki = Pki::new(setup.file("pki"));
    let dir = setup.file("forms");
    unusable_forms(&dir, pki.client(&["a.example"]));
    for (flag, with, said) in [
        ("--ca", "der.crt", "it is DER, not PEM; write it as PEM: openssl x509 -inform der"),
        ("--ca", "bom.crt", "it starts with a byte order mark"),
        ("--ca", "weak.crt", WEAK),
        ("--ca", "good.key", "it has a private key, and no certificate in PEM"),
        ("--cert", "der.crt", "it is DER, not PEM; write it as PEM: openssl x509 -inform der"),
        ("--cert", "both.p12", "it is PKCS#12, not PEM"),
        ("--cert", "bom.crt", "it starts with a byte order mark"),
        ("--cert", "weak.crt", WEAK),
        ("--key", "der.key", "it is DER, not PEM; write it as PEM: openssl pkey -inform der"),
        ("--key", "encrypted.key", "the key is encrypted with a passphrase"),
        ("--key", "bom.key", "it starts with a byte order mark"),
        ("--key", "weak.key", WEAK),
    ] {
        let file = |name: &str| dir.join(name).display().to_string();
        let mut files = [("--ca", pki.ca().display().to_string())].to_vec();
        files.extend([("--cert", file("good.crt")), ("--key", file("good.key"))]);
        for (name, path) in &mut files {
            if *name == flag {
                *path = file(with);
            }
        }
        let files = files.iter().flat_map(|(name, path)| [*name, path]);
        let args = ["encrypt", "--server", "https://127.0.0.1:1"].into_iter().chain(files);
        let output = run(&args.collect::<Vec<_>>(), b"hello");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag} {with}: {text}");
        let start = format!("kms-proxy: {flag}: {}: ", file(with));
        assert!(text.starts_with(&start) && text.contains(said), "{flag} {with}: {text}");
        assert!(output.stdout.is_empty() && !text.contains("planted"), "{flag} {with}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_carries_many_requests_and_large_bodies_and_names_its_host() {
    let mut https = Https::new();
    https.setup = https.setup.set("SERVER__REQUEST_TIMEOUT", "5m");
    let service = https.start().await;
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..300_usize {
        // More than the concurrent streams of a connection, some of them large both ways.
        let body = vec![7_u8; if number % 30 == 0 { 3 << 20 } else { number }];
        let request = service.request(Method::POST, "/v1/encrypt");
        let request = request.header("content-type", "application/octet-stream").body(body.clone());
        let open = service.request(Method::POST, "/v1/decrypt");
        requests.spawn(async move {
            let sealed = request.send().await.unwrap();
            assert_eq!(
                (sealed.status().as_u16(), sealed.version()),
                (200, reqwest::Version::HTTP_2)
            );
            let sealed = sealed.bytes().await.unwrap();
            let open = open.header("content-type", "application/octet-stream").body(sealed);
            let opened = open.send().await.unwrap().bytes().await.unwrap();
            assert!(opened == body, "{} bytes", body.len());
        });
    }
    while let Some(ended) = requests.join_next().await {
        ended.unwrap();
    }
    // A web page whose name was pointed here: HTTP/2 has it in `:authority`.
    let foreign = client(&https.pki.ca(), None)
        .tls_danger_accept_invalid_certs(true)
        .resolve("evil.example", service.address());
    let url = format!("https://evil.example:{}/v1/encrypt", service.address().port());
    let request = foreign.build().unwrap().post(&url).json(&json!({"plaintext": ""}));
    let answer = request.send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (403, reqwest::Version::HTTP_2));
    let page = service.request(Method::POST, "/v1/encrypt").json(&json!({"plaintext": ""}));
    let same = page.try_clone().unwrap().header("origin", service.url());
    assert_eq!(same.send().await.unwrap().status(), 200, "a page of our own");
    let other = page.header("origin", service.url().replace("https", "http"));
    assert_eq!(other.send().await.unwrap().status(), 403, "a page that is not by HTTPS");
}
