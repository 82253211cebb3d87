//! A log of many lines: the time and the memory of `audit verify` and `audit find`.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use kms_proxy::audit::keys::{HmacKey, SigningKey};
use kms_proxy::audit::line::{Before, prefix};
use kms_proxy::audit::sealer::{MAX_UNSEALED, Sealer, rfc3339_millis};

use crate::archive::many::measure;
use crate::support::random::variable;
use crate::support::{Setup, tell};

/// The lines of `make test`; `make soak` has 10,000,000.
const LINES: u64 = 200_000;

/// The memory of a command for any number of lines, in kB.
const MOST_KB: u64 = 60_000;

/// Writes a log of `lines` calls, each with another AAD; the last checkpoint is returned.
fn fill(path: &Path, lines: u64, hmac: &HmacKey) -> String {
    let mut file = BufWriter::new(std::fs::File::create(path).unwrap());
    let mut sealer = Sealer::new(SigningKey::from_seed(&[1; 32]).unwrap(), "kms-proxy/node/0");
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let time = rfc3339_millis(now);
    let mut write = |line: &[u8]| file.write_all(&[line, b"\n"].concat()).unwrap();
    write(&sealer.opening(Before::Nothing, now));
    for call in 0..lines {
        let line = format!(
            "{}\"time\":\"{time}\",\"node\":\"node\",\"request_id\":\"{call:016x}\",\"api\":\"http\",\
             \"client\":\"billing\",\"auth\":\"token\",\"peer\":\"10.0.0.7:40000\",\
             \"operation\":\"decrypt\",\"chain\":\"orders\",\
             \"kek_id\":\"0a3f5b7c9d1e2f40516273849506a7b8\",\"aad\":\"{}\",\
             \"plaintext_bytes\":256,\"outcome\":\"ok\"}}",
            prefix(sealer.size()),
            hmac.field(format!("row {call}").as_bytes())
        );
        sealer.append(line.as_bytes());
        write(line.as_bytes());
        if sealer.unsealed() >= MAX_UNSEALED {
            write(&sealer.checkpoint(now));
        }
    }
    write(&sealer.checkpoint(now));
    file.flush().unwrap();
    sealer.last().unwrap().to_string()
}

#[test]
fn many_lines_are_verified_and_searched_in_bounded_memory() {
    let lines = variable("KMS_PROXY_AUDIT_LINES").unwrap_or(LINES);
    let setup = Setup::new();
    let key = [7; 32];
    let kept = fill(&setup.file("many.jsonl"), lines, &HmacKey::from_slice(&key).unwrap());
    std::fs::write(setup.file("kept"), kept).unwrap();
    std::fs::write(setup.file("aad.key"), "07".repeat(32)).unwrap();
    let bytes = std::fs::metadata(setup.file("many.jsonl")).unwrap().len();
    let row = format!("row {}", lines / 2);
    let verify = ["audit", "verify", "many.jsonl", "--from", "kept"];
    let find = ["audit", "find", "--aad", &row, "--aad-key-file", "aad.key", "many.jsonl"];
    let all = ["audit", "find", "--chain", "orders", "many.jsonl"];
    for args in [&verify[..], &find[..], &all[..]] {
        let began = Instant::now();
        let mut command = setup.tool(args);
        let stdout = if args == all { Stdio::null() } else { Stdio::piped() };
        let child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let (said, memory) = measure(child);
        tell(&format!(
            "`{}` of {lines} lines, {} MB: {:?} with {memory} kB of memory",
            args[..args.len() - 1].join(" "),
            bytes / 1_000_000,
            began.elapsed()
        ));
        if args == verify {
            assert!(said.contains("0 lines not proved yet"), "{said}");
            assert!(said.contains("1 log: consistent with the key in the log"), "{said}");
        } else if args == find {
            assert_eq!(said.lines().count(), 2, "a title and one line: {said}");
        }
        assert!(memory < MOST_KB, "{memory} kB");
    }
}
