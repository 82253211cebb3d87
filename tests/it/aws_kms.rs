//! The service under a key of AWS KMS: what it calls, how seldom, and what it does without.

use serde_json::{Value, json};

use crate::roots::{readiness_of, serves_as_soon_as_its_root_is_there};
use crate::support::kms::{Front, Moto, REGION, Way};
use crate::support::{Sealed, Service, Setup, decrypt_all, until};

pub(crate) const ENCRYPT: &str = "TrentService.Encrypt";
pub(crate) const DECRYPT: &str = "TrentService.Decrypt";

/// A service whose one root is `key_id` behind `front`, with credentials in the environment.
pub(crate) fn setup(front: &Front, key_id: &str) -> Setup {
    without_credentials(front, key_id)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "secret-of-the-access-key")
}

fn without_credentials(front: &Front, key_id: &str) -> Setup {
    Setup::new()
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__KIND", "aws-kms")
        .set("ROOT__0__KEY_ID", key_id)
        .set("ROOT__0__ENDPOINT", front.url())
        // A loaded moto is not an outage.
        .set("ROOT__0__TIMEOUT", "14s")
        .env("AWS_REGION", REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true")
}

/// The value of a metric without labels, or with these.
pub(crate) async fn metric(service: &Service, name: &str) -> u64 {
    let metrics = service.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
}

/// What `/readyz` says of the root.
async fn readiness(service: &Service) -> (Value, String) {
    readiness_of(service, "main").await
}

#[tokio::test]
async fn a_million_encrypts_make_one_call_of_kms() {
    const ITEMS: usize = 10_000;
    const BATCHES: usize = 100;
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let setup = setup(&front, &moto.create_key().await);
    let service = setup.start().await;
    let items = json!({"items": vec![json!({"plaintext": ""}); ITEMS]});
    let mut last = Value::Null;
    for _ in 0..BATCHES {
        let answer = service.ok("/v1/batch/encrypt", items.clone()).await;
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), ITEMS);
        assert!(results.iter().all(|result| result["ciphertext"].is_string()), "{answer}");
        last = results[ITEMS - 1]["ciphertext"].clone();
    }
    assert_eq!(front.targets(), [ENCRYPT], "the log of the server");
    let wraps = r#"kms_proxy_root_calls_total{operation="wrap",outcome="ok",root="main"}"#;
    assert_eq!(metric(&service, wraps).await, 1);
    let avoided = metric(&service, "kms_proxy_root_calls_avoided_total").await;
    assert_eq!(avoided, (ITEMS * BATCHES - 1) as u64);

    service.stop().await;
    front.take();
    let service = setup.start().await;
    let ciphertext = last.as_str().unwrap().to_owned();
    let sealed = Sealed { chain: "default".to_owned(), plaintext: String::new(), ciphertext };
    decrypt_all(&service, &[sealed]).await;
    service.encrypt("default", "aGVsbG8=").await;
    // What was left of the last block is lost, so half of the uses may be spent by now.
    let targets = front.targets();
    assert_eq!(targets.iter().filter(|target| *target == DECRYPT).count(), 1, "{targets:?}");
}

#[tokio::test]
async fn throttling_stops_nothing_is_reported_and_ends() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let setup = setup(&front, &moto.create_key().await)
        .set("ROOT__0__TIMEOUT", "5s")
        .set("CHAIN__ROTATE_AFTER_USES", 100)
        .set("CHAIN__MAX_USES", 1_000_000);
    let service = setup.start().await;
    let first = service.encrypt("default", "aGVsbG8=").await;
    let mut sealed = vec![first];
    front.set(Way::Error(400, "ThrottlingException", "Rate exceeded"));
    // Past half of the limit the next KEK is due, and can't be wrapped.
    let detail = until("a report of the throttling", async || {
        sealed.push(service.encrypt("default", "aGVsbG8=").await);
        let (status, detail) = readiness(&service).await;
        (status == "degraded").then_some(detail)
    });
    let detail = detail.await;
    assert!(detail.contains("ThrottlingException (request request-7): throttled"), "{detail}");
    for _ in 0..200 {
        sealed.push(service.encrypt("default", "aGVsbG8=").await);
    }
    let old = sealed[0].kek_id();
    assert!(sealed.iter().all(|sealed| sealed.kek_id() == old));
    front.set(Way::Through);
    until("another KEK takes over", async || {
        sealed.push(service.encrypt("default", "aGVsbG8=").await);
        (sealed.last()?.kek_id() != old).then_some(())
    })
    .await;
    until("the root is well", async || {
        (readiness(&service).await == (json!("ok"), String::new())).then_some(())
    })
    .await;
    decrypt_all(&service, &sealed).await;
}

