//! The etcd store on real etcd processes: the contract, members that fail, lost responses, watches.

use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use tempfile::tempdir;

use super::*;
use crate::secret::SecretBytes;
use crate::store::contract::{self, applied, put, value};
use crate::store::{News, Store as _};
use crate::test_ports as ports;

#[allow(dead_code, reason = "others need the rest of it")]
#[path = "../../../tests/it/support/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "others need the rest of it")]
#[path = "../../../tests/it/support/etcd.rs"]
mod server;

mod files;

use proxy::{Mode, Proxy};
use server::Etcd;

/// With the longest time-out: a busy machine may stop a member for seconds.
fn config(endpoints: &[String]) -> Config {
    Config { timeout: Duration::from_secs(10), ..Config::new(endpoints.to_vec()) }
}

/// For tests in which calls time out.
async fn open_impatient(endpoints: &[String]) -> Store {
    let config = Config { timeout: Duration::from_secs(3), ..config(endpoints) };
    Store::open(&config).await.unwrap()
}

async fn open(endpoints: &[String]) -> Store {
    Store::open(&config(endpoints)).await.unwrap()
}

async fn refused(config: &Config) -> String {
    Store::open(config).await.err().expect("it must not open")
}

/// Waits until the watch reports what is `wanted`.
async fn told(watch: &mut dyn crate::store::Watch, wanted: impl Fn(&News) -> bool) {
    let told = async { while !wanted(&watch.next().await) {} };
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("the watch reports it");
}

fn wrote(key: &'static str, at: Revision) -> impl Fn(&News) -> bool {
    move |news| matches!(news, News::Changed(changes) if changes.contains(&(key.into(), at)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract() {
    let etcd = Etcd::start().await;
    contract::all(Arc::new(open(&[etcd.url()]).await)).await;
}

#[tokio::test]
async fn it_agrees_with_the_memory_store() {
    let etcd = Etcd::start().await;
    let mut runner = TestRunner::default();
    for case in 0..24 {
        let history = contract::history().new_tree(&mut runner).unwrap().current();
        let config = Config { prefix: format!("/case/{case}"), ..config(&[etcd.url()]) };
        let store = Store::open(&config).await.unwrap();
        contract::agrees_with_memory(&store, &history).await;
    }
}

#[tokio::test]
async fn prefixes_keep_stores_apart_and_long_lists_are_paged() {
    let etcd = Etcd::start().await;
    let other = Config { prefix: "/kms-proxy-2/".into(), ..config(&[etcd.url()]) };
    let (one, two) = (open(&[etcd.url()]).await, Store::open(&other).await.unwrap());
    for i in 0..PAGE + 10 {
        applied(&one, put(&format!("chains/{i:04}"), b"x")).await;
    }
    applied(&two, put("chains/a", b"y")).await;
    let all = one.list("chains/", None, 10_000).await.unwrap();
    assert!(all.len() == PAGE + 10 && all.is_sorted_by_key(|entry| entry.key.clone()));
    assert_eq!(one.list("chains/", Some("chains/0003"), PAGE + 1).await.unwrap().len(), PAGE + 1);
    assert_eq!((one.count("chains/").await, two.count("").await), (Ok(PAGE as u64 + 10), Ok(1)));
    assert_eq!(two.list("", None, 10).await.unwrap().len(), 1);
    assert!(etcd.ctl(&["get", "/kms-proxy-2/chains/a", "--print-value-only"]).starts_with('y'));
}

#[tokio::test]
async fn a_member_that_is_dead_or_hangs_is_replaced_by_another() {
    let mut etcd = Etcd::cluster::<3>().await;
    let urls: Vec<_> = etcd.iter().map(Etcd::url).collect();
    let store = open_impatient(&urls).await;
    let (mut written, mut failed) = (0, 0);
    for (victim, way) in [(0, Signal::STOP), (1, Signal::KILL)] {
        match way {
            Signal::KILL => etcd[victim].kill(),
            way => etcd[victim].signal(way),
        }
        // If the leader is gone, calls fail until there is another one, and the caller retries.
        let until = written + 20;
        while written < until {
            match store.commit(put("a", (written + 1).to_string().as_bytes())).await {
                Ok(_) => written += 1,
                Err(Error::Unavailable { .. }) => failed += 1,
                Err(error) => panic!("{error}"),
            }
            match store.get("a").await {
                Ok(Some(entry)) => {
                    let read: u32 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                    // A commit whose response was lost may be applied, even late: a leader that
                    // was stopped continues with the requests that it received.
                    assert!(read <= written + 1, "{read} after {written}");
                }
                Ok(None) => assert_eq!(written, 0),
                Err(Error::Unavailable { .. }) => failed += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(failed < 40, "{failed} calls failed, {written} succeeded");
        }
        match way {
            Signal::KILL => etcd[victim].restart(),
            _ => etcd[victim].signal(Signal::CONT),
        }
        etcd[victim].healthy().await;
    }
}

#[tokio::test]
async fn a_lost_response_is_in_doubt_and_a_refused_connection_is_not() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.port).await;
    let direct = open(&[etcd.url()]).await;
    let store = open_impatient(&[proxy.url()]).await;
    proxy.set(Mode::Deaf);
    let mut attempts = 1..=10;
    let lost = loop {
        let number = attempts.next().expect("one of the commits is applied").to_string();
        let lost = store.commit(put("a", number.as_bytes())).await.unwrap_err();
        if value(&direct, "a").await == Some(number) {
            break lost;
        }
        // The member was too slow, and dropped the call when it was given up.
    };
    assert!(matches!(lost, Error::Unavailable { maybe_applied: true, .. }), "{lost}");

    proxy.set(Mode::Cut);
    // The connection that breaks may have carried the call; the next one is not even made.
    let _ = store.commit(put("a", b"cut")).await;
    drop(etcd);
    let nobody = "http://127.0.0.1:1".to_owned();
    let (members, _) = setup::members(&config(&[nobody])).unwrap();
    let nobody = Store { members: Arc::new(members), prefix: "/x/".into() };
    let refused = nobody.commit(put("a", b"1")).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Unavailable { maybe_applied: false, detail }
        if detail.contains("refused")),
        "{refused}"
    );
}

