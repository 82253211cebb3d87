//! The status pages in headless Chromium: in each state of the service that differs to the eye, in
//! light and dark, on a phone and on a desk. The screenshots are in `target/screenshots`, to be
//! looked at.
//!
//! `tests/browser/pages.cjs` opens the pages and reports what a person meets there; what is wrong
//! is decided here.

use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::archive::{directory, root as local_root};
use crate::pkcs11::Hsm;
use crate::roots::with_kms;
use crate::support::etcd::Etcd;
use crate::support::kms::{Front, Moto, Way};
use crate::support::lines::Lines;
use crate::support::tools::{admin, node, test_env};
use crate::support::{Service, Setup, root, tell, until};

use super::access::with_clients;
use super::{HELLO, encrypt_many, quiet};

/// Colour scheme and width.
type View = (&'static str, u32);
const DESK: View = ("light", 1280);
const PHONE: View = ("dark", 360);
const VIEWS: [View; 4] = [DESK, PHONE, ("light", 360), ("dark", 1280)];

/// The pictures of docs/status.md: a state, a view, and how many pixels from the top are shown.
const OF_DOCUMENTS: [(&str, View, u32); 2] = [("well", DESK, 760), ("outage", PHONE, 1100)];

/// Chromium. It ends with what drives it.
struct Browser {
    lines: Lines,
    shots: PathBuf,
    /// Its profile.
    _home: tempfile::TempDir,
}

/// A page as `pages.cjs` reports it.
#[derive(Deserialize)]
struct Page {
    status: u16,
    title: String,
    url: String,
    text: String,
    requests: Vec<String>,
    said: Vec<String>,
    tabs: Vec<Tab>,
    views: Vec<Seen>,
}

/// A page in one view.
#[derive(Deserialize)]
struct Seen {
    wide: u32,
    axe: Vec<String>,
}

/// An element that the tab key reaches.
#[derive(Debug, Deserialize)]
struct Tab {
    name: String,
    wrong: Vec<String>,
}

impl Browser {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let shots = root().join("target/screenshots");
        std::fs::create_dir_all(&shots).unwrap();
        let mut command = Command::new(node());
        command.arg(root().join("tests/browser/pages.cjs")).env_clear();
        command.env("NODE_PATH", test_env("../node/node_modules"));
        command.env("PATH", "/usr/bin:/bin");
        command.env("HOME", home.path()).env("TMPDIR", home.path());
        Self { lines: Lines::start(command), shots, _home: home }
    }

    /// Opens a page with the `options` of `pages.cjs`.
    fn open(&mut self, url: &str, views: &Value, options: &Value) -> Page {
        let mut command = json!({"open": url, "views": views});
        command.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        serde_json::from_value(self.lines.good(&command)).unwrap()
    }

    /// Opens the page of a state and takes a screenshot in each of `views`. Nothing may be wrong
    /// with it; the texts must be there, in this order.
    fn look(&mut self, state: &str, url: &str, views: &[View], options: &Value, texts: &[&str]) {
        let shots = views.iter().map(|(scheme, width)| {
            let shot = self.shots.join(format!("{state}-{scheme}-{width}.png"));
            json!({"scheme": scheme, "width": width, "shot": shot})
        });
        let shots: Vec<_> = shots.collect();
        let page = self.open(url, &json!(shots), options);
        page.is_faultless(state, url, views);
        let mut rest = &*page.text;
        for text in texts {
            let after = rest.split_once(text).map(|(_, after)| after);
            rest = after.unwrap_or_else(|| panic!("{state}: no {text:?} in {rest}"));
        }
        self.document(state, url, options);
    }

    /// Takes the picture of docs/status.md if it shows this state, and if they are to be written.
    #[expect(clippy::disallowed_methods, reason = "a setting of the test, not of the service")]
    fn document(&mut self, state: &str, url: &str, options: &Value) {
        let shown = OF_DOCUMENTS.iter().find(|(of, ..)| *of == state);
        let Some((_, (scheme, width), tall)) = shown else { return };
        if std::env::var_os("KMS_PROXY_WRITE_SCREENSHOTS").is_some() {
            let shot =
                json!({"scheme": scheme, "width": width, "shot": image(state), "tall": tall});
            self.open(url, &json!([shot]), options);
        }
    }
}

/// A picture of docs/status.md.
fn image(state: &str) -> PathBuf {
    root().join(format!("docs/status/{state}.png"))
}

