//! Sinks that fail, and what calls get then.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use reqwest::header::CONTENT_TYPE;

use super::*;
use crate::support::run;

const JSON: &str = "application/json";
const BODY: &str = r#"{"plaintext":"aGVsbG8="}"#;

async fn encrypt(service: &Service, id: &str) -> u16 {
    call(service, id, Method::POST, "/v1/encrypt", &[], BODY).await
}

async fn metric(service: &Service, name: &str) -> Option<String> {
    let text = reqwest::get(format!("{}/metrics", service.url())).await.unwrap().text().await;
    let text = text.unwrap();
    text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).map(str::to_owned)
}

/// Sets the largest size of a file of the process.
fn limit(service: &Service, bytes: &str) {
    let pid = service.pid().as_raw_nonzero().to_string();
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &pid, &format!("--fsize={bytes}:")]);
    assert!(prlimit.status().expect("prlimit is in util-linux").success());
}

#[tokio::test]
async fn on_a_full_disk_calls_are_refused_or_lines_are_counted() {
    for (on_failure, status) in [("refuse", 503), ("continue", 200)] {
        let setup = full().set("AUDIT__ON_FAILURE", on_failure).set("STORE__KIND", "inline");
        let service = setup.start().await;
        assert_eq!(encrypt(&service, "before").await, 200);
        let size = log(&setup).len() + 700;
        limit(&service, &size.to_string());
        until("the disk is full", async || {
            _ = encrypt(&service, "filling").await;
            (metric(&service, "kms_proxy_audit_up").await? == "0").then_some(())
        })
        .await;
        assert_eq!(encrypt(&service, "full").await, status);
        if on_failure == "refuse" {
            let sent = service.request(Method::POST, "/v1/encrypt").header(CONTENT_TYPE, JSON);
            let refused: Value = sent.body(BODY).send().await.unwrap().json().await.unwrap();
            assert_eq!(refused["code"], "audit_unavailable");
        }
        let (code, ready) = service.get("/readyz").await;
        assert_eq!(code, if on_failure == "refuse" { 503 } else { 200 }, "{ready}");
        assert!(ready.to_string().contains("\"audit\""), "{ready}");
        limit(&service, "unlimited");
        until("the log is written again", async || {
            (metric(&service, "kms_proxy_audit_up").await? == "1").then_some(())
        })
        .await;
        assert_eq!(encrypt(&service, "after").await, 200);
        service.stop().await;
        let text = log(&setup);
        prove(&text);
        verified(&setup, &["audit.jsonl"]);
        assert_eq!(of_request(&setup, "before").len(), 1);
        assert_eq!(of_request(&setup, "after").len(), 1);
        assert_eq!(of_request(&setup, "full").len(), 0);
        let events = events(&text);
        let missing = events.iter().find(|it| it["operation"] == "lines_missing").unwrap();
        let key = if on_failure == "refuse" { "refused" } else { "lost" };
        assert!(missing["change"][key].as_u64().unwrap() >= 1, "{missing}");
    }
}

#[tokio::test]
async fn what_only_reads_the_state_is_answered_while_the_log_is_down() {
    let setup = full().set("STORE__KIND", "inline").set("AWS_API__ENABLED", true);
    let service = setup.start().await;
    limit(&service, &(log(&setup).len() + 700).to_string());
    until("the disk is full", async || {
        _ = encrypt(&service, "filling").await;
        (metric(&service, "kms_proxy_audit_up").await? == "0").then_some(())
    })
    .await;
    let says = "the audit log takes no lines";
    for (command, shows, is_ok) in [
        (&["status"][..], "calls are refused", false),
        (&["chain", "list"], "default", true),
        (&["kek", "missing"], "FIRST SEEN", true),
        (&["root", "status"], "local", true),
    ] {
        let output = run(&[command, &["--server", &service.url()]].concat(), b"");
        let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        assert_eq!(output.status.success(), is_ok, "{command:?}: {out}{err}");
        assert!(out.contains(shows), "{command:?}: {out}{err}");
        // `/status.json` has no line in the log, and says itself what is wrong.
        assert_eq!(err.matches(says).count(), usize::from(is_ok), "{command:?}: {err}");
    }
    // What works on data or changes something, and AWS KMS, is refused as before.
    let aws = [("x-amz-target", "TrentService.ListKeys")];
    for (method, path, headers, body) in [
        (Method::POST, "/v1/encrypt", &[][..], BODY),
        (Method::PUT, "/v1/chains/new", &[], "{}"),
        (Method::DELETE, "/v1/chains/default", &[], ""),
        (Method::POST, "/v1/rotate", &[], "{}"),
        (Method::GET, "/v1/backup", &[], ""),
        (Method::POST, "/", &aws, "{}"),
    ] {
        let status = call(&service, "refused", method.clone(), path, headers, body).await;
        assert_eq!(status, 503, "{method} {path}");
    }
    limit(&service, "unlimited");
    until("the log is written again", async || {
        (metric(&service, "kms_proxy_audit_up").await? == "1").then_some(())
    })
    .await;
    let output = run(&["chain", "list", "--server", &service.url()], b"");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "it takes lines again");
    service.stop().await;
    let events = events(&log(&setup));
    let missing: Vec<_> = events.iter().filter(|it| it["operation"] == "lines_missing").collect();
    let sum = |key: &str| missing.iter().filter_map(|it| it["change"][key].as_u64()).sum::<u64>();
    // At least one read of each of the other commands was answered without its line.
    assert!(sum("lost") >= 3 && sum("refused") >= 5, "{missing:?}");
}

