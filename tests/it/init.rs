//! `kms-proxy init`: what it writes can be used, and it writes all of it or nothing.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use kms_proxy::auth::token::TokenDigest;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::pki::Pki;
use crate::support::{Service, Setup};

/// An empty directory, but for the certificates of a service.
fn place() -> Setup {
    let setup = Setup::new();
    let pki = Pki::new(setup.file("pki"));
    let (cert, key) = pki.server(&["localhost"]);
    std::fs::rename(cert, setup.file("tls.crt")).unwrap();
    std::fs::rename(key, setup.file("tls.key")).unwrap();
    setup
}

/// Runs it with lines on stdin.
fn init(setup: &Setup, flags: &[&str], lines: &str) -> Output {
    let mut command = setup.tool(&[&["init"], flags].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end before it has read them.
    _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

/// The flags that answer everything.
fn flags(answers: [&str; 6]) -> Vec<&str> {
    let names = ["--root", "--store", "--archive", "--tls", "--identities", "--audit"];
    let pairs = names.into_iter().zip(answers).flat_map(|(name, answer)| [name, answer]);
    pairs.chain(["--non-interactive"]).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Fails unless it went well; what it printed.
fn done(output: &Output) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    text(&output.stdout)
}

/// Fails unless it was refused with this code, and printed nothing; what it said.
fn refused(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(code), String::new()), "{said}");
    said
}

/// A new file, which nobody else can read.
fn written(setup: &Setup, name: &str) -> String {
    let path = setup.file(name);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600, "{name}");
    std::fs::read_to_string(path).unwrap()
}

/// The files beside those of [`place`].
fn files(setup: &Setup) -> Vec<String> {
    let dir = std::fs::read_dir(setup.file("")).unwrap();
    let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter(|name| !["pki", "tls.crt", "tls.key"].contains(&&**name)).collect();
    names.sort();
    names
}

