//! How the service starts, ends and fails to start: signals, a second process, damage, a full
//! disk, and roots that are not what they were.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{
    Service, Setup, copy_of_the_program, decrypt_all, read_until, replace_in_file, talk, until,
};

/// What an idle service has allocated: the pages of the program and of libraries are not counted.
const MAX_ALLOCATED_KB: u64 = 10 * 1024;

#[tokio::test]
async fn it_starts_in_seconds_and_takes_little_memory() {
    const MOST: Duration = Duration::from_secs(5);
    let mut setup = Setup::new();
    for start in ["the first start", "a second start"] {
        let mut times = Vec::new();
        // The shortest of some: a loaded machine delays any of them.
        let service = loop {
            if start == "the first start" {
                setup = Setup::new();
            }
            let began = Instant::now();
            let service = setup.start().await;
            let (status, readiness) = service.get("/readyz").await;
            times.push(began.elapsed());
            assert_eq!((status.as_u16(), &readiness["status"]), (200, &json!("ok")), "{readiness}");
            if times.last().is_some_and(|took| *took < MOST) || times.len() == 5 {
                break service;
            }
            service.stop().await;
        };
        println!("{start}: ready after {times:?}");
        assert!(times.iter().any(|took| *took < MOST), "{start}: {times:?}");
        #[cfg(target_os = "linux")]
        {
            // The pages of the program itself depend on how it was compiled.
            let allocated = || memory_kb(&service, "RssAnon:");
            println!("{start}: {} kB allocated", allocated());
            // What the start itself took is given back after some seconds.
            let idle =
                until("little memory", async || (allocated() < MAX_ALLOCATED_KB).then_some(()));
            idle.await;
            let (allocated, resident) = (allocated(), resident_kb(&service));
            println!("{start}: {allocated} kB allocated when idle, {resident} kB resident");
        }
        service.stop().await;
    }
}

#[cfg(target_os = "linux")]
pub(crate) fn resident_kb(service: &Service) -> u64 {
    memory_kb(service, "VmRSS:")
}

/// What the kernel says of the memory of the process.
#[cfg(target_os = "linux")]
pub(crate) fn memory_kb(service: &Service, what: &str) -> u64 {
    let path = format!("/proc/{}/status", service.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// `/proc/PID` belongs to root where nobody of the same user may look into the process, and may
/// attach a debugger to it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn nobody_of_the_same_user_looks_into_the_process_and_it_dumps_no_core() {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    for (debuggable, hidden) in [(None, true), (Some("false"), true), (Some("true"), false)] {
        let mut setup = Setup::new();
        if let Some(value) = debuggable {
            setup = setup.env("KMS_PROXY_DEBUGGABLE", value);
        }
        let mut command = setup.command();
        // Of root's own processes nothing could be seen.
        let user = match rustix::process::getuid().as_raw() {
            0 => {
                let nobody = 65_534;
                let binary = setup.file("kms-proxy");
                copy_of_the_program(&binary);
                std::fs::create_dir(setup.data()).unwrap();
                for path in [setup.file(""), setup.data()] {
                    std::os::unix::fs::chown(path, Some(nobody), Some(nobody)).unwrap();
                }
                command = std::process::Command::new(binary);
                command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(setup.data());
                command.env_clear().envs(debuggable.map(|value| ("KMS_PROXY_DEBUGGABLE", value)));
                command.uid(nobody).gid(nobody);
                nobody
            }
            user => user,
        };
        let mut service = Service::spawn(command);
        service.ready().await;
        let proc = std::path::PathBuf::from(format!("/proc/{}", service.pid().as_raw_nonzero()));
        let owner = std::fs::metadata(proc.join("environ")).unwrap().uid();
        assert_eq!(owner == 0, hidden, "{debuggable:?}: user {user}, owner {owner}");
        if hidden {
            let limits = std::fs::read_to_string(proc.join("limits")).unwrap();
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
            assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
        }
        service.stop().await;
    }
}

