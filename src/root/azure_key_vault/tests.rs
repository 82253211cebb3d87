//! The root on a substitute for Azure Key Vault and Managed HSM, which the vendor's own client has
//! proved: see `tests/clouds/`.

use serde_json::{Value, json};

use super::*;
use crate::id::Suite;
use crate::root::RootKey;
use crate::root::cloud::fakes::{Fake, Vendor};
use crate::root::contract::{self, chain, context, wrong};

mod credentials;
mod failures;

/// Settings with the longest time-out: a busy machine may stop the substitute for seconds.
fn config(key_id: &str) -> Config {
    Config { timeout: Duration::from_secs(14), ..Config::new("main", key_id) }
}

/// A root that gets its tokens from the managed identity of an app.
fn root(fake: &Fake, key_id: &str) -> Root {
    with(fake, &config(key_id))
}

fn with(fake: &Fake, config: &Config) -> Root {
    let endpoint = format!("{}/msi/token", fake.url);
    by(config, &[("IDENTITY_ENDPOINT", &endpoint), ("IDENTITY_HEADER", "h")]).unwrap()
}

/// A root that finds its credentials by these variables.
fn by(config: &Config, variables: &[(&str, &str)]) -> Result<Root, String> {
    Root::with(config, &|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
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
    let fake = Fake::azure();
    let (one, another) = (fake.azure_key("one", "RSA").await, fake.azure_key("two", "RSA").await);
    contract::all(root(&fake, &one), root(&fake, &another)).await;
}

/// AES key wrap has no nonce, so the battery, which requires one, is for RSA alone.
#[tokio::test]
async fn an_aes_key_of_a_managed_hsm_opens_its_wraps_in_their_context_alone() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "oct-HSM").await;
    let aes = Config { algorithm: WrapAlgorithm::A256Kw, ..config(&key_id) };
    let root_of_aes = with(&fake, &aes);
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        let (chain, kek) = (chain("orders"), KeyBytes::random(suite).unwrap());
        let here = context(&chain, &kek);
        let wrapped = root_of_aes.wrap(here, &kek).await.unwrap();
        assert!(root_of_aes.unwrap(here, &wrapped).await.unwrap() == kek);
        let other = contract::chain("order");
        let detail = wrong(&root_of_aes, Context { chain: &other, ..here }, &wrapped).await;
        assert!(detail.contains("another KEK or another chain"), "{detail}");
        for at in (0..wrapped.len()).step_by(7) {
            let mut bad = wrapped.clone();
            bad[at] ^= 0x10;
            wrong(&root_of_aes, here, &bad).await;
        }
        // The algorithm is that of the wrap, and a new wrap would have another one.
        let of_rsa = root(&fake, &key_id);
        assert!(root_of_aes.is_current(&wrapped) && !of_rsa.is_current(&wrapped));
        assert!(of_rsa.unwrap(here, &wrapped).await.unwrap() == kek);
    }
}

#[tokio::test]
async fn a_call_has_the_kek_with_the_hash_of_its_context_and_nothing_else_is_called() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let version = fake.azure_version("one").await;
    fake.take().await;
    let root = root(&fake, &key_id);
    assert!(fake.take().await.is_empty(), "opening makes no call");
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let wrapped = root.wrap(here, &kek).await.unwrap();
    assert!(root.unwrap(here, &wrapped).await.unwrap() == kek);
    let calls = fake.take().await;
    let paths: Vec<_> = calls.iter().map(|call| (&*call.method, &*call.path)).collect();
    let unwrap = format!("/keys/one/{version}/unwrapkey");
    assert_eq!(
        paths,
        [
            ("GET", "/keys/one"),
            ("GET", "/msi/token"),
            ("POST", "/keys/one//wrapkey"),
            ("POST", &unwrap)
        ]
    );
    let bodies: Vec<Value> =
        calls[2..].iter().map(|call| serde_json::from_str(&call.body).unwrap()).collect();
    let expected = |bytes: &[u8]| {
        let value = URL_SAFE_NO_PAD.encode_to_string(bytes);
        json!({"alg": "RSA-OAEP-256", "value": value})
    };
    let plain = [kek.expose(), &Sha256::digest(here.aad())[..]].concat();
    let sealed = Wrapped::from_bytes(&wrapped).unwrap().sealed;
    assert_eq!(bodies, [expected(&plain), expected(sealed)]);
}

#[tokio::test]
async fn what_can_not_be_a_wrap_costs_no_call_and_what_can_is_refused_by_the_key() {
    let fake = Fake::azure();
    let root = root(&fake, &fake.azure_key("one", "RSA").await);
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    for bad in [&[][..], &[1], &[0; 120], &[1; 18], &[1; 1025]] {
        wrong(&root, here, bad).await;
    }
    assert!(fake.take().await.is_empty());
    let wrapped = root.wrap(here, &kek).await.unwrap();
    let mut bad = wrapped.clone();
    bad[100] ^= 1;
    let detail = wrong(&root, here, &bad).await;
    assert!(detail.contains("it is damaged, or was made by another key"), "{detail}");
    bad = wrapped;
    bad[5] ^= 1;
    let detail = wrong(&root, here, &bad).await;
    assert!(detail.contains("the key has no version"), "{detail}");
    assert_eq!(fake.uses().await, ["wrapkey", "unwrapkey", "unwrapkey"]);
}

