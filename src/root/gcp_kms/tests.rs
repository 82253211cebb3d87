//! The root on a substitute for Cloud KMS, which the vendor's own client has proved: see
//! `tests/clouds/`.

use serde_json::{Value, json};

use super::*;
use crate::id::Suite;
use crate::root::RootKey;
use crate::root::cloud::fakes::{Fake, Vendor};
use crate::root::contract::{self, chain, context, wrong};

mod credentials;
mod failures;

/// A root with the longest time-out: a busy machine may stop the substitute for seconds.
fn config(fake: &Fake, key_id: &str) -> Config {
    Config {
        endpoint: Some(fake.url.clone()),
        timeout: Duration::from_secs(14),
        ..Config::new("main", key_id)
    }
}

/// A root that gets its tokens from the metadata server.
fn root(fake: &Fake, key_id: &str) -> Root {
    with(fake, &config(fake, key_id))
}

fn with(fake: &Fake, config: &Config) -> Root {
    let variable = |name: &str| (name == "GCE_METADATA_HOST").then(|| fake.host().to_owned());
    let source = super::credentials::find(config.credentials_file.as_deref(), &variable).unwrap();
    Root::with(config, Tokens::new(source)).unwrap()
}

fn kek() -> KeyBytes {
    KeyBytes::random(Suite::Aes128Gcm).unwrap()
}

/// Wraps and unwraps a KEK.
async fn works(root: &Root) -> Result<(), Error> {
    let (chain, kek) = (chain("orders"), kek());
    let wrapped = root.wrap(context(&chain, &kek), &kek).await?;
    assert!(root.unwrap(context(&chain, &kek), &wrapped).await? == kek);
    Ok(())
}

/// The error of a wrap.
async fn refused(root: &Root) -> Error {
    let (chain, kek) = (chain("orders"), kek());
    root.wrap(context(&chain, &kek), &kek).await.unwrap_err()
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let fake = Fake::gcp();
    let (one, another) = (fake.google_key("one").await, fake.google_key("another").await);
    contract::all(root(&fake, &one), root(&fake, &another)).await;
}

#[tokio::test]
async fn a_call_has_the_context_and_checksums_and_nothing_else_is_called() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let root = root(&fake, &key_id);
    assert!(fake.take().await.is_empty(), "opening makes no call");
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let wrapped = root.wrap(here, &kek).await.unwrap();
    assert!(root.unwrap(here, &wrapped).await.unwrap() == kek);
    let calls = fake.take().await;
    let paths: Vec<_> = calls.iter().map(|call| (&*call.method, &*call.path)).collect();
    let [encrypt, decrypt] = ["encrypt", "decrypt"].map(|verb| format!("/v1/{key_id}:{verb}"));
    let token = "/computeMetadata/v1/instance/service-accounts/default/token";
    assert_eq!(paths, [("GET", token), ("POST", &encrypt), ("POST", &decrypt)]);
    let base64 = |bytes: &[u8]| STANDARD.encode_to_string(bytes);
    let sum = |bytes: &[u8]| crc32c::of(bytes).to_string();
    let bodies: Vec<Value> =
        calls[1..].iter().map(|call| serde_json::from_str(&call.body).unwrap()).collect();
    let expected = |name: &str, bytes: &[u8]| {
        json!({
            name: base64(bytes),
            format!("{name}Crc32c"): sum(bytes),
            "additionalAuthenticatedData": base64(&here.aad()),
            "additionalAuthenticatedDataCrc32c": sum(&here.aad()),
        })
    };
    let ciphertext = Wrapped::from_bytes(&wrapped).unwrap().ciphertext;
    assert_eq!(bodies, [expected("plaintext", kek.expose()), expected("ciphertext", ciphertext)]);
}

#[tokio::test]
async fn what_can_not_be_a_wrap_costs_no_call_and_what_can_is_refused_by_the_key() {
    let fake = Fake::gcp();
    let root = root(&fake, &fake.google_key("one").await);
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    for bad in [&[][..], &[1], &[0; 120], &[1; 120], &[1; 1025]] {
        wrong(&root, here, bad).await;
    }
    assert!(fake.take().await.is_empty());
    // Damage that the checksum does not notice, because another one was written.
    let wrapped = root.wrap(here, &kek).await.unwrap();
    let Wrapped { version, ciphertext } = Wrapped::from_bytes(&wrapped).unwrap();
    for at in [0, 10, 38, 41, 60, ciphertext.len() - 1] {
        let mut bad = ciphertext.to_vec();
        bad[at] ^= 1;
        let bad = Wrapped { version, ciphertext: &bad }.to_bytes();
        let detail = wrong(&root, here, &bad).await;
        assert!(detail.contains("it is damaged, or was made by another key"), "{detail}");
    }
    assert_eq!(fake.uses().await.len(), 7);
}

