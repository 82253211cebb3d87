//! The shell blocks of README.md and docs/ are run as they stand, and what they show must come out.
//!
//! - A `console` block has commands after `$ ` (more lines after `> `), each with what it prints. A line of
//!   `...` stands for any lines, `...` in a line for any text; ids, envelopes, other base64 and times may
//!   differ. A `sh` block is a script.
//! - `console fails` is a block whose last command ends with a code other than 0. `console not run: REASON`
//!   is read by `bash -n` alone, and counted with its reason.
//! - A `toml FILE` block is written to that file. Every `toml` block must be a configuration.
//! - `<!-- run` ... `-->` is a script that readers don't see. `need moto` in it starts a server, and `ports N..`
//!   gives each of these ports of the document a free one, where it is a word.
//!
//! A document has one shell in its own directory. `kms-proxy serve` runs in the background there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kms_proxy::config::{Config, Flags};

use crate::support::{root, tell};

mod blocks;
mod clients;
mod expected;
mod servers;
mod session;
mod settings;

use blocks::{Kind, Run};
use session::Session;

/// Every document with blocks that users follow.
fn documents() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = docs.filter(|path| path.extension() == Some("md".as_ref())).collect();
    all.extend(["README.md", "CONTRIBUTING.md"].map(|name| root().join(name)));
    all.sort();
    all
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// What became of the blocks of a document.
#[derive(Default)]
struct Ran {
    run: u32,
    not_run: Vec<String>,
    wrong: Option<String>,
}

async fn run(path: &Path) -> Ran {
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = blocks::of(&text).unwrap_or_else(|why| panic!("{}: {why}", name(path)));
    let (mut ran, mut session) = (Ran::default(), None);
    for block in &blocks {
        let place = format!("{}, line {}", name(path), block.line);
        if let Run::Not(reason) = &block.run {
            syntax(&block.script(), &place);
            ran.not_run.push(format!("{place}: {reason}"));
            continue;
        }
        let session = match &mut session {
            Some(session) => session,
            None => session.insert(Session::start()),
        };
        if let Err(why) = session.run(block).await {
            // What comes after may depend on it.
            ran.wrong = Some(format!("{place}: {why}"));
            break;
        }
        ran.run += u32::from(block.is_shell());
    }
    ran
}

/// How many documents are run at the same time: most of their commands wait.
const CONCURRENTLY: usize = 3;

/// Runs a document on this thread.
fn run_here(path: &Path) -> Ran {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(run(path))
}

/// It starts nine servers and has a test of its own.
const PRODUCTION: &str = "docs/production.md";

#[test]
fn production_leads_from_an_empty_directory_to_three_replicas() {
    let path = root().join(PRODUCTION);
    let text = std::fs::read_to_string(&path).unwrap();
    let blocks = blocks::of(&text).unwrap();
    // Its readers see all that is run: what they don't see takes the place of their machine.
    let (hidden, shown): (Vec<_>, Vec<_>) =
        blocks.iter().partition(|block| block.kind == Kind::Hidden);
    let (&[hidden], Some(first)) = (&*hidden, shown.first()) else { panic!("one is hidden") };
    let prepares = ["ports ", "ln -s \"$REPOSITORY\" ", "export AWS_CONFIG_FILE=/dev/null "];
    let mut lines = hidden.text.lines();
    assert!(lines.all(|line| prepares.iter().any(|it| line.starts_with(it))), "{}", hidden.text);
    assert!(hidden.line < first.line && !hidden.text.contains("KMS_PROXY"), "{}", hidden.text);
    let fences =
        text.lines().filter(|line| line.starts_with("```sh") || line.starts_with("```con"));
    let start = Instant::now();
    let ran = run_here(&path);
    tell(&format!("{PRODUCTION}: {} blocks in {:.1?}", ran.run, start.elapsed()));
    assert_eq!((ran.wrong, ran.not_run), (None, Vec::new()));
    assert_eq!(ran.run as usize, fences.count());
}

