//! The verifier in Python, which was written from docs/audit.md alone, and `audit verify` agree on
//! intact logs and on the first line of each log that was changed.

use std::path::Path;
use std::process::Command;

use kms_proxy::audit::keys::SigningKey;
use kms_proxy::audit::line::{Before, prefix};
use kms_proxy::audit::sealer::{MAX_UNSEALED, Sealer};
use serde_json::{Value, json};

use super::{full, lines, verified};
use crate::support::random::Random;
use crate::support::tools::test_env;
use crate::support::{Setup, root, until};

/// What both verifiers say about files: nothing if they are consistent, or the first line that is
/// not as it was written. They must agree.
fn verdict(setup: &Setup, args: &[&str]) -> Result<(), String> {
    let ours = setup.run(&[&["audit", "verify"], args].concat());
    let mut python = Command::new(test_env("python"));
    python.arg(root().join("tests/audit_verifier/verify.py")).args(args);
    let theirs = python.current_dir(setup.file("")).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (ours_said, theirs_said) = (text(&ours.stdout), text(&theirs.stdout));
    let all = format!("{ours_said}\n{theirs_said}\n{}", text(&theirs.stderr));
    assert_eq!((ours.status.code(), theirs.status.code()), {
        let code = if ours.status.success() { 0 } else { 1 };
        (Some(code), Some(code))
    });
    if ours.status.success() {
        let lines = ours_said.lines().last().unwrap().split(' ').next().unwrap();
        assert!(theirs_said.starts_with(&format!("{lines} lines are consistent")), "{all}");
        return Ok(());
    }
    let place = |line: &str| line.splitn(3, ':').take(2).collect::<Vec<_>>().join(":");
    let wrong = ours_said.lines().find_map(|line| line.strip_prefix("WRONG: ")).expect(&all);
    match theirs_said.lines().next() {
        Some(line) => assert_eq!(place(wrong), place(line), "{all}"),
        // A line that is in no file has no place.
        None => assert!(text(&theirs.stderr).contains("a kept checkpoint proves"), "{all}"),
    }
    Err(place(wrong))
}

/// Writes lines to a file, and compares what is said about it.
fn of_lines(setup: &Setup, lines: &[impl AsRef<[u8]>], args: &[&str]) -> Result<(), String> {
    let text: Vec<_> = lines.iter().flat_map(|line| [line.as_ref(), b"\n"]).collect();
    std::fs::write(setup.file("changed"), text.concat()).unwrap();
    verdict(setup, &[args, &["changed"]].concat())
}

/// A log of two processes that ended cleanly.
async fn made() -> (Setup, Vec<Vec<u8>>) {
    let setup = full();
    for calls in [30, 10] {
        let service = setup.start().await;
        for call in 0..calls {
            let body = json!({"plaintext": "aGVsbG8=", "aad": format!("{call:04}")});
            service.ok("/v1/encrypt", body).await;
        }
        service.stop().await;
    }
    let text = std::fs::read(setup.file("audit.jsonl")).unwrap();
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let lines: Vec<_> = lines.map(<[u8]>::to_vec).collect();
    (setup, lines)
}

/// The numbers of the lines, from 0, that `is` selects.
fn which(lines: &[Vec<u8>], is: impl Fn(&Value) -> bool) -> Vec<usize> {
    let values = lines.iter().map(|line| serde_json::from_slice(line).unwrap());
    values.enumerate().filter(|(_, value)| is(value)).map(|(at, _)| at).collect()
}

