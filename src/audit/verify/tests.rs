//! Each way to change a log is found, at the line that was changed.

use std::io::{Cursor, Write as _};
use std::time::{Duration, SystemTime};

use super::*;
use crate::audit::keys::SigningKey;
use crate::audit::line::{Before, prefix};
use crate::audit::sealer::{MAX_UNSEALED, Sealer};

fn now(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + second)
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

/// A process and the file that it writes.
struct Process {
    sealer: Sealer,
    file: std::fs::File,
    second: u64,
}

impl Process {
    fn start(file: &std::fs::File, origin: &str, seed: u8, second: u64) -> Self {
        let mut process = Self {
            sealer: Sealer::new(key(seed), origin),
            file: file.try_clone().unwrap(),
            second,
        };
        process.open();
        process
    }

    fn open(&mut self) {
        let (before, cut) = Before::of_file(&self.file).unwrap();
        self.file.write_all(if cut { b"\n" } else { b"" }).unwrap();
        let line = self.sealer.opening(before, now(self.second));
        self.write(&line);
    }

    fn write(&mut self, line: &[u8]) {
        self.file.write_all(&[line, b"\n"].concat()).unwrap();
    }

    fn events(&mut self, count: u64) {
        for _ in 0..count {
            let seq = self.sealer.size();
            let (prefix, second) = (prefix(seq), self.second);
            let line = format!("{prefix}\"time\":\"{second}\",\"aad\":\"text:row {seq}\"}}");
            self.sealer.append(line.as_bytes());
            self.write(line.as_bytes());
        }
    }

    fn checkpoint(&mut self) {
        self.second += 1;
        let line = self.sealer.checkpoint(now(self.second));
        self.write(&line);
    }

    fn rotate(&mut self, file: &std::fs::File) {
        self.checkpoint();
        self.file = file.try_clone().unwrap();
        self.open();
    }
}

fn text(file: &std::fs::File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut text = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut text, 0).unwrap();
    text
}

fn check(files: &[&[u8]], keys: &[PublicKey], from: &[Signed]) -> Report {
    let source = |(at, file): (usize, &&[u8])| {
        Source::new(format!("f{at}"), Box::new(Cursor::new(file.to_vec()))).unwrap()
    };
    verify(files.iter().enumerate().map(source).collect(), keys, from, |_| {}).unwrap()
}

fn wrong(report: &Report) -> Vec<(&str, u64, Wrong)> {
    report.problems.iter().map(|it| (&*it.file, it.line, it.wrong)).collect()
}

/// Two processes: the first is killed, the second ends cleanly.
fn small_log() -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    let mut first = Process::start(&file, "a", 1, 0);
    first.events(3);
    first.checkpoint();
    first.events(2);
    first.file.write_all(b"{\"v\":1,\"seq\":7,\"ti").unwrap();
    let mut second = Process::start(&file, "b", 1, 10);
    second.events(2);
    second.checkpoint();
    second.events(3);
    second.checkpoint();
    text(&file)
}

fn is_whole(report: &Report) -> bool {
    report.is_consistent()
        && report.logs.iter().map(|log| log.unproved).collect::<Vec<_>>() == [0, 0]
        && report.remarks.len() == 1
}

#[test]
fn a_log_of_two_processes_is_accepted_and_its_unclean_end_reported() {
    let report = check(&[&small_log()], &[key(1).public()], &[]);
    assert!(is_whole(&report), "{report:#?}");
    assert!(report.remarks[0].2.contains("interrupted"));
    assert_eq!(report.logs.iter().map(|log| log.size).collect::<Vec<_>>(), [7, 8]);
}

#[test]
fn every_changed_byte_is_found_at_its_line() {
    let log = small_log();
    for at in 0..log.len() {
        let line = log[..at].iter().filter(|&&byte| byte == b'\n').count() as u64 + 1;
        for bit in [1, 2, 0x20, 0x80] {
            let mut bad = log.clone();
            bad[at] ^= bit;
            let report = check(&[&bad], &[key(1).public()], &[]);
            assert!(!is_whole(&report), "byte {at} of line {line}: {report:#?}");
            // Nothing is after the last line that could prove it.
            let last = line == 16;
            let found = wrong(&report);
            assert!(last || found.len() == 1, "byte {at} of line {line}: {report:#?}");
            // An opening proves the bytes of the log before it as a whole, and a newline joins two
            // lines.
            let range = if (5..=9).contains(&line) { 5..=9 } else { line..=line + 1 };
            assert!(last || range.contains(&found[0].1), "byte {at} of line {line}: {report:#?}");
        }
    }
}

