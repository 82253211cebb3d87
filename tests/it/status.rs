//! The status page and `/status.json` of the real binary: what they show in several states.
//! `access` tests who sees them, and `markup` checks the HTML.

use std::time::{Duration, Instant};

use kms_proxy::status::{Chain, Keks, Level, Status};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::archive::{directory, root as local_root};
use crate::support::{Service, Setup, root, run, tell, until};

mod access;
mod browser;
mod markup;

const HELLO: &str = "aGVsbG8=";

/// A page, which must be well-formed, and its headers.
async fn page(service: &Service, path: &str) -> (String, HeaderMap) {
    let response = service.request(Method::GET, path).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    let text = response.text().await.unwrap();
    markup::check(&text).unwrap_or_else(|why| panic!("{path}: {why}\n{text}"));
    (text, headers)
}

/// The page and the status of the same moment, as far as a test can tell.
async fn both(service: &Service) -> (String, Status) {
    let (text, _) = page(service, "/status").await;
    let (code, json) = service.get("/status.json").await;
    assert_eq!(code, 200, "{json}");
    everything_is_documented(&json);
    (text, serde_json::from_value(json).unwrap())
}

/// Each field that a response has is in docs/status.md.
fn everything_is_documented(json: &Value) {
    let text = std::fs::read_to_string(root().join("docs/status.md")).unwrap();
    let mut values = vec![json];
    while let Some(value) = values.pop() {
        match value {
            Value::Array(items) => values.extend(items),
            Value::Object(fields) => {
                for (name, value) in fields {
                    // Codes of errors and reasons of refusals are names here.
                    if !matches!(&**name, "errors" | "refused") {
                        values.push(value);
                    }
                    assert!(text.contains(&format!("`{name}`")), "docs/status.md lacks {name}");
                }
            }
            _ => {}
        }
    }
}

/// The first status in which `is_so` holds for chain `index`. The numbers of KEKs are those of the
/// store, which a status waits for only briefly.
async fn chain_when(
    service: &Service,
    what: &str,
    index: usize,
    is_so: impl Fn(&Chain) -> bool,
) -> Status {
    until(what, async || {
        let (_, status) = both(service).await;
        is_so(&status.chains[index]).then_some(status)
    })
    .await
}

fn keks(chain: &Chain) -> Keks {
    chain.keks_by_state.unwrap_or_default()
}

/// A passphrase root, which is no finding.
fn quiet(setup: Setup) -> Setup {
    setup
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__KIND", "passphrase")
        .set("ROOT__0__MEMORY", "19MiB")
        .set("ROOT__0__PASSES", 2)
        .set("ROOT__0__PASSPHRASE", "correct horse battery staple")
}

async fn encrypt_many(service: &Service, chain: &str, count: usize) {
    let items = vec![json!({ "plaintext": HELLO }); count];
    service.ok("/v1/batch/encrypt", json!({"chain": chain, "items": items})).await;
}

