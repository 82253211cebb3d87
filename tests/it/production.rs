//! `check-config --production`: each thing that a configuration can lack is found, by its name, and a
//! whole configuration lacks nothing.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::json;

use crate::support::pki::{Pki, now};
use crate::support::{BINARY, Setup, copy_of_the_program, root};

const WHOLE: &str = r#"
[server]
listen = "0.0.0.0:8443"
admin_listen = "0.0.0.0:9090"
drain_delay = "5s"
tls = { cert = "tls.crt", key = "tls.key" }

[[root]]
name = "main"
kind = "aws-kms"
key_id = "alias/kms-proxy"

[store]
kind = "etcd"
endpoints = ["https://etcd-0:2379", "https://etcd-1:2379", "https://etcd-2:2379"]
username = "kms-proxy"
password_file = "password"

[[archive]]
name = "main"
kind = "s3"
url = "s3://backups/kms-proxy"

[auth]
mode = "required"

[[client]]
name = "app"
allow = [{ chains = ["*"], operations = ["encrypt"] }]
max_in_flight = 10
[client.jwt]
issuer = "https://issuer.example"
audience = "kms-proxy"
subject = "app"
jwks_url = "https://issuer.example/keys"

[audit]
file = "audit.jsonl"
"#;

const JWT: &str = r#"[client.jwt]
issuer = "https://issuer.example"
audience = "kms-proxy"
subject = "app"
jwks_url = "https://issuer.example/keys"
"#;
const CLIENT: &str = r#"[[client]]
name = "app"
allow = [{ chains = ["*"], operations = ["encrypt"] }]
max_in_flight = 10
"#;
const ROOT: &str = "kind = \"aws-kms\"\nkey_id = \"alias/kms-proxy\"\n";
const STORE: &str = r#"kind = "etcd"
endpoints = ["https://etcd-0:2379", "https://etcd-1:2379", "https://etcd-2:2379"]
username = "kms-proxy"
password_file = "password"
"#;
const MEMBERS: &str = r#""https://etcd-0:2379", "https://etcd-1:2379", "https://etcd-2:2379""#;
const ARCHIVE: &str = r#"[[archive]]
name = "main"
kind = "s3"
url = "s3://backups/kms-proxy"
"#;

/// What is replaced in `WHOLE`, and all that is reported then.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

struct Place(Setup);

impl Place {
    fn new() -> Self {
        let setup = Setup::new();
        let pki = Pki::new(setup.file("pki"));
        let (cert, key) = pki.server(&["localhost"]);
        std::fs::rename(cert, setup.file("tls.crt")).unwrap();
        std::fs::rename(key, setup.file("tls.key")).unwrap();
        std::fs::write(setup.file("password"), "planted").unwrap();
        std::fs::write(setup.file("passphrase"), "a passphrase that is long").unwrap();
        std::fs::write(setup.file("access-key"), "a-secret-of-22-characters-or-more").unwrap();
        for file in ["tls.key", "password", "passphrase", "access-key"] {
            set_mode(&setup.file(file), 0o600);
        }
        Self(setup)
    }

