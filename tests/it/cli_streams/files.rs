//! `--output`: the file appears when it is complete, and a failure leaves nothing.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::support::until;

/// A directory for outputs alone.
fn outputs(setup: &Setup) -> PathBuf {
    let directory = setup.file("outputs");
    std::fs::create_dir(&directory).unwrap();
    directory
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_file_appears_complete_and_never_replaces_another_one() {
    let setup = Setup::new();
    let (service, directory) = (start(&setup).await, outputs(&setup));
    let (sealed, opened) = (directory.join("big.kp"), directory.join("big"));
    let [sealed_name, opened_name] = [&sealed, &opened].map(|path| path.to_str().unwrap());
    let plaintext = message(3 * CHUNK);
    let umask = {
        let probe = directory.join("probe");
        File::create(&probe).unwrap();
        let umask = mode(&probe);
        std::fs::remove_file(&probe).unwrap();
        umask
    };
    for stream in [&["--stream"][..], &[]] {
        let encrypt = [&["encrypt", "--output", sealed_name], stream].concat();
        let decrypt = ["decrypt", "--output", opened_name];
        assert!(good(call(&service, &encrypt, &plaintext)).is_empty());
        assert_eq!(mode(&sealed), umask, "as of any new file");
        let envelope = std::fs::read(&sealed).unwrap();
        assert!(good(call(&service, &decrypt, &envelope)).is_empty());
        assert!(std::fs::read(&opened).unwrap() == plaintext);
        assert_eq!(mode(&opened), 0o600);
        for (args, input) in [(&encrypt[..], b"other".as_slice()), (&decrypt, &envelope)] {
            let (said, _) = refused(call(&service, args, input), 1);
            assert!(said.contains("exists already, and is not replaced"), "{said}");
        }
        assert!(std::fs::read(&sealed).unwrap() == envelope);
        assert_eq!(names(&directory), ["big", "big.kp"]);
        std::fs::remove_file(&sealed).unwrap();
        std::fs::remove_file(&opened).unwrap();
    }
    let stdout = good(call(&service, &["encrypt", "--stream", "--output", "-"], &plaintext));
    assert!(good(call(&service, &["decrypt", "--output", "-"], &stdout)) == plaintext);
    for (path, expected) in [
        (directory.clone(), "exists already"),
        (directory.join("missing/big"), "No such file or directory"),
        (PathBuf::from("/dev/null"), "exists already"),
    ] {
        let args = ["decrypt", "--output", path.to_str().unwrap()];
        let (said, _) = refused(call(&service, &args, &stdout), 1);
        assert!(said.contains(expected), "{said}");
    }
    assert!(names(&directory).is_empty());
}

#[tokio::test]
async fn a_failure_leaves_no_file() {
    let setup = Setup::new();
    let (service, directory) = (start(&setup).await, outputs(&setup));
    let path = directory.join("big");
    let path = path.to_str().unwrap();
    let envelope = good(call(&service, &["encrypt", "--stream"], &message(300 * CHUNK)));
    let ordinary = good(call(&service, &["encrypt"], b"hello"));
    for (args, input, expected) in [
        (&["decrypt"][..], &envelope[..envelope.len() - 1], "big was not written"),
        (&["decrypt"], &envelope[..90 * CHUNK], "big was not written"),
        (&["decrypt", "--aad", "other"], &envelope, "invalid_ciphertext: "),
        (&["decrypt", "--aad", "other"], &ordinary, "invalid_ciphertext: "),
        (&["decrypt", "--range", "1G-"], &envelope, "a pipe can't be read"),
        (&["encrypt", "--stream", "--chain", "none"], b"hello", "unknown_chain: "),
        (&["encrypt", "--chain", "none"], b"hello", "unknown_chain: "),
    ] {
        let output = call(&service, &[args, &["--output", path]].concat(), input);
        let code = if args.contains(&"--range") { 2 } else { 1 };
        let (said, written) = refused(output, code);
        assert!(said.contains(expected) && written.is_empty(), "{said}");
        assert!(names(&directory).is_empty(), "{args:?}");
    }
    // Another one took the name meanwhile.
    let args = ["encrypt", "--stream", "--output", path];
    let mut child = command(&service, &args).stdin(Stdio::piped()).spawn().unwrap();
    until("a temporary file", async || (!names(&directory).is_empty()).then_some(())).await;
    std::fs::write(path, "other").unwrap();
    drop(child.stdin.take());
    let (said, _) = refused(child.wait_with_output().unwrap(), 1);
    assert!(said.contains("exists already"), "{said}");
    assert_eq!(
        (names(&directory), std::fs::read(path).unwrap()),
        (vec!["big".into()], b"other".into())
    );
}

fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1
}

/// A signal while data arrives, and while the command waits for the first byte.
#[tokio::test]
async fn a_signal_leaves_no_file() {
    let setup = Setup::new();
    let (service, directory) = (start(&setup).await, outputs(&setup));
    let path = directory.join("big");
    let path = path.to_str().unwrap();
    let envelope = good(call(&service, &["encrypt", "--stream"], &message(300 * CHUNK)));
    for (args, input) in
        [(&["encrypt", "--stream"][..], &envelope[..]), (&["decrypt"], &envelope[..200 * CHUNK])]
    {
        for (signal, code) in [
            (Signal::INT, Some(130)),
            (Signal::TERM, Some(143)),
            (Signal::QUIT, Some(131)),
            (Signal::HUP, Some(129)),
            (Signal::KILL, None),
        ] {
            // A program that `nohup` started ignores it, and so do those that it starts.
            if signal == Signal::HUP && is_hangup_ignored() {
                continue;
            }
            for input in [input, b""] {
                let args = [args, &["--output", path]].concat();
                let mut child = command(&service, &args).stdin(Stdio::piped()).spawn().unwrap();
                child.stdin.as_mut().unwrap().write_all(input).unwrap();
                let name = until("a temporary file", async || names(&directory).pop()).await;
                assert!(name.starts_with("big.") && name.ends_with(".new"), "{name}");
                kill_process(Pid::from_child(&child), signal).unwrap();
                let output = child.wait_with_output().unwrap();
                assert_eq!(output.status.code(), code, "{signal:?}");
                if signal == Signal::KILL {
                    assert_eq!(output.status.signal(), Some(9));
                    let left = names(&directory).pop().unwrap();
                    assert_ne!(left, "big", "it never gets its name");
                    std::fs::remove_file(directory.join(left)).unwrap();
                }
                assert!(names(&directory).is_empty(), "{signal:?}: {:?}", names(&directory));
            }
        }
    }
}