#[tokio::test]
async fn a_service_that_is_well_says_so_and_what_it_saved() {
    let setup = quiet(Setup::new()).set("CHAIN__NAMES", "orders");
    let setup = setup.set("ADMIN__ROOT_CALL_PRICE", 3000).set("ADMIN__CURRENCY", "EUR");
    let service = setup.start().await;
    encrypt_many(&service, "orders", 100).await;
    let sealed = service.encrypt("orders", HELLO).await;
    let body = json!({"chain": "orders", "ciphertext": sealed.ciphertext, "aad": "AAAA"});
    assert_eq!(service.post("/v1/decrypt", body).await.0, 400);
    chain_when(&service, "the number of KEKs", 1, |orders| orders.keks == Some(1)).await;
    let (text, status) = both(&service).await;
    assert!(text.contains("All is well.") && status.is_well(), "{text}");
    assert_eq!((&*status.status, status.findings.len()), ("ok", 0));
    let savings = status.savings.unwrap();
    // One wrap for each chain. The call for the chain without traffic is paid for by no other.
    assert_eq!((savings.root_calls, savings.avoided), (2, 100));
    let sum = |of: fn(&Chain) -> u64| status.chains.iter().map(of).sum::<u64>();
    assert_eq!((sum(|it| it.root_calls), sum(|it| it.avoided)), (2, 100), "the total is the sum");
    assert!((savings.saved - 30.0).abs() < 1e-9, "{savings:?}");
    assert!(text.contains("EUR 30.00"), "{text}");
    assert_eq!(savings.avoided_per_minute.iter().sum::<u64>(), 100);
    let [default, orders] = &status.chains[..] else { panic!("{:?}", status.chains) };
    assert_eq!((&*default.chain, &*orders.chain), ("default", "orders"));
    assert_eq!((orders.operations, orders.root_calls, orders.avoided), (101, 1, 100));
    assert_eq!(orders.primary, Some(sealed.kek_id()));
    assert_eq!(orders.errors.get("invalid_ciphertext"), Some(&1));
    assert!(text.contains("1 invalid_ciphertext"), "{text}");
    assert!(orders.uses_reserved >= 101, "{orders:?}");
    assert_eq!((orders.keks, &*orders.standby_state), (Some(1), "none"));
    let keks = keks(orders);
    assert_eq!((keks.primary, keks.one_root, keks.local_only), (1, 1, 0));
    assert_eq!((&*orders.roots, orders.exposed), (&["main".to_owned()][..], false));
    assert_eq!(default.next_rotation.as_ref().unwrap().reason, "age");
    let main = &status.roots[0];
    assert_eq!((&*main.kind, &*main.state, main.calls), ("passphrase", "ok", 2));
    assert!(main.latency_us > Some(1_000), "Argon2id takes longer: {main:?}");
    let store = status.store.unwrap();
    assert_eq!((&*store.kind, &*store.state), ("file", "ok"));
    assert!(store.latency_us.is_some() && store.last_error.is_none(), "{store:?}");

    let (text, _) = page(&service, "/status/chains/orders").await;
    assert!(text.contains(&sealed.kek_id()) && !text.contains("http-equiv"), "{text}");
    let (code, missing) = service.get("/status/chains/none").await;
    assert_eq!((code.as_u16(), &missing["code"]), (404, &json!("unknown_chain")));
    let (code, _) = service.get("/status/chains/orders?after=x").await;
    assert_eq!(code, 400);
    let after = service.get("/status.json?after=default").await.1;
    assert_eq!(after["chains"].as_array().unwrap().len(), 1);
    assert_eq!(after["chains"][0]["chain"], "orders");

    // The command prints the same.
    let json = run(&["status", "--json", "--server", &service.url()], b"");
    let json: Status = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json.chains[1].primary, orders.primary);
    let text = String::from_utf8(run(&["status", "--server", &service.url()], b"").stdout).unwrap();
    for part in ["ROOT ", "passphrase ", "PART ", "store (file)", "KEKS BY STATE", "1 primary"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains("1 invalid_ciphertext"), "{text}");
    assert!(text.contains("100 avoided, EUR 30.00 saved"), "{text}");
}

