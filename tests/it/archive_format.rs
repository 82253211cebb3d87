//! The format of archives: an independent reader in Python, written from docs/archive.md alone,
//! agrees with the service and with the library.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kms_proxy::archive::object::{self, Chain, Merged, Wraps};
use kms_proxy::store::record::{Kek, Limits, State, Wrap};
use kms_proxy::{ChainName, KekId, Suite};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::tools::{printed, test_env};
use crate::support::{Service, Setup, pages, root, tell, until};

const ID: KekId = KekId::from_bytes([7; 16]);

/// Runs the reader on directories.
fn read(directories: &[PathBuf]) -> Output {
    let mut python = Command::new(test_env("python"));
    python.arg(root().join("tests/archive_reader/read.py")).args(directories).output().unwrap()
}

/// A new directory that is an archive.
fn archive(parent: &Path, name: &str) -> PathBuf {
    let directory = parent.join(name);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("kms-proxy-archive"), "").unwrap();
    directory
}

fn write(directory: &Path, key: &str, bytes: &[u8]) {
    let file = directory.join(key);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, bytes).unwrap();
}

/// The lines that the reader prints for KEKs, as the service lists them.
async fn expected(service: &Service, chains: &[&str]) -> String {
    let mut lines = String::new();
    for chain in chains {
        let (_, settings) = service.get(&format!("/v1/chains/{chain}")).await;
        let suite = settings["suite"].as_str().unwrap().to_owned();
        let mut keks = pages(service, &format!("/v1/chains/{chain}"), "items").await;
        keks.sort_by_key(|kek| kek["kek_id"].to_string());
        for kek in keks {
            let roots: Vec<_> = kek["roots"].as_array().unwrap().iter().collect();
            let roots: Vec<_> = roots.iter().map(|root| root.as_str().unwrap()).collect();
            let roots = if roots.is_empty() { "-".to_owned() } else { roots.join(",") };
            let (id, state) = (kek["kek_id"].as_str().unwrap(), kek["state"].as_str().unwrap());
            writeln!(lines, "{chain} {id} {} {suite} {roots}", alive(state)).unwrap();
        }
    }
    lines
}

/// An archive does not distinguish the states in which a KEK decrypts.
fn alive(state: &str) -> &str {
    if matches!(state, "standby" | "primary" | "retired") { "alive" } else { state }
}

/// What the reader printed, with those states replaced.
fn lines(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let mut lines = String::new();
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').map(alive).collect();
        writeln!(lines, "{}", words.join(" ")).unwrap();
    }
    lines
}

#[tokio::test]
async fn the_reader_in_python_reads_what_the_service_archives() {
    let setup = Setup::new();
    let nas = archive(&setup.file(""), "nas");
    let key = setup.file("root.key");
    let setup = setup
        .set("ROOT__0__KIND", "passphrase")
        .set("ROOT__0__NAME", "main")
        .set("ROOT__0__MEMORY", "19MiB")
        .set("ROOT__0__PASSES", 2)
        .set("ROOT__0__PASSPHRASE", "correct horse battery staple")
        .set("ROOT__1__KIND", "local")
        .set("ROOT__1__NAME", "dev")
        .set("ROOT__1__KEY_FILE", key.display())
        .set("ARCHIVE__0__KIND", "dir")
        .set("ARCHIVE__0__NAME", "nas")
        .set("ARCHIVE__0__PATH", nas.display());
    let setup = setup.clone().set("AUDIT__FILE", setup.file("audit.jsonl").display());
    let service = setup.start().await;
    let (status, made) = service
        .send(reqwest::Method::PUT, "/v1/chains/orders", json!({"suite": "aes-256-gcm"}))
        .await;
    assert!(status.is_success(), "{made}");
    let mut old = Vec::new();
    for chain in ["default", "default", "default", "default", "orders"] {
        let sealed = service.encrypt(chain, "aGVsbG8=").await;
        service.ok("/v1/rotate", json!({"chain": chain})).await;
        old.push(sealed.kek_id());
    }
    let change = async |id: &str, change: &str| {
        service.ok(&format!("/v1/chains/default/keks/{id}/{change}"), json!({})).await
    };
    // One stays disabled, and one is enabled again.
    for id in &old[..2] {
        change(id, "disable").await;
    }
    change(&old[1], "enable").await;
    // A tombstone in an archive wins over the record of the store.
    let id: KekId = old[2].parse().unwrap();
    let default = ChainName::new("default").unwrap();
    let file = nas.join(object::kek_key(&default, id));
    let tombstone = kek(State::Destroyed, Some(1), &[]);
    std::fs::write(&file, object::encode_kek(&default, id, &tombstone).unwrap()).unwrap();
    change(&old[2], "disable").await;
    until("a KEK that is destroyed", async || {
        let keks = expected(&service, &["default"]).await;
        keks.contains(&format!("{id} destroyed")).then_some(())
    })
    .await;
    until("an archive that holds all", async || {
        let (_, ready) = service.get("/readyz").await;
        let checks = ready["checks"].as_array().unwrap();
        let is_whole = |check: &Value| check["name"] == "archive:nas" && check["status"] == "ok";
        checks.iter().any(is_whole).then_some(())
    })
    .await;

    let keks = expected(&service, &["default", "orders"]).await;
    for part in [" destroyed aes-128-gcm -", " disabled ", " alive aes-256-gcm main,dev"] {
        assert!(keks.contains(part), "{keks}");
    }
    let count = keks.lines().count();
    let output = read(std::slice::from_ref(&nas));
    let audit_key = std::fs::read(nas.join(object::AUDIT_KEY)).unwrap();
    let audit_key = object::decode_audit_key(&audit_key).unwrap();
    let roots: Vec<_> = audit_key.wraps.iter().map(|wrap| &*wrap.root).collect();
    let expected = format!("audit/key {} {}\n", audit_key.id, roots.join(","));
    assert_eq!(roots, ["main", "dev"]);
    let end = format!("{expected}2 chains, {count} KEKs, 0 problems\n");
    assert_eq!(lines(&output), format!("{keks}{end}"));
    printed(output);
    service.stop().await;

    // Damage of each object is reported.
    let mut objects = files(&nas.join("v1"));
    assert_eq!(objects.len(), count + 2);
    objects.push(nas.join(object::AUDIT_KEY));
    for file in &objects {
        let whole = std::fs::read(file).unwrap();
        for bad in [&whole[..whole.len() / 2], &[&whole[1..], b" "].concat(), b""] {
            std::fs::write(file, bad).unwrap();
            let output = read(std::slice::from_ref(&nas));
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{told}");
            assert!(told.contains(&format!("{}: ", file.display())), "{told}");
        }
        std::fs::write(file, &whole).unwrap();
    }
    // So is one at the key of another.
    let other = nas.join(format!("v1/orders/{}.json", old[3]));
    std::fs::copy(nas.join(format!("v1/default/{}.json", old[3])), &other).unwrap();
    let output = read(std::slice::from_ref(&nas));
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told, format!("{}: it is the object of another chain\n", other.display()));
    tell(&format!("archived objects that the reader in Python read: {}", objects.len()));
}

