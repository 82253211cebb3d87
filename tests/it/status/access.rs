//! Who sees the status page, at which listener, and what a browser may do with it.

use std::collections::BTreeMap;

use kms_proxy::auth::token;
use kms_proxy::status::Status;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::tools::admin;
use crate::support::{Setup, run, talk};

use super::{HELLO, markup, page, quiet};

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
        assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
        let refreshes = text.contains("<meta http-equiv=\"refresh\" content=\"10\">");
        assert_eq!(refreshes, path == "/status");
        assert!(text.starts_with("<!DOCTYPE html><html lang=\"en\">"), "{text}");
        assert!(text.contains("<meta name=\"viewport\""), "{text}");
    }
    let json = service.request(Method::GET, "/status.json").send().await.unwrap();
    assert_eq!(json.headers()["cross-origin-resource-policy"], "same-origin");
    let (code, _) = service.post("/status", json!({})).await;
    assert_eq!(code, 405);
    // A page of another origin reads nothing.
    let foreign = service.request(Method::GET, "/status").header("origin", "https://evil.example");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
    let rebound = service.request(Method::GET, "/status.json").header("host", "evil.example");
    assert_eq!(rebound.send().await.unwrap().status(), 403);
}

/// What a browser asks for.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

#[tokio::test]
async fn a_browser_gets_an_error_as_a_page_and_what_it_sent_does_not_come_back() {
    let service = quiet(Setup::new()).start().await;
    let fault = "%3Cscript%3Ealert(1)%3C/script%3E%0D%0Aset-cookie:%20a=b";
    for (path, expected) in [
        (format!("/status/chains/{fault}"), 404),
        (format!("/status/chains/none?after={fault}"), 400),
        (format!("/status?after={fault}&after=x"), 400),
        (format!("/status?after={fault}"), 200),
        (format!("/?{fault}"), 200),
    ] {
        let request = service.request(Method::GET, &path).header("accept", BROWSER);
        let response = request.header("x-request-id", "<b>").send().await.unwrap();
        assert_eq!(response.status(), expected, "{path}");
        let headers = response.headers().clone();
        assert_eq!(headers["content-type"], "text/html; charset=utf-8", "{path}");
        assert!(headers.contains_key("content-security-policy"), "{path}: {headers:?}");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert!(!headers.contains_key("set-cookie"), "{path}: {headers:?}");
        let text = response.text().await.unwrap();
        markup::check(&text).unwrap_or_else(|why| panic!("{path}: {why}\n{text}"));
        for planted in ["alert", "set-cookie", "<b>"] {
            assert!(!text.contains(planted), "{path}: {text}");
        }
    }
    // The redirect names no host, which a request could choose.
    let mut stream = service.connect().await;
    let said =
        talk(&mut stream, "GET / HTTP/1.1\r\nhost: localhost:1\r\nconnection: close\r\n\r\n");
    let said = said.await;
    assert!(said.contains("\r\nlocation: status\r\n"), "{said}");
    // Other programs get JSON, and other paths too.
    for (path, accept) in [("/status/chains/none", "*/*"), ("/none", BROWSER)] {
        let response = service.request(Method::GET, path).header("accept", accept).send().await;
        let response = response.unwrap();
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
    }
}

#[tokio::test]
async fn a_flood_of_requests_is_answered_or_refused_and_calls_on_data_pass() {
    let names: Vec<_> = (0..50).map(|index| format!("chain-{index}")).collect();
    let service = quiet(Setup::new()).set("CHAIN__NAMES", names.join(",")).start().await;
    let requests = (0..300).map(|_| service.request(Method::GET, "/status").send());
    let requests: Vec<_> = requests.map(tokio::spawn).collect();
    for _ in 0..10 {
        service.encrypt("chain-7", HELLO).await;
    }
    let mut codes = BTreeMap::new();
    for request in requests {
        let response = request.await.unwrap().unwrap();
        let code = response.status().as_u16();
        assert_eq!(response.headers().contains_key("retry-after"), code == 429);
        *codes.entry(code).or_insert(0) += 1;
    }
    assert!(codes[&200] >= 64 && codes.keys().all(|code| [200, 429].contains(code)), "{codes:?}");
    let (code, _) = service.get("/status.json").await;
    assert_eq!(code, 200);
}

/// Standard base64 by the library that clients have.
fn base64(bytes: &[u8]) -> String {
    kms_proxy::envelope::to_text(bytes).trim_start_matches("kp:").to_owned()
}

/// A configuration with clients, each with its token.
pub(super) fn with_clients<const N: usize>(
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
        let page = service.request(Method::GET, path).header("accept", BROWSER).send().await;
        let page = page.unwrap();
        let is_page = path != "/status.json";
        assert!(page.headers().contains_key("www-authenticate"), "{path}");
        assert_eq!(page.headers()["content-type"] == "text/html; charset=utf-8", is_page);
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
async fn where_it_is_not_served_everyone_learns_the_address_and_no_one_sees_more() {
    let clients = [("auditor", "*", "read")];
    let (setup, [auditor]) = with_clients(quiet(Setup::new()), clients);
    let service = setup.set("SERVER__ADMIN_LISTEN", "127.0.0.1:0").start().await;
    let code = async |method: Method, path: &str, token: Option<&str>| {
        let request = service.request(method, path);
        let request = token.iter().fold(request, |request, token| request.bearer_auth(token));
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    for path in ["/", "/status", "/status.json", "/status/chains/default"] {
        for token in [None, Some("kpt_wrong"), Some(&*auditor)] {
            for method in [Method::GET, Method::POST] {
                let (code, said) = code(method, path, token).await;
                assert_eq!(code, 404, "{path} {token:?}: {said}");
                assert!(said.contains("served at the address of server.admin_listen"), "{said}");
            }
        }
    }
    // Every other path asks for a token first, also beside those.
    for path in ["/v1/chains", "/metrics", "/openapi.json", "/statuses", "/status/", "/none"] {
        assert_eq!(code(Method::GET, path, None).await.0, 401, "{path}");
    }
    let (code, said) = code(Method::GET, "/status/chains/a/b", None).await;
    assert!(code == 404 && said.contains("there is nothing at this path"), "{code}: {said}");
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
        let elsewhere = if is_at_admin { &url } else { &admin };
        let said = http.get(format!("{elsewhere}/status.json")).send().await.unwrap();
        let said = said.text().await.unwrap();
        let why = if is_at_admin { "server.admin_listen" } else { "admin.status is false" };
        assert!(said.contains(why), "{said}");
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
