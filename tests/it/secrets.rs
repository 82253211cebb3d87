//! Nothing secret leaves the process but in answers: not in logs, metrics or messages, whatever
//! goes wrong.

use std::path::PathBuf;

use base64_simd::STANDARD;
use jsonwebtoken::Algorithm;
use kms_proxy::auth::token;
use kms_proxy::id::{ChainName, KekId};
use kms_proxy::root::passphrase;
use kms_proxy::root::{Context, RootKey};
use kms_proxy::secret::SecretBytes;
use kms_proxy::store::Store as _;
use kms_proxy::store::file::Store;
use kms_proxy::store::record::{self, Record};
use kms_proxy::telemetry::{self, traces};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::jwt::{self, Key};
use crate::support::pki::{self, Pki};
use crate::support::random::variable;
use crate::support::{Service, Setup, run};

const PASSPHRASE: &str = "passphrase-4bf0c7";
const PLAINTEXT: &str = "plaintext-91d3e8";
const AAD: &str = "aad-5a27f6";

#[tokio::test]
async fn no_secret_is_in_a_log_a_metric_or_an_error() {
    look_everywhere(Setup::new(), None).await;
}

#[tokio::test]
async fn no_secret_is_in_a_log_a_metric_or_an_error_by_https_either() {
    let setup = Setup::new();
    let pki = Pki::new(setup.file("pki"));
    let (cert, key) = pki.server(&["127.0.0.1"]);
    let setup =
        setup.set("SERVER__TLS__CERT", cert.display()).set("SERVER__TLS__KEY", key.display());
    look_everywhere(setup, Some((pki::client(&pki.ca(), None).build().unwrap(), key))).await;
}

