//! Who may do what: every operation by every kind of identity.

use super::*;
use crate::auth::aws::derive_secret;
use crate::metrics::Operation as Permission;

const ALL: &str = "{ chains = ['*'], operations = ['encrypt', 'decrypt', 'rewrap', \
    'datakey', 'rotate', 'manage', 'read'] }";

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Identity {
    /// A signature, by a secret in a file.
    Secret,
    /// A signature, by a secret that is derived.
    Derived,
    /// A certificate.
    Certificate,
    /// A certificate, and the signature of unknown credentials with a security token.
    CertificateAndSignature,
}

impl Identity {
    const ALL: [Self; 4] =
        [Self::Secret, Self::Derived, Self::Certificate, Self::CertificateAndSignature];

    /// With a client `kpclient` that proves this identity, and may do what `rights` says.
    fn client(self, setup: Setup, rights: &str) -> Setup {
        match self {
            Self::Secret => setup.access_key("KPCLIENT", rights),
            Self::Derived => setup.client("kpclient", "aws_access_key_id = 'KPCLIENT'", rights),
            Self::Certificate | Self::CertificateAndSignature => Setup {
                certificate: &["client.example"],
                ..setup.client("kpclient", "tls_san = 'client.example'", rights)
            },
        }
    }
}

/// Each permission alone, and those of ReEncrypt together.
fn permission_sets() -> impl Iterator<Item = Vec<Permission>> {
    let one = Permission::ALL.map(|permission| vec![permission]);
    one.into_iter().chain([vec![Permission::Decrypt, Permission::Encrypt]])
}

/// Each operation on the chain `orders`, with the permissions that it needs.
fn operations(blob: &Value) -> Vec<(&'static str, Value, Vec<Permission>)> {
    use Permission::{Datakey, Decrypt, Encrypt, Read, Rotate};
    let key = || json!({"KeyId": "alias/orders"});
    let data_key = || json!({"KeyId": ORDERS, "KeySpec": "AES_256"});
    let mut all = vec![
        ("Encrypt", json!({"KeyId": ORDERS, "Plaintext": base64("hello")}), vec![Encrypt]),
        ("Decrypt", json!({"CiphertextBlob": blob}), vec![Decrypt]),
        ("GenerateDataKey", data_key(), vec![Datakey]),
        ("GenerateDataKeyWithoutPlaintext", data_key(), vec![Datakey]),
        (
            "ReEncrypt",
            json!({"CiphertextBlob": blob, "DestinationKeyId": ORDERS}),
            vec![Decrypt, Encrypt],
        ),
        ("GenerateRandom", json!({"NumberOfBytes": 16}), vec![Datakey]),
        ("DescribeKey", key(), vec![Read]),
        ("ListKeys", json!({}), vec![Read]),
        ("ListAliases", key(), vec![Read]),
        ("GetKeyRotationStatus", key(), vec![Read]),
        ("ListKeyRotations", key(), vec![Read]),
        ("ListResourceTags", key(), vec![Read]),
        ("ListGrants", key(), vec![Read]),
        ("ListKeyPolicies", key(), vec![Read]),
        ("GetKeyPolicy", key(), vec![Read]),
        ("RotateKeyOnDemand", key(), vec![Rotate]),
    ];
    let served: Vec<_> = all.iter().map(|(name, ..)| *name).collect();
    assert_eq!(served, operation::Served::ALL.map(operation::Served::name), "each is in the table");
    all.extend(operation::OTHERS.map(|(name, permission, _)| (name, key(), vec![permission])));
    all
}

/// What a client with these permissions gets.
fn expected(name: &str, needed: &[Permission], given: &[Permission]) -> &'static str {
    match needed.iter().all(|permission| given.contains(permission)) {
        false => "AccessDeniedException",
        true if operation::OTHERS.iter().any(|(other, ..)| *other == name) => {
            "UnsupportedOperationException"
        }
        true => "",
    }
}

fn allow(chain: &str, permissions: &[Permission]) -> String {
    let words: Vec<_> = permissions.iter().map(|it| format!("'{}'", it.as_str())).collect();
    format!("{{ chains = ['{chain}'], operations = [{}] }}", words.join(", "))
}