impl Page {
    fn is_faultless(&self, what: &str, url: &str, views: &[View]) {
        assert_eq!(self.views.len(), views.len());
        for (seen, view) in self.views.iter().zip(views) {
            assert_eq!(seen.wide, view.1, "{what} {view:?} scrolls to the side");
            assert!(seen.axe.is_empty(), "{what} {view:?}: {:#?}", seen.axe);
        }
        // Chromium logs every response that is an error, the page itself too.
        let own = format!("the server responded with a status of {}", self.status);
        let is_own = |said: &&String| self.status >= 400 && said.contains(&own);
        let said: Vec<_> = self.said.iter().filter(|said| !is_own(said)).collect();
        assert!(said.is_empty() && self.said.len() <= 1, "{what}: {:#?}", self.said);
        assert_eq!(self.requests, [url], "{what}");
        let is_bad = |tab: &&Tab| !tab.wrong.is_empty() || tab.name.is_empty();
        let bad: Vec<_> = self.tabs.iter().filter(is_bad).collect();
        assert!(bad.is_empty(), "{what}: {bad:#?}");
    }
}

/// The view on a desk alone.
fn desk() -> Value {
    json!([{"scheme": DESK.0, "width": DESK.1}])
}

/// What the check of a page finds must be found where it is: the page with faults in it.
fn faults_are_noticed(browser: &mut Browser, url: &str) {
    let fault = "<p><font color=\"#bbbbbb\">pale</font></p>\
        <img src=\"https://elsewhere.example/a.png\" width=\"3000\" height=\"1\">\
        <p style=\"margin:0\">styled</p><script>alert(1)</script><a href=\"x\"></a>";
    let page = browser.open(url, &desk(), &json!({"spoil": fault}));
    let seen = &page.views[0];
    for rule in ["color-contrast", "image-alt", "link-name"] {
        assert!(seen.axe.iter().any(|it| it.starts_with(rule)), "{rule}: {:#?}", seen.axe);
    }
    for refused in ["img-src", "style-src", "script-src"] {
        let said = page.said.iter().any(|it| it.contains("error: ") && it.contains(refused));
        assert!(said, "{refused}: {:#?}", page.said);
    }
    assert!(page.said.iter().any(|it| it.starts_with("issue: ")), "{:#?}", page.said);
    assert!(!page.said.iter().any(|it| it.starts_with("dialog")), "{:#?}", page.said);
    assert!(seen.wide > 1280);
}

/// Two replicas as in production: KMS and a passphrase as roots, etcd, an archive, an audit log,
/// and clients with tokens. Chains have been used, and some calls failed.
struct Production {
    etcd: Etcd,
    kms: Front,
    service: Service,
    /// Where operators look.
    status: String,
    /// The token of a client that may rotate.
    operators: String,
    _moto: std::sync::Arc<Moto>,
    _other: Service,
}

impl Production {
    async fn start() -> Self {
        let (moto, etcd) = (Moto::shared(), Etcd::start().await);
        let kms = Front::start(Some(&*moto)).await;
        let key = moto.create_key().await;
        let setup = |clients| {
            let (setup, tokens) = with_clients(with_kms(Setup::new(), 0, &kms, &key), clients);
            let archive = setup.file("archive");
            let setup = directory(setup.on_etcd(&etcd), 0, &archive)
                .set("ROOT__1__NAME", "recovery")
                .set("ROOT__1__KIND", "passphrase")
                .set("ROOT__1__MEMORY", "19MiB")
                .set("ROOT__1__PASSES", 2)
                .set("ROOT__1__PASSPHRASE", "correct horse battery staple")
                .set("CHAIN__NAMES", "billing,customer-records,orders,sessions")
                .set("CHAIN__ROTATE_AFTER_USES", 20_000)
                .set("CHAIN__MAX_USES", 40_000)
                .set("SERVER__ADMIN_LISTEN", "127.0.0.1:0");
            (setup, tokens)
        };
        let clients = [
            ("operators", "*", "rotate"),
            ("reports", "orders", "decrypt"),
            ("shop", "*", "encrypt"),
        ];
        let (other, _) = setup(clients);
        let other = other.start().await;
        let (setup, [operators, reports, shop]) = setup(clients);
        let audit = setup.file("audit.jsonl").display().to_string();
        let service = setup.set("AUDIT__FILE", audit).start().await;
        let status = admin(&service);
        let production = Self { etcd, kms, service, status, operators, _moto: moto, _other: other };
        production.use_it(&shop, &reports).await;
        production
    }

