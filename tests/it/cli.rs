//! The commands against a running service: data on stdout alone, messages on stderr, exit codes.

use std::process::{Command, Output, Stdio};

use kms_proxy::envelope;
use serde_json::Value;

use crate::support::{BINARY, Service, Setup, root, run};

mod commands;

/// 256 bytes, every value once: no text.
fn binary() -> Vec<u8> {
    (0..=255).rev().collect()
}

/// A command that calls `service`.
fn call(service: &Service, args: &[&str], input: &[u8]) -> Output {
    let url = service.url();
    let args: Vec<_> = args.iter().copied().chain(["--server", &url]).collect();
    run(&args, input)
}

/// What a command that goes well writes: to stdout alone.
fn good(output: Output) -> Vec<u8> {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*said), (Some(0), ""));
    output.stdout
}

fn good_text(output: Output) -> String {
    String::from_utf8(good(output)).unwrap()
}

/// What a command that fails says; it writes no data.
fn refused(output: Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn what_is_encrypted_comes_out_as_it_was() {
    let service = Setup::new().set("CHAIN__NAMES", "orders").start().await;
    for plaintext in [binary(), Vec::new(), b"kp:AQID\n".to_vec(), vec![0; 1 << 20]] {
        for context in
            [&[][..], &["--aad", "row 7"], &["--chain", "orders", "--aad-base64", "AP8="]]
        {
            let with = |command: &[&'static str]| [command, context].concat();
            let text = good(call(&service, &with(&["encrypt"]), &plaintext));
            assert!(text.starts_with(b"kp:") && text.ends_with(b"\n"));
            let raw = good(call(&service, &with(&["encrypt", "--raw"]), &plaintext));
            assert_eq!(raw.len(), 62 + plaintext.len() + 16);
            for envelope in [text, raw] {
                assert_eq!(good(call(&service, &with(&["decrypt"]), &envelope)), plaintext);
                let said = refused(call(&service, &["decrypt", "--aad", "row 8"], &envelope), 1);
                let expected =
                    if context.contains(&"orders") { "unknown_kek" } else { "invalid_ciphertext" };
                assert!(said.starts_with(&format!("kms-proxy: {expected}: ")), "{said}");
            }
        }
    }
}

#[tokio::test]
async fn an_envelope_of_256_bytes_has_334_and_its_header_is_rewrapped_alone() {
    let service = Setup::new().start().await;
    let text = good_text(call(&service, &["encrypt", "--aad", "row 7"], &binary()));
    let old = envelope::from_text(text.trim_end()).unwrap();
    assert_eq!(old.len(), 334);
    let shown: Value = serde_json::from_slice(&good(run(&["inspect"], text.as_bytes()))).unwrap();
    let parsed = envelope::Envelope::parse(&old).unwrap();
    assert_eq!(shown["kek_id"], parsed.header.kek_id.to_string());
    assert_eq!((&shown["version"], &shown["suite"]), (&1.into(), &"aes-128-gcm".into()));
    assert_eq!((&shown["header_bytes"], &shown["plaintext_bytes"]), (&62.into(), &256.into()));

    let primary = good_text(call(&service, &["rotate"], b""));
    let header = good(call(&service, &["rewrap", "--raw"], &old[..62]));
    assert_eq!(header.len(), 62);
    assert_ne!(header, &old[..62]);
    let joined = [&header, &old[62..]].concat();
    assert_eq!(good(call(&service, &["decrypt", "--aad", "row 7"], &joined)), binary());
    let shown: Value = serde_json::from_slice(&good(run(&["inspect"], &header))).unwrap();
    assert_eq!(shown["kek_id"], primary.trim_end());
    assert_eq!((&shown["payload_bytes"], &shown["plaintext_bytes"]), (&0.into(), &Value::Null));

    // A whole envelope, and what is under the primary already.
    let moved = good(call(&service, &["rewrap"], text.as_bytes()));
    assert_eq!(good(call(&service, &["decrypt", "--aad", "row 7"], &moved)), binary());
    assert_eq!(good(call(&service, &["rewrap"], &moved)), moved);
    let said = refused(call(&service, &["rewrap"], &old[..61]), 1);
    assert!(said.starts_with("kms-proxy: invalid_ciphertext: "), "{said}");
    assert!(refused(run(&["inspect"], b"hello"), 1).contains("not an envelope"));
}

#[tokio::test]
async fn lines_are_rewrapped_in_place_and_bad_ones_stay() {
    let service = Setup::new().start().await;
    let seal =
        |plaintext: &[u8]| good_text(call(&service, &["encrypt"], plaintext)).trim_end().to_owned();
    // More than one batch.
    let envelopes: Vec<_> = (0..3_u8).map(|i| seal(&[i; 20])).collect();
    let mut lines: Vec<_> = (0..2_500).map(|i| envelopes[i % 3].clone()).collect();
    lines[1] = "this is none".to_owned();
    lines[2] = String::new();
    lines[4] += "\r";
    lines[5] = "nor this\r".to_owned();
    let elsewhere = Setup::new().start().await;
    lines[2_400] = good_text(call(&elsewhere, &["encrypt"], b"")).trim_end().to_owned();
    let primary = good_text(call(&service, &["rotate"], b""));

    let output = call(&service, &["rewrap", "--lines"], lines.join("\n").as_bytes());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("line 2: ") && said.contains("line 2401: unknown_kek"), "{said}");
    assert!(said.contains("3 of 2500 lines failed"), "{said}");
    let out = String::from_utf8(output.stdout).unwrap();
    let out: Vec<_> = out.split('\n').collect();
    assert_eq!(out.len(), lines.len());
    for (at, (new, old)) in out.iter().zip(&lines).enumerate() {
        if [1, 2, 5, 2_400].contains(&at) {
            assert_eq!(new, old);
            continue;
        }
        assert_eq!(new.ends_with('\r'), old.ends_with('\r'), "line {at}");
        let binary = |line: &str| envelope::from_text(line.trim_end()).unwrap();
        let (new, old) = (binary(new), binary(old));
        assert_eq!(new[62..], old[62..], "line {at}");
        let header = envelope::Envelope::parse(&new).unwrap().header;
        assert_eq!(header.kek_id.to_string(), primary.trim_end(), "line {at}");
    }
    assert_eq!(good(call(&service, &["decrypt"], out[3].as_bytes())), [0; 20]);
    for bad in ["none", "none\n", "none\r\n", "\nnone \r\n\n", " none\n\r"] {
        let output = call(&service, &["rewrap", "--lines"], bad.as_bytes());
        assert_eq!((output.status.code(), &*output.stdout), (Some(1), bad.as_bytes()));
    }
}

#[tokio::test]
async fn operators_see_chains_and_health_and_rotate() {
    let service = Setup::new().set("CHAIN__NAMES", "orders").start().await;
    let primary = good_text(call(&service, &["rotate", "--chain", "orders"], b""));
    let table = good_text(call(&service, &["status"], b""));
    let orders = table.lines().find(|line| line.starts_with("orders ")).unwrap();
    assert!(orders.contains(primary.trim_end()) && orders.contains("2097152"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("default ")), "{table}");
    let all: Value =
        serde_json::from_slice(&good(call(&service, &["status", "--json"], b""))).unwrap();
    assert_eq!((&all["status"], &all["chains"][1]["chain"]), (&"ok".into(), &"orders".into()));
    assert_eq!(all["chains"][1]["primary"], primary.trim_end());
    assert!(good(call(&service, &["healthcheck"], b"")).is_empty());
    let said = refused(call(&service, &["rotate", "--chain", "none"], b""), 1);
    assert_eq!(said, "kms-proxy: unknown_chain: there is no chain of this name\n");

    let url = service.url();
    service.stop().await;
    for command in ["healthcheck", "status", "rotate", "encrypt", "rewrap"] {
        let input = if command == "rewrap" { &[&[1, 1][..], &[7; 60]].concat()[..] } else { b"" };
        let said = refused(run(&[command, "--server", &url], input), 1);
        assert!(said.contains("can't reach") && said.contains(&url), "{command}: {said}");
    }
}

#[test]
fn what_needs_no_service_works_without() {
    let committed = std::fs::read(root().join("openapi/kms-proxy.json")).unwrap();
    assert!(good(run(&["openapi"], b"")) == committed);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = good_text(run(&["completions", shell], b""));
        assert!(script.contains("healthcheck"), "{shell}");
    }
    let script = good(run(&["completions", "bash"], b""));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    let parsed = Command::new("bash").arg("-n").arg(file.path()).output();
    let parsed = parsed.expect("bash is missing: apt-get install bash");
    assert!(parsed.status.success() && parsed.stderr.is_empty(), "{parsed:?}");
    for (words, offered) in [
        ("kms-proxy ''", "encrypt"),
        ("kms-proxy store ''", "verify"),
        ("kms-proxy kek dis", "disable"),
        ("kms-proxy doctor --so", "--socket"),
    ] {
        let script = r#"
            source "$1"
            eval "COMP_WORDS=($2)"
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            function=$(complete -p kms-proxy | sed 's/.* -F \([^ ]*\) .*/\1/')
            "$function" kms-proxy "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
            echo "${COMPREPLY[@]}"
        "#;
        let mut bash = Command::new("bash");
        let completed = bash.args(["-c", script, "bash"]).arg(file.path()).arg(words).output();
        let completed = good_text(completed.unwrap());
        assert!(completed.split_whitespace().any(|word| word == offered), "{words}: {completed}");
    }
    let committed = std::fs::read_to_string(root().join("docs/command-line.md")).unwrap();
    let made = good_text(run(&["reference"], b""));
    assert!(made == committed, "docs/command-line.md is old: run `make documents`");
    let help = good_text(run(&["--help"], b""));
    assert!(help.contains("Exit codes") && help.contains("rewrap"), "{help}");
    let version = good_text(run(&["--version"], b""));
    assert_eq!(version, concat!("kms-proxy ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn every_command_has_a_man_page() {
    let page = good_text(run(&["man"], b""));
    assert!(page.contains(".TH kms-proxy 1") && page.contains("Exit codes"), "{page}");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("share/man1");
    good(run(&["man", "--out", out.to_str().unwrap()], b""));
    let reference = good_text(run(&["reference"], b""));
    let commands: Vec<_> = reference.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert!(commands.len() > 20, "{commands:?}");
    for command in &commands {
        let page = out.join(format!("{}.1", command.replace(' ', "-")));
        let page =
            std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), commands.len());
    let said = refused(run(&["man", "--out", "/dev/null/pages"], b""), 1);
    assert!(said.contains("/dev/null/pages"), "{said}");
}

#[test]
fn the_configuration_in_force_is_printed_and_can_be_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kms-proxy.toml");
    let check = || run(&["check-config", "--config", file.to_str().unwrap()], b"");
    std::fs::write(&file, "[server]\nmax_body = '1MiB'\n[chain]\nnames = ['orders']\n").unwrap();
    let printed = good_text(check());
    assert!(
        printed.contains("listen = \"127.0.0.1:8080\"") && printed.contains("orders"),
        "{printed}"
    );
    std::fs::write(&file, &printed).unwrap();
    assert_eq!(good_text(check()), printed);
    std::fs::write(&file, "[server]\nlisten = '0.0.0.0:8080'\n").unwrap();
    assert!(refused(check(), 2).contains("server.listen: this is not a loopback address"));
    std::fs::remove_file(&file).unwrap();
    assert!(refused(check(), 2).contains("kms-proxy.toml"));
}