/// Sends a call as the client `id`.
async fn call(server: &Server, identity: Identity, id: &str, name: &str, body: &Value) -> Answer {
    let request = server.request(name, body);
    let secret = match identity {
        Identity::Secret => SECRET.to_owned(),
        Identity::Derived => derive_secret(&[7; 32], id).to_string(),
        Identity::Certificate => return server.send(request).await,
        Identity::CertificateAndSignature => {
            let request = request.set("x-amz-security-token", "of-a-role");
            return server.send(request.signed(ANYONE)).await;
        }
    };
    server.send(request.signed(Credentials { access_key_id: id, secret: &secret })).await
}

#[tokio::test]
async fn every_operation_by_every_kind_of_identity() {
    for given in permission_sets() {
        for identity in Identity::ALL {
            let setup = Setup::new().access_key("KPADMIN", ALL);
            let server = identity.client(setup, &allow("orders", &given)).start().await;
            // A client's certificate counts, so the blob is made through the service.
            let blob = json!(base64(made(&server, "orders").await));
            for (name, body, needed) in operations(&blob) {
                let answer = call(&server, identity, "KPCLIENT", name, &body).await;
                let what = format!("{name} by {identity:?} with {given:?}: {answer:?}");
                assert_eq!(answer.code(), expected(name, &needed, &given), "{what}");
                if answer.code() == "AccessDeniedException" {
                    let (message, action) = (answer.message(), format!("kms:{name} on resource: "));
                    assert!(message.contains("User: kpclient is"), "{what}");
                    assert!(message.contains(&action), "{what}");
                    assert!(message.ends_with(ORDERS) || message.ends_with('*'), "{what}");
                }
            }
            let refusals =
                r#"kms_proxy_client_refusals_total{client="kpclient",reason="forbidden"}"#;
            assert!(server.metric(refusals) > 10);
        }
    }
}

/// A forwarded call needs the same permission, for all chains.
#[tokio::test]
async fn every_forwarded_operation_by_every_kind_of_identity() {
    let old = kms::blob(UNMAPPED, &json!({}), b"old");
    for given in permission_sets() {
        for identity in Identity::ALL {
            for chain in ["*", "orders"] {
                let setup = Setup::new().set("forward = 'all'");
                let server = identity.client(setup, &allow(chain, &given)).start().await;
                for (name, mut body, needed) in operations(&json!(old)) {
                    // These are about no key, and served here.
                    if ["GenerateRandom", "ListKeys"].contains(&name) {
                        continue;
                    }
                    let member = if name == "ReEncrypt" { "DestinationKeyId" } else { "KeyId" };
                    body[member] = json!(UNMAPPED);
                    let may = chain == "*" && needed.iter().all(|it| given.contains(it));
                    let calls = server.kms.count();
                    let answer = call(&server, identity, "KPCLIENT", name, &body).await;
                    let what = format!("{name} by {identity:?} with {given:?} on {chain}");
                    let expected = if may { "" } else { "AccessDeniedException" };
                    assert_eq!(answer.code(), expected, "{what}: {answer:?}");
                    assert_eq!(server.kms.count() - calls, usize::from(may), "{what}");
                }
            }
        }
    }
}

/// A blob of `hello` with this chain.
async fn made(server: &Server, chain: &str) -> Vec<u8> {
    let made = server.service.encrypt(Some(chain), b"hello".into(), b"kms-proxy aws context v1");
    let chain = crate::ChainName::new(chain).unwrap();
    blob::write(&chain, made.await.unwrap().envelope.as_slice())
}

#[tokio::test]
async fn without_auth_everyone_may_do_everything() {
    let server = Setup::new().start().await;
    let blob = json!(base64(made(&server, "orders").await));
    for (name, body, needed) in operations(&blob) {
        let unsigned = server.send(server.request(name, &body)).await;
        assert_eq!(unsigned.code(), expected(name, &needed, &needed), "{name}");
        let request = server.request(name, &body).set("authorization", "Bearer x");
        assert_eq!(server.send(request).await.code(), expected(name, &needed, &needed), "{name}");
    }
}

