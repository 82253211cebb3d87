//! How callers are identified: by certificates, tokens and JWTs of every kind, and by rules that
//! change.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64_simd::URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::Algorithm;
use prometheus::Registry;
use serde_json::{Value, json};

use super::*;
use crate::clock::ManualClock;
use crate::metrics::Operation;
use crate::service::Kind;
use crate::tls::tests::pki;

#[path = "../../tests/it/support/jwt.rs"]
#[allow(dead_code, reason = "others need the rest of it")]
mod jwt;
mod key_sets;

use jwt::{Key, claims_at, hmac_of, jwks, message};

const ISSUER: &str = "https://issuer.example";

/// The time at which a ManualClock starts.
const NOW: u64 = 1_767_225_600;

struct World {
    auth: Arc<Auth>,
    clock: Arc<ManualClock>,
}

/// Clients as a configuration names them.
fn clients(text: &str) -> Config {
    #[derive(serde::Deserialize)]
    struct File {
        client: Vec<ClientConfig>,
    }
    let File { client } = toml::from_str(text).unwrap();
    let config = Config { mode: Mode::Required, clients: client, aws_secret_key_file: None };
    config.check().unwrap();
    config
}

async fn world(config: Config) -> World {
    let clock = Arc::new(ManualClock::new());
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let auth = Auth::start(config, Arc::clone(&clock) as _, metrics).await.unwrap();
    World { auth, clock }
}

/// A client `name` whose JWTs have this subject, of the keys in `file`.
fn jwt_client(name: &str, subject: &str, file: &Path) -> String {
    format!(
        "[[client]]\nname = '{name}'\nallow = [{{ chains = ['*'], operations = ['read'] }}]\n\
         jwt = {{ issuer = '{ISSUER}', audience = 'kms', subject = '{subject}', jwks_file = '{}' \
         }}\n",
        file.display()
    )
}

impl World {
    async fn token(&self, token: &str) -> Result<String, Refusal> {
        let shown = Shown { peer: None, token: Token::Bearer(token) };
        self.auth.identify(shown).await.map(|it| it.client.name().to_owned())
    }

    async fn peer(&self, dns: &[&str], uris: &[&str]) -> Result<String, Refusal> {
        let texts = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect();
        self.certificate(&Peer { dns: texts(dns), uris: texts(uris), ..Peer::default() }).await
    }

    async fn certificate(&self, peer: &Peer) -> Result<String, Refusal> {
        let shown = Shown { peer: Some(peer), token: Token::Missing };
        self.auth.identify(shown).await.map(|it| it.client.name().to_owned())
    }
}

#[tokio::test]
async fn a_certificate_is_the_client_of_one_of_its_names() {
    let allow = "allow = [{ chains = ['*'], operations = ['read'] }]\n";
    let world = world(clients(&format!(
        "[[client]]\nname = 'a'\ntls_san = ['A.example', 'spiffe://prod/a']\n{allow}\
         [[client]]\nname = 'b'\ntls_san = 'b.example'\n{allow}"
    )))
    .await;
    let unknown = Err(Refusal::UnknownCertificate);
    for (dns, uris, found) in [
        (&["a.example"][..], &[][..], Ok("a".to_owned())),
        (&["A.EXAMPLE"], &[], Ok("a".to_owned())),
        (&["x", "b.example"], &[], Ok("b".to_owned())),
        (&[], &["spiffe://prod/a"], Ok("a".to_owned())),
        (&["a.example"], &["spiffe://prod/a"], Ok("a".to_owned())),
        (&["a.example", "b.example"], &[], Err(Refusal::Ambiguous)),
        (&[], &[], unknown.clone()),
        (&["*.example"], &[], unknown.clone()),
        (&["x.a.example"], &[], unknown.clone()),
        // A name matches names of the same kind only.
        (&["spiffe://prod/a"], &["a.example"], unknown.clone()),
        (&[], &["spiffe://prod/A"], unknown.clone()),
        (&[], &["spiffe://prod/a/b"], unknown),
    ] {
        assert_eq!(world.peer(dns, uris).await, found, "{dns:?} {uris:?}");
    }
}