    /// Sends the traffic of two clients, some of which is refused.
    async fn use_it(&self, shop: &str, reports: &str) {
        let send = async |token: &str, path: &str, body: Value| -> (u16, Value) {
            let request = self.service.request(Method::POST, path).bearer_auth(token);
            let response = request.json(&body).send().await.unwrap();
            (response.status().as_u16(), response.json().await.unwrap())
        };
        let items = vec![json!({"plaintext": HELLO}); 900];
        for (chain, count) in [("orders", 17), ("sessions", 7), ("billing", 2)] {
            for _ in 0..count {
                let body = json!({"chain": chain, "items": items});
                assert_eq!(send(shop, "/v1/batch/encrypt", body).await.0, 200);
            }
        }
        let body = json!({"chain": "orders", "plaintext": HELLO});
        let (_, sealed) = send(shop, "/v1/encrypt", body).await;
        let items = vec![json!({"ciphertext": sealed["ciphertext"]}); 500];
        let body = json!({"chain": "orders", "items": items});
        assert_eq!(send(reports, "/v1/batch/decrypt", body).await.0, 200);
        let forged = json!({"chain": "orders", "ciphertext": sealed["ciphertext"], "aad": HELLO});
        for _ in 0..3 {
            assert_eq!(send(reports, "/v1/decrypt", forged.clone()).await.0, 400);
        }
        let body = json!({"chain": "billing", "ciphertext": sealed["ciphertext"]});
        assert_eq!(send(reports, "/v1/decrypt", body).await.0, 403);
        let wait = "numbers of KEKs, the archive and the other replica";
        until(wait, async || {
            let (_, status) = self.json().await;
            let chains = status["chains"].as_array().unwrap();
            let counted = chains.iter().all(|chain| chain["keks"].is_u64());
            let compared = status["archives"][0]["state"] == "ok";
            let replicas = status["replicas"].as_array().unwrap().len();
            (counted && compared && replicas == 1 && status["status"] == "ok").then_some(())
        })
        .await;
    }

    /// The page, which does not refresh.
    fn page(&self) -> String {
        format!("{}/status?still", self.status)
    }