#[tokio::test]
async fn the_watch_recovers_by_itself() {
    let mut etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.port).await;
    let (writer, follower) = (open(&[etcd.url()]).await, open(&[proxy.url()]).await);
    let mut watch = follower.watch().unwrap();
    told(&mut *watch, |news| *news == News::Missed).await;
    let at = applied(&writer, put("a", b"1")).await;
    told(&mut *watch, wrote("a", at)).await;

    // The member goes away and comes back.
    etcd.restart();
    etcd.healthy().await;
    told(&mut *watch, |news| *news == News::Missed).await;
    until_told(&writer, &mut *watch).await;

    // The connection is dead, without an error.
    proxy.set(Mode::Frozen);
    told(&mut *watch, |news| *news == News::Missed).await;
    proxy.set(Mode::Open);
    until_told(&writer, &mut *watch).await;

    // The revisions that it would read next are compacted while it is disconnected.
    proxy.set(Mode::Cut);
    let mut last = Revision(0);
    for _ in 0..20 {
        last = applied(&writer, put("b", b"1")).await;
    }
    etcd.ctl(&["compact", &last.0.to_string()]);
    proxy.set(Mode::Open);
    until_told(&writer, &mut *watch).await;
}

/// Writes until the watch reports it, since the watch may be replacing its stream.
async fn until_told(writer: &Store, watch: &mut dyn crate::store::Watch) {
    for _ in 0..300 {
        let at = applied(writer, put("c", b"1")).await;
        let told = tokio::time::timeout(Duration::from_millis(200), told(watch, wrote("c", at)));
        if told.await.is_ok() {
            return;
        }
    }
    panic!("the watch reports no change any more");
}

#[tokio::test]
async fn a_restored_snapshot_is_noticed() {
    let mut etcd = Etcd::start().await;
    let dir = tempdir().unwrap();
    let file = dir.path().join("snapshot");
    let store = open(&[etcd.url()]).await;
    let mut watch = store.watch().unwrap();
    applied(&store, put("a", b"1")).await;
    etcd.ctl(&["snapshot", "save", &file.display().to_string()]);
    applied(&store, put("a", b"2")).await;
    etcd.restore(&file);
    etcd.healthy().await;
    assert_eq!(value(&store, "a").await, Some("1".into()));
    // It is counted before the call returns that detects it.
    assert_eq!(store.restores(), 1);
    told(&mut *watch, |news| *news == News::Restored).await;
    until_told(&store, &mut *watch).await;
}