#[tokio::test]
async fn a_certificate_is_known_by_its_addresses_too() {
    let allow = "allow = [{ chains = ['*'], operations = ['read'] }]\n";
    let world = world(clients(&format!(
        "[[client]]\nname = 'a'\ntls_san = ['10.0.0.1', '2001:DB8::1']\n{allow}\
         [[client]]\nname = 'b'\ntls_san = 'Ops@Example.com'\n{allow}"
    )))
    .await;
    let ip = |text: &str| Peer { ips: vec![text.parse().unwrap()], ..Peer::default() };
    let email = |text: &str| Peer { emails: vec![text.to_owned()], ..Peer::default() };
    let unknown = Err(Refusal::UnknownCertificate);
    for (peer, found) in [
        (ip("10.0.0.1"), Ok("a".to_owned())),
        (ip("::ffff:10.0.0.1"), Ok("a".to_owned())),
        (ip("2001:db8:0::1"), Ok("a".to_owned())),
        (ip("10.0.0.2"), unknown.clone()),
        (email("Ops@EXAMPLE.com"), Ok("b".to_owned())),
        (email("ops@example.com"), unknown.clone()),
        (email("Ops"), unknown.clone()),
        // A name matches names of the same kind only.
        (Peer { dns: vec!["10.0.0.1".to_owned()], ..Peer::default() }, unknown.clone()),
        (Peer { uris: vec!["Ops@example.com".to_owned()], ..Peer::default() }, unknown),
    ] {
        assert_eq!(world.certificate(&peer).await, found, "{peer:?}");
    }
}

#[tokio::test]
async fn a_token_is_the_client_of_its_digest_and_counts_before_a_certificate() {
    let (token, digest) = token::generate().unwrap();
    let (next, next_digest) = token::generate().unwrap();
    let world = world(clients(&format!(
        "[[client]]\nname = 'a'\ntoken_sha256 = ['{digest}', '{next_digest}']\n\
         allow = [{{ chains = ['*'], operations = ['read'] }}]\n\
         [[client]]\nname = 'b'\ntls_san = 'b'\nallow = [{{ chains = ['*'], operations = ['read'] \
         }}]\n"
    )))
    .await;
    assert_eq!(world.token(&token).await.unwrap(), "a");
    assert_eq!(
        world.token(&next).await.unwrap(),
        "a",
        "both are accepted while one replaces the other"
    );
    let digest = digest.to_string();
    for bad in
        ["", "x", &token[..46], &format!("{}x", *token), &digest, &token.to_uppercase(), "a.b.c"]
    {
        assert_eq!(world.token(bad).await, Err(Refusal::UnknownToken), "{bad}");
    }
    assert_eq!(world.token(&"x".repeat((16 << 10) + 1)).await, Err(Refusal::TooLong));

    let peer = Peer { dns: vec!["b".to_owned()], ..Peer::default() };
    let shown = |token| Shown { peer: Some(&peer), token };
    let both = world.auth.identify(shown(Token::Bearer(&token))).await.unwrap();
    assert_eq!((both.client.name(), both.by), ("a", Credential::Token));
    for bad in [Token::Bearer("x"), Token::Malformed] {
        assert!(world.auth.identify(shown(bad)).await.is_err());
    }
    let by_name = world.auth.identify(shown(Token::Missing)).await.unwrap();
    assert_eq!((by_name.client.name(), by_name.by), ("b", Credential::Certificate));
    let nothing = Shown { peer: None, token: Token::Missing };
    assert_eq!(world.auth.identify(nothing).await.unwrap_err(), Refusal::Nothing);
}

#[tokio::test]
async fn every_accepted_algorithm_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks.json");
    let all = [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ];
    let keys = all.map(|algorithm| Key::new(&format!("{algorithm:?}"), algorithm));
    std::fs::write(&file, jwks(&keys.each_ref())).unwrap();
    let world = world(clients(&jwt_client("a", "me", &file))).await;
    for key in &keys {
        let token = key.sign(&claims_at(NOW, ISSUER, "kms", "me"));
        assert_eq!(world.token(&token).await.unwrap(), "a", "{:?}", key.algorithm);
    }
}

/// `claims` with one of them changed, or without it.
fn with(name: &str, value: Option<Value>) -> Value {
    let mut claims = claims_at(NOW, ISSUER, "kms", "me");
    match value {
        Some(value) => claims[name] = value,
        None => drop(claims.as_object_mut().unwrap().remove(name)),
    }
    claims
}