#[tokio::test]
async fn a_renamed_or_deleted_file_is_made_again() {
    let setup = full();
    let service = setup.start().await;
    let (file, old) = (setup.file("audit.jsonl"), setup.file("old.jsonl"));
    assert_eq!(encrypt(&service, "one").await, 200);
    std::fs::rename(&file, &old).unwrap();
    service.signal(Signal::HUP);
    until("a new file", async || {
        _ = encrypt(&service, "two").await;
        (!of_request(&setup, "two").is_empty()).then_some(())
    })
    .await;
    let first = std::fs::read_to_string(&old).unwrap();
    assert_eq!(prove(&first), 0, "the old file ends with a checkpoint");
    let opening = lines(&log(&setup)).remove(0);
    assert!(opening.get("opening").is_some(), "{opening}");
    prove(&(first + &log(&setup)));
    verified(&setup, &["old.jsonl", "audit.jsonl"]);
    // Without a signal it takes a second.
    std::fs::remove_file(&file).unwrap();
    until("another file", async || {
        _ = encrypt(&service, "three").await;
        (!of_request(&setup, "three").is_empty()).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn files_are_rotated_by_size_and_the_oldest_are_deleted() {
    let setup = full().set("AUDIT__ROTATE_SIZE", "64KiB").set("AUDIT__KEEP", 2);
    let service = setup.start().await;
    let rotated = || {
        let dir = setup.file("audit.jsonl").parent().unwrap().read_dir().unwrap();
        let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("audit.jsonl.")).collect();
        names.sort();
        names
    };
    let mut seen = BTreeSet::new();
    until("four rotations", async || {
        let items = vec![json!({"plaintext": "aGVsbG8="}); 300];
        service.ok("/v1/batch/encrypt", json!({"items": items})).await;
        seen.extend(rotated());
        (seen.len() >= 4).then_some(())
    })
    .await;
    service.stop().await;
    let kept = rotated();
    assert_eq!(kept.len(), 2, "{kept:?}");
    let mut files: Vec<_> = kept.iter().map(String::as_str).collect();
    files.push("audit.jsonl");
    verified(&setup, &files);
    let newest = setup.file(kept.last().unwrap());
    let last = lines(&std::fs::read_to_string(newest).unwrap()).pop().unwrap();
    assert!(last.get("checkpoint").is_some(), "{last}");
}

#[tokio::test]
async fn a_file_that_can_t_be_written_ends_a_start_unless_lines_may_be_lost() {
    let setup = Setup::new();
    let dir = setup.file("directory");
    std::fs::create_dir(&dir).unwrap();
    let refuses = setup.clone().set("AUDIT__FILE", dir.display());
    let (code, log) = refuses.fails().await;
    assert_ne!(code, Some(0));
    assert!(log.contains("audit.file: can't write to"), "{log}");
    let file = dir.join("a").join("audit.jsonl");
    let setup = setup.set("AUDIT__FILE", file.display()).set("AUDIT__ON_FAILURE", "continue");
    let service = setup.start().await;
    service.encrypt("default", "aGVsbG8=").await;
    assert_eq!(metric(&service, "kms_proxy_audit_up").await.as_deref(), Some("0"));
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    until("the log", async || (metric(&service, "kms_proxy_audit_up").await? == "1").then_some(()))
        .await;
    service.stop().await;
    prove(&std::fs::read_to_string(&file).unwrap());
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o137, 0, "others can't read it: {mode:o}");
}

#[tokio::test]
async fn two_processes_do_not_write_to_one_file() {
    let setup = full();
    let service = setup.start().await;
    let other = Setup::new().set("AUDIT__FILE", setup.file("audit.jsonl").display());
    let (code, log) = other.fails().await;
    assert!(code != Some(0) && log.contains("another process writes to it"), "{log}");
    service.stop().await;
}

/// A collector that stops reading, then continues, then disconnects, and then connects again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_does_not_read_refuses_calls_and_hangs_none() {
    for _ in 0..5 {
        if stop_reading().await {
            return;
        }
    }
    panic!("the collector always stands still");
}

