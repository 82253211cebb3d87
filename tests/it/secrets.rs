//! Nothing secret leaves the process but in answers: not in logs, metrics or messages, whatever
//! goes wrong.

use base64_simd::STANDARD;
use kms_proxy::id::{ChainName, KekId};
use kms_proxy::root::passphrase;
use kms_proxy::root::{Context, RootKey};
use kms_proxy::secret::SecretBytes;
use kms_proxy::store::Store as _;
use kms_proxy::store::file::Store;
use kms_proxy::store::record::{self, Record};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Service, Setup, run};

const PASSPHRASE: &str = "passphrase-4bf0c7";
const PLAINTEXT: &str = "plaintext-91d3e8";
const AAD: &str = "aad-5a27f6";

#[tokio::test]
async fn no_secret_is_in_a_log_a_metric_or_an_error() {
    let setup = Setup::new()
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__KIND", "passphrase")
        .set("ROOT__0__PASSPHRASE", PASSPHRASE)
        .set("LOG__LEVEL", "trace");
    let service = setup.start().await;
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

    let mut secrets: Vec<_> =
        [PASSPHRASE, PLAINTEXT, AAD].iter().map(|text| text.as_bytes().to_vec()).collect();
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
