//! Large data: constant memory in both directions, and progress on a terminal.
//!
//! `KMS_PROXY_STREAM_MIB` sets the size in MiB.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin};

use super::*;
use crate::support::random::variable;
use crate::support::tell;
use crate::support::tools::test_env;

/// The most memory that a command may take: buffers of 4 MiB for each core beside the program.
fn most_memory() -> u64 {
    let cores = std::thread::available_parallelism().unwrap().get() as u64;
    (48 << 20) + cores * (6 << 20)
}

/// The largest resident memory of a process so far.
fn peak(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// The part of the data with this number: 1 MiB.
fn part(first: &[u8], index: u64) -> Vec<u8> {
    let mut part = first.to_vec();
    part[..8].copy_from_slice(&index.to_le_bytes());
    part
}

#[tokio::test]
async fn large_data_takes_constant_memory() {
    let mib = variable("KMS_PROXY_STREAM_MIB").unwrap_or(96);
    let service = start(&Setup::new()).await;
    let piped = |args: &[&str]| command(&service, args).stdin(Stdio::piped()).spawn().unwrap();
    let (mut encrypt, mut decrypt) = (piped(&["encrypt", "--stream"]), piped(&["decrypt"]));
    let first = message(1 << 20);
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        let write = |mut to: ChildStdin| {
            (0..mib).for_each(|index| to.write_all(&part(&first, index)).unwrap());
            // Kept open: the process is there until its memory was read.
            to
        };
        let plaintext = encrypt.stdin.take().unwrap();
        let writing = scope.spawn(move || write(plaintext));
        let (mut from, mut to) = (encrypt.stdout.take().unwrap(), decrypt.stdin.take().unwrap());
        let passing = scope.spawn(move || {
            std::io::copy(&mut from, &mut to).unwrap();
            to
        });
        let mut opened = decrypt.stdout.take().unwrap();
        let first = &first;
        let reading = scope.spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            for index in 0..mib {
                opened.read_exact(&mut buffer).unwrap();
                assert!(buffer == part(first, index), "MiB {index}");
            }
            opened
        });
        let plaintext = writing.join().unwrap();
        let sealing = peak(&encrypt);
        drop(plaintext);
        let envelope = passing.join().unwrap();
        let opening = peak(&decrypt);
        drop(envelope);
        let mut opened = reading.join().unwrap();
        assert_eq!(opened.read(&mut [0]).unwrap(), 0, "no more than was encrypted");
        let took = started.elapsed().as_secs_f64();
        let [sealing, opening] = [sealing, opening].map(|peak| peak >> 20);
        let speed = mib as f64 / took;
        tell(&format!(
            "streams: {mib} MiB encrypted and decrypted at {speed:.0} MiB/s; peak memory {sealing} \
             MiB and {opening} MiB"
        ));
        assert!(sealing.max(opening) << 20 < most_memory(), "{sealing} MiB, {opening} MiB");
    });
    for mut child in [encrypt, decrypt] {
        assert!(child.wait().unwrap().success());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "progress is for terminals");
    }
}

/// Runs a command whose stdin is a pipe and whose stderr is a terminal. It gets input until the
/// terminal shows a speed.
const PROGRESS: &str = "
import os, pty, select, subprocess, sys
master, slave = pty.openpty()
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stderr=slave)
os.close(slave)
said = b''
while b'iB/s' not in said:
    child.stdin.write(bytes(10_000))
    child.stdin.flush()
    if select.select([master], [], [], 0.05)[0]:
        said += os.read(master, 4096)
child.stdin.close()
code = child.wait()
try:
    while more := os.read(master, 4096):
        said += more
except OSError:
    pass
sys.stderr.buffer.write(said)
sys.exit(code)
";

/// Runs a command on a terminal.
const TERMINAL: &str = "
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
";

#[tokio::test]
async fn a_terminal_shows_the_progress_and_gets_no_binary_data() {
    let setup = Setup::new();
    let service = start(&setup).await;
    let url = service.url();
    let path = setup.file("big.kp");
    let python = |script: &str, args: &[&str]| {
        let mut python = Command::new(test_env("python"));
        python.args(["-c", script]).args(args).args(["--server", &url]);
        let output = python.stdin(Stdio::null()).output().unwrap();
        let said = [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into());
        (output.status.code(), said)
    };
    let encrypt = [BINARY, "encrypt", "--stream", "--output", path.to_str().unwrap()];
    let (code, [written, said]): (_, [String; 2]) = python(PROGRESS, &encrypt);
    assert_eq!((code, &*written), (Some(0), ""), "{said}");
    assert!(said.starts_with('\r') && said.contains("KiB, "), "{said:?}");
    assert!(said.ends_with("\r\x1b[K"), "it disappears at the end: {said:?}");
    let opened = good(call_with(&service, &["decrypt"], &path));
    assert!(!opened.is_empty() && opened.iter().all(|byte| *byte == 0));

    let (code, [said, _]) = python(TERMINAL, &encrypt[..3]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the output is binary"), "{said}");
}