#[test]
fn every_shell_block_does_what_it_shows() {
    let mut documents = documents();
    documents.retain(|path| name(path) != PRODUCTION);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..CONCURRENTLY {
            scope.spawn(|| {
                while let Some(path) = documents.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ran = run_here(path);
                    done.lock().unwrap().insert(path, ran);
                }
            });
        }
    });
    let done = done.into_inner().unwrap();
    let (mut run, mut not_run, mut wrong) = (0, Vec::new(), Vec::new());
    for (path, mut ran) in done {
        // On a busy machine a command reaches its own time limit, or says how far it has come. A
        // document that is wrong is wrong again, alone.
        if let Some(why) = ran.wrong.take() {
            tell(&format!("once more, alone: {why}"));
            ran = run_here(path);
        }
        run += ran.run;
        not_run.extend(ran.not_run);
        wrong.extend(ran.wrong);
    }
    tell(&format!("shell blocks: {run} run, {} not run", not_run.len()));
    for reason in &not_run {
        tell(&format!("  not run: {reason}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(run >= 25, "only {run} blocks were found");
}

/// What is not run must at least be a script.
fn syntax(script: &str, place: &str) {
    use std::io::Write;
    let mut bash = Command::new("bash");
    bash.arg("-n").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut bash = bash.spawn().expect("bash is missing: apt-get install bash");
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let said = bash.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && text.is_empty(), "{place}: {text}");
}

#[test]
fn every_toml_block_is_a_configuration() {
    let mut count = 0;
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap();
        for block in blocks::of(&text).unwrap() {
            let (Kind::Toml(_) | Kind::Settings) = block.kind else { continue };
            let file = Some((Path::new("kms-proxy.toml"), &*block.text));
            let read = Config::from_sources(file, [], &Flags::default());
            let place = format!("{}, line {}", name(&path), block.line);
            // The files that it names are elsewhere.
            let elsewhere = |error: &str| error.ends_with("No such file or directory (os error 2)");
            let wrong = read.err().map(|error| error.to_string()).filter(|error| !elsewhere(error));
            assert_eq!(wrong, None, "{place}");
            count += 1;
        }
    }
    tell(&format!("configurations in documents: {count} read"));
    assert!(count >= 5, "only {count} were found");
}

#[test]
fn every_code_has_its_line_for_callers() {
    let text = std::fs::read_to_string(root().join("docs/http.md")).unwrap();
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| ")).collect();
    for kind in kms_proxy::service::error::Kind::ALL {
        let (status, code) = (kind.http_status(), kind.code());
        let row = rows.iter().find(|row| {
            row.starts_with(&format!("| {status} | ")) && row.contains(&format!("`{code}`"))
        });
        assert!(row.is_some(), "docs/http.md has no row of {status} with {code}");
    }
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: there is no {link}", name(&path));
            if !anchor.is_empty() {
                let text = std::fs::read_to_string(&target).unwrap();
                let mut anchors = text.lines().filter(|line| line.starts_with('#')).map(slug);
                assert!(anchors.any(|slug| slug == anchor), "{}: no {link}", name(&path));
            }
        }
    }
}

#[test]
fn the_tables_of_performance_are_those_of_its_results() {
    let script = root().join("benches/plot.py");
    let python = crate::support::tools::test_env("python");
    let output = Command::new(python).arg(script).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The anchor that is made of a heading.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Runs a document of one block in its own session.
async fn outcome(document: &str) -> Result<(), String> {
    let mut session = Session::start();
    for block in blocks::of(document)? {
        session.run(&block).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_block_that_shows_something_else_is_noticed() {
    let id = "0c1f60ca4ed5e14015481538e60aa65c";
    let other = "d68ed64748e80cb80d8ac6547dfb97d9";
    for good in [
        "```console\n$ echo hello\nhello\n```",
        "```console\n$ X=1\n$ echo $X; echo two\n...\ntwo\n```",
        "```console\n$ echo one two three\none ... three\n```",
        "```console fails\n$ true\n$ echo no >&2; (exit 3)\nno\n```",
        "```console\n$ cat <<EOF\n> a\n> EOF\na\n```",
        &format!("```console\n$ echo '{{\"kek_id\":\"{id}\"}}'\n{{\"kek_id\":\"{other}\"}}\n```"),
        "<!-- run\necho hi > file\n-->\n```sh\ntest -s file\n```",
    ] {
        assert_eq!(outcome(good).await, Ok(()), "{good}");
    }
    for bad in [
        "```console\n$ echo hello\nhallo\n```",
        "```console\n$ echo hello\n```",
        "```console\n$ true\nhello\n```",
        "```console\n$ false\n```",
        "```console fails\n$ true\n```",
        "```console fails\n$ false\n$ true\n```",
        "```console\n$ echo one two\none ... three\n```",
        "```console\n$ echo a; echo b; echo c\na\n...\nb\n```",
        &format!("```console\n$ echo {id}\n{}\n```", &id[1..]),
        "```sh\nfalse\n```",
        "```sh\nfalse | true\n```",
        "<!-- run\nfalse\n-->",
        "```console\nhello\n```",
        "```\n$ true\n```",
        "```console not run:\n$ true\n```",
        "```console maybe\n$ true\n```",
        "```console\n$ true\n",
        "```console not run: slow\n$ true\n\n## Next\n\n```console\n$ true\n```",
    ] {
        assert!(outcome(bad).await.is_err(), "{bad}");
    }
}
