//! Every source of credentials, and what is said when it gives none.

use std::path::PathBuf;

use super::*;

/// A directory with a file of credentials.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl ToString) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text.to_string()).unwrap();
        path
    }
}

fn by_file(fake: &Fake, key_id: &str, path: PathBuf) -> Root {
    with(fake, &Config { credentials_file: Some(path), ..config(fake, key_id) })
}

async fn away(root: &Root) -> String {
    match refused(root).await {
        Error::Away(detail) => detail,
        other => panic!("{other}"),
    }
}

fn federation(fake: &Fake, source: Value) -> Value {
    json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/\
            providers/k8s",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{}/v1/token", fake.url),
        "credential_source": source,
    })
}

#[tokio::test]
async fn every_source_gives_tokens_and_each_is_used_until_it_expires_or_is_refused() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let dir = Dir::new();
    let config = json!({"subject_tokens": ["subject+/=&"]});
    fake.control("config", config).await;
    let service = fake.control("service-account", json!({})).await;
    let user = json!({
        "type": "authorized_user", "client_id": "c", "client_secret": "s&+",
        "refresh_token": "r/=", "token_uri": format!("{}/token", fake.url),
    });
    let text = dir.write("token", "subject+/=&\n");
    let json = dir.write("token.json", json!({"token": "subject+/=&"}));
    let mut acting = federation(&fake, json!({"file": text}));
    acting["service_account_impersonation_url"] = json!(format!(
        "{}/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com:generateAccessToken",
        fake.url
    ));
    acting["service_account_impersonation"] = json!({"token_lifetime_seconds": 600});
    let format = json!({"type": "json", "subject_token_field_name": "token"});
    let url = format!("{}/computeMetadata/v1/instance/service-accounts/default/email", fake.url);
    let of_url = json!({
        "url": url, "headers": {"Metadata-Flavor": "Google"},
        "format": {"type": "json", "subject_token_field_name": "email"},
    });
    fake.control(
        "config",
        json!({"subject_tokens": ["subject+/=&", "vm@test.iam.gserviceaccount.com"]}),
    )
    .await;
    for (account, calls) in [
        (service, vec![]),
        (user, vec!["/token"]),
        (federation(&fake, json!({"file": text})), vec!["/v1/token"]),
        (federation(&fake, json!({"file": json, "format": format})), vec!["/v1/token"]),
        (acting, vec!["/v1/token", ":generateAccessToken"]),
        (federation(&fake, of_url), vec!["/email", "/v1/token"]),
    ] {
        let root = by_file(&fake, &key_id, dir.write("account.json", &account));
        works(&root).await.unwrap();
        works(&root).await.unwrap();
        let made = fake.take().await;
        assert_eq!(made.len(), calls.len() + 4, "{account}: {made:?}");
        let are_these = made.iter().zip(&calls).all(|(call, end)| call.path.ends_with(end));
        assert!(are_these, "{made:?}");
        // A token that was revoked is replaced within the call.
        fake.control("revoke", json!({})).await;
        works(&root).await.unwrap();
        fake.take().await;
    }
    let root = root(&fake, &key_id);
    works(&root).await.unwrap();
    fake.control("revoke", json!({})).await;
    works(&root).await.unwrap();
    // The margin is a quarter of a token's life.
    fake.control("config", json!({"life": 1})).await;
    fake.control("revoke", json!({})).await;
    works(&root).await.unwrap();
    fake.take().await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    works(&root).await.unwrap();
    assert!(fake.take().await[0].path.ends_with("/token"));
}

