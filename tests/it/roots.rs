//! Roots that come, go, fail and are lost, under a service that runs: the walk-through of the
//! documentation, and outages without an effect on callers.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::support::kms::{Front, Moto, REGION, Way};
use crate::support::{Sealed, Service, Setup, decrypt_all, pages, run, until};

/// Adds root `index`: the key `key_id` of AWS KMS behind `front`.
pub(crate) fn with_kms(setup: Setup, index: u32, front: &Front, key_id: &str) -> Setup {
    let set =
        |setup: Setup, key: &str, value: &str| setup.set(&format!("ROOT__{index}__{key}"), value);
    let setup = set(setup, "NAME", "main");
    let setup = set(setup, "KIND", "aws-kms");
    let setup = set(setup, "KEY_ID", key_id);
    // A loaded moto is not an outage.
    let setup = set(setup, "TIMEOUT", "14s");
    set(setup, "ENDPOINT", &front.url())
        .env("AWS_REGION", REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
}

pub(crate) fn with_root(setup: Setup, index: u32, settings: &[(&str, &str)]) -> Setup {
    settings
        .iter()
        .fold(setup, |setup, (key, value)| setup.set(&format!("ROOT__{index}__{key}"), value))
}

/// `kms-proxy root ...` against a service; it must go well.
pub(crate) fn root_command(service: &Service, arguments: &[&str]) -> String {
    let url = service.url();
    let output = run(&[&["root"], arguments, &["--server", &url]].concat(), b"");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn status_of(service: &Service, root: &str) -> Option<Value> {
    let status: Value =
        serde_json::from_str(&root_command(service, &["status", "--json"])).unwrap();
    status["roots"].as_array().unwrap().iter().find(|it| it["root"] == root).cloned()
}

/// What `/readyz` says of the service and of the root.
pub(crate) async fn readiness_of(service: &Service, root: &str) -> (Value, String) {
    let (_, readiness) = service.get("/readyz").await;
    let checks = readiness["checks"].as_array().unwrap();
    let name = format!("root:{root}");
    let root = checks.iter().find(|check| check["name"] == *name).unwrap();
    (readiness["status"].clone(), root["detail"].as_str().unwrap_or_default().to_owned())
}

/// Starts a service during each outage of its one root, and checks that it serves when it is over.
///
/// An outage is what `fail` takes, and what is reported meanwhile.
pub(crate) async fn serves_as_soon_as_its_root_is_there<Outage>(
    setup: &Setup,
    root: &str,
    outages: [(Outage, &str); 2],
    fail: impl AsyncFn(Outage),
    works: impl AsyncFn(),
) {
    // First it has no KEK, then it has one that it can't open.
    let mut sealed = Vec::new();
    for (outage, said) in outages {
        fail(outage).await;
        let mut service = setup.start_unready().await;
        let (status, problem) = service.post("/v1/encrypt", json!({"plaintext": ""})).await;
        assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("root_unavailable")));
        let (status, detail) = readiness_of(&service, root).await;
        assert_eq!(status, "unavailable", "{detail}");
        assert!(detail.contains("the root is away: ") && detail.contains(said), "{detail}");
        works().await;
        let one = until("it serves", async || {
            service.try_encrypt("default", "aGVsbG8=").await.unwrap().ok()
        });
        sealed.push(one.await);
        until("it is ready", async || (readiness_of(&service, root).await.0 == "ok").then_some(()))
            .await;
        service.ready().await;
        decrypt_all(&service, &sealed).await;
        service.stop().await;
    }
    assert_eq!(sealed[0].kek_id(), sealed[1].kek_id());
}

