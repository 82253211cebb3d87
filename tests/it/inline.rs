//! Services without a store: processes that share nothing but the root key, and the way between
//! them and those that have a store.

use std::collections::HashMap;
use std::path::Path;
use std::process::Output;

use kms_proxy::envelope::{self, Envelope};
use reqwest::Method;
use serde_json::{Value, json};

use crate::aws_kms::{self, DECRYPT, ENCRYPT};
use crate::pkcs11::Hsm;
use crate::support::kms::{Front, Moto, Way};
use crate::support::{Sealed, Service, Setup, decrypt_all, root, run};

mod chains;

const HELLO: &str = "aGVsbG8=";

/// A process without a store, whose root is `key_id` behind `front`.
fn setup(front: &Front, key_id: &str) -> Setup {
    aws_kms::setup(front, key_id).set("STORE__KIND", "inline")
}

/// One whose root is this key file.
fn with_key(setup: Setup, key: &Path) -> Setup {
    let setup = setup.set("ROOT__0__NAME", "main").set("ROOT__0__KIND", "local");
    setup.set("ROOT__0__KEY_FILE", key.display()).set("LOG__LEVEL", "warn")
}

/// How many calls of a kind there were.
fn count(calls: &[String], kind: &str) -> usize {
    calls.iter().filter(|call| *call == kind).count()
}

/// The bytes of the header, and those of the inline record.
fn header(ciphertext: &str) -> (usize, Option<usize>) {
    let bytes = envelope::from_text(ciphertext).unwrap();
    let header = Envelope::parse(&bytes).unwrap().header;
    (header.bytes.len(), header.version.record().map(<[u8]>::len))
}

/// A command that calls `service`.
fn call(service: &Service, args: &[&str], input: &[u8]) -> Output {
    let url = service.url();
    run(&[args, &["--server", &url]].concat(), input)
}