#[test]
fn every_removed_repeated_or_moved_line_is_found() {
    let log = small_log();
    let lines: Vec<&[u8]> = log.split_inclusive(|&byte| byte == b'\n').collect();
    assert_eq!(lines.len(), 16);
    for at in 0..lines.len() {
        let mut removed = lines.clone();
        removed.remove(at);
        let report = check(&[&removed.concat()], &[key(1).public()], &[]);
        assert!(!is_whole(&report), "line {at} removed: {report:#?}");
        assert_eq!(report.is_consistent(), at == 15, "line {at} removed");
        for to in 0..lines.len() {
            let mut repeated = lines.clone();
            repeated.insert(to, lines[at]);
            let report = check(&[&repeated.concat()], &[key(1).public()], &[]);
            assert!(!report.is_consistent(), "line {at} repeated at {to}");
            if to != at {
                let mut swapped = lines.clone();
                swapped.swap(at, to);
                let report = check(&[&swapped.concat()], &[key(1).public()], &[]);
                assert!(!report.is_consistent(), "lines {at} and {to} swapped");
            }
        }
    }
    let named = |edit: &dyn Fn(&mut Vec<&[u8]>)| {
        let mut lines = lines.clone();
        edit(&mut lines);
        let report = check(&[&lines.concat()], &[], &[]);
        (report.problems[0].line, report.problems[0].wrong)
    };
    assert_eq!(named(&|lines| _ = lines.remove(2)), (3, Wrong::Missing));
    assert_eq!(named(&|lines| lines.swap(2, 3)), (3, Wrong::Moved));
    assert_eq!(named(&|lines| lines.insert(3, lines[2])), (4, Wrong::Repeated));
}

#[test]
fn a_cut_end_is_found_by_a_checkpoint_that_was_kept() {
    let file = tempfile::tempfile().unwrap();
    let mut process = Process::start(&file, "a", 1, 0);
    process.events(3);
    process.checkpoint();
    let early = process.sealer.last().unwrap().clone();
    process.events(3);
    process.checkpoint();
    let late = process.sealer.last().unwrap().clone();
    process.events(2);
    let log = text(&file);
    let report = check(&[&log], &[], &[early.clone(), late.clone()]);
    assert!(report.is_consistent(), "{report:#?}");
    assert_eq!(report.logs[0].unproved, 2);
    let ends = log.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    for (line, end) in (1_u64..).zip(ends) {
        let cut = &log[..end];
        let report = check(&[cut], &[], &[]);
        let sealed = [1, 5, 9].into_iter().filter(|&it| it <= line).max().unwrap();
        assert_eq!(report.logs[0].unproved, line - sealed);
        assert!(report.is_consistent());
        let kept = check(&[cut], &[], std::slice::from_ref(&early));
        assert_eq!(kept.is_consistent(), line >= 4, "cut after line {line}: {kept:#?}");
        let kept = check(&[cut], &[], std::slice::from_ref(&late));
        assert_eq!(kept.is_consistent(), line >= 8, "cut after line {line}");
    }
    let mut other = Process::start(&tempfile::tempfile().unwrap(), "a", 1, 5);
    other.events(1);
    other.checkpoint();
    let kept = other.sealer.last().unwrap().clone();
    assert_eq!(wrong(&check(&[&log], &[], &[kept])), [("f0", 2, Wrong::Changed)]);
}

#[test]
fn a_log_without_the_checkpoints_that_its_writer_makes_is_not_accepted() {
    let file = tempfile::tempfile().unwrap();
    let mut process = Process::start(&file, "kms-proxy/a/1", 1, 0);
    process.events(MAX_UNSEALED);
    let report = check(&[&text(&file)], &[], &[]);
    assert!(report.is_consistent(), "{report:#?}");
    assert_eq!(report.logs[0].unproved, MAX_UNSEALED);
    process.events(1);
    let line = MAX_UNSEALED + 2;
    assert_eq!(wrong(&check(&[&text(&file)], &[], &[])), [("f0", line, Wrong::Missing)]);
}

/// A process that rotates its file, is followed by another in the second file, which rotates too.
#[test]
fn a_missing_file_with_a_restart_in_it_is_noticed() {
    let files: Vec<_> = (0..4).map(|_| tempfile::tempfile().unwrap()).collect();
    let mut first = Process::start(&files[0], "kms-proxy/a/1", 1, 0);
    first.events(3);
    first.rotate(&files[1]);
    first.events(3);
    first.checkpoint();
    let mut second = Process::start(&files[1], "kms-proxy/a/2", 1, 10);
    second.events(3);
    second.rotate(&files[2]);
    second.events(3);
    second.rotate(&files[3]);
    second.events(3);
    second.checkpoint();
    let [a, b, c, d] = [0, 1, 2, 3].map(|at| text(&files[at]));
    let accepted = |files: &[&[u8]]| wrong(&check(files, &[key(1).public()], &[])).is_empty();
    for whole in [&[&a[..], &b, &c, &d][..], &[&b, &c, &d], &[&c, &d], &[&d], &[&a, &b, &c]] {
        assert!(accepted(whole));
    }
    for gap in [&[&a[..], &c, &d][..], &[&a, &d], &[&b, &d], &[&a, &b, &d]] {
        let report = check(gap, &[key(1).public()], &[]);
        assert_eq!(report.problems.len(), 1, "{report:#?}");
        assert_eq!((report.problems[0].line, report.problems[0].wrong), (1, Wrong::Missing));
    }
    // A replica's oldest file may begin in the middle too.
    let mut replica = Process::start(&tempfile::tempfile().unwrap(), "kms-proxy/b/1", 1, 5);
    replica.events(3);
    let later = tempfile::tempfile().unwrap();
    replica.rotate(&later);
    assert!(accepted(&[&a, &b, &c, &d, &text(&later)]));
}

