//! The direction of the modules, read from `src/`: who may know whom, and who may know the crates
//! that must stay at the edges. ARCHITECTURE.md tells the reasons.
//!
//! `cli` belongs to the binary and sees the library as `kms_proxy`: the rules are the same.
//! Tests may use what they like, so modules that are declared `#[cfg(test)]`, files of tests and
//! the targets of fuzzers are left out. So are `lib.rs` and `main.rs`, which see everything.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

mod circles;

/// Each module and the modules that it may use, which stand above it. It may use itself.
const MODULES: &str = "
    accept:
    base64:
    clock:
    constant_time:
    error_chain:
    http2_frames:
    id:
    in_progress:
    json:
    log_throttle:
    loopback:
    random:
    timestamp:
    trace_context:
    wildcard:
    human_units:
    backoff:   random
    secret:    id random
    aead:      id secret
    files:     random secret
    metrics:   id
    pem:       timestamp
    proxy:     loopback
    shared_call: in_progress
    sigv4:
    single_flight: in_progress
    telemetry: error_chain human_units log_throttle proxy trace_context
    tls:       clock files pem secret timestamp

    cobblestone: aead id random secret
    envelope:  aead cobblestone id
    root:      aead backoff clock error_chain files id loopback pem proxy random secret human_units
    store:     backoff base64 clock error_chain files id pem random secret timestamp human_units
    archive:   error_chain files id loopback pem proxy random store human_units

    audit:     clock id json metrics random root secret store trace_context wildcard human_units

    keychain:  aead clock cobblestone envelope id random secret
    stream:    cobblestone envelope id keychain
    status:    timestamp
    export:    base64 id keychain root
    service:   archive audit backoff clock cobblestone envelope id keychain metrics random root secret single_flight status store timestamp human_units

    auth:      wildcard clock error_chain files id loopback metrics pem proxy random secret service sigv4 tls human_units

    http:      accept aead audit auth clock cobblestone envelope http2_frames id json keychain log_throttle loopback metrics random secret service status telemetry timestamp tls trace_context human_units
    kubernetes: accept audit envelope error_chain http2_frames id keychain log_throttle metrics random secret service

    aws_api:   audit auth clock envelope http id json keychain metrics root secret service shared_call sigv4 human_units

    config:    archive audit auth aws_api files http id keychain kubernetes root secret service store telemetry tls human_units
    app:       archive audit auth aws_api backoff clock config http id kubernetes metrics root secret service store telemetry tls human_units
    cli:       aead app archive audit auth aws_api clock cobblestone config envelope error_chain files http id kubernetes loopback root secret service status store stream telemetry tls human_units
";

/// Crates that only these modules may name.
const CRATES: &str = "
    aes_gcm:     aead
    aws_lc_rs:   aead audit pem root tls
    argon2:      root
    aws_config:  root
    aws_sdk_kms: root
    aws_smithy_http_client: root
    getrandom:   random
    redb:        store
    axum:        http aws_api app
    hyper:       http kubernetes app
    hyper_util:  http kubernetes app proxy
    maud:        http
    utoipa:      http
    utoipa_axum: http
    reqwest:     root archive auth cli telemetry
    opentelemetry: telemetry
    opentelemetry_http: telemetry
    opentelemetry_otlp: telemetry
    opentelemetry_sdk: telemetry
    tracing_opentelemetry: telemetry
    object_store: archive
    clap:        cli config
    anyhow:      app cli
    prometheus:  metrics http app
    jsonwebtoken: auth
    sd_notify:   app
    prost:       kubernetes
    tonic:       store kubernetes
    tonic_prost: kubernetes
    rustls:      tls pem
    tokio_rustls: tls
    x509_parser: tls pem
    tokio:       accept archive audit aws_api log_throttle root shared_call single_flight store service telemetry tls auth http kubernetes app cli
";

#[test]
fn modules_know_only_what_they_may() {
    let complaints: String = sources()
        .iter()
        .filter_map(|path| Some((path, module(path)?)))
        .map(|(path, module)| complaints(path, &module, &read(path)))
        .collect();
    assert!(complaints.is_empty(), "\n{complaints}the rules are in {}", file!());
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = sources().into_iter().filter(|path| !opens(&read(path))).collect();
    assert!(silent.is_empty(), "these do not start with //!: {silent:#?}");
}