#[tokio::test]
async fn a_signal_ends_it_when_what_is_in_flight_is_done() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let setup = Setup::new().set("SERVER__REQUEST_TIMEOUT", "60s");
        let service = setup.start().await;
        let mut idle = service.connect().await;
        let mut stream = service.connect().await;
        let (first, last) = (r#"{"plaintext":"#, r#""aGVsbG8="}"#);
        let len = first.len() + last.len();
        let head = format!(
            "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {len}\r\nExpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The service reads the body: from here on the request is in flight.
        read_until(&mut stream, "100 Continue").await;
        stream.write_all(first.as_bytes()).await.unwrap();
        service.signal(signal);
        until("no new connection is taken", async || (!service.is_listening().await).then_some(()))
            .await;
        let answer = talk(&mut stream, last).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("kp:"), "{answer}");
        assert_eq!(talk(&mut idle, "").await, "", "an idle connection is closed");
        let (code, log) = service.ended().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(name) && log.contains("stopped"), "{log}");
    }
}

/// A request of which the body is still missing; it is in flight.
async fn unfinished_request(service: &Service) -> tokio::net::TcpStream {
    let mut stream = service.connect().await;
    let head = "POST /v1/encrypt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 18\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut stream, "100 Continue").await;
    stream
}

#[tokio::test]
async fn a_second_sigterm_cuts_no_request_and_the_end_is_a_success() {
    for first in [Signal::TERM, Signal::INT] {
        let service = Setup::new().set("SERVER__REQUEST_TIMEOUT", "1h").start().await;
        let mut stream = unfinished_request(&service).await;
        service.signal(first);
        service.logged("finishing requests in flight").await;
        service.signal(Signal::TERM);
        service.logged("the shutdown has already begun").await;
        let answer = talk(&mut stream, r#"{"plaintext":"AA"}"#).await;
        assert!(answer.contains("HTTP/1.1 400"), "the request is answered: {answer}");
        service.signal(Signal::TERM);
        let (code, log) = service.ended().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("stopped") && !log.contains("ERROR"), "{log}");
    }
}

#[tokio::test]
async fn sigterms_one_after_another_end_an_idle_service_well() {
    let service = Setup::new().start().await;
    for _ in 0..200 {
        service.signal(Signal::TERM);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (code, log) = service.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopped"), "{log}");
}

#[tokio::test]
async fn a_second_sigint_ends_it_immediately_and_the_message_says_so() {
    for first in [Signal::TERM, Signal::INT] {
        let service = Setup::new().set("SERVER__REQUEST_TIMEOUT", "1h").start().await;
        let _stream = unfinished_request(&service).await;
        service.signal(first);
        service.logged("finishing requests in flight").await;
        if first == Signal::TERM {
            service.signal(Signal::INT);
            service.logged("the shutdown has already begun").await;
        }
        service.signal(Signal::INT);
        let (code, log) = service.ended().await;
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("ended by a second SIGINT before the shutdown was complete"), "{log}");
    }
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_or_address_is_refused() {
    let setup = Setup::new();
    let service = setup.start().await;
    let (code, log) = setup.fails().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("another process uses the data directory"), "{log}");
    assert!(log.contains(&setup.data().display().to_string()), "{log}");

    let elsewhere = Setup::new();
    let address = service.address().to_string();
    let (code, log) = Service::spawn(elsewhere.command_at(&address)).ended().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(&format!("server.listen: something listens on {address}")), "{log}");
    assert!(!elsewhere.data().exists(), "nothing is made by a service that can't start");

    let sealed = service.encrypt("default", "aGVsbG8=").await;
    decrypt_all(&service, &[sealed]).await;
    service.stop().await;
}

fn store_file(setup: &Setup) -> std::path::PathBuf {
    setup.data().join("store.redb")
}

