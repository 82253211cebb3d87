//! Commands for operators, what bounds them, and what a configuration is checked for.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::support::pki::{self, Pki};

/// Runs the binary with its stdout redirected as a shell does.
fn redirected(args: &[&str], to: &str, input: &[u8]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec \"$@\" {to}"), "sh", BINARY]).args(args).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || _ = stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

fn json(output: Output) -> Value {
    serde_json::from_slice(&good(output)).unwrap()
}

#[tokio::test]
async fn chains_are_listed_made_and_changed_and_their_keks_listed() {
    let service = Setup::new().start().await;
    let limits = ["--max-uses", "3000000", "--rotate-after-age", "30d"];
    let create = [&["chain", "create", "orders", "--suite", "aes-256-gcm"][..], &limits].concat();
    let table = good_text(call(&service, &create, b""));
    let (titles, row) = table.trim_end().split_once('\n').unwrap();
    assert!(titles.starts_with("CHAIN ") && row.starts_with("orders  aes-256-gcm "), "{table}");
    let said = refused(call(&service, &create, b""), 1);
    assert!(said.contains("the chain orders exists already"), "{said}");

    let set = ["chain", "set", "orders", "--rotate-after-uses", "1000"];
    good(call(&service, &set, b""));
    let chains = json(call(&service, &["chain", "list", "--json"], b""));
    let orders = &chains["chains"][1];
    assert_eq!(
        (&chains["chains"][0]["chain"], &orders["chain"]),
        (&"default".into(), &"orders".into())
    );
    assert_eq!(
        (&orders["suite"], &orders["rotate_after_uses"]),
        (&"aes-256-gcm".into(), &1_000.into())
    );
    assert_eq!(
        (&orders["max_uses"], &orders["rotate_after_age"]),
        (&3_000_000.into(), &2_592_000.into())
    );
    let said = refused(call(&service, &["chain", "set", "none", "--max-uses", "10"], b""), 1);
    assert!(said.contains("the chain none does not exist"), "{said}");
    assert!(!good_text(call(&service, &["chain", "list"], b"")).contains("none"));
    refused(call(&service, &["chain", "set", "orders"], b""), 2);
    let said = refused(call(&service, &["chain", "set", "orders", "--max-uses", "1"], b""), 1);
    assert!(said.starts_with("kms-proxy: invalid_request: "), "{said}");

    good(call(&service, &["encrypt", "--chain", "orders"], b"x"));
    let old = json(call(&service, &["kek", "list", "--chain", "orders", "--json"], b""));
    let old = old["keks"][0]["kek_id"].as_str().unwrap().to_owned();
    let new = good_text(call(&service, &["rotate", "--chain", "orders"], b""));
    let table = good_text(call(&service, &["kek", "list", "--chain", "orders"], b""));
    let state = |id: &str| {
        let row = table.lines().find(|line| line.starts_with(id)).expect("a row");
        row.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!((&*state(&old), &*state(new.trim_end())), ("retired", "primary"), "{table}");
    let said = refused(call(&service, &["kek", "list", "--chain", "none"], b""), 1);
    assert!(said.contains("unknown_chain"), "{said}");
}

#[tokio::test]
async fn a_data_key_goes_to_a_new_file_and_its_envelope_to_stdout() {
    let setup = Setup::new();
    let service = setup.start().await;
    let made = json(call(&service, &["datakey", "--bytes", "16", "--aad", "row 7"], b""));
    let envelope = made["ciphertext"].as_str().unwrap();
    let key = good(call(&service, &["decrypt", "--aad", "row 7"], envelope.as_bytes()));
    let plaintext = made["plaintext"].as_str().unwrap();
    assert_eq!(base64_simd::STANDARD.encode_to_string(&key), plaintext);
    assert_eq!(key.len(), 16);

    let file = setup.file("data.key");
    let path = file.to_str().unwrap();
    for form in [&[][..], &["--raw"]] {
        let args = [&["datakey", "--key-file", path], form].concat();
        let envelope = good(call(&service, &args, b""));
        let key = std::fs::read(&file).unwrap();
        assert_eq!((key.len(), good(call(&service, &["decrypt"], &envelope))), (32, key));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let said = refused(call(&service, &args, b""), 1);
        assert!(said.contains(path), "a file is never replaced: {said}");
        std::fs::remove_file(&file).unwrap();
    }
    let args = ["datakey", "--chain", "none", "--key-file", path];
    assert!(refused(call(&service, &args, b""), 1).contains("unknown_chain"));
    assert!(!file.exists(), "without a key there is no file");
}

#[tokio::test]
async fn healthcheck_and_status_take_the_same_options() {
    let service = Setup::new().set("SERVER__ADMIN_LISTEN", "127.0.0.1:0").start().await;
    let said = service.said();
    let (_, admin) = said.trim_end().rsplit_once("http://").unwrap();
    let admin = format!("http://{admin}");
    for command in ["healthcheck", "status"] {
        let said = refused(call(&service, &[command], b""), 1);
        assert!(said.contains("--admin or KMS_PROXY_ADMIN"), "{command}: {said}");
        good(call(&service, &[command, "--admin", &admin], b""));
        let health = json(call(&service, &[command, "--json", "--admin", &admin], b""));
        assert_eq!(health["status"], "ok", "{command}");
        assert_eq!(health["checks"][0]["name"], "store", "{command}");
    }
}

/// A server that responds to any request with this many bytes, or fewer if they are not read.
fn endless(bytes: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            let mut left = bytes;
            while left > 0 && stream.write_all(&[b' '; 1 << 16]).is_ok() {
                left -= left.min(1 << 16);
            }
        }
    });
    url
}