#[tokio::test]
async fn a_rotated_key_opens_older_wraps_which_are_reported_as_outdated() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let before = root(&fake, &key_id);
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let old = before.wrap(here, &kek).await.unwrap();
    assert!(before.is_current(&old));
    fake.google_rotate(&key_id).await;
    // Another process learns it from an unwrap, this one from a wrap.
    let after = root(&fake, &key_id);
    assert!(after.is_current(&old));
    assert!(after.unwrap(here, &old).await.unwrap() == kek);
    assert!(!after.is_current(&old));
    let new = before.wrap(here, &kek).await.unwrap();
    assert!(!before.is_current(&old) && before.is_current(&new) && after.is_current(&new));
    assert!(after.unwrap(here, &new).await.unwrap() == kek);
    assert!(after.is_current(&new) && !after.is_current(&old));
    // What the older version made opens as long as that is enabled.
    fake.google_state(&key_id, 1, "DISABLED").await;
    let Err(Error::Denied(detail)) = after.unwrap(here, &old).await else { panic!("it opens") };
    assert!(detail.contains("the version of the key is disabled: enable it"), "{detail}");
    assert!(detail.contains("cryptoKeyVersions/1 is not enabled"), "{detail}");
    fake.google_state(&key_id, 1, "DESTROYED").await;
    let Err(Error::Denied(detail)) = after.unwrap(here, &old).await else { panic!("it opens") };
    assert!(detail.contains("is destroyed"), "{detail}");
    assert!(after.unwrap(here, &new).await.unwrap() == kek);
    assert!(!after.is_current(b"nonsense"));
}

#[tokio::test]
async fn the_response_of_another_key_is_refused() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let root = root(&fake, &key_id);
    let name = format!("{}/cryptoKeyVersions/1", key_id.replace("/one", "/two"));
    let fault = json!({"kind": "set", "path": ":encrypt", "fields": {"name": name}});
    fake.fails(json!([fault])).await;
    let Error::Denied(detail) = refused(&root).await else { panic!("another class") };
    assert!(detail.contains("/two") && detail.contains("and key_id is projects/p"), "{detail}");
    // The number of a project is as good as its name.
    let name = format!("{}/cryptoKeyVersions/1", key_id.replace("projects/p/", "projects/77/"));
    let fault = json!({"kind": "set", "path": ":encrypt", "fields": {"name": name}});
    fake.fails(json!([fault])).await;
    works(&root).await.unwrap();
}

#[tokio::test]
async fn googles_own_client_proves_the_substitute_opens_our_wraps_and_makes_some() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let account = fake.control("service-account", json!({})).await;
    std::fs::write(file.path(), account.to_string()).unwrap();
    let mut google = Vendor::start("gcp_client.py", &[&fake.url, file.path().to_str().unwrap()]);
    let done = google.ask(&json!({"prove": true}));
    assert_eq!(done["done"].as_array().unwrap().len(), 7, "{done}");

    let root = root(&fake, &key_id);
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let hex = |bytes: &[u8]| base16ct::lower::encode_string(bytes);
    let ours = root.wrap(here, &kek).await.unwrap();
    let sealed = Wrapped::from_bytes(&ours).unwrap().ciphertext;
    let command = json!({"decrypt": hex(sealed), "aad": hex(&here.aad()), "key": key_id});
    assert_eq!(google.ask(&command)["plaintext"], hex(kek.expose()));

    let command = json!({"encrypt": hex(kek.expose()), "aad": hex(&here.aad()), "key": key_id});
    let theirs = google.ask(&command);
    let version = theirs["version"].as_u64().unwrap().try_into().unwrap();
    let ciphertext = contract::unhex(theirs["ciphertext"].as_str().unwrap());
    let theirs = Wrapped { version, ciphertext: &ciphertext }.to_bytes();
    assert!(root.unwrap(here, &theirs).await.unwrap() == kek);
}

#[test]
fn settings_are_checked_without_a_call() {
    let key = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
    let config = |settings: &str| {
        let text = format!("name = 'main'\nkey_id = '{key}'\n{settings}");
        let config: Config = toml::from_str(&text).map_err(|error| error.to_string())?;
        config.check().map(|()| config)
    };
    let default = config("").unwrap();
    assert_eq!((default.timeout, default.key_id.as_str()), (Duration::from_secs(5), key));
    for good in [
        "endpoint = 'https://cloudkms.europe-west3.rep.googleapis.com'",
        "endpoint = 'http://[::1]:4566/'",
        "timeout = '14s'",
    ] {
        assert!(config(good).is_ok(), "{good}");
    }
    for (bad, key) in [
        ("endpoint = 'cloudkms.googleapis.com'", "endpoint: "),
        ("endpoint = 'ftp://kms.test'", "endpoint: "),
        ("endpoint = 'https://user:secret@kms.test'", "endpoint: "),
        ("endpoint = 'https://kms.test/v1'", "endpoint: "),
        ("timeout = '15s'", "timeout: "),
        ("timeout = '1ms'", "timeout: "),
        ("credentials_file = '/nowhere.json'", "credentials_file: /nowhere.json: "),
        ("credentials_file = '/dev/null'", "credentials_file: /dev/null: "),
        ("ca = '/nowhere.pem'", "ca, /nowhere.pem: "),
        ("private_key = 'x'", "private_key"),
    ] {
        let error = config(bad).unwrap_err();
        assert!(error.contains(key) && !error.contains("user:secret"), "{bad}: {error}");
    }
    let plain =
        |endpoint: &str| config(&format!("endpoint = '{endpoint}'")).unwrap().is_in_the_open();
    assert!(plain("http://kms:5000") && plain("http://10.0.0.1"));
    assert!(!plain("https://kms:5000") && !plain("http://localhost:1"));
}
