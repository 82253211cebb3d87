//! Backups of a running service: `kms-proxy backup` and `GET /v1/backup`, under load, and restored
//! elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::etcd::Etcd;
use crate::support::{Sealed, Service, Setup, decrypt_all, read_until, root, run, tell, until};

const MAX_USES: usize = 300;

/// A service with a root that has a key file outside of the data directory, and low limits.
fn setup(key: &Path) -> Setup {
    Setup::new()
        .set("CHAIN__NAMES", "orders")
        .set("CHAIN__ROTATE_AFTER_USES", 150)
        .set("CHAIN__MAX_USES", MAX_USES)
        .set("LOG__LEVEL", "info")
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__KIND", "local")
        .set("ROOT__0__KEY_FILE", key.display())
}

fn good(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(output: Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// `kms-proxy backup`, which does not hold up the tests' own tasks.
async fn backup(url: &str, to: &str, more: &[&str]) -> Output {
    let args = [&["backup", "--server", url, "--to", to], more].concat();
    let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
    let work = move || run(&args.iter().map(String::as_str).collect::<Vec<_>>(), b"");
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn restore(from: &Path, to: &Path) -> Output {
    let (from, to) = (format!("backup:{}", from.display()), format!("dir:{}", to.display()));
    run(&["store", "copy", "--from", &from, "--to", &to], b"")
}

/// The Unix time that the metric has.
async fn last_backup(service: &Service) -> u64 {
    let metrics = service.metrics().await;
    let name = "\nkms_proxy_last_backup_timestamp_seconds ";
    let (_, rest) = metrics.split_once(name).expect("the metric exists from the start");
    rest.lines().next().unwrap().parse().unwrap()
}

/// Encrypts until `stop`, and keeps what came.
async fn load(service: Arc<Service>, sealed: Arc<Mutex<Vec<Sealed>>>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        for chain in ["default", "orders"] {
            let made = service.encrypt(chain, "aGVsbG8=").await;
            sealed.lock().unwrap().push(made);
        }
    }
}

/// Backs up `services`, which have one store, under load, and restores each backup.
async fn under_load(services: Vec<Arc<Service>>, key: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (sealed, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let mut loads: Vec<_> = services
        .iter()
        .map(|service| tokio::spawn(load(Arc::clone(service), Arc::clone(&sealed), stop.clone())))
        .collect();
    for service in &services {
        assert_eq!(last_backup(service).await, 0);
    }
    let mut backups: Vec<(PathBuf, Vec<Sealed>)> = Vec::new();
    for number in 1..=3 {
        until("envelopes of the next KEKs", async || {
            (sealed.lock().unwrap().len() >= number * 500).then_some(())
        })
        .await;
        let before = sealed.lock().unwrap().clone();
        let file = dir.path().join(number.to_string());
        let to = file.to_str().unwrap();
        let said = good(backup(&services[0].url(), to, &[]).await);
        assert!(said.starts_with(&format!("{to}: 2 chains, ")), "{said}");
        backups.push((file, before));
    }
    stop.store(true, Ordering::Relaxed);
    for load in loads.drain(..) {
        load.await.unwrap();
    }
    for service in &services {
        until("the time of the last backup on each replica", async || {
            (last_backup(service).await > 1_700_000_000).then_some(())
        })
        .await;
        let said = good(run(&["status", "--server", &service.url()], b""));
        assert!(said.contains("\nbackup "), "{said}");
    }

    let key_bytes = std::fs::read(key).unwrap();
    let mut all = std::mem::take(&mut *sealed.lock().unwrap());
    let mut keks = 0;
    for (file, before) in &backups {
        let bytes = std::fs::read(file).unwrap();
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!bytes.windows(key_bytes.len()).any(|part| part == key_bytes), "no root key");
        let new = setup(key);
        let config = new.file("new.toml");
        let text = format!(
            "[store]\nkind = 'file'\npath = '{}'\n[[root]]\nname = 'main'\nkind = 'local'\n\
             key_file = '{}'\n",
            new.data().display(),
            key.display()
        );
        std::fs::write(&config, text).unwrap();
        let place = format!("backup:{}", file.display());
        let config = config.to_str().unwrap();
        let said = good(run(&["store", "verify", &place, "--config", config], b""));
        assert!(said.ends_with(" 0 problems\n"), "{said}");
        let said = good(restore(file, &new.data()));
        assert!(said.starts_with("2 chains copied: "), "{said}");
        let service = new.start().await;
        decrypt_all(&service, before).await;
        // KEKs of the backup only decrypt: the restored service creates its own.
        for chain in ["default", "orders"] {
            for _ in 0..20 {
                all.push(service.encrypt(chain, "aGVsbG8=").await);
            }
        }
        keks += said.matches("KEK").count();
    }
    let mut uses = BTreeMap::<String, usize>::new();
    for sealed in &all {
        *uses.entry(sealed.kek_id()).or_default() += 1;
    }
    assert!(keks > 0 && uses.len() > 8, "the KEKs rotated: {uses:?}");
    for (kek, uses) in &uses {
        assert!(*uses <= MAX_USES, "{kek} has {uses} uses");
    }
    let (envelopes, keks) = (all.len(), uses.len());
    tell(&format!("hot backups restored: 3; envelopes: {envelopes} under {keks} KEKs, none lost"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_file_store_under_load_has_all_that_was_encrypted_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("root.key");
    let service = setup(&key).start().await;
    under_load(vec![Arc::new(service)], &key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_etcd_under_load_has_all_that_was_encrypted_before_it() {
    let (etcd, dir) = (Etcd::start().await, tempfile::tempdir().unwrap());
    let key = dir.path().join("root.key");
    let setup = || setup(&key).on_etcd(&etcd);
    let services = vec![Arc::new(setup().start().await), Arc::new(setup().start().await)];
    under_load(services, &key).await;
}

#[tokio::test]
async fn only_a_client_that_may_manage_all_chains_gets_a_backup() {
    let setup = Setup::new().set("CHAIN__NAMES", "orders");
    let mut text = "[auth]\nmode = 'required'\n".to_owned();
    let mut tokens = Vec::new();
    for (name, chains, operations) in [
        ("reader", "*", "'read', 'encrypt', 'decrypt', 'rotate'"),
        ("orders", "orders", "'manage'"),
        ("operator", "*", "'manage'"),
    ] {
        let (token, digest) = kms_proxy::auth::token::generate().unwrap();
        _ = write!(
            text,
            "[[client]]\nname = '{name}'\ntoken_sha256 = '{digest}'\n\
             allow = [{{ chains = ['{chains}'], operations = [{operations}] }}]\n"
        );
        let file = setup.file(name);
        std::fs::write(&file, token.as_bytes()).unwrap();
        tokens.push(file);
    }
    let config = setup.file("kms-proxy.toml");
    std::fs::write(&config, text).unwrap();
    let service = setup.clone().env("KMS_PROXY_CONFIG", config.display()).start().await;
    let to = setup.file("backup");
    let to = to.to_str().unwrap();
    let said = refused(backup(&service.url(), to, &[]).await, 1);
    assert!(said.contains("unauthenticated"), "{said}");
    for (token, name) in tokens.iter().zip(["reader", "orders"]) {
        let token = ["--token-file", token.to_str().unwrap()];
        let said = refused(backup(&service.url(), to, &token).await, 1);
        let expected = format!("the client {name} may not manage all chains");
        assert!(said.contains("forbidden") && said.contains(&expected), "{said}");
    }
    assert!(!Path::new(to).exists(), "no file is left");
    let token = ["--token-file", tokens[2].to_str().unwrap()];
    good(backup(&service.url(), to, &token).await);
    let before = std::fs::read(to).unwrap();
    let said = refused(backup(&service.url(), to, &token).await, 1);
    assert!(said.contains("a backup replaces none"), "{said}");
    assert_eq!(std::fs::read(to).unwrap(), before);
}

#[tokio::test]
async fn an_inline_service_has_nothing_to_back_up() {
    let service = Setup::new().set("STORE__KIND", "inline").start().await;
    let (status, answer) = service.get("/v1/backup").await;
    assert_eq!((status.as_u16(), &answer["code"]), (409, &json!("conflict")), "{answer}");
}

#[tokio::test]
async fn a_truncated_backup_is_refused_wherever_it_was_cut() {
    let setup = Setup::new();
    let service = setup.start().await;
    let sealed = service.encrypt("default", "AAAA").await;
    let whole = backup(&service.url(), "-", &[]).await;
    let whole = good(whole);
    service.stop().await;
    let lines: Vec<_> = whole.split_inclusive('\n').collect();
    let (file, new) = (setup.file("cut"), Setup::new());
    let last = lines.len() - 1;
    for cut in [
        lines[..1].concat(),
        lines[..2].concat(),
        lines[..last - 1].concat(),
        lines[..last].concat(),
        whole[..whole.len() - 1].to_owned(),
        whole[..whole.len() / 2].to_owned(),
    ] {
        std::fs::write(&file, &cut).unwrap();
        let said = refused(restore(&file, &new.data()), 1);
        assert!(said.contains("the rest is cut off"), "{said}");
        assert!(!new.data().exists());
        let place = format!("backup:{}", file.display());
        let said = refused(run(&["store", "verify", &place], b""), 1);
        assert!(said.contains("the rest is cut off"), "{said}");

        // The same as a download that the client does not finish, or believes to be whole.
        for head in ["content-length: 1000000\r\n", "connection: close\r\n"] {
            let url = serve_once(head, cut.clone());
            let to = setup.file("download");
            let said = refused(backup(&url, to.to_str().unwrap(), &[]).await, 1);
            let is_named = said.contains("cut off") || said.contains("127.0.0.1");
            assert!(is_named && !to.exists(), "{said}");
        }
    }
    std::fs::write(&file, &whole).unwrap();
    good(restore(&file, &new.data()));
    std::fs::copy(setup.data().join("root.key"), new.data().join("root.key")).unwrap();
    decrypt_all(&new.start().await, &[sealed]).await;
}

/// A server that answers one request with `body`, and then closes the connection.
fn serve_once(head: &'static str, body: String) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 1024];
        while !request.ends_with(b"\r\n\r\n") {
            let len = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..len]);
        }
        write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n{body}").unwrap();
    });
    url
}

/// A backup with `count` retired KEKs of one chain, whose records are large.
fn large(count: usize) -> String {
    let mut text = "{\"kms_proxy_backup\":2,\"created_at\":\"2026-11-24T20:50:06Z\"}\n".to_owned();
    let mut line = |key: String, record: Value| {
        let value = json!({"format": 1, "record": record}).to_string();
        text.push_str(&json!({"key": key, "value": value}).to_string());
        text.push('\n');
    };
    let limits = json!({"rotate_after_uses": 10, "max_uses": 20, "rotate_after_age": 86_400});
    let head = json!({"suite": "aes-128-gcm", "limits": limits, "primary": null, "standby": null,
        "generation": 1, "roots_generation": 1});
    line("chains/old/head".to_owned(), head);
    let wraps = json!([{"root": "main", "bytes": "AAAA".repeat(8_000)}]);
    for number in 1..=count {
        let kek = json!({"suite": "aes-128-gcm", "state": "retired", "created_at": 1,
            "promoted_at": 2, "disabled_at": null, "exposed": true, "wraps": wraps});
        line(format!("chains/old/keks/{number:032x}"), kek);
        let uses = json!({"reserved": 1, "owner": 1, "sequence": 1});
        line(format!("chains/old/uses/{number:032x}"), uses);
    }
    let records = 2 * count + 1;
    _ = writeln!(text, "{{\"chains\":1,\"records\":{records},\"left_out\":0}}");
    let sha256 = base16ct::lower::encode_string(&Sha256::digest(&text));
    _ = writeln!(text, "{{\"sha256\":\"{sha256}\"}}");
    text
}

#[tokio::test]
async fn a_client_that_disconnects_ends_the_backup_and_another_one_does_not_wait() {
    use tokio::io::AsyncWriteExt;
    const KEKS: usize = 600;
    let setup = Setup::new().set("LOG__LEVEL", "info");
    let file = setup.file("large");
    std::fs::write(&file, large(KEKS)).unwrap();
    good(restore(&file, &setup.data()));
    // No root opens the KEKs of that chain, which a backup does not need.
    let service = setup.start_ready_or_not().await;
    let mut client = service.connect().await;
    client.write_all(b"GET /v1/backup HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await.unwrap();
    read_until(&mut client, "kms_proxy_backup").await;
    // More than the buffers of the connection hold is not read from the store.
    let (status, answer) = service.send(Method::GET, "/v1/backup", Value::Null).await;
    assert_eq!((status.as_u16(), &answer["code"]), (429, &json!("overloaded")), "{answer}");
    drop(client);
    service.logged("a backup was not completed").await;
    assert_eq!(last_backup(&service).await, 0, "an interrupted backup does not count");
    let to = setup.file("backup");
    let said = until("the next backup", async || {
        let output = backup(&service.url(), to.to_str().unwrap(), &[]).await;
        (output.status.code() == Some(0)).then(|| good(output))
    })
    .await;
    assert!(said.contains(": 2 chains, "), "{said}");
    let text = std::fs::read_to_string(&to).unwrap();
    assert_eq!(text.matches("\"chains/old/keks/").count(), KEKS);
    until("the time of the backup", async || (last_backup(&service).await > 0).then_some(())).await;
}

/// The connection of a backup that takes longer than `server.idle_timeout` is not idle.
#[tokio::test]
async fn a_backup_may_take_longer_than_the_time_out_of_idle_connections() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let setup = Setup::new().set("SERVER__IDLE_TIMEOUT", "1s");
    let file = setup.file("large");
    std::fs::write(&file, large(600)).unwrap();
    good(restore(&file, &setup.data()));
    let service = setup.start_ready_or_not().await;
    // The kernel keeps little for it, and all the rest stays in the service.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut client = socket.connect(service.address()).await.unwrap();
    let get = b"GET /v1/backup HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    client.write_all(get).await.unwrap();
    read_until(&mut client, "kms_proxy_backup").await;
    // An idle connection is cut 5 s after the time-out.
    tokio::time::sleep(Duration::from_secs(9)).await;
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() > 600 * 32_000, "only {} bytes came", rest.len());
    assert!(rest.ends_with(b"\r\n0\r\n\r\n"), "it is not whole");
}

#[tokio::test]
async fn a_copy_of_all_chains_counts_as_a_backup_and_one_of_some_does_not() {
    let setup = Setup::new().set("CHAIN__NAMES", "orders");
    setup.start().await.stop().await;
    let copy = |to: &str, more: &[&str]| {
        let from = format!("dir:{}", setup.data().display());
        let to = format!("backup:{}", setup.file(to).display());
        good(run(&[&["store", "copy", "--from", &from, "--to", &to], more].concat(), b""));
    };
    copy("some", &["--chain", "orders"]);
    let service = setup.start().await;
    assert_eq!(last_backup(&service).await, 0);
    service.stop().await;
    copy("all", &[]);
    let service = setup.start().await;
    assert!(last_backup(&service).await > 1_700_000_000);
}

/// The file was written by a version that wrote format 1.
#[tokio::test]
async fn a_backup_in_format_1_is_restored() {
    let setup = Setup::new()
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__KIND", "passphrase")
        .set("ROOT__0__MEMORY", "19MiB")
        .set("ROOT__0__PASSES", 2)
        .set("ROOT__0__PASSPHRASE", "correct horse battery staple");
    good(restore(&root().join("tests/vectors/backup/format-1.backup"), &setup.data()));
    let service = setup.start().await;
    for (ciphertext, plaintext) in [
        (
            "kp:AQG1BC4ZcH90AOTL0Xi8Wb5p0n91yNqyX59//0y/vepdLMKFwQk6tUmrIdBC5M9g/UD6HpdkTjnc+ZW2v6TV\
             QrHwoldJA5uwMx+l/rhQnaHPCLNoyklU",
            "aW52b2ljZSAx",
        ),
        (
            "kp:AQGENbtaoH/d9GrhWcTuavunbklBRPgAT24bIq6sx1k8VPFU1S9mQsJ1ZmoUW3k0dTmX8zMMksBgiVkjqwgg\
             h/Wsvgq0mlcwETrW2DxWphcw+6Ql7H7I",
            "aW52b2ljZSAy",
        ),
    ] {
        let body = json!({"chain": "orders", "ciphertext": ciphertext});
        assert_eq!(service.ok("/v1/decrypt", body).await["plaintext"], plaintext);
    }
}