/// The files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn orders() -> ChainName {
    ChainName::new("orders").unwrap()
}

fn kek(state: State, disabled_at: Option<u64>, roots: &[&str]) -> Kek {
    let wrap = |root: &&str| Wrap { root: (*root).to_owned(), bytes: vec![1, 2, 3] };
    Kek {
        suite: Suite::Aes128Gcm,
        state,
        created_at: 1,
        promoted_at: Some(2),
        disabled_at,
        exposed: false,
        wraps: roots.iter().map(wrap).collect(),
    }
}

fn settings() -> Vec<u8> {
    let limits = Limits::default();
    let chain = Chain { suite: Suite::Aes128Gcm, limits, inline: false };
    object::encode_chain(&orders(), &chain).unwrap()
}

/// An object of `ID` with this record and a digest that matches.
fn with_digest(record: &str) -> Vec<u8> {
    let digest = Sha256::digest(format!("orders\n{ID}\n{record}"));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = ID.to_string();
    json!({"format": 1, "chain": "orders", "kek_id": id, "sha256": digest, "record": record})
        .to_string()
        .into_bytes()
}

#[test]
fn the_reader_in_python_and_the_library_refuse_the_same_objects() {
    let good = object::encode_kek(&orders(), ID, &kek(State::Retired, None, &["main"])).unwrap();
    let object: Value = serde_json::from_slice(&good).unwrap();
    let record = object["record"].as_str().unwrap();
    let mut objects = vec![good.clone(), [b" \n", &good[..], b"\n"].concat(), with_digest(record)];
    let valid = objects.len();
    // A digest protects nothing from a program that computes it again.
    for (from, to) in [
        (r#""format":1"#, r#""format":2"#),
        (r#""format":1"#, r#""format":1.0"#),
        (r#""format":1"#, r#""format":true"#),
        (r#""format":1"#, r#""format":1,"format":1"#),
        (r#""exposed":false"#, r#""exposed":0"#),
        (r#""exposed":false"#, r#""exposed":false,"pinned":false"#),
        (r#""exposed":false,"#, ""),
        ("retired", "retained"),
        ("retired", "destroyed"),
        ("aes-128-gcm", "aes-128-cbc"),
        (r#""created_at":1"#, r#""created_at":-1"#),
        (r#""created_at":1"#, r#""created_at":null"#),
        (r#""created_at":1"#, r#""created_at":18446744073709551616"#),
        (r#""promoted_at":2"#, r#""promoted_at":"2""#),
        (r#""root":"main""#, r#""root":7"#),
        (r#""root":"main""#, r#""root":"main","key":"a""#),
        ("AQID", "AQI"),
        ("AQID", "AQI-"),
        ("AQID", "AQID\\n"),
        (r#"[{"root":"main","bytes":"AQID"}]"#, "[]"),
        (r#"[{"root":"main","bytes":"AQID"}]"#, "{}"),
        (r#"[{"root":"main","bytes":"AQID"}]"#, "NaN"),
        (r#"{"format":1,"record":"#, r#"{"record":"#),
    ] {
        let changed = record.replacen(from, to, 1);
        assert_ne!(changed, record, "{from}");
        objects.push(with_digest(&changed));
    }
    let of_other = |key: &str, value: Value| {
        let mut changed = object.clone();
        changed[key] = value;
        changed.to_string().into_bytes()
    };
    objects.push(of_other("format", json!(2)));
    objects.push(of_other("chain", json!("others")));
    objects.push(of_other("kek_id", json!(ID.to_string().replacen('7', "8", 1))));
    objects.push(of_other("more", json!(1)));
    objects.push(of_other("sha256", json!(object["sha256"].as_str().unwrap().to_uppercase())));
    objects.push([b"\xef\xbb\xbf", &good[..]].concat());
    objects.push([&good[..], b"{}"].concat());
    objects.extend((0..good.len()).step_by(11).map(|len| good[..len].to_vec()));
    objects.extend((0..good.len()).map(|index| {
        let mut changed = good.clone();
        changed[index] ^= 1 << (index % 8);
        changed
    }));

    let parent = tempfile::tempdir().unwrap();
    let key = object::kek_key(&orders(), ID);
    let first = archive(parent.path(), "settings");
    write(&first, &object::chain_key(&orders()), &settings());
    let mut directories = vec![first];
    let mut refused = BTreeSet::new();
    for (index, bytes) in objects.iter().enumerate() {
        let directory = archive(parent.path(), &index.to_string());
        write(&directory, &key, bytes);
        if object::decode_kek(&orders(), ID, bytes).is_err() {
            refused.insert(directory.join(&key));
        }
        directories.push(directory);
    }
    assert_eq!(refused.len(), objects.len() - valid);
    let output = read(&directories);
    let told = String::from_utf8(output.stderr).unwrap();
    let by_reader = told.lines().map(|line| PathBuf::from(line.split(": ").next().unwrap()));
    assert_eq!(by_reader.collect::<BTreeSet<_>>(), refused, "{told}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let end = format!("1 chains, 1 KEKs, {} problems\n", refused.len());
    assert_eq!(printed, format!("orders {ID} retired aes-128-gcm main\n{end}"));
    tell(&format!("damaged objects that both readers refuse: {}", refused.len()));
}

#[test]
fn the_reader_in_python_and_the_library_agree_on_what_several_archives_have_together() {
    let life = [
        kek(State::Standby, None, &["main"]),
        kek(State::Retired, None, &["main", "dr"]),
        kek(State::Disabled, Some(5), &["dr"]),
        kek(State::Retired, Some(5), &["main"]),
        kek(State::Disabled, Some(9), &["main"]),
        kek(State::Destroyed, Some(3), &[]),
    ];
    let parent = tempfile::tempdir().unwrap();
    let directories = ["a", "b"].map(|name| archive(parent.path(), name));
    write(&directories[0], &object::chain_key(&orders()), &settings());
    let mut expected = String::new();
    for (index, one) in life.iter().enumerate() {
        for (other_index, other) in life.iter().enumerate() {
            let id = KekId::from_bytes([u8::try_from(index * 16 + other_index).unwrap(); 16]);
            for (directory, kek) in directories.iter().zip([one, other]) {
                let bytes = object::encode_kek(&orders(), id, kek).unwrap();
                write(directory, &object::kek_key(&orders(), id), &bytes);
            }
            let merged = match object::merge(one, other, Wraps::Join) {
                Merged::Keep => one.clone(),
                Merged::Replace(merged) => merged,
            };
            let mut roots: Vec<_> = merged.wraps.iter().map(|wrap| &*wrap.root).collect();
            roots.sort_unstable();
            let roots = if roots.is_empty() { "-".to_owned() } else { roots.join(",") };
            let state = alive(merged.state.as_str());
            writeln!(expected, "orders {id} {state} aes-128-gcm {roots}").unwrap();
        }
    }
    let output = read(&directories);
    let told = lines(&output);
    let mut sorted = String::new();
    for line in told.lines() {
        // The order of the wraps has no meaning.
        let (start, roots) = line.rsplit_once(' ').unwrap();
        let mut roots: Vec<_> = roots.split(',').collect();
        roots.sort_unstable();
        writeln!(sorted, "{start} {}", roots.join(",")).unwrap();
    }
    assert_eq!(sorted, format!("{expected}1 chains, {} KEKs, 0 problems\n", life.len().pow(2)));
}