#[test]
fn a_destroyed_kek_that_an_archive_still_has_is_reported() {
    let id = "00112233445566778899aabbccddeeff";
    for (archives, code, told) in [
        ("", 0, ""),
        (
            r#","still_archived_in":["bucket","nas"]"#,
            1,
            "kms-proxy: these archives still have its wraps: bucket, nas; the service erases them \
             when they answer\n",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let body = format!(r#"{{"kek_id":"{id}","state":"destroyed"{archives}}}"#);
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"}") {
                let mut buffer = [0; 4096];
                let len = stream.read(&mut buffer).unwrap();
                assert_ne!(len, 0, "it has no body");
                asked.extend_from_slice(&buffer[..len]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(asked).unwrap()
        });
        let output = run(&["kek", "destroy", id, "--yes", "--server", &url], b"");
        let asked = server.join().unwrap();
        assert!(
            asked.starts_with(&format!("POST /v1/chains/default/keks/{id}/destroy ")),
            "{asked}"
        );
        assert_eq!(String::from_utf8_lossy(&output.stderr), told);
        assert_eq!((output.status.code(), &*output.stdout), (Some(code), &b"destroyed\n"[..]));
    }
}

#[tokio::test]
async fn input_and_answers_are_bounded() {
    let service = Setup::new().start().await;
    let input = [7; 1_000];
    for size in ["1000", "1KiB"] {
        good(call(&service, &["encrypt", "--max-size", size], &input));
    }
    let envelope = good(call(&service, &["encrypt"], &input));
    for command in [&["encrypt"][..], &["decrypt"], &["rewrap"], &["inspect"]] {
        let input = if command == ["encrypt"] { &input[..] } else { &envelope };
        let args = [command, &["--max-size", "999"]].concat();
        let output =
            if command == ["inspect"] { run(&args, input) } else { call(&service, &args, input) };
        let said = refused(output, 1);
        assert!(said.contains("stdin has more than 999 bytes (--max-size)"), "{command:?}: {said}");
    }
    // A line that is too long ends the work before it; what comes before it is done.
    let short = good_text(call(&service, &["encrypt"], b""));
    let lines = [short.as_bytes(), &envelope, short.as_bytes()].concat();
    let output = call(&service, &["rewrap", "--lines", "--max-size", "999"], &lines);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("the output ends before line 2") && said.contains("--max-size"),
        "{said}"
    );
    let done = String::from_utf8(output.stdout).unwrap();
    assert!(done.starts_with("kp:") && done.ends_with('\n') && done.lines().count() == 1);

    for option in ["--token-file", "--ca"] {
        let args = ["status", "--server", "https://localhost:1", option, "/dev/zero"];
        let said = refused(run(&args, b""), 2);
        assert!(said.contains(option) && said.contains("more than"), "{said}");
    }
    let url = endless(80 << 20);
    for (args, most) in [
        (&["encrypt", "--max-size", "1KiB"][..], 1_024 + (1 << 20)),
        (&["decrypt", "--max-size", "1KiB"], 1_024 + (1 << 20)),
        (&["status"], 64 << 20),
        (&["healthcheck"], 64 << 20),
        (&["kek", "list"], 64 << 20),
    ] {
        let said = refused(run(&[args, &["--server", &url]].concat(), b"x"), 1);
        assert!(said.contains(&format!("has more than {most} bytes")), "{args:?}: {said}");
    }
}

