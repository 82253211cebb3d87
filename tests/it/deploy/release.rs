//! What makes a release, as far as that is checked without building one: the workflow, the scripts
//! and the list of unsafe code. `make dist` and `make reproduce` build it.

use std::process::Command;

use super::helm::{example, helm};
use crate::support::root;
use crate::support::tools::{printed, yaml_file};

const WORKFLOW: &str = ".github/workflows/release.yml";

#[test]
fn the_workflow_runs_pinned_actions_and_targets_that_exist() {
    let text = std::fs::read_to_string(root().join(WORKFLOW)).unwrap();
    let mut actions = 0;
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("- uses: ")) {
        let (_, version) = line.split_once('@').unwrap();
        let (commit, tag) = version.split_once(" # v").expect("the comment names the version");
        assert!(
            commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{line}"
        );
        assert!(!tag.is_empty(), "{line}");
        actions += 1;
    }
    assert!(actions >= 3, "the actions were read");
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    for target in ["reproduce", "dist"] {
        assert!(text.contains(&format!("make {target}\n")), "make {target}");
        assert!(makefile.contains(&format!("\n{target}: ")), "the target {target}");
    }
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    let image = text.lines().find_map(|line| line.trim().strip_prefix("image: ")).unwrap();
    assert!(
        dockerfile.contains(&format!("FROM {image} AS build")),
        "the image is built in {image}"
    );
    assert!(!text.contains("docker run"), "a step runs an image of others, with its rights");
}

#[test]
fn the_workflow_and_its_scripts_are_well_formed() {
    let dir = tempfile::tempdir().unwrap();
    let parsed = yaml_file(&root().join(WORKFLOW));
    // Nothing has a right that it does not name.
    assert_eq!(parsed["permissions"], serde_json::json!({}));
    let mut scripts: Vec<String> = ["build.sh", "dist.sh", "pack.sh", "reproduce.sh"]
        .iter()
        .map(|name| std::fs::read_to_string(root().join("release").join(name)).unwrap())
        .collect();
    for (name, job) in parsed["jobs"].as_object().unwrap() {
        assert!(job["permissions"].is_object(), "{name} names its rights");
        // A build runs the code of others, so it has no secret.
        assert_eq!(job.to_string().contains("secrets."), name == "release", "{name}");
        assert_eq!(job.get("environment").is_some(), name == "release", "{name}");
        let steps = job["steps"].as_array().unwrap().iter();
        scripts.extend(steps.filter_map(|step| step["run"].as_str()).map(str::to_owned));
    }
    assert!(scripts.len() > 7, "the scripts were read");
    for script in scripts {
        let path = dir.path().join("script");
        std::fs::write(&path, &script).unwrap();
        printed(Command::new("sh").arg("-n").arg(&path).output().unwrap());
    }
}

/// The same files, as two checkouts have them: the machines of a release each have their own.
#[test]
fn the_same_files_are_packed_to_the_same_bytes_and_helm_reads_the_chart() {
    let dir = tempfile::tempdir().unwrap();
    let packed = [("one", "u=rwX,go=rX", "2001-01-01"), ("other", "u=rwX,go=", "2002-02-02")].map(
        |(name, mode, day)| {
            let place = dir.path().join(name);
            let copied = format!(
                "mkdir $0 && cp -R helm/kms-proxy $0/ && chmod -R {mode} $0 && \
                 find $0 -exec touch -d {day} {{}} + && release/pack.sh $0.tgz $0 kms-proxy"
            );
            let mut shell = Command::new("sh");
            shell.current_dir(root()).env("SOURCE_DATE_EPOCH", "1").args(["-ec", &copied]);
            printed(shell.arg(&place).output().unwrap());
            place.with_extension("tgz")
        },
    );
    let [one, other] = packed.each_ref().map(|path| std::fs::read(path).unwrap());
    assert!(one == other && !one.is_empty(), "the bytes differ");
    let chart = packed[0].to_str().unwrap();
    let shown = printed(helm(&["show", "chart", chart]));
    assert!(shown.contains("\nname: kms-proxy\n"), "{shown}");
    let values = example("etcd-aws-kms");
    let render = |chart: &str| printed(helm(&["template", "proxy", chart, "-f", &values]));
    assert_eq!(render(chart), render("helm/kms-proxy"));
}

#[test]
fn the_list_of_unsafe_code_is_complete_and_has_none_of_ours() {
    let mut list = Command::new("python3");
    list.current_dir(root()).env("CARGO_NET_OFFLINE", "true").arg("release/unsafe.py");
    let list = printed(list.output().unwrap());
    let rows: Vec<_> = list.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    let first = list.lines().next().unwrap();
    assert!(first.starts_with(&format!("{} of ", rows.len())), "{first}");
    // These call C, so they can't do without.
    for owner in ["aws-lc-sys", "cryptoki", "libc", "tokio"] {
        assert!(rows.iter().any(|row| row.starts_with(&format!("| {owner} "))), "{owner}");
    }
    assert!(!rows.iter().any(|row| row.starts_with("| kms-proxy ")), "ours:\n{list}");
}