/// Makes every call succeed and fail, and searches all output for secrets. By HTTPS with a
/// client, and the file of the service's key.
async fn look_everywhere(setup: Setup, https: Option<(reqwest::Client, PathBuf)>) {
    let setup = setup
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__KIND", "passphrase")
        .set("ROOT__0__PASSPHRASE", PASSPHRASE)
        .set("LOG__LEVEL", "trace");
    let mut service = setup.start().await;
    let mut secrets: Vec<_> =
        [PASSPHRASE, PLAINTEXT, AAD].iter().map(|text| text.as_bytes().to_vec()).collect();
    if let Some((client, key)) = https {
        service.call_with(client);
        let key = std::fs::read_to_string(key).unwrap();
        secrets.push(key.lines().nth(1).unwrap().as_bytes()[..40].to_vec());
    }
    let datakey = use_all(&service).await;
    let mut said = fail_all(&service).await;
    said += &service.metrics().await;
    said += &service.get("/readyz").await.1.to_string();
    said += &fail_commands(&service);
    let log = service.stop().await;
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).expect("each line is JSON");
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    let requests = log.lines().filter(|line| line.contains(r#""message":"a request""#));
    let named = |line: &&str| line.contains(r#""request_id":"the-callers-own""#);
    assert_eq!(requests.filter(named).count(), 1, "{log}");
    said += &log;

    secrets.push(STANDARD.decode_to_vec(datakey).unwrap());
    let keks = keks(&setup).await;
    assert_eq!(keks.len(), 2);
    secrets.extend(keks);
    for secret in secrets {
        for form in forms(&secret) {
            assert!(!said.contains(&form), "{form} was told:\n{said}");
        }
    }
}

/// The tokens of callers, and the token that an issuer receives, in every case.
#[tokio::test]
async fn no_token_is_in_a_log_a_metric_or_an_error() {
    let setup = Setup::new();
    let pki = Pki::new(setup.file("pki"));
    let (cert, cert_key) = pki.server(&["127.0.0.1"]);
    let (good, digest) = token::generate().unwrap();
    let (key, stranger) = (Key::new("one", Algorithm::ES256), Key::new("one", Algorithm::ES256));
    let way_in = "way-in-7d20c4";
    std::fs::write(setup.file("way-in"), way_in).unwrap();
    let issuer = issuer(jwt::jwks(&[&key]));
    let allow = "allow = [{ chains = ['default'], operations = ['encrypt'] }]";
    let config = format!(
        "[auth]\nmode = 'required'\n[[client]]\nname = 'a'\ntoken_sha256 = '{digest}'\n{allow}\n\
         [[client]]\nname = 'b'\n{allow}\njwt = {{ issuer = 'i', audience = 'a', subject = 's', \
         jwks_url = '{issuer}', jwks_token_file = '{}' }}\n",
        setup.file("way-in").display()
    );
    let file = setup.file("k.toml");
    std::fs::write(&file, config).unwrap();
    let setup = setup
        .env("KMS_PROXY_CONFIG", file.display())
        .set("SERVER__TLS__CERT", cert.display())
        .set("SERVER__TLS__KEY", cert_key.display())
        .set("SERVER__ADMIN_LISTEN", "127.0.0.1:0")
        .set("LOG__LEVEL", "trace");
    let service = setup.start().await;
    service.logged("the keys of an issuer were read").await;
    let claims = jwt::claims("i", "a", "s");
    let changed = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        key.sign(&claims)
    };
    let shown = [
        good.to_string(),
        "bad-token-55b1e9".to_owned(),
        key.sign(&claims),
        stranger.sign(&claims),
        changed("exp", json!(1)),
        changed("sub", json!("other")),
        changed("iss", json!("other")),
        format!("{}.planted-3f1c", key.sign(&claims)),
    ];
    let (mut said, mut statuses) = (String::new(), Vec::new());
    for http in [pki::client(&pki.ca(), None).http1_only(), pki::client(&pki.ca(), None)] {
        let http = http.build().unwrap();
        for token in &shown {
            for chain in ["default", "other"] {
                let request = http.post(format!("{}/v1/encrypt", service.url()));
                let body = json!({"plaintext": base64(PLAINTEXT), "chain": chain});
                let response = request.bearer_auth(token).json(&body).send().await.unwrap();
                statuses.push(response.status().as_u16());
                said += &format!("{:?}", response.headers());
                if statuses.last() != Some(&200) {
                    said += &response.text().await.unwrap();
                }
            }
            let file = setup.file("shown");
            std::fs::write(&file, token).unwrap();
            let (url, ca) = (service.url(), pki.ca());
            let server = ["--server", &url, "--ca", ca.to_str().unwrap()];
            let token_file = ["--token-file", file.to_str().unwrap()];
            let output = run(&[&["rotate"], &server[..], &token_file].concat(), b"");
            assert_eq!(output.status.code(), Some(1));
            said += &String::from_utf8_lossy(&output.stderr);
        }
    }
    let once = [200, 403, 401, 401, 200, 403, 401, 401, 401, 401, 401, 401, 401, 401, 401, 401];
    assert_eq!(statuses, [once, once].concat());
    let (_, admin) = service.said().trim().split_once(", admin on ").map(owned).unwrap();
    for path in ["/metrics", "/readyz"] {
        said += &reqwest::get(format!("{admin}{path}")).await.unwrap().text().await.unwrap();
    }
    assert!(said.contains("kms_proxy_auth_failures_total"), "{said}");
    said += &service.stop().await;
    let secrets = shown.iter().map(String::as_str).chain([way_in, PLAINTEXT]);
    for secret in secrets {
        // The secret part of a JWT is its signature.
        let secret = secret.rsplit('.').next().unwrap();
        for form in forms(secret.as_bytes()) {
            assert!(!said.contains(&form), "{form} was told");
        }
    }
}

/// The test runs itself once more, since it is the whole process whose panics are hushed.
#[test]
fn no_secret_is_in_what_a_panic_tells() {
    const STAGE: &str = "KMS_PROXY_TEST_PANIC";
    if let Some(logs) = variable(STAGE) {
        telemetry::hush_panics();
        if logs == 1 {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let traces = traces::Config::default();
            telemetry::install(&telemetry::Config::default(), &traces, runtime.handle()).unwrap();
        }
        let inside_a_character = format!("{PLAINTEXT}\u{e9}");
        let _ = &inside_a_character[..=PLAINTEXT.len()];
    }
    for logs in [0, 1] {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "secrets::no_secret_is_in_what_a_panic_tells", "--nocapture"]);
        let output =
            again.env(STAGE, logs.to_string()).env("RUST_BACKTRACE", "1").output().unwrap();
        assert!(!output.status.success());
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("panicked at tests/it/secrets.rs:"), "{said}");
        assert_eq!(said.contains("\"level\":\"ERROR\""), logs == 1, "{said}");
        assert!(!said.contains(PLAINTEXT), "{said}");
    }
}

fn owned((a, b): (&str, &str)) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

/// A server that answers everything with `jwks`; its URL.
fn issuer(jwks: String) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let len = jwks.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
            let _ = write!(stream, "{head}{jwks}");
        }
    });
    url
}

/// How a secret could be written.
fn forms(secret: &[u8]) -> Vec<String> {
    let lower: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let debug = format!("{secret:?}");
    let mut forms = vec![
        lower.to_uppercase(),
        lower,
        STANDARD.encode_to_string(secret).trim_end_matches('=').to_owned(),
        debug.trim_matches(['[', ']']).to_owned(),
    ];
    forms.extend(String::from_utf8(secret.to_vec()));
    forms
}

