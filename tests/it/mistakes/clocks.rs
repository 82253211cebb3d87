//! Wall clocks that are wrong: a replica whose clock is ahead, and one whose clock jumps. No KEK is
//! destroyed before every replica ended its use.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::support::etcd::Etcd;
use crate::support::{Service, Setup, decrypt_all, pages};

use super::replicas::on;
use super::{RIGHT, command, passphrase};

/// A replica whose wall clock differs from the machine's by what is in the file, such as `+2d`. Its
/// monotonic clock is the machine's.
struct Clock {
    setup: Setup,
    file: PathBuf,
}

impl Clock {
    fn new(etcd: &Etcd, difference: &str) -> Self {
        let setup = passphrase(on(etcd), 0, "main", RIGHT);
        let file = setup.file("clock");
        let output =
            Command::new("faketime").args(["-m", "-f", "+0s", "printenv", "LD_PRELOAD"]).output();
        let missing = "faketime is not there: run `make test-env`, or install Debian's faketime";
        let output = output.unwrap_or_else(|error| panic!("{missing} ({error})"));
        assert!(output.status.success(), "{output:?}");
        let library = String::from_utf8(output.stdout).unwrap();
        let setup = setup
            .env("LD_PRELOAD", library.trim())
            .env("FAKETIME_TIMESTAMP_FILE", file.display())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let clock = Self { setup, file };
        clock.set(difference);
        clock
    }

    /// The file is replaced, so no process reads a part of it.
    fn set(&self, difference: &str) {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{difference}\n")).unwrap();
        std::fs::rename(next, &self.file).unwrap();
    }
}

/// Rotates, and disables the KEK that was primary: an envelope under it, and when it was disabled by
/// the clock of the replica.
async fn disabled(service: &Service) -> (crate::support::Sealed, String) {
    let sealed = service.encrypt("default", "AAEC").await;
    service.ok("/v1/rotate", json!({})).await;
    let id = sealed.kek_id();
    let (code, said) = command(service, &["kek", "disable", &id]);
    assert_eq!(code, Some(0), "{said}");
    let items = pages(service, "/v1/chains/default", "items").await;
    let item = items.iter().find(|item| item["kek_id"] == id).unwrap();
    (sealed, item["disabled_at"].as_str().unwrap().to_owned())
}

/// It can not be destroyed here now.
fn not_destroyed(service: &Service, id: &str) {
    let (code, said) = command(service, &["kek", "destroy", "--yes", id]);
    assert!(code == Some(1) && said.contains("it can be destroyed from"), "{code:?} {said}");
}

#[tokio::test]
async fn no_clock_that_is_ahead_or_jumps_destroys_a_kek_that_others_may_use() {
    let etcd = Etcd::start().await;
    let other = passphrase(on(&etcd), 0, "main", RIGHT).start().await;
    let ahead = Clock::new(&etcd, "+2d");
    let jumps = Clock::new(&etcd, "+0s");
    let (on_ahead, on_jumps) = (ahead.setup.start().await, jumps.setup.start().await);

    // All of `destroy_delay`, which is a day, is over by this clock when the KEK is disabled by
    // another one, and two days later by its own.
    let (by_ahead, ahead_at) = disabled(&on_ahead).await;
    let (by_other, other_at) = disabled(&other).await;
    assert!(ahead_at > other_at, "the clock is not ahead: {ahead_at}, {other_at}");
    for sealed in [&by_ahead, &by_other] {
        not_destroyed(&on_ahead, &sealed.kek_id());
    }
    // The clock of a replica that disabled a KEK jumps, and jumps once more.
    let (before, _) = disabled(&on_jumps).await;
    for (difference, least) in [("+4d", &ahead_at), ("+8d", &ahead_at)] {
        jumps.set(difference);
        let (after, at) = disabled(&on_jumps).await;
        assert!(at > *least, "the clock did not jump: {at}, {least}");
        for sealed in [&by_ahead, &by_other, &before, &after] {
            not_destroyed(&on_jumps, &sealed.kek_id());
        }
    }
    // A replica that starts with such a clock did not see the KEKs disabled.
    let late = Clock::new(&etcd, "+16d");
    let fresh = late.setup.start().await;
    for sealed in [&by_ahead, &by_other, &before] {
        not_destroyed(&fresh, &sealed.kek_id());
    }
    // By a clock that is right, a KEK was disabled in the future: that counts as now, and is logged.
    not_destroyed(&other, &by_ahead.kek_id());
    other.logged("a KEK was disabled in the future").await;
    // Nothing is lost.
    for sealed in [by_ahead, by_other, before] {
        let (code, said) = command(&other, &["kek", "enable", &sealed.kek_id()]);
        assert_eq!(code, Some(0), "{said}");
        decrypt_all(&other, &[sealed]).await;
    }
}
