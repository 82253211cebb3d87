//! The root on moto, and on a server that fails in every way of a table. Both servers come from the
//! integration tests.

use aws_sdk_kms::config::Credentials;
use aws_sdk_kms::config::timeout::TimeoutConfigBuilder;
use serde_json::json;

use super::*;
use crate::id::Suite;
use crate::root::RootKey;
use crate::root::contract::{self, chain, context, wrong};

mod failures;
#[path = "../../../tests/it/support/kms.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod kms;

use kms::{Front, Moto, REGION, Way};

/// How long a call waits for a server that responds, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A root for `key_id` behind `front`, without time-outs that a busy machine could reach.
async fn root(front: &Front, key_id: &str) -> Root {
    let root = with_timeout(front, key_id, Config::new("main", key_id).timeout).await;
    change_timeouts(&root, |timeouts| attempts_wait(timeouts).operation_timeout(3 * PATIENCE))
        .await;
    root
}

/// Time-outs for which only the whole operation can be too slow.
fn attempts_wait(timeouts: TimeoutConfigBuilder) -> TimeoutConfigBuilder {
    timeouts.connect_timeout(PATIENCE).read_timeout(PATIENCE)
}

async fn change_timeouts(
    root: &Root,
    change: impl FnOnce(TimeoutConfigBuilder) -> TimeoutConfigBuilder,
) {
    let mut connected = root.connected.lock().await;
    let Connected { client, .. } = connected.as_mut().unwrap();
    let timeouts = change(client.config().timeout_config().unwrap().to_builder()).build();
    let config = client.config().to_builder().timeout_config(timeouts).build();
    *client = Client::from_conf(config);
}

/// A root with the time-outs of its configuration.
async fn with_timeout(front: &Front, key_id: &str, timeout: Duration) -> Root {
    let config = Config {
        name: "main".to_owned(),
        key_id: key_id.to_owned(),
        region: Some(REGION.to_owned()),
        endpoint: Some(front.url()),
        ca: None,
        timeout,
    };
    let root = Root::open(&config).unwrap();
    let credentials = Credentials::new("test", "test", None, None, "test");
    let sdk = aws_config::defaults(BehaviorVersion::latest()).credentials_provider(credentials);
    let client = connect(&config, sdk).await.unwrap();
    *root.connected.lock().await = Some(Connected { client, authorities: None });
    root
}

fn kek() -> KeyBytes {
    KeyBytes::random(Suite::Aes128Gcm).unwrap()
}

/// The error of a wrap.
async fn refused(root: &Root) -> Error {
    let (chain, kek) = (chain("orders"), kek());
    root.wrap(context(&chain, &kek), &kek).await.unwrap_err()
}

/// The error of an unwrap of bytes that could be a wrap.
async fn not_opened(root: &Root) -> Error {
    let (chain, kek) = (chain("orders"), kek());
    match root.unwrap(context(&chain, &kek), &[&[FORMAT], &[7; 160][..]].concat()).await {
        Err(error) => error,
        Ok(_) => panic!("it must not open"),
    }
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let moto = Moto::start();
    let front = Front::start(Some(&moto)).await;
    let (one, another) = (moto.create_key().await, moto.create_key().await);
    contract::all(root(&front, &one).await, root(&front, &another).await).await;
}

#[tokio::test]
async fn a_call_names_the_key_and_its_context_and_nothing_else_is_called() {
    let moto = Moto::start();
    let front = Front::start(Some(&moto)).await;
    let arn = moto.create_key().await;
    let id = arn.rsplit('/').next().unwrap();
    moto.call("CreateAlias", json!({"AliasName": "alias/main", "TargetKeyId": id})).await;
    let alias_arn = arn.replace(&format!("key/{id}"), "alias/main");
    for key_id in [id, &arn, "alias/main", &alias_arn] {
        let root = root(&front, key_id).await;
        assert!(front.take().is_empty(), "opening makes no call");
        let (chain, kek) = (chain("orders"), kek());
        let here = context(&chain, &kek);
        let wrapped = root.wrap(here, &kek).await.unwrap();
        assert!(root.unwrap(here, &wrapped).await.unwrap() == kek);
        let bound =
            json!({"kms-proxy:chain": "orders", "kms-proxy:kek-id": here.kek_id.to_string()});
        let base64 = |bytes: &[u8]| base64_simd::STANDARD.encode_to_string(bytes);
        let calls: Vec<_> = front.take().into_iter().map(|call| (call.target, call.body)).collect();
        assert_eq!(wrapped[0], FORMAT);
        let encrypt =
            json!({"KeyId": key_id, "EncryptionContext": bound, "Plaintext": base64(kek.expose())});
        let blob = base64(&wrapped[1..]);
        let decrypt = json!({"KeyId": key_id, "EncryptionContext": bound, "CiphertextBlob": blob});
        let expected = [("TrentService.Encrypt", encrypt), ("TrentService.Decrypt", decrypt)];
        assert_eq!(calls, expected.map(|(target, body)| (target.to_owned(), body)));
    }
}

