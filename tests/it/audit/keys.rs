//! The key of the log while roots come and go.

use std::path::Path;

use crate::support::{Service, Setup, run};

/// `setup` with a root of kind `local` as number `index` of the configuration.
fn with_root(setup: Setup, index: usize, name: &str, key: &Path) -> Setup {
    let set =
        |setup: Setup, key: &str, value: String| setup.set(&format!("ROOT__{index}__{key}"), value);
    let setup = set(setup, "NAME", name.to_owned());
    let setup = set(setup, "KIND", "local".to_owned());
    set(setup, "KEY_FILE", key.display().to_string())
}

/// What `audit key` says with the roots of `setup`.
fn key(setup: &Setup) -> Result<String, String> {
    let output = setup.run(&["audit", "key"]);
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn command(service: &Service, step: &str, root: &str) -> String {
    let output = run(&["root", step, "--root", root, "--server", &service.url()], b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_root_does_not_open_the_key_of_the_log() {
    let base = Setup::new();
    let base = base.clone().set("STORE__PATH", base.data().display());
    let [one, two] = ["old.key", "new.key"].map(|name| base.file(name));
    let old = with_root(base.clone(), 0, "old", &one);
    let new = with_root(base.clone(), 0, "new", &two);
    let both = with_root(new.clone(), 1, "old", &one);
    let audit = old.clone().set("AUDIT__FILE", base.file("audit.jsonl").display());
    audit.start().await.stop().await;
    let first = key(&old).unwrap();
    // The audit log is off meanwhile; its key gets and loses wraps all the same.
    let service = both.start().await;
    command(&service, "rewrap", "new");
    service.stop().await;
    let service = new.start().await;
    let said = command(&service, "remove", "old");
    assert!(said.contains(" 0 failed"), "{said}");
    service.stop().await;
    let why = key(&old).unwrap_err();
    assert!(why.contains("none of the configured roots has wrapped it"), "{why}");
    assert_eq!(key(&new).unwrap(), first, "the key stays the same");
}
