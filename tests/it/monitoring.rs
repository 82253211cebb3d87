//! The dashboard and the alerts, against a real Prometheus that reads real metrics, and against
//! `promtool`: what they ask for is there, and each alert fires on what it is for and on nothing else.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::etcd::Etcd;
use crate::support::pki::{Pki, client};
use crate::support::prometheus::Prometheus;
use crate::support::tools::{admin, printed, promtool, yaml_file};
use crate::support::{Service, Setup, root, tell, until};

/// The only client of the replica with HTTPS. Nothing calls with its token.
const RULES: &str = r#"
[auth]
mode = "required"

[[client]]
name = "operator"
token_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
allow = [{ chains = ["*"], operations = ["read"] }]
"#;

fn alerts() -> PathBuf {
    root().join("helm/kms-proxy/alerts/kms-proxy.yaml")
}

fn dashboard() -> Value {
    let path = root().join("helm/kms-proxy/dashboards/kms-proxy.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The title of the panel and the query, for each of the dashboard.
fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    queries
}

/// A query as Grafana would send it, with everything chosen and a short range.
fn filled_in(query: &str) -> String {
    [
        ("$__rate_interval", "10s"),
        ("$__range", "5m"),
        ("$job", ".*"),
        ("$chain", ".*"),
        ("$price", "0.03"),
    ]
    .iter()
    .fold(query.to_owned(), |query, (name, value)| query.replace(name, value))
}

/// The metrics of ours that a text speaks of.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("kms_proxy_").map(|(start, _)| &text[start..]);
    starts
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
            rest[..end.unwrap_or(rest.len())].to_owned()
        })
        .collect()
}

#[tokio::test]
async fn every_query_of_the_dashboard_is_answered_and_every_alert_finds_its_metrics() {
    let etcd = Etcd::start().await;
    let key = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    let setup = || {
        let log = format!("audit-{}.jsonl", made.fetch_add(1, Ordering::Relaxed));
        Setup::new()
            .on_etcd(&etcd)
            .set("ROOT__0__KIND", "passphrase")
            .set("ROOT__0__NAME", "main")
            .set("ROOT__0__MEMORY", "19MiB")
            .set("ROOT__0__PASSES", 2)
            .set("ROOT__0__PASSPHRASE", "correct horse battery staple")
            .set("ROOT__1__KIND", "local")
            .set("ROOT__1__NAME", "dev")
            .set("ROOT__1__KEY_FILE", key.path().join("root.key").display())
            .set("ARCHIVE__0__KIND", "dir")
            .set("ARCHIVE__0__NAME", "nas")
            .set("ARCHIVE__0__PATH", key.path().join("nas").display())
            .set("ARCHIVE__0__CREATE", "true")
            .set("AUDIT__FILE", key.path().join(log).display())
            .set("CHAIN__NAMES", "orders")
            .set("CHAIN__ROTATE_AFTER_USES", 2_000)
            .set("CHAIN__MAX_USES", 1_000_000)
    };
    let replicas = [Arc::new(setup().start().await), Arc::new(setup().start().await)];
    // Prometheus reads the metrics of this one in plain HTTP, as everywhere.
    let pki = Pki::new(key.path().join("pki"));
    let (cert, own) = pki.server(&["127.0.0.1"]);
    let https = setup().set("SERVER__TLS__CERT", cert.display());
    let https = https.set("SERVER__TLS__KEY", own.display());
    let https = https.set("SERVER__ADMIN_LISTEN", "127.0.0.1:0");
    let rules = https.file("rules.toml");
    std::fs::write(&rules, RULES).unwrap();
    let mut https = https.env("KMS_PROXY_CONFIG", rules.display()).start().await;
    https.call_with(client(&pki.ca(), None).build().unwrap());
    let admin = admin(&https).trim_start_matches("http://").parse().unwrap();
    let targets = [replicas[0].address(), replicas[1].address(), admin];
    let prometheus = Prometheus::start(&targets, &alerts()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let loads = replicas.clone().map(|replica| tokio::spawn(load(replica, Arc::clone(&stop))));
    let strangers = tokio::spawn(strangers(https, Arc::clone(&stop)));

    let queries = queries();
    for (title, query) in &queries {
        let query = filled_in(query);
        until(&format!("data for {title:?}: {query}"), async || {
            let series = prometheus.query(&query).await;
            let value = |one: &Value| one["value"][1].as_str().unwrap().parse::<f64>().unwrap();
            series.iter().any(|one| value(one).is_finite()).then_some(())
        })
        .await;
    }
    what_it_saves_adds_up(&prometheus, &queries).await;
    let names = prometheus.get("label/__name__/values").await;
    let there: BTreeSet<_> = names.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let text = std::fs::read_to_string(alerts()).unwrap() + &dashboard().to_string();
    for name in metrics_in(&text) {
        assert!(there.contains(name.as_str()), "there is no metric {name}");
    }
    let rules = rules_that_were_tried(&prometheus).await;
    assert!(rules >= 26, "{rules}");
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    strangers.await.unwrap();
    tell(&format!("dashboard queries that a real Prometheus answered: {}", queries.len()));
    tell(&format!("alert rules that it tried: {rules}"));
}

/// Everything that shows in the dashboard happens again and again, errors included.
async fn load(service: Arc<Service>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        for chain in ["default", "orders"] {
            let items = vec![json!({"plaintext": "aGVsbG8="}); 100];
            service.ok("/v1/batch/encrypt", json!({"chain": chain, "items": items})).await;
            let sealed = service.encrypt(chain, "aGVsbG8=").await;
            let ciphertext = &sealed.ciphertext;
            for aad in ["", "", "bm90IHRoaXM="] {
                let body = json!({"chain": chain, "ciphertext": ciphertext, "aad": aad});
                service.post("/v1/decrypt", body).await;
            }
            service.ok("/v1/rewrap", json!({"chain": chain, "ciphertext": ciphertext})).await;
            service.ok("/v1/datakey", json!({"chain": chain})).await;
        }
        service.send(Method::GET, "/v1/chains", Value::Null).await;
    }
}

