//! The service with a root in a real OpenBao server, which is sealed and unsealed under it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Bao, Service, Setup, until};

/// A service under the key of `bao`, by AppRole.
async fn setup(bao: &Bao) -> Setup {
    let (role_id, secret_id) = bao.role("proxy", json!({"token_policies": "kek"})).await;
    Setup::new()
        .set("ROOT__0__KIND", "vault-transit")
        .set("ROOT__0__NAME", "bao")
        .set("ROOT__0__ADDRESS", bao.address())
        .set("ROOT__0__KEY", "kek")
        .set("ROOT__0__ROLE_ID", role_id)
        .set("ROOT__0__SECRET_ID", secret_id)
}

/// What `/readyz` says of the root: its status, and why.
async fn root(service: &Service) -> (String, String) {
    let (status, body) = service.get("/readyz").await;
    assert_eq!(status, 200, "{body}");
    let checks = body["checks"].as_array().unwrap();
    let root = checks.iter().find(|check| check["name"] == "root:bao").unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&root["status"]), text(&root["detail"]))
}

#[tokio::test]
async fn a_sealed_server_stops_no_kek_in_memory_and_is_used_again_when_it_is_unsealed() {
    let bao = Bao::start().await;
    let setup = setup(&bao).await;
    let service = setup.start().await;
    let before = service.encrypt("default", "aGVsbG8=").await;
    assert_eq!(root(&service).await.0, "ok");
    let (_, status) = service.get("/status.json").await;
    assert!(status["roots"][0]["token_expires_in_seconds"].as_u64() > Some(60), "{status}");

    bao.seal().await;
    // The first use of a new chain needs the root; its task tries again until the root is back.
    let (status, answer) = service.send(Method::PUT, "/v1/chains/later", json!({})).await;
    assert!(status.is_success(), "{status} {answer}");
    let (status, _) = service.try_encrypt("later", "aGVsbG8=").await.unwrap().unwrap_err();
    assert_eq!(status, 503);
    until("a root that is away", async || {
        let (status, detail) = root(&service).await;
        (status == "degraded" && detail.contains("it is sealed")).then_some(())
    })
    .await;
    let during = service.encrypt("default", "aGVsbG8=").await;
    let opened = service.ok("/v1/decrypt", json!({"ciphertext": before.ciphertext})).await;
    assert_eq!(opened["plaintext"], "aGVsbG8=");

    bao.unseal().await;
    until("a root that is well", async || (root(&service).await.0 == "ok").then_some(())).await;
    until("an encrypt", async || service.try_encrypt("later", "aGVsbG8=").await?.ok()).await;
    let log = service.stop().await;
    assert!(!log.contains(bao.token()));

    // What is stored opens in another process.
    let service = setup.start().await;
    for sealed in [before, during] {
        let opened = service.ok("/v1/decrypt", json!({"ciphertext": sealed.ciphertext})).await;
        assert_eq!(opened["plaintext"], "aGVsbG8=");
    }
    assert!(service.metrics().await.contains(r#"kind="vault-transit""#));
}