/// Anyone can wrap with the public part of an RSA key, so the hash is all that binds the context.
#[tokio::test]
async fn a_wrap_of_something_else_than_a_kek_with_its_context_does_not_open() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let root = root(&fake, &key_id);
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let hash = Sha256::digest(here.aad());
    for (plain, said) in [
        (vec![], "something that is not a KEK"),
        (vec![7; 31], "something that is not a KEK"),
        (kek.expose().to_vec(), "something that is not a KEK"),
        ([kek.expose(), &[0; 32]].concat(), "another KEK or another chain"),
        (hash.to_vec(), "a key of another size"),
        ([&[7; 32], &hash[..]].concat(), "a key of another size"),
        ([&[7; 17], &hash[..]].concat(), "a key of another size"),
    ] {
        let body = Body { alg: "RSA-OAEP-256", value: &URL_SAFE_NO_PAD.encode_to_string(&plain) };
        let read = |response: &Response| root.read_wrapped(response);
        let wrapped = root.call(Call::Wrap, "", &body, None, read).await.unwrap();
        let detail = wrong(&root, here, &wrapped).await;
        assert!(detail.contains(said), "{plain:?}: {detail}");
    }
}

#[tokio::test]
async fn a_rotated_key_opens_older_wraps_which_are_reported_as_outdated() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let first = fake.azure_version("one").await;
    let before = root(&fake, &key_id);
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let old = before.wrap(here, &kek).await.unwrap();
    assert!(before.is_current(&old));
    fake.azure_rotate("one").await;
    let after = root(&fake, &key_id);
    assert!(after.unwrap(here, &old).await.unwrap() == kek);
    assert!(after.is_current(&old), "only a wrap names the latest version");
    let new = before.wrap(here, &kek).await.unwrap();
    assert!(!before.is_current(&old) && before.is_current(&new));
    assert!(after.unwrap(here, &new).await.unwrap() == kek);
    // What the older version made opens as long as that is enabled.
    fake.azure_enable("one", &first, false).await;
    let Err(Error::Denied(detail)) = after.unwrap(here, &old).await else { panic!("it opens") };
    assert!(detail.contains("this version of it, is disabled: enable it"), "{detail}");
    assert!(after.unwrap(here, &new).await.unwrap() == kek);
    assert!(!after.is_current(b"nonsense"));
}

#[tokio::test]
async fn the_response_of_another_key_is_refused() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let root = root(&fake, &key_id);
    let kid = format!("{}/00112233445566778899aabbccddeeff", key_id.replace("/one", "/two"));
    let fault = json!({"kind": "set", "path": "/wrapkey", "fields": {"kid": kid}});
    fake.fails(json!([fault])).await;
    let Error::Denied(detail) = refused(&root).await else { panic!("another class") };
    assert!(detail.contains("/two") && detail.contains("and key_id is http"), "{detail}");
}

#[tokio::test]
async fn azures_own_client_proves_the_substitute_opens_our_wraps_and_makes_some() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let mut azure = Vendor::start("azure_client.py", &[&fake.url]);
    let done = azure.ask(&json!({"prove": true}));
    assert_eq!(done["done"].as_array().unwrap().len(), 7, "{done}");

    let root = root(&fake, &key_id);
    let (chain, kek) = (chain("orders"), kek());
    let here = context(&chain, &kek);
    let hex = |bytes: &[u8]| base16ct::lower::encode_string(bytes);
    let plain = hex(&[kek.expose(), &Sha256::digest(here.aad())[..]].concat());
    let ours = root.wrap(here, &kek).await.unwrap();
    let Wrapped { version, sealed, .. } = Wrapped::from_bytes(&ours).unwrap();
    let command = json!({"unwrap": hex(sealed), "key": "one", "version": hex(&version)});
    assert_eq!(azure.ask(&command)["plain"], plain);

    let theirs = azure.ask(&json!({"wrap": plain, "key": "one"}));
    let version = contract::unhex(theirs["version"].as_str().unwrap()).try_into().unwrap();
    let sealed = contract::unhex(theirs["sealed"].as_str().unwrap());
    let algorithm = WrapAlgorithm::RsaOaep256;
    let theirs = Wrapped { algorithm, version, sealed: &sealed }.to_bytes();
    assert!(root.unwrap(here, &theirs).await.unwrap() == kek);
}

#[test]
fn settings_are_checked() {
    let key = "https://orders.vault.azure.net/keys/k";
    let config = |settings: &str| {
        let text = format!("name = 'main'\nkey_id = '{key}'\n{settings}");
        let config: Config = toml::from_str(&text).map_err(|error| error.to_string())?;
        config.check().map(|()| config)
    };
    let default = config("").unwrap();
    assert_eq!((default.timeout, default.key_id.as_str()), (Duration::from_secs(5), key));
    assert_eq!(default.algorithm, WrapAlgorithm::RsaOaep256);
    assert_eq!(config("algorithm = 'A256KW'").unwrap().algorithm, WrapAlgorithm::A256Kw);
    assert!(config("timeout = '14s'").is_ok());
    for (bad, key) in [
        ("timeout = '15s'", "timeout: "),
        ("timeout = '1ms'", "timeout: "),
        ("algorithm = 'RSA1_5'", "algorithm"),
        ("ca = '/nowhere.pem'", "ca, /nowhere.pem: "),
        ("client_secret = 'x'", "client_secret"),
    ] {
        let error = config(bad).unwrap_err();
        assert!(error.contains(key), "{bad}: {error}");
    }
}