#[tokio::test]
async fn what_would_be_lost_on_a_closed_stdout_is_not_made() {
    let setup = Setup::new();
    let service = setup.start().await;
    let envelope = good(call(&service, &["encrypt"], b"x"));
    let url = service.url();
    let server = ["--server", &url];
    let datakey = [&["datakey"], &server[..]].concat();
    let encrypt = [&["encrypt"], &server[..]].concat();
    let rewrap = [&["rewrap"], &server[..]].concat();
    for args in [&encrypt, &rewrap, &datakey, &vec!["token", "new"]] {
        let said = refused(redirected(args, ">&-", &envelope), 1);
        assert!(said.contains("stdout is closed"), "{args:?}: {said}");
        let discarded = redirected(args, "> /dev/null", &envelope);
        assert!(discarded.status.success(), "{args:?}: {discarded:?}");
    }
    service.stop().await;
    let from = format!("dir:{}", setup.data().display());
    let said =
        refused(redirected(&["store", "copy", "--from", &from, "--to", "backup:-"], ">&-", b""), 1);
    assert!(said.contains("stdout is closed"), "{said}");
}

#[tokio::test]
async fn a_backup_on_stdout_is_one_that_can_be_read() {
    let setup = Setup::new();
    let service = setup.start().await;
    let envelope = good(call(&service, &["encrypt"], b"x"));
    service.stop().await;
    let from = format!("dir:{}", setup.data().display());
    let output = run(&["store", "copy", "--from", &from, "--to", "backup:-"], b"");
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, "kms-proxy: stdout: 1 chain, 3 records\n");
    let file = setup.file("backup");
    std::fs::write(&file, &output.stdout).unwrap();
    let (backup, to) = (format!("backup:{}", file.display()), setup.file("copy"));
    let to_dir = format!("dir:{}", to.display());
    let copied = run(&["store", "copy", "--from", &backup, "--to", &to_dir], b"");
    assert!(copied.status.success(), "{copied:?}");
    std::fs::copy(setup.data().join("root.key"), to.join("root.key")).unwrap();
    std::fs::remove_dir_all(setup.data()).unwrap();
    std::fs::rename(&to, setup.data()).unwrap();
    let service = setup.start().await;
    assert_eq!(good(call(&service, &["decrypt"], &envelope)), b"x");

    // A truncated backup is not a backup, and stdin is not read as one.
    std::fs::write(&file, &output.stdout[..output.stdout.len() - 10]).unwrap();
    let cut = run(&["store", "copy", "--from", &backup, "--to", &to_dir], b"");
    assert_eq!(cut.status.code(), Some(1), "{cut:?}");
    let said = refused(run(&["store", "copy", "--from", "backup:-", "--to", &to_dir], b""), 2);
    assert!(said.contains("only with --to"), "{said}");
}

#[test]
fn the_directory_of_the_socket_is_looked_at_before_the_start() {
    let setup = Setup::new();
    let (dir, data) = (setup.file("run"), setup.data());
    let setup = setup
        .set("KUBERNETES__SOCKET", format!("unix://{}/kms.sock", dir.display()))
        .set("STORE__PATH", data.display());
    let said = refused(setup.run(&["check-config"]), 2);
    let missing = format!("the directory {} does not exist", dir.display());
    assert!(said.contains("kubernetes.socket: ") && said.contains(&missing), "{said}");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
    let said = refused(setup.run(&["check-config"]), 2);
    assert!(said.contains("others could put another socket there"), "{said}");
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).unwrap();
    good(setup.run(&["check-config"]));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "a check makes nothing");
}

