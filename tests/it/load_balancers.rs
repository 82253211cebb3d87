//! What load balancers and simple health checkers send: a real HAProxy, and HTTP/1.0 by hand.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::haproxy::{Checked, Haproxy};
use crate::support::pki::Pki;
use crate::support::tools::admin;
use crate::support::{Service, Setup, talk, until};

fn up() -> Checked {
    Checked { status: "UP".to_owned(), check: ("L7OK".to_owned(), "200".to_owned()) }
}

#[tokio::test]
async fn haproxy_checks_every_listener_and_sees_a_replica_that_drains() {
    let setup = Setup::new().set("SERVER__DRAIN_DELAY", "10m");
    let pki = Pki::new(setup.file("pki"));
    let (cert, key) = pki.server(&["localhost", "127.0.0.1"]);
    let with_tls = Setup::new()
        .set("SERVER__TLS__CERT", cert.display())
        .set("SERVER__TLS__KEY", key.display());
    let with_admin = Setup::new().set("SERVER__ADMIN_LISTEN", "127.0.0.1:0");
    let (plain, tls, operated) =
        (setup.start().await, with_tls.start().await, with_admin.start().await);
    let (admin, ca) = (admin(&operated), pki.ca());
    let balancer = Haproxy::start(&format!(
        "backend first\n  option httpchk GET /readyz\n  server a {plain} check\n\
         backend metrics\n  option httpchk GET /metrics\n  server a {plain} check\n\
         backend health\n  option httpchk HEAD /healthz\n  server a {plain} check\n\
         backend admin\n  option httpchk GET /readyz\n  server a {admin} check\n\
         backend with_tls\n  option httpchk GET /readyz\n  \
         server a {tls} ssl verify required ca-file {ca} check\n\
         backend with_host\n  option httpchk\n  \
         http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost\n  \
         server a {plain} check\n\
         backend without_host\n  option httpchk\n  \
         http-check send meth GET uri /readyz ver HTTP/1.1\n  server a {plain} check\n",
        plain = plain.address(),
        admin = admin.strip_prefix("http://").unwrap(),
        tls = tls.address(),
        ca = ca.display(),
    ))
    .await;
    for backend in ["first", "metrics", "health", "admin", "with_tls", "with_host"] {
        assert_eq!(balancer.first_check(&format!("{backend}/a")).await, up(), "{backend}");
    }
    let refused = balancer.first_check("without_host/a").await;
    assert_eq!(refused.check, ("L7STS".to_owned(), "400".to_owned()), "HTTP/1.1 requires Host");

    let url = format!("http://{}/v1/encrypt", balancer.address);
    let request = reqwest::Client::builder().no_proxy().build().unwrap().post(url);
    let request = request.json(&json!({"plaintext": "aGVsbG8="}));
    // A replica whose last check was late is down until the next one.
    until("a request through it", async || {
        let answer = request.try_clone().unwrap().send().await.unwrap();
        (answer.status() == 200).then_some(())
    })
    .await;
    plain.signal(Signal::TERM);
    balancer.is_down("first/a", "503").await;
}

#[tokio::test]
async fn http_1_0_needs_no_host_for_health_and_metrics_and_for_nothing_else() {
    let plain = Setup::new().start().await;
    let status = async |service: &Service, head: &str| {
        let answer = talk(&mut service.connect().await, &format!("{head}\r\n\r\n")).await;
        let (_, status) = answer.split_once(' ').unwrap_or_else(|| panic!("{head}: {answer}"));
        status[..3].to_owned()
    };
    for (head, expected) in [
        ("GET /healthz HTTP/1.0", "200"),
        ("GET /readyz HTTP/1.0", "200"),
        ("GET /readyz?verbose HTTP/1.0", "200"),
        ("GET /metrics HTTP/1.0", "200"),
        ("HEAD /readyz HTTP/1.0", "200"),
        ("OPTIONS /readyz HTTP/1.0", "405"),
        ("GET /v1/chains HTTP/1.0", "400"),
        ("GET /openapi.json HTTP/1.0", "400"),
        ("GET / HTTP/1.0", "400"),
        // A Host that is there is checked as ever, and so is a page's Origin.
        ("GET /readyz HTTP/1.0\r\nHost: example.com", "403"),
        ("GET /readyz HTTP/1.0\r\nHost: localhost\r\nHost: localhost", "400"),
        ("GET http://example.com/readyz HTTP/1.0", "403"),
        ("GET /readyz HTTP/1.0\r\nOrigin: http://localhost", "400"),
        ("GET /readyz HTTP/1.0\r\nOrigin: http://", "400"),
        ("GET /readyz HTTP/1.1\r\nConnection: close", "400"),
        ("GET /v1/chains HTTP/1.0\r\nHost: localhost", "200"),
    ] {
        assert_eq!(status(&plain, head).await, expected, "{head}");
    }
}

#[tokio::test]
async fn where_clients_alone_are_served_a_probe_without_host_gets_what_a_stranger_gets() {
    let setup = Setup::new()
        .set("AUTH__MODE", "required")
        .set("CLIENT__0__NAME", "app")
        .set("CLIENT__0__TOKEN_SHA256", "0".repeat(64))
        .set("CLIENT__0__ALLOW", r#"[{chains=["*"], operations=["read"]}]"#);
    let service = setup.start().await;
    let ask = async |path: &str| {
        talk(&mut service.connect().await, &format!("GET {path} HTTP/1.0\r\n\r\n")).await
    };
    assert!(ask("/readyz").await.contains(" 200 "));
    assert!(ask("/metrics").await.contains(" 401 "));
    assert!(ask("/v1/chains").await.contains(" 400 "));
}

#[tokio::test]
async fn an_idle_connection_stays_open_for_the_time_that_is_set() {
    let service = Setup::new().set("SERVER__IDLE_TIMEOUT", "2s").start().await;
    let started = Instant::now();
    let mut stream = service.connect().await;
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = talk(&mut stream, request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
}