#[tokio::test]
async fn a_store_that_is_cut_or_garbage_is_refused_by_name_and_left_as_it_is() {
    let setup = Setup::new();
    let service = setup.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    service.stop().await;
    let file = store_file(&setup);
    let good = std::fs::read(&file).unwrap();
    let garbage = vec![0xA5; good.len()];
    for bad in [&good[..good.len() / 2], &good[..100], b"", &garbage] {
        std::fs::write(&file, bad).unwrap();
        let (code, log) = setup.fails().await;
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("store.redb is damaged") && log.contains("backup"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        assert_eq!(std::fs::read(&file).unwrap(), bad);
    }
    std::fs::write(&file, &good).unwrap();
    decrypt_all(&setup.start().await, &[sealed]).await;
}

#[tokio::test]
async fn a_flipped_byte_in_a_record_costs_one_chain_and_says_which() {
    let setup = Setup::new().set("CHAIN__NAMES", "orders");
    let service = setup.start().await;
    let kept = service.encrypt("default", "aGVsbG8=").await;
    let lost = service.encrypt("orders", "aGVsbG8=").await;
    let (_, chain) = service.get("/v1/chains/orders").await;
    service.stop().await;
    let primary = format!(r#""primary":"{}""#, chain["primary"].as_str().unwrap());
    replace_in_file(
        &store_file(&setup),
        primary.as_bytes(),
        primary.replacen('p', "q", 1).as_bytes(),
    );

    for _ in 0..2 {
        let service = setup.start().await;
        decrypt_all(&service, std::slice::from_ref(&kept)).await;
        for (path, body) in [
            ("/v1/encrypt", json!({"plaintext": "", "chain": "orders"})),
            ("/v1/decrypt", json!({"ciphertext": lost.ciphertext, "chain": "orders"})),
        ] {
            let (status, problem) = service.post(path, body).await;
            assert_eq!((status.as_u16(), &problem["code"]), (500, &json!("internal")), "{problem}");
        }
        let (status, _) = service.send(reqwest::Method::PUT, "/v1/chains/orders", json!({})).await;
        assert_eq!(status, 500, "it is not created again over a record that may be repaired");
        let (status, readiness) = service.get("/readyz").await;
        assert_eq!((status.as_u16(), &readiness["status"]), (200, &json!("degraded")));
        assert!(readiness.to_string().contains("chain:orders"), "{readiness}");
        let log = service.stop().await;
        assert!(log.contains("chains/orders/head"), "{log}");
    }
}

#[tokio::test]
async fn a_full_disk_is_coasted_through_and_recovered_from() {
    let setup = Setup::new();
    let service = setup.start().await;
    // No byte beyond the first page can be written: what a full disk says, and needs no mount.
    let limit = |bytes| {
        let mut limit =
            rustix::process::prlimit(Some(service.pid()), Resource::Fsize, NO_LIMIT).unwrap();
        limit.current = bytes;
        rustix::process::prlimit(Some(service.pid()), Resource::Fsize, limit).unwrap();
    };
    limit(Some(4096));
    let mut sealed = Vec::new();
    let problem = loop {
        assert!(sealed.len() < 1_000, "the store is never needed");
        match service.try_encrypt("default", "aGVsbG8=").await.unwrap() {
            Ok(one) => sealed.push(one),
            Err((status, problem)) => break (status.as_u16(), problem["code"].clone()),
        }
    };
    assert_eq!(problem, (503, json!("store_unavailable")));
    assert!(sealed.len() >= 8, "only {} within the block", sealed.len());
    let refused =
        service.request(reqwest::Method::POST, "/v1/encrypt").json(&json!({"plaintext": ""}));
    let refused = refused.send().await.unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    // What can be read proves nothing of what can be written.
    until("a read of the store", async || {
        (service.get("/v1/chains/default").await.0 == 200).then_some(())
    })
    .await;
    let (status, readiness) = service.get("/readyz").await;
    assert_eq!((status.as_u16(), &readiness["status"]), (200, &json!("degraded")), "{readiness}");
    assert_eq!(readiness["checks"][0]["name"], "store", "{readiness}");
    assert_eq!(readiness["checks"][0]["status"], "degraded", "{readiness}");
    decrypt_all(&service, &sealed).await;

    limit(None);
    let after = until("another encrypt", async || {
        service.try_encrypt("default", "aGVsbG8=").await.unwrap().ok()
    });
    sealed.push(after.await);
    let (_, readiness) = service.get("/readyz").await;
    assert_eq!(readiness["status"], "ok", "{readiness}");
    service.kill();
    decrypt_all(&setup.start().await, &sealed).await;
}

const NO_LIMIT: Rlimit = Rlimit { current: None, maximum: None };

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_key_file_that_is_damaged_or_open_to_others_is_refused_and_a_lost_one_is_named() {
    let setup = Setup::new();
    let service = setup.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    service.stop().await;
    let file = setup.data().join("root.key");
    let good = std::fs::read(&file).unwrap();
    let key = String::from_utf8_lossy(&good[good.len() - 40..good.len() - 20]).into_owned();

    set_mode(&file, 0o644);
    let (code, log) = setup.fails().await;
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("root.key: its mode is 0644") && log.contains("chmod 600"), "{log}");
    set_mode(&file, 0o600);

    let mut damaged = good.clone();
    damaged[good.len() - 20] ^= 1;
    for bad in [&damaged[..], &good[..50], b""] {
        std::fs::write(&file, bad).unwrap();
        let (code, log) = setup.fails().await;
        assert_eq!(code, Some(2), "{log}");
        assert!(log.contains("root.key: it is ") && !log.contains(&key), "{log}");
        assert_eq!(std::fs::read(&file).unwrap(), bad);
    }

    std::fs::remove_file(&file).unwrap();
    let service = setup.start_unready().await;
    let body = json!({"ciphertext": sealed.ciphertext});
    let (status, problem) = service.post("/v1/decrypt", body).await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("root_unavailable")), "{problem}");
    let (_, readiness) = service.get("/readyz").await;
    let missing = format!("the key file {} is missing", file.display());
    assert!(readiness.to_string().contains(&missing), "{readiness}");
    assert!(!file.exists(), "no key is made");
    service.stop().await;

    std::fs::write(&file, &good).unwrap();
    set_mode(&file, 0o600);
    decrypt_all(&setup.start().await, &[sealed]).await;
}

