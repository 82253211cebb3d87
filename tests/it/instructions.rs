//! Hot paths take no more instructions than `benches/instructions/counts.toml` says, plus 5 %.
//!
//! `valgrind --tool=callgrind` counts them in `benches/instructions/paths.rs`: unlike times, counts
//! repeat on a noisy machine. They depend on the compiler, so with another one than that of the
//! file a path may have 25 % more. `make instructions` writes the file.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use toml::{Table, Value};

use crate::support::tools::printed;
use crate::support::{BINARY, root, tell};

/// Calls that are counted: the buffer of randomness is filled a few times.
const CALLS: u64 = 1_000;
/// The same of a path that takes longer.
const CALLS_OF_A_CHUNK: u64 = 100;
/// How much more than in the file a path may take.
const GROWTH: f64 = 1.05;
const GROWTH_WITH_ANOTHER_COMPILER: f64 = 1.25;

#[test]
fn hot_paths_take_no_more_instructions_than_the_file_says() {
    if cfg!(not(target_arch = "x86_64")) {
        tell("instructions: not counted, since the figures are for x86_64");
        return;
    }
    let counts = counts();
    let path = root().join("benches/instructions/counts.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    if writes() {
        std::fs::write(&path, with(&text, &compiler(), &counts)).unwrap();
        return;
    }
    let file: Table = text.parse().unwrap();
    let is_same = file["compiler"].as_str() == Some(&compiler());
    let growth = if is_same { GROWTH } else { GROWTH_WITH_ANOTHER_COMPILER };
    if !is_same {
        let other = &file["compiler"];
        tell(&format!("instructions: counts.toml is of {other}: run `make instructions`"));
    }
    let complaints = complaints(file["counts"].as_table().unwrap(), &counts, growth);
    assert!(
        complaints.is_empty(),
        "\n{complaints}The counts are for a build of `make test`. If the change is worth it, run \
         `make instructions`."
    );
}

/// The check can fail: on a path that grew, on a new one, and on one that disappeared.
#[test]
fn a_path_that_takes_more_instructions_is_found() {
    let file: Table = "seal = 1000\nopen = 1000\ngone = 7".parse().unwrap();
    let found = |counts: &[(&str, u64)]| {
        let counts: Vec<_> = counts.iter().map(|(path, count)| ((*path).into(), *count)).collect();
        complaints(&file, &counts, GROWTH)
    };
    assert_eq!(found(&[("seal", 1050), ("open", 900), ("gone", 7)]), "");
    let wrong = found(&[("seal", 1051), ("open", 1000), ("new", 1)]);
    assert!(wrong.contains("seal takes 1051") && wrong.contains("new is not"), "{wrong}");
    assert!(wrong.contains("gone was not counted") && !wrong.contains("open"), "{wrong}");

    let file = with("# of it\n\ncompiler = \"x\"\n", "y", &[("seal".into(), 1)]);
    assert_eq!(file, "# of it\n\ncompiler = \"y\"\n\n[counts]\nseal = 1\n");
}

/// What is wrong with the counts, a line each.
fn complaints(file: &Table, counts: &[(String, u64)], growth: f64) -> String {
    let mut complaints = String::new();
    for (path, count) in counts {
        match file.get(path).and_then(Value::as_integer) {
            Some(before) if *count as f64 > before as f64 * growth => {
                let _ = writeln!(complaints, "{path} takes {count} instructions, not {before}");
            }
            Some(before) if (*count as f64) < before as f64 / growth => {
                tell(&format!("instructions: {path} takes {count}, and counts.toml says {before}"));
            }
            Some(_) => (),
            None => _ = writeln!(complaints, "{path} is not in counts.toml"),
        }
    }
    for path in file.keys().filter(|path| counts.iter().all(|(counted, _)| counted != *path)) {
        let _ = writeln!(complaints, "{path} was not counted");
    }
    complaints
}

/// The file with other figures, and the same comment.
fn with(text: &str, compiler: &str, counts: &[(String, u64)]) -> String {
    let comment = text.lines().take_while(|line| line.starts_with('#') || line.is_empty());
    let mut text: String = comment.map(|line| format!("{line}\n")).collect();
    let _ = writeln!(text, "compiler = \"{compiler}\"\n\n[counts]");
    for (path, count) in counts {
        let _ = writeln!(text, "{path} = {count}");
    }
    text
}

/// Instructions of each path per call.
fn counts() -> Vec<(String, u64)> {
    let program = Path::new(BINARY).parent().unwrap().join("examples/instructions");
    assert!(program.exists(), "run `cargo build --release --example instructions`");
    let paths = printed(Command::new(&program).output().unwrap());
    let counts = paths.lines().map(|path| {
        let calls = if path.ends_with("-chunk") { CALLS_OF_A_CHUNK } else { CALLS };
        (path.to_owned(), count(&program, path, calls) / calls)
    });
    counts.collect()
}

fn count(program: &Path, path: &str, calls: u64) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    // The name is found within the mangled one, or its demangled form.
    valgrind.args(["--toggle-collect=*counted*"]).arg(program);
    // Of an instruction that fills memory (`rep stosb`), valgrind counts each byte. Without it
    // glibc fills 32 bytes with each instruction.
    valgrind.env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS");
    let output = valgrind.args([path, &calls.to_string()]).output();
    let output = output.expect("valgrind is missing: run `make test-env`");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{path}: {said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, collected) = collected.unwrap_or_else(|| panic!("{path}: {said}"));
    collected.trim().parse().unwrap()
}

fn compiler() -> String {
    printed(Command::new("rustc").arg("-V").output().unwrap()).trim().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "a setting of the test, not of the service")]
fn writes() -> bool {
    std::env::var_os("KMS_PROXY_WRITE_INSTRUCTIONS").is_some()
}