#[test]
fn certificates_that_are_not_valid_are_warned_of_before_the_start() {
    let setup = Setup::new();
    let pki = Pki::new(setup.file("pki"));
    let hour = std::time::Duration::from_secs(3_600);
    let check = |(cert, key): (std::path::PathBuf, std::path::PathBuf)| {
        let setup = setup
            .clone()
            .set("SERVER__TLS__CERT", cert.display())
            .set("SERVER__TLS__KEY", key.display())
            .set("SERVER__TLS__CLIENT_CA", pki.ca().display());
        let output = setup.run(&["check-config"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(check(pki.server(&["localhost"])), "");
    for (until, what) in [(pki::now() - hour, "expired at "), (pki::now() + hour, "expires at ")] {
        let files = pki.server_until(&["localhost"], until);
        let file = files.0.display().to_string();
        let said = check(files);
        let start = format!("kms-proxy: warning: server.tls.cert: {file}: certificate 1 (CN=");
        assert!(said.starts_with(&start) && said.contains(what), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let (_, time) = said.trim_end().rsplit_once(' ').unwrap();
        let time = humantime::parse_rfc3339(time).unwrap();
        let time = time.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(time.as_secs(), until.as_secs());
    }
    // Other files than the server's.
    let expired = pki.expired_client(&["a"]).0.display().to_string();
    let setup = setup.set("STORE__KIND", "etcd").set("STORE__ENDPOINTS", "https://a.example:2379");
    let output = setup.set("STORE__TLS__CA", &expired).run(&["check-config"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("warning: store.tls.ca: {expired}: ")), "{said}");
}

#[test]
fn completions_offer_nothing_that_is_hidden() {
    let page = good_text(run(&["reference"], b""));
    for hidden in ["kms-proxy reference", "--debuggable"] {
        assert!(!page.contains(hidden), "{hidden} is hidden");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = good_text(run(&["completions", shell], b""));
        for hidden in ["reference", "debuggable"] {
            assert!(!script.contains(hidden), "{shell}: {hidden}");
        }
        for shown in ["healthcheck", "check-config", "--version"] {
            let shown = if shell == "fish" { shown.trim_start_matches("--") } else { shown };
            assert!(script.contains(shown), "{shell}: {shown}");
        }
    }
}

#[tokio::test]
async fn a_variable_that_means_nothing_stops_the_start() {
    let setup = Setup::new().env("KMS_PROXY_ROOT__0__KIND", "passphrase");
    let (code, said) = setup.fails().await;
    let expected = "KMS_PROXY_ROOT__0__KIND: there is no such variable; \
                    is KMS_PROXY__ROOT__0__KIND meant?";
    assert!(code == Some(2) && said.contains(expected), "{code:?} {said}");
    assert!(!setup.data().exists(), "nothing is made");

    // What Kubernetes sets for a service of this name, and what other commands read.
    let mut setup = Setup::new()
        .env("KMS_PROXY_SERVICE_HOST", "10.0.0.1")
        .env("KMS_PROXY_SERVICE_PORT", "8080")
        .env("KMS_PROXY_SERVICE_PORT_HTTP", "8080")
        .env("KMS_PROXY_PORT", "tcp://10.0.0.1:8080")
        .env("KMS_PROXY_PORT_8080_TCP_ADDR", "10.0.0.1");
    let reference = std::fs::read_to_string(root().join("docs/command-line.md")).unwrap();
    let variables: std::collections::BTreeSet<_> = reference
        .split("[env:")
        .skip(1)
        .map(|rest| rest.trim().split('=').next().unwrap())
        .collect();
    assert!(variables.len() > 5, "{variables:?}");
    for variable in variables.iter().filter(|name| **name != "KMS_PROXY_CONFIG") {
        setup = setup.env(variable, "http://localhost");
    }
    good(setup.run(&["check-config"]));
}