#[tokio::test]
async fn a_jwt_that_is_wrong_in_any_way_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks.json");
    let rsa = Key::new("rsa", Algorithm::RS256);
    let (ec, stranger) = (Key::new("ec", Algorithm::ES256), Key::new("rsa", Algorithm::RS256));
    std::fs::write(&file, jwks(&[&rsa, &ec])).unwrap();
    let world = world(clients(&jwt_client("a", "me", &file))).await;
    let good = claims_at(NOW, ISSUER, "kms", "me");
    let header = |alg: &str| json!({"alg": alg, "kid": "rsa"});
    let signed = |name: &str, value| rsa.sign(&with(name, value));
    let modulus = rsa.public()["n"].as_str().unwrap().to_owned();
    let public = BASE64.decode_to_vec(&modulus).unwrap();
    let token = rsa.sign(&good);
    let (body, signature) = token.rsplit_once('.').unwrap();
    let other = rsa.sign(&with("jti", Some(json!("x"))));
    let (other_body, _) = other.rsplit_once('.').unwrap();
    let cases = [
        // No signature, or one that does not match.
        (format!("{}.", message(&header("none"), &good)), Refusal::Algorithm),
        (format!("{}.", message(&header("None"), &good)), Refusal::Algorithm),
        (format!("{body}."), Refusal::Signature),
        (format!("{body}.AAAA"), Refusal::Signature),
        (format!("{body}.{}", &signature[..signature.len() - 4]), Refusal::Signature),
        (format!("{other_body}.{signature}"), Refusal::Signature),
        (stranger.sign(&good), Refusal::Signature),
        // A public key is not a shared secret.
        (hmac_of(&public, &header("HS256"), &good), Refusal::Algorithm),
        (hmac_of(modulus.as_bytes(), &header("HS256"), &good), Refusal::Algorithm),
        (hmac_of(&public, &header("RS256"), &good), Refusal::Signature),
        // A key verifies its own algorithm only.
        (rsa.sign_as(&header("PS256"), &good), Refusal::UnknownKey),
        (rsa.sign_as(&header("ES256"), &good), Refusal::UnknownKey),
        (ec.sign_as(&json!({"alg": "ES256", "kid": "rsa"}), &good), Refusal::UnknownKey),
        (rsa.sign_as(&header("rs256"), &good), Refusal::Algorithm),
        (rsa.sign_as(&json!({"alg": "RS256", "kid": "other"}), &good), Refusal::UnknownKey),
        (rsa.sign_as(&json!({"kid": "rsa"}), &good), Refusal::Malformed),
        (
            rsa.sign_as(&json!({"alg": "RS256", "kid": "rsa", "crit": ["b64"]}), &good),
            Refusal::Malformed,
        ),
        (
            rsa.sign_as(&json!({"alg": "RS256", "kid": "rsa", "crit": null}), &good),
            Refusal::Malformed,
        ),
        (
            rsa.sign_as(&json!({"alg": "RS256", "kid": "rsa", "crit": []}), &good),
            Refusal::Malformed,
        ),
        (rsa.sign_as(&json!({"alg": "RS256", "kid": null}), &good), Refusal::Malformed),
        (rsa.sign_as(&json!({"alg": "RS256", "kid": 7}), &good), Refusal::Malformed),
        // An array with the values of the members.
        (rsa.sign_as(&json!(["RS256", "rsa"]), &good), Refusal::Malformed),
        (rsa.sign_as(&json!(["RS256", "rsa", null]), &good), Refusal::Malformed),
        (rsa.sign(&json!([ISSUER, "me", "kms", NOW + 60])), Refusal::Malformed),
        (rsa.sign(&json!([ISSUER, "me", "kms", NOW + 60, NOW])), Refusal::Malformed),
        // Claims.
        (signed("exp", Some(json!(NOW - 31))), Refusal::Expired),
        (signed("exp", Some(json!(0))), Refusal::Expired),
        (signed("exp", None), Refusal::MissingClaim("exp")),
        (signed("exp", Some(json!("never"))), Refusal::Malformed),
        (signed("exp", Some(json!(-1))), Refusal::Malformed),
        (signed("exp", Some(json!(1e300))), Refusal::Malformed),
        (signed("nbf", Some(json!(NOW + 31))), Refusal::NotYetValid),
        (signed("nbf", Some(json!("x"))), Refusal::Malformed),
        (signed("nbf", Some(Value::Null)), Refusal::Malformed),
        (signed("exp", Some(Value::Null)), Refusal::Malformed),
        (signed("iss", Some(json!("https://issuer.example/"))), Refusal::Issuer),
        (signed("iss", None), Refusal::MissingClaim("iss")),
        (signed("aud", Some(json!("other"))), Refusal::Audience),
        (signed("aud", Some(json!([]))), Refusal::Audience),
        (signed("aud", Some(json!("kms2"))), Refusal::Audience),
        (signed("aud", None), Refusal::MissingClaim("aud")),
        (signed("aud", Some(json!(7))), Refusal::Malformed),
        (signed("sub", Some(json!("you"))), Refusal::Subject),
        (signed("sub", Some(json!("ME"))), Refusal::Subject),
        (signed("sub", None), Refusal::MissingClaim("sub")),
        (rsa.sign(&json!([1])), Refusal::Malformed),
        // No token at all.
        (format!("{token}="), Refusal::Signature),
        (format!("x{token}"), Refusal::Malformed),
        ("..".to_owned(), Refusal::Malformed),
        (format!("{token}.x"), Refusal::UnknownToken),
        (format!("{}.{}", "A".repeat(16 << 10), token), Refusal::TooLong),
    ];
    for (token, refusal) in cases {
        assert_eq!(world.token(&token).await, Err(refusal), "{token}");
    }
    for good in [
        token,
        signed("exp", Some(json!(NOW - 29))),
        signed("exp", Some(json!(NOW as f64 + 0.5))),
        signed("nbf", Some(json!(NOW + 29))),
        signed("nbf", None),
        signed("aud", Some(json!("kms"))),
        rsa.sign_as(&json!({"alg": "RS256"}), &claims_at(NOW, ISSUER, "kms", "me")),
    ] {
        assert_eq!(world.token(&good).await.unwrap(), "a", "{good}");
    }
}