/// The rules themselves can fail: without this a slip in the reading would let everything pass.
#[test]
fn wrong_edges_are_found() {
    let check = |module, source| complaints(Path::new("x.rs"), module, source);
    for (module, source) in [
        ("envelope", "use crate::keychain::KeyChain;"),
        ("keychain", "let root: &dyn crate::root::RootKey = root;"),
        ("root", "use crate::{id::KekId, store};"),
        ("root", "use crate::{\n    id::{ChainName, KekId},\n    store::Store,\n};"),
        ("http", "use crate::store::record::Limits;"),
        ("http", "use crate::KeyChain;"),
        ("service", "use axum::Router;"),
        ("keychain", "fn wait() -> tokio::time::Sleep {"),
        ("cli", "use kms_proxy::keychain::KeyChain;"),
        ("unheard_of", "use crate::id::KekId;"),
        ("human_units", "use crate::id::KekId; // once"),
        ("store", "#[cfg(test)]\nmod tests;\nuse crate::root;"),
    ] {
        assert!(!check(module, source).is_empty(), "{module}: {source}");
    }
    for (module, source) in [
        ("keychain", "use crate::envelope::Envelope;\nuse super::budget;"),
        ("root", "use crate::{\n    id::{ChainName, KekId},\n    secret,\n};"),
        ("envelope", "/// See [`crate::keychain`].\n// use crate::keychain;"),
        ("envelope", "#[cfg(test)]\nmod tests {\n    use crate::keychain::KeyChain;\n}"),
        ("http", "use axum::Router;"),
        ("cli", "use kms_proxy::envelope;"),
        ("service", "use crate::service::error::Kind; use my_axum::x;"),
    ] {
        assert_eq!(check(module, source), "", "{module}: {source}");
    }
    assert!(opens("//! The file.\n") && !opens("\n//! Late.\n") && !opens("use a::b;"));
    assert!(!opens("//!\n"));
}

#[test]
fn the_modules_have_an_order() {
    let mut above: Vec<&str> = Vec::new();
    for (module, may_use) in rows(MODULES) {
        for used in may_use {
            assert!(above.contains(&used), "{module} uses {used}, which does not stand above it");
        }
        above.push(module);
    }
}

/// A name, and the names behind its colon.
fn rows(table: &'static str) -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    table.lines().filter_map(|line| {
        let (name, rest) = line.trim().split_once(':')?;
        Some((name, rest.split_whitespace().collect()))
    })
}

/// A line for each thing in `source`, a file of `module`, that is against the rules.
fn complaints(path: &Path, module: &str, source: &str) -> String {
    let mut text = String::new();
    let path = path.display();
    let Some((_, may_use)) = rows(MODULES).find(|(name, _)| *name == module) else {
        return format!("{path}: the module {module} is not in the table\n");
    };
    let code = code(source);
    for used in uses(&code).filter(|used| *used != module && !may_use.contains(used)) {
        let _ = writeln!(text, "{path}: {module} must not use crate::{used}");
    }
    for (name, by) in rows(CRATES).filter(|(_, by)| !by.contains(&module)) {
        if words_before(&code, "::").any(|word| word == name) {
            let _ = writeln!(text, "{path}: only {} may use the crate {name}", by.join(", "));
        }
    }
    text
}

/// The source without comments and without the modules of its tests.
fn code(source: &str) -> String {
    let mut parts = source.split("#[cfg(test)]\nmod ");
    let mut source = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // `mod tests;` is another file; `mod tests {` ends this one.
        match part[first_word(part).len()..].strip_prefix(';') {
            Some(rest) => source.push_str(rest),
            None => break,
        }
    }
    let lines = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n").replace("kms_proxy::", "crate::")
}

/// What follows `crate::`, in a group of imports too.
fn uses(code: &str) -> impl Iterator<Item = &str> {
    code.split("crate::").skip(1).flat_map(|rest| match rest.strip_prefix('{') {
        Some(group) => group_members(group),
        None => vec![first_word(rest)],
    })
}

/// The first word of each member of a group of imports, whose opening brace is gone.
fn group_members(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut members) = (0, 0, Vec::new());
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth > 0 => {}
            ',' | '}' => {
                members.push(first_word(group[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
        if character == '}' && start == at + 1 {
            break;
        }
    }
    members.retain(|member| !member.is_empty());
    members
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !is_word(c)).next().unwrap_or_default()
}

/// The words that stand right before each `separator`.
fn words_before<'a>(code: &'a str, separator: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(separator).map(|(end, _)| {
        let before = &code[..end];
        before.rsplit(|c: char| !is_word(c)).next().unwrap_or_default()
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn opens(source: &str) -> bool {
    source.strip_prefix("//! ").is_some_and(|rest| !rest.trim_start().is_empty())
}

/// The module that a file belongs to; none for tests, for targets of fuzzers, and for the roots of
/// library and binary.
fn module(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(src()).unwrap().with_extension("");
    let mut parts = inside.iter().map(|part| part.to_str().unwrap());
    let is_test = parts.clone().any(|part| matches!(part, "tests" | "fuzzing"));
    parts.next().filter(|first| !is_test && !matches!(*first, "lib" | "main")).map(str::to_owned)
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// All Rust files below `src/`.
fn sources() -> Vec<PathBuf> {
    let (mut files, mut directories) = (Vec::new(), vec![src()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(files.len() > 10, "src was read");
    files.sort();
    files
}