/// Envelopes under three KEKs and more.
async fn some(service: &Service, chain: &str) -> Vec<Sealed> {
    let mut envelopes = Vec::new();
    for _ in 0..3 {
        envelopes.push(service.encrypt(chain, "aGVsbG8=").await);
        service.ok("/v1/rotate", json!({"chain": chain})).await;
    }
    envelopes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_local_key_file_to_aws_kms_without_touching_data() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let key = moto.create_key().await;
    let base = Setup::new().set("CHAIN__NAMES", "orders");
    let local = [("NAME", "local"), ("KIND", "local")];

    // In development.
    let service = base.clone().start().await;
    let mut envelopes = some(&service, "default").await;
    envelopes.extend(some(&service, "orders").await);
    service.stop().await;

    // The new root beside the old one.
    let both = with_root(with_kms(base.clone(), 0, &front, &key), 1, &local);
    let service = both.start().await;
    envelopes.extend(some(&service, "default").await);
    let main = status_of(&service, "main").unwrap();
    assert!(main["missing"].as_u64().unwrap() >= 6, "{main}");
    let said = root_command(&service, &["rewrap", "--root", "main"]);
    assert!(said.contains(" 0 failed"), "{said}");
    let said = root_command(&service, &["rewrap", "--root", "main"]);
    assert!(said.contains(" 0 changed, 0 failed"), "{said}");
    for root in ["main", "local"] {
        let status = status_of(&service, root).unwrap();
        assert_eq!((&status["missing"], &status["only"]), (&json!(0), &json!(0)), "{status}");
    }
    // A root that is configured would wrap the next KEK: it can't be removed yet.
    let url = service.url();
    let refused = run(&["root", "remove", "--root", "local", "--server", &url], b"");
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && errors.contains("still configured"), "{errors}");
    service.stop().await;

    // The old one is taken out, and its wraps are erased.
    let aws = with_kms(base, 0, &front, &key);
    let service = aws.start().await;
    let exposed = async |service: &Service| {
        let mut exposed = HashMap::new();
        for chain in ["default", "orders"] {
            for kek in pages(service, &format!("/v1/chains/{chain}"), "items").await {
                let state = kek["state"].as_str().unwrap().to_owned();
                *exposed.entry((state, kek["exposed"].as_bool().unwrap())).or_insert(0) += 1;
            }
        }
        exposed
    };
    assert_eq!(exposed(&service).await[&("primary".to_owned(), true)], 2);
    let said = root_command(&service, &["remove", "--root", "local"]);
    assert!(said.contains(" 0 failed"), "{said}");
    assert_eq!(status_of(&service, "local"), None);
    // Nothing is left to remove: the same as for a name that never was.
    for root in ["local", "lokal"] {
        let refused = run(&["root", "remove", "--root", root, "--server", &service.url()], b"");
        let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{errors}");
        assert!(errors.contains(&format!("no KEK has a wrap by a root {root}")), "{errors}");
    }
    let now = exposed(&service).await;
    assert_eq!(now[&("primary".to_owned(), false)], 2, "{now:?}");
    assert!(!now.contains_key(&("primary".to_owned(), true)), "{now:?}");
    let metrics = service.metrics().await;
    assert!(metrics.contains(r#"kms_proxy_rotations_total{chain="default",reason="root"} 1"#));
    decrypt_all(&service, &envelopes).await;
    service.stop().await;

    // The key file is gone for good.
    std::fs::remove_file(aws.data().join("root.key")).unwrap();
    let service = aws.start().await;
    decrypt_all(&service, &envelopes).await;
    service.encrypt("orders", "aGVsbG8=").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_roots_one_is_lost_for_good_and_nothing_else_is() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let base = Setup::new();
    let passphrase = base.file("passphrase");
    std::fs::write(&passphrase, "correct horse battery staple\n").unwrap();
    let passphrase = passphrase.display().to_string();
    let dr = [("NAME", "dr"), ("KIND", "passphrase"), ("PASSPHRASE_FILE", &*passphrase)];
    let setup = with_root(with_kms(base, 0, &front, &moto.create_key().await), 1, &dr);
    let service = setup.start().await;
    let envelopes = some(&service, "default").await;
    service.kill();

    front.set(Way::Error(400, "KMSInvalidStateException", "it is pending deletion"));
    let service = setup.start().await;
    decrypt_all(&service, &envelopes).await;
    service.encrypt("default", "aGVsbG8=").await;
    service.ok("/v1/rotate", json!({})).await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    let (status, readiness) = service.get("/readyz").await;
    assert_eq!((status.as_u16(), &readiness["status"]), (200, &json!("degraded")), "{readiness}");
    let metrics = service.metrics().await;
    assert!(metrics.contains(r#"kms_proxy_root_up{root="main"} 0"#));
    assert!(metrics.contains(r#"kms_proxy_root_up{root="dr"} 1"#));
    assert!(metrics.contains(r#"kms_proxy_keks_missing_wraps{root="main"} 1"#), "{metrics}");

    // It was not lost after all: what was made without it gets its wrap.
    front.set(Way::Through);
    until("the wrap that was missing", async || {
        let metrics = service.metrics().await;
        metrics.contains(r#"kms_proxy_keks_missing_wraps{root="main"} 0"#).then_some(())
    })
    .await;
    decrypt_all(&service, &[sealed]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_is_killed_is_not_missed_until_the_standby_is_spent() {
    const MAX: u64 = 2_000;
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let setup = with_kms(Setup::new(), 0, &front, &moto.create_key().await)
        .set("CHAIN__ROTATE_AFTER_USES", MAX / 2)
        .set("CHAIN__MAX_USES", MAX);
    let service = setup.start().await;
    let mut envelopes = Vec::new();
    until("the standby", async || {
        envelopes.push(service.encrypt("default", "aGVsbG8=").await);
        let (_, chain) = service.get("/v1/chains/default").await;
        chain["standby"].as_str().map(str::to_owned)
    })
    .await;
    let first = envelopes[0].kek_id();
    front.set(Way::Close);
    let error = loop {
        match service.try_encrypt("default", "aGVsbG8=").await.unwrap() {
            Ok(sealed) => envelopes.push(sealed),
            Err(error) => break error,
        }
        assert!(envelopes.len() as u64 <= 2 * MAX, "more than two KEKs allow");
    };
    assert_eq!((error.0.as_u16(), &error.1["code"]), (503, &json!("kek_exhausted")), "{error:?}");
    let under_second = envelopes.iter().filter(|sealed| sealed.kek_id() != first).count() as u64;
    // Blocks that ended unspent are all that is missing.
    assert!(under_second <= MAX && under_second > MAX - 200, "{under_second} of {MAX}");
    decrypt_all(&service, &envelopes).await;
    let (status, readiness) = service.get("/readyz").await;
    assert_eq!((status.as_u16(), &readiness["status"]), (200, &json!("degraded")), "{readiness}");
    assert!(service.metrics().await.contains(r#"kms_proxy_root_up{root="main"} 0"#));

    front.set(Way::Through);
    until("a new KEK", async || service.try_encrypt("default", "aGVsbG8=").await?.ok()).await;
    decrypt_all(&service, &envelopes).await;
    until("all is well", async || {
        let (_, readiness) = service.get("/readyz").await;
        (readiness["status"] == "ok").then_some(())
    })
    .await;
}
