//! What an operator learns from the log about a caller or a key that is refused.

use super::*;

/// The lines of the log with this message, as JSON.
fn lines(log: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

const NOT_RECOGNISED: &str = "a caller was not recognised";

#[tokio::test]
async fn keys_that_are_skipped_are_named_once_with_the_reason() {
    let mut world = World::new();
    let identity = world.jwt_identity("me");
    world.client("orders", &identity, "orders-*", ALL);
    let file = world.setup.file("jwks.json");
    let write = |keys: &[Value]| {
        let new = file.with_extension("new");
        std::fs::write(&new, json!({ "keys": keys }).to_string()).unwrap();
        std::fs::rename(new, &file).unwrap();
    };
    let changed = |name: &str, value: Value| {
        let mut jwk = world.key.public();
        jwk[name] = value;
        jwk
    };
    let numeric = changed("kid", json!(7));
    let svid = changed("use", json!("jwt-svid"));
    write(&[world.key.public(), numeric.clone(), svid.clone()]);
    let service = world.start().await;
    service.logged("jwt-svid").await;
    // What is new is named; what was named before is not named again.
    let other = changed("crv", json!("P-521"));
    write(&[world.key.public(), numeric, svid, other]);
    let log = service.logged("P-521").await;
    let named = lines(&log, "a key of an issuer is not used");
    let details: Vec<_> = named.iter().map(|line| line["detail"].as_str().unwrap()).collect();
    assert_eq!(
        details,
        [
            "key 2 with kid 7: its `kid` is not a string",
            "key 3 with kid \"one\": its `use` is \"jwt-svid\", and only \"sig\" is for signatures",
            "key 4 with kid \"one\": the curve \"P-521\" is not supported",
        ],
        "{log}"
    );
    assert!(named.iter().all(|line| line["level"] == "WARN"), "{log}");
}

#[tokio::test]
async fn a_token_that_lacks_a_claim_is_refused_with_its_name_in_the_log() {
    let mut world = World::new();
    let identity = world.jwt_identity("me");
    world.client("orders", &identity, "orders-*", ALL);
    let service = world.start().await;
    let http = world.http(None, Version::HTTP_11);
    for claim in ["iss", "sub", "aud", "exp"] {
        let mut claims = jwt::claims(ISSUER, AUDIENCE, "me");
        claims.as_object_mut().unwrap().remove(claim);
        let request = http.get(format!("{}/v1/chains", service.url()));
        let response = request.bearer_auth(world.key.sign(&claims)).send().await.unwrap();
        assert_eq!(response.status(), 401);
        let log = service.logged(&format!("no claim `{claim}`")).await;
        let line = lines(&log, NOT_RECOGNISED).pop().unwrap();
        assert_eq!(line["reason"], "malformed");
        assert_eq!(line["detail"], format!("the JWT has no claim `{claim}`"));
    }
}

#[tokio::test]
async fn a_certificate_without_a_known_name_is_refused_with_its_names_in_the_log() {
    let mut world = World::new();
    world.client("orders", "tls_san = ['10.0.0.1', 'ops@example.com']", "orders-*", ALL);
    let service = world.start().await;
    let call = async |names: &[&str]| {
        let http = world.http(Some(&world.pki.client(names)), Version::HTTP_11);
        let response = http.get(format!("{}/v1/chains", service.url())).send().await.unwrap();
        response.status().as_u16()
    };
    assert_eq!(call(&["10.0.0.1"]).await, 200);
    assert_eq!(call(&["ops@example.com"]).await, 200);
    assert_eq!(call(&["10.0.0.2", "App.example", "dev@example.com", "spiffe://a/B"]).await, 401);
    let log = service.logged("10.0.0.2").await;
    let line = lines(&log, NOT_RECOGNISED).pop().unwrap();
    assert_eq!(line["reason"], "unknown_certificate");
    let shown = "DNS:app.example, URI:spiffe://a/B, IP:10.0.0.2, email:dev@example.com";
    assert_eq!(line["names"], shown);
    assert_eq!(call(&[]).await, 401);
    service.logged("no DNS name, URI, IP address or e-mail address").await;
}

#[tokio::test]
async fn a_certificate_that_is_not_for_clients_is_refused() {
    let mut world = World::new();
    world.client("orders", "tls_san = 'a.example'", "orders-*", ALL);
    let service = world.start().await;
    let url = format!("{}/v1/chains", service.url());
    let good = world.http(Some(&world.pki.client(&["a.example"])), Version::HTTP_11);
    assert_eq!(good.get(&url).send().await.unwrap().status(), 200);
    for identity in [world.pki.client_for_any_use(&["a.example"]), world.pki.server(&["a.example"])]
    {
        let http = world.http(Some(&identity), Version::HTTP_11);
        assert!(http.get(&url).send().await.is_err());
    }
    let refused = async || {
        let log = service.logged("\"reason\":\"certificate\"").await;
        (lines(&log, NOT_RECOGNISED).len() == 2).then_some(log)
    };
    let log = until("both refusals", refused).await;
    let lines = lines(&log, NOT_RECOGNISED);
    assert!(lines.iter().all(|line| line["reason"] == "certificate"), "{log}");
}
