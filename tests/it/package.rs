//! What would be published: the package is made as `cargo publish` makes it, without the build.

use std::process::Command;

use crate::support::root;

#[test]
fn the_package_is_made_without_a_warning_and_has_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(root()).args(arguments).arg("--target-dir").arg(dir.path());
        command.args(["--offline", "--locked", "--allow-dirty"]).output().unwrap()
    };
    let made = cargo(&["package", "--no-verify"]);
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success() && !said.contains("warning"), "{said}");

    let list = cargo(&["package", "--list"]);
    let list = String::from_utf8(list.stdout).unwrap();
    let files: Vec<_> = list.lines().collect();
    for needed in [
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "src/main.rs",
        "docs/clients/client.rs",
        "docs/command-line.md",
        "openapi/kms-proxy.json",
    ] {
        assert!(files.contains(&needed), "{needed} is not among\n{list}");
    }
    for private in [".ci/", "target/", "fuzz/", "kms-proxy-data"] {
        assert!(!files.iter().any(|file| file.starts_with(private)), "{private} is among\n{list}");
    }
}
