//! Each target with its seeds, and with changed seeds: a short run of the fuzzers without a fuzzer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::*;

/// The number of changed seeds of each target. `KMS_PROXY_FUZZ_RUNS` gives another one.
const RUNS: u32 = 20_000;
/// Targets that compute signatures or keys in each run, and their number of runs.
const SLOW: [(&str, u32); 4] =
    [("audit_log", 1_000), ("chunks", 500), ("config", 2_000), ("stream", 2_000)];

/// Xorshift64*: the same inputs everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % end.max(1)
    }

    /// One to four edits of a seed.
    fn changed(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        const WORDS: [&[u8]; 8] =
            [b"\"", b"null", b"{}", b"\\u0000", b"\xff", b"\n", b"-1", b",\"a\":"];
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let end = (at + self.below(9)).min(bytes.len());
            match self.below(7) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 => bytes.insert(at, self.next().to_le_bytes()[7]),
                3 => drop(bytes.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied())),
                4 => {
                    let part = bytes[at..end].to_vec();
                    drop(bytes.splice(at..at, part));
                }
                5 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    bytes.splice(at.., other[from..].iter().copied());
                }
                _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ => {}
            }
        }
        bytes
    }
}

fn seeds_of(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[expect(clippy::disallowed_methods, reason = "only tests read it")]
fn runs_of(target: &str) -> u32 {
    let slow = SLOW.into_iter().find(|(slow, _)| *slow == target);
    let given = std::env::var("KMS_PROXY_FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok());
    given.unwrap_or(slow.map_or(RUNS, |(_, runs)| runs))
}

#[test]
fn every_target_survives_its_seeds_and_mutations() {
    for (name, target) in TARGETS {
        let seeds = seeds_of(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let changed = (0..runs_of(name)).map(|_| random.changed(&seeds)).collect::<Vec<_>>();
        for input in seeds.iter().chain(&changed) {
            let result = catch_unwind(AssertUnwindSafe(|| target(input)));
            assert!(result.is_ok(), "{name} fails with \"{}\"", input.escape_ascii());
        }
    }
}

/// A target that accepts everything would find nothing.
#[test]
fn an_edit_is_what_it_says() {
    let edit = |edit: &[u8]| edited(b"abcd", edit);
    assert_eq!(edit(b""), b"abcd");
    assert_eq!(edit(b"\0\x01\0xy"), b"axyd");
    assert_eq!(edit(b"\0\x01\x01xy"), b"axybcd");
    assert_eq!(edit(b"\0\x01\x02xy"), b"ad");
    assert_eq!(edit(b"\0\x01\x03"), b"a");
    assert_eq!(edit(b"\0\x01\x04\x01\x01"), b"acbd");
}

#[test]
fn members_are_read_in_their_order_and_twice() {
    let read = members(br#"{"b":1,"a":null,"b":2}"#).unwrap();
    let names: Vec<_> = read.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b", "a", "b"]);
    assert_eq!((only(&read, "a"), only(&read, "b")), (Some(&Value::Null), None));
    assert_eq!((members(b"[1]"), members(b"{")), (None, None));
}

/// The manifest of `fuzz/` and the table name the same targets.
#[test]
fn every_target_has_a_program() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        let program = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs")));
        assert!(program.unwrap().contains(&format!("fuzzing::{name}(")), "{name}");
    }
}
