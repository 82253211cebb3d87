//! The root on a real OpenBao server. `faults` tests responses that a real one does not give on
//! demand.

use std::path::PathBuf;
use std::time::Instant;

use reqwest::Method;
use serde_json::{Value, json};

use super::*;
use crate::id::Suite;
use crate::root::RootKey;
use crate::root::contract::{self, chain, context, wrong};
use crate::secret::SecretBytes;
use crate::test_ports as ports;
use crate::tls::tests::pki;

#[path = "../../../tests/it/support/bao.rs"]
mod bao;
mod faults;
mod settings;

use bao::Bao;

/// A root without a login, with the longest time-out: a busy machine may stop the server for
/// seconds.
fn config(address: &str) -> Config {
    let text = format!("name = 'main'\naddress = '{address}'\nkey = 'kek'\ntimeout = '10s'");
    toml::from_str(&text).unwrap()
}

fn secret(text: &str) -> Option<Arc<SecretBytes>> {
    Some(Arc::new(SecretBytes::new(text.as_bytes().to_vec())))
}

fn with_token(bao: &Bao, token: &str) -> Config {
    Config { token: secret(token), ..config(bao.address()) }
}

fn with_role(bao: &Bao, (role_id, secret_id): &(String, String)) -> Config {
    Config { role_id: Some(role_id.clone()), secret_id: secret(secret_id), ..config(bao.address()) }
}

/// Wraps and unwraps a KEK. What the server had no time for is repeated.
async fn works(root: &Root) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        match works_in_time(root).await {
            Err(Error::Away(detail))
                if detail.starts_with("no answer in") && start.elapsed() < PATIENCE => {}
            result => return result,
        }
    }
}

async fn works_in_time(root: &Root) -> Result<(), Error> {
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let here = context(&chain, &kek);
    let wrapped = root.wrap(here, &kek).await?;
    assert!(root.unwrap(here, &wrapped).await? == kek);
    Ok(())
}

async fn away(root: &Root) -> String {
    match works(root).await {
        Err(Error::Away(detail)) => detail,
        other => panic!("{other:?}"),
    }
}