/// Text with `bad` in place of each `?`.
fn with_bytes(json: &Value, bad: &[u8]) -> Vec<u8> {
    let text = json.to_string();
    assert!(text.contains('?'), "{text}");
    text.split('?').map(str::as_bytes).collect::<Vec<_>>().join(bad)
}

#[tokio::test]
async fn a_signed_jwt_that_is_not_utf_8_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks.json");
    let key = Key::new("rsa", Algorithm::RS256);
    std::fs::write(&file, jwks(&[&key])).unwrap();
    let world = world(clients(&jwt_client("a", "me", &file))).await;
    let header = |more: &str| json!({"alg": "RS256", "kid": "rsa", "typ": more});
    let (ignored, subject) = (with("jti", Some(json!("?"))), with("sub", Some(json!("me?"))));
    let named = with("x?", Some(json!(1)));
    let good = with("jti", None).to_string();
    // Latin-1, a byte that UTF-8 never has, an overlong '/', a surrogate, and a cut character.
    for bad in [&b"\xe9"[..], b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x82"] {
        for claims in [&ignored, &subject, &named] {
            let head = header("JWT").to_string();
            let token = key.sign_bytes(head.as_bytes(), &with_bytes(claims, bad));
            assert_eq!(world.token(&token).await, Err(Refusal::Malformed), "{claims} {bad:?}");
        }
        let token = key.sign_bytes(&with_bytes(&header("?"), bad), good.as_bytes());
        assert_eq!(world.token(&token).await, Err(Refusal::Malformed), "header {bad:?}");
    }
    // The same members in UTF-8.
    let head = with_bytes(&header("?"), "\u{e9}".as_bytes());
    let token = key.sign_bytes(&head, &with_bytes(&ignored, "\u{e9}".as_bytes()));
    assert_eq!(world.token(&token).await.unwrap(), "a");
}

#[tokio::test]
async fn a_cached_jwt_is_accepted_until_it_expires() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks.json");
    let key = Key::new("one", Algorithm::ES256);
    std::fs::write(&file, jwks(&[&key])).unwrap();
    let world = world(clients(&jwt_client("a", "me", &file))).await;
    let mut claims = claims_at(NOW, ISSUER, "kms", "me");
    claims["exp"] = json!(NOW + 20);
    let token = key.sign(&claims);
    for _ in 0..2 {
        assert_eq!(world.token(&token).await.unwrap(), "a");
    }
    world.clock.advance(Duration::from_secs(49));
    assert!(world.token(&token).await.is_ok());
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(world.token(&token).await, Err(Refusal::Expired));
}

/// Waits for what a background task does.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..6_000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen: {what}");
}