fn base64(text: &str) -> String {
    STANDARD.encode_to_string(text)
}

/// Every operation that works on data; gives the data key, in base64.
async fn use_all(service: &Service) -> String {
    let request =
        service.request(Method::POST, "/v1/encrypt").header("x-request-id", "the-callers-own");
    let request = request.json(&json!({"plaintext": base64(PLAINTEXT), "aad": base64(AAD)}));
    let made: Value = request.send().await.unwrap().json().await.unwrap();
    service.ok("/v1/rotate", json!({})).await;
    service.ok("/v1/rewrap", json!({"ciphertext": made["ciphertext"]})).await;
    let body = json!({"ciphertext": made["ciphertext"], "aad": base64(AAD)});
    let opened = service.ok("/v1/decrypt", body.clone()).await;
    assert_eq!(opened["plaintext"], base64(PLAINTEXT));
    service.ok("/v1/batch/decrypt", json!({"items": [body]})).await;
    let key = service.ok("/v1/datakey", json!({"bytes": 32})).await;
    key["plaintext"].as_str().unwrap().to_owned()
}

/// Secrets where they don't belong; gives all that was answered.
async fn fail_all(service: &Service) -> String {
    let made = service.encrypt("default", &base64("other")).await.ciphertext;
    let mut said = String::new();
    let (plaintext, aad) = (base64(PLAINTEXT), base64(AAD));
    for (path, body) in [
        ("/v1/encrypt", json!({"plaintext": [&plaintext]})),
        ("/v1/encrypt", json!({"plaintext": {&*plaintext: 1}})),
        ("/v1/encrypt", json!({"plaintext": format!("{plaintext}!")})),
        ("/v1/encrypt", json!({"plaintext": PLAINTEXT, "aad": AAD})),
        ("/v1/encrypt", json!({"plaintext": plaintext, "aad": aad, "chain": PLAINTEXT})),
        ("/v1/encrypt", json!({"plaintext": plaintext, "aad": [aad]})),
        ("/v1/decrypt", json!({"ciphertext": made, "aad": aad})),
        ("/v1/decrypt", json!({"ciphertext": plaintext, "aad": aad})),
        ("/v1/rewrap", json!({"ciphertext": PLAINTEXT})),
        ("/v1/datakey", json!({"bytes": PLAINTEXT, "aad": aad})),
        ("/v1/batch/encrypt", json!({"items": [{"plaintext": PLAINTEXT}]})),
        ("/v1/batch/encrypt", json!({"items": [&plaintext]})),
    ] {
        let (status, answer) = service.post(path, body).await;
        assert!(status.is_client_error() || answer["results"][0]["error"].is_object(), "{answer}");
        said += &answer.to_string();
    }
    said
}

/// The same on the command line; gives what was written to both streams.
fn fail_commands(service: &Service) -> String {
    let (url, mut said) = (service.url(), String::new());
    for (command, input) in [
        (&["decrypt", "--aad", AAD][..], PLAINTEXT.as_bytes()),
        (&["decrypt", "--aad", AAD], b"kp:AQE="),
        (&["rewrap"], PLAINTEXT.as_bytes()),
        (&["encrypt", "--chain", "none", "--aad", AAD], PLAINTEXT.as_bytes()),
    ] {
        let arguments: Vec<_> = command.iter().copied().chain(["--server", &url]).collect();
        let output = run(&arguments, input);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(output.stdout.is_empty(), "{command:?}");
        said += &String::from_utf8_lossy(&output.stderr);
    }
    said
}

/// The KEKs of the chain `default` of a service that has ended, by the passphrase.
async fn keks(setup: &Setup) -> Vec<Vec<u8>> {
    let root = passphrase::Root::new(SecretBytes::new(PASSPHRASE.into())).unwrap();
    let store = Store::open(&setup.data()).await.unwrap();
    let chain = ChainName::new("default").unwrap();
    let prefix = record::keks_prefix(&chain);
    let mut keks = Vec::new();
    for entry in store.list(&prefix, None, 100).await.unwrap() {
        let kek_id: KekId = entry.key.strip_prefix(&prefix).unwrap().parse().unwrap();
        let kek = record::Kek::decode(&entry.key, &entry.value).unwrap();
        let context = Context { chain: &chain, kek_id, suite: kek.suite };
        let key = root.unwrap(context, &kek.wraps[0].bytes).await.unwrap();
        keks.push(key.expose().to_vec());
    }
    keks
}