#[tokio::test]
async fn bytes_that_cannot_be_a_wrap_cause_no_call() {
    let front = Front::start(None).await;
    let root = root(&front, "alias/main").await;
    let (chain, kek) = (chain("orders"), kek());
    for bad in [&[][..], &[FORMAT], &[0; 180], &[2; 180], &[FORMAT; 1025]] {
        wrong(&root, context(&chain, &kek), bad).await;
    }
    assert!(front.take().is_empty());
}

#[tokio::test]
async fn a_moved_alias_wraps_no_more_keks_and_is_reported() {
    let moto = Moto::start();
    let front = Front::start(Some(&moto)).await;
    let (old, new) = (moto.create_key().await, moto.create_key().await);
    moto.call("CreateAlias", json!({"AliasName": "alias/main", "TargetKeyId": old})).await;
    let before = root(&front, "alias/main").await;
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let wrapped = before.wrap(here, &kek).await.unwrap();
    moto.call("UpdateAlias", json!({"AliasName": "alias/main", "TargetKeyId": new})).await;
    let Error::Denied(detail) = refused(&before).await else { panic!("another class") };
    assert!(detail.contains(&old) && detail.contains(&new), "{detail}");
    // A wrap by the old key does not open under the alias, neither here nor after a restart.
    assert!(wrong(&before, here, &wrapped).await.contains("was the alias moved?"));
    let after = root(&front, "alias/main").await;
    wrong(&after, here, &wrapped).await;
    // A wrap by the new key, which another process made, does not belong to this root.
    let theirs = after.wrap(here, &kek).await.unwrap();
    assert!(wrong(&before, here, &theirs).await.contains("was moved"));
    // The old key still opens its wraps.
    assert!(root(&front, &old).await.unwrap(here, &wrapped).await.unwrap() == kek);
}

#[tokio::test]
async fn the_response_of_another_key_is_refused() {
    let front = Front::start(None).await;
    let arn = |id: &str| format!("arn:aws:kms:{REGION}:1:key/{id}");
    for key_id in ["one", &arn("one")] {
        let root = root(&front, key_id).await;
        let answer = json!({"KeyId": arn("two"), "CiphertextBlob": "AAAA", "Plaintext": "AAAA"});
        front.set(Way::Text(200, answer.to_string()));
        assert!(matches!(refused(&root).await, Error::Denied(_)));
        assert!(matches!(not_opened(&root).await, Error::Wrong(_)));
    }
}

#[tokio::test]
async fn a_ciphertext_that_fits_in_no_record_is_refused() {
    let front = Front::start(None).await;
    let root = root(&front, "one").await;
    let arn = format!("arn:aws:kms:{REGION}:1:key/one");
    for blob in [vec![], vec![7; 1024]] {
        let blob = base64_simd::STANDARD.encode_to_string(blob);
        let answer = json!({"KeyId": arn, "CiphertextBlob": blob}).to_string();
        front.set(Way::Text(200, answer));
        assert!(matches!(refused(&root).await, Error::Away(text) if text.contains("not AWS KMS")));
    }
}

fn config(settings: &str) -> Result<Config, String> {
    let text = format!("name = 'main'\nkey_id = 'alias/main'\n{settings}");
    let config: Config = toml::from_str(&text).map_err(|error| error.to_string())?;
    config.check().map(|()| config)
}

#[test]
fn settings_are_checked_without_a_call() {
    let default = config("").unwrap();
    assert_eq!((default.timeout, default.region()), (Duration::from_secs(5), None));
    for good in [
        "region = 'eu-central-1'",
        "endpoint = 'https://vpce-1.kms.eu-central-1.vpce.amazonaws.com'",
        "endpoint = 'http://[::1]:4566/'",
        "timeout = '14s'",
    ] {
        assert!(config(good).is_ok(), "{good}");
    }
    for (bad, key) in [
        ("region = ''", "region"),
        ("region = 'eu.example/'", "region"),
        ("endpoint = 'kms.example'", "endpoint"),
        ("endpoint = 'ftp://kms.example'", "endpoint"),
        ("endpoint = 'https://user:secret@kms.example'", "endpoint"),
        ("timeout = '15s'", "timeout"),
        ("timeout = '1ms'", "timeout"),
        ("secret_access_key = 'x'", "secret_access_key"),
    ] {
        let error = config(bad).unwrap_err();
        assert!(error.contains(key) && !error.contains("user:secret"), "{bad}: {error}");
    }
    let of_arn = Config { key_id: format!("arn:aws:kms:{REGION}:1:key/x"), ..default.clone() };
    assert_eq!(of_arn.region(), Some(REGION));
    let other = Config { region: Some("us-east-1".to_owned()), ..of_arn };
    assert_eq!(other.check(), Err(format!("region: the key of key_id is in {REGION}")));
}

#[test]
fn plain_http_to_another_machine_is_noticed() {
    let plain = |endpoint: &str| {
        config(&format!("endpoint = '{endpoint}'")).unwrap().plain_http().is_some()
    };
    assert!(plain("http://moto:5000") && plain("http://10.0.0.1"));
    for fine in ["https://moto:5000", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"]
    {
        assert!(!plain(fine), "{fine}");
    }
}