#[tokio::test]
async fn a_service_that_starts_without_kms_serves_as_soon_as_it_is_there() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let setup = setup(&front, &moto.create_key().await).set("ROOT__0__TIMEOUT", "2s");
    let outages = [(Way::Close, "AWS KMS"), (Way::Hang, "AWS KMS")];
    let (fail, works) = (async |way| front.set(way), async || front.set(Way::Through));
    serves_as_soon_as_its_root_is_there(&setup, "main", outages, fail, works).await;
}

#[tokio::test]
async fn a_disabled_key_is_reported_with_the_remedy_and_keks_in_memory_are_used() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let setup = setup(&front, &moto.create_key().await);
    let service = setup.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    front.set(Way::Error(400, "DisabledException", "arn:aws:kms:key/x is disabled."));
    let (status, problem) = service.post("/v1/rotate", json!({})).await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("root_unavailable")), "{problem}");
    let (status, detail) = readiness(&service).await;
    assert!(status == "degraded" && detail.contains("the key is disabled: enable it"), "{detail}");
    service.encrypt("default", "aGVsbG8=").await;
    decrypt_all(&service, &[sealed]).await;
    let refused = r#"kms_proxy_root_calls_total{operation="wrap",outcome="denied",root="main"}"#;
    assert_eq!(metric(&service, refused).await, 1);
}

#[tokio::test]
async fn credentials_come_from_a_profiles_process_and_missing_ones_are_reported_without_secrets() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let key = moto.create_key().await;
    let bare = without_credentials(&front, &key);
    let service = bare.start_unready().await;
    let (_, detail) = readiness(&service).await;
    assert!(detail.contains("no credentials for AWS KMS") && detail.contains("AWS_*"), "{detail}");
    service.stop().await;
    assert!(front.take().is_empty());

    let (profile, script) = (bare.file("config"), bare.file("script"));
    let text = format!("[default]\ncredential_process = /bin/sh {}\n", script.display());
    std::fs::write(&profile, text).unwrap();
    let by_process = bare.clone().env("AWS_CONFIG_FILE", profile.display());
    std::fs::write(&script, "echo 'words-of-the-script' >&2; exit 3").unwrap();
    let service = by_process.start_unready().await;
    let (_, detail) = readiness(&service).await;
    assert!(detail.contains("external process exited with code exit status: 3"), "{detail}");
    // Anyone may read this; the SDK's own line in the log is for the operator.
    assert!(!detail.contains("of-the-script"), "{detail}");
    service.stop().await;

    let answer = json!({"Version": 1, "AccessKeyId": "test", "SecretAccessKey": "test"});
    std::fs::write(&script, format!("echo '{answer}'")).unwrap();
    let service = by_process.start().await;
    service.encrypt("default", "aGVsbG8=").await;
    assert_eq!(front.targets(), [ENCRYPT]);
}

#[tokio::test]
async fn no_level_of_the_log_shows_a_kek_or_a_credential() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let setup = setup(&front, &moto.create_key().await)
        .env("AWS_SESSION_TOKEN", "token-of-the-session")
        // With this the SDK would write KEKs at `trace`.
        .env("LOG_SENSITIVE_BODIES", "true")
        .set("LOG__LEVEL", "trace,aws_smithy_runtime=trace");
    let service = setup.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    let mut log = service.stop().await;
    let service = setup.start().await;
    decrypt_all(&service, &[sealed]).await;
    log += &service.stop().await;
    // The SDK logs, but not everything.
    assert!(log.contains("aws_smithy_runtime") && log.contains(r#""level":"TRACE""#), "{log}");
    let calls = front.take();
    let kek = calls[0].body["Plaintext"].as_str().unwrap().trim_end_matches('=');
    let bytes = base64_simd::STANDARD.decode_to_vec(format!("{kek}==")).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let debug = format!("{bytes:?}");
    let debug = debug.trim_matches(['[', ']']);
    for secret in [kek, &hex, debug, "secret-of-the-access-key", "token-of-the-session"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn settings_that_can_not_be_meant_are_named_and_the_others_are_printed() {
    let front = Front::start(None).await;
    for (key, value, said) in [
        ("TIMEOUT", "1h", "timeout: must be between 100ms and 14s"),
        ("ENDPOINT", "kms.example", "endpoint: "),
        ("REGION", "Frankfurt", "region: "),
        ("KEY_ID", "", "key_id: "),
    ] {
        let setup = setup(&front, "alias/main").set(&format!("ROOT__0__{key}"), value);
        let (code, log) = setup.fails().await;
        assert!(code == Some(2) && log.contains(&format!("root main: {said}")), "{code:?}: {log}");
    }
    assert!(front.take().is_empty());
}