#[tokio::test]
async fn a_source_that_gives_no_token_is_away_and_no_secret_is_in_the_text() {
    let fake = Fake::gcp();
    let key_id = fake.google_key("one").await;
    let dir = Dir::new();
    fake.control("config", json!({"metadata": false})).await;
    let detail = away(&root(&fake, &key_id)).await;
    assert!(detail.contains("no credentials: the metadata server knows no service"), "{detail}");

    let user = json!({
        "type": "authorized_user", "client_id": "c", "client_secret": "planted-secret",
        "refresh_token": "planted-token", "token_uri": format!("{}/token", fake.url),
    });
    let detail = away(&by_file(&fake, &key_id, dir.write("user.json", user))).await;
    let said = "no credentials: the token server of Google answers 400: invalid_grant";
    assert_eq!(detail, said);
    let subject = dir.write("token", "planted-token");
    let account = dir.write("fed.json", federation(&fake, json!({"file": subject})));
    let federated = by_file(&fake, &key_id, account);
    let detail = away(&federated).await;
    assert_eq!(detail, "no credentials: the security token service answers 400: invalid_grant");
    std::fs::remove_file(&subject).unwrap();
    let detail = away(&federated).await;
    assert!(detail.contains(&subject.display().to_string()), "{detail}");
    // The file is read again, and no restart is needed.
    dir.write("token", "good");
    fake.control("config", json!({"subject_tokens": ["good"]})).await;
    works(&federated).await.unwrap();

    // A key that Google does not know, or knows no more.
    let mut service = fake.control("service-account", json!({})).await;
    service["private_key_id"] = json!("other");
    let detail = away(&by_file(&fake, &key_id, dir.write("key.json", service))).await;
    assert!(detail.contains("Google does not accept the token"), "{detail}");

    // A source that has an outage is tried again.
    fake.control("config", json!({"metadata": true})).await;
    let fault = json!({"kind": "status", "path": "/token", "status": 503, "count": 2});
    fake.fails(json!([fault])).await;
    works(&root(&fake, &key_id)).await.unwrap();
    fake.works().await;
    let variable = |name: &str| (name == "GCE_METADATA_HOST").then(|| "127.0.0.1:1".to_owned());
    let source = crate::root::gcp_kms::credentials::find(None, &variable).unwrap();
    let nowhere = Root::with(&config(&fake, &key_id), Tokens::new(source)).unwrap();
    let detail = away(&nowhere).await;
    assert!(detail.contains("neither credentials_file nor GOOGLE_APPLICATION_CREDENTIALS is set"));
    assert!(detail.contains("127.0.0.1:1 can't be reached"), "{detail}");
}

#[test]
fn credentials_are_found_in_the_order_of_googles_libraries() {
    let dir = Dir::new();
    let user = json!({
        "type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r",
    });
    let home = dir.0.path().to_owned();
    std::fs::create_dir_all(home.join(".config/gcloud")).unwrap();
    let find = |file: Option<&str>, variables: &[(&str, &str)]| {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let path = file.map(|name| home.join(name));
        super::super::credentials::find(path.as_deref(), &variable).map(drop)
    };
    let home = home.to_str().unwrap().to_owned();
    assert_eq!(find(None, &[("HOME", &home)]), Ok(()));
    dir.write("good.json", &user);
    dir.write("bad.json", "planted");
    let [good, bad] = ["good.json", "bad.json"].map(|name| format!("{home}/{name}"));
    let variable = |path| find(None, &[("GOOGLE_APPLICATION_CREDENTIALS", path)]);
    assert_eq!(variable(&good), Ok(()));
    let error = variable(&bad).unwrap_err();
    assert!(error.starts_with("GOOGLE_APPLICATION_CREDENTIALS: /"), "{error}");
    assert!(error.contains("bad.json: it is not a file with cred"), "{error}");
    // The settings come first.
    let bad = ("GOOGLE_APPLICATION_CREDENTIALS", &*bad);
    assert_eq!(find(Some("good.json"), &[bad]), Ok(()));
}

#[test]
fn a_file_that_can_not_be_used_is_refused_and_not_repeated() {
    let refused = |json: Value| {
        let json = json.to_string();
        crate::root::gcp_kms::credentials::refusal(json.as_bytes()).unwrap()
    };
    let service = |key: &str| {
        json!({"type": "service_account", "client_email": "a", "private_key_id": "k",
            "private_key": key})
    };
    let mut federation = json!({
        "type": "external_account", "audience": "a", "subject_token_type": "t",
        "token_url": "https://sts.test/", "credential_source": {"file": "/token"},
    });
    for (json, said) in [
        (json!("planted"), "not a file with credentials"),
        (json!({"type": "planted"}), "its type is not one of"),
        (json!({"type": "impersonated_service_account"}), "are not supported; these are: service"),
        (json!({"type": "service_account"}), "it has no client_email"),
        (service("planted"), "it has no private key in PEM"),
        (json!({"type": "authorized_user", "client_id": 5}), "wrong form"),
    ] {
        let error = refused(json.clone());
        assert!(error.contains(said) && !error.contains("planted"), "{json}: {error}");
    }
    for (field, value, said) in [
        ("token_url", json!("http://sts.test/"), "must be https:// URLs"),
        ("service_account_impersonation_url", json!("ftp://x"), "must be https:// URLs"),
        ("credential_source", json!({}), "either file or url"),
        ("credential_source", json!({"environment_id": "aws1"}), "only file and url"),
        ("workforce_pool_user_project", json!("1"), "workforce are not supported"),
    ] {
        let old = federation[field].take();
        federation[field] = value;
        let error = refused(federation.clone());
        assert!(error.contains(said), "{federation}: {error}");
        federation[field] = old;
    }
}