#[test]
fn a_root_that_can_not_be_used_is_found_before_the_start_and_nothing_is_made() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("kms-proxy.toml"));
    let check = |root: &str| {
        std::fs::write(&file, format!("[[root]]\nname = 'main'\n{root}\n")).unwrap();
        let (file, data) = (file.to_str().unwrap(), data.to_str().unwrap());
        run(&["check-config", "--config", file, "--data-dir", data], b"")
    };
    let passphrase = dir.path().join("passphrase");
    let by_file = format!("kind = 'passphrase'\npassphrase_file = '{}'", passphrase.display());
    let said = refused(check(&by_file), 2);
    assert!(
        said.starts_with(&format!("kms-proxy: root main: {}: ", passphrase.display())),
        "{said}"
    );
    let (file_text, data_text) = (file.to_str().unwrap(), data.to_str().unwrap());
    let serve = ["serve", "--listen", "127.0.0.1:0", "--config", file_text];
    let started = run(&[&serve[..], &["--data-dir", data_text]].concat(), b"");
    assert!(refused(started, 2).ends_with(&said), "serve says the same");
    std::fs::remove_dir_all(&data).unwrap();

    std::fs::write(&passphrase, " \n").unwrap();
    assert!(refused(check(&by_file), 2).contains("is empty"));
    std::fs::write(&passphrase, "correct horse battery staple").unwrap();
    assert!(!good_text(check(&by_file)).contains("horse"));
    assert!(refused(check("kind = 'passphrase'"), 2).contains("there is no passphrase"));

    let printed = good_text(check("kind = 'local'"));
    assert!(printed.contains(&format!("key_file = \"{data_text}/root.key\"")), "{printed}");
    assert!(printed.contains("format = \"json\""), "{printed}");
    assert!(!data.exists(), "a check makes nothing");
    let key = dir.path().join("key");
    let by_key = format!("kind = 'local'\nkey_file = '{}'", key.display());
    good(check(&by_key));
    std::fs::write(&key, "no key").unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(refused(check(&by_key), 2).contains("not a key file of this version"));
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(refused(check(&by_key), 2).contains("chmod 600"));
}

