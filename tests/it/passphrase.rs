//! The service with roots of kind `passphrase`, from the old one to a new one.

use serde_json::json;

use crate::support::Setup;

/// The settings of the root at `index`, as cheap as they may be.
fn root(setup: Setup, index: usize, name: &str, passphrase: &str) -> Setup {
    let set =
        |setup: Setup, key: &str, value: &str| setup.set(&format!("ROOT__{index}__{key}"), value);
    let settings = [
        ("KIND", "passphrase"),
        ("NAME", name),
        ("PASSPHRASE", passphrase),
        ("MEMORY", "19MiB"),
        ("PASSES", "2"),
    ];
    settings.into_iter().fold(setup, |setup, (key, value)| set(setup, key, value))
}

#[tokio::test]
async fn a_passphrase_is_replaced_by_a_second_root_beside_the_first() {
    let setup = Setup::new();
    let old = root(setup.clone(), 0, "old", "correct horse");
    let service = old.start().await;
    let first = service.encrypt("default", "aGVsbG8=").await;
    service.stop().await;

    let both = root(old, 1, "new", "battery staple");
    let service = both.start().await;
    let opened = service.ok("/v1/decrypt", json!({"ciphertext": first.ciphertext})).await;
    assert_eq!(opened["plaintext"], "aGVsbG8=");
    service.ok("/v1/rotate", json!({})).await;
    let second = service.encrypt("default", "aGVsbG8=").await;
    let log = service.stop().await;
    assert!(!log.contains("horse") && !log.contains("staple"), "{log}");

    // A KEK of that time opens by the new passphrase alone, one from before does not.
    let service = root(setup, 0, "new", "battery staple").start().await;
    let opened = service.ok("/v1/decrypt", json!({"ciphertext": second.ciphertext})).await;
    assert_eq!(opened["plaintext"], "aGVsbG8=");
    let (status, answer) =
        service.post("/v1/decrypt", json!({"ciphertext": first.ciphertext})).await;
    assert_eq!((status.as_u16(), &answer["code"]), (503, &json!("root_unavailable")));
}