#[tokio::test]
async fn a_root_and_a_store_that_are_away_are_named_with_what_to_do() {
    let setup = Setup::new();
    let key = setup.file("root.key");
    let service = local_root(setup.clone(), &key).start().await;
    service.encrypt("default", HELLO).await;
    chain_when(&service, "a KEK under a local root", 0, |it| keks(it).local_only == 1).await;
    let (text, status) = both(&service).await;
    assert!(status.is_well() && text.contains("for development"), "a note, and no finding");
    assert_eq!(status.findings[0].level, Level::Note);
    assert!(status.chains[0].exposed);
    assert!(text.contains("1 under a local one"), "{text}");

    std::fs::rename(&key, setup.file("away")).unwrap();
    assert_eq!(service.post("/v1/rotate", json!({})).await.0, 503);
    let (text, status) = both(&service).await;
    assert_eq!(status.status, "degraded");
    let root = &status.roots[0];
    assert_eq!((&*root.state, root.failed_calls > 0), ("away", true), "{root:?}");
    assert_eq!(root.last_error.as_ref().unwrap().until, None);
    let finding = status.findings.iter().find(|it| it.about == "root:main").unwrap();
    assert_eq!(
        (finding.level, &*finding.commands),
        (Level::Degraded, &["kms-proxy root status".to_owned()][..])
    );
    for shown in [&*finding.detail, &finding.advice, "kms-proxy root status", &finding.link] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    let said = run(&["status", "--server", &service.url()], b"");
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("\n  kms-proxy root status\n") && said.contains(&finding.link), "{said}");

    std::fs::rename(setup.file("away"), &key).unwrap();
    until("a rotation", async || {
        (service.post("/v1/rotate", json!({})).await.0 == 200).then_some(())
    })
    .await;
    let counted_again = |chain: &Chain| keks(chain).retired == 1;
    let status = chain_when(&service, "a retired KEK", 0, counted_again).await;
    assert!(status.is_well(), "{:?}", status.findings);
    let outage = status.roots[0].last_error.clone().unwrap();
    assert_eq!(outage.until.as_ref(), Some(&status.roots[0].since), "{outage:?}");

    let moved = setup.file("moved");
    std::fs::rename(setup.data(), &moved).unwrap();
    assert_ne!(service.post("/v1/rotate", json!({})).await.0, 200);
    let (text, status) = both(&service).await;
    assert_eq!(status.store.as_ref().unwrap().state, "away");
    assert_eq!(status.findings[0].about, "store", "the cause leads: {:?}", status.findings);
    assert!(!status.findings[0].effect.is_empty());
    for shown in [&status.summary, &status.findings[0].effect] {
        assert!(text.contains(&**shown), "{shown}: {text}");
    }
    let outage = status.chains[0].outage.as_ref().unwrap();
    assert!(text.contains(&outage.text(&status.time)), "{outage:?}: {text}");
    let said = run(&["status", "--server", &service.url()], b"");
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("Without store: ") && said.contains(&status.summary), "{said}");
    assert!(status.findings.iter().any(|it| it.about == "store"), "{:?}", status.findings);
    assert!(status.chains[0].primary.is_some(), "what is in memory is shown");
    std::fs::rename(&moved, setup.data()).unwrap();
    until("a store that is back", async || both(&service).await.1.is_well().then_some(())).await;
}

#[tokio::test]
async fn a_chain_near_its_rotation_shows_when_it_comes() {
    let setup = quiet(Setup::new()).set("CHAIN__NAMES", "orders");
    let setup = setup.set("CHAIN__ROTATE_AFTER_USES", 10_000).set("CHAIN__MAX_USES", 20_000);
    let service = setup.start().await;
    let (_, before) = both(&service).await;
    assert_eq!(before.chains[1].next_rotation.as_ref().unwrap().reason, "age");
    // The next KEK is made past half of the uses.
    for _ in 0..51 {
        encrypt_many(&service, "orders", 100).await;
    }
    let status = until("the next KEK", async || {
        encrypt_many(&service, "orders", 1).await;
        let (_, status) = both(&service).await;
        let orders = &status.chains[1];
        (orders.standby_state == "ready" && keks(orders).standby == 1).then_some(status)
    })
    .await;
    let orders = &status.chains[1];
    let next = orders.next_rotation.as_ref().unwrap();
    assert_eq!(next.reason, "uses", "{orders:?}");
    assert!(orders.encrypts_per_second > 0.0 && orders.uses_reserved > 5_000, "{orders:?}");
    let (text, _) = page(&service, "/status").await;
    assert!(text.contains("next KEK ready") && text.contains("by uses"), "{text}");
    assert!(text.contains("of 10,000 uses"), "{text}");
    let first = orders.primary.clone();
    until("the next primary", async || {
        encrypt_many(&service, "orders", 100).await;
        let (_, status) = both(&service).await;
        (status.chains[1].primary != first).then_some(())
    })
    .await;
    chain_when(&service, "a retired KEK", 1, |orders| keks(orders).retired == 1).await;
}

