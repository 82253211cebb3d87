//! The service under a key of Google Cloud KMS: what it calls, how seldom, and what happens without
//! it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::aws_kms::metric;
use crate::azure_key_vault;
use crate::roots::{
    readiness_of, serves_as_soon_as_its_root_is_there, status_of, with_kms,
    with_root as with_settings,
};
use crate::support::clouds::Fake;
use crate::support::kms::{Front, Moto};
use crate::support::{Sealed, Service, Setup, decrypt_all, run, until};

/// A service whose one root is `key_id` of `fake`, with the credentials of its metadata server.
fn setup(fake: &Fake, key_id: &str) -> Setup {
    with_root(Setup::new(), 0, fake, key_id)
}

/// Adds root `index`: the key `key_id` of `fake`.
pub(crate) fn with_root(setup: Setup, index: u32, fake: &Fake, key_id: &str) -> Setup {
    let set =
        |setup: Setup, key: &str, value: &str| setup.set(&format!("ROOT__{index}__{key}"), value);
    let setup = set(setup, "NAME", "google");
    let setup = set(setup, "KIND", "gcp-kms");
    let setup = set(setup, "KEY_ID", key_id);
    let setup = set(setup, "ENDPOINT", &fake.url);
    // A loaded machine is not an outage.
    set(setup, "TIMEOUT", "14s").env("GCE_METADATA_HOST", fake.host())
}

/// What `/readyz` says of the root.
async fn readiness(service: &Service) -> (Value, String) {
    readiness_of(service, "google").await
}

/// Encrypts and restarts under the one root of `setup`, and checks the calls in the log of `fake`.
///
/// `KMS_PROXY_CLOUD_ENCRYPTS` is the number of encrypts: a million in `make soak`.
#[expect(clippy::disallowed_methods, reason = "a test is asked to do more by the environment")]
pub(crate) async fn many_encrypts_and_a_restart(
    setup: &Setup,
    fake: &Fake,
    wrap: &str,
    unwrap: &str,
) -> Service {
    const ITEMS: usize = 10_000;
    let number = std::env::var("KMS_PROXY_CLOUD_ENCRYPTS").ok();
    let number = number.map_or(2 * ITEMS, |number| number.parse().unwrap());
    let service = setup.start().await;
    let items = json!({"items": vec![json!({"plaintext": ""}); ITEMS]});
    let mut last = Value::Null;
    for _ in 0..number / ITEMS {
        let answer = service.ok("/v1/batch/encrypt", items.clone()).await;
        let results = answer["results"].as_array().unwrap();
        assert!(results.iter().all(|result| result["ciphertext"].is_string()), "{answer}");
        last = results[ITEMS - 1]["ciphertext"].clone();
    }
    assert_eq!(fake.uses().await, [wrap], "the log of the server");
    let avoided = metric(&service, "kms_proxy_root_calls_avoided_total").await;
    assert_eq!(avoided, number as u64 - 1);

    service.stop().await;
    let service = setup.start().await;
    let ciphertext = last.as_str().unwrap().to_owned();
    let sealed = Sealed { chain: "default".to_owned(), plaintext: String::new(), ciphertext };
    decrypt_all(&service, &[sealed]).await;
    // What was left of the last block is lost. With a million, half of the uses may be spent by
    // now, and the next KEK is made.
    let uses = fake.uses().await;
    assert_eq!(uses.iter().filter(|call| *call == unwrap).count(), 1, "{uses:?}");
    assert!(uses.len() == 1 || number >= 1_000_000, "{uses:?}");
    service
}

