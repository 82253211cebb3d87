//! Certificates and passwords whose files are replaced while a store uses them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::*;
use crate::tls::tests::pki::Pki;

/// Replaces files as kubelet replaces those of a mounted Secret: `..data` is replaced by a link to
/// another directory.
fn swap(mount: &Path, version: &str, files: [(&str, PathBuf); 3]) {
    let new = mount.join(version);
    std::fs::create_dir(&new).unwrap();
    for (name, from) in files {
        std::fs::copy(from, new.join(name)).unwrap();
        if !mount.join(name).is_symlink() {
            symlink(Path::new("..data").join(name), mount.join(name)).unwrap();
        }
    }
    symlink(version, mount.join("..new")).unwrap();
    std::fs::rename(mount.join("..new"), mount.join("..data")).unwrap();
}

/// The files of a client: the authority that it trusts, its certificate and its key.
fn files(ca: PathBuf, (cert, key): (PathBuf, PathBuf)) -> [(&'static str, PathBuf); 3] {
    [("ca.crt", ca), ("tls.crt", cert), ("tls.key", key)]
}

/// Copies the files of etcd to where [`Etcd::with_tls`] expects them.
fn serve(dir: &Path, pki: &Pki) {
    let (cert, key) = pki.server(&["127.0.0.1"]);
    for (name, from) in [("ca.pem", pki.ca()), ("server.pem", cert), ("server.key", key)] {
        std::fs::copy(from, dir.join(name)).unwrap();
    }
}

/// Reads until `done` accepts the result.
async fn until(store: &Store, done: impl Fn(Result<(), String>) -> bool) {
    let mut last = Ok(());
    for _ in 0..600 {
        last = store.get("a").await.map(drop).map_err(|error| error.to_string());
        if done(last.clone()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the last read: {last:?}");
}

async fn recovers(store: &Store) {
    until(store, |read| read.is_ok()).await;
}

async fn fails(store: &Store, because: &str) {
    until(store, |read| read.is_err_and(|error| error.contains(because))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_certificates_are_used_without_a_restart() {
    let (dir, mount) = (tempdir().unwrap(), tempdir().unwrap());
    let (first, second) = (Pki::new(dir.path().join("1")), Pki::new(dir.path().join("2")));
    serve(dir.path(), &first);
    let mut etcd = Etcd::with_tls(dir.path());
    let mount = mount.path();
    let at = |name: &str| mount.join(name);
    swap(mount, "..1", files(first.ca(), first.client(&["kms-proxy"])));
    let tls = Tls { ca: Some(at("ca.crt")), cert: Some(at("tls.crt")), key: Some(at("tls.key")) };
    let store = Store::open(&Config { tls: Some(tls), ..config(&[etcd.url()]) }).await.unwrap();
    applied(&store, put("a", b"1")).await;

    // Another authority, first at etcd and then in the files.
    serve(dir.path(), &second);
    etcd.restart();
    let named = format!("; store.tls.ca is {}", at("ca.crt").display());
    until(&store, |read| {
        read.is_err_and(|error| error.contains("UnknownIssuer") && error.contains(&named))
    })
    .await;
    swap(mount, "..2", files(second.ca(), second.client(&["kms-proxy"])));
    recovers(&store).await;
    assert_eq!(value(&store, "a").await, Some("1".into()));

    // A certificate that etcd refuses: the previous connection is used until it ends.
    swap(mount, "..3", files(second.ca(), second.expired_client(&["kms-proxy"])));
    let expired = format!("{} expired at ", at("tls.crt").display());
    while !store.members.cert().is_some_and(|cert| cert.starts_with(&expired)) {
        assert_eq!(value(&store, "a").await, Some("1".into()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    applied(&store, put("a", b"2")).await;
    etcd.restart();
    fails(&store, &format!("; the client certificate {expired}")).await;
    swap(mount, "..4", files(second.ca(), second.client(&["kms-proxy"])));
    recovers(&store).await;

    // A file that is not a certificate changes nothing, and errors mention it.
    std::fs::write(dir.path().join("none"), "nothing").unwrap();
    let (_, key) = second.client(&["kms-proxy"]);
    swap(mount, "..5", files(second.ca(), (dir.path().join("none"), key)));
    etcd.kill();
    let wrong =
        format!("store.tls.cert: {}: it has no certificate in PEM", at("tls.crt").display());
    fails(&store, &wrong).await;
    etcd.restart();
    recovers(&store).await;
    assert_eq!(value(&store, "a").await, Some("2".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_password_is_used_without_a_restart() {
    let etcd = Etcd::start().await;
    let dir = tempdir().unwrap();
    let file = dir.path().join("password");
    let write = |password: &str| {
        std::fs::write(dir.path().join("new"), format!("{password}\n")).unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
    };
    let almighty = ["--user", "root:planted-root"];
    let set = |password: &str, known: &[&str]| {
        let user = format!("kms:{password}");
        etcd.ctl(&[known, &["user", "add", &user]].concat());
        etcd.ctl(&[known, &["user", "grant-role", "kms", "kms"]].concat());
    };
    let change = |password: &str| {
        etcd.ctl(&[&almighty[..], &["user", "delete", "kms"]].concat());
        set(password, &almighty);
    };
    etcd.ctl(&["user", "add", "root:planted-root"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["role", "add", "kms"]);
    etcd.ctl(&["role", "grant-permission", "kms", "--prefix=true", "readwrite", "/kms-proxy/"]);
    set("planted-1", &[]);
    etcd.ctl(&["auth", "enable"]);
    write("planted-1");
    let config = Config {
        username: Some("kms".into()),
        password_file: Some(file.clone()),
        ..config(&[etcd.url()])
    };
    let store = Store::open(&config).await.unwrap();
    applied(&store, put("a", b"1")).await;

    // First etcd has the new one, and then the file.
    change("planted-2");
    let named = format!("; the password is that of {}", file.display());
    until(&store, |read| {
        read.is_err_and(|error| {
            assert!(!error.contains("planted"), "{error}");
            error.contains("authentication failed") && error.contains(&named)
        })
    })
    .await;
    write("planted-2");
    recovers(&store).await;
    applied(&store, put("a", b"2")).await;

    // First the file has the new one, and then etcd.
    write("planted-3");
    assert_eq!(value(&store, "a").await, Some("2".into()));
    change("planted-3");
    recovers(&store).await;
    applied(&store, put("a", b"3")).await;
}
