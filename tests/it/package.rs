//! The package: what would be published, made as `cargo publish` makes it without the build; and
//! what its Cargo features pull in.

use std::collections::{BTreeMap, BTreeSet};
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

    let made = std::fs::read_dir(dir.path().join("package")).unwrap();
    let made: Vec<_> = made.map(|entry| entry.unwrap().path()).collect();
    let made: Vec<_> =
        made.iter().filter(|path| path.extension() == Some("crate".as_ref())).collect();
    assert_eq!(made.len(), 1, "{made:?}");
    let len = made[0].metadata().unwrap().len();
    assert!(len <= PACKAGE_LEN, "the package has {len} bytes");

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
    let public_vectors = ["tests/vectors/cavp/", "tests/vectors/wycheproof/"];
    for public in public_vectors {
        assert!(root().join(public).is_dir(), "{public}");
    }
    for private in [&[".ci/", "target/", "fuzz/", "kms-proxy-data"][..], &public_vectors].concat() {
        assert!(!files.iter().any(|file| file.starts_with(private)), "{private} is among\n{list}");
    }
}

/// The most bytes that the package may have, compressed.
const PACKAGE_LEN: u64 = 3 << 20;

/// What no small library may depend on.
const LARGE: [&str; 10] = [
    "aws-config",
    "aws-sdk-kms",
    "axum",
    "clap",
    "etcd-client",
    "hyper",
    "reqwest",
    "rustls",
    "mimalloc",
    "tonic",
];

#[test]
fn without_features_the_library_is_small() {
    let crates = crates("");
    assert!(crates.len() <= 80, "{} crates: {crates:?}", crates.len());
    assert!(crates.contains("aes-gcm"), "the tree was read: {crates:?}");
    for large in LARGE {
        assert!(!crates.contains(large), "{large} is among {crates:?}");
    }
}

#[test]
fn only_the_etcd_store_needs_a_compiler_of_protocol_buffers() {
    let without = crates("aws-kms azure-key-vault gcp-kms pkcs11 server vault-transit");
    let with = crates("etcd");
    for needs_protoc in ["etcd-client", "prost-build", "tonic-prost-build"] {
        assert!(!without.contains(needs_protoc), "{needs_protoc} is among {without:?}");
        assert!(with.contains(needs_protoc), "{needs_protoc} is not among {with:?}");
    }
}

/// The crates that a build with these features compiles, build scripts included.
fn crates(features: &str) -> BTreeSet<String> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(["tree", "--offline", "--locked", "--prefix", "none"]);
    command.args(["--edges", "normal,build", "--no-default-features", "--features", features]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn each_crate_with_several_versions_is_one_that_the_rules_accept() {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(["tree", "--offline", "--locked", "--duplicates"]);
    command.args(["--all-features", "--target", "all", "--edges", "normal,build"]);
    let output = command.args(["--prefix", "none", "--depth", "0"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split(' ');
        let (name, version) = (words.next().unwrap(), words.next().unwrap());
        let numbers = version.trim_start_matches('v').split(['.', '-', '+']);
        let numbers: Vec<u64> = numbers.map_while(|number| number.parse().ok()).collect();
        found.entry(name.to_owned()).or_default().insert(numbers);
    }

    let rules = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let rules: toml::Table = rules.parse().unwrap();
    let skipped = rules["bans"]["skip"].as_array().unwrap().iter().map(|rule| {
        let (name, version) = rule["crate"].as_str().unwrap().split_once('@').unwrap();
        let numbers = version.split('.').map(|number| number.parse().unwrap());
        (name.to_owned(), numbers.collect::<Vec<u64>>())
    });
    let mut skipped: BTreeSet<_> = skipped.collect();
    assert!(skipped.len() > 5, "the rules were read");
    for (name, versions) in found {
        for version in versions.into_iter().rev().skip(1) {
            let rule = (1..=version.len()).find_map(|len| {
                let (start, _) = version.split_at(len);
                skipped.take(&(name.clone(), start.to_vec()))
            });
            assert!(rule.is_some(), "deny.toml does not have {name}@{version:?}");
        }
    }
    assert!(skipped.is_empty(), "Cargo.lock no longer has {skipped:?}");
}

#[test]
fn features_add_modules_and_providers_and_change_nothing_else() {
    let mut files = vec![root().join("src")];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        seen += source.matches("#[cfg(").count();
        assert_eq!(misplaced(&source), None, "{}", path.display());
    }
    assert!(seen > 20, "the sources were read");
    for bad in [
        "#[cfg(feature = \"etcd\")]\nconst LIMIT: u32 = 7;",
        "#[cfg(not(feature = \"etcd\"))]\nfn open() {}",
        "let limit = if cfg!(feature = \"etcd\") { 7 } else { 8 };",
    ] {
        assert!(misplaced(bad).is_some(), "{bad}");
    }
}

/// A condition on a feature that is neither on a module, on its re-export nor on a match arm.
fn misplaced(source: &str) -> Option<&str> {
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line.contains("cfg!(feature") {
            return Some(line);
        }
        if line.starts_with("#[cfg(") && line.contains("feature") {
            let next = lines.find(|line| !line.starts_with("#[path")).unwrap_or_default();
            let starts = ["mod ", "pub mod ", "pub use "].iter().any(|word| next.starts_with(word));
            if !starts && !next.contains("=>") {
                return Some(next);
            }
        }
    }
    None
}