/// The files of a CA, and of the certificates that it issues.
fn certificates(dir: &std::path::Path) {
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    write("ca.pem", ca.pem());
    let issuer = Issuer::new(params, key);
    for (name, host) in [("server", "127.0.0.1"), ("client", "kms-proxy")] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        write(&format!("{name}.pem"), params.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

#[tokio::test]
async fn certificates_and_passwords_are_required() {
    let (dir, other) = (tempdir().unwrap(), tempdir().unwrap());
    certificates(dir.path());
    certificates(other.path());
    let etcd = Etcd::with_tls(dir.path());
    let tls = |ca: &std::path::Path, own: &std::path::Path| Tls {
        ca: Some(ca.join("ca.pem")),
        cert: Some(own.join("client.pem")),
        key: Some(own.join("client.key")),
    };
    let good = Config { tls: Some(tls(dir.path(), dir.path())), ..config(&[etcd.url()]) };
    let store = Store::open(&good).await.unwrap();
    applied(&store, put("a", b"1")).await;

    let wrong_ca = Config { tls: Some(tls(other.path(), dir.path())), ..good.clone() };
    let error = refused(&wrong_ca).await;
    assert!(error.contains("certificate") && error.contains(&etcd.url()), "{error}");
    let no_cert = Tls { cert: None, key: None, ..tls(dir.path(), dir.path()) };
    let no_cert = Config { tls: Some(no_cert), ..good.clone() };
    // In TLS 1.3 the server refuses when the client has finished its part of the handshake. The
    // connection may end before its alert is read.
    let error = refused(&no_cert).await;
    let why = ["ertificate", "connection closed", "reset by peer", "broken pipe"];
    assert!(error.contains(&etcd.url()) && why.iter().any(|why| error.contains(why)), "{error}");

    // From now on etcd requires a password too.
    let files = |name: &str| dir.path().join(name).display().to_string();
    let (ca, cert, key) = (files("ca.pem"), files("client.pem"), files("client.key"));
    let ctl = |arguments: &[&str]| {
        let tls = ["--cacert", &ca, "--cert", &cert, "--key", &key];
        etcd.ctl(&[&tls[..], arguments].concat())
    };
    ctl(&["user", "add", "root:planted-root"]);
    ctl(&["user", "grant-role", "root", "root"]);
    ctl(&["user", "add", "kms:planted-secret"]);
    ctl(&["role", "add", "kms"]);
    ctl(&["role", "grant-permission", "kms", "--prefix=true", "readwrite", "/kms-proxy/"]);
    ctl(&["user", "grant-role", "kms", "kms"]);
    ctl(&["auth", "enable"]);
    let with_password = |password: &str| {
        let password = Some(Arc::new(SecretBytes::new(password.as_bytes().to_vec())));
        Config { username: Some("kms".into()), password, ..good.clone() }
    };
    let store = Store::open(&with_password("planted-secret")).await.unwrap();
    assert_eq!(value(&store, "a").await, Some("1".into()));
    let mut watch = store.watch().unwrap();
    until_told(&store, &mut *watch).await;
    // A token expires two seconds after its last call. The next one can expire before it is used,
    // if the machine is busy: then the same happens again.
    let mut attempts = 0..5;
    loop {
        attempts.next().expect("a call gets another token");
        tokio::time::sleep(Duration::from_secs(5)).await;
        if store.commit(put("a", b"2")).await.is_ok() {
            break;
        }
    }
    assert_eq!(value(&store, "a").await, Some("2".into()));

    let error = refused(&with_password("planted-wrong")).await;
    assert!(error.contains("authentication failed") && !error.contains("planted"), "{error}");
    let elsewhere = Config { prefix: "/other".into(), ..with_password("planted-secret") };
    let error = refused(&elsewhere).await;
    assert!(error.contains("permission denied"), "{error}");
    assert!(!format!("{elsewhere:?}").contains("planted"));
}

#[test]
fn an_error_of_the_configuration_names_its_key() {
    let good = || config(&["http://127.0.0.1:2379".to_owned()]);
    assert_eq!(good().check(), Ok(()));
    let tls = Tls { ca: None, cert: None, key: None };
    let url = |url: &str| Config { endpoints: vec![url.into()], ..good() };
    let password = Some(Arc::new(SecretBytes::new(b"planted".to_vec())));
    for (config, key) in [
        (Config { endpoints: vec![], ..good() }, "endpoints"),
        (url("127.0.0.1:2379"), "endpoints"),
        (url("http://"), "endpoints"),
        (url("http://host/path"), "endpoints"),
        (url("http://kms:planted@host:2379"), "endpoints"),
        (Config { endpoints: vec!["http://a".into(), "https://b".into()], ..good() }, "endpoints"),
        (Config { prefix: "/".into(), ..good() }, "prefix"),
        (Config { timeout: Duration::from_millis(99), ..good() }, "timeout"),
        (Config { username: Some("kms".into()), ..good() }, "username"),
        (Config { password: password.clone(), ..good() }, "username"),
        (
            Config {
                username: Some("kms".into()),
                password,
                password_file: Some("/x".into()),
                ..good()
            },
            "password",
        ),
        (Config { tls: Some(tls.clone()), ..good() }, "tls"),
        (
            Config {
                tls: Some(Tls { cert: Some("/x".into()), ..tls.clone() }),
                ..url("https://a")
            },
            "tls",
        ),
        (
            Config { tls: Some(Tls { ca: Some("/none".into()), ..tls }), ..url("https://a") },
            "tls.ca",
        ),
    ] {
        let (wrong, detail) = config.check().unwrap_err();
        assert_eq!(wrong, key, "{detail}");
        assert!(!detail.contains("planted"), "{detail}");
    }
}