fn in_file(at: usize) -> Result<(), String> {
    Err(format!("changed:{}", at + 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn both_verifiers_name_the_first_line_that_was_changed() {
    let (setup, log) = made().await;
    assert_eq!(of_lines(&setup, &log, &[]), Ok(()));
    let mut random = Random(7);
    for _ in 0..24 {
        let at = random.below(log.len() as u64) as usize;
        let mut changed = log.clone();
        let byte = random.below(changed[at].len() as u64) as usize;
        changed[at][byte] ^= 1 << random.below(5);
        let said = of_lines(&setup, &changed, &[]);
        let is_end = at + 1 == log.len();
        // A newline in a line makes two lines of it.
        assert!(said == in_file(at) || said == in_file(at + 1) || is_end, "{at} {byte}: {said:?}");
    }
    let events = which(&log, |line| line["operation"] == "encrypt");
    let (some, other) = (events[3], events[17]);
    let mut removed = log.clone();
    removed.remove(some);
    assert_eq!(of_lines(&setup, &removed, &[]), in_file(some));
    let mut twice = log.clone();
    twice.insert(some + 1, log[some].clone());
    assert_eq!(of_lines(&setup, &twice, &[]), in_file(some + 1));
    let mut swapped = log.clone();
    swapped.swap(some, other);
    assert_eq!(of_lines(&setup, &swapped, &[]), in_file(some));
    // A log without its opening, and one without the whole first process.
    assert_eq!(of_lines(&setup, &log[1..], &[]), in_file(0));
    let second = *which(&log, |line| line.get("opening").is_some()).last().unwrap();
    assert_eq!(of_lines(&setup, &log[second..], &[]), in_file(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_end_is_found_by_a_checkpoint_that_was_kept_elsewhere() {
    let (setup, log) = made().await;
    let checkpoints = which(&log, |line| line.get("checkpoint").is_some());
    let (last, some) = (*checkpoints.last().unwrap(), which(&log, |it| it["operation"] == "stop"));
    let cut = &log[..=some[0]];
    assert_eq!(of_lines(&setup, cut, &[]), Ok(()), "nothing shows that more lines were there");
    let line: Value = serde_json::from_slice(&log[last]).unwrap();
    std::fs::write(setup.file("kept"), line["checkpoint"].as_str().unwrap()).unwrap();
    assert_eq!(of_lines(&setup, &log, &["--from", "kept"]), Ok(()));
    assert!(of_lines(&setup, cut, &["--from", "kept"]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_another_process_and_of_another_key_are_found() {
    let (setup, log) = made().await;
    let (_, other) = made().await;
    let opening: Value = serde_json::from_slice(&log[0]).unwrap();
    let key = opening["opening"]["key"].as_str().unwrap();
    assert_eq!(of_lines(&setup, &log, &["--key", key]), Ok(()));
    assert!(of_lines(&setup, &other, &["--key", key]).is_err(), "it has another key");
    let events = which(&log, |line| line["operation"] == "encrypt");
    let spliced = [&log[..events[5]], &other[events[5]..]].concat();
    assert!(of_lines(&setup, &spliced, &["--key", key]).is_err());
    let appended = [&log[..], &other[..]].concat();
    assert_eq!(of_lines(&setup, &appended, &[]), in_file(log.len()));

    // Someone who has no key changes an event and recomputes all hashes.
    let mut sealer = Sealer::new(SigningKey::from_seed(&[1; 32]).unwrap(), "kms-proxy/node/0");
    let now = std::time::SystemTime::UNIX_EPOCH;
    let mut forged = vec![sealer.opening(Before::Nothing, now)];
    for &at in &events {
        let text = String::from_utf8(log[at].clone()).unwrap();
        let rest = text.splitn(3, ',').nth(2).unwrap().replace("encrypt", "decrypt");
        let line = format!("{}{rest}", prefix(sealer.size()));
        sealer.append(line.as_bytes());
        forged.push(line.into_bytes());
    }
    forged.push(sealer.checkpoint(now));
    assert_eq!(of_lines(&setup, &forged, &[]), Ok(()), "it is consistent with the key in it");
    assert_eq!(of_lines(&setup, &forged, &["--key", key]), in_file(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_verifiers_follow_a_log_through_rotated_files_and_kills() {
    let setup = full().set("AUDIT__ROTATE_SIZE", "64KiB");
    let rotated = || {
        let directory = Path::new(&setup.file("audit.jsonl")).parent().unwrap().read_dir().unwrap();
        let names = directory.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("audit.jsonl.")).collect();
        names.sort();
        names
    };
    for files in [3, 5] {
        let service = setup.start().await;
        until("rotations", async || {
            let items = vec![json!({"plaintext": "aGVsbG8="}); 200];
            service.ok("/v1/batch/encrypt", json!({"items": items})).await;
            (rotated().len() >= files).then_some(())
        })
        .await;
        // The next process continues this file. It is empty right after a rotation.
        until("a file with some lines", async || {
            service.encrypt("default", "aGVsbG8=").await;
            let text = std::fs::read_to_string(setup.file("audit.jsonl")).unwrap_or_default();
            (2..100).contains(&text.lines().count()).then_some(())
        })
        .await;
        service.kill();
    }
    setup.start().await.stop().await;
    let names = [rotated(), vec!["audit.jsonl".to_owned()]].concat();
    let mut names: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(verdict(&setup, &names), Ok(()));
    verified(&setup, &names);
    let text = std::fs::read_to_string(setup.file(names[1])).unwrap();
    assert!(lines(&text).len() > 100);
    // The process that wrote this file wrote the next one too.
    let all = names.clone();
    names.remove(1);
    let missing = verdict(&setup, &names);
    assert_eq!(missing, Err(format!("{}:1", names[1])));
    // In this file the second process begins, whose next file stays.
    let has_start = |name: &&&str| {
        let text = std::fs::read_to_string(setup.file(name)).unwrap();
        lines(&text).iter().skip(1).any(|line| line.get("opening").is_some())
    };
    let at = all.iter().position(|name| has_start(&name)).unwrap();
    assert!((1..all.len() - 1).contains(&at), "{at} of {all:?}");
    let mut names = all;
    names.remove(at);
    assert_eq!(verdict(&setup, &names), Err(format!("{}:1", names[at])));
}

#[test]
fn lines_whose_checkpoints_were_removed_are_found() {
    let setup = Setup::new();
    let now = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    let mut sealer = Sealer::new(SigningKey::from_seed(&[1; 32]).unwrap(), "kms-proxy/node/0");
    let mut log = vec![sealer.opening(Before::Nothing, now)];
    for _ in 0..MAX_UNSEALED {
        let line = format!("{}\"time\":\"2026\"}}", prefix(sealer.size())).into_bytes();
        sealer.append(&line);
        log.push(line);
    }
    assert_eq!(of_lines(&setup, &log, &[]), Ok(()));
    log.push(format!("{}\"time\":\"2026\"}}", prefix(sealer.size())).into_bytes());
    assert_eq!(of_lines(&setup, &log, &[]), in_file(log.len() - 1));
}