#[tokio::test(start_paused = true)]
async fn keys_are_added_and_removed_with_their_file_and_a_broken_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks.json");
    let (old, new) = (Key::new("old", Algorithm::ES256), Key::new("new", Algorithm::ES256));
    std::fs::write(&file, jwks(&[&old])).unwrap();
    let world = world(clients(&jwt_client("a", "me", &file))).await;
    let sign = |key: &Key| key.sign(&claims_at(NOW, ISSUER, "kms", "me"));
    let (by_old, by_new) = (sign(&old), sign(&new));
    assert!(world.token(&by_old).await.is_ok());
    assert_eq!(world.token(&by_new).await, Err(Refusal::UnknownKey));

    std::fs::write(&file, jwks(&[&old, &new])).unwrap();
    until("the new key", async || world.token(&by_new).await.is_ok()).await;
    assert!(world.token(&by_old).await.is_ok());

    std::fs::write(&file, jwks(&[&new])).unwrap();
    until("the end of the old key, also of what it verified", async || {
        world.token(&by_old).await == Err(Refusal::UnknownKey)
    })
    .await;

    for broken in ["{", "{\"keys\": []}", "[]"] {
        std::fs::write(&file, broken).unwrap();
        until("a complaint", async || !world.auth.checks().is_empty()).await;
        assert!(world.token(&by_new).await.is_ok(), "{broken}");
        let checks = world.auth.checks();
        assert_eq!((&*checks[0].name, checks[0].health), ("jwks", Health::Degraded));
        std::fs::write(&file, jwks(&[&new])).unwrap();
        until("no complaint", async || world.auth.checks().is_empty()).await;
    }
}

#[test]
fn only_keys_that_identify_the_signer_are_accepted() {
    let (rsa, ec) = (Key::new("r", Algorithm::RS256), Key::new("e", Algorithm::ES256));
    let parse = |keys: Value| jwks::KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
    let changed = |key: &Key, name: &str, value: Value| {
        let mut jwk = key.public();
        jwk[name] = value;
        jwk
    };
    assert_eq!(parse(json!([rsa.public(), ec.public()])).unwrap().len(), 2);
    assert_eq!(parse(json!([{"kty": "new"}, 7, null, ec.public()])).unwrap().len(), 1);
    for bad in [
        json!([]),
        json!([{"kty": "oct", "k": "c2VjcmV0", "kid": "s", "alg": "HS256"}]),
        json!([{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}]),
        json!([changed(&rsa, "use", json!("enc"))]),
        json!([changed(&rsa, "alg", json!("HS256"))]),
        json!([changed(&rsa, "alg", json!("RSA-OAEP"))]),
        json!([changed(&rsa, "alg", json!("ES256"))]),
        json!([changed(&rsa, "n", json!(BASE64.encode_to_string([0xff; 128])))]),
        json!([changed(&ec, "crv", json!("P-521"))]),
        json!(vec![ec.public(); 65]),
    ] {
        assert!(parse(bad.clone()).is_err(), "{bad}");
    }
}

/// A server of a JWKS: its response, and the number of its requests.
struct Web {
    url: String,
    says: Arc<ArcSwap<String>>,
    asked: Arc<AtomicUsize>,
}

fn web(says: String) -> Web {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks?key=planted", listener.local_addr().unwrap());
    let (says, asked) = (Arc::new(ArcSwap::from_pointee(says)), Arc::new(AtomicUsize::new(0)));
    let (answer, count) = (Arc::clone(&says), Arc::clone(&asked));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let len = stream.read(&mut head).unwrap_or_default();
            count.fetch_add(1, Ordering::SeqCst);
            let authorized =
                String::from_utf8_lossy(&head[..len]).contains("Bearer the-way-in\r\n");
            let body = answer.load();
            let status = if authorized { "200 OK" } else { "401 No" };
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    Web { url, says, asked }
}