#[tokio::test]
async fn a_passphrase_opens_from_file_or_environment_and_another_does_not() {
    let root = Setup::new().set("ROOT__0__NAME", "main").set("ROOT__0__KIND", "passphrase");
    let right = root.clone().set("ROOT__0__PASSPHRASE", "correct horse battery staple");
    let service = right.start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    service.stop().await;

    let file = root.file("passphrase");
    std::fs::write(&file, "correct horse battery staple\n").unwrap();
    set_mode(&file, 0o600);
    let by_file = root.clone().set("ROOT__0__PASSPHRASE_FILE", file.display());
    let service = by_file.start().await;
    decrypt_all(&service, std::slice::from_ref(&sealed)).await;
    service.stop().await;

    let wrong = root.clone().set("ROOT__0__PASSPHRASE", "correct horse battery stable");
    let service = wrong.start_unready().await;
    let body = json!({"ciphertext": sealed.ciphertext});
    for (path, body) in [("/v1/decrypt", body), ("/v1/encrypt", json!({"plaintext": ""}))] {
        let (status, problem) = service.post(path, body).await;
        assert_eq!(
            (status.as_u16(), &problem["code"]),
            (503, &json!("root_unavailable")),
            "{path}"
        );
    }
    let (status, readiness) = service.get("/readyz").await;
    let unavailable = (503, &json!("unavailable"));
    assert_eq!((status.as_u16(), &readiness["status"]), unavailable, "nothing works");
    assert!(readiness.to_string().contains("the passphrase is another one"), "{readiness}");
    let log = service.stop().await;
    assert!(!log.contains("correct horse"), "{log}");

    // The store is unchanged.
    decrypt_all(&right.start().await, &[sealed]).await;
    for (setup, said) in [
        (by_file.set("ROOT__0__PASSPHRASE", "x"), "given twice"),
        (root.clone(), "there is no passphrase"),
        (root.set("ROOT__0__PASSPHRASE_FILE", "/no/such/file"), "/no/such/file"),
    ] {
        let (code, log) = setup.fails().await;
        assert!(code == Some(2) && log.contains(said), "{code:?}: {log}");
    }
}

#[tokio::test]
async fn a_configuration_that_can_not_be_used_ends_with_code_2_and_names_the_key() {
    for (key, value, said) in [
        ("SERVER__LISTNE", "127.0.0.1:1", "server.listne"),
        ("SERVER__ADMIN_LISTEN", "0.0.0.0:9090", "server.admin_listen"),
        ("CHAIN__MAX_USES", "many", "chain.max_uses"),
        ("ROOT__0__KIND", "loca", "root.0.kind"),
    ] {
        let setup = Setup::new().set(key, value);
        let (code, log) = setup.fails().await;
        assert_eq!(code, Some(2), "{log}");
        assert!(log.contains(said) && log.contains(&format!("KMS_PROXY__{key}")), "{log}");
        assert!(!setup.data().exists());
    }
}
