//! Every source of credentials, and what is said when it gives none.

use std::path::PathBuf;

use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256};

use super::*;

/// A directory with a file of credentials.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// A certificate and its RSA key in PEM.
fn certificate() -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let names = vec!["kms-proxy".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// A root of an application that logs in by this variable.
fn application(fake: &Fake, key_id: &str, variable: (&str, &str)) -> Result<Root, String> {
    let login = [("AZURE_TENANT_ID", "tenant"), ("AZURE_CLIENT_ID", "client")];
    let server = ("AZURE_AUTHORITY_HOST", &*fake.url);
    by(&config(key_id), &[login[0], login[1], server, variable])
}

async fn away(root: &Root) -> String {
    match refused(root).await {
        Error::Away(detail) => detail,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_source_gives_tokens_and_each_is_used_until_it_expires_or_is_refused() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let dir = Dir::new();
    let (certificate, key) = certificate();
    let pem = dir.write("client.pem", &format!("{certificate}{key}"));
    let federated = dir.write("token", "header.claims.signature\n");
    let settings = json!({"federated": ["header.claims.signature"], "certificate": certificate});
    fake.control("config", settings).await;
    let (pem, federated) = (pem.to_str().unwrap(), federated.to_str().unwrap());
    let login = "/tenant/oauth2/v2.0/token";
    let machine = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", &*fake.url)];
    for (root, path) in [
        (application(&fake, &key_id, ("AZURE_CLIENT_SECRET", "s&+")).unwrap(), login),
        (application(&fake, &key_id, ("AZURE_CLIENT_CERTIFICATE_PATH", pem)).unwrap(), login),
        (application(&fake, &key_id, ("AZURE_FEDERATED_TOKEN_FILE", federated)).unwrap(), login),
        (by(&config(&key_id), &machine).unwrap(), "/metadata/identity/oauth2/token"),
        (root(&fake, &key_id), "/msi/token"),
    ] {
        works(&root).await.unwrap();
        works(&root).await.unwrap();
        let made = fake.take().await;
        let paths: Vec<_> = made.iter().map(|call| &*call.path).collect();
        assert_eq!((&paths[..2], paths.len()), (&["/keys/one", path][..], 6), "{paths:?}");
        // A token that was revoked is replaced within the call.
        fake.control("revoke", json!({})).await;
        works(&root).await.unwrap();
        fake.take().await;
    }
    // The margin is a quarter of a token's life.
    let root = application(&fake, &key_id, ("AZURE_CLIENT_SECRET", "s&+")).unwrap();
    fake.control("config", json!({"life": 1})).await;
    works(&root).await.unwrap();
    fake.take().await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    works(&root).await.unwrap();
    assert_eq!(fake.take().await[0].path, login);
}

#[tokio::test]
async fn a_source_that_gives_no_token_is_away_and_no_secret_is_in_the_text() {
    let fake = Fake::azure();
    let key_id = fake.azure_key("one", "RSA").await;
    let dir = Dir::new();
    fake.control("config", json!({"managed": false})).await;
    let detail = away(&root(&fake, &key_id)).await;
    let said = "no credentials: the service of managed identities answers 400: invalid_request";
    assert_eq!(detail, said);
    let said = "no credentials: Microsoft Entra answers 401: invalid_client";
    let with_secret = application(&fake, &key_id, ("AZURE_CLIENT_SECRET", "planted")).unwrap();
    assert_eq!(away(&with_secret).await, said);
    let file = dir.write("token", "planted");
    let path = file.to_str().unwrap();
    let federated = application(&fake, &key_id, ("AZURE_FEDERATED_TOKEN_FILE", path)).unwrap();
    assert_eq!(away(&federated).await, said);
    std::fs::remove_file(&file).unwrap();
    let detail = away(&federated).await;
    assert!(detail.contains(path), "{detail}");
    // The file is read again, and no restart is needed.
    dir.write("token", "good");
    fake.control("config", json!({"federated": ["good"]})).await;
    works(&federated).await.unwrap();
    // A source that has an outage is tried again.
    fake.control("config", json!({"managed": true})).await;
    let fault = json!({"kind": "status", "path": "/token", "status": 503, "count": 2});
    fake.fails(json!([fault])).await;
    works(&root(&fake, &key_id)).await.unwrap();
    fake.works().await;
    let nowhere = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")];
    let detail = away(&by(&config(&key_id), &nowhere).unwrap()).await;
    assert!(detail.contains("is set, and there is no managed identity"), "{detail}");
    assert!(detail.contains("127.0.0.1:1 can't be reached"), "{detail}");
}

#[test]
fn a_login_that_can_not_be_used_is_refused_and_not_repeated() {
    let dir = Dir::new();
    let (certificate, key) = certificate();
    let write = |name: &str, text: &str| dir.write(name, text).to_str().unwrap().to_owned();
    let [pem, no_key, other, spaces] = [
        write("good.pem", &format!("{certificate}{key}")),
        write("certificate.pem", &certificate),
        write("planted.txt", "planted-text"),
        write("spaces", "planted text"),
    ];
    let find = |variables: &[(&str, &str)]| {
        by(&config("https://v.vault.azure.net/keys/k"), variables).map(drop)
    };
    let login = [("AZURE_TENANT_ID", "t"), ("AZURE_CLIENT_ID", "c")];
    let [secret, certificate_path, token] =
        ["AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_FEDERATED_TOKEN_FILE"];
    // The order is that of Azure's libraries, and a file that is not used is not read.
    assert_eq!(find(&[login[0], login[1], (secret, "s"), (certificate_path, "/nowhere")]), Ok(()));
    assert_eq!(find(&[login[0], login[1], (certificate_path, &pem), (token, "/nowhere")]), Ok(()));
    assert_eq!(find(&[]), Ok(()));
    for (variables, said) in [
        (&[login[0], (secret, "planted")][..], "AZURE_CLIENT_ID is not set"),
        (&[login[1], (secret, "planted")], "AZURE_TENANT_ID is not set"),
        (&[("AZURE_TENANT_ID", "planted/x"), login[1], (secret, "s")], "not the id of a tenant"),
        (&[login[0], login[1], (certificate_path, &no_key)], "certificate.pem: "),
        (&[login[0], login[1], (certificate_path, "/nowhere")], "PATH: /nowhere: "),
        (&[login[0], login[1], (token, &spaces)], "does not contain a token"),
        (&[login[0], login[1], (token, "/nowhere")], "FILE: /nowhere: "),
        (
            &[login[0], login[1], (secret, "s"), ("AZURE_AUTHORITY_HOST", "http://planted")],
            "AZURE_AUTHORITY_HOST: it must be an https:// URL",
        ),
        (&[("IDENTITY_ENDPOINT", "planted"), ("IDENTITY_HEADER", "h")], "is not a URL"),
    ] {
        let error = find(variables).unwrap_err();
        assert!(error.contains(said) && !error.contains("planted"), "{error}");
    }
    let error = find(&[login[0], login[1], (certificate_path, &other)]).unwrap_err();
    assert!(!error.contains("planted-text"), "{error}");
}