/// Calls with an unknown token.
async fn strangers(service: Service, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let request = service.request(Method::GET, "/v1/chains").bearer_auth("kpt_nobody");
        assert_eq!(request.send().await.unwrap().status(), 401);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The first row: far more calls are avoided than made, and each has its price.
async fn what_it_saves_adds_up(prometheus: &Prometheus, queries: &[(String, String)]) {
    let number = async |title: &str| {
        let (_, query) = queries.iter().find(|(of, _)| of == title).unwrap();
        let series = prometheus.query(&filled_in(query)).await;
        assert_eq!(series.len(), 1, "{title}");
        series[0]["value"][1].as_str().unwrap().parse::<f64>().unwrap()
    };
    // The rates are of samples at other moments, and on a loaded machine some are missing.
    until("calls that are saved, and what they cost", async || {
        let before = number("Root calls avoided").await;
        let saved = number("Money saved").await * 10_000.0 / 0.03;
        let (after, made) = (number("Root calls avoided").await, number("Root calls made").await);
        let is_close = before * 0.8 <= saved && saved <= after * 1.2;
        (is_close && after > 10.0 * made).then_some(())
    })
    .await;
}

/// Waits until each rule was evaluated, which must go well; how many there are.
async fn rules_that_were_tried(prometheus: &Prometheus) -> usize {
    until("rules that were evaluated", async || {
        let groups = prometheus.get("rules").await;
        let groups = groups["groups"].as_array().unwrap().clone();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
        let rules: Vec<_> = rules.collect();
        assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
        rules.iter().all(|rule| rule["health"] == "ok").then_some(rules.len())
    })
    .await
}

/// `promtool test rules` with these rules; whether all is as the tests of the alerts say.
fn passes(rules: &Value) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut tests = yaml_file(&root().join("tests/deploy/alerts.test.yaml"));
    let mut rules = rules.clone();
    for rule in rules["groups"][0]["rules"].as_array_mut().unwrap() {
        // Another test checks it, and it would be repeated in every case.
        rule["annotations"].as_object_mut().unwrap().remove("runbook_url");
    }
    tests["rule_files"] = json!(["rules.yaml"]);
    let [rules_path, tests_path] = ["rules.yaml", "tests.yaml"].map(|name| dir.path().join(name));
    std::fs::write(rules_path, rules.to_string()).unwrap();
    std::fs::write(&tests_path, tests.to_string()).unwrap();
    let output = promtool(&["test", "rules", tests_path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said.into_owned())
}

#[test]
fn each_alert_fires_on_what_it_is_for_and_on_nothing_else() {
    printed(promtool(&["check", "rules", alerts().to_str().unwrap()]));
    let rules = yaml_file(&alerts());
    // Alerts that never fire, and alerts that always do, are both found out, each of them.
    let broken = ["vector(0) > 1", "vector(1)"].map(|broken| {
        let mut rules = rules.clone();
        for rule in rules["groups"][0]["rules"].as_array_mut().unwrap() {
            rule["expr"] = json!(broken);
        }
        (broken, rules)
    });
    let (tested, broken) = std::thread::scope(|scope| {
        let broken = broken.each_ref();
        let broken = broken.map(|(broken, rules)| (*broken, scope.spawn(move || passes(rules))));
        (passes(&rules), broken.map(|(broken, passes)| (broken, passes.join().unwrap())))
    });
    let (well, said) = tested;
    assert!(well, "{said}");
    let names: Vec<_> = rules["groups"][0]["rules"].as_array().unwrap().iter().collect();
    let names: Vec<_> = names.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    for (broken, (well, said)) in broken {
        assert!(!well);
        for name in &names {
            let noticed = said.contains(&format!("alertname: {name},"));
            assert!(noticed, "no test notices that {name} is {broken}: {said}");
        }
    }
    let count = names.len();
    tell(&format!("alert rules that promtool tested, and whose tests can fail: {count}"));
}

#[test]
fn the_runbook_url_of_each_alert_is_the_section_that_says_what_to_do() {
    let rules = yaml_file(&alerts());
    let document = std::fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        let (_, section) = document
            .split_once(&format!("\n### {name}\n\n"))
            .unwrap_or_else(|| panic!("no section {name} in docs/monitoring.md"));
        assert!(section.starts_with(|c: char| c.is_alphanumeric()), "{name} says nothing");
        let anchor = name.to_ascii_lowercase();
        let url = format!("{}/blob/main/docs/monitoring.md#{anchor}", env!("CARGO_PKG_REPOSITORY"));
        assert_eq!(rule["annotations"]["runbook_url"], url);
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
    }
}

#[test]
fn each_panel_says_what_it_shows_and_no_two_overlap() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(!panel["title"].as_str().unwrap().is_empty(), "{panel}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} overlaps", panel["title"]);
            }
        }
    }
    for (title, query) in queries() {
        assert!(query.contains("job=~\"$job\""), "{title} is not bounded to a job: {query}");
    }
}
