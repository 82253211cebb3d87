//! The plugin of Kubernetes in the real binary, over its real socket, against a client that is not
//! ours. Each rule that kube-apiserver has for a plugin is a test.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::lifecycle::{memory_kb, resident_kb};
use crate::limits::{many_names, unfinished_head};
use crate::support::etcd::Etcd;
use crate::support::kms::{Front, Moto, REGION, Way};
use crate::support::kube::{Client, hex};
use crate::support::{Service, Setup, run, tell, until};

mod secrets;

/// A plugin with its socket beside the data directory.
fn plugin(setup: Setup) -> (Setup, PathBuf) {
    let socket = setup.file("kms.sock");
    let setup = setup.set("KUBERNETES__SOCKET", format!("unix://{}", socket.display()));
    (setup, socket)
}

/// Root `index` is a key of AWS KMS.
fn with_kms(setup: Setup, index: usize, front: &Front, key_id: &str) -> Setup {
    setup
        .set(&format!("ROOT__{index}__NAME"), "main")
        .set(&format!("ROOT__{index}__KIND"), "aws-kms")
        .set(&format!("ROOT__{index}__KEY_ID"), key_id)
        .set(&format!("ROOT__{index}__ENDPOINT"), front.url())
        .set(&format!("ROOT__{index}__TIMEOUT"), "14s")
        .env("AWS_REGION", REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
}

fn with_local(setup: Setup, index: usize) -> Setup {
    setup
        .set(&format!("ROOT__{index}__NAME"), "local")
        .set(&format!("ROOT__{index}__KIND"), "local")
}

async fn rotate(service: &Service) {
    service.ok("/v1/rotate", json!({"chain": "kubernetes"})).await;
}

fn seed() -> Vec<u8> {
    (0..32).collect()
}

fn key_id_of(answer: &Value) -> &str {
    answer["key_id"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_version_v2_healthz_ok_and_a_key_id_and_calls_no_root() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let key = moto.create_key().await;
    let (setup, socket) = plugin(with_kms(Setup::new(), 0, &front, &key));
    let _service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    let name = client.key_id();
    assert!((1..=1024).contains(&name.len()), "{name}");
    // The root's kind, its name, its key, and the generation.
    assert!(name.starts_with("kms-proxy/kubernetes/1-"), "{name}");
    assert!(name.ends_with(&format!("/aws-kms/main/{key}")), "{name}");
    let before = front.targets().len();
    let mut times: Vec<_> =
        (0..100).map(|_| client.good(&json!({"do": "status"}))["ms"].as_f64().unwrap()).collect();
    times.sort_by(f64::total_cmp);
    // kube-apiserver waits 3 s. A loaded machine delays some of them.
    assert!(times[50] < 3_000.0, "{times:?}");
    assert_eq!(front.targets().len(), before, "Status asks no root");
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypts_key_id_is_that_of_status_and_decrypt_gives_the_plaintext_back() {
    let (setup, socket) = plugin(Setup::new());
    let service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    let made = client.encrypt(&seed());
    assert_eq!(key_id_of(&made), client.key_id());
    assert_eq!(made["annotations"], json!({}));
    let ciphertext = made["ciphertext"].as_str().unwrap();
    // A version 1 envelope.
    assert!(ciphertext.starts_with("0101") && ciphertext.len() == 2 * (62 + 32 + 16), "{made}");
    assert_eq!(client.decrypt(&made, &[]), json!({"plaintext": hex(&seed())}));
    let metrics = service.metrics().await;
    for operation in ["encrypt", "decrypt"] {
        let counted = format!(
            "operations_total{{chain=\"kubernetes\",operation=\"{operation}\",outcome=\"ok\"}} 1"
        );
        assert!(metrics.contains(&counted), "{metrics}");
    }
    // It is in no one's way: the same chain over HTTP does not open it without what it is bound to.
    let text = kms_proxy::envelope::to_text(&bytes(ciphertext));
    let body = json!({"ciphertext": text, "chain": "kubernetes"});
    assert_eq!(service.post("/v1/decrypt", body.clone()).await.0, 400);
    let aad = format!("kms-proxy kubernetes v1{}", key_id_of(&made));
    let mut body = body;
    body["aad"] = json!(base64(aad.as_bytes()));
    assert_eq!(service.ok("/v1/decrypt", body).await["plaintext"], base64(&seed()));
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_id_does_not_change_when_a_kek_rotates_nor_with_a_restart() {
    let (setup, socket) = plugin(Setup::new());
    let service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    let name = client.key_id();
    let made = client.encrypt(&seed());
    for _ in 0..3 {
        rotate(&service).await;
        assert_eq!(client.key_id(), name);
        assert_eq!(key_id_of(&client.encrypt(&seed())), name);
    }
    service.stop().await;
    let _service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    assert_eq!(client.key_id(), name);
    assert_eq!(client.decrypt(&made, &[]), json!({"plaintext": hex(&seed())}));
}

#[tokio::test(flavor = "multi_thread")]
async fn decrypt_refuses_a_key_id_that_was_never_given_out_and_whatever_else_was_changed() {
    let (setup, socket) = plugin(Setup::new().set("CHAIN__NAMES", "other"));
    let service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    let made = client.encrypt(&seed());
    let name = key_id_of(&made).to_owned();
    let ciphertext = made["ciphertext"].as_str().unwrap().to_owned();
    let mut flipped = bytes(&ciphertext);
    *flipped.last_mut().unwrap() ^= 1;
    let other = service.ok("/v1/encrypt", json!({"plaintext": "", "chain": "other"})).await;
    let other = kms_proxy::envelope::from_text(other["ciphertext"].as_str().unwrap()).unwrap();
    for (key, value) in [
        ("key_id", String::new()),
        ("key_id", "main".to_owned()),
        ("key_id", name.replace("kubernetes", "default")),
        ("key_id", name.replacen("/1-", "/2-", 1)),
        ("key_id", format!("{name}x")),
        ("key_id", name[..name.len() - 1].to_owned()),
        ("key_id", format!("{name}{}", "x".repeat(1_024))),
        ("ciphertext", String::new()),
        ("ciphertext", "00".repeat(110)),
        ("ciphertext", ciphertext[..ciphertext.len() - 2].to_owned()),
        ("ciphertext", hex(&flipped)),
        ("ciphertext", hex(&other)),
        ("ciphertext", "00".repeat(1_025)),
        ("ciphertext", "00".repeat(100_000)),
    ] {
        let answer = client.decrypt(&made, &[(key, json!(value))]);
        assert_eq!(answer["error"], "INVALID_ARGUMENT", "{key} {value}: {answer}");
        let detail = answer["detail"].as_str().unwrap();
        assert!(!detail.contains(&hex(&seed())), "{detail}");
    }
    assert_eq!(client.decrypt(&made, &[])["plaintext"], hex(&seed()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ciphertext_has_1024_bytes_at_most_so_a_plaintext_has_946_or_930() {
    for (suite, most) in [("aes-128-gcm", 946), ("aes-256-gcm", 930)] {
        let (setup, socket) = plugin(Setup::new().set("CHAIN__SUITE", suite));
        let _service = setup.start().await;
        let mut client = Client::of(&[&socket]);
        let longest = client.encrypt(&vec![7; most]);
        assert_eq!(longest["ciphertext"].as_str().unwrap().len(), 2 * 1_024, "{longest}");
        assert_eq!(client.decrypt(&longest, &[])["plaintext"], hex(&vec![7; most]));
        for len in [most + 1, 1_024, 5_000, 100_000] {
            let answer = client.encrypt(&vec![7; len]);
            assert_eq!(answer["error"], "INVALID_ARGUMENT", "{len}: {answer}");
            assert!(answer["detail"].as_str().unwrap().contains("946"), "{answer}");
        }
        let empty = client.encrypt(&[]);
        assert_eq!(client.decrypt(&empty, &[])["plaintext"], "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_uid_of_each_call_is_in_the_log_and_no_plaintext_is() {
    let (setup, socket) = plugin(Setup::new());
    let service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    let uid = |of: &str| format!("6b2f-{of}\u{1b}[31m\n\"");
    let plaintext = "a plaintext that is in no log";
    let command = json!({"do": "encrypt", "plaintext": hex(plaintext.as_bytes()), "uid": uid("e")});
    let made = client.good(&command);
    client.decrypt(&made, &[("uid", json!(uid("d")))]);
    client.decrypt(&made, &[("uid", json!(uid("bad"))), ("ciphertext", json!("00"))]);
    service.logged("6b2f-bad").await;
    let log = service.stop().await;
    for of in ["e", "d", "bad"] {
        let line = log.lines().find(|line| line.contains(&format!("6b2f-{of}\\"))).expect(&log);
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["uid"], uid(of), "{line}");
        assert_eq!(line["chain"], "kubernetes", "{line}");
        assert!(line["took_us"].is_u64(), "{line}");
    }
    assert!(!log.contains(plaintext) && !log.contains(&hex(plaintext.as_bytes())));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_root_is_unavailable_decrypts_succeed_and_encrypts_succeed_or_fail_as_configured()
{
    for enforce in [false, true] {
        let moto = Moto::shared();
        let front = Front::start(Some(&*moto)).await;
        let setup = with_kms(Setup::new(), 0, &front, &moto.create_key().await);
        let policy = if enforce { "enforce" } else { "coast" };
        let (setup, socket) = plugin(setup.set("KUBERNETES__ON_ROOT_OUTAGE", policy));
        let service = setup.start().await;
        let mut client = Client::of(&[&socket]);
        let name = client.key_id();
        let made = client.encrypt(&seed());
        front.set(Way::Error(400, "AccessDeniedException", "no"));
        // A rotation asks the root.
        let (status, _) = service.post("/v1/rotate", json!({"chain": "kubernetes"})).await;
        assert_eq!(status, 503);
        assert_eq!(client.decrypt(&made, &[])["plaintext"], hex(&seed()));
        let status = client.tell(&json!({"do": "status"}));
        let written = client.encrypt(&seed());
        if enforce {
            for answer in [status, written] {
                assert_eq!(answer["error"], "UNAVAILABLE", "{answer}");
                let detail = answer["detail"].as_str().unwrap();
                assert!(detail.contains("on_root_outage") && detail.contains("main"), "{detail}");
            }
        } else {
            assert_eq!(key_id_of(&status), name, "{status}");
            let healthz = status["healthz"].as_str().unwrap();
            assert!(healthz.contains("root main: the root refuses"), "{healthz}");
            assert_eq!(key_id_of(&written), name, "{written}");
            assert_eq!(client.decrypt(&written, &[])["plaintext"], hex(&seed()));
        }
        front.set(Way::Through);
        rotate(&service).await;
        assert_eq!(client.key_id(), name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_id_changes_when_the_root_does_and_what_was_written_before_stays_readable() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let key = moto.create_key().await;
    let (base, socket) = plugin(Setup::new());
    let service = with_local(base.clone(), 0).start().await;
    let mut client = Client::of(&[&socket]);
    let mut names = vec![client.key_id()];
    let mut made = vec![client.encrypt(&seed())];
    service.stop().await;

    // As docs/kubernetes.md has it: both, rewrap, the new one alone, remove.
    let service = with_local(with_kms(base.clone(), 0, &front, &key), 1).start().await;
    let mut client = Client::of(&[&socket]);
    assert_eq!(client.key_id(), names[0], "nothing is done about the root yet");
    let url = service.url();
    let command = |name: &str, root: &str, url: &str| {
        let output = run(&["root", name, "--root", root, "--server", url], b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    command("rewrap", "main", &url);
    let next = async |client: &mut Client, before: &str| {
        until("another key id", async || Some(client.key_id()).filter(|id| id != before)).await
    };
    names.push(next(&mut client, &names[0]).await);
    made.push(client.encrypt(&seed()));
    service.stop().await;

    let service = with_kms(base.clone(), 0, &front, &key).start().await;
    let mut client = Client::of(&[&socket]);
    assert_eq!(client.key_id(), names[1]);
    let url = service.url();
    command("remove", "local", &url);
    names.push(next(&mut client, &names[1]).await);
    made.push(client.encrypt(&seed()));
    assert!(names[0].ends_with("/local/local"), "{names:?}");
    assert!(names[2].ends_with(&format!("/aws-kms/main/{key}")), "{names:?}");
    for (made, name) in made.iter().zip(&names) {
        assert_eq!(key_id_of(made), name);
        assert_eq!(client.decrypt(made, &[])["plaintext"], hex(&seed()));
    }
    // The new seed is under a KEK that the key file never saw.
    let (_, chain) = service.get("/v1/chains/kubernetes?limit=1000").await;
    let primary = chain["items"].as_array().unwrap().iter().find(|it| it["state"] == "primary");
    let primary = primary.unwrap();
    assert_eq!(primary["exposed"], false, "{primary}");
    let ciphertext = bytes(made[2]["ciphertext"].as_str().unwrap());
    assert_eq!(hex(&ciphertext[2..18]), primary["kek_id"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_path_as_authority_is_refused_and_an_abstract_socket_takes_it() {
    let (setup, socket) = plugin(Setup::new());
    let service = setup.start().await;
    // What kube-apiserver sends before 1.32.
    let path = socket.display().to_string();
    let mut old = Client::start(&format!("unix:{path}"), &path);
    let refused = old.tell(&json!({"do": "status"}));
    assert!(refused["error"].is_string(), "{refused}");
    service.logged("kube-apiserver before 1.32 sends the path of the socket as :authority").await;
    service.stop().await;

    let name = format!("kms-proxy-test-{}", std::process::id());
    let uid = rustix::process::geteuid().as_raw();
    let setup = |uid: u32| {
        let setup = Setup::new().set("KUBERNETES__SOCKET", format!("unix:///@{name}"));
        setup.set("KUBERNETES__ALLOWED_UIDS", uid)
    };
    let service = setup(uid).start().await;
    let mut client = Client::start(&format!("unix-abstract:{name}"), &format!("@{name}"));
    let made = client.encrypt(&seed());
    assert_eq!(key_id_of(&made), client.key_id());
    assert_eq!(client.decrypt(&made, &[])["plaintext"], hex(&seed()));
    service.stop().await;

    let began = std::time::Instant::now();
    let service = setup(uid + 1).start().await;
    let mut client = Client::start(&format!("unix-abstract:{name}"), &format!("@{name}"));
    assert_eq!(client.tell(&json!({"do": "status"}))["error"], "UNAVAILABLE");
    let refused = "its user is not in kubernetes.allowed_uids";
    let log = service.logged(refused).await;
    assert!(log.contains(&format!(r#""uid":{uid}"#)), "{log}");
    // However often it connects, that is a line in 10 seconds.
    for _ in 0..500 {
        connect(&name);
    }
    let log = service.logged(refused).await;
    let most = 2 + began.elapsed().as_secs() / 10;
    let lines = log.matches(refused).count();
    assert!(u64::try_from(lines).unwrap() <= most, "{lines} lines: {log}");
    let (_, said, _) = doctor(&format!("unix:///@{name}"));
    assert!(said.contains("is this user in kubernetes.allowed_uids?"), "{said}");
}

/// Runs `kms-proxy doctor` until it reports no call without an answer in 3 s, which is the time that
/// kube-apiserver waits: its exit code, and what it printed on stdout and on stderr.
fn doctor(socket: &str) -> (Option<i32>, String, String) {
    for _ in 0..20 {
        let output = run(&["doctor", "--socket", socket], b"");
        let [said, errors] =
            [output.stdout, output.stderr].map(|out| String::from_utf8(out).unwrap());
        if !said.contains(NO_ANSWER) {
            return (output.status.code(), said, errors);
        }
    }
    panic!("no answers");
}

const NO_ANSWER: &str = "no answer in 3 s";

/// Connects to an abstract socket, and waits until the other side ends it.
fn connect(name: &str) {
    use std::io::Read;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let mut stream = UnixStream::connect_addr(&address).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "nothing is said to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_speak_http_2_leaves_a_line_in_the_log() {
    use std::io::Write;
    let (setup, socket) = plugin(Setup::new());
    let service = setup.start().await;
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    service.logged("a client of the socket does not speak HTTP/2").await;
}

/// As many connections as the socket serves, each with a head that does not end.
#[tokio::test]
async fn heads_that_are_not_finished_take_little_memory() {
    const CONNECTIONS: usize = 128;
    let (setup, socket) = plugin(Setup::new());
    let service = setup.start().await;
    service.encrypt("default", "aGVsbG8=").await;
    let before = resident_kb(&service);
    let names = many_names();
    // Too many, and as many as a head of the socket has room for.
    for fields in [&names[..], &names[..6 * 460]] {
        let sent = unfinished_head(fields);
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            // It may be closed before all of it is sent.
            _ = stream.write_all(&sent).await;
            connections.push(stream);
        }
        for stream in &mut connections {
            // What is too large ends the connection, and so does a head that does not end.
            _ = stream.read_to_end(&mut Vec::new()).await;
        }
    }
    service.encrypt("default", "aGVsbG8=").await;
    let grown = memory_kb(&service, "VmHWM:").saturating_sub(before);
    tell(&format!("{CONNECTIONS} unfinished heads on the socket: {grown} kB more"));
    assert!(grown < 24 << 10, "{grown} kB");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_store_is_named_and_over_without_a_write_by_kube_apiserver() {
    let etcd = Etcd::start().await;
    let (setup, socket) = plugin(Setup::new().on_etcd(&etcd).set("STORE__TIMEOUT", "2s"));
    let service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    client.key_id();
    etcd.signal(Signal::STOP);
    // Until the reserved uses are spent.
    let encrypt = json!({"do": "encrypt", "plaintext": hex(&seed()), "uid": "test", "once": true});
    let failed = until("an Encrypt that needs the store", async || {
        Some(client.tell(&encrypt)).filter(|answer| answer["error"].is_string())
    });
    let failed = failed.await;
    assert_eq!(failed["error"], "UNAVAILABLE", "{failed}");
    assert!(failed["detail"].as_str().unwrap().starts_with("store_unavailable: "), "{failed}");
    let healthz = |client: &mut Client| {
        client.good(&json!({"do": "status"}))["healthz"].as_str().unwrap().to_owned()
    };
    until("a Status that names the store", async || {
        healthz(&mut client).contains("store").then_some(())
    })
    .await;
    etcd.signal(Signal::CONT);
    until("a Status that says ok", async || (healthz(&mut client) == "ok").then_some(())).await;
    assert!(service.metrics().await.contains("kms_proxy_store_up 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_starts_without_etcd_tells_kube_apiserver_why_and_serves_when_it_is_there() {
    let mut etcd = Etcd::start().await;
    etcd.kill();
    let (setup, socket) = plugin(Setup::new().on_etcd(&etcd));
    let mut service = setup.listen().await;
    service.logged("the store is not usable yet").await;
    let mut client = Client::of(&[&socket]);
    let refused = [client.tell(&json!({"do": "status"})), client.encrypt(&seed())];
    for answer in refused {
        assert_eq!(answer["error"], "UNAVAILABLE", "{answer}");
        let detail = answer["detail"].as_str().unwrap();
        assert!(
            detail.starts_with("store_unavailable: ") && detail.contains(&etcd.url()),
            "{detail}"
        );
    }
    etcd.restart();
    service.ready().await;
    // On the connection that is open.
    client.key_id();
    let made = client.encrypt(&seed());
    assert_eq!(made.get("error"), None, "{made}");
    service.stop().await;
    assert!(!socket.exists());

    etcd.kill();
    let service = setup.listen().await;
    service.logged("the store is not usable yet").await;
    assert!(socket.exists());
    service.stop().await;
    assert!(!socket.exists(), "a service that waits removes its socket too");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotate_with_a_new_key_id_gives_the_cluster_a_reason_to_encrypt_again() {
    let (setup, socket) = plugin(Setup::new());
    let service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    let (first, made) = (client.key_id(), client.encrypt(&seed()));
    let url = service.url();
    let rotate = |chain: &str| {
        let output = run(&["rotate", "--chain", chain, "--new-key-id", "--server", &url], b"");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (code, said) = rotate("kubernetes");
    let [primary, second] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert_eq!(code, Some(0), "{said}");
    until("the new key id", async || (client.key_id() == second).then_some(())).await;
    assert_ne!(first, second);
    let again = client.encrypt(&seed());
    assert_eq!(key_id_of(&again), second);
    assert_eq!(&bytes(again["ciphertext"].as_str().unwrap())[2..18], bytes(primary));
    for made in [&made, &again] {
        assert_eq!(client.decrypt(made, &[])["plaintext"], hex(&seed()));
    }
    let (code, said) = rotate("default");
    assert!(code == Some(1) && said.contains("conflict: this chain has no key id"), "{said}");
    let (_, chain) = service.get("/v1/chains/default").await;
    assert_eq!(chain["items"].as_array().unwrap().len(), 1, "it was not rotated: {chain}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_made_for_its_owner_alone_replaced_when_stale_and_removed_at_the_end() {
    let (setup, socket) = plugin(Setup::new());
    let service = setup.start().await;
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&socket), 0o600);
    // A second process, with another store, does not take it.
    let other = Setup::new().set("KUBERNETES__SOCKET", format!("unix://{}", socket.display()));
    let (code, log) = other.fails().await;
    assert!(code == Some(1) && log.contains("another kms-proxy has this socket"), "{code:?} {log}");
    Client::of(&[&socket]).key_id();
    service.kill();
    assert!(socket.exists(), "it was not removed");
    let service = setup.clone().set("KUBERNETES__SOCKET_MODE", "0660").start().await;
    assert_eq!(mode(&socket), 0o660);
    Client::of(&[&socket]).key_id();
    service.stop().await;
    assert!(!socket.exists());

    if rustix::process::geteuid().is_root() {
        let service = setup.clone().set("KUBERNETES__OWNER", "65532:65531").start().await;
        let found = std::fs::metadata(&socket).unwrap();
        assert_eq!((found.uid(), found.gid(), mode(&socket)), (65532, 65531, 0o600));
        service.stop().await;
    } else {
        let (code, log) = setup.clone().set("KUBERNETES__OWNER", "65532:65531").fails().await;
        assert!(code == Some(1) && log.contains("can't be given to 65532:65531"), "{code:?} {log}");
        assert!(!socket.exists());
    }
    symlink("/dev/null", &socket).unwrap();
    let (code, log) = setup.fails().await;
    assert!(code == Some(1) && log.contains("a symbolic link"), "{code:?} {log}");
    std::fs::remove_file(&socket).unwrap();
    let directory = socket.parent().unwrap();
    // A link through a directory that others can write to: they could replace the socket.
    let (open, way) = (setup.file("open"), setup.file("way"));
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    symlink(directory, open.join("hop")).unwrap();
    symlink("open/hop", &way).unwrap();
    let by_way = format!("unix://{}", way.join("kms.sock").display());
    let (code, log) = setup.clone().set("KUBERNETES__SOCKET", by_way).fails().await;
    assert!(code == Some(1) && log.contains("/open has mode 0777"), "{code:?} {log}");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o755)).unwrap();
    let by_way = format!("unix://{}", way.join("kms.sock").display());
    setup.clone().set("KUBERNETES__SOCKET", by_way).start().await.stop().await;
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap();
    let (code, log) = setup.fails().await;
    assert!(code == Some(1) && log.contains("has mode 0777"), "{code:?} {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kek_that_kubernetes_holds_data_under_is_disabled_and_destroyed_with_force_alone() {
    let (setup, socket) = plugin(Setup::new().set("CHAIN__DESTROY_DELAY", "2m"));
    let service = setup.start().await;
    let mut client = Client::of(&[&socket]);
    let made = client.encrypt(&seed());
    let id = hex(&bytes(made["ciphertext"].as_str().unwrap())[2..18]);
    rotate(&service).await;
    let kek = format!("/v1/chains/kubernetes/keks/{id}");
    let command = |arguments: &[&str]| {
        let of = ["--chain", "kubernetes", "--server", &service.url()];
        let output = run(&[&["kek"], arguments, &of].concat(), b"");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (code, said) = command(&["disable", &id]);
    assert!(code == Some(1) && said.contains("conflict: a Kubernetes cluster"), "{code:?} {said}");
    let (status, refused) = service.post(&format!("{kek}/disable"), json!({})).await;
    assert_eq!((status.as_u16(), &refused["code"]), (409, &json!("conflict")), "{refused}");
    assert_eq!(client.decrypt(&made, &[])["plaintext"], hex(&seed()), "it decrypts as before");
    let forced = command(&["disable", &id, "--force"]);
    assert_eq!(forced, (Some(0), "disabled\n".to_owned()));
    let answer = client.decrypt(&made, &[]);
    assert_eq!(answer["error"], "FAILED_PRECONDITION", "{answer}");
    let (code, said) = command(&["destroy", &id, "--yes"]);
    assert!(code == Some(1) && said.contains("conflict: a Kubernetes cluster"), "{code:?} {said}");
    let destroy = format!("{kek}/destroy");
    let (status, refused) = service.post(&destroy, json!({"confirm": id})).await;
    assert_eq!((status.as_u16(), &refused["code"]), (409, &json!("conflict")), "{refused}");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("Kubernetes") && detail.contains("force"), "{detail}");
    // With force its own rules are left: it was disabled a moment ago.
    let (_, refused) = service.post(&destroy, json!({"confirm": id, "force": true})).await;
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("it can be destroyed from"), "{detail}");
    let (code, said) = command(&["destroy", &id, "--yes", "--force"]);
    assert!(code == Some(1) && said.contains("it can be destroyed from"), "{code:?} {said}");
    assert_eq!(command(&["enable", &id]), (Some(0), "retired\n".to_owned()));
    assert_eq!(client.decrypt(&made, &[])["plaintext"], hex(&seed()));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_what_kube_apiserver_would_think() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let setup = with_kms(Setup::new(), 0, &front, &moto.create_key().await);
    let (setup, socket) = plugin(setup);
    let address = format!("unix://{}", socket.display());
    let (code, said, verdict) = doctor(&address);
    assert!(code == Some(1) && said.contains("No such file"), "{said}");
    assert!(verdict.contains("kube-apiserver can't use this plugin"), "{verdict}");

    let service = setup.start().await;
    let (code, said, errors) = doctor(&address);
    assert_eq!(code, Some(0), "{said}{errors}");
    for line in ["socket", "Status", "key_id", "healthz", "Encrypt", "Decrypt", "refusal"] {
        assert!(
            said.lines().any(|it| it.starts_with(line) && it.contains(" ok ")),
            "{line}: {said}"
        );
    }
    assert!(said.ends_with("kube-apiserver can use this plugin\n"), "{said}");

    front.set(Way::Error(400, "AccessDeniedException", "no"));
    service.post("/v1/rotate", json!({"chain": "kubernetes"})).await;
    let (code, said, verdict) = doctor(&address);
    assert!(code == Some(1) && said.contains("healthz   FAILED"), "{said}");
    assert!(verdict.contains("reports it as unhealthy"), "{verdict}");

    // A process that takes connections and never answers.
    service.signal(Signal::STOP);
    let output = run(&["doctor", "--socket", &address], b"");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && said.contains(NO_ANSWER), "{said}");
    service.signal(Signal::CONT);
}

/// Nothing is stored: the wrapped KEK is in an annotation, and any plugin with the root opens it.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_store_inline_the_kek_is_in_an_annotation() {
    let moto = Moto::shared();
    let front = Front::start(Some(&*moto)).await;
    let key = moto.create_key().await;
    let replica = || plugin(with_kms(Setup::new().set("STORE__KIND", "inline"), 0, &front, &key));
    let ((a, socket_a), (b, socket_b)) = (replica(), replica());
    let (on_a, _on_b) = (a.start().await, b.start().await);
    let (mut client, mut other) = (Client::of(&[&socket_a]), Client::of(&[&socket_b]));
    let name = client.key_id();
    assert_eq!(other.key_id(), name, "the same on all replicas");
    let made = client.encrypt(&seed());
    assert_eq!(key_id_of(&made), name);
    let ciphertext = made["ciphertext"].as_str().unwrap();
    assert!(ciphertext.starts_with("0101") && ciphertext.len() == 2 * (62 + 32 + 16), "{made}");
    let annotations = made["annotations"].as_object().unwrap();
    let record = annotations["kek.kms-proxy.dev"].as_str().unwrap().to_owned();
    assert_eq!(annotations.len(), 1, "{made}");
    assert!(record.len() < 2 * 1_024, "{made}");
    assert_eq!(client.encrypt(&vec![7; 946])["ciphertext"].as_str().unwrap().len(), 2 * 1_024);

    assert_eq!(other.decrypt(&made, &[])["plaintext"], hex(&seed()));
    rotate(&on_a).await;
    let body = json!({"chain": "kubernetes", "new_key_id": true});
    let (status, refused) = on_a.post("/v1/rotate", body).await;
    assert_eq!((status.as_u16(), &refused["code"]), (409, &json!("conflict")), "{refused}");
    assert_eq!(client.key_id(), name);
    on_a.stop().await;
    let _on_a = a.start().await;
    let mut client = Client::of(&[&socket_a]);
    assert_eq!(client.key_id(), name, "a restart changes nothing");
    assert_eq!(client.decrypt(&made, &[])["plaintext"], hex(&seed()));

    let mut flipped = bytes(&record);
    *flipped.last_mut().unwrap() ^= 1;
    for annotations in [json!({}), json!({"kek.kms-proxy.dev": hex(&flipped)})] {
        let refused = other.decrypt(&made, &[("annotations", annotations)]);
        assert!(refused["error"].is_string(), "{refused}");
    }
}