fn good(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(output: Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn processes_that_share_a_root_alone_decrypt_each_others_at_one_call_a_kek() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let key = moto.create_key().await;
    let setups = [(); 2].map(|()| setup(&front, &key).set("CHAIN__NAMES", "orders"));
    let services = [setups[0].start().await, setups[1].start().await];
    assert!(front.targets().is_empty(), "a start costs no call");
    let mut sealed = [Vec::new(), Vec::new()];
    for (service, sealed) in services.iter().zip(&mut sealed) {
        for _ in 0..20 {
            sealed.push(service.encrypt("default", HELLO).await);
        }
        for one in sealed {
            assert_eq!(header(&one.ciphertext).0, header(&one.ciphertext).1.unwrap() + 64);
        }
    }
    assert_eq!(front.take().len(), 2, "each made a KEK");
    decrypt_all(&services[0], &sealed[1]).await;
    decrypt_all(&services[1], &sealed[0]).await;
    assert_eq!(front.targets(), [DECRYPT, DECRYPT], "one for each foreign KEK");

    front.set(Way::Close);
    for service in &services {
        for sealed in &sealed {
            decrypt_all(service, sealed).await;
        }
        service.encrypt("default", HELLO).await;
        let (status, readiness) = service.get("/readyz").await;
        assert_eq!((status.as_u16(), &readiness["status"]), (200, &json!("ok")), "{readiness}");
    }
    // A chain that was not used has no KEK yet, and needs the root for one.
    let failed = services[0].try_encrypt("orders", HELLO).await.unwrap().unwrap_err();
    assert_eq!(failed.1["code"], "root_unavailable");
    front.set(Way::Through);
    crate::support::until("the root is back", async || {
        services[0].try_encrypt("orders", HELLO).await?.ok()
    })
    .await;
    let listed = good(call(&services[0], &["status"], b""));
    assert!(listed.contains("orders"), "{listed}");
    for (service, setup) in services.into_iter().zip(&setups) {
        service.stop().await;
        assert!(!setup.data().exists(), "nothing is stored");
    }
}

/// Six lives of three processes, 170,000 encrypts in each.
#[tokio::test]
async fn a_million_encrypts_over_three_processes_cost_what_they_should() {
    const ITEMS: usize = 10_000;
    const BATCHES: usize = 17;
    const MAX_USES: usize = 100_000;
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let key = moto.create_key().await;
    let items = json!({"items": vec![json!({"plaintext": ""}); ITEMS]});
    let setups = [(); 3].map(|()| {
        let setup = setup(&front, &key).set("CHAIN__ROTATE_AFTER_USES", 50_000);
        // An encrypt may wait for the next KEK: a loaded moto is not an outage.
        setup.set("CHAIN__MAX_USES", MAX_USES).set("SERVER__REQUEST_TIMEOUT", "5m")
    });
    let (mut keks, mut wraps) = (HashMap::<String, (usize, Sealed)>::new(), 0);
    for _ in 0..2 {
        let lives = setups.each_ref().map(|setup| async {
            let service = setup.start().await;
            let mut uses = HashMap::<String, (usize, Sealed)>::new();
            for _ in 0..BATCHES {
                let answer = service.ok("/v1/batch/encrypt", items.clone()).await;
                let results = answer["results"].as_array().unwrap();
                assert_eq!(results.len(), ITEMS);
                for result in results {
                    let ciphertext = result["ciphertext"].as_str().expect("an envelope");
                    let id = result["kek_id"].as_str().unwrap();
                    match uses.get_mut(id) {
                        Some((uses, _)) => *uses += 1,
                        None => _ = uses.insert(id.to_owned(), (1, sealed(ciphertext))),
                    }
                }
            }
            let wraps = aws_kms::metric(&service, WRAPS).await;
            let metrics = service.metrics().await;
            let unwraps = metrics.lines().filter(|line| {
                line.starts_with("kms_proxy_root_calls_total") && line.contains(r#""unwrap""#)
            });
            assert!(unwraps.clone().all(|line| line.ends_with(" 0")), "nothing was to be opened");
            assert!(unwraps.count() > 0, "{metrics}");
            service.kill();
            (uses, usize::try_from(wraps).unwrap())
        });
        let [one, two, three] = lives;
        let (one, two, three) = tokio::join!(one, two, three);
        for (uses, made) in [one, two, three] {
            let total: usize = uses.values().map(|(uses, _)| uses).sum();
            assert_eq!(total, ITEMS * BATCHES);
            assert!(uses.values().all(|(uses, _)| *uses <= MAX_USES), "no KEK passes its limit");
            // Each is used to its rotation at least, but for the last one and what is left of a
            // block or two; and the next one may be made already.
            assert!((2..=4).contains(&uses.len()), "{} KEKs", uses.len());
            assert!((uses.len()..=uses.len() + 1).contains(&made), "{made} of {}", uses.len());
            wraps += made;
            for (id, seen) in uses {
                assert!(keks.insert(id, seen).is_none(), "each life makes its own");
            }
        }
    }
    let calls = front.targets();
    assert_eq!(count(&calls, ENCRYPT), calls.len(), "the log of the server");
    // A process that is killed may be making its next KEK.
    assert!((wraps..=wraps + 6).contains(&calls.len()), "{} calls, {wraps} wraps", calls.len());
    front.take();
    let reader = setups[0].start().await;
    let envelopes: Vec<_> = keks.into_values().map(|(_, sealed)| sealed).collect();
    for _ in 0..2 {
        decrypt_all(&reader, &envelopes).await;
    }
    assert_eq!(front.targets(), vec![DECRYPT; envelopes.len()]);
}

const WRAPS: &str = r#"kms_proxy_root_calls_total{operation="wrap",outcome="ok",root="main"}"#;

fn sealed(ciphertext: &str) -> Sealed {
    let (chain, plaintext) = ("default".to_owned(), String::new());
    Sealed { chain, plaintext, ciphertext: ciphertext.to_owned() }
}

/// A row of the table in docs/format.md: the record's and the header's bytes, for both suites.
fn row(kind: &str) -> [[usize; 2]; 2] {
    let text = std::fs::read_to_string(root().join("docs/format.md")).unwrap();
    let row = text.lines().find_map(|line| line.strip_prefix(&format!("| `{kind}` | ")));
    let row = row.unwrap_or_else(|| panic!("{kind} has no row in docs/format.md"));
    let cells = row.trim_end_matches(" |").split(" | ");
    let cells: Vec<usize> = cells.map(|cell| cell.parse().unwrap()).collect();
    [[cells[0], cells[1]], [cells[2], cells[3]]]
}

#[tokio::test]
async fn headers_are_as_long_as_the_table_says() {
    let passphrase = Setup::new()
        .set("ROOT__0__KIND", "passphrase")
        .set("ROOT__0__PASSPHRASE", "correct horse")
        .set("ROOT__0__MEMORY", "19MiB")
        .set("ROOT__0__PASSES", "2");
    let hsm = Hsm::with_key();
    let (moto, local) = (Moto::shared(), Setup::new().set("ROOT__0__KIND", "local"));
    let front = Front::start(Some(&*moto)).await;
    let key = moto.create_key().await;
    let kms = aws_kms::setup(&front, &key);
    for (kind, setup) in [
        ("local", local),
        ("passphrase", passphrase),
        ("pkcs11", hsm.setup.clone()),
        ("aws-kms", kms),
    ] {
        let setup = setup.set("STORE__KIND", "inline").set("ROOT__0__NAME", "main");
        let suites = [("aes-128-gcm", 16, 168), ("aes-256-gcm", 32, 184)];
        for ((suite, kek, blob), [record, whole]) in suites.into_iter().zip(row(kind)) {
            let service = setup.clone().set("CHAIN__SUITE", suite).start().await;
            let made = service.encrypt("default", HELLO).await;
            decrypt_all(&service, std::slice::from_ref(&made)).await;
            let (mut expected, most) = ((whole, record), if kind == "aws-kms" { 350 } else { 250 });
            assert!(whole < most, "{kind}, {suite}");
            if kind == "aws-kms" {
                // What KMS makes of a KEK is longer than what moto makes of it.
                let body = json!({"KeyId": key, "Plaintext": base64(&vec![7; kek])});
                let ours = moto.call("Encrypt", body).await["CiphertextBlob"].clone();
                let ours = base64_simd::STANDARD.decode_to_vec(ours.as_str().unwrap()).unwrap();
                let less = blob - ours.len();
                expected = (whole - less, record - less);
            }
            let (header, inline) = header(&made.ciphertext);
            assert_eq!((header, inline.unwrap()), expected, "{kind}, {suite}");
            service.stop().await;
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

#[tokio::test]
async fn envelopes_move_to_a_store_and_from_it_header_by_header() {
    let (inline, stored) = (Setup::new().set("STORE__KIND", "inline"), Setup::new());
    let key = stored.file("shared.key");
    let (inline, stored) = (with_key(inline, &key), with_key(stored, &key));
    let (inline, stored) = (inline.start().await, stored.start().await);
    let first = inline.encrypt("default", HELLO).await;
    decrypt_all(&stored, std::slice::from_ref(&first)).await;

    // One by one.
    let moved = stored.ok("/v1/rewrap", json!({"ciphertext": first.ciphertext})).await;
    assert_eq!(moved["previous_kek_id"], first.kek_id());
    let plain = moved["ciphertext"].as_str().unwrap();
    assert_eq!(header(plain), (62, None));
    let (status, answer) = inline.post("/v1/decrypt", json!({"ciphertext": plain})).await;
    assert_eq!((status.as_u16(), &answer["code"]), (400, &json!("unknown_kek")));
    let back = stored.ok("/v1/rewrap", json!({"ciphertext": plain, "inline": true})).await;
    let back = Sealed { ciphertext: back["ciphertext"].as_str().unwrap().into(), ..first };
    assert_eq!(header(&back.ciphertext), (117, Some(53)));
    decrypt_all(&inline, std::slice::from_ref(&back)).await;

    // Many in a batch, and a value that is not a boolean is refused.
    let items = json!([
        {"ciphertext": plain, "inline": true}, {"ciphertext": plain}, {"ciphertext": back.ciphertext},
        {"ciphertext": back.ciphertext, "inline": true},
    ]);
    let answer = stored.ok("/v1/batch/rewrap", json!({"items": items})).await;
    let results = answer["results"].as_array().unwrap();
    let made = results.iter().map(|result| header(result["ciphertext"].as_str().unwrap()).0);
    assert_eq!(made.collect::<Vec<_>>(), [117, 62, 62, 117]);
    assert_eq!(results[3]["ciphertext"], back.ciphertext, "it comes back as it was");
    let wrong = json!({"ciphertext": plain, "inline": "yes"});
    assert_eq!(stored.post("/v1/rewrap", wrong).await.1["code"], "invalid_request");

    // By the command line.
    let text = good(call(&stored, &["rewrap", "--inline"], plain.as_bytes()));
    assert_eq!(header(text.trim()), (117, Some(53)));
    let shown: Value = serde_json::from_str(&good(run(&["inspect"], text.as_bytes()))).unwrap();
    assert_eq!((&shown["version"], &shown["record_bytes"]), (&2.into(), &53.into()));
    assert_eq!(shown["roots"], json!([{"name": "main", "wrap_bytes": 45}]));
    let lines = format!("{plain}\n{plain}\n");
    let lines = good(call(&stored, &["rewrap", "--lines", "--inline"], lines.as_bytes()));
    assert_eq!(lines.lines().map(header).collect::<Vec<_>>(), [(117, Some(53)); 2]);
    let lines = good(call(&stored, &["rewrap", "--lines"], lines.as_bytes()));
    assert_eq!(lines.lines().map(header).collect::<Vec<_>>(), [(62, None); 2]);

    // A KEK that is disabled in the store is so wherever its wraps have gone.
    stored.ok("/v1/rotate", json!({})).await;
    let disable = format!("/v1/chains/default/keks/{}/disable", back.kek_id());
    stored.ok(&disable, json!({})).await;
    let (status, answer) = stored.post("/v1/decrypt", json!({"ciphertext": back.ciphertext})).await;
    assert_eq!((status.as_u16(), &answer["code"]), (409, &json!("kek_disabled")));
}

#[tokio::test]
async fn what_needs_a_store_reports_that_nothing_is_stored() {
    let setup = Setup::new().set("STORE__KIND", "inline").set("CHAIN__NAMES", "orders");
    let service = setup.start().await;
    let log = service.logged("store.kind is inline").await;
    assert!(log.contains("key file"), "{log}");
    let id = service.encrypt("orders", HELLO).await.kek_id();
    let keks = format!("/v1/chains/orders/keks/{id}");
    for (method, path, body) in [
        (Method::PUT, "/v1/chains/new".to_owned(), json!({})),
        (Method::PUT, "/v1/chains/orders".to_owned(), json!({"max_uses": 100})),
        (Method::POST, format!("{keks}/disable"), json!({})),
        (Method::POST, format!("{keks}/enable"), json!({})),
        (Method::POST, format!("{keks}/destroy"), json!({"confirm": id})),
    ] {
        let (status, answer) = service.send(method, &path, body).await;
        assert_eq!((status.as_u16(), &answer["code"]), (409, &json!("conflict")), "{path}");
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains("store.kind = \"inline\""), "{detail}");
    }
    let (status, chain) = service.get("/v1/chains/orders").await;
    assert_eq!((status.as_u16(), &chain["primary"]), (200, &json!(id)), "{chain}");
    service.ok("/v1/rotate", json!({"chain": "orders"})).await;
    service.stop().await;

    let file = setup.file("inline.toml");
    std::fs::write(&file, "[store]\nkind = 'inline'\n").unwrap();
    let at = format!("config:{}", file.display());
    let to = format!("dir:{}", setup.file("copy").display());
    let file = file.to_str().unwrap();
    for command in [
        &["store", "copy", "--from", &at, "--to", &to][..],
        &["store", "copy", "--from", &to, "--to", &at],
        &["store", "verify", "--config", file],
        &["store", "restored", "--config", file, "--yes"],
    ] {
        let said = refused(run(command, b""));
        assert!(said.contains("store.kind is \"inline\": nothing is stored"), "{said}");
    }
    assert!(!setup.file("copy").exists());
    let printed = good(run(&["check-config", "--config", file], b""));
    let expected = "[store]\ndata_dir = \"./kms-proxy-data\"\nkind = \"inline\"\n";
    assert!(printed.contains(expected), "{printed}");
    std::fs::write(file, "[store]\nkind = 'inline'\npath = '/data'\n").unwrap();
    let said = refused(run(&["check-config", "--config", file], b""));
    assert!(said.contains("store.path") && said.contains("data_dir"), "{said}");
}