    async fn json(&self) -> (u16, Value) {
        let response = reqwest::get(format!("{}/status.json", self.status)).await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Lets the root KMS answer with `error`.
    async fn refuse(&self, error: &'static str) {
        self.kms.set(Way::Error(400, "AccessDeniedException", error));
        until("a root that denies access", async || {
            // A chain without a standby needs a new KEK, which the other root wraps.
            let rotate = self.service.request(Method::POST, "/v1/rotate");
            let rotate = rotate.bearer_auth(&self.operators);
            rotate.json(&json!({"chain": "customer-records"})).send().await.unwrap();
            let (_, status) = self.json().await;
            let last_error = status["roots"][0]["last_error"]["detail"].to_string();
            (status["roots"][0]["state"] == "away" && last_error.contains(error)).then_some(())
        })
        .await;
    }

    /// Ends the store.
    async fn lose_the_store(&mut self) {
        self.etcd.kill();
        until("a store that is away", async || {
            let (_, status) = self.json().await;
            (status["store"]["state"] == "away").then_some(())
        })
        .await;
    }
}

/// What AWS says to a role without a permission.
const DENIED: &str = "User arn:aws:sts::123456789012:assumed-role/kms-proxy/orders is not \
    authorized to perform kms:Encrypt";

/// A text that would be dangerous if it came to the page as it is, or as a command.
const PLANTED: &str = "<script>alert(1)</script><img src=x onerror=alert(2)>: kms-proxy root \
    remove --root main";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_pages_in_a_browser() {
    let mut browser = Browser::start();
    let started = std::time::Instant::now();
    in_production(&mut browser).await;
    with_200_chains(&mut browser).await;
    without_permission(&mut browser).await;
    out_of_service(&mut browser).await;
    let took = started.elapsed();
    tell(&format!("the status pages in a browser: {took:?}"));
}

async fn in_production(browser: &mut Browser) {
    let mut production = Production::start().await;
    let page = production.page();
    let sections = [
        "This replica works",
        "What needs attention",
        "All is well.",
        "What was saved",
        "Root calls made",
        "Chains",
        "billing",
        "KEKs: 1 primary",
        "of 20,000 uses",
        "Next rotation in",
        "encrypts/s",
        "orders",
        "3 invalid_ciphertext",
        "Roots",
        "main",
        "answers since",
        "recovery",
        "Store (etcd)",
        "Archive nas",
        "Audit log",
        "Other replicas that use the store",
        "Callers",
        "reports",
        "1 forbidden",
    ];
    browser.look("well", &page, &VIEWS, &json!({"tab": true}), &sections);
    faults_are_noticed(browser, &page);

    // With the keyboard to the page of a chain and back, and from there to the page that refreshes.
    let links = ["orders", "All chains", "Stop refreshing", "Refresh every 10 seconds"];
    let back = browser.open(&page, &desk(), &json!({"follow": links}));
    assert_eq!(back.url, format!("{}/status", production.status));
    assert!(back.tabs.is_empty() && back.title == "kms-proxy: ok", "{}", back.title);

    let chain = format!("{}/status/chains/orders", production.status);
    let texts = ["Chain orders", "Now", "Next rotation", "KEKs", "primary", "main, recovery"];
    browser.look("chain", &chain, &[DESK, PHONE], &json!({"tab": true}), &texts);

    production.refuse(PLANTED).await;
    let (_, status) = production.json().await;
    let findings = status["findings"].as_array().unwrap();
    let of_root = findings.iter().find(|it| it["about"] == "root:main").unwrap();
    assert_eq!(of_root["commands"], json!(["kms-proxy root status"]), "{of_root}");
    browser.look("planted", &page, &[DESK], &json!({}), &["Degraded: root:main", PLANTED, "Roots"]);
    production.refuse(DENIED).await;
    production.lose_the_store().await;
    let texts = [
        "This replica works, and needs attention",
        "The store has been away since",
        "Degraded: store",
        "Decrypts under KEKs in memory work until",
        "Degraded: root:main",
        DENIED,
        "More about root:main",
        "Without store: ",
        "Roots",
        "away since",
        "Store (etcd)",
        "away since",
    ];
    browser.look("outage", &page, &VIEWS, &json!({}), &texts);
}

async fn with_200_chains(browser: &mut Browser) {
    let setup = Setup::new();
    let key = setup.file("root.key");
    let longest = "x".repeat(63);
    let used = (0..120).map(|index| format!("team-{index:03}-records"));
    let names: Vec<_> = used.chain([longest.clone()]).collect();
    let service = local_root(setup, &key).set("CHAIN__NAMES", names.join(",")).start().await;
    for index in 0..78 {
        let path = format!("/v1/chains/idle-{index:03}");
        assert_eq!(service.send(Method::PUT, &path, json!({})).await.0, 201);
    }
    encrypt_many(&service, "team-007-records", 100).await;
    let page = format!("{}/status?still", service.url());
    let texts = ["for development", "default", "idle-000", "team-007-records", &longest, "Roots"];
    browser.look("200-chains", &page, &[DESK, PHONE], &json!({}), &texts);
}

async fn without_permission(browser: &mut Browser) {
    let clients = [("app", "*", "encrypt"), ("shop", "orders", "read")];
    let (setup, [app, shop]) = with_clients(quiet(Setup::new()), clients);
    let service = setup.set("CHAIN__NAMES", "orders,hidden").start().await;
    let page = format!("{}/status", service.url());
    let texts = ["401 Unauthorized", "no valid client certificate", "A browser can't send a token"];
    browser.look("unauthenticated", &page, &[DESK, PHONE], &json!({"tab": true}), &texts);
    let with = |token: &str| json!({"headers": {"authorization": format!("Bearer {token}")}});
    let texts = ["403 Forbidden", "the client app may not read any chain"];
    browser.look("forbidden", &page, &[DESK, PHONE], &with(&app), &texts);
    let page = format!("{}/status?still", service.url());
    browser.look("one-chain", &page, &[DESK, PHONE], &with(&shop), &["All is well.", "orders"]);
}

async fn out_of_service(browser: &mut Browser) {
    let hsm = Hsm::with_key();
    hsm.remove();
    let service = hsm.setup.start_unready().await;
    let page = format!("{}/status?still", service.url());
    let texts = ["This replica is unavailable", "root:hsm", "kms-proxy root status", "No KEK yet"];
    browser.look("unavailable", &page, &[DESK, PHONE], &json!({}), &texts);

    let nowhere = "http://127.0.0.1:1".to_owned();
    let service = quiet(Setup::new()).on_endpoints(&[nowhere]).listen().await;
    _ = service.logged("the store is not usable yet; waiting for it").await;
    let page = format!("{}/status", service.url());
    let texts = ["503 Service Unavailable", "it waits for store: ", "asks again every 10 seconds"];
    browser.look("starting", &page, &[DESK, PHONE], &json!({"refreshes": true}), &texts);
}

/// The pictures of docs/status.md are there, are small, and say what they show.
#[test]
fn the_pictures_of_the_documents_are_small() {
    let text = std::fs::read_to_string(root().join("docs/status.md")).unwrap();
    for (state, _, _) in OF_DOCUMENTS {
        let path: &Path = &image(state);
        let bytes = std::fs::read(path).unwrap_or_else(|_| panic!("run `make screenshots`"));
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() < 150_000, "{}", bytes.len());
        assert!(text.contains(&format!("](status/{state}.png)")), "{state}");
    }
}