#[test]
fn files_of_one_process_are_verified_together_and_alone_in_any_order() {
    let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
    let mut process = Process::start(&files[0], "a", 1, 0);
    for next in &files[1..] {
        process.events(5);
        process.rotate(next);
    }
    process.events(5);
    process.checkpoint();
    let mut other = Process::start(&tempfile::tempfile().unwrap(), "replica", 1, 1);
    other.events(4);
    other.checkpoint();
    let [a, b, c] = [text(&files[0]), text(&files[1]), text(&files[2])];
    let replica = text(&other.file);
    let report = check(&[&c, &replica, &a, &b], &[key(1).public()], &[]);
    assert!(report.is_consistent() && report.remarks.is_empty(), "{report:#?}");
    assert_eq!(report.logs.iter().map(|log| log.size).collect::<Vec<_>>(), [21, 6]);
    let alone = check(&[&b], &[], &[]);
    assert!(alone.is_consistent() && alone.remarks.len() == 1);
    assert_eq!(wrong(&check(&[&a, &c], &[], &[])), [("f1", 1, Wrong::Missing)]);
    assert_eq!(wrong(&check(&[&a, &b, &b], &[], &[])), [("f2", 1, Wrong::Repeated)]);
    let mut short = a.clone();
    short.truncate(short.len() - 2);
    let end = short.iter().rposition(|&byte| byte == b'\n').unwrap();
    short.truncate(end + 1);
    assert_eq!(wrong(&check(&[&short, &b], &[], &[])), [("f1", 1, Wrong::Missing)]);
    // A file of another process that was put into this one.
    for spliced in [[&a[..], &replica].concat(), [&replica[..], &b].concat()] {
        let report = check(&[&spliced], &[key(1).public()], &[]);
        assert!(!report.is_consistent(), "{report:#?}");
    }
}

#[test]
fn a_forgery_without_the_key_is_found() {
    let forge = || {
        let file = tempfile::tempfile().unwrap();
        let mut process = Process::start(&file, "a", 2, 0);
        process.events(3);
        process.checkpoint();
        text(&file)
    };
    let forged = forge();
    // It is consistent with the key that it contains.
    assert!(check(&[&forged], &[], &[]).is_consistent());
    let report = check(&[&forged], &[key(1).public()], &[]);
    assert_eq!(wrong(&report), [("f0", 1, Wrong::Foreign)]);
    // The key of the opening is exchanged too, but the signature is not its own.
    let text = String::from_utf8(forged).unwrap();
    let claimed = text.replace(&key(2).public().to_string(), &key(1).public().to_string());
    let report = check(&[claimed.as_bytes()], &[key(1).public()], &[]);
    assert_eq!(wrong(&report), [("f0", 1, Wrong::Changed)]);
}

#[test]
fn a_changed_line_whose_hash_is_recomputed_is_found() {
    let file = tempfile::tempfile().unwrap();
    let mut process = Process::start(&file, "a", 1, 0);
    process.events(3);
    process.checkpoint();
    let honest = text(&file);
    let lines: Vec<&[u8]> = honest.split_inclusive(|&byte| byte == b'\n').collect();
    // The forger changes line 3 and the list of hashes in the checkpoint.
    let changed = String::from_utf8(lines[2].to_vec()).unwrap().replace("row 2", "row 9");
    let mut list = Sealer::new(key(2), "a");
    list.append(lines[0].trim_ascii_end());
    list.append(lines[1].trim_ascii_end());
    list.append(changed.trim_end().as_bytes());
    list.append(lines[3].trim_ascii_end());
    let forged = String::from_utf8(list.checkpoint(now(1))).unwrap();
    let leaves = |line: &str| line.split("\"leaves\":").nth(1).unwrap().to_owned();
    let last = String::from_utf8(lines[4].to_vec()).unwrap();
    let last = last.replace(leaves(&last).trim_end(), &leaves(&forged));
    let log = [lines[0], lines[1], changed.as_bytes(), lines[3], last.as_bytes()].concat();
    assert_eq!(wrong(&check(&[&log], &[], &[])), [("f0", 5, Wrong::Changed)]);
}

#[test]
fn other_files_are_no_audit_logs() {
    assert_eq!(check(&[b""], &[], &[]).remarks.len(), 1);
    for other in [&b"hello\n"[..], b"{\"v\":1,\"seq\":0,\"time\":\"\"}\n", b"\n\n"] {
        assert!(!check(&[other], &[], &[]).is_consistent());
    }
}
