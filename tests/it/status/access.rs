//! Who sees the status page, at which listener, and what a browser may do with it.

use kms_proxy::auth::token;
use kms_proxy::status::Status;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::tools::admin;
use crate::support::{Setup, run};

use super::{page, quiet};

#[tokio::test]
async fn a_browser_may_apply_the_one_style_block_and_nothing_else() {
    let service = quiet(Setup::new()).start().await;
    let follow = service.request(Method::GET, "/").send().await.unwrap();
    assert_eq!((follow.status().as_u16(), follow.url().path()), (200, "/status"));
    for path in ["/status", "/status?still", "/status/chains/default"] {
        let (text, headers) = page(&service, path).await;
        let style = text.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
        let hash = base64(&Sha256::digest(style));
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        assert!(policy.contains(&format!("style-src 'sha256-{hash}';")), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("script-src") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        let refreshes = text.contains("<meta http-equiv=\"refresh\" content=\"10\">");
        assert_eq!(refreshes, path == "/status");
        assert!(text.starts_with("<!DOCTYPE html><html lang=\"en\">"), "{text}");
        assert!(text.contains("<meta name=\"viewport\""), "{text}");
    }
    let (code, _) = service.post("/status", json!({})).await;
    assert_eq!(code, 405);
    // A page of another origin reads nothing.
    let foreign = service.request(Method::GET, "/status").header("origin", "https://evil.example");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
    let rebound = service.request(Method::GET, "/status.json").header("host", "evil.example");
    assert_eq!(rebound.send().await.unwrap().status(), 403);
}

/// Standard base64 by the library that clients have.
fn base64(bytes: &[u8]) -> String {
    kms_proxy::envelope::to_text(bytes).trim_start_matches("kp:").to_owned()
}

/// A configuration with clients, each with its token.
fn with_clients<const N: usize>(
    setup: Setup,
    clients: [(&str, &str, &str); N],
) -> (Setup, [String; N]) {
    let mut text = "[auth]\nmode = 'required'\n".to_owned();
    let tokens = clients.map(|(name, chains, operation)| {
        let (token, digest) = token::generate().unwrap();
        text += &format!(
            "[[client]]\nname = '{name}'\ntoken_sha256 = '{digest}'\n\
             allow = [{{ chains = ['{chains}'], operations = ['{operation}'] }}]\n"
        );
        token.to_string()
    });
    let config = setup.file("kms-proxy.toml");
    std::fs::write(&config, text).unwrap();
    (setup.env("KMS_PROXY_CONFIG", config.display()), tokens)
}

#[tokio::test]
async fn a_client_sees_what_it_may_read_and_nothing_secret_is_shown() {
    let setup = quiet(Setup::new()).set("CHAIN__NAMES", "orders,secret-plans");
    let clients = [("auditor", "*", "read"), ("shop", "orders", "read"), ("app", "*", "encrypt")];
    let (setup, [auditor, shop, app]) = with_clients(setup, clients);
    let service = setup.start().await;
    let get = async |path: &str, token: Option<&str>| {
        let request = service.request(Method::GET, path);
        let request = token.iter().fold(request, |request, token| request.bearer_auth(token));
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let planted = "UExBTlRFRC1TRUNSRVQ=";
    let body = json!({"chain": "orders", "plaintext": planted, "aad": planted});
    let request = service.request(Method::POST, "/v1/encrypt").bearer_auth(&app).json(&body);
    let sealed: Value = request.send().await.unwrap().json().await.unwrap();
    let sealed = sealed["ciphertext"].as_str().unwrap().to_owned();
    for path in ["/", "/status", "/status.json", "/status/chains/orders"] {
        assert_eq!(get(path, None).await.0, 401, "{path}");
        assert_eq!(get(path, Some("kpt_wrong")).await.0, 401, "{path}");
        if path != "/" {
            let (code, said) = get(path, Some(&app)).await;
            assert_eq!(code, 403, "{path}");
            assert!(!said.contains("secret-plans"), "{said}");
        }
    }
    for path in ["/status", "/status.json"] {
        let (code, said) = get(path, Some(&shop)).await;
        assert_eq!(code, 200);
        assert!(said.contains("orders"), "{said}");
        for hidden in ["secret-plans", "passphrase", "root:main", "auditor", "avoided_per"] {
            assert!(!said.contains(hidden), "{path} shows {hidden}: {said}");
        }
    }
    assert_eq!(get("/status/chains/orders", Some(&shop)).await.0, 200);
    let (code, said) = get("/status/chains/secret-plans", Some(&shop)).await;
    assert_eq!((code, said.contains("shop may not read")), (403, true), "{said}");

    let (_, json) = get("/status.json", Some(&auditor)).await;
    let status: Status = serde_json::from_str(&json).unwrap();
    let caller = |name: &str| status.callers.iter().find(|it| it.client == name).unwrap();
    assert_eq!(caller("app").refused.get("forbidden"), Some(&3));
    assert!(caller("shop").requests >= 4, "{:?}", caller("shop"));
    // Its own request is in its rate.
    assert!(caller("auditor").requests_per_second > 0.0, "{:?}", caller("auditor"));
    let (_, page) = get("/status", Some(&auditor)).await;
    assert!(page.contains("secret-plans") && page.contains("3 forbidden"), "{page}");
    let (_, chain) = get("/status/chains/orders", Some(&auditor)).await;
    let secrets = [&*auditor, &shop, &app, planted, "PLANTED", &sealed, "correct horse"];
    for text in [&json, &page, &chain] {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

#[tokio::test]
async fn the_listener_of_operators_serves_it_on_loopback_unless_the_configuration_says_otherwise() {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let code = async |base: &str, path: &str| {
        http.get(format!("{base}{path}")).send().await.unwrap().status().as_u16()
    };
    for (setting, is_at_admin) in [(None, true), (Some(true), true), (Some(false), false)] {
        let setup = quiet(Setup::new()).set("SERVER__ADMIN_LISTEN", "127.0.0.1:0");
        let setup = setting.iter().fold(setup, |it, value| it.set("ADMIN__STATUS", value));
        let service = setup.start().await;
        let (admin, url) = (admin(&service), service.url());
        for path in ["/", "/status", "/status.json", "/status/chains/default"] {
            let at_admin = code(&admin, path).await;
            let at_main = code(&url, path).await;
            let expected = if is_at_admin { (200, 404) } else { (404, 200) };
            assert_eq!((at_admin, at_main), expected, "{setting:?} {path}");
        }
        let with_admin = run(&["status", "--server", &url, "--admin", &admin], b"");
        assert!(with_admin.status.success(), "{with_admin:?}");
        let without = run(&["status", "--server", &url], b"");
        assert_eq!(without.status.success(), !is_at_admin, "{without:?}");
        if is_at_admin {
            let said = String::from_utf8(without.stderr).unwrap();
            assert!(said.contains("--admin or KMS_PROXY_ADMIN"), "{said}");
        }
    }
}
