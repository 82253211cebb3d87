//! The OpenAPI document, used by tools that know kms-proxy only by it: a validator, a fuzzer and a
//! generator of clients.

use std::process::{Command, Output};

use crate::support::{Setup, root, tell};

/// A program of the Python environment of the tests.
fn tool(name: &str) -> Command {
    let path = root().join("target/test-env/bin").join(name);
    assert!(path.exists(), "{} is missing: run `make test-env`", path.display());
    Command::new(path)
}

async fn run(mut command: Command) -> Output {
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    run.await.unwrap()
}

/// What it wrote, which must say that all went well.
fn good(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    out.into_owned()
}

fn document() -> std::path::PathBuf {
    root().join("openapi/kms-proxy.json")
}

#[tokio::test]
async fn the_document_is_valid_and_its_examples_fit_their_schemas() {
    let mut check = tool("python");
    check.arg(root().join("tests/openapi/examples.py")).arg(document());
    let said = good(&run(check).await);
    let count = said.trim_end().strip_suffix(" examples").expect("a count");
    assert!(count.parse::<u32>().unwrap() > 100, "{said}");
}

#[test]
fn the_document_begins_with_encrypt_and_decrypt() {
    let text = std::fs::read_to_string(document()).unwrap();
    let paths = text.lines().filter_map(|line| line.strip_prefix("    \"/")?.strip_suffix("\": {"));
    let paths: Vec<_> = paths.collect();
    assert_eq!(paths[..3], ["v1/encrypt", "v1/decrypt", "v1/rewrap"]);
    assert_eq!(paths[paths.len() - 3..], ["healthz", "readyz", "metrics"]);
}

#[tokio::test]
async fn a_fuzzer_that_knows_the_document_finds_no_other_answer() {
    let service = Setup::new().set("CHAIN__NAMES", "orders").start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut fuzz = tool("schemathesis");
    fuzz.current_dir(dir.path()).arg("--no-color").arg("--config-file");
    fuzz.arg(root().join("tests/openapi/schemathesis.toml")).arg("run").arg(document());
    fuzz.args(["--url", &service.url()]);
    let said = good(&run(fuzz).await);
    let calls = said.lines().find(|line| line.contains(" generated, ")).expect("a summary");
    tell(&format!("schemathesis: {}", calls.trim()));
    let text = std::fs::read_to_string(document()).unwrap();
    let all = text.matches("\"operationId\"").count();
    assert!(said.contains(&format!("{all} selected / {all} total")), "{said}");
    let log = service.stop().await;
    // It forges ids of KEKs, and an id that the chain does not have is an error of the log.
    let is_forged =
        |line: &&str| line.contains("a ciphertext names a KEK that this chain does not");
    let mut errors = log.lines().filter(|line| line.contains(r#""level":"ERROR""#));
    assert!(!log.contains("panicked") && errors.all(|line| is_forged(&line)), "{log}");
}

#[tokio::test]
async fn a_client_that_is_generated_from_the_document_encrypts_and_decrypts() {
    let service = Setup::new().start().await;
    let dir = tempfile::tempdir().unwrap();
    let client = dir.path().join("generated");
    let mut generate = tool("openapi-python-client");
    generate.args(["generate", "--meta", "none", "--path"]).arg(document());
    generate.arg("--output-path").arg(&client);
    // It tidies up with a tool that is beside it.
    generate.env("PATH", root().join("target/test-env/bin"));
    good(&run(generate).await);
    let mut user = tool("python");
    user.arg(root().join("tests/openapi/client.py")).arg(&client).arg(service.url());
    let said = good(&run(user).await);
    assert!(said.contains("encrypts and decrypts"), "{said}");
}
