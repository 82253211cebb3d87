//! A start while the store is away: probes are answered, other calls are refused, and the service
//! becomes ready by itself.

use std::io::ErrorKind;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::UnixDatagram;

use crate::support::etcd::Etcd;
use crate::support::pki::Pki;
use crate::support::{Service, Setup, decrypt_all, run, until};

fn with_etcd(setup: Setup, etcd: &Etcd) -> Setup {
    setup.on_etcd(etcd)
}

/// Waits until `/readyz` says `part` of the store; what it says then.
async fn missing(service: &Service, part: &str) -> String {
    until(part, async || {
        let (status, readiness) = service.get("/readyz").await;
        assert_eq!((status.as_u16(), &readiness["status"]), (503, &json!("unavailable")));
        let check = &readiness["checks"][0];
        let detail = check["detail"].as_str()?;
        (check["name"] == "store" && detail.contains(part)).then(|| detail.to_owned())
    })
    .await
}

/// A call that is not a probe.
async fn is_refused(service: &Service, method: Method, path: &str) {
    let request = service.request(method, path).json(&json!({"plaintext": ""}));
    let answer = request.send().await.unwrap();
    let retry_after = answer.headers().get("retry-after").cloned();
    let (status, problem) = (answer.status(), answer.json::<Value>().await.unwrap());
    let code = (status, &problem["code"]);
    assert_eq!(code, (StatusCode::SERVICE_UNAVAILABLE, &json!("store_unavailable")), "{path}");
    assert_eq!(retry_after.unwrap(), "1", "{path}");
    assert!(!problem.to_string().contains("127.0.0.1"), "callers see no address: {problem}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_etcd_and_answers_meanwhile_and_is_ready_by_itself() {
    let mut etcd = Etcd::start().await;
    etcd.kill();
    let setup = Setup::new();
    let manager = UnixDatagram::bind(setup.file("notify")).unwrap();
    let setup = with_etcd(setup.clone(), &etcd)
        .env("NOTIFY_SOCKET", setup.file("notify").display())
        .set("SERVER__ADMIN_LISTEN", "127.0.0.1:0");
    let mut service = setup.listen().await;
    for (method, path) in [
        (Method::POST, "/v1/encrypt"),
        (Method::POST, "/v1/batch/encrypt"),
        (Method::GET, "/v1/chains"),
        (Method::PUT, "/v1/chains/orders"),
        (Method::GET, "/no-such-path"),
        (Method::GET, "/metrics"),
    ] {
        is_refused(&service, method, path).await;
    }
    let log = service.logged("the store is not usable yet; waiting for it").await;
    assert!(log.contains(&etcd.url()), "{log}");
    let admin = log.split_once("\"admin\":\"").unwrap().1.split('"').next().unwrap();
    let readiness = reqwest::get(format!("{admin}/readyz")).await.unwrap();
    assert_eq!(readiness.status(), 503);
    let readiness = readiness.text().await.unwrap();
    assert!(readiness.contains("\"store\"") && readiness.contains(&etcd.url()), "{readiness}");
    for path in ["/", "/status", "/status.json", "/status/chains/default"] {
        let page = reqwest::get(format!("{admin}{path}")).await.unwrap();
        assert_eq!(page.status(), 503, "{path}");
        let page = page.text().await.unwrap();
        assert!(page.contains("it waits for store: ") && page.contains(&etcd.url()), "{page}");
    }
    let healthz = reqwest::get(format!("{admin}/healthz")).await.unwrap();
    assert_eq!(healthz.status(), 200);
    assert_eq!(service.said(), "");
    let notified = manager.try_recv(&mut [0; 64]).map_err(|error| error.kind());
    assert_eq!(notified, Err(ErrorKind::WouldBlock), "the manager must wait too");

    etcd.restart();
    service.ready().await;
    let readiness = reqwest::get(format!("{admin}/readyz")).await.unwrap();
    assert_eq!(readiness.status(), 200);
    let mut notification = [0; 64];
    let len = manager.recv(&mut notification).await.unwrap();
    assert_eq!(&notification[..len], b"READY=1\n");
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    decrypt_all(&service, &[sealed]).await;
    let log = service.stop().await;
    assert!(!log.contains("a request failed"), "the start says once what it waits for: {log}");
    let (waiting, started) = log.split_once("the store is not usable yet").unwrap();
    let is_ready = |log: &str| log.contains("\"message\":\"ready\"");
    assert!(!is_ready(waiting) && is_ready(started), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_refuses_at_a_start_is_named_and_a_service_that_waits_ends_with_code_0() {
    let base = Setup::new();
    let (pki, other) = (Pki::new(base.file("pki")), Pki::new(base.file("other")));
    let (cert, key) = pki.server(&["127.0.0.1"]);
    for (from, to) in [(&pki.ca(), "ca.pem"), (&cert, "server.pem"), (&key, "server.key")] {
        std::fs::copy(from, base.file(to)).unwrap();
    }
    let secure = Etcd::with_tls(base.file("ca.pem").parent().unwrap());
    let with_tls = |ca: &Pki, (cert, key): (std::path::PathBuf, std::path::PathBuf)| {
        with_etcd(Setup::new(), &secure)
            .set("STORE__TLS__CA", ca.ca().display())
            .set("STORE__TLS__CERT", cert.display())
            .set("STORE__TLS__KEY", key.display())
    };
    let open = Etcd::start().await;
    open.ctl(&["user", "add", "root:planted-root"]);
    open.ctl(&["user", "grant-role", "root", "root"]);
    open.ctl(&["auth", "enable"]);
    let wrong_password = with_etcd(Setup::new(), &open)
        .set("STORE__USERNAME", "root")
        .set("STORE__PASSWORD", "planted-wrong");
    let url = secure.url();
    for (setup, part) in [
        (with_tls(&other, pki.client(&["kms-proxy"])), "certificate"),
        // The member's alert may come after the end of the connection.
        (with_tls(&pki, other.client(&["kms-proxy"])), &*url),
        (wrong_password, "authentication failed"),
    ] {
        let service = setup.set("STORE__TIMEOUT", "2s").listen().await;
        let detail = missing(&service, part).await;
        assert!(!detail.contains("planted"), "{detail}");
        assert_eq!(service.get("/healthz").await.0, 200);
        service.logged("the store is not usable yet").await;
        assert_eq!(service.said(), "");
        let log = service.stop().await;
        assert!(log.contains(part) && log.contains("stopped before it was ready"), "{log}");
        assert!(!log.contains("planted"), "{log}");
    }
    // With what etcd takes the same settings are good.
    with_tls(&pki, pki.client(&["kms-proxy"])).start().await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_start_waits_for_is_shown_to_clients_who_may_read_all_chains() {
    let mut etcd = Etcd::start().await;
    etcd.kill();
    let setup = Setup::new();
    let token = |name: &str, chains: &str| {
        let made = run(&["token", "new"], b"");
        let said = String::from_utf8(made.stderr).unwrap();
        let digest = said.trim().rsplit_once("token_sha256 = ").unwrap().1.replace('"', "");
        let client = format!(
            "[[client]]\nname = '{name}'\ntoken_sha256 = '{digest}'\n\
             allow = [{{ chains = ['{chains}'], operations = ['read', 'encrypt'] }}]\n"
        );
        (String::from_utf8(made.stdout).unwrap().trim().to_owned(), client)
    };
    let ((all, first), (some, second)) = (token("all", "*"), token("some", "orders"));
    let config = setup.file("kms-proxy.toml");
    std::fs::write(&config, format!("[auth]\nmode = 'required'\n{first}{second}")).unwrap();
    let setup = with_etcd(setup, &etcd).env("KMS_PROXY_CONFIG", config.display());
    let mut service = setup.listen().await;
    service.logged("the store is not usable yet").await;
    for (token, sees) in [(&*all, true), (&some, false), ("nobody", false)] {
        let ask = |method, path| service.request(method, path).bearer_auth(token).send();
        let readiness = ask(Method::GET, "/readyz").await.unwrap();
        assert_eq!(readiness.status(), 503);
        let readiness = readiness.text().await.unwrap();
        assert_eq!(readiness.contains(&etcd.url()), sees, "{readiness}");
        for path in ["/status", "/status.json"] {
            let page = ask(Method::GET, path).await.unwrap();
            assert_eq!(page.status(), 503, "{path}");
            let page = page.text().await.unwrap();
            assert_eq!(page.contains(&etcd.url()), sees, "{page}");
        }
        // Strangers too: the keys of issuers may not be known yet.
        let answer = ask(Method::GET, "/v1/chains").await.unwrap();
        assert_eq!(answer.status(), 503, "{token}");
    }
    etcd.restart();
    service.ready().await;
    let asked = service.request(Method::GET, "/v1/chains").bearer_auth("nobody").send();
    assert_eq!(asked.await.unwrap().status(), 401);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_audit_log_a_start_waits_for_a_root_and_no_call_is_served_without_the_log() {
    let setup = Setup::new();
    let log = setup.file("audit.jsonl");
    let setup = setup.set("AUDIT__FILE", log.display()).set("AUDIT__RULE__0__LEVEL", "full");
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    let waits = async |service: &Service, part: &str| {
        service.logged("the audit log needs a root; waiting for it").await;
        let (status, readiness) = service.get("/readyz").await;
        assert_eq!((status.as_u16(), &readiness["checks"][0]["name"]), (503, &json!("audit")));
        let detail = readiness["checks"][0]["detail"].as_str().unwrap();
        assert!(detail.contains(part) && !detail.contains("planted"), "{detail}");
        is_refused(service, Method::POST, "/v1/encrypt").await;
    };
    // A root that has never answered.
    let away = [
        ("KIND", "vault-transit"),
        ("NAME", "main"),
        ("ADDRESS", "http://127.0.0.1:1"),
        ("KEY", "kek"),
        ("TOKEN", "planted"),
    ];
    let with_away = away
        .iter()
        .fold(setup.clone(), |setup, (key, value)| setup.set(&format!("ROOT__0__{key}"), value));
    let service = with_away.listen().await;
    waits(&service, "no root can wrap the key of the audit log: main: ").await;
    assert!(service.stop().await.contains("stopped before it was ready"));
    assert_eq!(lines(), "", "no start is recorded");

    let service = setup.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    service.stop().await;
    let before = lines();
    let (key, elsewhere) = (setup.data().join("root.key"), setup.file("elsewhere"));
    std::fs::rename(&key, &elsewhere).unwrap();
    let mut service = setup.listen().await;
    waits(&service, "no root can unwrap the key of the audit log: local: ").await;
    assert_eq!(lines(), before);
    std::fs::rename(&elsewhere, &key).unwrap();
    service.ready().await;
    decrypt_all(&service, &[sealed]).await;
    service.stop().await;
    let after = lines();
    let new = after.strip_prefix(&before).unwrap();
    assert!(new.contains("\"start\"") && new.contains("\"decrypt\""), "{new}");
}
