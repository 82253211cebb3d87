//! The Dockerfile without an engine: what it copies is there, its steps do what they are for, and
//! what it starts is what the binary has.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::support::root;
use crate::support::tools::printed;

/// The instructions, each with its arguments; comments are left out.
fn instructions() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (instruction, rest) = line.split_once(' ').unwrap();
            (instruction.to_owned(), rest.to_owned())
        })
        .collect()
}

/// The arguments of all instructions of this name.
fn of<'a>(all: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    all.iter().filter(|(is, _)| is == name).map(|(_, rest)| rest.as_str()).collect()
}

/// What the image's HEALTHCHECK runs, without the program.
pub(super) fn healthcheck() -> Vec<String> {
    let all = instructions();
    let check = of(&all, "HEALTHCHECK")[0].split_once("CMD ").unwrap().1;
    let command: Vec<String> = serde_json::from_str(check).unwrap();
    assert_eq!(command[0], "/usr/local/bin/kms-proxy");
    command[1..].to_vec()
}

fn copy(from: &Path, to: &Path) {
    printed(Command::new("cp").arg("-r").args([from, to]).output().unwrap());
}

#[test]
fn the_image_is_small_not_root_and_of_our_versions() {
    let all = instructions();
    let from = of(&all, "FROM");
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Value = toml::from_str(&manifest).unwrap();
    let rust = manifest["package"]["rust-version"].as_str().unwrap();
    assert_eq!(from[0], format!("rust:{rust}-bookworm AS build"));
    // Debian 12 in both: what was linked there runs here.
    assert_eq!(from[1], "gcr.io/distroless/cc-debian12:nonroot");
    assert_eq!(of(&all, "USER"), ["65532:65532"]);
    assert_eq!(of(&all, "ENTRYPOINT"), [r#"["/usr/local/bin/kms-proxy"]"#]);
    assert_eq!(of(&all, "CMD"), [r#"["serve"]"#]);
    assert_eq!(healthcheck(), ["healthcheck"]);
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let protox = of(&all, "RUN")[0].trim_start_matches("cargo ");
    assert!(makefile.contains(protox), "{protox}");
    assert!(!all.iter().any(|(_, rest)| rest.contains("x86_64") || rest.contains("amd64")));
}

#[test]
fn each_step_of_the_build_has_what_it_needs() {
    let all = instructions();
    let ignored = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    let sent: BTreeSet<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let context = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for (instruction, rest) in &all {
        match instruction.as_str() {
            "COPY" if !rest.starts_with("--from") => {
                let (sources, target) = rest.rsplit_once(' ').unwrap();
                for source in sources.split(' ') {
                    assert!(sent.contains(source), ".dockerignore leaves {source} out");
                    let (source, target) = (root().join(source), context.path().join(target));
                    if source.is_dir() {
                        // Its content goes there, not the directory.
                        std::fs::create_dir_all(&target).unwrap();
                        copy(&source.join("."), &target);
                    } else {
                        copy(&source, &target);
                    }
                }
            }
            // The shell's steps are run. Cargo, which would build everything, is asked whether it
            // could: it reads all manifests, and looks for every file that they name.
            "RUN" if rest.starts_with("cargo build") => {
                checked += 1;
                could_build(context.path());
            }
            "RUN" if rest.starts_with("cargo install") || rest.starts_with("install") => {}
            "RUN" => {
                let step = rest.split(" && cargo").next().unwrap();
                let mut shell = Command::new("sh");
                printed(shell.args(["-c", step]).current_dir(&context).output().unwrap());
                if rest.contains("cargo build") {
                    checked += 1;
                    could_build(context.path());
                }
            }
            _ => {}
        }
    }
    assert_eq!(checked, 2, "dependencies, then the crate");
    // In the end it is the crate itself.
    let mut diff = Command::new("diff");
    diff.args(["-r", "src"]).arg(context.path().join("src")).current_dir(root());
    printed(diff.output().unwrap());
}

fn could_build(context: &Path) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version=1", "--locked", "--offline", "--no-deps"]);
    let metadata = printed(cargo.current_dir(context).output().unwrap());
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    for target in metadata["packages"][0]["targets"].as_array().unwrap() {
        let path = Path::new(target["src_path"].as_str().unwrap());
        assert!(path.exists(), "{}", path.display());
    }
}