#[tokio::test]
async fn keys_are_fetched_from_a_url_fetched_again_and_kept_during_an_outage() {
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "the-way-in\n").unwrap();
    let (old, new) = (Key::new("old", Algorithm::ES256), Key::new("new", Algorithm::ES256));
    let web = web(jwks(&[&old]));
    let config = clients(&format!(
        "[[client]]\nname = 'a'\nallow = [{{ chains = ['*'], operations = ['read'] }}]\n\
         jwt = {{ issuer = '{ISSUER}', audience = 'kms', subject = 'me', jwks_url = '{}', \
         jwks_token_file = '{}' }}\n",
        web.url,
        token_file.display()
    ));
    let world = world(config).await;
    let sign = |key: &Key| key.sign(&claims_at(NOW, ISSUER, "kms", "me"));
    let (by_old, by_new) = (sign(&old), sign(&new));
    assert!(world.token(&by_old).await.is_ok());
    web.says.store(Arc::new(jwks(&[&old, &new])));
    // The keys were just fetched: unknown ones cause no other fetch.
    for _ in 0..20 {
        assert_eq!(world.token(&by_new).await, Err(Refusal::UnknownKey));
    }
    assert_eq!(web.asked.load(Ordering::SeqCst), 1);
    world.clock.advance(Duration::from_secs(6));
    assert!(world.token(&by_new).await.is_ok(), "the caller waits for the keys");
    assert_eq!(web.asked.load(Ordering::SeqCst), 2);

    web.says.store(Arc::new("the page of a proxy".to_owned()));
    world.clock.advance(Duration::from_secs(6));
    let unknown = Key::new("unknown", Algorithm::ES256);
    assert_eq!(world.token(&sign(&unknown)).await, Err(Refusal::UnknownKey));
    assert_eq!(web.asked.load(Ordering::SeqCst), 3);
    assert!(world.token(&by_old).await.is_ok() && world.token(&by_new).await.is_ok());
    let said = world.auth.checks()[0].detail.clone().unwrap();
    assert!(said.contains("it is no JWKS") && !said.contains("planted"), "{said}");
}

/// A server of a JWKS by HTTPS; its URL.
async fn https(cert: &Path, key: &Path, says: String) -> String {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let certs = CertificateDer::pem_file_iter(cert).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/jwks", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                says.len()
            );
            let _ = stream.write_all(format!("{head}{says}").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    url
}

#[tokio::test]
async fn keys_are_fetched_over_tls_only_from_a_server_that_the_authority_certified() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (pki::Pki::new(dir.path().join("a")), pki::Pki::new(dir.path().join("b")));
    let key = Key::new("one", Algorithm::ES256);
    let (cert, cert_key) = ours.server(&["localhost"]);
    let url = https(&cert, &cert_key, jwks(&[&key])).await;
    let token = key.sign(&claims_at(NOW, ISSUER, "kms", "me"));
    for (ca, good) in [(ours.ca(), true), (other.ca(), false), (dir.path().join("none"), false)] {
        let world = world(clients(&format!(
            "[[client]]\nname = 'a'\nallow = [{{ chains = ['*'], operations = ['read'] }}]\n\
             jwt = {{ issuer = '{ISSUER}', audience = 'kms', subject = 'me', jwks_url = '{url}', \
             jwks_ca = '{}' }}\n",
            ca.display()
        )))
        .await;
        let found = world.token(&token).await;
        assert_eq!(found, if good { Ok("a".to_owned()) } else { Err(Refusal::UnknownKey) });
        assert_eq!(world.auth.checks().is_empty(), good);
    }
}

#[tokio::test]
async fn a_reload_changes_permissions_and_keeps_the_requests_in_flight() {
    let (token, digest) = token::generate().unwrap();
    let client =
        |more: &str| clients(&format!("[[client]]\nname = 'a'\ntoken_sha256 = '{digest}'\n{more}"));
    let world =
        world(client("max_in_flight = 2\nallow = [{ chains = ['a'], operations = ['encrypt'] }]"))
            .await;
    let shown = || Shown { peer: None, token: Token::Bearer(&token) };
    let before = world.auth.identify(shown()).await.unwrap().client;
    let (one, two) = (before.enter().unwrap(), before.enter().unwrap());
    let full = before.enter().err().unwrap();
    assert_eq!(full.kind(), Kind::Overloaded);
    assert!(before.check(Operation::Encrypt, "a").is_ok());

    let wider = client("max_in_flight = 2\nallow = [{ chains = ['b'], operations = ['decrypt'] }]");
    world.auth.replace(wider.clone()).await;
    let after = world.auth.identify(shown()).await.unwrap().client;
    assert!(after.check(Operation::Decrypt, "b").is_ok());
    let refused = after.check(Operation::Encrypt, "a").unwrap_err();
    assert_eq!(refused.kind(), Kind::Forbidden);
    assert_eq!(refused.detail(), "the client a may not encrypt with the chain a");
    assert!(before.check(Operation::Encrypt, "a").is_ok(), "a request keeps its own snapshot");
    assert!(after.enter().is_err(), "a reload makes no room");
    drop(one);
    assert!(after.enter().is_ok());
    drop(two);

    world.auth.refuse("broken".to_owned());
    assert_eq!(world.auth.checks()[0].detail.as_deref(), Some("broken"));
    assert!(world.auth.identify(shown()).await.is_ok(), "the old rules stay");
    world.auth.replace(wider).await;
    assert!(world.auth.checks().is_empty());
}