#[tokio::test]
async fn a_caller_without_credentials_of_a_client_may_do_nothing() {
    let token = "token_sha256 = '3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0'";
    let setup = Setup::new().access_key("KPADMIN", ALL).client("bearer", token, ALL);
    let setup = Setup { certificate: &["unknown.example"], ..setup };
    let server = setup.client("other", "tls_san = 'other.example'", ALL).start().await;
    let blob = json!(base64(made(&server, "orders").await));
    for (name, body, _) in operations(&blob) {
        let request = server.request(name, &body);
        for (request, code) in [
            (request.clone(), "MissingAuthenticationToken"),
            (request.clone().set("authorization", "Bearer token"), "IncompleteSignature"),
            (request.clone().signed(ANYONE), "UnrecognizedClientException"),
        ] {
            assert_eq!(server.send(request).await.code(), code, "{name}");
        }
        let admin = Credentials { access_key_id: "KPADMIN", secret: SECRET };
        assert_ne!(server.send(request.signed(admin)).await.code(), "AccessDeniedException");
    }
    let failures = |reason: &str| {
        server.metric(&format!("kms_proxy_auth_failures_total{{reason=\"{reason}\"}}"))
    };
    let all = operation::Served::ALL.len() + operation::OTHERS.len();
    let counted = ["no_credentials", "malformed", "unknown_token"].map(failures);
    assert_eq!(counted, [all as u64; 3]);
}

#[tokio::test]
async fn a_client_sees_and_uses_its_permitted_chains_only() {
    let setup = Setup::new().access_key(
        "KPBILLS",
        "{ chains = ['bills'], operations = ['encrypt', 'decrypt', 'datakey', 'read', 'rotate'] }",
    );
    let server = setup.start().await;
    let blob = json!(base64(made(&server, "orders").await));
    for (name, body, _) in operations(&blob) {
        let code = server.call_as("KPBILLS", name, body).await.code();
        // These are about no key.
        let of_no_key = ["GenerateRandom", "ListKeys"].contains(&name);
        assert_eq!(code, if of_no_key { "" } else { "AccessDeniedException" }, "{name}");
    }
    // It makes no difference whether a chain exists.
    let body = json!({"KeyId": "none", "Plaintext": base64("hello")});
    assert_eq!(server.call_as("KPBILLS", "Encrypt", body).await.code(), "AccessDeniedException");
    // Both sides of ReEncrypt are checked.
    let own = json!(base64(made(&server, "bills").await));
    for (blob, destination, code) in [
        (&own, BILLS, ""),
        (&own, ORDERS, "AccessDeniedException"),
        (&blob, BILLS, "AccessDeniedException"),
    ] {
        let body = json!({"CiphertextBlob": blob, "DestinationKeyId": destination});
        let found = server.call_as("KPBILLS", "ReEncrypt", body).await.code();
        assert_eq!(found, code, "to {destination}");
    }
    let keys = server.call_as("KPBILLS", "ListKeys", json!({})).await.body;
    assert_eq!(keys["Keys"], json!([{"KeyId": "mrk-b1", "KeyArn": BILLS}]));
    let aliases = server.call_as("KPBILLS", "ListAliases", json!({})).await.body;
    assert_eq!(aliases["Aliases"], json!([]));
}

#[tokio::test]
async fn requests_of_a_client_beyond_its_limit_are_throttled() {
    let setup = Setup::new().client(
        "slow",
        "aws_access_key_id = 'KPSLOW'\naws_secret_access_key_file = 'SECRET'\nmax_in_flight = 1",
        ALL,
    );
    let server = Arc::new(setup.start().await);
    server.kms.open(false);
    let body = json!({"CiphertextBlob": kms::blob(ORDERS, &json!({}), b"hello")});
    let first = {
        let (server, body) = (Arc::clone(&server), body.clone());
        tokio::spawn(async move { server.call_as("KPSLOW", "Decrypt", body).await.code() })
    };
    while server.kms.count() == 0 {
        tokio::task::yield_now().await;
    }
    let answer = server.call_as("KPSLOW", "Decrypt", body).await;
    assert_eq!((answer.status, &*answer.code()), (400, "ThrottlingException"));
    server.kms.open(true);
    assert_eq!(first.await.unwrap(), "");
}

#[tokio::test]
async fn a_client_that_is_removed_is_refused_immediately() {
    let server = Setup::new().access_key("KPADMIN", ALL).access_key("KPOTHER", ALL).start().await;
    for id in ["KPADMIN", "KPOTHER"] {
        assert_eq!(server.call_as(id, "ListKeys", json!({})).await.code(), "");
    }
    let mut config = server.auth_config.clone();
    config.clients.retain(|client| client.name != "kpother");
    server.auth.as_ref().unwrap().replace(config).await;
    assert_eq!(server.call_as("KPADMIN", "ListKeys", json!({})).await.code(), "");
    let code = server.call_as("KPOTHER", "ListKeys", json!({})).await.code();
    assert_eq!(code, "UnrecognizedClientException");
}