#[tokio::test]
async fn many_encrypts_and_a_restart_make_two_calls_of_cloud_kms() {
    let fake = Fake::gcp();
    let setup = setup(&fake, &fake.google_key("kms-proxy").await);
    let service = many_encrypts_and_a_restart(&setup, &fake, "encrypt", "decrypt").await;
    assert!(service.metrics().await.contains(r#"kind="gcp-kms""#));
}

#[tokio::test]
async fn a_service_that_starts_without_cloud_kms_serves_as_soon_as_it_is_there() {
    let fake = Fake::gcp();
    let setup = setup(&fake, &fake.google_key("kms-proxy").await).set("ROOT__0__TIMEOUT", "2s");
    let outages = [("reset", "can't be reached"), ("hang", "no answer in")];
    let fail = async |kind| fake.fails(json!([{"kind": kind}])).await;
    let works = async || fake.works().await;
    serves_as_soon_as_its_root_is_there(&setup, "google", outages, fail, works).await;
}

#[tokio::test]
async fn throttling_and_a_disabled_key_stop_nothing_are_reported_and_end() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("kms-proxy").await;
    let service = setup(&fake, &key_id).start().await;
    let mut sealed = vec![service.encrypt("default", "aGVsbG8=").await];
    let error = json!({"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"});
    let throttled = json!([{"kind": "status", "path": ":encrypt", "status": 429,
        "body": {"error": error}, "headers": {"Retry-After": "1"}}]);
    for (is_throttled, said) in [(true, "throttled: the project's quota"), (false, "enable it")] {
        if is_throttled {
            fake.fails(throttled.clone()).await;
        } else {
            fake.google_state(&key_id, 1, "DISABLED").await;
        }
        let (status, problem) = service.post("/v1/rotate", json!({})).await;
        let answer = (status.as_u16(), &problem["code"]);
        assert_eq!(answer, (503, &json!("root_unavailable")), "{problem}");
        let (status, detail) = readiness(&service).await;
        assert!(status == "degraded" && detail.contains(said), "{detail}");
        sealed.push(service.encrypt("default", "aGVsbG8=").await);
        decrypt_all(&service, &sealed).await;
        fake.works().await;
        fake.google_state(&key_id, 1, "ENABLED").await;
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
    let fake = Fake::gcp();
    let setup = setup(&fake, &fake.google_key("kms-proxy").await).set("LOG__LEVEL", "trace");
    let service = setup.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    let mut log = service.stop().await;
    let service = setup.start().await;
    decrypt_all(&service, &[sealed]).await;
    log += &service.stop().await;
    assert!(log.contains(r#""level":"TRACE""#), "{log}");
    let calls = fake.take().await;
    let encrypt = calls.iter().find(|call| call.path.ends_with(":encrypt")).unwrap();
    let body: Value = serde_json::from_str(&encrypt.body).unwrap();
    let kek = body["plaintext"].as_str().unwrap();
    let bytes = base64_simd::STANDARD.decode_to_vec(kek).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    for secret in [kek.trim_end_matches('='), &hex, "ya29."] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn settings_that_can_not_be_meant_are_named_before_the_start() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("kms-proxy").await;
    let setup = setup(&fake, &key_id);
    let file = setup.file("account.json");
    std::fs::write(&file, "{}").unwrap();
    let file = file.display().to_string();
    let output = setup.run(&["check-config"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (key, value, said) in [
        ("TIMEOUT", "1h", "timeout: must be between 100ms and 14s"),
        ("ENDPOINT", "kms.example", "endpoint: "),
        ("KEY_ID", "kms-proxy", "key_id: it is projects/PROJECT/"),
        ("CREDENTIALS_FILE", &file, "credentials_file: "),
        ("CREDENTIALS_FILE", "/nowhere", "credentials_file: /nowhere: "),
    ] {
        let setup = setup.clone().set(&format!("ROOT__0__{key}"), value);
        for output in [setup.run(&["check-config"]), setup.run(&["serve"])] {
            let log = String::from_utf8_lossy(&output.stderr);
            let is_said = log.contains(&format!("root google: {said}"));
            assert!(output.status.code() == Some(2) && is_said, "{value}: {log}");
        }
    }
    assert!(fake.take().await.is_empty());
}

/// Runs a command for roots, and encrypts as long as it runs.
async fn while_data_is_written(
    service: &Service,
    arguments: &[&'static str],
    written: &mut Vec<Sealed>,
) -> String {
    let url = service.url();
    let arguments = [&["root"], arguments].concat();
    let mut command = tokio::task::spawn_blocking(move || {
        run(&[&arguments[..], &["--server", &url]].concat(), b"")
    });
    let output = loop {
        for chain in ["default", "orders"] {
            written.push(service.encrypt(chain, "aGVsbG8=").await);
        }
        if command.is_finished() {
            break (&mut command).await.unwrap();
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_key_file_to_google_to_azure_and_on_to_aws_with_data_written_all_along() {
    let (fake, vault, moto) = (Fake::gcp(), Fake::azure(), Moto::shared());
    let front = Front::start(Some(&*moto)).await;
    let (of_google, of_aws) = (fake.google_key("kms-proxy").await, moto.create_key().await);
    let of_azure = vault.azure_key("kms-proxy", "RSA").await;
    let base = Setup::new().set("CHAIN__NAMES", "orders");
    let local = |setup: Setup, index: u32| {
        with_settings(setup, index, &[("NAME", "local"), ("KIND", "local")])
    };
    let google = |setup: Setup, index: u32| with_root(setup, index, &fake, &of_google);
    let azure =
        |setup: Setup, index: u32| azure_key_vault::with_root(setup, index, &vault, &of_azure);
    let aws = |setup: Setup, index: u32| with_kms(setup, index, &front, &of_aws);

    let service = base.clone().start().await;
    let mut written = Vec::new();
    for chain in ["default", "orders"] {
        written.push(service.encrypt(chain, "aGVsbG8=").await);
        service.ok("/v1/rotate", json!({"chain": chain})).await;
        written.push(service.encrypt(chain, "aGVsbG8=").await);
    }
    service.stop().await;
    let steps: [(Setup, Setup, &str, &str); 3] = [
        (local(google(base.clone(), 0), 1), google(base.clone(), 0), "google", "local"),
        (google(azure(base.clone(), 0), 1), azure(base.clone(), 0), "azure", "google"),
        (azure(aws(base.clone(), 0), 1), aws(base.clone(), 0), "main", "azure"),
    ];
    for (both, alone, new, old) in steps {
        let service = both.start().await;
        let said = while_data_is_written(&service, &["rewrap", "--root", new], &mut written).await;
        assert!(said.contains(" 0 failed"), "{said}");
        for root in [new, old] {
            let status = status_of(&service, root).unwrap();
            assert_eq!((&status["missing"], &status["only"]), (&json!(0), &json!(0)), "{status}");
        }
        service.stop().await;
        let service = alone.start().await;
        let said = while_data_is_written(&service, &["remove", "--root", old], &mut written).await;
        assert!(said.contains(" 0 failed"), "{said}");
        assert_eq!(status_of(&service, old), None);
        decrypt_all(&service, &written).await;
        service.stop().await;
    }
    // The old roots are gone for good.
    std::fs::remove_file(base.data().join("root.key")).unwrap();
    drop((fake, vault));
    let service = aws(base, 0).start().await;
    decrypt_all(&service, &written).await;
    assert!(written.len() > 8 && written.iter().any(|sealed| sealed.chain == "orders"));
}