#[test]
fn the_keys_of_an_issuer_are_looked_for_before_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (jwks, file) = (dir.path().join("jwks"), dir.path().join("kms-proxy.toml"));
    let config = format!(
        "[auth]\nmode = 'required'\n[[client]]\nname = 'a'\n\
         allow = [{{ chains = ['*'], operations = ['read'] }}]\n\
         jwt = {{ issuer = 'i', audience = 'a', subject = 's', jwks_file = '{}' }}\n",
        jwks.display()
    );
    std::fs::write(&file, config).unwrap();
    let check = || run(&["check-config", "--config", file.to_str().unwrap()], b"");
    let said = refused(check(), 2);
    let names_both = format!("client.0.jwt.jwks_file: {}: ", jwks.display());
    assert!(said.contains(&names_both) && said.contains("No such file"), "{said}");
    std::fs::write(&jwks, "{\"keys\":[]}").unwrap();
    assert!(refused(check(), 2).contains("it has no key that verifies"));
    let key = crate::support::jwt::Key::new("one", jsonwebtoken::Algorithm::ES256);
    std::fs::write(&jwks, crate::support::jwt::jwks(&[&key])).unwrap();
    good(check());
}

#[test]
fn wrong_usage_is_code_2_and_explained_on_stderr() {
    for args in [
        &["encrypt", "--chain", "Orders"][..],
        &["encrypt", "--server", "127.0.0.1:8080"],
        &["frobnicate"],
        &["rewrap", "--lines", "--raw"],
        &[],
    ] {
        let said = refused(run(args, b""), 2);
        assert!(said.contains("Usage") || said.contains("--help"), "{args:?}: {said}");
    }
}

#[test]
fn a_reader_that_goes_away_or_a_full_disk_is_no_panic() {
    // More than a pipe holds, so that the write fails.
    let mut command = Command::new(BINARY);
    command.arg("openapi").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(1), &b""[..]), "{output:?}");
    for command in
        [&["openapi"][..], &["completions", "bash"], &["inspect", "kp:"], &["check-config"]]
    {
        let script = "exec \"$@\" >&-";
        let output = Command::new("sh").args(["-c", script, "sh", BINARY]).args(command).output();
        let said = String::from_utf8(output.unwrap().stderr).unwrap();
        assert!(!said.contains("panicked"), "{command:?}: {said}");
    }
    #[cfg(target_os = "linux")]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(BINARY).arg("openapi").stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains("can't write to stdout"), "{said}");
    }
}
