//! The service under a key of Azure Key Vault: what it calls, how seldom, and what happens without
//! it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::gcp_kms::many_encrypts_and_a_restart;
use crate::roots::{readiness_of, serves_as_soon_as_its_root_is_there};
use crate::support::clouds::Fake;
use crate::support::{Service, Setup, decrypt_all, until};

/// A service whose one root is `key_id` of `fake`, with the credentials of a managed identity.
fn setup(fake: &Fake, key_id: &str) -> Setup {
    with_root(Setup::new(), 0, fake, key_id)
}

/// Adds root `index`: the key `key_id` of `fake`.
pub(crate) fn with_root(setup: Setup, index: u32, fake: &Fake, key_id: &str) -> Setup {
    let set =
        |setup: Setup, key: &str, value: &str| setup.set(&format!("ROOT__{index}__{key}"), value);
    let setup = set(setup, "NAME", "azure");
    let setup = set(setup, "KIND", "azure-key-vault");
    let setup = set(setup, "KEY_ID", key_id);
    // A loaded machine is not an outage.
    let setup = set(setup, "TIMEOUT", "14s");
    setup.env("IDENTITY_ENDPOINT", format!("{}/msi/token", fake.url)).env("IDENTITY_HEADER", "h")
}

/// What `/readyz` says of the root.
async fn readiness(service: &Service) -> (Value, String) {
    readiness_of(service, "azure").await
}

#[tokio::test]
async fn many_encrypts_and_a_restart_make_two_calls_of_azure() {
    let fake = Fake::azure();
    let setup = setup(&fake, &fake.azure_key("kms-proxy", "RSA").await);
    let service = many_encrypts_and_a_restart(&setup, &fake, "wrapkey", "unwrapkey").await;
    assert!(service.metrics().await.contains(r#"kind="azure-key-vault""#));
}

#[tokio::test]
async fn a_service_that_starts_without_key_vault_serves_as_soon_as_it_is_there() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("kms-proxy", "RSA").await;
    let setup = setup(&fake, &key_id).set("ROOT__0__TIMEOUT", "2s");
    let outages = [("reset", "can't be reached"), ("hang", "no answer in")];
    let fail = async |kind| fake.fails(json!([{"kind": kind}])).await;
    let works = async || fake.works().await;
    serves_as_soon_as_its_root_is_there(&setup, "azure", outages, fail, works).await;
}

#[tokio::test]
async fn throttling_and_a_disabled_key_stop_nothing_are_reported_and_end() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("kms-proxy", "RSA").await;
    let version = fake.azure_version("kms-proxy").await;
    let service = setup(&fake, &key_id).start().await;
    let mut sealed = vec![service.encrypt("default", "aGVsbG8=").await];
    let error = json!({"code": "Throttled", "message": "Request was not processed."});
    let throttled = json!([{"kind": "status", "path": "/wrapkey", "status": 429,
        "body": {"error": error}, "headers": {"Retry-After": "1"}}]);
    for (is_throttled, said) in [(true, "throttled: the vault's limit"), (false, "enable it")] {
        if is_throttled {
            fake.fails(throttled.clone()).await;
        } else {
            fake.azure_enable("kms-proxy", &version, false).await;
        }
        let (status, problem) = service.post("/v1/rotate", json!({})).await;
        let answer = (status.as_u16(), &problem["code"]);
        assert_eq!(answer, (503, &json!("root_unavailable")), "{problem}");
        let (status, detail) = readiness(&service).await;
        assert!(status == "degraded" && detail.contains(said), "{detail}");
        sealed.push(service.encrypt("default", "aGVsbG8=").await);
        decrypt_all(&service, &sealed).await;
        fake.works().await;
        fake.azure_enable("kms-proxy", &version, true).await;
        // A chain is rotated manually only ten times within a minute.
        until("a rotation", async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (status, _) = service.post("/v1/rotate", json!({})).await;
            (status == 200).then_some(())
        })
        .await;
        until("the root is well", async || (readiness(&service).await.0 == "ok").then_some(()))
            .await;
    }
}

#[tokio::test]
async fn no_level_of_the_log_shows_a_kek_or_a_token() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("kms-proxy", "RSA").await;
    let setup = setup(&fake, &key_id).set("LOG__LEVEL", "trace");
    let service = setup.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    let mut log = service.stop().await;
    let service = setup.start().await;
    decrypt_all(&service, &[sealed]).await;
    log += &service.stop().await;
    assert!(log.contains(r#""level":"TRACE""#), "{log}");
    let calls = fake.take().await;
    let wrap = calls.iter().find(|call| call.path.ends_with("/wrapkey")).unwrap();
    let body: Value = serde_json::from_str(&wrap.body).unwrap();
    let value = body["value"].as_str().unwrap();
    let bytes = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(value).unwrap();
    let hex: String = bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    // The first 16 bytes are the KEK; 20 characters are 15 of them.
    for secret in [&value[..20], &hex, "ey."] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn settings_that_can_not_be_meant_are_named_before_the_start() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("kms-proxy", "RSA").await;
    let setup = setup(&fake, &key_id);
    let output = setup.run(&["check-config"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let version = format!("{key_id}/00112233445566778899aabbccddeeff");
    for (key, value, said) in [
        ("TIMEOUT", "1h", "timeout: must be between 100ms and 14s"),
        ("KEY_ID", "kms-proxy", "key_id: it is the URL of a key"),
        ("KEY_ID", &version, "key_id: it names one version"),
        ("CA", "/nowhere", "ca, /nowhere: "),
    ] {
        let setup = setup.clone().set(&format!("ROOT__0__{key}"), value);
        for output in [setup.run(&["check-config"]), setup.run(&["serve"])] {
            let log = String::from_utf8_lossy(&output.stderr);
            let is_said = log.contains(&format!("root azure: {said}"));
            assert!(output.status.code() == Some(2) && is_said, "{value}: {log}");
        }
    }
    assert!(fake.take().await.is_empty());
}