async fn denied(root: &Root) -> String {
    match works(root).await {
        Err(Error::Denied(detail)) => detail,
        other => panic!("{other:?}"),
    }
}

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "it did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Revokes all tokens but that of the tests, and returns how many there were.
async fn revoke_all(bao: &Bao) -> usize {
    let tokens = bao.tokens().await;
    for token in &tokens {
        let body = json!({"accessor": token["accessor"]});
        bao.ok(Method::POST, "auth/token/revoke-accessor", body).await;
    }
    tokens.len()
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let bao = Bao::start().await;
    bao.ok(Method::POST, "transit/keys/other", json!({"type": "chacha20-poly1305"})).await;
    let role = bao.role("proxy", json!({"token_policies": "kek"})).await;
    let root = Root::open(&with_role(&bao, &role)).await.unwrap();
    let other = Config { key: "other".to_owned(), ..with_token(&bao, bao.token()) };
    contract::all(root, Root::open(&other).await.unwrap()).await;
    // Engine, key and AppRole may be in a namespace.
    bao.ok(Method::POST, "sys/namespaces/team", json!({})).await;
    bao.ok(Method::POST, "team/sys/mounts/deep/er", json!({"type": "transit"})).await;
    bao.ok(Method::POST, "team/deep/er/keys/kek", json!({})).await;
    let there = Config {
        mount: "/deep/er/".to_owned(),
        namespace: Some("team/".to_owned()),
        ..with_token(&bao, bao.token())
    };
    works(&Root::open(&there).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_role_renews_its_token_and_logs_in_again_by_itself() {
    let bao = Bao::start().await;
    let role = bao.role("revoked", json!({"token_policies": "kek", "token_ttl": "1h"})).await;
    let root = Root::open(&with_role(&bao, &role)).await.unwrap();
    works(&root).await.unwrap();
    assert_eq!(revoke_all(&bao).await, 1);
    works(&root).await.expect("the next call logs in");
    drop(root);
    assert_eq!(revoke_all(&bao).await, 1, "it logs in once");

    let settings = json!({"token_policies": "kek", "token_ttl": "5s", "token_max_ttl": "1h"});
    let role = bao.role("renews", settings).await;
    let root = Root::open(&with_role(&bao, &role)).await.unwrap();
    works(&root).await.unwrap();
    until("a renewal without a call", async || {
        let tokens = bao.tokens().await;
        tokens.iter().any(|token| token["last_renewal_time"].as_u64() > Some(0)).then_some(())
    })
    .await;
    drop(root);

    // Nothing renews this token. Another one can expire before its call, if the machine is busy.
    let settings = json!({"token_policies": "kek", "token_ttl": "1s", "token_max_ttl": "1s"});
    let role = bao.role("ends", settings).await;
    let root = Root::open(&with_role(&bao, &role)).await.unwrap();
    root.keeper.abort();
    until("a login", async || works(&root).await.ok()).await;
    until("the end of all tokens", async || bao.tokens().await.is_empty().then_some(())).await;
    until("another login", async || works(&root).await.ok()).await;
}

#[tokio::test]
async fn a_role_logs_in_again_when_its_token_nears_its_longest_life() {
    let bao = Bao::start().await;
    let settings = json!({"token_policies": "kek", "token_ttl": "4s", "token_max_ttl": "6s"});
    let role = bao.role("shrinks", settings).await;
    let root = Root::open(&with_role(&bao, &role)).await.unwrap();
    works(&root).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    until("three logins without a call", async || {
        let tokens = bao.tokens().await;
        seen.extend(tokens.iter().map(|token| token["accessor"].as_str().unwrap().to_owned()));
        (seen.len() >= 3).then_some(())
    })
    .await;
    until("a call that succeeds", async || works(&root).await.ok()).await;
    drop(root);
    until("the end of all tokens", async || bao.tokens().await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_configured_token_is_renewed_and_replaced_by_its_file() {
    let bao = Bao::start().await;
    // A machine that is busy for four seconds loses the token: then another one is tried.
    let (root, given) = until("a renewal", async || {
        let given = bao.make_token(json!({"policies": ["kek"], "period": "4s"})).await;
        let root = Root::open(&with_token(&bao, &given)).await.unwrap();
        works(&root).await.ok()?;
        loop {
            let body = json!({"token": given});
            let (status, token) = bao.call(Method::POST, "auth/token/lookup", body).await;
            if status != 200 {
                return None;
            }
            if token["data"]["last_renewal_time"].as_u64() > Some(0) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        works(&root).await.ok()?;
        Some((root, given))
    })
    .await;
    revoke_all(&bao).await;
    let detail = away(&root).await;
    assert!(detail.contains("the token is not valid"), "{detail}");
    assert!(!detail.contains(&given));

    let file = tempfile::NamedTempFile::new().unwrap();
    let make = async || bao.make_token(json!({"policies": ["kek"], "ttl": "1h"})).await;
    let (first, second) = (make().await, make().await);
    let put = |text: &str| std::fs::write(file.path(), format!("{text}\n")).unwrap();
    put(&first);
    let config = Config { token_file: Some(file.path().into()), ..config(bao.address()) };
    let root = Root::open(&config).await.unwrap();
    works(&root).await.unwrap();
    // An agent writes the next token before it revokes the last one, or after.
    put(&second);
    bao.ok(Method::POST, "auth/token/revoke", json!({"token": first})).await;
    works(&root).await.unwrap();
    bao.ok(Method::POST, "auth/token/revoke", json!({"token": second})).await;
    assert!(away(&root).await.contains("the token is not valid"));
    put(&make().await);
    works(&root).await.unwrap();
    // While the file is being replaced, the old token is used.
    std::fs::remove_file(file.path()).unwrap();
    works(&root).await.unwrap();
}

#[tokio::test]
async fn a_wrong_secret_id_is_away_until_it_is_right() {
    let bao = Bao::start().await;
    let (role_id, secret_id) = bao.role("proxy", json!({"token_policies": "kek"})).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "e49f4d0e-1096-fe4d-69c3-875fcfb482fe").unwrap();
    let config = Config {
        role_id: Some(role_id.clone()),
        secret_id_file: Some(file.path().into()),
        ..config(bao.address())
    };
    let root = Root::open(&config).await.unwrap();
    for _ in 0..10 {
        let detail = away(&root).await;
        assert_eq!(detail, "it can't log in: the role id or the secret id is not accepted");
    }
    // The role is not locked out, and no restart is needed.
    std::fs::write(file.path(), &secret_id).unwrap();
    works(&root).await.unwrap();

    let wrong_role = Config { role_id: Some("nobody".to_owned()), ..config.clone() };
    let detail = away(&Root::open(&wrong_role).await.unwrap()).await;
    assert!(detail.contains("is not accepted"), "{detail}");
    let elsewhere = Config { auth_mount: "other".to_owned(), ..config };
    let detail = away(&Root::open(&elsewhere).await.unwrap()).await;
    assert!(detail.contains("is AppRole mounted at auth/other"), "{detail}");
}

#[tokio::test]
async fn a_denial_by_a_policy_is_distinguished_from_a_bad_token() {
    let bao = Bao::start().await;
    bao.policy("wraps", r#"path "transit/encrypt/kek" { capabilities = ["update"] }"#).await;
    let role = bao.role("proxy", json!({"token_policies": "wraps"})).await;
    let root = Root::open(&with_role(&bao, &role)).await.unwrap();
    for _ in 0..3 {
        let detail = denied(&root).await;
        assert!(detail.contains("policy denied") && detail.contains("decrypt/kek"), "{detail}");
    }
    let logins = bao.tokens().await.len();
    assert_eq!(logins, 1, "a denial by a policy causes no login");
    // The policy is corrected: the same token works.
    bao.policy("wraps", bao::POLICY).await;
    works(&root).await.unwrap();

    let none = bao.make_token(json!({"policies": ["default"]})).await;
    let detail = denied(&Root::open(&with_token(&bao, &none)).await.unwrap()).await;
    assert!(detail.contains("policy denied") && detail.contains("encrypt/kek"), "{detail}");
    let unknown = Root::open(&with_token(&bao, "s.000000000000000000000000")).await.unwrap();
    assert!(away(&unknown).await.contains("the token is not valid"));
}

#[tokio::test]
async fn a_key_that_is_missing_or_unsuitable_is_denied_and_never_created() {
    let bao = Bao::start().await;
    // This token may create keys. The root must not.
    let root = async |key: &str| {
        let config = Config { key: key.to_owned(), ..with_token(&bao, bao.token()) };
        Root::open(&config).await.unwrap()
    };
    let detail = denied(&root("missing").await).await;
    assert_eq!(detail, "the transit engine at transit has no key missing");
    let (status, _) = bao.call(Method::GET, "transit/keys/missing", Value::Null).await;
    assert_eq!(status, 404);
    for (key, settings, reason) in [
        ("derived", json!({"derived": true}), "key derivation"),
        ("rsa", json!({"type": "rsa-2048"}), "not an AEAD key"),
        ("signs", json!({"type": "ed25519"}), "not an AEAD key"),
    ] {
        bao.ok(Method::POST, &format!("transit/keys/{key}"), settings).await;
        // With and without permission to read the key.
        let detail = denied(&root(key).await).await;
        assert!(detail.contains(reason), "{key}: {detail}");
        let policy = format!("path \"transit/encrypt/{key}\" {{ capabilities = [\"update\"] }}");
        bao.policy(key, &policy).await;
        let token = bao.make_token(json!({"policies": [key]})).await;
        let config = Config { key: key.to_owned(), ..with_token(&bao, &token) };
        let detail = denied(&Root::open(&config).await.unwrap()).await;
        assert!(detail.contains(reason), "{key}: {detail}");
    }
    let config = Config { mount: "nowhere".to_owned(), ..with_token(&bao, bao.token()) };
    let detail = denied(&Root::open(&config).await.unwrap()).await;
    assert_eq!(detail, "there is no transit engine at nowhere");
    bao.ok(Method::POST, "sys/mounts/kv", json!({"type": "kv"})).await;
    let config = Config { mount: "kv".to_owned(), ..config };
    denied(&Root::open(&config).await.unwrap()).await;
}

#[tokio::test]
async fn old_versions_of_the_key_open_until_they_are_forbidden() {
    let bao = Bao::start().await;
    let root = Root::open(&with_token(&bao, bao.token())).await.unwrap();
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes256Gcm).unwrap());
    let here = context(&chain, &kek);
    let old = root.wrap(here, &kek).await.unwrap();
    assert!(old.starts_with(b"\x01vault:v1:"));
    bao.ok(Method::POST, "transit/keys/kek/rotate", Value::Null).await;
    let new = root.wrap(here, &kek).await.unwrap();
    assert!(new.starts_with(b"\x01vault:v2:"));
    assert!(root.is_current(&new) && !root.is_current(&old) && !root.is_current(b"\x01vault:"));
    // Another process knows the version once it has read the key.
    let another = Root::open(&with_token(&bao, bao.token())).await.unwrap();
    assert!(another.unwrap(here, &old).await.unwrap() == kek);
    assert!(another.is_current(&new) && !another.is_current(&old));
    assert!(root.unwrap(here, &old).await.unwrap() == kek);
    let future = String::from_utf8(new.clone()).unwrap().replace(":v2:", ":v3:");
    assert_eq!(wrong(&root, here, future.as_bytes()).await, "the key has no version 3");

    let least = json!({"min_decryption_version": 2});
    bao.ok(Method::POST, "transit/keys/kek/config", least).await;
    let detail = wrong(&root, here, &old).await;
    assert_eq!(detail, "version 1 of the key is below its min_decryption_version");
    assert!(root.unwrap(here, &new).await.unwrap() == kek);

    bao.ok(Method::POST, "transit/keys/kek/config", json!({"deletion_allowed": true})).await;
    bao.ok(Method::DELETE, "transit/keys/kek", Value::Null).await;
    match root.unwrap(here, &new).await {
        Err(Error::Denied(detail)) => assert!(detail.contains("has no key kek"), "{detail}"),
        other => panic!("{:?}", other.map(drop)),
    }
}

#[tokio::test]
async fn a_server_that_was_sealed_or_gone_is_used_again_without_a_restart() {
    let mut bao = Bao::start().await;
    let role = bao.role("proxy", json!({"token_policies": "kek", "token_ttl": "1h"})).await;
    let root = Root::open(&with_role(&bao, &role)).await.unwrap();
    works(&root).await.unwrap();
    bao.seal().await;
    assert_eq!(away(&root).await, "it is sealed");
    // A root that is opened now has no token yet.
    let late = Root::open(&with_role(&bao, &role)).await.unwrap();
    assert_eq!(away(&late).await, "it is sealed");
    bao.unseal().await;
    works(&root).await.unwrap();
    works(&late).await.unwrap();

    bao.kill();
    // The first call may still use the old connection.
    until("a connection that is refused", async || {
        away(&root).await.contains("refused").then_some(())
    })
    .await;
    bao.restart().await;
    works(&root).await.unwrap();
    assert_eq!(bao.tokens().await.len(), 2, "the tokens survive a restart");
}

#[tokio::test]
async fn a_private_authority_is_trusted_and_no_other() {
    let mut ca = rcgen::CertificateParams::new([]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issue = |names: [String; 1]| {
        let key = rcgen::KeyPair::generate().unwrap();
        (rcgen::CertificateParams::new(names).unwrap(), key)
    };
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let (server, server_key) = issue(["127.0.0.1".to_owned()]);
    let server = server.signed_by(&server_key, &issuer).unwrap().pem();
    let bao = Bao::start_with(Some([&server, &server_key.serialize_pem(), &ca_pem])).await;

    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, pem: &str| -> Option<PathBuf> {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        Some(path)
    };
    let config = with_token(&bao, bao.token());
    let right = Config { ca: put("ca.pem", &ca_pem), ..config.clone() };
    works(&Root::open(&right).await.unwrap()).await.unwrap();

    let (other, other_key) = issue(["another authority".to_owned()]);
    let other = other.self_signed(&other_key).unwrap().pem();
    for ca in [put("other.pem", &other), None] {
        let root = Root::open(&Config { ca, ..config.clone() }).await.unwrap();
        let detail = away(&root).await;
        assert!(detail.contains("certificate") || detail.contains("UnknownIssuer"), "{detail}");
    }
    // Plain HTTP to a server that expects TLS fails.
    let address = bao.address().replace("https", "http");
    away(&Root::open(&Config { address, ..config.clone() }).await.unwrap()).await;
    let error = Root::open(&Config { ca: put("empty.pem", ""), ..config }).await.err().unwrap();
    assert!(error.contains("empty.pem: the file is empty"), "{error}");
}

#[tokio::test]
async fn a_replaced_authority_is_trusted_without_a_restart() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let authorities = [pki::Pki::new(at("one")), pki::Pki::new(at("two"))];
    // As kubelet mounts a Secret: `..data` is replaced by a link to another directory.
    symlink("..data/ca.crt", at("ca.crt")).unwrap();
    let swap = |to: &str| {
        symlink(to, at("..new")).unwrap();
        std::fs::rename(at("..new"), at("..data")).unwrap();
    };
    let text = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let [one, two] = authorities.map(|pki| {
        let (cert, key) = pki.server(&["127.0.0.1"]);
        [text(cert), text(key), text(pki.ca())]
    });
    swap("one");
    let mut bao = Bao::start_with(Some(one.each_ref().map(String::as_str))).await;
    let config = Config { ca: Some(at("ca.crt")), ..with_token(&bao, bao.token()) };
    let root = Root::open(&config).await.unwrap();
    works(&root).await.unwrap();

    bao.exchange(two.each_ref().map(String::as_str)).await;
    let refused = away(&root).await;
    let named = format!("; ca is {}", at("ca.crt").display());
    assert!(refused.contains("UnknownIssuer") && refused.contains(&named), "{refused}");
    swap("two");
    works(&root).await.unwrap();

    // An unusable file changes nothing, and errors mention it.
    std::fs::create_dir(at("none")).unwrap();
    std::fs::write(at("none/ca.crt"), "nothing").unwrap();
    swap("none");
    works(&root).await.unwrap();
    bao.kill();
    let detail = away(&root).await;
    let wrong = "ca.crt: it has no certificate in PEM, so the previous one is in use";
    assert!(detail.contains(wrong), "{detail}");
}