/// Checks what was written as a user does; what is in force.
fn checked(setup: &Setup) -> String {
    let output = setup.run(&["check-config", "--config", "kms-proxy.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn what_is_written_passes_the_check_and_has_the_digest_of_the_token() {
    let module = "/bin/sh";
    let gcp = "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k";
    let jwt = "jwt:https://issuer.example,kms-proxy,system:app,https://issuer.example/keys";
    let (https, mutual) = ("tls.crt,tls.key", "tls.crt,tls.key,pki/ca.crt");
    // The answers, the client with a token, and some lines of the configuration that is in force.
    for (answers, client, expected) in [
        (
            ["local", "file:data", "none", "none", "none", "none"],
            None,
            &["kind = \"local\"", "listen = \"127.0.0.1:8080\"", "mode = \"none\""][..],
        ),
        (
            ["aws-kms:alias/a", "inline", "none", "none", "token", "stdout"],
            Some("app"),
            &["key_id = \"alias/a\"", "kind = \"inline\"", "file = \"stdout\""],
        ),
        (
            [gcp, "inline", "none", "none", "token", "stdout"],
            Some("app"),
            &["kind = \"gcp-kms\"", "/keyRings/r/cryptoKeys/k\""],
        ),
        (
            [
                "azure-key-vault:https://v.vault.azure.net/keys/k",
                "inline",
                "none",
                "none",
                "token",
                "stdout",
            ],
            Some("app"),
            &["kind = \"azure-key-vault\"", "algorithm = \"RSA-OAEP-256\"", ".net/keys/k\""],
        ),
        (
            ["passphrase:new", "file:data", "dir:/mnt/a", https, "token", "a.jsonl"],
            Some("app"),
            &["listen = \"0.0.0.0:8443\"", "path = \"/mnt/a\"", "passphrase_file = \"new\""],
        ),
        (
            [
                "vault-transit:https://vault:8200,key,old",
                "etcd:https://a:2379, https://b:2379",
                "s3://bucket/prefix",
                https,
                jwt,
                "unix:/run/socket",
            ],
            Some("operator"),
            &["\"https://b:2379\"", "subject = [\"system:app\"]", "url = \"s3://bucket/prefix\""],
        ),
        (
            [
                &*format!("pkcs11:{module},token,key,old"),
                "etcd:http://127.0.0.1:2379",
                "gs://bucket",
                mutual,
                "certificate:spiffe://prod/app",
                "a.jsonl",
            ],
            Some("operator"),
            &["tls_san = [\"spiffe://prod/app\"]", "kind = \"gcs\"", "key_label = \"key\""],
        ),
        (
            ["local", "etcd:https://a:2379", "az://box/p", https, "none", "none"],
            None,
            &["listen = \"127.0.0.1:8443\"", "kind = \"azure\""],
        ),
    ] {
        let setup = place();
        std::fs::write(setup.file("old"), "12345678").unwrap();
        let printed = done(&init(&setup, &flags(answers), ""));
        let (file, in_force) = (written(&setup, "kms-proxy.toml"), checked(&setup));
        for line in expected {
            assert!(in_force.contains(line), "{line} is not in\n{in_force}");
        }
        let comments = file.lines().filter(|line| line.starts_with('#')).count();
        assert!(comments >= 6, "{file}");
        let mut names = vec!["kms-proxy.toml".to_owned(), "old".to_owned()];
        if answers[0] == "passphrase:new" {
            assert_eq!(written(&setup, "new").trim_end().len(), 44);
            assert!(printed.contains("new: a new passphrase; back it up"), "{printed}");
            names.push("new".to_owned());
        }
        if let Some(client) = client {
            let name = format!("{client}.token");
            let token = written(&setup, &name);
            let digest = TokenDigest::of(token.trim_end()).to_string();
            assert!(token.starts_with("kpt_") && file.contains(&digest), "{file}");
            assert!(!printed.contains(token.trim_end()), "{printed}");
            assert!(printed.contains(&format!("--token-file {name}")), "{printed}");
            names.push(name);
        }
        names.sort();
        assert_eq!(files(&setup), names);
        assert!(printed.contains("check-config --production --config kms-proxy.toml"), "{printed}");
    }
}

#[test]
fn every_question_is_asked_once_and_a_bad_answer_again() {
    let setup = place();
    std::fs::write(setup.file("operator.token"), "mine").unwrap();
    let lines = "\
        hsm\npassphrase:\npassphrase:no/such/dir/file\npassphrase:phrase\n\
        file\nfile:data\n\
        ftp://a\ns3://\ns3://bucket/a\n\
        tls.crt\ntls.crt,pki/ca.crt\ntls.crt,tls.key\n\
        certificate:app.example\njwt:a,b\njwt:https://a.example,a,b,https://a.example/c\ntoken\n\
        \"\\\\é.jsonl\n";
    let output = init(&setup, &[], lines);
    let said = text(&output.stderr);
    done(&output);
    for number in 1..=6 {
        assert_eq!(said.matches(&format!("\n{number}/6 ")).count(), 1, "{said}");
    }
    for why in [
        "expected aws-kms:.., azure-key-vault:.., gcp-kms:.., vault-transit:..",
        "expected passphrase:FILE",
        "can't write to no/such/dir/file",
        "expected file:DIR",
        "expected CERT,KEY, or CERT,KEY,CLIENT_CA, or none",
        "server.tls.key: pki/ca.crt: ",
        "clients are not asked for certificates without server.tls.client_ca",
        "operator.token exists already, and is not replaced",
        "expected jwt:ISSUER,AUDIENCE,SUBJECT,JWKS",
        "expected s3://.., gs://.., az://.., dir:PATH or none",
        "archive.0.url: ",
    ] {
        assert!(said.contains(why), "{why} is not in\n{said}");
    }
    let in_force = checked(&setup);
    assert!(in_force.contains("é.jsonl"), "a name is quoted as TOML needs it: {in_force}");
    for name in ["app.token", "phrase"] {
        written(&setup, name);
    }
}

#[test]
fn an_empty_line_takes_the_answer_that_is_shown() {
    let setup = place();
    done(&init(&setup, &[], "\n\n\n\n\n\n"));
    let in_force = checked(&setup);
    for line in ["key_id = \"alias/kms-proxy\"", "path = \"/var/lib/kms-proxy\""] {
        assert!(in_force.contains(line), "{in_force}");
    }
    // What a flag answers is not asked.
    let setup = place();
    let output = init(&setup, &["--root", "local", "--tls", "none"], "inline\nnone\ntoken\nnone\n");
    done(&output);
    let said = text(&output.stderr);
    for (number, is_asked) in [(1, false), (2, true), (3, true), (4, false), (5, true), (6, true)] {
        assert_eq!(said.contains(&format!("\n{number}/6 ")), is_asked, "{said}");
    }
}

#[test]
fn the_end_of_stdin_leaves_nothing() {
    let answers = "passphrase:phrase\nfile:data\nnone\nnone\ntoken\n";
    for lines in 0..=5 {
        let some: String = answers.split_inclusive('\n').take(lines).collect();
        // Half of an answer is no answer.
        for end in ["", "aud"] {
            let setup = place();
            let said = refused(&init(&setup, &[], &format!("{some}{end}")), 1);
            assert!(said.contains("stdin has ended before --"), "{said}");
            assert!(said.contains("nothing was written"), "{said}");
            assert_eq!(files(&setup), [""; 0]);
        }
    }
}

#[test]
fn an_existing_file_is_never_replaced() {
    let setup = place();
    let answers = flags(["passphrase:phrase", "inline", "none", "none", "token", "none"]);
    let make: [fn(&Path); 2] = [
        |path| std::fs::write(path, "mine").unwrap(),
        |path| {
            std::os::unix::fs::symlink("/no/such/file", path).unwrap();
        },
    ];
    for name in ["kms-proxy.toml", "app.token"] {
        for make in make {
            make(&setup.file(name));
            let output = init(&setup, &answers, "");
            let said = refused(&output, if name == "app.token" { 2 } else { 1 });
            assert!(
                said.contains(&format!("{name} exists already, and is not replaced")),
                "{said}"
            );
            assert_eq!(files(&setup), [name]);
            std::fs::remove_file(setup.file(name)).unwrap();
        }
    }
    // It asks nothing if it could not write.
    for (name, flags) in [("kms-proxy.toml", &[][..]), ("other", &["--token-file", "other"])] {
        std::fs::write(setup.file(name), "mine").unwrap();
        assert!(!refused(&init(&setup, flags, "\n"), 1).contains("1/6"));
        assert_eq!(std::fs::read_to_string(setup.file(name)).unwrap(), "mine");
        std::fs::remove_file(setup.file(name)).unwrap();
    }
    // A passphrase that exists is the one to use.
    std::fs::write(setup.file("phrase"), "the old one, which is long").unwrap();
    let printed = done(&init(&setup, &[&answers[..], &["--token-file", "my token"]].concat(), ""));
    assert!(!printed.contains("new passphrase"), "{printed}");
    assert!(printed.contains("--token-file 'my token'"), "{printed}");
    let phrase = std::fs::read_to_string(setup.file("phrase")).unwrap();
    assert_eq!(phrase, "the old one, which is long");
    assert_eq!(files(&setup), ["kms-proxy.toml", "my token", "phrase"]);
}

/// A file can appear while the questions are asked.
#[test]
fn a_file_that_can_not_get_its_name_takes_the_others_with_it() {
    for name in ["kms-proxy.toml", "app.token", "phrase"] {
        let setup = place();
        let mut command = setup.tool(&[
            "init",
            "--root=passphrase:phrase",
            "--store=inline",
            "--archive=none",
            "--tls=none",
            "--identities=token",
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("6/6 ") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "the last question was not asked");
        }
        // A directory of this name: whatever is not checked again meets it at the end.
        std::fs::create_dir(setup.file(name)).unwrap();
        child.stdin.take().unwrap().write_all(b"none\nnone\n").unwrap();
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{name}: {rest}");
        assert!(rest.contains(name), "{rest}");
        assert_eq!(files(&setup), [name], "{rest}");
    }
}

/// Starts it where it asks nothing.
fn start(setup: &Setup, answers: &[&str]) -> Child {
    let mut command = setup.tool(&[&["init"], answers].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

const WITH_SECRETS: [&str; 6] = ["passphrase:phrase", "inline", "none", "none", "token", "none"];

/// While it writes, a signal would leave a part of the files.
#[test]
fn no_signal_ends_it_between_two_files() {
    for signal in [Signal::HUP, Signal::QUIT, Signal::TERM, Signal::INT] {
        for _ in 0..10 {
            let setup = place();
            let mut child = start(&setup, &flags(WITH_SECRETS));
            // Nothing is made before signals are handled.
            let is_running = loop {
                if !files(&setup).is_empty() {
                    break true;
                }
                if child.try_wait().unwrap().is_some() {
                    break false;
                }
            };
            if is_running {
                kill_process(Pid::from_child(&child), signal).unwrap();
            }
            let output = child.wait_with_output().unwrap();
            done(&output);
            assert_eq!(files(&setup), ["app.token", "kms-proxy.toml", "phrase"], "{signal:?}");
        }
    }
}

#[test]
fn of_two_in_one_directory_one_writes_all_of_its_files_and_the_other_none() {
    for _ in 0..5 {
        let setup = place();
        let all: Vec<_> = (0..6).map(|_| start(&setup, &flags(WITH_SECRETS))).collect();
        let ended = all.into_iter().map(|child| child.wait_with_output().unwrap());
        let (good, bad): (Vec<_>, Vec<_>) = ended.partition(|output| output.status.success());
        assert_eq!((good.len(), bad.len()), (1, 5));
        for output in bad {
            let said = refused(&output, 1);
            assert!(said.contains("is running in the directory .") || said.contains("exists"));
        }
        assert_eq!(files(&setup), ["app.token", "kms-proxy.toml", "phrase"]);
        let token = TokenDigest::of(written(&setup, "app.token").trim_end()).to_string();
        assert!(written(&setup, "kms-proxy.toml").contains(&token), "of one process");
    }
    // One that asks keeps others out, also if they write some of their files elsewhere.
    let setup = place();
    std::fs::create_dir(setup.file("other")).unwrap();
    let mut command = setup.tool(&["init", "--output", "other/kms-proxy.toml"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut first = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(first.stderr.take().unwrap()).read_line(&mut line).unwrap();
    for elsewhere in [
        &["--output", "other/second.toml"][..],
        &["--token-file", "other/token"],
        &["--root", "passphrase:other/phrase"],
    ] {
        let answers = flags(["local", "inline", "none", "none", "token", "none"]);
        let answers = match elsewhere[0] {
            "--root" => [elsewhere, &answers[2..]].concat(),
            _ => [&answers[..], elsewhere].concat(),
        };
        let said = refused(&init(&setup, &answers, ""), 1);
        let expected = "another `kms-proxy init` is running in the directory other";
        assert!(said.contains(expected), "{said}");
        assert_eq!(files(&setup), ["other"]);
    }
    first.kill().unwrap();
    first.wait().unwrap();
    done(&init(&setup, &[&flags(WITH_SECRETS)[..], &["--output", "other/a.toml"]].concat(), ""));
}

#[test]
fn control_characters_are_refused() {
    let setup = place();
    let good = ["local", "inline", "none", "none", "none", "none"];
    for (index, answer) in [
        (0, "passphrase:a\x1b[2J"),
        (0, "aws-kms:a\nb"),
        (1, "file:a\x7fb"),
        (2, "dir:a\tb"),
        (5, "a\r.jsonl"),
        (5, "a\u{9b}31m"),
    ] {
        let mut answers = good;
        answers[index] = answer;
        let said = refused(&init(&setup, &flags(answers), ""), 2);
        assert!(said.contains("it must not contain control characters"), "{answer:?}: {said}");
        assert!(!said.contains(answer), "{said}");
    }
    for flag in ["--output", "--token-file"] {
        let said = refused(&init(&setup, &[&flags(good)[..], &[flag, "a\nb = 1"]].concat(), ""), 2);
        assert!(said.contains(&format!("{flag}: it must not contain control")), "{said}");
    }
    assert_eq!(files(&setup), [""; 0]);
    // One that is typed is asked for again.
    let output = init(&setup, &flags(good)[..10], "a\x1b[31m\nnone\n");
    done(&output);
    let said = text(&output.stderr);
    assert!(said.contains("it must not contain control characters"), "{said}");
}

#[test]
fn what_has_to_be_done_before_a_start_is_said() {
    let setup = place();
    // If another process has it, it is taken too.
    let taken = std::net::TcpListener::bind("127.0.0.1:9090");
    let answers = ["local", "file:a/b", "dir:nas", "none", "none", "log/audit.jsonl"];
    let printed = done(&init(&setup, &flags(answers), ""));
    drop(taken);
    let note = "Something listens on 127.0.0.1:9090 already: set another server.admin_listen in \
                kms-proxy.toml\n";
    assert!(printed.contains(note), "{printed}");
    let (_, next) = printed.split_once("Next:\n").unwrap();
    let commands: Vec<_> = next.lines().map(|line| line.split("     #").next().unwrap()).collect();
    assert_eq!(
        commands,
        [
            "  mkdir -p -m 700 a/b",
            "  mkdir -p -m 700 nas",
            "  mkdir -p -m 700 log",
            "  touch nas/kms-proxy-archive",
            "  kms-proxy check-config --production --config kms-proxy.toml",
            "  kms-proxy serve --config kms-proxy.toml",
            "  echo hello | kms-proxy encrypt",
            "  kms-proxy status --admin http://127.0.0.1:9090",
        ]
    );
    let jwt = "jwt:https://issuer.example,kms-proxy,app,https://issuer.example/keys";
    for (identities, note) in [
        ("token", "# that of the client operator, once it is in the configuration"),
        (jwt, "# --ca FILE for a private authority"),
    ] {
        let setup = place();
        let answers = ["local", "inline", "none", "tls.crt,tls.key", identities, "none"];
        let printed = done(&init(&setup, &flags(answers), ""));
        let status = format!(
            "  kms-proxy status --server https://localhost:8443 --token-file operator.token     {note}"
        );
        assert_eq!(printed.lines().last(), Some(&*status));
    }
    // What exists, or is made by the service, needs no command.
    for name in ["nas", "log"] {
        std::fs::create_dir(setup.file(name)).unwrap();
    }
    std::fs::remove_file(setup.file("kms-proxy.toml")).unwrap();
    let answers = ["local", "file:data", "dir:nas", "none", "none", "log/audit.jsonl"];
    let printed = done(&init(&setup, &flags(answers), ""));
    assert!(!printed.contains("mkdir"), "{printed}");
    assert!(printed.contains("touch nas/kms-proxy-archive"), "{printed}");
}

#[test]
fn what_can_not_be_written_or_answered_is_refused_before_anything_is_made() {
    let setup = place();
    let answers = flags(["passphrase:phrase", "inline", "none", "none", "token", "none"]);
    for place in ["no/such/file", "/proc/file", "pki"] {
        for flag in ["--output", "--token-file"] {
            let more = if flag == "--output" { &["--token-file", "token"][..] } else { &[] };
            let flags = [&answers[..], &[flag, place], more].concat();
            let said = refused(&init(&setup, &flags, ""), 1);
            assert!(said.contains(place), "{said}");
            assert_eq!(files(&setup), [""; 0]);
        }
    }
    for (flags, expected) in [
        (&["--non-interactive"][..], "--non-interactive needs --root, --store, --archive, --tls"),
        (&[&answers[..10], &["--non-interactive"]].concat(), "needs --audit too"),
        (&["--root", "hsm"], "--root: expected aws-kms:.."),
        (&["--root", "local", "--store", "etcd:ftp://a"], "--store: store.endpoints"),
        (
            &flags(["local", "inline", "s3://a/b", "none", "none", "none"]),
            "--archive: archive: store.kind is \"inline\"",
        ),
        // Two files of one name.
        (&[&answers[..], &["--token-file", "kms-proxy.toml"]].concat(), "kms-proxy.toml"),
    ] {
        let said = text(&init(&setup, flags, "").stderr);
        assert!(said.contains(expected), "{flags:?}: {said}");
        assert_eq!(files(&setup), [""; 0], "{flags:?}");
    }
    // What it says at the end is not needed by anyone.
    let mut command = setup.tool(&[&["init"], &answers[..]].concat());
    command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(command.output().unwrap().status.code(), Some(0));
    assert_eq!(files(&setup), ["app.token", "kms-proxy.toml", "phrase"]);
}

/// The new service serves the client of the token and nobody else.
#[tokio::test]
async fn a_service_with_the_new_configuration_knows_the_token() {
    let setup = place();
    let store = format!("file:{}", setup.data().display());
    let answers = flags(["passphrase:phrase", &store, "none", "none", "token", "audit.jsonl"]);
    done(&init(&setup, &answers, ""));
    let mut command = setup.clone().set("SERVER__ADMIN_LISTEN", "127.0.0.1:0").tool(&[
        "serve",
        "--config",
        "kms-proxy.toml",
        "--listen",
        "127.0.0.1:0",
    ]);
    command.stdin(Stdio::null());
    let mut service = Service::spawn(command);
    service.ready().await;
    let url = service.url();
    let good =
        setup.run(&["datakey", "--server", &url, "--token-file", "app.token", "--key-file", "key"]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stderr));
    let bad = setup.run(&["rotate", "--server", &url, "--token-file", "app.token"]);
    assert!(text(&bad.stderr).contains("forbidden"), "{}", text(&bad.stderr));
    let log = service.log();
    let admin = log.split_once("\"admin\":\"").unwrap().1.split('"').next().unwrap();
    let status = setup.run(&["status", "--admin", admin, "--server", &url]);
    assert_eq!(status.status.code(), Some(0), "{}", text(&status.stderr));
    let stranger = setup.run(&["chain", "list", "--server", &url]);
    assert!(text(&stranger.stderr).contains("unauthenticated"), "{}", text(&stranger.stderr));
    service.stop().await;
}