    /// Checks `WHOLE` with each text replaced by another one.
    fn check(&self, replaced: &[(&str, &str)], more: &[&str]) -> Output {
        let text = replaced.iter().fold(WHOLE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        std::fs::write(self.0.file("kms-proxy.toml"), text).unwrap();
        let args = [&["check-config", "--production", "--config", "kms-proxy.toml"], more];
        self.0.run(&args.concat())
    }

    /// The names that it reports.
    fn names(&self, replaced: &[(&str, &str)]) -> Vec<String> {
        let output = self.check(replaced, &[]);
        let (text, said) = (stdout(&output), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{text}{said}");
        let lines: Vec<_> = text.lines().collect();
        let (findings, rest) = lines.as_chunks::<2>();
        assert!(rest.is_empty() && said.contains("missing for production"), "{text}{said}");
        let name = |[finding, link]: &[&str; 2]| {
            assert!(link.starts_with("  https://") && link.contains("/docs/production.md#"));
            assert!(!finding.contains("planted"), "{finding}");
            finding.split(": ").next().unwrap().to_owned()
        };
        findings.iter().map(name).collect()
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The names in the document, of which a unit test compares the sections too.
fn documented() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("docs/production.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains("](#"));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn a_whole_configuration_lacks_nothing() {
    let place = Place::new();
    let output = place.check(&[], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((stdout(&output), said), ("nothing is missing\n".to_owned(), String::new()));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn each_thing_that_is_missing_is_found_by_its_name() {
    let place = Place::new();
    std::fs::write(place.0.file("token"), "planted").unwrap();
    let token = format!("{CLIENT}token_sha256 = \"{}\"\n", "0".repeat(64));
    let vault = "kind = \"vault-transit\"\naddress = \"http://vault.example\"\nkey = \"k\"\n\
                 token_file = \"token\"\n";
    let user = json!({
        "type": "authorized_user", "client_id": "c", "client_secret": "planted",
        "refresh_token": "planted",
    });
    std::fs::write(place.0.file("user.json"), user.to_string()).unwrap();
    let federation = json!({
        "type": "external_account", "audience": "a", "subject_token_type": "t",
        "token_url": "https://sts.example/", "credential_source": {"file": "/token"},
    });
    std::fs::write(place.0.file("federation.json"), federation.to_string()).unwrap();
    let gcp = |endpoint: &str, file: &str| {
        format!(
            "kind = \"gcp-kms\"\nkey_id = \"projects/p/locations/l/keyRings/r/cryptoKeys/k\"\n\
             endpoint = \"{endpoint}\"\ncredentials_file = \"{file}\"\n"
        )
    };
    let plain_gcp = gcp("http://kms.example", "federation.json");
    let readable_gcp = gcp("https://kms.example", "user.json");
    let plain_azure = "kind = \"azure-key-vault\"\nkey_id = \"http://vault.example/keys/k\"\n\
                       algorithm = \"A256KW\"\n";
    let azure_by_rsa = "kind = \"azure-key-vault\"\nkey_id = \"https://vault.example/keys/k\"\n";
    let access_key = format!(
        "{CLIENT}aws_access_key_id = \"AKIA1\"\naws_secret_access_key_file = \"access-key\"\n"
    );
    let traces = |url: &str, ratio| {
        format!("[traces]\nendpoint = \"{url}\"\nsample_ratio = {ratio}\n[auth]")
    };
    let plain_traces = traces("http://otel.example:4318/v1/traces", "0.1");
    let many_traces = traces("https://otel.example:4318/v1/traces", "0.2");
    let local_traces = traces("http://127.0.0.1:4318/v1/traces", "0.01");
    let both = format!("{CLIENT}{JWT}");
    let plain = STORE.replace("https", "http");
    let file = "kind = \"file\"\npath = \"data\"\n";
    std::fs::create_dir(place.0.file("archive")).unwrap();
    std::fs::write(place.0.file("archive/kms-proxy-archive"), "").unwrap();
    let dir = |path: &str, more: &str| {
        format!("[[archive]]\nname = \"main\"\nkind = \"dir\"\npath = \"{path}\"\n{more}")
    };
    let refuse = "file = \"audit.jsonl\"\n";
    let cases: &[Case] = &[
        (&[(ROOT, "kind = \"local\"\n")], &["root-local"]),
        (
            &[(ROOT, "kind = \"passphrase\"\npassphrase_file = \"passphrase\"\n")],
            &["root-passphrase"],
        ),
        // The file of the token is readable too.
        (&[(ROOT, vault)], &["root-plain", "secret-readable"]),
        (&[(ROOT, &plain_gcp)], &["root-plain"]),
        (&[(ROOT, plain_azure)], &["root-plain"]),
        (&[(ROOT, azure_by_rsa)], &["root-forgeable"]),
        (&[(ROOT, &readable_gcp)], &["secret-readable"]),
        (&[(STORE, file)], &["store-single"]),
        (&[(MEMBERS, "\"https://etcd-0:2379\"")], &["store-single"]),
        (&[(MEMBERS, "\"http://127.0.0.1:2379\"")], &[]),
        (&[(", \"https://etcd-2:2379\"", "")], &["store-members"]),
        // The same member, written in two ways.
        (&[("https://etcd-2:2379", "https://ETCD-1:2379/")], &["store-members", "store-members"]),
        (
            &[("\"https://etcd-2:2379\"", "\"https://etcd-2:2379\", \"https://etcd-0:2379\"")],
            &["store-members"],
        ),
        (
            &[(MEMBERS, "\"https://etcd-0:2379\", \"https://etcd-0:2379\"")],
            &["store-single", "store-members"],
        ),
        (&[(STORE, &plain)], &["store-plain"]),
        (&[("username = \"kms-proxy\"\npassword_file = \"password\"\n", "")], &["store-anonymous"]),
        (&[(ARCHIVE, "")], &["archive-none"]),
        (
            &[("[auth]", "[archive_policy]\non_failure = \"continue\"\n[auth]")],
            &["archive-continue"],
        ),
        (&[(ARCHIVE, &dir("archive", ""))], &[]),
        (&[(ARCHIVE, &dir("archive/no", ""))], &["archive-unwritable"]),
        (&[(ARCHIVE, &dir("pki", ""))], &["archive-unwritable"]),
        (&[(ARCHIVE, &dir("password", ""))], &["archive-unwritable"]),
        (&[(ARCHIVE, &dir("archive/a/b", "create = true\n"))], &[]),
        (&[(ARCHIVE, &dir("password/a", "create = true\n"))], &["archive-unwritable"]),
        // Nothing to archive, and no replica that could fail alone.
        (&[(STORE, "kind = \"inline\"\n"), (ARCHIVE, "")], &[]),
        (
            &[
                ("tls = { cert = \"tls.crt\", key = \"tls.key\" }", ""),
                ("listen = \"0.0.0.0:8443\"", "listen = \"127.0.0.1:8443\""),
                ("admin_listen = \"0.0.0.0:9090\"", "admin_listen = \"127.0.0.1:9090\""),
            ],
            &["tls-none"],
        ),
        (
            &[(&both, ""), ("required", "none"), ("listen = \"0.0.0.0:8443\"", "insecure = true")],
            &["auth-none"],
        ),
        (&[(&both, &token)], &["credential-permanent"]),
        (
            &[(&both, &access_key), ("[auth]", "[aws_api]\nenabled = true\n[auth]")],
            &["credential-permanent"],
        ),
        (&[("[\"encrypt\"]", "[\"encrypt\", \"decrypt\"]")], &["client-broad"]),
        (
            &[(
                "chains = [\"*\"], operations = [\"encrypt\"]",
                "chains = [\"a*\"], operations = [\"decrypt\"]",
            )],
            &[],
        ),
        (&[(refuse, "")], &["audit-none"]),
        (&[(refuse, "file = \"stdout\"\non_failure = \"continue\"")], &["audit-continue"]),
        (&[("audit.jsonl", "no/audit.jsonl")], &["audit-unwritable"]),
        (&[("audit.jsonl", "tls.crt/audit.jsonl")], &["audit-unwritable"]),
        (&[("audit.jsonl", "pki")], &["audit-unwritable"]),
        (&[("audit.jsonl", "stdout")], &[]),
        (&[("admin_listen = \"0.0.0.0:9090\"", "")], &["metrics-none"]),
        (
            &[
                ("admin_listen = \"0.0.0.0:9090\"", ""),
                ("[\"encrypt\"]", "[\"encrypt\", \"read\"]"),
            ],
            &[],
        ),
        (&[("[auth]", &plain_traces)], &["traces-plain"]),
        (&[("[auth]", &many_traces)], &["traces-many"]),
        (&[("[auth]", &local_traces)], &[]),
        // Without an endpoint there are none.
        (&[("[auth]", "[traces]\nsample_ratio = 1\n[auth]")], &[]),
        (&[("max_in_flight = 10\n", "")], &["client-unlimited"]),
        (&[("drain_delay = \"5s\"\n", "")], &["drain-none"]),
    ];
    let mut seen = BTreeSet::new();
    for (replaced, expected) in cases {
        if expected.is_empty() {
            assert_eq!(stdout(&place.check(replaced, &[])), "nothing is missing\n", "{replaced:?}");
            continue;
        }
        let names = place.names(replaced);
        assert_eq!(names, *expected, "{replaced:?}");
        seen.extend(names);
    }
    let token = Place(place.0.clone().set("ROOT__0__TOKEN", "planted"));
    let names = token.names(&[(ROOT, &vault.replace("token_file = \"token\"\n", ""))]);
    assert_eq!(names, ["root-plain", "root-token"]);
    seen.extend(names);

    let (cert, key) =
        Pki::new(place.0.file("other")).server_until(&["a"], now() + Duration::from_secs(600));
    std::fs::copy(cert, place.0.file("tls.crt")).unwrap();
    std::fs::copy(key, place.0.file("tls.key")).unwrap();
    set_mode(&place.0.file("tls.key"), 0o600);
    let names = place.names(&[]);
    assert_eq!(names, ["tls-expiry"]);
    seen.extend(names);

    let (cert, key) = Pki::new(place.0.file("nameless")).server(&[]);
    std::fs::copy(cert, place.0.file("tls.crt")).unwrap();
    std::fs::copy(key, place.0.file("tls.key")).unwrap();
    set_mode(&place.0.file("tls.key"), 0o600);
    let names = place.names(&[]);
    assert_eq!(names, ["tls-name"]);
    seen.extend(names);
    assert_eq!(seen, documented(), "each has a case here");
}

/// Root may write everywhere, so the program runs as somebody else.
#[test]
fn a_directory_that_the_user_may_not_write_to_is_found() {
    let place = Place::new();
    let dir = "[[archive]]\nname = \"main\"\nkind = \"dir\"\npath = \"archive\"\n";
    let replaced = [(ARCHIVE, dir), ("audit.jsonl", "audit/audit.jsonl")];
    for name in ["archive", "audit"] {
        std::fs::create_dir(place.0.file(name)).unwrap();
        set_mode(&place.0.file(name), 0o755);
    }
    std::fs::write(place.0.file("archive/kms-proxy-archive"), "").unwrap();
    assert_eq!(stdout(&place.check(&replaced, &[])), "nothing is missing\n");
    let mut command = std::process::Command::new(BINARY);
    if rustix::process::getuid().is_root() {
        let nobody = 65_534;
        let binary = place.0.file("kms-proxy");
        copy_of_the_program(&binary);
        command = std::process::Command::new(binary);
        command.uid(nobody).gid(nobody);
        let entries = std::fs::read_dir(place.0.file("")).unwrap().map(|entry| entry.unwrap());
        let entries = entries.filter(|entry| entry.file_type().unwrap().is_file());
        let own = entries.map(|entry| entry.path()).chain([place.0.file("")]);
        own.for_each(|path| chown(path, Some(nobody), Some(nobody)).unwrap());
    } else {
        ["archive", "audit"].iter().for_each(|name| set_mode(&place.0.file(name), 0o555));
    }
    command.args(["check-config", "--production", "--config", "kms-proxy.toml"]);
    let output = command.current_dir(place.0.file("")).env_clear().output().unwrap();
    let text = stdout(&output);
    let names = text.lines().step_by(2).map(|line| line.split(": ").next().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["archive-unwritable", "audit-unwritable"], "{text}");
    assert_eq!(text.matches("ermission denied").count(), 2, "{text}");
}

#[test]
fn what_is_accepted_is_not_reported() {
    let place = Place::new();
    let replaced = [(ARCHIVE, ""), ("file = \"audit.jsonl\"\n", "")];
    let output = place.check(&replaced, &["--accept", "audit-none"]);
    assert!(stdout(&output).starts_with("archive-none: ") && output.status.code() == Some(1));
    for accepted in [
        &["--accept", "audit-none,archive-none"][..],
        &["--accept", "audit-none", "--accept", "archive-none"],
    ] {
        let output = place.check(&replaced, accepted);
        assert_eq!(
            (stdout(&output), output.status.code()),
            ("nothing is missing\n".to_owned(), Some(0))
        );
    }
    // A configuration that can't be used is one with or without the checklist.
    let output = place.check(&[("audience", "audienze")], &[]);
    assert_eq!((stdout(&output), output.status.code()), (String::new(), Some(2)));
}

#[test]
fn every_file_with_a_secret_is_looked_at() {
    let place = Place::new();
    for file in ["tls.key", "password"] {
        set_mode(&place.0.file(file), 0o644);
        let text = stdout(&place.check(&[], &[]));
        assert!(text.contains(&format!("can read {file} (mode 0644)")), "{text}");
        set_mode(&place.0.file(file), 0o600);
    }
    for (kind, file) in [
        ("passphrase\"\npassphrase_file = \"x\"", "x"),
        ("vault-transit\"\naddress = \"https://a\"\nkey = \"k\"\ntoken_file = \"x\"", "x"),
    ] {
        std::fs::write(place.0.file(file), "a-passphrase-that-is-long").unwrap();
        set_mode(&place.0.file(file), 0o604);
        let text = stdout(&place.check(&[(ROOT, &format!("kind = \"{kind}\n"))], &[]));
        assert!(text.contains("secret-readable: root.0."), "{text}");
    }
}
