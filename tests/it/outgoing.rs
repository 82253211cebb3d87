//! Connections to others: the proxy of the environment, private authorities, and a `ca` that is
//! replaced while the service runs.

use std::net::SocketAddr;
use std::path::Path;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::clouds::Fake;
use crate::support::kms::{Front, Moto, REGION};
use crate::support::pki::Pki;
use crate::support::tunnel::{Terminator, Tunnel};
use crate::support::{Bao, Service, Setup, jwt, until};
use crate::{azure_key_vault, gcp_kms};

/// The address of a proxy that does not exist.
const NOBODY: &str = "http://127.0.0.1:1";

/// Where a server of the test's own is.
fn address(url: &str) -> SocketAddr {
    url.rsplit('/').next().unwrap().parse().unwrap()
}

fn with_kms(key_id: &str, endpoint: &str) -> Setup {
    Setup::new()
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__KIND", "aws-kms")
        .set("ROOT__0__KEY_ID", key_id)
        .set("ROOT__0__ENDPOINT", endpoint)
        .env("AWS_REGION", REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "secret-of-the-access-key")
}

fn with_vault(token: &str, address: &str) -> Setup {
    Setup::new()
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__KIND", "vault-transit")
        .set("ROOT__0__ADDRESS", address)
        .set("ROOT__0__KEY", "kek")
        .set("ROOT__0__TOKEN", token)
}

/// What `/readyz` says of the root.
async fn root(service: &Service) -> String {
    let (_, body) = service.get("/readyz").await;
    let checks = body["checks"].as_array().unwrap();
    let root = checks.iter().find(|check| check["name"] == "root:main").unwrap();
    root["detail"].as_str().unwrap_or_default().to_owned()
}

/// Makes a chain, whose first KEK needs the root, and encrypts under it when that is there.
async fn root_works(service: &Service, chain: &str) {
    until("an encrypt under a new chain", async || {
        _ = service.send(Method::PUT, &format!("/v1/chains/{chain}"), json!({})).await;
        service.try_encrypt(chain, "aGVsbG8=").await?.ok()
    })
    .await;
}

/// A new chain needs the root, which says `parts`.
async fn root_says(service: &Service, chain: &str, parts: &[&str]) {
    _ = service.send(Method::PUT, &format!("/v1/chains/{chain}"), json!({})).await;
    let said = until("what the root says", async || {
        _ = service.try_encrypt(chain, "aGVsbG8=").await;
        let said = root(service).await;
        parts.iter().all(|part| said.contains(part)).then_some(said)
    })
    .await;
    assert!(!said.contains("planted"), "{said}");
}