/// Returns whether the collector was fast enough once it read again: the service closes the
/// connection to one that does not read for half a second.
async fn stop_reading() -> bool {
    let setup = Setup::new().set("AUDIT__RULE__0__LEVEL", "full").set("STORE__KIND", "inline");
    let socket = setup.file("collector.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let setup = setup.set("AUDIT__FILE", format!("unix:{}", socket.display()));
    let accepting = std::thread::spawn(move || (listener.accept().unwrap().0, listener));
    let service = setup.start().await;
    let (stream, listener) = accepting.join().unwrap();
    until("calls are refused", async || {
        let items = vec![json!({"plaintext": "aGVsbG8="}); 1_000];
        let body = json!({"items": items}).to_string();
        let status = call(&service, "x", Method::POST, "/v1/batch/encrypt", &[], &body).await;
        assert!(status == 200 || status == 503, "{status}");
        (status == 503).then_some(())
    })
    .await;
    // The shortest of some: a loaded machine delays any of them.
    let mut waits = Vec::new();
    while waits.len() < 5 && waits.iter().all(|&wait| wait >= kms_proxy::audit::PATIENCE * 5) {
        let started = std::time::Instant::now();
        assert_eq!(encrypt(&service, "refused").await, 503);
        waits.push(started.elapsed());
    }
    let shortest = waits.iter().min().unwrap();
    assert!(*shortest < kms_proxy::audit::PATIENCE * 5, "it waits too long: {waits:?}");
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            text += &(line + "\n");
            if text.contains("\"request_id\":\"again\"") {
                break;
            }
        }
        text
    });
    until("the log takes lines again", async || {
        (encrypt(&service, "again").await == 200).then_some(())
    })
    .await;
    let text = reading.join().unwrap();
    if !text.contains("\"request_id\":\"again\"") {
        return false;
    }
    prove(&text);
    assert!(events(&text).iter().any(|it| it["operation"] == "lines_missing"));
    // The connection was closed with its reader; a new one begins with an opening.
    let accepting = std::thread::spawn(move || listener.accept().unwrap().0);
    until("a new connection", async || {
        _ = encrypt(&service, "once more").await;
        accepting.is_finished().then_some(())
    })
    .await;
    let mut first = String::new();
    BufReader::new(accepting.join().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("\"opening\":"), "{first}");
    service.kill();
    true
}

/// The standard output is a pipe without a reader.
#[tokio::test]
async fn a_pipe_without_a_reader_refuses_calls_and_the_process_still_ends() {
    let setup = Setup::new().set("AUDIT__FILE", "stdout").set("AUDIT__RULE__0__LEVEL", "full");
    let setup = setup.set("STORE__KIND", "inline").set("SERVER__LISTEN", "127.0.0.1:0");
    let mut command = setup.command();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let mut url = None;
    let mut log = BufReader::new(stderr);
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        if let Some((_, rest)) = line.split_once("\"url\":\"") {
            url = Some(rest.split('"').next().unwrap().to_owned());
        }
        if line.contains("\"message\":\"ready\"") {
            break;
        }
        line.clear();
    }
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    let (url, client) = (url.unwrap(), reqwest::Client::builder().no_proxy().build().unwrap());
    let items = vec![json!({"plaintext": "aGVsbG8="}); 500];
    let body = json!({"items": items});
    until("calls are refused", async || {
        let sent = client.post(format!("{url}/v1/batch/encrypt")).json(&body).send().await;
        (sent.unwrap().status() == 503).then_some(())
    })
    .await;
    let mut text = vec![0; 1 << 20];
    let got = stdout.read(&mut text).unwrap();
    let first = String::from_utf8_lossy(&text[..got]).into_owned();
    assert!(first.starts_with("{\"v\":1,\"seq\":0,"), "{first}");
    assert!(!first.contains("is ready on"), "only lines of the log are on it");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    until("the end of the process", async || child.try_wait().unwrap()).await;
}