#[tokio::test]
async fn an_archive_that_is_behind_is_shown_until_it_has_caught_up() {
    let setup = Setup::new();
    let (archive, away) = (setup.file("archive"), setup.file("away"));
    let setup = directory(quiet(setup), 0, &archive);
    let service = setup.start().await;
    until("an archive that was compared", async || {
        let (_, status) = both(&service).await;
        (status.archives[0].state == "ok").then_some(())
    })
    .await;
    std::fs::rename(&archive, &away).unwrap();
    // The next KEK is made, and can't be archived.
    assert_eq!(service.post("/v1/rotate", json!({})).await.0, 503);
    let (text, status) = until("an archive that is away", async || {
        let (text, status) = both(&service).await;
        (status.archives[0].state == "away").then_some((text, status))
    })
    .await;
    let nas = &status.archives[0];
    assert!(nas.pending > 0 && nas.last_error.is_some() && nas.since.is_some(), "{nas:?}");
    let finding = status.findings.iter().find(|it| it.about == "archive:nas").unwrap();
    assert!(finding.link.ends_with("archive.md#an-archive-that-fails"), "{finding:?}");
    assert!(text.contains("records to write") && !status.is_well(), "{text}");
    std::fs::rename(&away, &archive).unwrap();
    until("an archive that has caught up", async || {
        let (_, status) = both(&service).await;
        let nas = &status.archives[0];
        (nas.state == "ok" && nas.pending == 0).then_some(())
    })
    .await;
}

#[test]
fn a_price_that_is_none_is_refused() {
    for (key, value) in [
        ("ADMIN__ROOT_CALL_PRICE", "-1"),
        ("ADMIN__ROOT_CALL_PRICE", "NaN"),
        ("ADMIN__ROOT_CALL_PRICE", "free"),
        ("ADMIN__CURRENCY", ""),
        ("ADMIN__CURRENCY", "<b>"),
        ("ADMIN__STATUS", "perhaps"),
    ] {
        let output = Setup::new().set(key, value).run(&["check-config"]);
        let said = String::from_utf8(output.stderr).unwrap();
        let setting = key.to_lowercase().replace("__", ".");
        assert_eq!(output.status.code(), Some(2), "{key} {value}");
        assert!(said.contains(&setting), "{said}");
    }
}

#[tokio::test]
async fn twenty_chains_are_below_30_kilobytes_and_two_hundred_are_on_one_page() {
    let names: Vec<_> = (0..19).map(|index| format!("team-{index}-customer-records")).collect();
    let service = quiet(Setup::new())
        .set("CHAIN__NAMES", names.join(","))
        .set("CHAIN__ROTATE_AFTER_USES", 1_000_000)
        .start()
        .await;
    for name in &names {
        encrypt_many(&service, name, 2_000).await;
    }
    let (text, _) = page(&service, "/status").await;
    assert_eq!(text.matches("status/chains/").count(), 20);
    tell(&format!("the status page with 20 chains: {} bytes", text.len()));
    assert!(text.len() < 30_000, "{} bytes", text.len());
    for index in 0..180 {
        let (code, said) =
            service.send(Method::PUT, &format!("/v1/chains/idle-{index}"), json!({})).await;
        assert_eq!(code, 201, "{said}");
    }
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let request = service.request(Method::GET, "/status");
        let started = Instant::now();
        let text = request.send().await.unwrap().text().await.unwrap();
        best = best.min(started.elapsed());
        assert_eq!(text.matches("status/chains/").count(), 200);
    }
    tell(&format!("the status page with 200 chains: {best:?} at best"));
    // The rest is on the next page.
    service.send(Method::PUT, "/v1/chains/zz-last", json!({})).await;
    let (text, _) = page(&service, "/status").await;
    assert!(!text.contains("zz-last") && text.contains("More chains"), "{text}");
    let next = text.split_once("after=").unwrap().1.split_once('"').unwrap().0;
    let (text, _) = page(&service, &format!("/status?still&after={next}")).await;
    assert!(text.contains("zz-last"), "{text}");
}