/// Replaces `path` by a copy of `with`, from one moment to the next.
fn replace(path: &Path, with: &Path) {
    let new = path.with_extension("new");
    std::fs::copy(with, &new).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aws_kms_is_called_through_the_proxy_and_a_replaced_ca_is_used() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let (key_id, target) = (moto.create_key().await, address(&front.url()));
    let setup = with_kms(&key_id, "https://kms.test");
    let (one, two) = (Pki::new(setup.file("1")), Pki::new(setup.file("2")));
    let ca = setup.file("ca.crt");
    replace(&ca, &one.ca());
    let tunnel = Tunnel::start().await;
    let setup = setup.set("ROOT__0__CA", ca.display()).env("HTTPS_PROXY", tunnel.variable());
    let service = setup.start_unready().await;
    // The proxy refuses, and the error names it.
    root_says(&service, "early", &[&tunnel.via()]).await;

    let first = Terminator::start(one.server(&["kms.test"]), target).await;
    tunnel.lead_to(first.address);
    root_works(&service, "a").await;
    assert!(tunnel.asked().iter().all(|asked| asked == "kms.test:443"), "{:?}", tunnel.asked());

    let second = Terminator::start(two.server(&["kms.test"]), target).await;
    tunnel.lead_to(second.address);
    drop(first);
    let file = format!("; ca is {}", ca.display());
    root_says(&service, "b", &["UnknownIssuer", &file]).await;
    replace(&ca, &two.ca());
    root_works(&service, "b").await;
    let log = service.stop().await;
    assert!(!log.contains("planted-password"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vault_is_called_through_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    let (cert, key) = pki.server(&["127.0.0.1", "bao.test"]);
    let bao = Bao::start_with(Some([&text(&cert), &text(&key), &text(&pki.ca())])).await;
    let at = address(bao.address());
    let tunnel = Tunnel::start().await;
    let setup = with_vault(bao.token(), &format!("https://bao.test:{}", at.port()))
        .set("ROOT__0__CA", pki.ca().display())
        .env("HTTPS_PROXY", tunnel.variable());
    let service = setup.start_unready().await;
    root_says(&service, "early", &[&tunnel.via()]).await;
    tunnel.lead_to(at);
    root_works(&service, "a").await;
    let port = at.port();
    assert!(tunnel.asked().iter().all(|asked| *asked == format!("bao.test:{port}")));

    service.stop().await;

    // What NO_PROXY names is reached directly, and here not at all.
    let service = setup.env("NO_PROXY", "test").start_unready().await;
    root_says(&service, "b", &["dns error"]).await;
    assert!(!root(&service).await.contains("through the proxy"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_is_called_through_the_proxy_and_its_metadata_server_is_not() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let tunnel = Tunnel::start().await;
    let setup = gcp_kms::with_root(Setup::new(), 0, &fake, &key_id);
    let pki = Pki::new(setup.file("pki"));
    let setup = setup
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__ENDPOINT", "https://kms.test")
        .set("ROOT__0__CA", pki.ca().display())
        .env("HTTPS_PROXY", tunnel.variable());
    let service = setup.start_unready().await;
    root_says(&service, "early", &["kms.test can't be reached", &tunnel.via()]).await;
    let terminator = Terminator::start(pki.server(&["kms.test"]), address(&fake.url)).await;
    tunnel.lead_to(terminator.address);
    root_works(&service, "a").await;
    assert!(tunnel.asked().iter().all(|asked| asked == "kms.test:443"), "{:?}", tunnel.asked());
    let log = service.stop().await;
    assert!(!log.contains("planted-password"), "{log}");
}

/// The vault has its real domain here, which its challenge must name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_is_called_through_the_proxy_and_the_managed_identity_is_not() {
    let fake = Fake::azure();
    fake.azure_key("one", "RSA").await;
    let vault = "orders.vault.azure.net";
    fake.control("config", json!({"url": format!("https://{vault}")})).await;
    let tunnel = Tunnel::start().await;
    let key_id = format!("https://{vault}/keys/one");
    let setup = azure_key_vault::with_root(Setup::new(), 0, &fake, &key_id);
    let pki = Pki::new(setup.file("pki"));
    let setup = setup
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__CA", pki.ca().display())
        .env("HTTPS_PROXY", tunnel.variable());
    let service = setup.start_unready().await;
    let unreachable = format!("{vault} can't be reached");
    root_says(&service, "early", &[&unreachable, &tunnel.via()]).await;
    let terminator = Terminator::start(pki.server(&[vault]), address(&fake.url)).await;
    tunnel.lead_to(terminator.address);
    root_works(&service, "a").await;
    let asked = tunnel.asked();
    assert!(asked.iter().all(|asked| *asked == format!("{vault}:443")), "{asked:?}");
    let log = service.stop().await;
    assert!(!log.contains("planted-password"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_proxy_stands_between_the_service_and_its_own_machine_or_plain_http() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let key_id = moto.create_key().await;
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let tls = Terminator::start(pki.server(&["127.0.0.1"]), address(&front.url())).await;
    let bao = Bao::start().await;
    for setup in [
        with_kms(&key_id, &front.url()),
        with_kms(&key_id, &format!("https://{}", tls.address))
            .set("ROOT__0__CA", pki.ca().display()),
        with_vault(bao.token(), bao.address()),
    ] {
        let setup = setup.env("HTTPS_PROXY", NOBODY).env("HTTP_PROXY", NOBODY);
        let service = setup.start().await;
        root_works(&service, "a").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_an_issuer_are_fetched_through_the_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let body = jwt::jwks(&[&jwt::Key::new("one", jsonwebtoken::Algorithm::ES256)]);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            _ = stream.read(&mut [0; 4096]).await;
            _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let setup = Setup::new();
    let pki = Pki::new(setup.file("pki"));
    let issuer = Terminator::start(pki.server(&["issuer.test"]), target).await;
    let tunnel = Tunnel::start().await;
    let config = format!(
        "[auth]\nmode = 'required'\n[[client]]\nname = 'a'\n\
         allow = [{{ chains = ['*'], operations = ['encrypt'] }}]\n\
         jwt = {{ issuer = 'i', audience = 'k', subject = 's', jwks_ca = '{}', \
         jwks_url = 'https://issuer.test/jwks' }}\n",
        pki.ca().display()
    );
    std::fs::write(setup.file("kms-proxy.toml"), config).unwrap();
    let file = setup.file("kms-proxy.toml");
    let setup = setup.env("KMS_PROXY_CONFIG", file.display()).env("HTTPS_PROXY", tunnel.variable());
    let service = setup.start().await;
    let log = service.logged(&tunnel.via()).await;
    assert!(log.contains("the keys of an issuer can't be read"), "{log}");
    drop(service);
    tunnel.lead_to(issuer.address);
    let service = setup.start().await;
    let log = service.logged("the keys of an issuer were read").await;
    assert!(!log.contains("planted-password"), "{log}");
    assert_eq!(tunnel.asked().last().unwrap(), "issuer.test:443");
}

#[test]
fn a_proxy_that_can_not_be_used_is_named_before_the_start() {
    for setup in [with_kms("alias/a", "https://kms.test"), with_vault("s.x", "https://vault.test")]
    {
        let setup = setup.env("https_proxy", "socks5://planted.test");
        let output = setup.run(&["check-config"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("https_proxy: it must be the URL of an HTTP proxy"), "{said}");
        assert!(!said.contains("planted"), "{said}");
    }
    let setup = with_vault("s.x", "https://vault.test:8200/v1/");
    let said = String::from_utf8(setup.run(&["check-config"]).stderr).unwrap();
    assert!(said.contains("address must not end in /v1, which is added to it"), "{said}");
}
